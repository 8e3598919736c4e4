"""Singlestep DPM-Solver and DPM-Solver++ of orders 2 and 3: "DPM-Solver-fast" and its fixed-order form.

Lu et al. 2022 (arXiv 2206.00927), Algorithms 1 and 2, App. C and D.1 (the split of NFE into orders); Lu et al. 2022b
(arXiv 2211.01095), Algorithm 3.
"""

from __future__ import annotations

import numpy as np

from fastdiff.plan import Plan
from fastdiff.schedule_base import Point
from fastdiff.solvers.base import ROW, Exponential, Method, Option, Recorder, Request, denoise
from fastdiff.solvers.dpm_multistep import PAPER, PAPER_PP, TO_ZERO, solver_type


def split(steps: int, order: int) -> list[int]:
    """The orders of the outer steps, which add up to `steps` network evaluations (DPM-Solver, App. D.1)."""
    full, rest = divmod(steps, order)
    if rest:
        return [order] * full + [rest]
    # Order 3 ends with lower orders even where 3 divides the steps.
    return [order] * full if order == 2 else [3] * (full - 1) + [2, 1]


def outer_points(request: Request, orders: list[int], fixed: bool) -> list[Point]:
    """Where the outer steps begin and end: every logSNR (or fixed) grid has a point for each; the others sub-sample."""
    if isinstance(request.spacing, tuple) or not (fixed or request.spacing == "logsnr"):
        return [request.points()[i] for i in np.cumsum([0, *orders])]
    return request.points(len(orders))


def add_step(rows: Recorder, space: str, form: str, nodes: list[Point], t: Point, index: int) -> None:
    """One singlestep update from nodes[0] through the inner nodes to t; as many evaluations as nodes."""
    s, x, m = nodes[0], ROW["x"], ROW["m"]
    whole = Exponential(space, s, t)
    if len(nodes) == 1:
        rows.add(s, t, whole.first(x, m), step=index)
        return
    s1 = nodes[1]
    first = Exponential(space, s, s1)
    rows.add(s, s1, first.first(x, m), x, step=index, push=True)
    r1 = first.h / whole.h
    if len(nodes) == 2:
        d1 = (m - ROW["h1"]) / r1
        end = whole.midpoint(x, ROW["h1"], d1) if form == "dpmsolver" else whole.taylor(x, ROW["h1"], d1)
        rows.add(s1, t, end, step=index)
        return
    s2 = nodes[2]
    second = Exponential(space, s, s2)
    r2 = second.h / whole.h
    rows.add(s1, s2, second.taylor(x, ROW["h1"], (m - ROW["h1"]) * (r2 / r1)), x, step=index, push=True)
    # At the third evaluation the history is h1 = m(s1), h2 = m(s).
    m0, m1, m2 = ROW["h2"], ROW["h1"], m
    if form == "dpmsolver":
        end = whole.taylor(x, m0, (m2 - m0) / r2)
    else:
        d1_0, d1_1 = (m1 - m0) / r1, (m2 - m0) / r2
        d1 = (r2 * d1_0 - r1 * d1_1) / (r2 - r1)
        d2 = 2.0 * (d1_1 - d1_0) / (r2 - r1)
        end = whole.taylor(x, m0, d1, d2)
    rows.add(s2, t, end, step=index)


def singlestep(name: str, space: str, order: int) -> Method:
    def build(request: Request, *, fixed: bool, denoise_to_zero: bool, solver_type: str) -> Plan:
        steps = request.steps or len(request.points()) - 1
        if fixed and steps < order:
            raise ValueError(
                f"method {name!r} with fixed=True takes {order} evaluations a step and needs steps >= {order}, got {steps}"
            )
        orders = [order] * (steps // order) if fixed else split(steps, order)
        points = outer_points(request, orders, fixed)
        rows = Recorder()
        offset = 0
        for i, inner in enumerate(orders):
            s, t = points[i], points[i + 1]
            if inner > 1 and t.sigma == 0:
                raise ValueError(
                    f"method {name!r} cannot take a step of order {inner} to sigma = 0: end at t_end > {t.t:g}, or use "
                    "denoise_to_zero=True for the last evaluation"
                )
            if isinstance(request.spacing, tuple):
                nodes = [request.schedule.at(v) for v in request.spacing[offset : offset + inner + 1]]
            else:
                nodes = request.between(s.t, t.t, inner)
            add_step(rows, space, solver_type, [s, *nodes[1:-1]], t, i)
            offset += inner
        times = [p.t for p in points]
        if denoise_to_zero and points[-1].sigma > 0:
            clean = request.schedule.at(request.schedule.t_clean)
            rows.add(points[-1], clean, denoise(space, points[-1]), step=len(orders))
            times.append(clean.t)
        return Plan(
            method=name,
            space=space,
            order=order,
            times=tuple(times),
            stages=rows.finish(),
            prior_std=request.schedule.prior_std(times[0]),
            schedule=request.schedule.to_dict(),
            options={"fixed": fixed, "denoise_to_zero": denoise_to_zero, "solver_type": solver_type},
        )

    plus = space == "data"
    return Method(
        name=name,
        summary=f"DPM-Solver{'++' if plus else ''}, singlestep, {'second' if order == 2 else 'third'} order; steps counts evaluations",
        paper=PAPER_PP if plus else PAPER,
        order=order,
        build=build,
        space=space,
        spacing="logsnr",
        options={
            "fixed": Option(False, f"repeat order {order} only (steps // {order} outer steps); else mix orders to use every evaluation"),
            "denoise_to_zero": TO_ZERO,
            "solver_type": solver_type("dpmsolver"),
        },
        aliases=ALIASES.get(name, ()),
    )


ALIASES = {
    "dpm2s": ("dpmsolver2s", "dpm_solver_2s"),
    "dpm3s": ("dpmsolver3s", "dpm_solver_3s", "dpm_fast"),
    "dpmpp2s": ("dpmpp_2s", "dpm++2s"),
    "dpmpp3s": ("dpmpp_3s", "dpm++3s", "dpmsolversinglestep"),
}

METHODS = (
    singlestep("dpm2s", "noise", 2),
    singlestep("dpm3s", "noise", 3),
    singlestep("dpmpp2s", "data", 2),
    singlestep("dpmpp3s", "data", 3),
)
