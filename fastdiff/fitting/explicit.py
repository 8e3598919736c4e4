"""Plans whose every coefficient is free: x' = a·x + c0·m + Σ cj·hj at every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastdiff.plan import H1, MAX_HISTORY, NREG, M, Plan, Stage, X
from fastdiff.schedules import NoiseSchedule

VALUES = MAX_HISTORY + 1
"""How many model values a stage reads: m and the history."""
SPACE_OF = {"eps": "noise", "x0": "data", "flow": "velocity", "flow_to_data": "velocity", "score": "score", "v": "data"}
"""The space of a fitted plan: where there is one, that in which the network's output is the model value as it is."""


def row(a: float, values: Sequence[float]) -> tuple[float, ...]:
    """13 coefficients from those of x and of the model values, newest first."""
    out = np.zeros(NREG)
    out[X] = a
    out[[M, *range(H1, H1 + MAX_HISTORY)][: len(values)]] = values
    return tuple(out.tolist())


def explicit_plan(
    schedule: NoiseSchedule,
    space: str,
    times: Sequence[float],
    rows: Sequence[Sequence[float]],
    *,
    opening: tuple[float, float] | None = None,
    model_times: Sequence[float] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of free coefficients.

    Args:
        times: of the evaluations, and then of the end.
        rows: of each evaluation, (a, c0, c1, ...): at most `VALUES` values.
        opening: (t, a) where the run starts at a noisier time than it evaluates first at: x there times a is the state
            at `times[0]`, without a network.
        model_times: given to the network; default: the schedule's.
        origin: as of `Plan`.
    """
    stages = []
    if opening is not None:
        p = schedule.at(opening[0])
        own = row(opening[1], ())
        stages.append(Stage(p.t, p.model_time, p.alpha, p.sigma, own, own, float(times[0]), evaluate=False))
    for k, values in enumerate(rows):
        p = schedule.at(float(times[k]))
        own = row(values[0], values[1:])
        given = p.model_time if model_times is None else float(model_times[k])
        last = k + 1 == len(rows)
        stages.append(Stage(p.t, given, p.alpha, p.sigma, own, own, float(times[k + 1]), keep=not last, step=k))
    start = times[0] if opening is None else opening[0]
    return Plan(
        method="fitted",
        space=space,
        order=1,
        times=(float(start), *map(float, times[1:])),
        stages=tuple(stages),
        prior_std=schedule.prior_std(float(start)),
        schedule=schedule.told,
        origin=dict(origin or {}),
    )
