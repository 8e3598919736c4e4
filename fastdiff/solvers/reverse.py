"""One step of the reverse SDE, and one step that goes down and noises again: what the stochastic solvers are made of.

With y = x/alpha and r = sigma/alpha the reverse SDE is dy = (1 + eta)·eps·dr + sqrt(2·eta·r)·dW, dr < 0. It has the
marginals of the forward process for every eta >= 0: eta = 0 is the probability flow, eta = 1 the SDE of Song et al.
2021 (arXiv 2011.13456, eq. 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdiff.plan.phi import phi
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import ROW, Draw, Option, Row, finite
from fastdiff.solvers.ddim import fresh

S_NOISE = Option(1.0, "factor of the noise", minimum=0.0)
ETA = Option(1.0, "noise of the reverse SDE; 0 gives the ODE method", minimum=0.0)


def check_start(method: str, s: Point, space: str = "data") -> None:
    """ValueError where a step begins without noise, or in noise space without signal."""
    if s.sigma == 0:
        raise ValueError(f"method {method!r} cannot start at t={s.t:g}, where sigma = 0: use an earlier t_start")
    if space == "noise" and s.alpha == 0:
        raise ValueError(
            f"method {method!r} cannot start at t={s.t:g}, where alpha = 0 (zero terminal SNR): use a data-prediction "
            "one (dpmpp2m_sde, seeds_2, ...) or an earlier t_start"
        )


class Reverse:
    """The exponential integrator of the reverse SDE from s to t: x_t = decay·x + gain(1)·m + gain(2)·h·m' + … + noise.

    In data space with H = (1 + eta)·h, h = lambda_t − lambda_s: decay = sigma_t/sigma_s·exp(−eta·h), gain(k) =
    alpha_t·H·phi_k(−H), and noise of variance sigma_t²·(1 − exp(−2·eta·h)). In noise space: decay = alpha_t/alpha_s,
    gain(k) = −(1 + eta)·sigma_t·h·phi_k(h), and sigma_t²·eta·(exp(2h) − 1). Lu et al. 2022b, arXiv 2211.01095, App. D.

    A step to sigma = 0 or from alpha = 0 is infinitely long and of first order. To sigma = 0 the result is the
    predicted x0; from alpha = 0, where x is all noise, eta > 0 exchanges it all.

    The points may be columns (`solvers.base.multistep_rows`), for all but `parts`.
    """

    def __init__(self, space: str, s: Point, t: Point, eta: float) -> None:
        self.space, self.s, self.t, self.eta = space, s, t, eta
        self.h = t.lam - s.lam
        self.stretched = (1.0 + eta) * self.h
        self.finite = finite(self.h)
        """Whether h is finite, so that orders above 1 exist."""
        if space == "noise":
            self.decay = t.alpha / s.alpha
        elif not self.finite:
            # To sigma = 0 this is 0 too.
            self.decay = 0.0 if eta > 0 else t.sigma / s.sigma
        else:
            self.decay = t.sigma / s.sigma * np.exp(-eta * self.h)

    def gain(self, k: int) -> float:
        """The coefficient of the k-th term."""
        s, t = self.s, self.t
        if not self.finite:
            return t.alpha - self.decay * s.alpha if self.space == "data" else t.sigma - t.alpha * s.sigma / s.alpha
        if self.space == "noise":
            return -(1.0 + self.eta) * t.sigma * self.h * phi(k, self.h)
        return t.alpha * self.stretched * phi(k, -self.stretched)

    def first(self, x: Row, m: Row) -> Row:
        """The first-order mean."""
        return self.decay * x + self.gain(1) * m

    def taylor(self, x: Row, m: Row, *d: Row) -> Row:
        """d[k−1] ≈ h^k times the k-th derivative of m with respect to lambda."""
        return self.first(x, m) + sum((self.gain(k + 2) * dk for k, dk in enumerate(d)), np.zeros_like(x))

    def midpoint(self, x: Row, m: Row, d1: Row) -> Row:
        """Second order with half of gain(1) in the place of gain(2), as published."""
        return self.first(x, m) + 0.5 * self.gain(1) * d1

    def parts(self, nodes: Sequence[Point]) -> list[float]:
        """Standard deviations at t of the noise of each interval between s = nodes[0], nodes[1], … and t, which are
        independent: together that of the whole step."""
        if not self.finite:
            return [self.t.sigma if self.t.sigma > 0 and self.eta > 0 else 0.0] + [0.0] * (len(nodes) - 1)
        ends = [*nodes[1:], self.t]
        made = []
        for a, b in zip(nodes, ends, strict=True):
            rest, width = self.t.lam - b.lam, b.lam - a.lam
            if self.space == "noise":
                made.append(self.t.sigma * math.sqrt(self.eta * math.expm1(2.0 * width)) * math.exp(rest))
            else:
                made.append(self.t.sigma * math.exp(-self.eta * rest) * math.sqrt(-math.expm1(-2.0 * self.eta * width)))
        return made


class Ancestral:
    """A deterministic step below t, to a level that is cleaner, and from there noise up to t.

    Attributes:
        lam: lambda of the lower level; inf where it is clean.
        ratio: its sigma/alpha.
        std: standard deviation of the noise, of x.

    `rule` says how far down. "variance": so that the noise is eta times that of the forward process' posterior
    (Karras et al.'s r = sigma/alpha: r_down² = r_t²·(1 − eta²·(1 − r_t²/r_s²)); Song et al. 2021, arXiv 2010.02502,
    eq. 16). "flow": sigma_down = sigma_t·(1 + eta·(sigma_t/sigma_s − 1)), for schedules with alpha + sigma = 1. Noise
    from any level up to t keeps the marginals: x_t = (alpha_t/alpha_down)·x_down + std·z with std² = sigma_t² −
    (alpha_t·sigma_down/alpha_down)².
    """

    def __init__(self, s: Point, t: Point, eta: float, rule: str) -> None:
        self.s, self.t = s, t
        if t.sigma == 0:
            self.lam, self.ratio, self.std = math.inf, 0.0, 0.0
        elif eta == 0:
            # Upwards alpha may be 0.
            self.lam, self.ratio, self.std = t.lam, t.sigma / t.alpha if t.alpha else math.inf, 0.0
        elif rule == "variance":
            share = min(1.0, eta**2 * fresh(s, t))
            self.lam = math.inf if share == 1.0 else t.lam - 0.5 * math.log1p(-share)
            self.ratio = math.exp(-self.lam)
            self.std = t.sigma * math.sqrt(share)
        else:
            sigma = max(t.sigma * (1.0 + eta * (t.sigma / s.sigma - 1.0)), 0.0)
            self.ratio = sigma / (1.0 - sigma)
            self.lam = -math.log(self.ratio) if sigma else math.inf
            self.std = math.sqrt(max(t.sigma**2 - (t.alpha * self.ratio) ** 2, 0.0))

    @property
    def h(self) -> float:
        """The width of the deterministic step in lambda."""
        return self.lam - self.s.lam

    @property
    def decay(self) -> float:
        """The coefficient of x on the way down and up again, in data space."""
        return self.t.alpha * self.ratio / self.s.sigma

    def data(self, x: Row, m: Row) -> Row:
        """The first-order step with m = x0."""
        if self.t.alpha == 0:
            return self.t.sigma / self.s.sigma * (x - self.s.alpha * m)
        return self.decay * x - self.t.alpha * math.expm1(-self.h) * m

    def noise(self, x: Row, m: Row) -> Row:
        """The first-order step with m = eps."""
        s = self.s
        return self.t.alpha * (x / s.alpha + (self.ratio - s.sigma / s.alpha) * m)


def rule_of(schedule: NoiseSchedule, asked: str) -> str:
    """How far an ancestral step goes down where the user leaves it to the schedule.

    Raises:
        ValueError: "flow" on a schedule whose alpha and sigma do not add up to 1.
    """
    if asked == "auto":
        return "flow" if schedule.kind == "flow" else "variance"
    if asked == "flow" and schedule.kind != "flow":
        raise ValueError(
            f"down='flow' is for schedules with alpha + sigma = 1, and the schedule is {schedule!r}: use "
            "down='variance' or schedule='flow'"
        )
    return asked


DOWN = Option(
    "auto",
    "how far a step goes down before it noises again: 'variance': so that the noise is eta times the posterior's; "
    "'flow': sigma_t·(1 + eta·(sigma_t/sigma_s − 1)); 'auto': 'flow' on flow schedules, else 'variance'",
    choices=("auto", "variance", "flow"),
)


def at_lambda(schedule: NoiseSchedule, lam: float) -> Point:
    """The schedule where log(alpha/sigma) is `lam`."""
    return schedule.at(float(schedule.inverse_lambda(lam)))


def at_sigma(schedule: NoiseSchedule, sigma: float) -> Point:
    """A flow schedule where sigma is that, 0 < sigma <= 1, and alpha = 1 - sigma."""
    return at_lambda(schedule, math.log1p(-sigma) - math.log(sigma) if sigma < 1.0 else -math.inf)


def path(nodes: Sequence[Point], t: Point) -> tuple[Draw, ...]:
    """One draw for each interval between the nodes and t."""
    return tuple(Draw(a, b) for a, b in zip(nodes, [*nodes[1:], t], strict=True))


def noisy(row: Row, stds: Sequence[float]) -> Row:
    """The row with za, zb and zc of these standard deviations."""
    return row + sum((std * ROW[name] for name, std in zip(("za", "zb", "zc"), stds, strict=False)), np.zeros_like(row))
