"""RES: exponential integrators of the data prediction with the full order conditions, multistep and singlestep.

Zhang et al. 2023, "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling" (arXiv
2308.02157); the singlestep tableaux are those of Hochbruck and Ostermann 2005, "Explicit exponential Runge-Kutta
methods for semilinear parabolic problems", eqs. 5.3 and 5.8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from fastdiff.plan import Plan
from fastdiff.plan.phi import phi
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import (
    HISTORY,
    ROW,
    Exponential,
    Method,
    Option,
    Recorder,
    Request,
    Row,
    multistep_rows,
    orders_of,
)
from fastdiff.solvers.unipc import update

PAPER = "Zhang et al. 2023, arXiv 2308.02157"


def build_multistep(request: Request, *, order: int) -> Plan:
    points = request.points()
    values = (ROW["m"], *HISTORY)

    def made(at: np.ndarray, nodes: Sequence[Point], t: Point) -> Row:
        # The exponential Adams-Bashforth weights: those of UniP with every difference's exact.
        return update("data", "vary_coeff", ROW["x"], nodes, values[: len(nodes)], t, None)

    rows = Recorder()
    for i, row in enumerate(multistep_rows(points, orders_of(order, len(points) - 1, False), made)):
        rows.add(points[i], points[i + 1], row, step=i, keep=True)
    return rows.plan("res_multistep", "data", order, request, points, {"order": order})


def between(schedule: NoiseSchedule, s: Point, t: Point, share: float) -> Point:
    """The point at this share of the step in lambda; the step's end itself for 1."""
    return t if share == 1.0 else schedule.at(float(schedule.inverse_lambda(s.lam + share * (t.lam - s.lam))))


def stage(s: Point, p: Point, terms: Sequence[tuple[float, Row]]) -> Row:
    """x taken from s to p, with weights of the model values in units of the step's lambda."""
    row: Row = p.sigma / s.sigma * ROW["x"]
    for weight, value in terms:
        row = row + p.alpha * weight * value
    return row


def two(rows: Recorder, schedule: NoiseSchedule, s: Point, t: Point, i: int, c2: float) -> None:
    """Eq. 5.3: b2 = phi_2/c2, b1 = phi_1 − b2."""
    h = t.lam - s.lam
    p = between(schedule, s, t, c2)
    rows.add(s, p, stage(s, p, [(c2 * h * float(phi(1, -c2 * h)), ROW["m"])]), ROW["x"], step=i, keep=True)
    b2 = h * float(phi(2, -h)) / c2
    rows.add(p, t, stage(s, t, [(h * float(phi(1, -h)) - b2, ROW["h1"]), (b2, ROW["m"])]), step=i)


def three(rows: Recorder, schedule: NoiseSchedule, s: Point, t: Point, i: int, c2: float, c3: float) -> None:
    """Eq. 5.8, with gamma from 2·(gamma·c2 + c3) = 3·(gamma·c2² + c3²)."""
    h = t.lam - s.lam
    gamma = (3.0 * c3**2 - 2.0 * c3) / (c2 * (2.0 - 3.0 * c2))
    p, q = between(schedule, s, t, c2), between(schedule, s, t, c3)
    rows.add(s, p, stage(s, p, [(c2 * h * float(phi(1, -c2 * h)), ROW["m"])]), ROW["x"], step=i, keep=True)
    a32 = h * (gamma * c2 * float(phi(2, -c2 * h)) + c3**2 / c2 * float(phi(2, -c3 * h)))
    a31 = c3 * h * float(phi(1, -c3 * h)) - a32
    rows.add(p, q, stage(s, q, [(a31, ROW["h1"]), (a32, ROW["m"])]), ROW["x"], step=i, keep=True)
    b3 = h * float(phi(2, -h)) / (gamma * c2 + c3)
    b2 = gamma * b3
    b1 = h * float(phi(1, -h)) - b2 - b3
    rows.add(q, t, stage(s, t, [(b1, ROW["h2"]), (b2, ROW["h1"]), (b3, ROW["m"])]), step=i)


def singlestep(name: str, order: int, request: Request, options: dict[str, float], step: Callable[..., None]) -> Plan:
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        whole = Exponential("data", s, t)
        if whole.finite:
            step(rows, request.schedule, s, t, i, *options.values())
        else:
            rows.add(s, t, whole.first(ROW["x"], ROW["m"]), step=i)
    return rows.plan(name, "data", order, request, points, options)


def build_two(request: Request, *, c2: float) -> Plan:
    return singlestep("res_2s", 2, request, {"c2": c2}, two)


def build_exp_heun(request: Request) -> Plan:
    return singlestep("exp_heun", 2, request, {}, partial(two, c2=1.0))


def build_three(request: Request, *, c2: float, c3: float) -> Plan:
    if abs(c2 - 2.0 / 3.0) < 1e-6:
        raise ValueError(f"c2={c2:g}: method 'res_3s' has no solution at c2 = 2/3 (method='res_3s', c2=0.5)")
    gamma = (3.0 * c3**2 - 2.0 * c3) / (c2 * (2.0 - 3.0 * c2))
    if abs(gamma * c2 + c3) < 1e-6:
        raise ValueError(
            f"c2={c2:g}, c3={c3:g}: method 'res_3s' has no solution for them (method='res_3s', c2=0.5, c3=1.0)"
        )
    return singlestep("res_3s", 3, request, {"c2": c2, "c3": c3}, three)


C2 = Option(0.5, "where the second evaluation lies, as a share of the step in lambda", minimum=0.01, maximum=1.0)

METHODS = (
    Method(
        name="res_multistep",
        summary="RES: exponential Adams-Bashforth of orders 2 and 3 (data prediction)",
        paper=PAPER,
        order=2,
        build=build_multistep,
        space="data",
        spacing="time_quadratic",
        options={"order": Option(2, "order; the first steps have fewer values", choices=(2, 3))},
        aliases=("res_2m",),
        good_for=("few", "flow", "video"),
    ),
    Method(
        name="res_2s",
        summary="RES: exponential Runge-Kutta of two evaluations a step, one in a step to sigma = 0",
        paper=PAPER,
        order=2,
        build=build_two,
        space="data",
        spacing="logsnr",
        nfe_per_step=2,
        options={"c2": C2},
        good_for=("flow", "video"),
    ),
    Method(
        name="res_3s",
        summary="RES: exponential Runge-Kutta of three evaluations a step, one in a step to sigma = 0",
        paper=PAPER,
        order=3,
        build=build_three,
        space="data",
        spacing="logsnr",
        nfe_per_step=3,
        options={
            "c2": C2,
            "c3": Option(1.0, "where the third evaluation lies, as a share of the step", minimum=0.01, maximum=1.0),
        },
    ),
    Method(
        name="exp_heun",
        summary="Exponential Heun: res_2s with the second evaluation at the end of the step",
        paper=PAPER,
        order=2,
        build=build_exp_heun,
        space="data",
        spacing="logsnr",
        nfe_per_step=2,
        aliases=("exp_heun_2_x0",),
    ),
)
