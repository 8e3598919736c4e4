"""What the solvers of d(x/alpha)/d(sigma/alpha) = eps share: the noise level, a step with a given slope, and churn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import ROW, Option, Row


def level(p: Point, method: str) -> float:
    """sigma/alpha: the noise level in EDM's units."""
    if p.alpha == 0:
        raise ValueError(
            f"method {method!r} cannot start at t={p.t:g}, where alpha = 0 (zero terminal SNR): use an earlier t_start"
        )
    return p.sigma / p.alpha


def levels(points: Sequence[Point], method: str) -> list[float]:
    """The noise level at each point."""
    return [level(p, method) for p in points]


def at_level(schedule: NoiseSchedule, value: float) -> Point:
    """The schedule where sigma/alpha is `value`; ValueError where it never is."""
    return schedule.at(float(schedule.inverse_lambda(-math.log(value))))


def moved(x: Row, s: Point, t: Point, change: Row) -> Row:
    """x taken from s to t, where x/alpha grows by `change`."""
    return t.alpha * (x / s.alpha + change)


def straight(x: Row, s: Point, t: Point, slope: Row) -> Row:
    """The step from s to t along one slope: Euler's where it is the model value at s."""
    return moved(x, s, t, (t.sigma / t.alpha - s.sigma / s.alpha) * slope)


@dataclass(frozen=True)
class Churn:
    """EDM's churn (Karras et al. 2022, arXiv 2206.00364, Algorithm 2, lines 4 to 6): noise before a step."""

    method: str
    schedule: NoiseSchedule
    gamma: float
    """Each step's level grows by the factor 1 + gamma."""
    s_tmin: float
    s_tmax: float
    s_noise: float

    def entry(self, p: Point) -> tuple[Point, float]:
        """Where a step from p really begins, with the standard deviation of the noise to add to x/alpha."""
        before = level(p, self.method)
        if self.gamma == 0 or not self.s_tmin <= before <= self.s_tmax:
            return p, 0.0
        raised = before * (1.0 + self.gamma)
        try:
            hat = at_level(self.schedule, raised)
        except ValueError:
            raise ValueError(
                f"churn at t={p.t:g} raises sigma/alpha to {raised:g}, above the schedule's range: use s_tmax < "
                f"{before:g} (no churn there), or a smaller s_churn"
            ) from None
        return hat, self.s_noise * math.sqrt(level(hat, self.method) ** 2 - before**2)


def lift(row: Row, p: Point, hat: Point, std: float) -> Row:
    """From p to the churned point: x/alpha gains noise.

    The run passes these times again, so the noise is no part of one path: it has no span.
    """
    return hat.alpha / p.alpha * row + hat.alpha * std * ROW["za"]


CHURN: Mapping[str, Option] = {
    "s_churn": Option(
        0.0, "total churn; each step's noise level grows by min(s_churn/steps, sqrt(2) - 1)", minimum=0.0
    ),
    "s_tmin": Option(0.0, "no churn where sigma/alpha is below", minimum=0.0),
    "s_tmax": Option(math.inf, "no churn where sigma/alpha is above", minimum=0.0),
    "s_noise": Option(1.0, "factor of the churn's noise", minimum=0.0),
}


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a plan keeps them: JSON has no infinity."""
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in options.items()}
