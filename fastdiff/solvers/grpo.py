"""Steps for reinforcement learning: stochastic steps of a flow, of one evaluation each, with a density of transitions.

`grpo` is the step of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470, eqs. 8 and 9): Euler-Maruyama on the reverse SDE
with the noise sigma_t = a·sqrt(t/(1 − t)), where x = (1 − t)·x0 + t·eps. `cps` is coefficient-preserving sampling
(Wang and Yu 2025, arXiv 2509.05952): the noise takes the place of a part of the predicted eps, so that every state has
exactly the noise level of its time. For other schedules both are taken at t = sigma/(alpha + sigma), where
x/(alpha + sigma) is such a flow.
"""

from __future__ import annotations

import math
from itertools import pairwise

from fastdiff.plan import Plan
from fastdiff.schedules import Point
from fastdiff.solvers.base import ROW, Draw, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import check_downward


def _sde(s: Point, t: Point, eta: float) -> Row:
    """From s to t with m = x0. At t = 1, where the noise would be infinite, it is taken at the next time, as the
    authors' program does."""
    size, after = s.alpha + s.sigma, t.alpha + t.sigma
    now, then = s.sigma / size, t.sigma / after
    data = s.alpha / size
    std = eta * math.sqrt(now / (data if data > 0 else t.alpha / after))
    # v = (y − x0)/t of y = x/size; the drift is v + std²/(2t)·(y + (1 − t)·v).
    y, width = ROW["x"] / size, then - now
    v = (y - ROW["m"]) / now
    moved = y + width * (v + std**2 / (2 * now) * (y + data * v))
    return after * (moved + std * math.sqrt(-width) * ROW["za"])


def _cps(s: Point, t: Point, eta: float) -> Row:
    """From s to t with m = x0: eps is turned towards fresh noise by the angle eta·pi/2 (eq. 13)."""
    eps = (ROW["x"] - s.alpha * ROW["m"]) / s.sigma
    angle = 0.5 * math.pi * eta
    # cos(pi/2) is not 0 in floating point.
    kept = 0.0 if eta == 1.0 else math.cos(angle)
    return t.alpha * ROW["m"] + t.sigma * (kept * eps + math.sin(angle) * ROW["za"])


def _build(request: Request, name: str, eta: float) -> Plan:
    if eta:
        check_downward(request, name)
    points, rows = request.points(), Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        if s.sigma == 0:
            raise ValueError(f"method {name!r} cannot start at t={s.t:g}, where sigma = 0")
        row = _sde(s, t, eta) if name == "grpo" else _cps(s, t, eta)
        rows.add(s, t, row, step=i, noise=(Draw(s, t),))
    return rows.plan(name, "data", 1, request, points, {"eta": eta})


def build_sde(request: Request, *, eta: float) -> Plan:
    return _build(request, "grpo", eta)


def build_cps(request: Request, *, eta: float) -> Plan:
    return _build(request, "cps", eta)


METHODS = (
    Method(
        name="grpo",
        summary="Flow-GRPO's SDE step, for reinforcement learning",
        paper="Liu et al. 2025, arXiv 2505.05470",
        order=1,
        build=build_sde,
        space="data",
        spacing="time_uniform",
        stochastic=True,
        options={
            "eta": Option(0.7, "noise level a of sigma_t = a·sqrt(t/(1 − t)); 0 is Euler's ODE step", minimum=0.0)
        },
        aliases=("flow_grpo", "flow_sde"),
        good_for=("flow", "rl"),
    ),
    Method(
        name="cps",
        summary="Coefficient-preserving sampling, for reinforcement learning",
        paper="Wang and Yu 2025, arXiv 2509.05952",
        order=1,
        build=build_cps,
        space="data",
        spacing="time_uniform",
        stochastic=True,
        options={"eta": Option(0.7, "noise sin(eta·pi/2) of each next sigma; 0 is ddim", minimum=0.0, maximum=1.0)},
        aliases=("flow_cps",),
        good_for=("flow", "rl"),
    ),
)
