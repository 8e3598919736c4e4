"""A call that was replayed before, with other values: it fills the graph's buffers and launches, and asks no more.

What a call leads to (program, signature, graph) follows from the types, shapes and plain values of its arguments.
These make a key; seeds, x, conditions and `out` are free. A known key needs no check but of what is free.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch

from fastdiff.guidance import Guidance
from fastdiff.ops import Backend, admitted
from fastdiff.ops.layout import NEXT_U
from fastdiff.ops.philox import PRIOR
from fastdiff.plan import X
from fastdiff.run import graph
from fastdiff.run.arguments import check_out
from fastdiff.run.entry import Entry, Sources, sources_of
from fastdiff.run.job import sampling_mode
from fastdiff.run.loop import Run

MAX_RECALLS = 16
"""How many calls a sampler remembers, the oldest going first."""

NO_SEED = (0, 0)
"""`seed_of` a call without options."""
_FREE = frozenset(("seed", "first_sample", "out"))
_TREES = frozenset(("cond", "uncond", "model_kwargs"))
_PLAIN = frozenset((int, float, bool, str, bytes, type(None), torch.dtype, torch.device))

Options = Mapping[str, Any]
Path = tuple[Any, ...]
"""The keys that lead to a value within dicts, lists and tuples."""


def owner_of(model: Any) -> Any:
    """What lives as long as the model: a bound method is a new object each time that it is asked for."""
    return model.__self__ if type(model) is MethodType else model


def _tree(tree: Any) -> list[Any] | None:
    """Dicts, lists and tuples of tensors and plain values by what a graph's structure depends on; None for others."""
    if tree is None:
        return []
    if type(tree) not in (dict, list, tuple):
        return None
    parts: list[Any] = [type(tree), len(tree)]
    for name, value in tree.items() if type(tree) is dict else enumerate(tree):
        kind = type(value)
        if kind is torch.Tensor:
            parts += (name, value.shape, value.dtype, value.device)
        elif kind in _PLAIN:
            parts += (name, kind, value)
        else:
            inner = _tree(value)
            if inner is None:
                return None
            parts += (name, *inner)
    return parts


