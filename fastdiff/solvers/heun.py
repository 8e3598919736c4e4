"""EDM's second-order Heun sampler, with its churn (Karras et al. 2022, arXiv 2206.00364, Algorithms 1 and 2).

It integrates d(x/alpha)/d(sigma/alpha) = eps, so it serves every schedule, and is EDM's own where alpha = 1.
"""

from __future__ import annotations

import math

from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request, Row


def ratio(p: Point) -> float:
    """sigma/alpha: the noise level in EDM's units."""
    if p.alpha == 0:
        raise ValueError(
            f"method 'heun' cannot start at t={p.t:g}, where alpha = 0 (zero terminal SNR): use an earlier t_start"
        )
    return p.sigma / p.alpha


def churned(schedule: NoiseSchedule, p: Point, gamma: float) -> Point:
    """The point with sigma/alpha larger by the factor 1 + gamma (Algorithm 2, line 5)."""
    if gamma == 0:
        return p
    level = ratio(p) * (1.0 + gamma)
    try:
        return schedule.at(float(schedule.inverse_lambda(-math.log(level))))
    except ValueError:
        raise ValueError(
            f"churn at t={p.t:g} raises sigma/alpha to {level:g}, above the schedule's range: use s_tmax < "
            f"{ratio(p):g} (no churn there), or a smaller s_churn"
        ) from None


def build(request: Request, *, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> Plan:
    points = request.points()
    steps = len(points) - 1
    rows = Recorder()
    gamma = min(s_churn / steps, math.sqrt(2.0) - 1.0)

    def entry(i: int) -> tuple[Point, float]:
        """Where step i really begins, with the standard deviation of the noise to add to x/alpha."""
        p = points[i]
        if i == steps or gamma == 0 or not s_tmin <= ratio(p) <= s_tmax:
            return p, 0.0
        hat = churned(request.schedule, p, gamma)
        return hat, s_noise * math.sqrt(ratio(hat) ** 2 - ratio(p) ** 2)

    def lift(row: Row, p: Point, hat: Point, std: float) -> Row:
        """From p to the churned point: x/alpha gains noise.

        The run passes these times again, so the noise is no part of one path: it has no span.
        """
        return hat.alpha / p.alpha * row + hat.alpha * std * ROW["za"]

    start, std = entry(0)
    if start != points[0]:
        rows.add(points[0], start, lift(ROW["x"], points[0], start, std), step=0, evaluate=False)
    for i in range(steps):
        end = points[i + 1]
        width = ratio(end) - ratio(start)
        base = ROW["x"] / start.alpha
        euler = end.alpha * (base + width * ROW["m"])
        following, std = entry(i + 1)
        if end.sigma == 0:
            rows.add(start, end, euler, step=i)
        else:
            rows.add(start, end, euler, ROW["x"], step=i, keep=True)
            heun = end.alpha * (base + width * 0.5 * (ROW["m"] + ROW["h1"]))
            rows.add(end, following, lift(heun, end, following, std), step=i)
        start = following
    options = {
        "s_churn": s_churn,
        "s_tmin": s_tmin,
        "s_tmax": s_tmax if math.isfinite(s_tmax) else None,
        "s_noise": s_noise,
    }
    return rows.plan("heun", "noise", 2, request, points, options)


METHODS = (
    Method(
        name="heun",
        summary="EDM's Heun sampler, deterministic or with churn; two evaluations a step, one in a last step to "
        "sigma = 0",
        paper="Karras et al. 2022, arXiv 2206.00364",
        order=2,
        build=build,
        space="noise",
        spacing="karras",
        nfe_per_step=2,
        options={
            "s_churn": Option(
                0.0, "total churn; each step's noise level grows by min(s_churn/steps, sqrt(2) - 1)", minimum=0.0
            ),
            "s_tmin": Option(0.0, "no churn where sigma/alpha is below", minimum=0.0),
            "s_tmax": Option(math.inf, "no churn where sigma/alpha is above", minimum=0.0),
            "s_noise": Option(1.0, "factor of the churn's noise", minimum=0.0),
        },
        aliases=("edm_heun", "heundiscrete"),
    ),
)
