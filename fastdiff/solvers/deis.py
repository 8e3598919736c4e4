"""DEIS: the exponential integrator with the noise extrapolated by polynomials (Zhang and Chen 2022, arXiv 2204.13902).

x/alpha grows by the integral of eps over sigma/alpha. tAB (eq. 15) extrapolates eps in the time of the schedule, rho-AB
(section 4) in sigma/alpha, log-rho-AB in its logarithm (as diffusers has it). The weights of rho-AB are those of lms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.adams import adams_bashforth, combined, lagrange
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request, orders_of
from fastdiff.solvers.level import levels, moved

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
PANELS = 8
"""Parts of a step in lambda, where the integrand is smooth. Of discrete schedules the knots divide it as well."""


def panels(schedule: NoiseSchedule, s: Point, t: Point) -> NDArray[np.float64]:
    """The ends of the parts, in lambda, in the order of the step."""
    ends = np.linspace(s.lam, t.lam, PANELS + 1)
    if schedule.discrete:
        # alpha is interpolated between whole times: its slope jumps there.
        low, high = min(s.t, t.t), max(s.t, t.t)
        knots = np.arange(np.ceil(low), np.floor(high) + 1.0)
        ends = np.union1d(ends, schedule.lam(knots[(knots > low) & (knots < high)]))
    return ends if ends[0] == s.lam else ends[::-1]


def weights(form: str, schedule: NoiseSchedule, nodes: Sequence[Point], t: Point, method: str) -> NDArray[np.float64]:
    """The integrals over sigma/alpha, from nodes[0] to t, of the Lagrange polynomials in the variable of `form`."""
    r = levels(nodes, method)
    if len(nodes) == 1 or form == "rhoab":
        return adams_bashforth(r, levels([t], method)[0])
    ends = panels(schedule, nodes[0], t)
    half = 0.5 * np.diff(ends)
    lam = ends[:-1, None] + half[:, None] * (1.0 + NODES)
    # d(sigma/alpha) = −exp(−lambda) dlambda.
    measure = -np.exp(-lam) * half[:, None] * WEIGHTS
    if form == "logrho":
        return (lagrange([-p.lam for p in nodes], -lam) * measure).sum(axis=(1, 2))
    return (lagrange([p.t for p in nodes], schedule.inverse_lambda(lam)) * measure).sum(axis=(1, 2))


def build(request: Request, *, order: int, form: str, lower_order_final: bool) -> Plan:
    points = request.points()
    steps = len(points) - 1
    rows = Recorder()
    for i, available in enumerate(orders_of(order, steps, lower_order_final and steps < 15)):
        s, t = points[i], points[i + 1]
        if t.sigma == 0 or s.sigma == 0:
            # lambda is infinite there.
            available = 1
        nodes = [p for p in points[i::-1][:available] if p.sigma > 0] or [s]
        change = combined(weights(form, request.schedule, nodes, t, "deis"))
        rows.add(s, t, moved(ROW["x"], s, t, change), step=i, keep=True)
    options = {"order": order, "form": form, "lower_order_final": lower_order_final}
    return rows.plan("deis", "noise", order, request, points, options)


METHODS = (
    Method(
        name="deis",
        summary="DEIS: exponential integrator, multistep of orders 1 to 4 in time, in sigma/alpha or in its logarithm",
        paper="Zhang and Chen 2022, arXiv 2204.13902",
        order=3,
        build=build,
        space="noise",
        spacing="time_quadratic",
        options={
            "order": Option(3, "order; the first steps have fewer values", choices=(1, 2, 3, 4)),
            "form": Option(
                "tab",
                "variable of the polynomial: 'tab': the schedule's time; 'rhoab': sigma/alpha; 'logrho': its logarithm",
                choices=("tab", "rhoab", "logrho"),
            ),
            "lower_order_final": Option(False, "lower the order of the last steps when there are fewer than 15"),
        },
        aliases=("deismultistep",),
        good_for=("few",),
    ),
)
