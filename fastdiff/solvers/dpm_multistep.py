"""Multistep DPM-Solver and DPM-Solver++ of orders 1 to 3.

Lu et al. 2022, "DPM-Solver" (arXiv 2206.00927), Lu et al. 2022b, "DPM-Solver++" (arXiv 2211.01095), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdiff.plan import Plan
from fastdiff.schedules import Point
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

PAPER = "Lu et al. 2022, arXiv 2206.00927"
PAPER_PP = "Lu et al. 2022b, arXiv 2211.01095"

LOWER = Option(True, "lower the order of the last steps when there are fewer than 10")
# The published default is True; docs/solvers.md has the errors of both.
FULL = Option(False, LOWER.doc)
TO_ZERO = Option(False, "one more evaluation at the end, whose predicted x0 is the result")


def solver_type(default: str, order: int = 2) -> Option:
    """The option of methods of order 2 and 3; the published third-order update has a choice for its lower orders."""
    doc = "'taylor': the terms of the Taylor expansion; 'dpmsolver': the published update"
    if order < 3:
        return Option(default, doc, choices=("taylor", "dpmsolver"))
    return Option(
        default,
        f"{doc}, of second order even in dpm3; 'dpmsolver_taylor': the same with its lower-order steps in Taylor form",
        choices=("taylor", "dpmsolver", "dpmsolver_taylor"),
    )


def update(space: str, nodes: Sequence[Point], t: Point, values: Sequence[Row], solver_type: str) -> Row:
    """One multistep update from nodes[0] to t; nodes and values newest first, their number is the order.

    The published third-order update halves the second derivative: its D2 = (D1_0 − D1_1)/(r0 + r1) is a divided
    difference, h²·m''/2, instead of h²·m'' (derivation and measured orders in docs/parity.md).
    """
    step = Exponential(space, nodes[0], t)
    x, m = ROW["x"], values[0]
    if len(nodes) == 1 or not step.finite:
        return step.first(x, m)
    h = step.h
    r0 = (nodes[0].lam - nodes[1].lam) / h
    d1_0 = (values[0] - values[1]) / r0
    if len(nodes) == 2:
        return step.midpoint(x, m, d1_0) if solver_type == "dpmsolver" else step.taylor(x, m, d1_0)
    r1 = (nodes[1].lam - nodes[2].lam) / h
    d1_1 = (values[1] - values[2]) / r1
    d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
    d2 = (d1_0 - d1_1) / (r0 + r1)
    return step.taylor(x, m, d1, 2.0 * d2 if solver_type == "taylor" else d2)


def multistep(name: str, space: str, order: int) -> Method:
    def build(request: Request, *, lower_order_final: bool, denoise_to_zero: bool, solver_type: str = "taylor") -> Plan:
        points = request.points()
        steps = len(points) - 1
        orders = orders_of(order, steps, lower_order_final and steps < 10)
        values = (ROW["m"], *HISTORY)
        made = multistep_rows(points, orders, lambda at, nodes, t: update(space, nodes, t, values, solver_type))
        rows = Recorder()
        for i, row in enumerate(made):
            rows.add(points[i], points[i + 1], row, step=i, keep=True)
        options: dict[str, Any] = {"lower_order_final": lower_order_final, "denoise_to_zero": denoise_to_zero}
        if order > 1:
            options["solver_type"] = solver_type
        reached = order if solver_type == "taylor" else min(order, 2)
        return rows.plan(name, space, reached, request, points, options, denoise_to_zero=denoise_to_zero)

    plus = space == "data"
    ordinal = ("first", "second", "third")[order - 1]
    options = {"lower_order_final": FULL if name == "dpm2" else LOWER, "denoise_to_zero": TO_ZERO}
    if order > 1:
        options["solver_type"] = solver_type("taylor" if order == 3 else "dpmsolver", order)
    return Method(
        name=name,
        summary=f"DPM-Solver{'++' if plus else ''}, multistep, {ordinal} order"
        + (" (data prediction)" if plus else " (noise prediction)"),
        paper=PAPER_PP if plus else PAPER,
        order=order,
        build=build,
        space=space,
        # Third order needs steps of similar size in lambda; second order does best where equal steps of sqrt(t) are
        # (docs/solvers.md has the table); the first follows the published default.
        spacing=("time_uniform", "time_quadratic", "logsnr")[order - 1],
        options=options,
        aliases=ALIASES.get(name, ()),
        good_for=GOOD_FOR.get(name, ()),
    )


GOOD_FOR = {"dpm2": ("few",), "dpm3": ("few",), "dpmpp2m": ("few", "flow", "video"), "dpmpp3m": ("few",)}

ALIASES = {
    "dpm1": ("dpmsolver1", "dpm_solver_1"),
    "dpm2": ("dpmsolver2", "dpm_solver_2", "dpm2m"),
    "dpm3": ("dpmsolver3", "dpm_solver_3", "dpm3m", "dpmsolver"),
    "dpmpp2m": ("dpmpp_2m", "dpm++2m", "dpmsolver++", "dpm_solver++", "dpmsolvermultistep"),
    "dpmpp3m": ("dpmpp_3m", "dpm++3m"),
    "dpmpp1": ("dpm++1",),
}

METHODS = (
    multistep("dpm1", "noise", 1),
    multistep("dpm2", "noise", 2),
    multistep("dpm3", "noise", 3),
    multistep("dpmpp1", "data", 1),
    multistep("dpmpp2m", "data", 2),
    multistep("dpmpp3m", "data", 3),
)
