"""score_sde's own discretisations (Song et al. 2021, arXiv 2011.13456), as its published program has them.

They are choices of the options `discretization` of method "pc" and `denoise_to_zero` of method "ode".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastdiff.schedules import VE, NoiseSchedule, Point, SubVP, VPLinear
from fastdiff.solvers.base import Request
from fastdiff.solvers.sde import Step, beta_at, diffusion, log_ratio, sde_time


def published_steps(request: Request, predictor: str, corrector: str, points: Sequence[Point]) -> list[Step]:
    """The steps as the published code discretises them: N steps of the SDE's time, each 1/N of the whole.

    Where betas or sigmas come from a table of N values, at equally spaced times from 0 to the start, a step takes the
    entry at or below its time. The grid's own times end at eps, so that step i takes entry N − 1 − i + floor(i·eps).
    """
    schedule, first = request.schedule, points[0]
    if not isinstance(schedule, VE | VPLinear):
        raise ValueError(
            f"discretization='score_sde' is for ve, vp_linear and subvp, and the schedule is {schedule!r}: use "
            "discretization='exact', which is the published one on all times of a discrete schedule"
        )
    if request.spacing != "sde_uniform" or points[-1].t != schedule.t_clean:
        call = "spacing='sde_uniform'"
        if request.spacing == "sde_uniform":
            call = f"t_end={points[-1].t:g} with final='clean', which is the published eps"
        raise ValueError(
            "discretization='score_sde' is N equal steps of the SDE's time to its clean end; got "
            f"spacing={request.spacing!r} from {first.t:g} to {points[-1].t:g}: use {call}, or discretization='exact'"
        )
    steps = len(points) - 1
    start = sde_time(schedule, points[0])
    dt = start / steps
    # 1e-9: rounding may put the time of an entry below it.
    entries = [math.floor(sde_time(schedule, s) / start * (steps - 1) + 1e-9) for s in points[:-1]]
    nodes = [start * j / (steps - 1) if steps > 1 else start for j in entries]
    lower = [start * (j - 1) / (steps - 1) if j > 0 else None for j in entries]
    result = []
    for i, s in enumerate(points[:-1]):
        alpha = 1.0 - forward_beta(schedule, nodes[i], dt)
        if alpha <= 0 and (corrector != "none" or (predictor != "euler_maruyama" and not isinstance(schedule, SubVP))):
            raise ValueError(
                f"discretization='score_sde' with steps={steps}: beta·dt = {1.0 - alpha:.3g} at step {i} is not below "
                "1, and the published update takes the square root of 1 - beta·dt: use more steps, or "
                "discretization='exact'"
            )
        result.append(published_step(predictor, schedule, s, dt, nodes[i], lower[i]))
    return result


def published_step(
    predictor: str, schedule: NoiseSchedule, s: Point, dt: float, node: float, below: float | None
) -> Step:
    """One step of the SDE's time `dt` from s. `node` and `below` are the times of this step's entry in the published
    tables and of the entry under it; None: there is none, sigma = 0."""
    drift = diffusion(schedule, s, dt)
    assert drift is not None
    b, v = drift
    beta = forward_beta(schedule, node, dt)
    alpha = 1.0 - beta
    keep, std = 1.0 + 0.5 * b, math.sqrt(v)
    if predictor == "euler_maruyama" or isinstance(schedule, SubVP):
        pass
    elif isinstance(schedule, VE):
        here, low = sigma_at(schedule, node), 0.0 if below is None else sigma_at(schedule, below)
        v = (here - low) * (here + low)
        keep, std = 1.0, (low / here if predictor == "ancestral" else 1.0) * math.sqrt(v)
    else:
        r, v, std = math.sqrt(alpha), beta, math.sqrt(beta)
        keep, v = (1.0 / r, v / r) if predictor == "ancestral" else (2.0 - r, v)
    return Step(keep, v, std, alpha)


def forward_beta(schedule: NoiseSchedule, time: float, dt: float) -> float:
    return beta_at(schedule, time) * dt if isinstance(schedule, VPLinear) else 0.0


def sigma_at(schedule: VE, time: float) -> float:
    return schedule.sigma_min * math.exp(log_ratio(schedule) * time)


def published_denoising(schedule: NoiseSchedule, p: Point, steps: int) -> Step:
    """The step of 1/steps of the SDE's time by which score_sde denoises the ODE's result at p: reverse diffusion
    without its noise (Song et al. 2021, eq. 46), from the table of `steps` values at or below p's time."""
    if not isinstance(schedule, VE | VPLinear):
        raise ValueError(
            f"denoise_to_zero='score_sde' is for ve, vp_linear and subvp, and the schedule is {schedule!r}: use "
            "denoise_to_zero=True, the predicted x0"
        )
    # VE's time comes back from sigma by a logarithm. The time of an entry must not round to the entry below.
    index = min(math.floor(sde_time(schedule, p) * (steps - 1) + 1e-9 * steps), steps - 1)
    nodes = [i / (steps - 1) if steps > 1 else 0.0 for i in (index, index - 1)]
    beta = forward_beta(schedule, nodes[0], 1.0 / steps)
    if beta >= 1 and not isinstance(schedule, SubVP):
        raise ValueError(
            f"denoise_to_zero='score_sde' with sde_steps={steps}: beta/N = {beta:.3g} at t={p.t:g} is not below 1, and "
            "the published step takes the square root of 1 - beta/N: use the N of the network's SDE (sde_steps=1000)"
        )
    return published_step("reverse_diffusion", schedule, p, 1.0 / steps, nodes[0], nodes[1] if index > 0 else None)
