"""Back ends of the fused stage, and the choice among them."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from fastdiff.names import unknown
from fastdiff.ops.buffers import Buffers, Coeffs

__all__ = ["BACKENDS", "Buffers", "Coeffs", "backends", "load", "select"]

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""In the order of preference."""


def load(name: str) -> ModuleType:
    """The back end's module: `available`, `supports`, `stage`, `normal_` and `quantile_`. Imported when first asked
    for."""
    if name not in BACKENDS:
        raise ValueError(unknown("backend", name, BACKENDS))
    return importlib.import_module(f"fastdiff.ops.{name}")


def backends() -> dict[str, tuple[bool, str]]:
    """Each back end's name with (available, reason)."""
    return {name: load(name).available() for name in BACKENDS}


def select(name: str | None, device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[str, ModuleType]:
    """The named back end, or the fastest that can run.

    Args:
        name: one of `BACKENDS`, or None.
        device: where the state lives.
        state, network: dtypes of the state and of the network's output.

    Raises:
        ValueError: unknown name.
        RuntimeError: the named back end cannot run there; it never falls back in silence.
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
        return name, module
    candidates = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ())
    for candidate in candidates:
        module = load(candidate)
        if module.available()[0] and module.supports(device, state, network)[0]:
            return candidate, module
    return "reference", load("reference")
