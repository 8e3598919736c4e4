"""The choice among the back ends."""

from __future__ import annotations

import torch

from fastdiff.ops.door import tracing
from fastdiff.ops.library import Recorded
from fastdiff.ops.registry import Backend, load


def select(name: str | None, device: torch.device, state: torch.dtype, network: torch.dtype) -> Backend:
    """The named back end, or the fastest that can run; as operations of `torch.ops` where these are recorded.

    Args:
        name: one of `BACKENDS`, or None.
        device: where the state lives.
        state, network: dtypes of the state and of the network's output.

    Raises:
        ValueError: unknown name.
        RuntimeError: the named back end cannot run there; it never falls back in silence.
    """
    found = _select(name, device, state, network)
    return Recorded(found) if tracing() else found


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
    candidates = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ())
    for candidate in candidates:
        module = load(candidate)
        if module.available()[0] and module.supports(device, state, network)[0]:
            return module
    return load("reference")
