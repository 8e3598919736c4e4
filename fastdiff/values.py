"""Checks of single values that came from a caller: each error names the argument, what was got and what is right."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def shown(value: object) -> str:
    """The value's repr, cut where it is long."""
    text = " ".join(repr(value).split("\n"))
    return text if len(text) <= 100 else f"{text[:96]}..."


def floats(name: str, value: Any, expected: str = "numbers") -> NDArray[np.float64]:
    """`value`, a number, an array, a tensor or nested lists of numbers, as float64; TypeError for anything else."""
    detached = None if isinstance(value, np.ndarray | np.generic) else getattr(value, "detach", None)
    try:
        array = np.asarray(value if detached is None else detached().cpu())
        if array.dtype.kind in "OUS" and _has_text(array):
            raise TypeError
        if array.dtype.kind not in "fiubO":
            raise TypeError
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{name} got {shown(value)}; expected {expected}") from None


def _has_text(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "O" or any(v is None or isinstance(v, str | bytes) for v in array.reshape(-1))


def number(name: str, value: Any, such: str) -> float:
    """A finite number as a float; ValueError for one that is not finite, TypeError for anything else."""
    if isinstance(value, bool | str | bytes | np.bool_) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}={shown(value)}: expected a number, such as {such}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}={shown(value)}: expected a number, such as {such}") from None
    if not math.isfinite(found):
        raise ValueError(f"{name}={shown(value)}: expected a finite number, such as {such}")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False; TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={shown(value)}: expected True or False")
    return bool(value)


def whole(name: str, value: Any, least: int, most: int, such: str) -> int:
    """An integer from `least` to `most`; TypeError for what is none, ValueError outside."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={shown(value)}: expected an integer, such as {such}") from None
    if not least <= found <= most:
        raise ValueError(f"{name}={shown(value)}: expected an integer from {least} to {most}, such as {such}")
    return found
