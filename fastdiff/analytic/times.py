"""The optimal trajectory of Analytic-DPM (Bao et al. 2022, arXiv 2201.06503, section 4): the times of a few steps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.solvers.gamma import Gamma

BAD_SHARE = 0.8
"""The noisy end where Gamma passes 1 gets this part of the steps that its number of times would give it."""

Array = NDArray[np.float64]


def optimal_times(
    gamma: Gamma | Mapping[float, float] | str | os.PathLike[str], steps: int, schedule: str | NoiseSchedule = "ddpm"
) -> list[float]:
    """The `steps` times of Gamma that bring the reverse chain closest to the forward process, for `spacing=`.

    The Kullback-Leibler divergence of a chain with optimal variances is, up to a constant, d/2 times the sum of

        J(s, t) = log(1 - Gamma(t)·(1 - exp(2·(lambda(t) - lambda(s)))))

    over its steps from t to the cleaner s. Least-cost dynamic programming finds the smallest sum over all sequences
    from the noisiest to the cleanest time of Gamma, in O(steps·N²). The cost is that of DDPM's variance; as published,
    DDIM takes the same times: `analytic_ddpm` and `analytic_ddim` both accept them.

    Gamma above 1, which only sampling error (or an inexact network) gives, means nothing here. As in the paper's
    program, from twice as far from the noisy end as the first such time, times are then spaced evenly instead.

    Args:
        gamma: a `Gamma`, its file, or {time: Gamma}. Its times are those chosen from; times without signal are left
            out.
        steps: how many, 1 to the number of those times. One step is the noisiest time alone.
        schedule: the `NoiseSchedule` that Gamma was estimated with, or its name.

    Returns:
        `steps` + 1 decreasing schedule times, the last the clean end.

    Raises:
        ValueError: `steps` out of range; Gamma of another schedule; Gamma above 1 in the cleaner half of its times.
        TypeError: values of the wrong type.
    """
    schedule = resolve(schedule)
    if isinstance(gamma, str | os.PathLike):
        gamma = Gamma.load(Path(gamma))
    if isinstance(gamma, Mapping):
        gamma = Gamma.of(gamma)
    if not isinstance(gamma, Gamma):
        raise TypeError(
            f"gamma={gamma!r}: expected what fastdiff.analytic.estimate_gamma returns, or its file "
            "(optimal_times(estimate_gamma(model, data), steps=25))"
        )
    gamma.check(schedule)
    times, values = np.array(gamma.times), np.array(gamma.values)
    lam = np.asarray(schedule.lam(times))
    usable = np.isfinite(lam)
    times, values, lam = times[usable], values[usable], lam[usable]
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"steps={steps!r}: expected a whole number, such as steps=25")
    if not 1 <= steps <= times.size:
        raise ValueError(
            f"steps={steps}: expected 1 to {times.size}, the number of times with signal and noise at which Gamma is "
            f"known (steps={min(25, times.size)}, or estimate_gamma(..., times=...) with more)"
        )
    chosen = times[_indices(values, lam, int(steps))]
    return [*chosen[::-1].tolist(), schedule.t_clean]


def step_costs(values: Array, lam: Array) -> Array:
    """J as an array (N, N): row t, column s; inf unless s is cleaner than t. Positions increase with noise."""
    cleaner = np.tri(lam.size, k=-1, dtype=bool)
    kept = np.exp(2.0 * np.where(cleaner, lam[:, None] - lam, 0.0))
    inside = np.where(cleaner, (1.0 - values[:, None]) + values[:, None] * kept, math.inf)
    return np.log(inside)


def _indices(values: Array, lam: Array, steps: int) -> NDArray[np.int64]:
    """Increasing positions of the chosen times."""
    count = values.size
    if steps == 1:
        return np.array([count - 1])
    above = np.flatnonzero(values > 1.0)
    if not above.size:
        return _least_cost(step_costs(values, lam), steps)
    bad = 2 * (count - int(above[0]))
    good = count - bad
    if good < 1:
        raise ValueError(
            f"Gamma is {values[above[0]]:g} at position {above[0]} of {count} times; expected at most 1 in the cleaner "
            "half at least: estimate it with more samples (estimate_gamma(..., samples_per_time=...))"
        )
    noisy = steps - math.ceil((1.0 - BAD_SHARE * (bad / count)) * steps)
    noisy = min(max(noisy, steps - good, 1), bad)
    # Even positions counted from 1, with halves rounded to even, as the published program does.
    even = np.round(count - bad / noisy * np.arange(noisy)[::-1]).astype(np.int64) - 1
    return np.concatenate((_least_cost(step_costs(values[:good], lam[:good]), steps - noisy), even))


def _least_cost(cost: Array, count: int) -> NDArray[np.int64]:
    """The `count` increasing positions, from the first to the last, whose steps cost least. One: the first."""
    if count == 1:
        return np.array([0])
    best = np.full(len(cost), math.inf)
    best[0] = 0.0
    previous = []
    for _ in range(count - 1):
        total = best + cost
        previous.append(np.argmin(total, axis=1))
        best = np.min(total, axis=1)
    path = [len(cost) - 1]
    for chosen in reversed(previous):
        path.append(int(chosen[path[-1]]))
    return np.array(path[::-1])
