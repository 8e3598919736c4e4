"""The choice among the back ends."""

from __future__ import annotations

import functools

import torch

from fastdiff.names import untraced, warn
from fastdiff.ops.door import tracing
from fastdiff.ops.either import either
from fastdiff.ops.library import Recorded
from fastdiff.ops.registry import BACKENDS, Backend, load
from fastdiff.ops.speed import LARGE, chip_of, led

SETTING = "FASTDIFF_SIMD"
"""The environment variable that forces an instruction set: one that cannot run must not mean the slow path."""
_WARNED: set[str] = set()
"""Kinds of device for which the lack of a compiled back end was told."""


def select(
    name: str | None, device: torch.device, state: torch.dtype, network: torch.dtype, elements: int = 0
) -> Backend:
    """The named back end, or the fastest that can run; as operations of `torch.ops` where these are recorded.

    Args:
        name: one of `BACKENDS`, or None.
        device: where the state lives.
        state, network: dtypes of the state and of the network's output.
        elements: of the state. Where it is large, each stage takes the faster of `cuda` and `triton`.

    Raises:
        ValueError: unknown name.
        RuntimeError: the named back end cannot run there; it never falls back without a word.
    """
    if torch.compiler.is_dynamo_compiling():
        _imported(name, device)
    found = _select(name, device, state, network)
    if tracing():
        return Recorded(found)
    if name is None and found.NAME == "cuda" and state == torch.float32 and elements >= LARGE:
        chip = chip_of(*_chip(device))
        if led(chip) and _runs("triton", device, state, network):
            return either(chip)
    return found


@untraced
def _imported(name: str | None, device: torch.device) -> bool:
    """A compiler cannot import the modules that a choice looks at."""
    for candidate in (*_order(device), "reference", *([name] if name in BACKENDS else [])):
        load(candidate).available()
    return True


def _runs(name: str, device: torch.device, state: torch.dtype, network: torch.dtype) -> bool:
    module = load(name)
    return module.available()[0] and module.supports(device, state, network)[0]


def _order(device: torch.device) -> tuple[str, ...]:
    """The compiled back ends for a device, the fastest first."""
    return {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}.get(device.type, ())


@functools.cache
def _chip(device: torch.device) -> tuple[str, tuple[int, int]]:
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def _select(name: str | None, device: torch.device, state: torch.dtype, network: torch.dtype) -> Backend:
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
    reasons = []
    for candidate in _order(device):
        module = load(candidate)
        ok, why = module.available()
        if ok and module.supports(device, state, network)[0]:
            return module
        if SETTING in why:
            raise RuntimeError(f"the back end {candidate!r} cannot start: {why}")
        if not ok:
            reasons.append(f"{candidate}: {why}")
    if reasons and device.type not in _WARNED:
        _WARNED.add(device.type)
        warn(
            f"no compiled back end runs on {device.type} here, so plain PyTorch does the solver's work, several times "
            f"slower, with the same result ({'; '.join(reasons)}); backend='reference' asks for that, without a warning"
        )
    return load("reference")
