"""A time grid from a network's own trajectories: GITS (Chen et al. 2024, arXiv 2405.11326, section 4)."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastdiff.names import short
from fastdiff.schedules.base import Array, NoiseSchedule
from fastdiff.schedules.registry import resolve
from fastdiff.values import number


class Traced(Protocol):
    """What a run with `return_trajectory=True` adds: times (steps + 1,), x (steps + 1, B, ...), x0 (steps, B, ...)."""

    times: Any
    x: Any
    x0: Any


def gits_times(
    trajectory: Traced, steps: int, schedule: str | NoiseSchedule = "ddpm", *, coeff: float = 1.15
) -> list[float]:
    """The `steps` + 1 times of a fine trajectory along which Euler's method stays closest to it, for `spacing=`.

    The cost of a step from time i to time j is the distance, as a root mean square over samples and elements, between
    the trajectory at j and Euler's step from the trajectory at i, which is DDIM's. Dynamic programming finds the times
    with the smallest sum of costs, each step's being multiplied by `coeff` once more than that of the step before.

    For example:

        _, fine = fastdiff.sample(model, method="dpm2", steps=60, shape=(16, 3, 32, 32), return_trajectory=True)
        times = fastdiff.schedules.gits_times(fine, steps=6)
        x = fastdiff.sample(model, method="ipndm", spacing=times)

    Args:
        trajectory: of a deterministic run with many steps, a dozen samples or more.
        steps: how many, 1 to those of the trajectory.
        schedule: the trajectory's schedule, or its name.
        coeff: above 1 the steps near the data are taken more seriously, below 1 those near the noise. The paper has
            1.15 for most networks.

    Raises:
        ValueError: `steps` out of range, no trajectory of a run downwards, values that are not finite.
        TypeError: values of the wrong type.
    """
    schedule = resolve(schedule)
    times, x, x0 = (_array(name, getattr(trajectory, name, None)) for name in ("times", "x", "x0"))
    if times.ndim != 1 or times.size < 2 or len(x) != times.size or len(x0) != times.size - 1:
        raise ValueError(
            f"trajectory has times {times.shape}, x {x.shape}, x0 {x0.shape}; expected (n + 1,), (n + 1, ...), "
            "(n, ...), as sample(..., return_trajectory=True) gives"
        )
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"steps={steps!r}: expected a whole number, such as steps=6")
    if not 1 <= steps < times.size:
        raise ValueError(f"steps={steps}: expected 1 to {times.size - 1}, the steps of the trajectory")
    growth = number("coeff", coeff, "1.15")
    if growth <= 0.0:
        raise ValueError(f"coeff={coeff!r}: expected a number above 0, such as coeff=1.15")
    cost = step_costs(schedule, times, x.reshape(times.size, -1), x0.reshape(times.size - 1, -1))
    return [float(times[i]) for i in cheapest(cost, int(steps), growth)]


def _array(name: str, value: Any) -> NDArray[Any]:
    if value is None:
        raise TypeError(
            f"trajectory has no {name}: expected what sample(..., return_trajectory=True) adds to the result"
        )
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    made = np.asarray(value)
    if made.dtype.kind != "f" or not np.isfinite(made).all():
        raise ValueError(f"trajectory.{name} got {short(value)}; expected finite floating-point values")
    return made


def step_costs(schedule: NoiseSchedule, times: Array, x: NDArray[Any], x0: NDArray[Any]) -> Array:
    """The cost of the Euler step from times[i] to times[j], (n + 1, n + 1); inf unless i < j."""
    times = times.astype(np.float64)
    if not np.all(np.diff(times) < 0.0):
        raise ValueError("trajectory.times do not decrease; expected a run from noise to data")
    alpha, sigma = np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))
    cost = np.full((times.size, times.size), math.inf)
    for i in range(times.size - 1):
        eps = (x[i] - alpha[i] * x0[i]) / sigma[i]
        for j in range(i + 1, times.size):
            cost[i, j] = math.sqrt(np.mean(np.square(alpha[j] * x0[i] + sigma[j] * eps - x[j]), dtype=np.float64))
    return cost


def cheapest(cost: Array, steps: int, coeff: float) -> list[int]:
    """The positions, first and last among them, of the `steps` steps with the least sum of coeff^k·cost."""
    last = len(cost) - 1
    best = cost[:, last].copy()
    chosen = []
    for _ in range(steps - 1):
        total = cost + coeff * best
        chosen.append(np.argmin(total, axis=1))
        best = np.min(total, axis=1)
    path = [0]
    for following in reversed(chosen):
        path.append(int(following[path[-1]]))
    return [*path, last]
