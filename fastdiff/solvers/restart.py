"""Restart sampling (Xu et al. 2023, arXiv 2306.14878, Algorithms 1 and 2): Heun's method, which goes back at times.

Where the run has come down to a level t_min, noise lifts it to t_max, and Heun's steps bring it down again, K times.
Between the restarts it is deterministic, so that errors are as small as an ODE method's, and the noise contracts those
that have gathered. In sigma/alpha, so it serves every schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fastdiff.names import short
from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.schedules.grids import MAX_STEPS
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.reverse import S_NOISE, at_lambda, check_start

RHO = 7.0
"""Of the steps inside an interval, as published: equal steps of sigma^(1/7)."""


@dataclass(frozen=True)
class Intervals(Option):
    """(t_min, t_max, steps, repeats) of each interval, both levels in sigma/alpha."""

    def check(self, method: str, name: str, value: Any) -> tuple[tuple[float, float, int, int], ...]:
        call = f"method={method!r}, {name}={self.default!r}"
        try:
            made = tuple((float(low), float(high), int(n), int(k)) for low, high, n, k in value)
            if any(n != given[2] or k != given[3] for (_, _, n, k), given in zip(made, value, strict=True)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"{name}={short(value)}: method {method!r} expects (t_min, t_max, steps, repeats) for each interval "
                f"({call})"
            ) from None
        for low, high, n, k in made:
            if not (0.0 < low < high < math.inf and 0 < n <= MAX_STEPS and 0 < k <= MAX_STEPS):
                raise ValueError(
                    f"{name}={short(value)}: method {method!r} expects 0 < t_min < t_max (in sigma/alpha), steps >= 1 "
                    f"and repeats >= 1 ({call})"
                )
        return made


def level(p: Point) -> float:
    return p.sigma / p.alpha


def back(schedule: NoiseSchedule, p: Point, high: float, steps: int) -> list[Point]:
    """The points from the level `high` down to p, in equal steps of sigma^(1/7)."""
    nodes = np.linspace(high ** (1.0 / RHO), level(p) ** (1.0 / RHO), steps + 1) ** RHO
    try:
        return [*(at_lambda(schedule, -math.log(r)) for r in nodes[:-1]), p]
    except ValueError:
        raise ValueError(
            f"a restart to sigma/alpha = {high:g} is above the range of {schedule!r}: give a smaller t_max in restarts"
        ) from None


def lifted(row: Row, p: Point, to: Point | None, s_noise: float) -> Row:
    """x at p, or with the noise that takes it up to `to`."""
    if to is None:
        return row
    std = to.alpha * math.sqrt(level(to) ** 2 - level(p) ** 2)
    return to.alpha / p.alpha * row + s_noise * std * ROW["za"]


def heun(rows: Recorder, s: Point, t: Point, after: Point | None, s_noise: float, step: int) -> None:
    """One step; `after`: where noise lifts the result to."""
    base = ROW["x"] / s.alpha
    if t.sigma == 0:
        rows.add(s, t, t.alpha * (base - level(s) * ROW["m"]), step=step)
        return
    width = level(t) - level(s)
    rows.add(s, t, t.alpha * (base + width * ROW["m"]), ROW["x"], step=step, keep=True)
    row = t.alpha * (base + width * 0.5 * (ROW["m"] + ROW["h1"]))
    # Fresh noise every time: it is no part of a path from noise to data.
    rows.add(t, after or t, lifted(row, t, after, s_noise), step=step)


def places(points: Sequence[Point], intervals: Sequence[tuple[float, float, int, int]]) -> dict[int, list[Any]]:
    """The intervals at the point where each begins: that of the run nearest to t_min, if the run comes below t_max."""
    found: dict[int, list[Any]] = {}
    for interval in intervals:
        low, high = interval[:2]
        below = [i for i, p in enumerate(points) if i > 0 and 0.0 < level(p) < high]
        if below:
            nearest = min(below, key=lambda i: abs(level(points[i]) - low))
            found.setdefault(nearest, []).append(interval)
    return found


def build(request: Request, *, restarts: Any, s_noise: float) -> Plan:
    check_downward(request, "restart")
    points = request.points()
    for s in points[:-1]:
        check_start("restart", s, "noise")
    rows = Recorder()
    at = places(points, restarts)
    for i, (s, t) in enumerate(pairwise(points)):
        runs = [back(request.schedule, t, high, n) for _, high, n, k in at.get(i + 1, []) for _ in range(k)]
        following = [*(run[0] for run in runs), None]
        heun(rows, s, t, following[0], s_noise, i)
        for run, after in zip(runs, following[1:], strict=True):
            for a, b in pairwise(run):
                heun(rows, a, b, after if b is t else None, s_noise, i)
    return rows.plan("restart", "noise", 2, request, points, {"restarts": restarts, "s_noise": s_noise})


METHODS = (
    Method(
        name="restart",
        summary="Heun's method that goes back up to a noisier level at some points",
        paper="Xu et al. 2023, arXiv 2306.14878",
        order=2,
        build=build,
        space="noise",
        spacing="karras",
        nfe_per_step=2,
        stochastic=True,
        options={
            "restarts": Intervals(
                ((0.1, 2.0, 3, 1),),
                "(t_min, t_max, steps, repeats) of each interval, levels in sigma/alpha; one begins at the point of "
                "the grid nearest to t_min, and is left out where the grid has none below t_max",
            ),
            "s_noise": S_NOISE,
        },
        aliases=("restart_sampler",),
        good_for=("noise",),
    ),
)
