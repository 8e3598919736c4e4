"""CFG++ (Chung et al. 2024, arXiv 2406.08070) for the methods that ComfyUI has in this form.

CFG++ leaves the noise of a step to the unconditional network: with x0 guided (D) and unconditional (U), a step starts
from x + alpha_s·(D − U), where x0 is D and eps is the unconditional one. The rows are written for m = U, kept in the
history, and the register `second` standing for D − U (`fastdiff.guidance.cfg_pp` binds it). Which of D and U the terms
of second order are made of is ComfyUI's choice: the paper has the first order alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from fastdiff.plan import M, Plan, X
from fastdiff.plan.phi import phi
from fastdiff.schedules import Point
from fastdiff.solvers.base import ROW, Draw, Exponential, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.reverse import DOWN, S_NOISE, Ancestral, at_lambda, check_start, rule_of

FORM = {"guidance": "cfg_pp"}
SHIFT: Row = ROW["second"]
GUIDED: Row = ROW["m"] + SHIFT


def guided(row: Row, s: Point, x0: bool = True) -> Row:
    """A data-space row of x and m from the shifted x, with m guided (`x0`) or unconditional."""
    return row + (s.alpha * row[X] + (row[M] if x0 else 0.0)) * SHIFT


def dpmpp_2s(rows: Recorder, request: Request, step: Ancestral, std: float, draw: Draw, i: int) -> None:
    """Both evaluations guided; the base of the whole step is the shifted x."""
    s, t = step.s, step.t
    if not math.isfinite(step.h):
        rows.add(s, t, guided(step.data(ROW["x"], ROW["m"]), s) + std * ROW["za"], step=i, noise=(draw,))
        return
    mid = at_lambda(request.schedule, 0.5 * (s.lam + step.lam))
    half = mid.sigma / s.sigma * ROW["x"] - mid.alpha * math.expm1(s.lam - mid.lam) * ROW["m"]
    rows.add(s, mid, guided(half, s), ROW["x"] + s.alpha * SHIFT, step=i)
    rows.add(mid, t, step.data(ROW["x"], GUIDED) + std * ROW["za"], step=i, noise=(draw,))


def euler(rows: Recorder, request: Request, step: Ancestral, std: float, draw: Draw, i: int) -> None:
    row = guided(step.data(ROW["x"], ROW["m"]), step.s)
    rows.add(step.s, step.t, row + std * ROW["za"], step=i, noise=(draw,))


class Res:
    """RES, multistep: the first order from D, the second from U and its slope."""

    def __init__(self) -> None:
        self.before: Ancestral | None = None

    def __call__(self, rows: Recorder, request: Request, step: Ancestral, std: float, draw: Draw, i: int) -> None:
        row, before = step.data(ROW["x"], ROW["m"]), self.before
        if before is None or not math.isfinite(step.h) or not math.isfinite(before.h):
            row = guided(row, step.s)
        else:
            slope = (ROW["m"] - ROW["h1"]) * (step.h / before.h)
            row = guided(row, step.s, x0=False) + step.t.alpha * step.h * float(phi(2, -step.h)) * slope
        rows.add(step.s, step.t, row + std * ROW["za"], step=i, keep=True, noise=(draw,))
        self.before = step


Add = Callable[[Recorder, Request, Ancestral, float, Draw, int], None]


def ancestral(
    name: str,
    add: Callable[[], Add],
    request: Request,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
    down: str = "auto",
) -> Plan:
    """Steps to a level below the next, then noise; without noise where eta is 0."""
    if eta:
        check_downward(request, name)
    rule, points, rows, one = rule_of(request.schedule, down), request.points(), Recorder(), add()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start(name, s)
        step = Ancestral(s, t, eta, rule)
        one(rows, request, step, s_noise * step.std, Draw(s, t), i)
    options = {**FORM, **({"eta": eta, "s_noise": s_noise, "down": down} if name in NOISY else {})}
    return rows.plan(name, "data", 1, request, points, options)


def build_dpmpp_2m(request: Request) -> Plan:
    """x' from D to first order, and the slope from D and the last U."""
    name, points, rows = "dpmpp_2m_cfg_pp", request.points(), Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start(name, s)
        step = Exponential("data", s, t)
        row = guided(step.first(ROW["x"], ROW["m"]), s)
        if i and step.finite and math.isfinite(points[i - 1].lam):
            r = (s.lam - points[i - 1].lam) / step.h
            row = row + 0.5 / r * step.gain(1) * (GUIDED - ROW["h1"])
        rows.add(s, t, row, step=i, keep=True)
    return rows.plan(name, "data", 1, request, points, FORM)


