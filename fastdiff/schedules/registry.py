"""Schedules by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastdiff.names import unknown
from fastdiff.schedules.base import NoiseSchedule
from fastdiff.schedules.continuous import edm, flow, flow_to_data, subvp, ve, vp_cosine, vp_linear
from fastdiff.schedules.diffusers import described, is_scheduler
from fastdiff.schedules.discrete import cosine, ddpm, scaled_linear
from fastdiff.schedules.smld import smld

SCHEDULES: dict[str, Callable[[], NoiseSchedule]] = {
    "ddpm": ddpm,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "vp_linear": vp_linear,
    "vp_cosine": vp_cosine,
    "subvp": subvp,
    "ve": ve,
    "smld": smld,
    "edm": edm,
    "flow": flow,
    "flow_to_data": flow_to_data,
}
_MADE: dict[Callable[[], NoiseSchedule], NoiseSchedule] = {}
"""Those that were asked for by name, one object each."""
_ALIASES = {"sd": "scaled_linear", "vp": "vp_linear"}


def resolve(schedule: Any) -> NoiseSchedule:
    """A schedule from its name ("sd" is short for "scaled_linear", "vp" for "vp_linear"), from a scheduler of diffusers
    (`pipe.scheduler`), or the schedule itself."""
    if isinstance(schedule, NoiseSchedule):
        return schedule
    if isinstance(schedule, str):
        factory = SCHEDULES.get(_ALIASES.get(schedule, schedule))
        if factory is not None:
            if factory not in _MADE:
                _MADE[factory] = factory()
            return _MADE[factory]
        raise ValueError(unknown("schedule", schedule, [*SCHEDULES, *_ALIASES]))
    if is_scheduler(schedule):
        return described(schedule).schedule
    foreign = hasattr(schedule, "alphas_cumprod")
    call = "alphas_cumprod=scheduler.alphas_cumprod" if foreign else "betas=betas"
    raise ValueError(
        f"schedule got {type(schedule).__name__}; expected a name such as 'ddpm', or a NoiseSchedule such as "
        f"fastdiff.schedules.discrete({call})"
    )


def told(schedule: Any, prediction: str | None) -> tuple[Any, str | None]:
    """A schedule and a prediction as they were given; of a scheduler of diffusers, its own schedule, and its prediction
    where none was given."""
    if not is_scheduler(schedule):
        return schedule, prediction
    found = described(schedule)
    return found.schedule, prediction or found.prediction
