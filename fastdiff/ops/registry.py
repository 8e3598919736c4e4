"""Back ends of the fused stage, by name."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

import torch

from fastdiff.names import unknown
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.ops.layout import StageSpec

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""In the order of preference."""


_LOADED: dict[str, Backend] = {}


class Backend(Protocol):
    """What a back end offers: a module of functions."""

    NAME: str

    def available(self) -> tuple[bool, str]:
        """Whether it can run in this process, and what it uses or why it cannot."""

    def supports(self, device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[bool, str]:
        """Whether it takes tensors there with these dtypes of the state and of the network's output, or why not."""

    def stage(self, spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
        """Run table row `k` (or `coeffs.rows`, one row per sample or frame)."""

    def normal_(self, out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
        """Fill `out` (B, ...), contiguous float32 or float64, with the normals of one draw."""

    def quantile_(self, out: torch.Tensor, x0: torch.Tensor, q: float) -> None:
        """Set `out` (B,) to the q-quantile of each sample's |x0|, x0 (B, ...) contiguous, of out's dtype."""


def load(name: str) -> Backend:
    """The back end, imported when first asked for."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(unknown("backend", name, BACKENDS))
    if name not in _LOADED:
        _LOADED[name] = cast(Backend, importlib.import_module(f"fastdiff.ops.{name}"))
    return _LOADED[name]


def backends() -> dict[str, tuple[bool, str]]:
    """Each back end's name with (available, reason)."""
    return {name: load(name).available() for name in BACKENDS}
