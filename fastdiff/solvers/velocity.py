"""Runge-Kutta methods on the velocity: Heun, the midpoint rule and the classical fourth order.

With y = x/(alpha + sigma) and w = sigma/(alpha + sigma) the probability flow ODE is dy/dw = eps − x0 for every
schedule. For flow matching (Lipman et al. 2023, arXiv 2210.02747) w is the time and the network gives the slope; the
ODE is regular at pure noise, alpha = 0, so that the methods start there.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import HISTORY, ROW, Method, Recorder, Request, Row

PAPER = "Lipman et al. 2023, arXiv 2210.02747"


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: shares of the step, rows of slopes (oldest first), weights."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


EULER = Tableau((0.0,), ((),), (1.0,))
HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
MIDPOINT = Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0))
RALSTON = Tableau((0.0, 0.5, 0.75), ((), (0.5,), (0.0, 0.75)), (2 / 9, 1 / 3, 4 / 9))
CLASSICAL = Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def position(p: Point) -> float:
    return p.sigma / (p.alpha + p.sigma)


def between(schedule: NoiseSchedule, s: Point, t: Point, share: float) -> Point:
    """The point at this share of the step in w."""
    if share in (0.0, 1.0):
        return t if share else s
    w = position(s) + share * (position(t) - position(s))
    return schedule.at(float(schedule.inverse_lambda(math.log1p(-w) - math.log(w))))


def advance(rows: Recorder, schedule: NoiseSchedule, s: Point, t: Point, i: int, tableau: Tableau) -> None:
    """One step: a row for each evaluation. The base stays at s until the last."""
    width = position(t) - position(s)

    def reached(p: Point, weights: tuple[float, ...]) -> Row:
        # The newest slope is m, those before h1, h2, ...
        slopes = (ROW["m"], *HISTORY)[: len(weights)][::-1]
        row = ROW["x"] / (s.alpha + s.sigma)
        for weight, slope in zip(weights, slopes, strict=True):
            row = row + width * weight * slope
        return (p.alpha + p.sigma) * row

    places = [between(schedule, s, t, c) for c in tableau.nodes]
    for k, place in enumerate(places[1:]):
        rows.add(places[k], place, reached(place, tableau.rows[k + 1]), ROW["x"], step=i, keep=True)
    rows.add(places[-1], t, reached(t, tableau.weights), step=i)


def family(
    name: str, order: int, tableau: Tableau, last: Tableau, summary: str, aliases: tuple[str, ...], paper: str
) -> Method:
    def build(request: Request) -> Plan:
        points = request.points()
        rows = Recorder()
        for i, (s, t) in enumerate(pairwise(points)):
            # Networks are not asked at sigma = 0. One step of an order less keeps the order of the whole.
            advance(rows, request.schedule, s, t, i, last if t.sigma == 0 else tableau)
        return rows.plan(name, "velocity", order, request, points, {})

    return Method(
        name=name,
        summary=summary,
        paper=paper,
        order=order,
        build=build,
        space="velocity",
        spacing="time_uniform",
        nfe_per_step=len(tableau.nodes),
        aliases=aliases,
        good_for=("flow",),
    )


METHODS = (
    family(
        "velocity_heun",
        2,
        HEUN,
        EULER,
        "Heun's method on the velocity; two evaluations a step, one in a last step to sigma = 0",
        ("flow_heun", "flowmatchheundiscrete"),
        PAPER,
    ),
    family(
        "midpoint",
        2,
        MIDPOINT,
        MIDPOINT,
        "The midpoint rule on the velocity; two evaluations a step",
        ("flow_midpoint",),
        PAPER,
    ),
    family(
        "rk4",
        4,
        CLASSICAL,
        RALSTON,
        "The classical Runge-Kutta method on the velocity; four evaluations a step, three in a last step to sigma = 0",
        ("flow_rk4",),
        "Kutta 1901; " + PAPER,
    ),
)
