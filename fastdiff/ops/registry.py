"""Back ends of the fused stage, and the choice among them."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

import torch

from fastdiff.names import unknown
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.ops.layout import StageSpec

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""In the order of preference."""


class Backend(Protocol):
    """What a back end offers: a module of functions."""

    NAME: str

    def available(self) -> tuple[bool, str]:
        """Whether it can run in this process, and what it uses or why it cannot."""

    def supports(self, device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[bool, str]:
        """Whether it takes tensors there with these dtypes of the state and of the network's output, or why not."""

    def stage(self, spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
        """Run table row `k` (or `coeffs.rows`, one row per sample)."""

    def normal_(self, out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
        """Fill `out` (B, ...), contiguous float32 or float64, with the normals of one draw."""

    def quantile_(self, out: torch.Tensor, x0: torch.Tensor, q: float) -> None:
        """Set `out` (B,) to the q-quantile of each sample's |x0|, x0 (B, ...) contiguous, of out's dtype."""


def load(name: str) -> Backend:
    """The back end, imported when first asked for."""
    if name not in BACKENDS:
        raise ValueError(unknown("backend", name, BACKENDS))
    return cast(Backend, importlib.import_module(f"fastdiff.ops.{name}"))


def backends() -> dict[str, tuple[bool, str]]:
    """Each back end's name with (available, reason)."""
    return {name: load(name).available() for name in BACKENDS}


def select(name: str | None, device: torch.device, state: torch.dtype, network: torch.dtype) -> Backend:
    """The named back end, or the fastest that can run.

    Args:
        name: one of `BACKENDS`, or None.
        device: where the state lives.
        state, network: dtypes of the state and of the network's output.

    Raises:
        ValueError: unknown name.
        RuntimeError: the named back end cannot run there; it never falls back without a word.
    """
    if name is not None:
        module = load(name)
        ok, why = module.available()
        if ok:
            ok, why = module.supports(device, state, network)
        if not ok:
            raise RuntimeError(
                f"backend {name!r} cannot run here: {why}. Use backend=None for the fastest that can, or see "
                "`fastdiff doctor`"
            )
        return module
    candidates = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ())
    for candidate in candidates:
        module = load(candidate)
        if module.available()[0] and module.supports(device, state, network)[0]:
            return module
    return load("reference")
