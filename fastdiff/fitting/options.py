"""The arguments of `fastdiff.tune` and `fastdiff.fit`, each declared once. `fastdiff.fit` tells what each means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import TypedDict

from fastdiff.guidance import Guidance
from fastdiff.options import Clip, Gradient
from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule

Conditions = Callable[[int, int], Mapping[str, Any]]
"""(first, count) -> {"model_kwargs": ..., "cond": ..., "uncond": ...} of the trajectories from `first` on."""
FitLoss = Literal["norm", "square", "l1"] | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Watch = Callable[[str, int, int, float | None], None]
"""(phase, evaluations done, evaluations expected, loss or None)."""


class TuneOptions(TypedDict, total=False):
    """What is sampled, with what truth, and where."""

    shape: Sequence[int] | None
    schedule: str | NoiseSchedule | None
    prediction: Literal["eps", "x0", "v", "score", "flow", "flow_to_data"] | None
    t_start: float | None
    t_end: float | None
    guidance: float | Callable[[float], float] | Guidance | None
    guidance_scale: float | None
    cond: Mapping[str, Any] | None
    uncond: Mapping[str, Any] | None
    classifier_grad: Gradient | None
    classifier_form: Literal["score"] | None
    model_kwargs: Mapping[str, Any] | None
    conditions: Conditions | None
    clip: Clip
    seed: int
    trajectories: int | None
    teacher: int | Plan | Literal["ode"]
    methods: Sequence[str] | None
    dtype: torch.dtype
    device: torch.device | str | None
    backend: Literal["cuda", "triton", "cpu", "reference"] | None
    offload: bool
    progress: bool
    callback: Watch | None


class FitOptions(TuneOptions, total=False):
    """What `fit` takes beside."""

    validation: int | None
    start: Plan | None
    budget: int | None
    loss: FitLoss
    polish: bool
    polish_rounds: int
    optimizer: Literal["lbfgs", "adam"]
    checkpoint: str | None


TUNE_DEFAULTS: dict[str, Any] = {
    "shape": None,
    "schedule": None,
    "prediction": None,
    "t_start": None,
    "t_end": None,
    "guidance": None,
    "guidance_scale": None,
    "cond": None,
    "uncond": None,
    "classifier_grad": None,
    "classifier_form": None,
    "model_kwargs": None,
    "conditions": None,
    "clip": None,
    "seed": 0,
    "trajectories": None,
    "teacher": 160,
    "methods": None,
    "dtype": torch.float32,
    "device": None,
    "backend": None,
    "offload": False,
    "progress": False,
    "callback": None,
}
FIT_DEFAULTS: dict[str, Any] = {
    **TUNE_DEFAULTS,
    "validation": None,
    "start": None,
    "budget": None,
    "loss": "norm",
    "polish": False,
    "polish_rounds": 12,
    "optimizer": "lbfgs",
    "checkpoint": None,
}


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number, at least {least}, such as {name}={max(least, 5)}")
    return int(value)
