"""DDPM's ancestral sampler and DDIM, on any subsequence of times.

Ho et al. 2020 (arXiv 2006.11239), eqs. 6, 7 and Algorithm 2; Song et al. 2021 (arXiv 2010.02502), eqs. 12 and 16; for a general
(alpha, sigma) as in Kingma et al. 2021 (arXiv 2107.00630), App. A. Both work on the predicted x0, where clipping acts, and where
a last step to sigma = 0 and a first one from alpha = 0 are finite.
"""

from __future__ import annotations

import math

from fastdiff.plan import Plan
from fastdiff.schedule_base import Point
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request, Row


def transition(s: Point, t: Point) -> tuple[float, float]:
    """(ratio, variance) of q(x_s | x_t) for t cleaner than s: x_s = ratio·x_t + sqrt(variance)·noise."""
    ratio = s.alpha / t.alpha
    return ratio, s.sigma**2 - (ratio * t.sigma) ** 2


def posterior_std(s: Point, t: Point) -> float:
    """Standard deviation of q(x_t | x_s, x0): the square root of beta-tilde of the subsequence."""
    _, variance = transition(s, t)
    return t.sigma / s.sigma * math.sqrt(max(variance, 0.0))


def ddim_row(s: Point, t: Point, std: float) -> Row:
    """x_t = alpha_t·x0 + sqrt(sigma_t² − std²)·eps, with eps = (x − alpha_s·x0)/sigma_s and x0 = m."""
    direction = math.sqrt(max(t.sigma**2 - std**2, 0.0)) / s.sigma
    return direction * ROW["x"] + (t.alpha - direction * s.alpha) * ROW["m"] + std * ROW["za"]


def ddpm_row(s: Point, t: Point, std: float) -> Row:
    """The mean of q(x_t | x_s, x0) (eq. 7), with x0 = m, and noise of standard deviation `std`."""
    ratio, variance = transition(s, t)
    return (ratio * t.sigma**2 * ROW["x"] + t.alpha * variance * ROW["m"]) / s.sigma**2 + std * ROW["za"]


def chain(name: str, request: Request, options: dict[str, object], row: object) -> Plan:
    """One stage a step; `row(s, t)` gives the coefficients."""
    points = request.points()
    rows = Recorder()
    draw = 0
    for i, (s, t) in enumerate(zip(points, points[1:])):
        if s.sigma == 0:
            raise ValueError(f"method {name!r} cannot start at t={s.t:g}, where sigma = 0")
        form = row(s, t)  # type: ignore[operator]
        noisy = bool((ROW["za"] * form).any())
        rows.add(s, t, form, step=i, draws=(draw if noisy else -1, -1, -1))
        draw += noisy
    return Plan(
        method=name,
        space="data",
        order=1,
        times=tuple(p.t for p in points),
        stages=rows.finish(),
        prior_std=request.schedule.prior_std(points[0].t),
        schedule=request.schedule.to_dict(),
        options=options,
    )


def build_ddim(request: Request, *, eta: float) -> Plan:
    return chain("ddim", request, {"eta": eta}, lambda s, t: ddim_row(s, t, eta * posterior_std(s, t)))


def build_ddpm(request: Request, *, variance: str) -> Plan:
    def row(s: Point, t: Point) -> Row:
        if t.sigma == 0:
            return ddpm_row(s, t, 0.0)
        return ddpm_row(s, t, posterior_std(s, t) if variance == "small" else math.sqrt(transition(s, t)[1]))

    return chain("ddpm", request, {"variance": variance}, row)


METHODS = (
    Method(
        name="ddpm",
        summary="DDPM ancestral sampling, with the posterior of the subsequence",
        paper="Ho et al. 2020, arXiv 2006.11239",
        order=1,
        build=build_ddpm,
        space="data",
        spacing="leading",
        stochastic=True,
        options={
            "variance": Option(
                "small",
                "'small': the posterior's (beta-tilde); 'large': beta of the subsequence; no noise at the last step",
                choices=("small", "large"),
            )
        },
        aliases=("ancestral",),
    ),
    Method(
        name="ddim",
        summary="DDIM; eta = 0 is deterministic, eta = 1 is DDPM",
        paper="Song et al. 2021, arXiv 2010.02502",
        order=1,
        build=build_ddim,
        space="data",
        spacing="leading",
        options={"eta": Option(0.0, "noise level, 0 to 1, in units of the posterior's", minimum=0.0, maximum=1.0)},
    ),
)
