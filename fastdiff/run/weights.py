"""Where a model's weights lie: a graph reads them there, and nowhere else."""

from __future__ import annotations

import functools
import hashlib
import itertools
import weakref
from collections.abc import Iterable
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch

from fastdiff.ops import cpu, cuda

_LOOK: Any = cpu.look or cuda.look


_DEPTH = 4
"""How many functions and objects lead from a model to a module at most."""
_MOST = 64
"""Members of a list or a dict that are looked at."""
Names = dict[str, None]
"""A set in the order of its members."""
_NO_HOLDERS = (torch.Tensor, ModuleType, type, str, bytes, int, float, torch.dtype, torch.device)


class Holder(NamedTuple):
    """What a function or an object finds a module by: a cell of a closure, or a name in a dict."""

    place: Any
    name: str | None

    def held(self) -> Any:
        if self.name is not None:
            return self.place.get(self.name)
        try:
            return self.place.cell_contents
        except ValueError:
            # Deleted since.
            return None


def held_by(model: Any) -> tuple[list[torch.nn.Module], list[Holder]]:
    """The modules that a model calls: itself, or what a function finds in its closure, its defaults and its module's
    names, a partial in its arguments, an object in the attributes that its code names; and where they are found. In the
    same order in every process."""
    modules: list[torch.nn.Module] = []
    holders: list[Holder] = []
    seen: set[int] = set()

    def led(places: Iterable[Holder], depth: int, used: Names) -> bool:
        """Whether any of these leads to a module."""
        leading = [place for place in places if walk(place.held(), depth, used)]
        holders.extend(leading)
        return bool(leading)

    def walk(value: Any, depth: int, used: Names) -> bool:
        """Whether it leads to a module; of an object only by the names that are `used`."""
        if isinstance(value, torch.nn.Module):
            if id(value) not in seen:
                seen.add(id(value))
                modules.append(value)
            return True
        if value is None or isinstance(value, _NO_HOLDERS) or depth == _DEPTH or id(value) in seen:
            return False
        seen.add(id(value))
        given: list[Any] = []
        found = False
        if isinstance(value, FunctionType):
            used = _names(value.__code__)
            given = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            found = led([Holder(cell, None) for cell in value.__closure__ or ()], depth + 1, used)
            names = [name for name in used if name in value.__globals__]
            found |= led([Holder(value.__globals__, name) for name in names], depth + 1, used)
        elif isinstance(value, functools.partial):
            given = [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            given, used = [value.__self__], {value.__name__: None}
        elif isinstance(value, list | tuple):
            given = [*value[:_MOST]]
        elif isinstance(value, dict):
            given = [*itertools.islice(value.values(), _MOST)]
        else:
            own = getattr(value, "__dict__", None)
            used = _with_methods(type(value), used)
            if isinstance(own, dict):
                found = led([Holder(own, name) for name in used if name in own], depth + 1, used)
                # As functools' decorators name what they are around.
                given = [own.get("__wrapped__")]
        return any([walk(one, depth + 1, used) for one in given]) or found  # noqa: C419 each of them is walked

    walk(model, 0, {"__call__": None})
    return modules, holders


def _names(code: CodeType) -> Names:
    """The names of globals and attributes in a function and in those inside it, in order."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return dict.fromkeys([*code.co_names, *inner])


def _with_methods(kind: type, used: Names) -> Names:
    """Those names, and the ones in the methods among them."""
    found, todo = dict(used), list(used)
    while todo:
        method = getattr(kind, todo.pop(0), None)
        if isinstance(method, FunctionType):
            more = [name for name in _names(method.__code__) if name not in found]
            found.update(dict.fromkeys(more))
            todo += more
    return found


def _table(tensors: Any) -> dict[str, Any]:
    """A module's own table; of TorchScript's modules, which make theirs when asked and exchange nothing, a copy."""
    return tensors if isinstance(tensors, dict) else dict(tensors.items())


class Weights:
    """The memory of the parameters and buffers of a model's modules at one moment, and which modules they are.

    The modules' own tables of tensors are kept, so that a look at them costs an address for each tensor, and no walk
    through the modules. They do not keep a module alive, nor a tensor that was exchanged.
    """

    def __init__(self, *models: Any) -> None:
        found = [held_by(model) for model in models]
        modules = [m for owners, _ in found for owner in owners for m in owner.modules()]
        self.holders = [holder for _, holders in found for holder in holders]
        self.held = [id(holder.held()) for holder in self.holders]
        self.tables: list[Any] = [_table(t) for m in modules for t in (m._parameters, m._buffers) if t]
        # Identities say nothing of a module that is gone.
        self.gone: list[bool] = []
        gone = self.gone
        self.alive = [weakref.ref(m, lambda _: gone.append(True)) for m in modules]
        self.parents = [weakref.ref(m) for m in modules if m._modules and isinstance(m._modules, dict)]
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
        if self.holders and [id(holder.held()) for holder in self.holders] != self.held:
            return True
        try:
            seen: bool = self._look() != self.seen
        except (AttributeError, TypeError):
            # A module or a tensor is None now.
            return True
        return seen


def fingerprint(model: Any) -> str:
    """A short hash of the weights of a model's modules, "" where it has none: a file of another network must not be
    gone on with.

    Some bytes of each tensor are read: they are the same on every device, as sums would not be.
    """
    modules, _ = held_by(model)
    found = hashlib.sha256()
    for name, value in (pair for module in modules for pair in module.state_dict().items()):
        found.update(name.encode())
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            some = value.detach().flatten()[:4096].cpu().contiguous().view(torch.uint8).numpy().tobytes()
            found.update(f"{tuple(value.shape)}{value.dtype}".encode() + some)
    return found.hexdigest()[:16] if modules else ""
