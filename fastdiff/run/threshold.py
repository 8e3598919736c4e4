"""Bounds of the predicted x0: fixed, or by dynamic thresholding, sample by sample, without leaving the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastdiff.ops import Backend, Coeffs


@dataclass(frozen=True)
class Dynamic:
    """Dynamic thresholding of the predicted x0 (Saharia et al. 2022, arXiv 2205.11487, Section 2.3), for `clip=`.

    At every network evaluation, s = max(quantile of the sample's |x0|, max_value); then x0 = clamp(x0, -s, s)/s. A
    sample with a NaN in its predicted x0 becomes NaN throughout.

    Args:
        quantile: in [0, 1]; 0.995 as published. Linear between order statistics, as torch.quantile.
        max_value: the least s, above 0; 1 for data in [-1, 1]. As published, x0 is divided by s in any case, so that
            another value changes its range too.

    Raises:
        ValueError: outside these ranges.
        TypeError: not a number.
    """

    quantile: float = 0.995
    max_value: float = 1.0

    def __post_init__(self) -> None:
        for name in ("quantile", "max_value"):
            value = getattr(self, name)
            if isinstance(value, bool):
                raise TypeError(
                    f"{name}={value!r}: expected a number, as in fastdiff.Dynamic(quantile=0.995, max_value=1.0)"
                )
            try:
                object.__setattr__(self, name, float(value))
            except (TypeError, ValueError, OverflowError):
                raise TypeError(
                    f"{name}={value!r}: expected a number, as in fastdiff.Dynamic(quantile=0.995, max_value=1.0)"
                ) from None
        if not 0.0 <= self.quantile <= 1.0:
            raise ValueError(f"quantile={self.quantile}: expected a number from 0 to 1, such as 0.995")
        if not (math.isfinite(self.max_value) and self.max_value > 0.0):
            raise ValueError(f"max_value={self.max_value}: expected a finite number above 0, such as 1.0")


@dataclass(frozen=True)
class Threshold:
    """Sets lo, hi and scale from a predicted x0. Equal by value, since a graph's signature holds it."""

    options: Dynamic
    backend: Backend

    def __call__(self, x0: torch.Tensor, coeffs: Coeffs) -> None:
        """x0: (B, ...), contiguous, in the state's dtype. No synchronisation."""
        lo, hi, scale = coeffs.lo, coeffs.hi, coeffs.scale
        assert lo is not None and hi is not None and scale is not None
        self.backend.quantile_(hi, x0, self.options.quantile)
        hi.clamp_(min=self.options.max_value)
        torch.neg(hi, out=lo)
        torch.reciprocal(hi, out=scale)


def set_bounds(
    clip: Dynamic | tuple[float, float] | None, coeffs: Coeffs, like: torch.Tensor, backend: Backend
) -> Threshold | None:
    """Give `coeffs` lo, hi and scale, each (B,), of the dtype and on the device of `like` (B, ...), if x0 is clipped.

    Returns:
        What sets them again at every evaluation, if clipping is dynamic.
    """
    if clip is None:
        return None
    lo, hi = (-1.0, 1.0) if isinstance(clip, Dynamic) else clip
    coeffs.lo, coeffs.hi, coeffs.scale = (like.new_full((len(like),), value) for value in (lo, hi, 1.0))
    return Threshold(clip, backend) if isinstance(clip, Dynamic) else None
