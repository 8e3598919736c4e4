"""Ancestral samplers: a deterministic step to a level below the next time, then noise up to it.

Euler's, DPM-Solver-2's, DPM-Solver++(2S)'s and RES' steps with the renoising of DDPM's posterior (Song et al. 2021,
arXiv 2010.02502, eq. 16), as k-diffusion has made them known, and with that of flows, where alpha + sigma = 1.
`solvers.reverse.Ancestral` has the levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from fastdiff.plan import Plan
from fastdiff.plan.phi import phi
from fastdiff.schedules import Point
from fastdiff.solvers.base import ROW, Draw, Method, Option, Recorder, Request
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.reverse import DOWN, S_NOISE, Ancestral, at_lambda, at_sigma, check_start, rule_of

Step = Callable[[Recorder, Request, Ancestral, float, Draw, int], None]


def euler(rows: Recorder, request: Request, step: Ancestral, std: float, draw: Draw, i: int) -> None:
    """x0's form of Euler's method in sigma/alpha, which may begin at alpha = 0."""
    rows.add(step.s, step.t, step.data(ROW["x"], ROW["m"]) + std * ROW["za"], step=i, noise=(draw,))


def dpm_2(rows: Recorder, request: Request, step: Ancestral, std: float, draw: Draw, i: int) -> None:
    """Through the geometric mean of both levels, whose eps makes the whole step (DPM-Solver-2 in sigma/alpha)."""
    s, t = step.s, step.t
    if step.ratio == 0:
        rows.add(s, t, step.noise(ROW["x"], ROW["m"]) + std * ROW["za"], step=i, noise=(draw,))
        return
    mid = at_lambda(request.schedule, 0.5 * (s.lam + step.lam))
    width = mid.sigma / mid.alpha - s.sigma / s.alpha
    rows.add(s, mid, mid.alpha * (ROW["x"] / s.alpha + width * ROW["m"]), ROW["x"], step=i)
    rows.add(mid, t, step.noise(ROW["x"], ROW["m"]) + std * ROW["za"], step=i, noise=(draw,))


def dpm_2_flow(rows: Recorder, request: Request, step: Ancestral, std: float, draw: Draw, i: int) -> None:
    """As `dpm_2`, in sigma itself, where dx/dsigma = (x - x0)/sigma on flow schedules: it may begin at alpha = 0."""
    s, t = step.s, step.t
    if step.ratio == 0:
        euler(rows, request, step, std, draw, i)
        return
    low = step.ratio / (1.0 + step.ratio)
    mid = at_sigma(request.schedule, math.sqrt(s.sigma * low))
    half, slope = mid.sigma / s.sigma, (ROW["u"] - ROW["m"]) / mid.sigma
    rows.add(s, mid, half * ROW["x"] + (1.0 - half) * ROW["m"], ROW["x"], step=i)
    up = t.alpha / (1.0 - low) if low < 1.0 else 1.0
    rows.add(mid, t, up * (ROW["x"] + (low - s.sigma) * slope) + std * ROW["za"], step=i, noise=(draw,))


def dpmpp_2s(rows: Recorder, request: Request, step: Ancestral, std: float, draw: Draw, i: int) -> None:
    """Through the middle of both levels in lambda, whose x0 makes the whole step (DPM-Solver++(2S))."""
    s, t = step.s, step.t
    if not math.isfinite(step.h):
        euler(rows, request, step, std, draw, i)
        return
    mid = at_lambda(request.schedule, 0.5 * (s.lam + step.lam))
    half = mid.sigma / s.sigma * ROW["x"] - mid.alpha * math.expm1(s.lam - mid.lam) * ROW["m"]
    rows.add(s, mid, half, ROW["x"], step=i)
    rows.add(mid, t, step.data(ROW["x"], ROW["m"]) + std * ROW["za"], step=i, noise=(draw,))


def build(
    name: str, space: str, order: int, add: Step, request: Request, *, eta: float, s_noise: float, down: str
) -> Plan:
    if eta:
        check_downward(request, name)
    rule = rule_of(request.schedule, down)
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start(name, s, space)
        step = Ancestral(s, t, eta, rule)
        add(rows, request, step, s_noise * step.std, Draw(s, t), i)
    return rows.plan(name, space, order, request, points, {"eta": eta, "s_noise": s_noise, "down": down})


def build_dpm_2(request: Request, *, eta: float, s_noise: float, down: str) -> Plan:
    flow = rule_of(request.schedule, down) == "flow"
    space, add = ("data", dpm_2_flow) if flow else ("noise", dpm_2)
    return build("dpm_2_ancestral", space, 2, add, request, eta=eta, s_noise=s_noise, down=down)


def build_res(request: Request, *, eta: float, s_noise: float, down: str) -> Plan:
    name = "res_multistep_ancestral"
    if eta:
        check_downward(request, name)
    rule = rule_of(request.schedule, down)
    points = request.points()
    rows = Recorder()
    before: tuple[Point, Ancestral] | None = None
    for i, (s, t) in enumerate(pairwise(points)):
        check_start(name, s)
        step = Ancestral(s, t, eta, rule)
        row = step.data(ROW["x"], ROW["m"])
        if before is not None and math.isfinite(step.h) and math.isfinite(before[1].h):
            # The slope of x0 over the last deterministic step, as k-diffusion's descendants take it.
            slope = (ROW["m"] - ROW["h1"]) * (step.h / before[1].h)
            row = row + t.alpha * step.h * float(phi(2, -step.h)) * slope
        rows.add(s, t, row + s_noise * step.std * ROW["za"], step=i, keep=True, noise=(Draw(s, t),))
        before = s, step
    return rows.plan(name, "data", 1, request, points, {"eta": eta, "s_noise": s_noise, "down": down})


SONG = "Song et al. 2021, arXiv 2010.02502"
OPTIONS = {
    "eta": Option(1.0, "noise, in units of the posterior's; 0 draws none", minimum=0.0),
    "s_noise": S_NOISE,
    "down": DOWN,
}

METHODS = (
    Method(
        name="euler_ancestral",
        summary="Euler's step to a level below the next, then noise; eta = 1 is ddpm",
        paper=SONG,
        order=1,
        build=partial(build, "euler_ancestral", "data", 1, euler),
        space="data",
        spacing="leading",
        stochastic=True,
        options=OPTIONS,
        aliases=("ancestral", "euler_a", "eulerancestraldiscrete", "ltxeulerancestralrf"),
        good_for=("noise", "distilled"),
    ),
    Method(
        name="dpm_2_ancestral",
        summary="DPM-Solver-2's step to a level below the next, then noise",
        paper=f"Lu et al. 2022, arXiv 2206.00927; {SONG}",
        order=2,
        build=build_dpm_2,
        space="noise",
        spacing="karras",
        nfe_per_step=2,
        stochastic=True,
        options=OPTIONS,
        aliases=("kdpm2ancestraldiscrete", "dpm2_a", "dpm2_ancestral"),
        good_for=("noise",),
    ),
    Method(
        name="dpmpp_2s_ancestral",
        summary="DPM-Solver++(2S)'s step to a level below the next, then noise",
        paper=f"Lu et al. 2022b, arXiv 2211.01095; {SONG}",
        order=2,
        build=partial(build, "dpmpp_2s_ancestral", "data", 2, dpmpp_2s),
        space="data",
        spacing="karras",
        nfe_per_step=2,
        stochastic=True,
        options=OPTIONS,
        aliases=("dpmpp2s_ancestral", "dpm++_2s_a", "dpmpp_2s_ancestral_rf"),
        good_for=("noise",),
    ),
    Method(
        name="res_multistep_ancestral",
        summary="The refined exponential solver, multistep, to a level below the next, then noise",
        paper="Zhang et al. 2023, arXiv 2308.02157",
        order=1,
        build=build_res,
        space="data",
        spacing="karras",
        stochastic=True,
        options=OPTIONS,
        good_for=("noise",),
    ),
)
