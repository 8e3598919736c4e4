"""The times of a run, and what the host knows of the arguments of `step` without waiting for a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastdiff.integrations.diffusers.families import Family
from fastdiff.integrations.diffusers.spacing import Grid
from fastdiff.integrations.diffusers.walk import on
from fastdiff.names import short
from fastdiff.plan import Plan


class Times:
    """What one `set_timesteps` made. Runs share it; nothing in it changes."""

    def __init__(self, grid: Grid, plan: Plan, family: Family, device: Any) -> None:
        self.grid, self.plan = grid, plan
        stages = [s for s in plan.stages if s.evaluate]
        begins = [i == 0 or s.step != stages[i - 1].step for i, s in enumerate(stages)]
        clock = family.inner == "clock"
        self.host = (
            list(grid.network)
            if len(stages) == len(grid.network)
            else [
                float(grid.clock(s.t)) if clock and not first else network_time(grid, s.t)
                for s, first in zip(stages, begins, strict=True)
            ]
        )
        dtype = torch.int64 if family.integer else torch.float32
        host = torch.tensor(self.host, dtype=torch.float64).to(dtype)
        self.timesteps = on(host, torch.device("cpu" if device is None else device))
        self.host = host.tolist()
        self.sigmas = torch.tensor(grid.sigmas, dtype=torch.float32)
        # Where each evaluation's time lies, to add noise there: alpha for data of the pipeline's own size.
        self.levels = [(s.alpha / grid.data_std, s.sigma, grid.unit(s.t)) for s in stages]


def network_time(grid: Grid, t: float) -> float:
    """What the network is given at a public time: the grid's where a step begins there (to the rounding of a level that
    was made anew), or else by the schedule."""
    near = next((i for i, own in enumerate(grid.times[:-1]) if abs(own - t) <= 1e-9 * abs(t)), None)
    return float(grid.clock(t)) if near is None else grid.network[near]


def place(timestep: Any, times: Times) -> int | None:
    """The index of a time, where the host can tell it without waiting: parts of `timesteps` by where they lie."""
    if isinstance(timestep, torch.Tensor):
        own = times.timesteps
        if timestep.untyped_storage().data_ptr() == own.untyped_storage().data_ptr():
            return int(timestep.storage_offset())
        if timestep.device.type != "cpu":
            return None
        if timestep.numel() == 0:
            raise ValueError("timestep is empty: pass one of scheduler.timesteps")
        value = float(timestep.reshape(-1)[0])
    else:
        value = float(timestep)
    fits = [i for i, t in enumerate(times.host) if t == value]
    return fits[0] if len(fits) == 1 else None


def listed(name: str, values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        found = np.asarray(values.tolist() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(())
    if found.ndim != 1 or found.size == 0 or not np.isfinite(found).all():
        raise ValueError(f"{name}={short(values)}: expected a list of finite numbers")
    return tuple(found.tolist())


def check_tensors(out: Any, sample: Any) -> None:
    for name, value in (("model_output", out), ("sample", sample)):
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point or value.ndim < 1:
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point tensor (B, ...), got {got}")
    if out.device != sample.device:
        raise ValueError(f"model_output is on {out.device}, and sample on {sample.device}: move one of them")
