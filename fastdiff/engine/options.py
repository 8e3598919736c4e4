"""The arguments of `Engine.submit`, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from fastdiff.engine.request import Preview
from fastdiff.guidance import Guidance
from fastdiff.options import Clip
from fastdiff.plan import Plan
from fastdiff.run.corrections import CorrectX0, CorrectXt
from fastdiff.run.history import Noise
from fastdiff.solvers.method_names import MethodOptions


class SubmitOptions(MethodOptions, total=False):
    """What a request is made of, besides its method and steps."""

    plan: Plan | None
    spacing: str | Sequence[float] | None
    t_start: float | None
    t_end: float | None
    clip: Clip
    x: torch.Tensor | None
    seed: int
    first_sample: int
    guidance: float | Callable[[float], float] | Guidance | None
    cond: Mapping[str, Any] | None
    uncond: Mapping[str, Any] | None
    priority: int
    previews: bool
    on_preview: Callable[[Preview], object] | None
    noise: Noise | Literal["brownian"] | None
    correct_x0: CorrectX0 | None
    correct_xt: CorrectXt | None


SUBMIT_DEFAULTS: dict[str, Any] = {
    "x": None,
    "seed": 0,
    "first_sample": 0,
    "guidance": None,
    "cond": None,
    "uncond": None,
    "priority": 0,
    "previews": False,
    "on_preview": None,
    "noise": None,
    "correct_x0": None,
    "correct_xt": None,
}
"""Of those that are the request's and not the sampler's."""
