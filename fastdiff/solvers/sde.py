"""Score SDEs (Song et al. 2021, arXiv 2011.13456): their own time, their diffusion, and what a step does."""

from __future__ import annotations

import dataclasses
import math

from fastdiff.schedules import VE, NoiseSchedule, Point, SubVP, VPLinear


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step does to x without the corrector: x' = keep·x + score·m + std·z; and the corrector's alpha."""

    keep: float
    score: float
    std: float
    alpha: float


def sde_time(schedule: NoiseSchedule, p: Point) -> float:
    """The SDE's own time: for VE, sigma = sigma_min·(sigma_max/sigma_min)^time, and its clean end counts as 0."""
    if isinstance(schedule, VE):
        return math.log(p.t / schedule.sigma_min) / log_ratio(schedule) if p.t else 0.0
    return p.t


def log_ratio(schedule: VE) -> float:
    return math.log(schedule.sigma_max / schedule.sigma_min)


def beta_at(schedule: VPLinear, time: float) -> float:
    return schedule.beta_min + time * (schedule.beta_max - schedule.beta_min)


def diffusion(schedule: NoiseSchedule, s: Point, dt: float) -> tuple[float, float] | None:
    """(beta·dt, g²·dt) at s for the three SDEs of the paper (eqs. 30 to 32), else None."""
    if isinstance(schedule, VE):
        return 0.0, 2.0 * s.sigma**2 * log_ratio(schedule) * dt
    if isinstance(schedule, VPLinear):
        b = beta_at(schedule, s.t) * dt
        # 1 − exp(−2·integral of beta) is 1 − alpha⁴.
        return b, b * (1.0 - s.alpha**4) if isinstance(schedule, SubVP) else b
    return None
