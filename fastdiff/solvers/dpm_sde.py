"""SDE-DPM-Solver and SDE-DPM-Solver++, multistep, of orders 1 to 3 (Lu et al. 2022b, arXiv 2211.01095, Section 5 and
App. D).

With eta the noise may be lowered (eta = 0 is the ODE method): h is stretched by 1 + eta, and noise is added
(`solvers.reverse`). With noise the law converges at order 2 at most, also of the third-order update: along a path x0 is
as rough as the noise, and has no second derivative that a difference could find.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from fastdiff.plan import Plan
from fastdiff.schedules import Point
from fastdiff.solvers.base import (
    HISTORY,
    ROW,
    Draw,
    Method,
    Option,
    Recorder,
    Request,
    Row,
    finite,
    multistep_rows,
    orders_of,
)
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.reverse import ETA, S_NOISE, Reverse, check_start


def update(step: Reverse, nodes: Sequence[Point], values: Sequence[Row], solver_type: str) -> Row:
    """The mean of one multistep update from nodes[0]; nodes and values newest first, their number is the order."""
    x, m, h = ROW["x"], values[0], step.h
    if len(nodes) == 1 or not step.finite or not finite(nodes[1].lam):
        return step.first(x, m)
    r0 = (nodes[0].lam - nodes[1].lam) / h
    d1_0 = (values[0] - values[1]) / r0
    if len(nodes) == 2 or not finite(nodes[2].lam):
        return step.midpoint(x, m, d1_0) if solver_type == "midpoint" else step.taylor(x, m, d1_0)
    r1 = (nodes[1].lam - nodes[2].lam) / h
    d1_1 = (values[1] - values[2]) / r1
    d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
    d2 = (d1_0 - d1_1) / (r0 + r1)
    return step.taylor(x, m, d1, 2.0 * d2 if solver_type == "taylor" else d2)


def build(
    name: str,
    space: str,
    order: int,
    request: Request,
    *,
    eta: float,
    s_noise: float,
    lower_order_final: bool = False,
    solver_type: str = "",
) -> Plan:
    if eta:
        check_downward(request, name)
    points = request.points()
    steps = len(points) - 1
    orders = orders_of(order, steps, lower_order_final and steps < 15)
    for s in points[:-1]:
        check_start(name, s, space)
    values = (ROW["m"], *HISTORY)
    means = multistep_rows(
        points, orders, lambda at, nodes, t: update(Reverse(space, nodes[0], t, eta), nodes, values, solver_type)
    )
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        std = s_noise * Reverse(space, s, t, eta).parts([s])[0]
        rows.add(s, t, means[i] + std * ROW["za"], step=i, keep=True, noise=(Draw(s, t),))
    options: dict[str, object] = {"eta": eta, "s_noise": s_noise}
    if order > 1:
        options |= {"solver_type": solver_type, "lower_order_final": lower_order_final}
    reached = min(order, 2) if eta or solver_type == "dpmsolver" else order
    return rows.plan(name, space, reached, request, points, options)


SECOND = Option("midpoint", "form of the second-order term", choices=("midpoint", "heun"))
THIRD = Option(
    "taylor",
    "'taylor': the terms of the Taylor expansion; 'dpmsolver': the published update, with half of the second "
    "derivative",
    choices=("taylor", "dpmsolver"),
)
LOWER = Option(False, "lower the order of the last steps when there are fewer than 15")
ALIASES = {
    "dpmpp1_sde": ("dpm++1_sde", "dpmpp_1_sde"),
    "dpmpp2m_sde": ("dpmpp_2m_sde", "dpm++2m_sde", "dpmpp_2m_sde_heun", "sde_dpmsolver++"),
    "dpmpp3m_sde": ("dpmpp_3m_sde", "dpm++3m_sde"),
    "dpm2_sde": ("dpm2m_sde", "sde_dpmsolver"),
    "dpm3_sde": ("dpm3m_sde",),
}


def multistep(name: str, space: str, order: int) -> Method:
    plus = space == "data"
    options = {"eta": ETA, "s_noise": S_NOISE}
    if order > 1:
        options |= {"solver_type": SECOND if order == 2 else THIRD, "lower_order_final": LOWER}
    return Method(
        name=name,
        summary=f"SDE-DPM-Solver{'++' if plus else ''}, multistep, {('first', 'second', 'third')[order - 1]} order",
        paper="Lu et al. 2022b, arXiv 2211.01095",
        order=min(order, 2),
        build=partial(build, name, space, order),
        space=space,
        spacing="karras",
        stochastic=True,
        options=options,
        aliases=ALIASES.get(name, ()),
        good_for=("noise",) if plus else (),
    )


METHODS = (
    multistep("dpmpp1_sde", "data", 1),
    multistep("dpmpp2m_sde", "data", 2),
    multistep("dpmpp3m_sde", "data", 3),
    multistep("dpm1_sde", "noise", 1),
    multistep("dpm2_sde", "noise", 2),
    multistep("dpm3_sde", "noise", 3),
)
