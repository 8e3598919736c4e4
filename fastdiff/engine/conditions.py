"""Conditions of several requests as one batch of keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastdiff.names import short
from fastdiff.run.network import ordered

Tree = Mapping[str, Any]
Collate = Callable[[Sequence[Tree]], Tree]


def stack(trees: Sequence[Tree]) -> dict[str, Any]:
    """Tensors with a first dimension of 1 are joined along it; what is no tensor must be the same in all, and of the
    same type."""
    first = dict(trees[0])
    if all(isinstance(v, torch.Tensor) for v in first.values()):
        return {key: torch.cat([tree[key] for tree in trees]) for key in first}
    leaves, spec = tree_flatten(first)
    columns = [[leaf] for leaf in leaves]
    for tree in trees[1:]:
        for column, leaf in zip(columns, tree_flatten(ordered(dict(tree), first))[0], strict=True):
            column.append(leaf)
    joined = [torch.cat(c) if isinstance(c[0], torch.Tensor) else c[0] for c in columns]
    result: dict[str, Any] = tree_unflatten(joined, spec)
    return result


class Constant:
    """What is no tensor: equal to another of its type that says that it is equal. Comparing never raises."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant) or type(self.value) is not type(other.value):
            return False
        try:
            return self.value is other.value or bool(self.value == other.value)
        except Exception:
            # Such as several truth values, of an array.
            return False

    def __hash__(self) -> int:
        return hash(type(self.value))


def likeness(tree: Tree) -> tuple[Any, ...]:
    """What two conditions must share for `stack` to join them: equal where they do."""
    if not tree:
        return ()
    leaves, spec = tree_flatten(_by_key(dict(tree)))
    return str(spec), *[(tuple(v.shape), v.dtype) if isinstance(v, torch.Tensor) else Constant(v) for v in leaves]


def _by_key(tree: Any) -> Any:
    return {key: _by_key(tree[key]) for key in sorted(tree, key=str)} if type(tree) is dict else tree


def checked(name: str, tree: Any, device: torch.device, alone: bool, fixed: Collection[str]) -> dict[str, Any] | None:
    """A request's condition on the engine's device, in memory of its own: the caller may write into its tensors again.

    Args:
        alone: whether tensors must have a first dimension of 1, as `stack` needs.
        fixed: names that the network is given with every call.

    Raises:
        TypeError, ValueError: not a dict of keyword arguments, an array of NumPy, a tensor of another batch, or one of
            the names that are fixed.
    """
    if tree is None:
        return None
    if not isinstance(tree, Mapping) or not all(isinstance(key, str) for key in tree):
        raise TypeError(
            f"{name} must be a dict of keyword arguments of the network, such as {name}={{'y': torch.tensor([3])}}; "
            f"got {short(tree)}"
        )
    twice = sorted(set(fixed) & set(tree)) if alone else []
    if twice:
        raise ValueError(f"{twice} given both in the engine's model_kwargs and in {name}: give it once")
    for key, value in tree.items():
        for leaf in tree_flatten(value)[0]:
            if alone and isinstance(leaf, np.ndarray):
                raise TypeError(
                    f"{name}[{key!r}] is an array of NumPy, which is not joined with others': give a tensor, "
                    "torch.from_numpy(value), or the engine a collate function of your own"
                )
            if alone and isinstance(leaf, torch.Tensor) and (leaf.ndim == 0 or len(leaf) != 1):
                raise ValueError(
                    f"{name}[{key!r}] has shape {tuple(leaf.shape)}; expected the first dimension 1, one sample's: "
                    "value[None]; or give the engine a collate function of your own"
                )

    def own(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy()
        return value.to(device, non_blocking=True, copy=True) if isinstance(value, torch.Tensor) else value

    return tree_map(own, dict(tree))


def unlike(name: str, got: Tree, others: Tree) -> str:
    """The message about a condition that does not go with the others."""

    def told(tree: Tree) -> str:
        return ", ".join(
            f"{key}: {tuple(v.shape)} {v.dtype}" if isinstance(v, torch.Tensor) else f"{key}: {short(v)}"
            for key, v in sorted(tree.items())
        )

    return (
        f"{name} has {told(got) or 'no entries'}, and the conditions of this engine have {told(others) or 'no entries'}"
        ": give all the same keys and shapes, or the engine a function that pads them, "
        "Engine(..., collate=lambda conditions: {...})"
    )
