"""Singlestep DPM-Solver and DPM-Solver++ of orders 2 and 3: "DPM-Solver-fast" and its fixed-order form.

Lu et al. 2022 (arXiv 2206.00927), Algorithms 1 and 2, App. C and D.1 (the split of NFE into orders); Lu et al. 2022b
(arXiv 2211.01095), Algorithm 3.
"""

from __future__ import annotations

import numpy as np

from fastdiff.plan import Plan
from fastdiff.schedules import Point
from fastdiff.solvers.base import ROW, Exponential, Method, Option, Recorder, Request
from fastdiff.solvers.dpm_multistep import PAPER, PAPER_PP, TO_ZERO, solver_type


def split(steps: int, order: int) -> list[int]:
    """The orders of the outer steps, which add up to `steps` network evaluations (DPM-Solver, App. D.1)."""
    full, rest = divmod(steps, order)
    if rest:
        return [order] * full + [rest]
    # Order 3 ends with lower orders even where 3 divides the steps.
    return [order] * full if order == 2 else [3] * (full - 1) + [2, 1]


def outer_and_inner(
    request: Request, name: str, orders: list[int], fixed: bool
) -> tuple[list[Point], list[list[Point]]]:
    """Where the outer steps begin and end, and where each evaluates the network (its begin included).

    A logSNR or fixed grid has a point for each outer step, the others sub-sample a grid of one point an evaluation.
    Inner points are spaced again inside the step; own times are taken as they are, and so are those of a step that is
    infinitely long in lambda, where there is no other choice.
    """
    own = isinstance(request.spacing, tuple)
    nested = own or not (fixed or request.spacing == "logsnr")
    if nested:
        fine = request.points()
        first = np.cumsum([0, *orders])
        points = [fine[i] for i in first]
    else:
        points = request.points(len(orders))
    inner: list[list[Point]] = []
    parted = []
    for i, order in enumerate(orders):
        s, t = points[i], points[i + 1]
        finite = min(s.alpha, s.sigma, t.alpha, t.sigma) > 0
        inner.append([s])
        if order == 1:
            continue
        if own or (nested and not finite):
            inner[-1] = fine[first[i] : first[i + 1]]
        elif finite:
            parted.append(i)
        else:
            end = (
                f"to sigma = 0: end at t_end > {t.t:g}"
                if t.sigma == 0
                else f"from alpha = 0: start at t_start < {max(s.t, t.t):g}"
            )
            raise ValueError(
                f"method {name!r} cannot take a step of order {order} {end}, or use spacing='time_uniform', fixed=False"
            )
    for i, part in zip(parted, request.inside([(points[i], points[i + 1], orders[i]) for i in parted]), strict=True):
        inner[i] += part
    return points, inner


def add_step(rows: Recorder, space: str, solver_type: str, nodes: list[Point], t: Point, index: int) -> None:
    """One singlestep update from nodes[0] through the inner nodes to t; as many evaluations as nodes.

    Where h is infinite, the part that touches alpha = 0 or sigma = 0 is a step of its own, of first order.
    """
    s, x, m = nodes[0], ROW["x"], ROW["m"]
    whole = Exponential(space, s, t)
    if len(nodes) == 1:
        rows.add(s, t, whole.first(x, m), step=index)
        return
    if not whole.finite:
        cut = 1 if s.alpha == 0 else len(nodes) - 1
        add_step(rows, space, solver_type, nodes[:cut], nodes[cut], index)
        add_step(rows, space, solver_type, nodes[cut:], t, index)
        return
    s1 = nodes[1]
    first = Exponential(space, s, s1)
    rows.add(s, s1, first.first(x, m), x, step=index, keep=True)
    r1 = first.h / whole.h
    if len(nodes) == 2:
        d1 = (m - ROW["h1"]) / r1
        end = whole.midpoint(x, ROW["h1"], d1) if solver_type == "dpmsolver" else whole.taylor(x, ROW["h1"], d1)
        rows.add(s1, t, end, step=index)
        return
    s2 = nodes[2]
    second = Exponential(space, s, s2)
    r2 = second.h / whole.h
    rows.add(s1, s2, second.taylor(x, ROW["h1"], (m - ROW["h1"]) * (r2 / r1)), x, step=index, keep=True)
    # At the third evaluation the history is h1 = m(s1), h2 = m(s).
    m0, m1, m2 = ROW["h2"], ROW["h1"], m
    if solver_type == "dpmsolver":
        end = whole.taylor(x, m0, (m2 - m0) / r2)
    else:
        d1_0, d1_1 = (m1 - m0) / r1, (m2 - m0) / r2
        d1 = (r2 * d1_0 - r1 * d1_1) / (r2 - r1)
        d2 = 2.0 * (d1_1 - d1_0) / (r2 - r1)
        end = whole.taylor(x, m0, d1, d2)
    rows.add(s2, t, end, step=index)


def singlestep(name: str, space: str, order: int) -> Method:
    def build(request: Request, *, fixed: bool, denoise_to_zero: bool, solver_type: str) -> Plan:
        # The grid checks `steps`, and counts what own times or a respacing string say.
        steps = len(request.points()) - 1
        if fixed and steps < order:
            raise ValueError(
                f"method {name!r} with fixed=True takes {order} evaluations a step and needs steps >= {order}, got "
                f"{steps}"
            )
        if fixed and isinstance(request.spacing, tuple) and steps % order:
            raise ValueError(
                f"method {name!r} with fixed=True takes {order} evaluations a step; {steps + 1} own times make "
                f"{steps}: give a multiple of {order}, plus one, or fixed=False"
            )
        orders = [order] * (steps // order) if fixed else split(steps, order)
        points, inner = outer_and_inner(request, name, orders, fixed)
        rows = Recorder()
        for i, nodes in enumerate(inner):
            add_step(rows, space, solver_type, nodes, points[i + 1], i)
        options = {"fixed": fixed, "denoise_to_zero": denoise_to_zero, "solver_type": solver_type}
        return rows.plan(name, space, order, request, points, options, denoise_to_zero=denoise_to_zero)

    plus = space == "data"
    return Method(
        name=name,
        summary=f"DPM-Solver{'++' if plus else ''}, singlestep, {'second' if order == 2 else 'third'} order; "
        "steps counts evaluations",
        paper=PAPER_PP if plus else PAPER,
        order=order,
        build=build,
        space=space,
        spacing="logsnr",
        options={
            "fixed": Option(
                False,
                f"repeat order {order} only (steps // {order} outer steps); else mix orders to use every evaluation",
            ),
            "denoise_to_zero": TO_ZERO,
            "solver_type": solver_type("dpmsolver"),
        },
        aliases=ALIASES.get(name, ()),
    )


ALIASES = {
    "dpm2s": ("dpmsolver2s", "dpm_solver_2s"),
    "dpm3s": ("dpmsolver3s", "dpm_solver_3s", "dpm_fast"),
    "dpmpp2s": ("dpmpp_2s", "dpm++2s", "dpmsolversinglestep"),
    "dpmpp3s": ("dpmpp_3s", "dpm++3s"),
}

METHODS = (
    singlestep("dpm2s", "noise", 2),
    singlestep("dpm3s", "noise", 3),
    singlestep("dpmpp2s", "data", 2),
    singlestep("dpmpp3s", "data", 3),
)
