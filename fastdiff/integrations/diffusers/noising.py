"""alpha and sigma at the times of samples: for noise at the start of a run, targets, and tables that users read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastdiff.integrations.diffusers.walk import on
from fastdiff.schedules.diffusers import alphas_cumprod, training

Config = Mapping[str, Any]
Pair = tuple[torch.Tensor, torch.Tensor]

TABLES = ("betas", "alphas", "alphas_cumprod")


def columns(pairs: torch.Tensor, like: torch.Tensor) -> Pair:
    """The two columns of (B or 1, 2), to be multiplied with `like`, (B, ...)."""
    shape = (-1,) + (1,) * (like.ndim - 1)
    return pairs[:, 0].reshape(shape), pairs[:, 1].reshape(shape)


def of_run(levels: Sequence[tuple[float, float, float]], at: Sequence[int], like: torch.Tensor) -> Pair:
    """At the evaluations `at` of a run, whose `levels` are (alpha, sigma, unit)."""
    pairs = torch.tensor([(a / u, s / u) for a, s, u in (levels[i] for i in at)], dtype=torch.float64)
    wide = torch.float32 if like.dtype != torch.float64 else like.dtype
    return columns(on(pairs.to(wide), like.device).to(like.dtype), like)


def of_training(name: str, config: Config, timesteps: Any, like: torch.Tensor) -> Pair:
    """At training times, looked up where the times are."""
    if "beta_schedule" not in config:
        raise ValueError(f"{name} has no training table: call set_timesteps first, and pass its times")
    a = torch.from_numpy(np.append(alphas_cumprod(config, floor=False), 1.0))
    # -1 is the clean time.
    levels = torch.stack([a.sqrt(), (1.0 - a).sqrt()], 1)
    index = torch.as_tensor(timesteps, device=like.device).long().reshape(-1)
    return columns(on(levels, like.device).to(like.dtype)[index], like)


def table(config: Config, name: str) -> torch.Tensor | None:
    """(N,) float32, the training table of that name, as diffusers' classes have it; None without one."""
    if "beta_schedule" not in config:
        return None
    made = training(config)
    betas = torch.from_numpy(np.array(made.betas))
    values = {"betas": betas, "alphas": 1.0 - betas}
    return values.get(name, torch.from_numpy(np.array(made.alphas_cumprod))).float()
