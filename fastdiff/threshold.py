"""Dynamic thresholding: bounds of the predicted x0, sample by sample, without leaving the device."""

from __future__ import annotations

import math

import torch

from fastdiff.ops.buffers import Coeffs

DYNAMIC_QUANTILE = 0.995


def dynamic_threshold(x0: torch.Tensor, coeffs: Coeffs) -> None:
    """Set lo, hi and scale from each sample's quantile of |x0| (Saharia et al. 2022, Section 2.3), on the device."""
    assert coeffs.lo is not None and coeffs.hi is not None and coeffs.scale is not None
    size = x0.abs().flatten(1)
    rank = DYNAMIC_QUANTILE * (size.shape[1] - 1)
    low = math.floor(rank)
    # torch.quantile refuses more than 2^24 elements; the order statistics that it interpolates have no such limit.
    a = size.kthvalue(low + 1, dim=1).values
    b = size.kthvalue(min(low + 2, size.shape[1]), dim=1).values
    bound = torch.lerp(a, b, rank - low).clamp(min=1.0)
    coeffs.hi.copy_(bound)
    coeffs.lo.copy_(-bound)
    coeffs.scale.copy_(1.0 / bound)
