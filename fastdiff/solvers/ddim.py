"""DDPM's ancestral sampler and DDIM, on any subsequence of times.

Ho et al. 2020 (arXiv 2006.11239), eqs. 6, 7 and Algorithm 2; Song et al. 2021 (arXiv 2010.02502), eqs. 12 and 16; for a general
(alpha, sigma) as in Kingma et al. 2021 (arXiv 2107.00630), App. A. Both work on the predicted x0, where clipping acts, and where
a last step to sigma = 0 and a first one from alpha = 0 are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fastdiff.plan import Plan
from fastdiff.schedule_base import Point
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request, Row


def fresh(s: Point, t: Point) -> float:
    """The part of sigma_s² that is new since t, the cleaner time: Var(x_s | x_t)/sigma_s² = 1 − exp(−2h), h = lambda_t − lambda_s.

    From h, as the difference of sigma_s² and (alpha_s·sigma_t/alpha_t)² cancels where steps are short.
    """
    return -math.expm1(2.0 * (s.lam - t.lam))


def posterior_std(s: Point, t: Point) -> float:
    """Standard deviation of q(x_t | x_s, x0): the square root of beta-tilde of the subsequence."""
    return t.sigma * math.sqrt(fresh(s, t))


def ddim_row(s: Point, t: Point, eta: float) -> Row:
    """x_t = alpha_t·x0 + sqrt(sigma_t² − std²)·eps + std·noise, with eps = (x − alpha_s·x0)/sigma_s, x0 = m, std = eta·posterior_std."""
    w = fresh(s, t)
    kept = math.sqrt(1.0 - eta**2 * w)
    # 1 − e^(−h)·kept without cancellation: (1 − (1 − w)(1 − eta²·w)) / (1 + e^(−h)·kept).
    gain = w * (1.0 + eta**2 * (1.0 - w)) / (1.0 + math.exp(s.lam - t.lam) * kept)
    return t.sigma / s.sigma * kept * ROW["x"] + t.alpha * gain * ROW["m"] + eta * posterior_std(s, t) * ROW["za"]


def ddpm_row(s: Point, t: Point, std: float) -> Row:
    """The mean of q(x_t | x_s, x0) (eq. 7), with x0 = m, and noise of standard deviation `std`."""
    ratio = s.alpha / t.alpha
    return ratio * (t.sigma / s.sigma) ** 2 * ROW["x"] + t.alpha * fresh(s, t) * ROW["m"] + std * ROW["za"]


def chain(name: str, request: Request, options: dict[str, object], row: Callable[[Point, Point], Row]) -> Plan:
    """One stage a step; `row(s, t)` gives the coefficients."""
    points = request.points()
    rows = Recorder()
    draw = 0
    for i, (s, t) in enumerate(zip(points, points[1:])):
        if s.sigma == 0:
            raise ValueError(f"method {name!r} cannot start at t={s.t:g}, where sigma = 0")
        form = row(s, t)
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
    return chain("ddim", request, {"eta": eta}, lambda s, t: ddim_row(s, t, eta))


def build_ddpm(request: Request, *, variance: str) -> Plan:
    def row(s: Point, t: Point) -> Row:
        if t.sigma == 0:
            return ddpm_row(s, t, 0.0)
        return ddpm_row(s, t, posterior_std(s, t) if variance == "small" else s.sigma * math.sqrt(fresh(s, t)))

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