def _tensors(tree: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """The tensors of such a tree, as torch's pytrees order them, and the keys that lead to each."""
    for name, value in tree.items() if type(tree) is dict else enumerate(tree):
        if type(value) is torch.Tensor:
            yield (*path, name), value
        elif type(value) in (dict, list, tuple):
            yield from _tensors(value, (*path, name))


def _at(tree: Any, path: Path) -> torch.Tensor:
    for key in path:
        tree = tree[key]
    found: torch.Tensor = tree
    return found


def key_of(model: Any, x: Any, options: Options, said: tuple[Any, Any]) -> tuple[Any, ...] | None:
    """What stands for a call, or None for one that is not remembered.

    Args:
        said: the model's own prediction and schedule, where the sampler asks for them.
    """
    owner, function = (model.__self__, id(model.__func__)) if type(model) is MethodType else (model, 0)
    parts: list[Any] = [id(owner), function, getattr(owner, "training", None), id(said[0]), id(said[1])]
    if x is None:
        if options.get("shape") is None:
            # The model says the shape, and may say another.
            return None
    elif type(x) is torch.Tensor:
        parts += (x.shape, x.dtype, x.device)
    else:
        return None
    if torch.is_autocast_enabled("cuda"):
        parts.append(torch.get_autocast_dtype("cuda"))
    for name, value in options.items():
        parts.append(name)
        if name in _FREE:
            continue
        if name in _TREES:
            tree = _tree(value)
            if tree is None:
                return None
            parts += tree
        elif name == "device":
            where = str(value)
            if value is not None and where != "cpu" and ":" not in where:
                # "cuda" is whichever device is current.
                return None
            parts.append(where)
        elif type(value) in _PLAIN:
            parts += (type(value), value)
        else:
            named = _named(value)
            if named is None:
                return None
            parts += named
    return tuple(parts)


def _named(value: Any) -> tuple[Any, ...] | None:
    """A sequence of plain values, a function, or an object of plain values and functions, such as a guidance form; None
    for what may hold values of its own that change."""
    if type(value) in (tuple, list, torch.Size):
        return (*value, len(value)) if all(type(v) in _PLAIN for v in value) else None
    if isinstance(value, torch.Tensor):
        return None
    held = () if isinstance(value, FunctionType) else getattr(value, "__dict__", {"": value}).values()
    return (value,) if all(_fixed(v) for v in held) else None


def _fixed(value: Any) -> bool:
    """A plain value, a function, or a form of guidance within another, which are all frozen."""
    if type(value) in _PLAIN or isinstance(value, FunctionType):
        return True
    return isinstance(value, Guidance) and all(_fixed(v) for v in vars(value).values())


@dataclasses.dataclass(eq=False, slots=True)
class Recall:
    """What is known of a call.

    Attributes:
        entry: the graph, which may be gone.
        sources: of its coefficients, times and bounds; where the start is drawn, row 0 holds the prior's deviation.
        leaves: where each static tensor of the model's arguments comes from: (tree, path, how), how "once", "twice" or
            "halves".
        said: keeps alive what the key names by identity.
    """

    owner: weakref.ref[Any]
    entry: weakref.ref[Entry]
    sources: Sources
    leaves: tuple[tuple[str, Path, str], ...]
    backend: Backend
    said: tuple[Any, Any]


class Recalls:
    """The calls of one sampler that were replayed."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], Recall] = {}

    def __reduce__(self) -> tuple[type[Recalls], tuple[()]]:
        # A copy, perhaps in another process, has no graph yet.
        return Recalls, ()

    def note(
        self, model: Any, x: Any, options: Options, said: tuple[Any, Any], entry: Entry, r: Run, prior_std: float
    ) -> None:
        """Remember a call that `entry` has replayed."""
        key = key_of(model, x, options, said)
        owner = owner_of(model)
        if key is None:
            return
        sources = sources_of(r)
        if x is None and prior_std != 1.0:
            # The opening row multiplies by it: one operation less, and the same product.
            table = sources.table.clone()
            table[0, NEXT_U + X] = prior_std
            sources = sources._replace(table=table)
        batch, leaves = len(entry.start), []
        for path, value in _tensors(options.get("model_kwargs") or {}):
            twice = r.network.guided and value.ndim > 0 and value.shape[0] == batch
            leaves.append(("model_kwargs", path, "twice" if twice else "once"))
        leaves += [("cond", path, "halves") for path, _ in _tensors(options.get("cond") or {})]
        if len(leaves) != len(entry.leaves.tensors):
            return
        try:
            self.known[key] = Recall(weakref.ref(owner), weakref.ref(entry), sources, tuple(leaves), r.backend, said)
        except TypeError:
            # A value that cannot be hashed.
            return
        # A copy of the keys in one operation: other threads may add to them.
        for old in list(self.known)[:-MAX_RECALLS]:
            self.known.pop(old, None)

    def replay(self, model: Any, x: Any, options: Options, said: tuple[Any, Any]) -> torch.Tensor | None:
        """The sample, or None where the call is not known, or has to be looked at after all."""
        key = key_of(model, x, options, said)
        try:
            known = None if key is None else self.known.get(key)
        except TypeError:
            return None
        if known is None or key is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        entry = known.entry()
        if entry is None or known.owner() is not owner_of(model):
            self.known.pop(key, None)
            return None
        seed = seed_of(options, len(entry.start))
        if seed is None or graph.CAPTURE.under_way():
            return None
        if x is not None:
            x = admitted("x", x)
            if x.requires_grad or x.device != entry.start.device:
                return None
        out = options.get("out")
        check_out(out, entry.start)
        with sampling_mode(), entry.pool.turn():
            if entry.weights.moved():
                return None
            graph.CACHE.touch(entry)
            entry.in_use()
            entry.seed(*seed)
            entry.load(known.sources)
            if x is None:
                known.backend.normal_(entry.start, entry.coeffs.seeds, entry.coeffs.index, 0, PRIOR)
            else:
                entry.start.copy_(x)
            if len(known.leaves) > 1:
                _fill(entry.leaves.tensors, known.leaves, options)
            elif known.leaves:
                static, (tree, path, how) = entry.leaves.tensors[0], known.leaves[0]
                given = _at(options[tree], path)
                if how == "once":
                    static.copy_(given)
                else:
                    second = given if how == "twice" else _at(options["uncond"], path)
                    torch.cat([given, second], out=static)
            entry.graph.replay()
            return entry.result.clone() if out is None else out.copy_(entry.result)


def _fill(statics: list[torch.Tensor], leaves: tuple[tuple[str, Path, str], ...], options: Options) -> None:
    """Several tensors at once: one operation for those of a dtype."""
    groups: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for static, (tree, path, how) in zip(statics, leaves, strict=True):
        to, given = groups.setdefault(static.dtype, ([], []))
        first = _at(options[tree], path)
        if how == "once":
            to.append(static)
            given.append(first)
        else:
            to += static.chunk(2)
            given += (first, first if how == "twice" else _at(options["uncond"], path))
    for to, given in groups.values():
        torch._foreach_copy_(to, given)


def seed_of(options: Options, batch: int) -> tuple[int | list[int], int] | None:
    """The seed, or one for each sample, as signed integers, and the first sample; None for any that the full check
    should see."""
    seed, first = options.get("seed", 0), options.get("first_sample", 0)
    if type(first) is not int or not 0 <= first <= 2**31 - 1 - batch:
        return None
    several = type(seed) in (list, tuple)
    if several and (len(seed) != batch or first):
        return None
    values = seed if several else [seed]
    if any(type(value) is not int or not -(2**63) <= value < 2**64 for value in values):
        return None
    signed = [value - 2**64 if value >= 2**63 else value for value in values]
    return (signed if several else signed[0]), first
