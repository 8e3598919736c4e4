"""Analytic-DPM: DDPM and DDIM with the optimal variance of the reverse steps, on any subsequence of times.

Bao et al. 2022 (arXiv 2201.06503), Theorem 1. A reverse step draws x_t from a Gaussian around mean(x_s, x0-hat);
q(x_t | x_s) also spreads because x0 is not known, so by the law of total variance the best isotropic variance is

    std² = lambda² + c²·v,    v = E Var(x0 | x_s) / d = (sigma_s/alpha_s)²·(1 − Gamma),

with lambda² the variance of q(x_t | x_s, x0) and c the coefficient of x0 in its mean: the paper's formula for a general
(alpha, sigma).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastdiff.names import unknown
from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import ROW, Method, Option, Request, Row
from fastdiff.solvers.ddim import CLIPPED_OUTPUT, chain, check_downward, ddim_row, ddpm_row, posterior_std
from fastdiff.solvers.gamma import Gamma

BOUNDS = ("upper", "lower")


@dataclasses.dataclass(frozen=True)
class GammaOption(Option):
    """A `Gamma`, its file, a mapping of times to values, or a bound of Theorem 2 by name."""

    def settled(self, value: Any) -> Any:
        named = isinstance(value, str | os.PathLike) and str(value).endswith((".json", ".safetensors"))
        return Gamma.load(str(value)) if named else value

    def check(self, method: str, name: str, value: Any) -> Gamma | str:
        if isinstance(value, Gamma) or (isinstance(value, str) and value in BOUNDS):
            return value
        if isinstance(value, Mapping):
            return Gamma.of(value)
        if isinstance(value, str | os.PathLike):
            if not str(value).endswith((".json", ".safetensors")):
                names = [*BOUNDS, "a file ending in .json or .safetensors"]
                raise ValueError(unknown(f"{name} of method {method!r}:", str(value), names))
            return Gamma.load(str(value))
        raise TypeError(
            f"{name}={value!r}: method {method!r} expects what fastdiff.analytic.estimate_gamma returns, its file, "
            f"a mapping {{time: Gamma}}, 'upper' or 'lower' ({name}=fastdiff.analytic.estimate_gamma(model, data))"
        )


@dataclasses.dataclass(frozen=True)
class RangeOption(Option):
    """(lo, hi), or None for data without bounds."""

    def check(self, method: str, name: str, value: Any) -> tuple[float, float] | None:
        if value is None:
            return None
        try:
            lo, hi = (float(v) for v in value)
        except (TypeError, ValueError, OverflowError):
            lo = hi = math.nan
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise ValueError(
                f"{name}={value!r}: method {method!r} expects (lo, hi) with lo < hi, or None ({name}=(-1.0, 1.0))"
            )
        return lo, hi


@dataclasses.dataclass(frozen=True)
class CountOption(Option):
    """A whole number, at least 0."""

    def check(self, method: str, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(
                f"{name}={value!r}: method {method!r} expects a whole number, at least 0 ({name}={self.default!r})"
            )
        return int(value)


def optimal_std(lam: float, c: float, variance: float) -> float:
    """Standard deviation of the reverse step: `lam` is that given x0, c the factor of x0, `variance` that of x0."""
    return math.hypot(lam, c * math.sqrt(variance))


def clipped_std(pixels: float, data_range: tuple[float, float]) -> float:
    """The std whose mean absolute noise, std·sqrt(2/pi), is so many of 255 grey levels (section 3.3 and App. F)."""
    return pixels * (data_range[1] - data_range[0]) / 255.0 * math.sqrt(0.5 * math.pi)


def x0_variance(gamma: Gamma | str, schedule: NoiseSchedule, s: Point, data_range: tuple[float, float] | None) -> float:
    """E Var(x0 | x_s)/d: from Gamma, or its bounds; never above that of data in `data_range` (Theorem 2)."""
    most = math.inf if data_range is None else (0.5 * (data_range[1] - data_range[0])) ** 2
    if isinstance(gamma, Gamma):
        return min(most, gamma.x0_variance(schedule, s))
    if gamma == "lower":
        return 0.0
    # Gamma >= 0.
    most = min(most, math.exp(min(-2.0 * s.lam, 700.0)) if math.isfinite(s.lam) else math.inf)
    if math.isinf(most):
        raise ValueError(
            f"gamma='upper' has no bound at t={s.t:g}, where alpha = 0, for data without bounds: give "
            "data_range=(lo, hi), an estimated gamma, or an earlier t_start"
        )
    return most


def optimal_chain(
    name: str,
    request: Request,
    mean: Callable[[Point, Point], tuple[Row, float]],
    gamma: Gamma | str,
    data_range: tuple[float, float] | None,
    clip_steps: int,
    clip_pixels: float,
    own: Mapping[str, object],
) -> Plan:
    """The plan of a chain; `mean(s, t)` gives the mean of a step as a row without noise, and its lambda."""
    schedule = request.schedule
    if isinstance(gamma, Gamma):
        gamma.check(schedule)
    noisy = [p.t for p in request.points()[1:] if p.sigma > 0]
    last = noisy[len(noisy) - min(clip_steps, len(noisy)) :] if data_range else []

    def row(s: Point, t: Point) -> Row:
        if t.sigma == 0:
            return mean(s, t)[0]
        row, lam = mean(s, t)
        std = optimal_std(lam, float(row @ ROW["m"]), x0_variance(gamma, schedule, s, data_range))
        if data_range and t.t in last:
            std = min(std, clipped_std(clip_pixels, data_range))
        return row + std * ROW["za"]

    options: dict[str, object] = {
        **own,
        "gamma": {"fingerprint": gamma.fingerprint(), "count": gamma.count} if isinstance(gamma, Gamma) else gamma,
        "data_range": None if data_range is None else list(data_range),
        "clip_steps": clip_steps,
        "clip_pixels": clip_pixels,
    }
    return chain(name, request, options, row)


def build_analytic_ddpm(request: Request, **options: Any) -> Plan:
    check_downward(request, "analytic_ddpm")

    def mean(s: Point, t: Point) -> tuple[Row, float]:
        return ddpm_row(s, t, 0.0), posterior_std(s, t)

    return optimal_chain("analytic_ddpm", request, mean, own={}, **options)


def build_analytic_ddim(request: Request, *, eta: float, use_clipped_model_output: bool, **options: Any) -> Plan:
    def mean(s: Point, t: Point) -> tuple[Row, float]:
        row = ddim_row(s, t, eta)
        return row - (row @ ROW["za"]) * ROW["za"], eta * posterior_std(s, t) if eta else 0.0

    if eta:
        check_downward(request, "analytic_ddim")
    own = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
    return optimal_chain("analytic_ddim", request, mean, own=own, **options)


OPTIONS: dict[str, Option] = {
    "gamma": GammaOption(
        "upper",
        "what fastdiff.analytic.estimate_gamma returns, its file, or {time: Gamma}; or a data-free bound: "
        "'upper' (the default), 'lower' (the variance given x0)",
    ),
    "data_range": RangeOption(
        (-1.0, 1.0), "where every element of the data lies; None: no bound, no clipping of variances"
    ),
    "clip_steps": CountOption(1, "how many of the last noisy steps have their variance clipped; 0: none"),
    "clip_pixels": Option(2.0, "most mean absolute noise of a clipped step, in 255ths of data_range", minimum=0.0),
}

METHODS = (
    Method(
        name="analytic_ddpm",
        summary="Analytic-DPM: DDPM with the optimal variance: gamma=fastdiff.analytic.estimate_gamma(...)",
        paper="Bao et al. 2022, arXiv 2201.06503",
        order=1,
        build=build_analytic_ddpm,
        space="data",
        spacing="linspace",
        stochastic=True,
        options=OPTIONS,
        good_for=("noise",),
    ),
    Method(
        name="analytic_ddim",
        summary="Analytic-DPM: DDIM with the optimal variance: gamma=fastdiff.analytic.estimate_gamma(...)",
        paper="Bao et al. 2022, arXiv 2201.06503",
        order=1,
        build=build_analytic_ddim,
        space="data",
        spacing="linspace",
        stochastic=True,
        options={
            "eta": Option(0.0, "DDIM's noise level, 0 to 1; eta = 1 is analytic_ddpm", minimum=0.0, maximum=1.0),
            "use_clipped_model_output": CLIPPED_OUTPUT,
            **OPTIONS,
        },
    ),
)