def build_gradient_estimation(request: Request, *, gamma: float) -> Plan:
    """Permenter and Yuan 2023, arXiv 2306.04848: eps, here the unconditional one, extrapolated from the last."""
    name, points, rows = "gradient_estimation_cfg_pp", request.points(), Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start(name, s, "noise")
        start, end = s.sigma / s.alpha, t.sigma / t.alpha if t.alpha else math.inf
        row = ROW["x"] / s.alpha - start * ROW["m"] + SHIFT + end * ROW["m"]
        if i and end > 0:
            row = row + (gamma - 1.0) * (end - start) * (ROW["m"] - ROW["h1"])
        rows.add(s, t, t.alpha * row, step=i, keep=True)
    return rows.plan(name, "noise", 1, request, points, {**FORM, "gamma": gamma})


NOISY = ("euler_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "res_multistep_ancestral_cfg_pp")
OPTIONS = {"eta": Option(1.0, "noise, in units of the posterior's; 0 draws none", minimum=0.0), "s_noise": S_NOISE}
PAPER = "Chung et al. 2024, arXiv 2406.08070"


def method(name: str, add: Callable[[], Add], what: str, paper: str, evaluations: int = 1) -> Method:
    noisy = name in NOISY
    return Method(
        name=name,
        summary=f"CFG++ with {what}" + (" to a level below the next, then noise" if noisy else ""),
        paper=PAPER if paper == PAPER else f"{PAPER}; {paper}",
        order=1,
        build=partial(ancestral, name, add),
        space="data",
        spacing="karras",
        nfe_per_step=evaluations,
        stochastic=noisy,
        options={**OPTIONS, "down": DOWN} if noisy else {},
    )


METHODS = (
    method("euler_cfg_pp", lambda: euler, "Euler's step, that of ddim", PAPER),
    method("euler_ancestral_cfg_pp", lambda: euler, "Euler's step", PAPER),
    Method(
        name="dpmpp_2m_cfg_pp",
        summary="CFG++ with DPM-Solver++(2M)",
        paper=f"{PAPER}; Lu et al. 2022b, arXiv 2211.01095",
        order=1,
        build=build_dpmpp_2m,
        space="data",
        spacing="karras",
    ),
    method(
        "dpmpp_2s_ancestral_cfg_pp",
        lambda: dpmpp_2s,
        "DPM-Solver++(2S)'s step",
        "Lu et al. 2022b, arXiv 2211.01095",
        evaluations=2,
    ),
    method(
        "res_multistep_cfg_pp", Res, "the refined exponential solver, multistep", "Zhang et al. 2023, arXiv 2308.02157"
    ),
    method(
        "res_multistep_ancestral_cfg_pp",
        Res,
        "the refined exponential solver, multistep,",
        "Zhang et al. 2023, arXiv 2308.02157",
    ),
    Method(
        name="gradient_estimation_cfg_pp",
        summary="CFG++ with the gradient-estimation sampler",
        paper=f"{PAPER}; Permenter and Yuan 2023, arXiv 2306.04848",
        order=1,
        build=build_gradient_estimation,
        space="noise",
        spacing="karras",
        options={"gamma": Option(2.0, "weight of the newest eps; 1 is Euler's method", minimum=0.0)},
    ),
)
