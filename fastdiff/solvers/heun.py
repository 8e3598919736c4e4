"""EDM's samplers in sigma/alpha, deterministic or with churn: Karras et al. 2022, arXiv 2206.00364, Algorithms 1, 2.

Euler, Heun, the midpoint in log sigma (k-diffusion's dpm_2: DPM-Solver-2, Lu et al. 2022, arXiv 2206.00927), Heun++.
They integrate d(x/alpha)/d(sigma/alpha) = eps, so they serve every schedule, and are EDM's own where alpha = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import ROW, Method, Recorder, Request, Row
from fastdiff.solvers.level import CHURN, Churn, at_level, level, levels, lift, moved, recorded, straight

PAPER = "Karras et al. 2022, arXiv 2206.00364"


class Step:
    """One step of a run: where it really begins, the grid, and where its last row arrives."""

    def __init__(self, schedule: NoiseSchedule, start: Point, points: Sequence[Point], i: int, method: str) -> None:
        self.schedule, self.start, self.points, self.i, self.method = schedule, start, points, i, method
        self.end = points[i + 1]
        self.following, self.std = self.end, 0.0

    @property
    def width(self) -> float:
        return level(self.end, self.method) - level(self.start, self.method)

    def arrive(self, rows: Recorder, at: Point, change: Row) -> None:
        """The step's last evaluation, at `at`: x/alpha grows by `change` since the start, and then churn lifts it."""
        end = moved(ROW["x"], self.start, self.end, change)
        rows.add(at, self.following, lift(end, self.end, self.following, self.std), step=self.i)


def euler(rows: Recorder, step: Step) -> None:
    step.arrive(rows, step.start, step.width * ROW["m"])


def heun(rows: Recorder, step: Step) -> None:
    if step.end.sigma == 0:
        return euler(rows, step)
    predicted = straight(ROW["x"], step.start, step.end, ROW["m"])
    rows.add(step.start, step.end, predicted, ROW["x"], step=step.i, keep=True)
    step.arrive(rows, step.end, step.width * 0.5 * (ROW["m"] + ROW["h1"]))


def midpoint(rows: Recorder, step: Step) -> None:
    if step.end.sigma == 0:
        return euler(rows, step)
    middle = math.sqrt(level(step.start, step.method) * level(step.end, step.method))
    mid = at_level(step.schedule, middle)
    rows.add(step.start, mid, straight(ROW["x"], step.start, mid, ROW["m"]), ROW["x"], step=step.i)
    step.arrive(rows, mid, step.width * ROW["m"])


def heunpp(rows: Recorder, step: Step) -> None:
    """Slopes at this time and at the next two, weighted with their levels over the largest."""
    left = len(step.points) - 1 - step.i
    if left == 1:
        return euler(rows, step)
    ratio = levels(step.points, step.method)
    top = min(left, 3) * max(ratio[0], ratio[-1])
    predicted = straight(ROW["x"], step.start, step.end, ROW["m"])
    rows.add(step.start, step.end, predicted, ROW["x"], step=step.i, keep=True)
    second = ratio[step.i + 1] / top
    if left == 2:
        return step.arrive(rows, step.end, step.width * ((1.0 - second) * ROW["h1"] + second * ROW["m"]))
    beyond = step.points[step.i + 2]
    rows.add(step.end, beyond, straight(ROW["u"], step.end, beyond, ROW["m"]), ROW["x"], step=step.i, keep=True)
    third = ratio[step.i + 2] / top
    slope = (1.0 - second - third) * ROW["h2"] + second * ROW["h1"] + third * ROW["m"]
    step.arrive(rows, beyond, step.width * slope)


def family(
    name: str,
    summary: str,
    order: int,
    nfe: int,
    advance: Callable[[Recorder, Step], None],
    aliases: Sequence[str],
    good_for: Sequence[str] = (),
    paper: str = PAPER,
) -> Method:
    def build(request: Request, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> Plan:
        points = request.points()
        steps = len(points) - 1
        rows = Recorder()
        gamma = min(s_churn / steps, math.sqrt(2.0) - 1.0)
        churn = Churn(name, request.schedule, gamma, s_tmin, s_tmax, s_noise)
        start, std = churn.entry(points[0])
        if start != points[0]:
            rows.add(points[0], start, lift(ROW["x"], points[0], start, std), step=0, evaluate=False)
        for i in range(steps):
            step = Step(request.schedule, start, points, i, name)
            if i + 1 < steps:
                step.following, step.std = churn.entry(step.end)
            advance(rows, step)
            start = step.following
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return rows.plan(name, "noise", order, request, points, recorded(options))

    return Method(
        name=name,
        summary=summary,
        paper=paper,
        order=order,
        build=build,
        space="noise",
        spacing="karras",
        nfe_per_step=nfe,
        options=dict(CHURN),
        aliases=aliases,
        good_for=good_for,
    )


METHODS = (
    family(
        "heun",
        "EDM's Heun sampler, deterministic or with churn; two evaluations a step, one in a last step to sigma = 0",
        2,
        2,
        heun,
        ("edm_heun", "heundiscrete"),
        ("noise",),
    ),
    family(
        "edm_euler",
        "Euler's method in sigma/alpha, deterministic or with churn",
        1,
        1,
        euler,
        ("edmeuler", "euler_churn"),
        ("noise",),
    ),
    family(
        "dpm_2",
        "DPM2 of k-diffusion: the midpoint in log sigma, with churn; two evaluations a step, one to sigma = 0",
        2,
        2,
        midpoint,
        ("kdpm2discrete", "kdpm2"),
        paper="Lu et al. 2022, arXiv 2206.00927; " + PAPER,
    ),
    family(
        "heunpp2",
        "Heun++: slopes at three times, weighted with their noise levels; three evaluations a step, then two and one",
        1,
        3,
        heunpp,
        ("heun++", "heun++2"),
        paper="sd-webui-samplers-scheduler (Carzit 2023); churn: " + PAPER,
    ),
)
