"""From a list of sigmas to a plan: k-diffusion's lists are float32, and may end anywhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from fastdiff import solvers
from fastdiff.names import short
from fastdiff.plan import MAX_DRAWS, ZA, Plan, Stage
from fastdiff.run.planned import PlanEngine
from fastdiff.schedules import NoiseSchedule, edm, flow
from fastdiff.schedules.base import ROUNDING
from fastdiff.solvers.base import DrawsNoise


def levels(sigmas: torch.Tensor) -> list[float]:
    """The list as numbers.

    Raises:
        TypeError, ValueError: no tensor of one dimension, or values that are no levels.
    """
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1:
        got = tuple(sigmas.shape) if isinstance(sigmas, torch.Tensor) else short(sigmas)
        raise TypeError(
            f"sigmas got {got}; expected a tensor of one dimension, such as get_sigmas_karras(20, 0.03, 14.6)"
        )
    values: list[float] = sigmas.double().tolist()
    if not all(math.isfinite(v) and v >= 0.0 for v in values):
        raise ValueError(f"sigmas got {values}; expected finite numbers from 0 up")
    return values


def apart(values: list[float]) -> list[float]:
    """The list with equal levels above 0 two roundings of float32 apart: churn makes a step of each of them, and a plan
    has no step of no length."""
    made = values[:1]
    for before, value in pairwise(values):
        equal = before == value > 0.0
        made.append(made[-1] * (1.0 - 2.0 * ROUNDING) if equal else value)
    return made


@dataclass(frozen=True, eq=False)
class Listed:
    """A plan for a list of sigmas.

    Attributes:
        engine: what runs it.
        steps: for each step of the plan its index in the list: steps of no length are left out.
        first: for each network evaluation the step that begins with it, or None within a step.
        spans: for each draw the sigmas between which it acts, and the step that begins with it where it is churn.
    """

    engine: PlanEngine
    steps: tuple[int, ...]
    first: tuple[int | None, ...]
    spans: Mapping[int, tuple[float, float, int]]

    @property
    def plan(self) -> Plan:
        """The table."""
        return self.engine.plan


def schedule_of(values: list[float], kind: str) -> NoiseSchedule:
    """alpha = 1 and sigma as time, for lists of sigma; or flow matching, alpha = 1 − sigma."""
    if kind == "flow":
        return flow()
    positive = [v for v in values if v > 0.0]
    # Churn raises a level by the factor sqrt(2) at most, and ancestral steps go below the next one.
    return edm(0.5 * min(positive), 2.0 * max(positive))


def joined(stage: Stage) -> Stage:
    """The stage with the sum of its draws as one, of the last number.

    Parts of a step's noise are independent, so that the sum has the root of the sum of squares.
    """

    def row(values: tuple[float, ...]) -> tuple[float, ...]:
        return (*values[:ZA], math.hypot(*values[ZA : ZA + MAX_DRAWS]), *[0.0] * (MAX_DRAWS - 1))

    return replace(
        stage,
        next_u=row(stage.next_u),
        next_x=row(stage.next_x),
        draws=(max(stage.draws), -1, -1),
        # Spans of a path may not overlap, as those of a part and of the whole do.
        spans=(),
    )


def prepared(made: Plan, whole: bool, dtype: torch.dtype, kept: Sequence[int]) -> Listed:
    """A plan, with what a run asks of it; `kept`: the index in the list of each step."""
    first: list[int | None] = []
    spans: dict[int, tuple[float, float, int]] = {}
    for stage in made.stages:
        if stage.evaluate:
            first.append(stage.step if stage.step not in first else None)
        used = [d for d in range(MAX_DRAWS) if stage.draws[d] >= 0]
        for d in used:
            begin, end = stage.span(d) or (stage.t, stage.t_next)
            if whole:
                begin = max(stage.span(other)[0] for other in used)
            # Churn acts after a step, before the next one's evaluation.
            spans.setdefault(stage.draws[d], (begin, end, stage.step + stage.evaluate))
    if whole:
        made = replace(made, stages=tuple(joined(stage) for stage in made.stages))
    return Listed(PlanEngine(made, dtype), tuple(kept), tuple(first), spans)


@functools.lru_cache(maxsize=64)
def listed(
    method: str,
    values: tuple[float, ...],
    kind: str,
    whole: bool,
    dtype: torch.dtype,
    options: tuple[tuple[str, Any], ...],
) -> Listed:
    """The plan of a method over these levels.

    Args:
        kind: "edm" or "flow".
        whole: whether a draw of a step is asked for over the whole step, as k-diffusion does, or over its parts.

    Raises:
        ValueError: levels that neither fall nor rise, or that a method cannot begin or end with.
    """
    # A step of no length changes nothing, in the ODE and in the SDE.
    kept = [i for i in range(len(values) - 1) if values[i] != values[i + 1]]
    times = [values[i] for i in kept] + [values[-1]]
    up = times[0] < times[-1]
    if any((b > a) != up for a, b in pairwise(times)):
        raise ValueError(
            f"sigmas neither fall nor rise: {short(list(values))}; expected one direction, such as "
            "sigmas.sort(descending=True).values"
        )
    if up and times[0] == 0.0:
        raise ValueError(
            "sigmas rise from 0, where the ODE's slope is not defined: begin with the lowest level that the network "
            "knows, such as sigmas[0] = 0.03"
        )
    schedule = schedule_of(times, kind)
    given = dict(options)
    if given.get("s_churn"):
        # A step's churn is its part of the whole list's.
        given["s_churn"] *= len(kept) / (len(values) - 1)
    try:
        made = solvers.plan(method, schedule=schedule, spacing=times[::-1] if up else times, invert=up, **given)
    except DrawsNoise:
        raise ValueError(
            f"sigmas rise, and {method} with these options draws noise, which has no way up: give eta=0 or s_churn=0, "
            "or take sample_euler"
        ) from None
    return prepared(made, whole, dtype, kept)


@functools.lru_cache(maxsize=16)
def ranged(method: str, n: int, first: float, last: float, dtype: torch.dtype) -> Listed:
    """The plan of a method with n evaluations at equal steps of log sigma, down or up."""
    low, high = sorted((first, last))
    made = solvers.plan(method, n, edm(low, high), "logsnr", t_end=low, invert=first < last)
    return prepared(made, False, dtype, range(made.steps))
