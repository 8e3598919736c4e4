"""A run of a scheduler of diffusers' interface on a network without weights.

Imported by tests that have found diffusers.
"""

from __future__ import annotations

from typing import Any

import torch

from fastdiff.integrations.diffusers import Scheduler

X = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MATCH = "FlowMatchEulerDiscreteScheduler"
WAN = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def net(x: torch.Tensor, t: Any) -> torch.Tensor:
    return torch.tanh(x) * (0.5 + torch.as_tensor(t, dtype=x.dtype) / 1000)


def next_of(scheduler: Any, i: int) -> dict[str, Any]:
    """What pipelines with UnCLIP's scheduler say besides."""
    times = scheduler.timesteps.tolist()
    return {"prev_timestep": [*times, None][i + 1]} if scheduler.replaces == "UnCLIPScheduler" else {}


def run(scheduler: Any, n: int | None = 6, x: torch.Tensor = X, generator: Any = None, **times: Any) -> torch.Tensor:
    scheduler.set_timesteps(n, **times)
    x = x * float(scheduler.init_noise_sigma)
    for i, t in enumerate(scheduler.timesteps):
        out = net(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, generator=generator, return_dict=False, **next_of(scheduler, i))[0]
    return x


def ours(name: str, **config: Any) -> Any:
    return Scheduler.from_config({**config, "_class_name": name})
