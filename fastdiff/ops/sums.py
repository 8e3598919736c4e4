"""Sums over each sample whose order is the same for every batch and device."""

from __future__ import annotations

import torch


def sample_sums(v: torch.Tensor) -> torch.Tensor:
    """The sum of each sample of (B, ...): (B,). `v` is overwritten.

    A tree of element-wise sums: a library's reduction may split a row in ways that depend on the number of rows, and a
    sample must not depend on the batch that it is in.
    """
    s = v.reshape(len(v), -1)
    n = s.shape[1]
    while n > 1:
        half = n // 2
        s.narrow(1, 0, half).add_(s.narrow(1, n - half, half))
        n -= half
    return s.select(1, 0)


def lengths(v: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of each sample of (B, ...): (B,)."""
    return sample_sums(v.square()).sqrt()


def dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The inner product of each sample of two (B, ...): (B,)."""
    return sample_sums(a * b)
