"""RES: exponential integrators of the data prediction with the full order conditions, multistep and singlestep.

Zhang et al. 2023, "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling" (arXiv
2308.02157); the singlestep tableaux are those of Hochbruck and Ostermann 2005, "Explicit exponential Runge-Kutta
methods for semilinear parabolic problems", eqs. 5.3 and 5.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from fastdiff.plan import Plan
from fastdiff.plan.phi import phi
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import HISTORY, ROW, Draw, Exponential, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.level import at_level
from fastdiff.solvers.unipc import update

PAPER = "Zhang et al. 2023, arXiv 2308.02157"


def build_multistep(request: Request, *, order: int) -> Plan:
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        # The exponential Adams-Bashforth weights: those of UniP with every difference's exact.
        nodes = points[i::-1][:order]
        row = update("data", "vary_coeff", ROW["x"], nodes, (ROW["m"], *HISTORY)[: len(nodes)], t, None)
        rows.add(s, t, row, step=i, keep=True)
    return rows.plan("res_multistep", "data", order, request, points, {"order": order})


def build_ancestral(request: Request, *, eta: float, s_noise: float) -> Plan:
    """Each step goes down to a lower level than t's, and noise brings it up to t's.

    The value before extrapolates from the time at which it was taken, s_prev.
    """
    check_downward(request, "res_multistep_ancestral")
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        nodes = points[i::-1][:2]
        low, up = ancestral(request.schedule, s, t, eta)
        down = update("data", "vary_coeff", ROW["x"], nodes, (ROW["m"], *HISTORY)[: len(nodes)], low, None)
        row = t.alpha / low.alpha * down + t.alpha * s_noise * up * ROW["za"]
        rows.add(s, t, row, step=i, keep=True, noise=(Draw(s, t),))
    options = {"eta": eta, "s_noise": s_noise}
    return rows.plan("res_multistep_ancestral", "data", 1, request, points, options)


def ancestral(schedule: NoiseSchedule, s: Point, t: Point, eta: float) -> tuple[Point, float]:
    """Where the deterministic part of an ancestral step ends, and the noise that x/alpha then gains: eta times the
    posterior's, sigma_t/alpha_t·sqrt(1 − exp(−2h)), as in k-diffusion."""
    end = t.sigma / t.alpha
    up = min(end, eta * end * math.sqrt(-math.expm1(2.0 * (s.lam - t.lam))))
    if up == 0:
        return t, 0.0
    down = math.sqrt(end**2 - up**2)
    return (at_level(schedule, down) if down > 0 else schedule.at(schedule.t_clean)), up


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
        name="res_multistep_ancestral",
        summary="RES: res_multistep of second order with the noise of an ancestral step",
        paper=PAPER,
        order=1,
        build=build_ancestral,
        space="data",
        spacing="karras",
        stochastic=True,
        options={
            "eta": Option(1.0, "noise in units of the posterior's; 0 gives res_multistep", minimum=0.0),
            "s_noise": Option(1.0, "factor of the noise", minimum=0.0),
        },
        good_for=("noise",),
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
