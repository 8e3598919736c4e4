"""A DDPM chain for training: its times, means and variances, from the plan of method "ddpm", so that what is trained is
what is sampled."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastdiff import solvers
from fastdiff.names import unknown
from fastdiff.plan import M, X
from fastdiff.prediction import PREVIOUS, conversion, previous_conversion
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.schedules.grids import MAX_STEPS
from fastdiff.solvers.ddim import LEARNED, step_variances
from fastdiff.training.forward import Source, column, vector
from fastdiff.values import whole

VARIANCES = ("small", "large", *LEARNED)


class Chain:
    """The steps of a DDPM chain from the noisiest time, as arrays over them (N,), in float64.

    Attributes:
        grid: schedule times with the clean end; times: without it, those that the network is evaluated at.
        model_time: what the network is given; alpha, sigma: of the schedule there.
        of_x, of_x0: the coefficients of the posterior's mean, of_x·x_t + of_x0·x0 (Ho et al. 2020, eq. 7).
        log_posterior: its log-variance; in the last step, where that is −inf, that of the step before.
        log_std: (N, 2): c0 and c1; the model's log-variance is 2·(c0 + c1·v), v the second half of the network's
            channels.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int | None = None,
        spacing: str | Sequence[float] | None = None,
        variance: str = "small",
    ) -> None:
        if variance not in VARIANCES:
            raise ValueError(unknown("variance", variance, VARIANCES))
        if steps is None and spacing is None:
            if schedule.num_train is None:
                raise ValueError(
                    f"{schedule!r} has no chain of its own: give the number of its steps, steps=1000, or the times, "
                    "spacing=[...]"
                )
            steps = schedule.num_train
        small, large, own = (
            solvers.plan("ddpm", steps, schedule, spacing, variance=v) for v in ("small", "large", variance)
        )
        if small.stages[-1].next_u[X] != 0.0:
            raise ValueError(
                f"the chain ends at t={small.times[-1]:g}, where noise is left; the bound needs one that ends at the "
                "data: leave t_end and the last time to the schedule"
            )
        self.stages = own.stages
        self.grid = own.times
        self.times = np.array(own.times[:-1])
        self.model_time, self.alpha, self.sigma = (
            np.array([getattr(s, name) for s in own.stages]) for name in ("model_time", "alpha", "sigma")
        )
        self.of_x, self.of_x0 = (np.array([s.next_u[i] for s in own.stages]) for i in (X, M))
        # "large" also has the clipped value in the last step: that of the step before.
        small_variances, large_variances = (step_variances(p) for p in (small, large))
        assert small_variances is not None and large_variances is not None
        self.log_posterior = np.log([*small_variances[:-1], large_variances[-1]])
        self.learned = variance in LEARNED
        if not self.learned:
            own_variances = step_variances(own)
            assert own_variances is not None
            fixed = np.log([*own_variances[:-1], large_variances[-1]])
            self.log_std = np.stack([0.5 * fixed, np.zeros_like(fixed)], axis=1)
        else:
            self.log_std = np.array([s.learned_variance for s in own.stages])
        self._order = np.argsort(self.times)

    def __len__(self) -> int:
        return len(self.times)

    def with_variances(self, log_variance: np.ndarray) -> Chain:
        """The same steps with these log-variances (N,); where one is NaN, it stays as it is."""
        made = copy.copy(self)
        fixed = np.stack([0.5 * log_variance, np.zeros(len(self))], axis=1)
        made.log_std = np.where(np.isnan(fixed), self.log_std, fixed)
        return made

    def find(self, t: Any, batch: int) -> np.ndarray:
        """(B,) positions of the schedule times `t` in the chain; ValueError for any other time."""
        wanted = vector("t", t, batch)
        ascending = self.times[self._order]
        near = np.minimum(np.searchsorted(ascending, wanted), len(self) - 1)
        if np.any(ascending[near] != wanted):
            bad = float(wanted[ascending[near] != wanted][0])
            raise ValueError(
                f"t got {bad!r}, which is not a time of this chain of {len(self)} steps, {self.times[0]:g} … "
                f"{self.times[-1]:g}"
            )
        return self._order[near]

    def ascending(self, part: np.ndarray) -> np.ndarray:
        """(B,) times, those at parts in [0, 1) of their number from the cleanest."""
        return self.times[self._order][np.floor(len(self) * part).astype(np.int64)]

    def draw(self, batch: int, source: Source, prediction: str) -> np.ndarray:
        """(B,) positions, uniform; ValueError where one of them has no x0 of that prediction."""
        # Only the noisiest time can be without one. Raise in the first call, and not when that time is first drawn.
        self._to_x0(0, prediction)
        return np.floor(len(self) * source.uniform(batch)).astype(np.int64)

    def mean(self, k: np.ndarray, x: Tensor, x0: Tensor) -> Tensor:
        """The mean of q(x_{t−1} | x_t, x0)."""
        return column(self.of_x[k], x) * x + column(self.of_x0[k], x) * x0

    def predicted_x0(self, k: np.ndarray, x: Tensor, out: Tensor, prediction: str) -> Tensor:
        of_x, of_out = np.array([self._to_x0(i, prediction) for i in k]).T
        return column(of_x, out) * x + column(of_out, out) * out

    def _to_x0(self, i: int, prediction: str) -> tuple[float, float]:
        """a and b of x0 = a·x + b·out at position i."""
        if prediction == PREVIOUS:
            return previous_conversion(float(self.of_x[i]), float(self.of_x0[i]), float(self.model_time[i]))
        return conversion(prediction, "data", float(self.alpha[i]), float(self.sigma[i]))


def chain_of(
    schedule: str | NoiseSchedule,
    steps: int | None = None,
    spacing: str | Sequence[float] | None = None,
    variance: str = "small",
) -> Chain:
    """The chain, kept from call to call: training asks for the same one in every step."""
    if not isinstance(variance, str):
        raise TypeError(f"variance must be a name, one of {', '.join(VARIANCES)}; got {type(variance).__name__}")
    times = spacing if spacing is None or isinstance(spacing, str) else solvers.own_times(spacing)
    if steps is not None:
        steps = whole("steps", steps, 1, MAX_STEPS, "100")
    return _chain(resolve(schedule), steps, times, variance)


@functools.lru_cache(maxsize=32, typed=True)
def _chain(
    schedule: str | NoiseSchedule, steps: int | None, spacing: str | tuple[float, ...] | None, variance: str
) -> Chain:
    return Chain(resolve(schedule), steps, spacing, variance)
