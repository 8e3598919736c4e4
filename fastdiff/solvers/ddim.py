"""DDPM's ancestral sampler and DDIM, on any subsequence of times.

Ho et al. 2020 (arXiv 2006.11239), eqs. 6, 7 and Algorithm 2; Song et al. 2021 (arXiv 2010.02502), eqs. 12 and 16; for a
general (alpha, sigma) as in Kingma et al. 2021 (arXiv 2107.00630), App. A. Both work on the predicted x0, where
clipping acts, and where a last step to sigma = 0 and a first one from alpha = 0 are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

from fastdiff.plan import ZA, Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import ROW, Draw, DrawsNoise, Method, Option, Recorder, Request, Row


def fresh(s: Point, t: Point) -> float:
    """The part of sigma_s² that is new since t, the cleaner time: Var(x_s | x_t)/sigma_s² = 1 − exp(−2h), h =
    lambda_t − lambda_s.

    From h, as the difference of sigma_s² and (alpha_s·sigma_t/alpha_t)² cancels where steps are short.
    """
    return -math.expm1(2.0 * (s.lam - t.lam))


def posterior_std(s: Point, t: Point) -> float:
    """Standard deviation of q(x_t | x_s, x0): the square root of beta-tilde of the subsequence."""
    return t.sigma * math.sqrt(fresh(s, t))


def check_downward(request: Request, method: str) -> None:
    """Raise for an upward request of a chain that draws noise: towards noise there is no posterior."""
    if request.upward:
        raise DrawsNoise(method)


def ddim_row(s: Point, t: Point, eta: float) -> Row:
    """x_t = alpha_t·x0 + sqrt(sigma_t² − std²)·eps + std·noise, with eps = (x − alpha_s·x0)/sigma_s, x0 = m,
    std = eta·posterior_std."""
    if t.alpha == 0:
        # Upwards, into pure noise.
        return t.sigma / s.sigma * (ROW["x"] - s.alpha * ROW["m"])
    w = fresh(s, t)
    kept = math.sqrt(1.0 - eta**2 * w)
    # 1 − e^(−h)·kept without cancellation: (1 − (1 − w)(1 − eta²·w)) / (1 + e^(−h)·kept).
    gain = w * (1.0 + eta**2 * (1.0 - w)) / (1.0 + math.exp(s.lam - t.lam) * kept)
    mean = t.sigma / s.sigma * kept * ROW["x"] + t.alpha * gain * ROW["m"]
    # Upwards, from data to noise, there is no posterior, and eta is 0.
    return mean + eta * posterior_std(s, t) * ROW["za"] if eta else mean


def ddpm_row(s: Point, t: Point, std: float) -> Row:
    """The mean of q(x_t | x_s, x0) (eq. 7), with x0 = m, and noise of standard deviation `std`."""
    ratio = s.alpha / t.alpha
    return ratio * (t.sigma / s.sigma) ** 2 * ROW["x"] + t.alpha * fresh(s, t) * ROW["m"] + std * ROW["za"]


def chain(
    name: str,
    request: Request,
    options: Mapping[str, object],
    row: Callable[[Point, Point], Row],
) -> Plan:
    """One stage a step; `row(s, t)` gives the coefficients."""
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        if s.sigma == 0:
            raise ValueError(f"method {name!r} cannot start at t={s.t:g}, where sigma = 0")
        rows.add(s, t, row(s, t), step=i, noise=(Draw(s, t),))
    return rows.plan(name, "data", 1, request, points, options)


def build_ddim(request: Request, *, eta: float, use_clipped_model_output: bool) -> Plan:
    if eta:
        check_downward(request, "ddim")
    options = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
    return chain("ddim", request, options, lambda s, t: ddim_row(s, t, eta))


def build_pf_euler(request: Request) -> Plan:
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        if s.alpha == 0:
            raise ValueError(
                f"method 'pf_euler' cannot start at t={s.t:g}, where alpha = 0 (zero terminal SNR): use ddim, the same "
                "map written for x0, or an earlier t_start"
            )
        # d(x/alpha) = eps·d(sigma/alpha).
        width = t.sigma / t.alpha - s.sigma / s.alpha
        rows.add(s, t, t.alpha * (ROW["x"] / s.alpha + width * ROW["m"]), step=i)
    return rows.plan("pf_euler", "noise", 1, request, points, {})


def beta(s: Point, t: Point) -> float:
    """Variance of q(x_s | x_t), t the cleaner time: the subsequence's beta."""
    return s.sigma**2 * fresh(s, t)


