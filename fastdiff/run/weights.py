"""Where a model's weights lie: a graph reads them there, and nowhere else."""

from __future__ import annotations

import hashlib
import weakref
from types import MethodType
from typing import Any, NamedTuple

import torch


class _Module(NamedTuple):
    """One module, weakly held, with the addresses of its own tensors and its children as they were."""

    module: weakref.ref[torch.nn.Module]
    parameters: tuple[tuple[str, int], ...]
    buffers: tuple[tuple[str, int], ...]
    children: tuple[tuple[str, int], ...]


class Weights:
    """The memory of a module's parameters and buffers at one moment. Nothing is known of a model that is not a module.

    The list is kept, so that a look at it costs a dictionary access and an address for each tensor, and no walk through
    the modules. It does not keep the model alive.
    """

    def __init__(self, model: Any) -> None:
        owner = model.__self__ if isinstance(model, MethodType) else model
        self.known: list[_Module] = []
        if isinstance(owner, torch.nn.Module):
            for module in owner.modules():
                tables = (module._parameters, module._buffers)
                own = [tuple((n, p.data_ptr()) for n, p in t.items() if p is not None) for t in tables]
                children = tuple((n, id(child)) for n, child in module._modules.items())
                self.known.append(_Module(weakref.ref(module), own[0], own[1], children))

    def moved(self) -> bool:
        """Whether any of them lies elsewhere now, was exchanged, or is gone."""
        for reference, parameters, buffers, children in self.known:
            module = reference()
            if module is None:
                return True
            for table, tensors in ((module._parameters, parameters), (module._buffers, buffers)):
                for name, address in tensors:
                    tensor = table.get(name)
                    if tensor is None or tensor.data_ptr() != address:
                        return True
            if children:
                held = module._modules
                for name, child in children:
                    if id(held.get(name)) != child:
                        return True
        return False


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
