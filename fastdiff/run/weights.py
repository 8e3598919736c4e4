"""Where a model's weights lie: a graph reads them there, and nowhere else."""

from __future__ import annotations

import hashlib
import weakref
from types import MethodType
from typing import Any

import torch

from fastdiff.ops import cpu, cuda

_LOOK: Any = cpu.look or cuda.look


class Weights:
    """The memory of a module's parameters and buffers at one moment. Nothing is known of a model that is not a module.

    The modules' own tables of tensors are kept, so that a look at them costs an address for each tensor, and no walk
    through the modules. They do not keep the model alive, nor a tensor that was exchanged.
    """

    def __init__(self, *models: Any) -> None:
        owners = [model.__self__ if isinstance(model, MethodType) else model for model in models]
        modules = [m for owner in owners if isinstance(owner, torch.nn.Module) for m in owner.modules()]
        self.tables: list[Any] = [t for m in modules for t in (m._parameters, m._buffers) if t]
        # Identities say nothing of a module that is gone.
        self.gone: list[bool] = []
        gone = self.gone
        self.alive = [weakref.ref(m, lambda _: gone.append(True)) for m in modules]
        self.parents = [weakref.ref(m) for m in modules if m._modules]
        self.seen = self._look()

    def _look(self) -> Any:
        """Addresses of the tensors and identities of the modules. In one call of C where an extension was built."""
        if _LOOK is not None:
            return _LOOK(torch.Tensor.data_ptr, self.tables, self.parents)
        full = [None if t is None else t.data_ptr() for table in self.tables for t in table.values()]
        parents: list[Any] = [reference() for reference in self.parents]
        return full, [id(child) for parent in parents for child in parent._modules.values()]

    def moved(self) -> bool:
        """Whether any of them lies elsewhere now, was exchanged, or is gone."""
        if self.gone:
            return True
        try:
            seen: bool = self._look() != self.seen
        except (AttributeError, TypeError):
            # A module or a tensor is None now.
            return True
        return seen


def fingerprint(model: Any) -> str:
    """A short hash of a module's weights, "" of other callables: a file of another network must not be gone on with.

    Some bytes of each tensor are read: they are the same on every device, as sums would not be.
    """
    if not isinstance(model, torch.nn.Module):
        return ""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            some = value.detach().flatten()[:4096].cpu().contiguous().view(torch.uint8).numpy().tobytes()
            found.update(f"{tuple(value.shape)}{value.dtype}".encode() + some)
    return found.hexdigest()[:16]