def build_ddpm(request: Request, *, variance: str) -> Plan:
    check_downward(request, "ddpm")
    points = request.points()
    following = dict(zip(points[1:], points, strict=False))

    def row(s: Point, t: Point) -> Row:
        if t.sigma == 0:
            return ddpm_row(s, t, 0.0)
        if variance in LEARNED:
            return ddpm_row(s, t, 1.0)
        return ddpm_row(s, t, posterior_std(s, t) if variance == "small" else math.sqrt(beta(s, t)))

    def learned(s: Point, t: Point) -> tuple[float, ...]:
        """c0 and c1 of log std = c0 + c1·v."""
        if variance == "learned":
            return 0.0, 0.5
        high, low = math.log(beta(s, t)), math.log(clipped_variance(following.get(s), s, t))
        return 0.25 * (high + low), 0.25 * (high - low)

    plan = chain("ddpm", request, {"variance": variance}, row)
    if variance not in LEARNED:
        return plan
    steps = zip(plan.stages, points, points[1:], strict=False)
    return replace(plan, stages=tuple(replace(stage, learned_variance=learned(s, t)) for stage, s, t in steps))


def clipped_variance(before: Point | None, s: Point, t: Point) -> float:
    """beta-tilde of the step from s to t; where it is 0, in the last step, that of the step before, which came from
    `before` (Ho et al.'s code; log needs it)."""
    if t.sigma > 0:
        return posterior_std(s, t) ** 2
    return beta(s, t) if before is None else posterior_std(before, s) ** 2


def step_variances(plan: Plan) -> tuple[float, ...] | None:
    """The variance of each reverse step's noise, where the plan states it: DDPM's, else None.

    With learned variances 1, which the network's are factors of. The last step draws no noise, and has a variance all
    the same, which the mean form of classifier guidance and the variational bound use.
    """
    if plan.method != "ddpm":
        return None
    variance = plan.options.get("variance", "small")
    if plan.learned_variance:
        return (1.0,) * len(plan.stages)
    schedule = NoiseSchedule.from_dict(plan.schedule)
    points = [schedule.at(t) for t in plan.times]
    made = []
    for k, stage in enumerate(plan.stages):
        s, t = points[k], points[k + 1]
        last = 0.0 if variance == "small" else clipped_variance(points[k - 1] if k else None, s, t)
        made.append(stage.next_u[ZA] ** 2 if t.sigma > 0 else last)
    return tuple(made)


LEARNED = ("learned_range", "learned")
CLIPPED_OUTPUT = Option(
    True,
    "whether eps is taken again from the clipped x0, so that the two still make up x; False: the network's eps stays "
    "(with correct_x0, that of the corrected x0), as in diffusers (its default) and Analytic-DPM's program",
)

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
                "'small': the posterior's (beta-tilde); 'large': beta of the subsequence; 'learned_range': between the "
                "two as the second half of the network's channels says, (v + 1)/2 in the logarithm; 'learned': exp of "
                "that half; no noise at the last step",
                choices=("small", "large", *LEARNED),
            )
        },
        aliases=("ddpmparallel",),
        good_for=("noise",),
    ),
    Method(
        name="ddim",
        summary="DDIM; eta = 0 is deterministic, eta = 1 is DDPM",
        paper="Song et al. 2021, arXiv 2010.02502",
        order=1,
        build=build_ddim,
        space="data",
        spacing="leading",
        options={
            "eta": Option(0.0, "noise level, 0 to 1, in units of the posterior's", minimum=0.0, maximum=1.0),
            "use_clipped_model_output": CLIPPED_OUTPUT,
        },
        # Euler's method on d(x/alpha)/d(sigma/alpha) = eps, and on the velocity's ODE, is exactly this update.
        aliases=("euler", "eulerdiscrete", "flowmatcheulerdiscrete", "ddimparallel"),
        good_for=("flow", "video"),
    ),
    Method(
        name="pf_euler",
        summary="The probability-flow ODE by Euler's method in sigma/alpha; the same numbers as ddim with eta = 0",
        paper="Song et al. 2021, arXiv 2010.02502, eqs. 14 and 15",
        order=1,
        build=build_pf_euler,
        space="noise",
        spacing="leading",
    ),
)
