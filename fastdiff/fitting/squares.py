"""The coefficients of one stage: weighted linear least squares, from float64 products of every sample.

For sample i with the columns A_i (p, d) and the target y_i (d,), the products G_i = A_i·A_iᵀ, b_i = A_i·y_i and |y_i|²
hold all that the fit needs: they are made in one pass over the batches, and any weighting of the samples afterwards is
a sum over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastdiff.fitting.ranks import total

RIDGE = 1e-9
"""Of the columns' own sizes. Columns of one stage are nearly parallel; the products are float64, with 1e-16."""
REWEIGHTINGS = 3
FLOOR = 1e-2
"""Of the mean norm: residuals below it all weigh the same."""


class Products(NamedTuple):
    """Of the samples of one process: (B, p, p), (B, p) and (B,), float64."""

    columns: torch.Tensor
    mixed: torch.Tensor
    target: torch.Tensor


def products(columns: Sequence[torch.Tensor], target: torch.Tensor) -> Products:
    """Of one batch: columns and target (B, ...)."""
    a = torch.stack([c.flatten(1) for c in columns], dim=1).double()
    y = target.flatten(1).double()
    return Products(a @ a.transpose(1, 2), (a @ y.unsqueeze(2)).squeeze(2), y.square().sum(1))


def join(parts: Sequence[Products]) -> Products:
    """Of all batches."""
    return Products(*(torch.cat(arrays) for arrays in zip(*parts, strict=True)))


def solve(found: Products, robust: bool) -> torch.Tensor:
    """(p,) float64 on the host: the coefficients c of the least Σ_i |y_i − c·A_i|², or, `robust`, Σ_i |y_i − c·A_i|.

    The sum of norms, which a few hard samples do not rule, is reached by repeated weighting with 1/|residual|.
    """
    weights = torch.ones_like(found.target)
    c = _weighted(found, weights)
    for _ in range(REWEIGHTINGS if robust else 0):
        own = c.to(found.target.device)
        squared = found.target - 2.0 * found.mixed @ own + torch.einsum("p,bpq,q->b", own, found.columns, own)
        norms = squared.clamp(min=0.0).sqrt()
        both = total(torch.stack([norms.sum(), torch.ones_like(norms).sum()]))
        mean = both[0] / both[1]
        if not mean > 0:
            break
        weights = 1.0 / norms.clamp(min=float(FLOOR * mean))
        c = _weighted(found, weights)
    return c


def _weighted(found: Products, weights: torch.Tensor) -> torch.Tensor:
    gram = torch.einsum("b,bpq->pq", weights, found.columns)
    right = torch.einsum("b,bp->p", weights, found.mixed)
    both = total(torch.cat([gram.flatten(), right])).cpu()
    size = len(right)
    gram, right = both[: size * size].reshape(size, size), both[size * size :]
    scale = gram.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    unit = gram / scale[:, None] / scale
    return torch.linalg.solve(unit + RIDGE * torch.eye(size, dtype=torch.float64), right / scale) / scale
