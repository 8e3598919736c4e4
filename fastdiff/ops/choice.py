"""The choice among the back ends."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from fastdiff.names import untraced, warn
from fastdiff.ops.door import tracing
from fastdiff.ops.library import Recorded
from fastdiff.ops.registry import BACKENDS, Backend, load
from fastdiff.ops.speed import Traits, chip_of, faster

SETTING = "FASTDIFF_SIMD"
"""The environment variable that forces an instruction set: one that cannot run must not mean the slow path."""
_WARNED: set[str] = set()
"""Kinds of device for which the lack of a compiled back end was told."""


def select(
    name: str | None,
    device: torch.device,
    state: torch.dtype,
    network: torch.dtype,
    traits: Callable[[], Traits] | None = None,
) -> Backend:
    """The named back end, or the fastest that can run; as operations of `torch.ops` where these are recorded.

    Args:
        name: one of `BACKENDS`, or None.
        device: where the state lives.
        state, network: dtypes of the state and of the network's output.
        traits: gives what the run's stages are like, by which the faster of `cuda` and `triton` is taken.

    Raises:
        ValueError: unknown name.
        RuntimeError: the named back end cannot run there; it never falls back without a word.
    """
    if torch.compiler.is_dynamo_compiling():
        _imported(name, device)
    found = _select(name, device, state, network, traits)
    return Recorded(found) if tracing() else found


@untraced
def _imported(name: str | None, device: torch.device) -> bool:
    """A compiler cannot import the modules that a choice looks at."""
    for candidate in (*_order(device, None), "reference", *([name] if name in BACKENDS else [])):
        load(candidate).available()
    return True


def _order(device: torch.device, traits: Callable[[], Traits] | None) -> tuple[str, ...]:
    """The compiled back ends for a device, the fastest first."""
    if device.type != "cuda":
        return ("cpu",) if device.type == "cpu" else ()
    if traits is None or torch.version.hip is not None:
        return ("cuda", "triton")
    name, capability = _chip(device)
    best = faster(traits(), chip_of(name, capability)).name
    return (best, *(other for other in ("cuda", "triton") if other != best))


@functools.cache
def _chip(device: torch.device) -> tuple[str, tuple[int, int]]:
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def _select(
    name: str | None,
    device: torch.device,
    state: torch.dtype,
    network: torch.dtype,
    traits: Callable[[], Traits] | None,
) -> Backend:
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
    for candidate in _order(device, traits):
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
