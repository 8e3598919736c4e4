"""The discrete noise levels of SMLD: geometric sigmas, the network being told which one."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from fastdiff.schedules.base import Array, Indexed, positive


@dataclasses.dataclass(frozen=True, repr=False)
class SMLD(Indexed):
    """alpha = 1 and `levels` geometric sigmas; the public time is the index of sigma, 0 the smallest.

    log sigma is linear between integer times; sigma itself between -1, where the sample is clean, and 0. The network is
    given the label of score matching with Langevin dynamics, which counts from the largest sigma: levels - 1 - t.
    """

    sigma_min: float
    sigma_max: float
    levels: int

    kind: ClassVar[str] = "ve"
    factory: ClassVar[str] = "smld"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sigma_min", positive("sigma_min", self.sigma_min))
        object.__setattr__(self, "sigma_max", positive("sigma_max", self.sigma_max))
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"expected sigma_min < sigma_max; got {self.sigma_min!r} and {self.sigma_max!r}")
        count = self.levels
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 2:
            raise ValueError(f"levels got {count!r}; expected an integer >= 2, as in smld(levels=1000)")
        object.__setattr__(self, "levels", int(count))

    @property
    def num_train(self) -> int:
        """The number of noise levels."""
        return self.levels

    @property
    def _slope(self) -> float:
        return math.log(self.sigma_max / self.sigma_min) / self.t_max

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        low, high = np.minimum(t, 0.0), np.maximum(t, 0.0)
        log_sigma = math.log(self.sigma_min) + self._slope * high + np.log1p(low)
        return np.ones_like(t), np.exp(log_sigma), np.zeros_like(t), log_sigma

    def _inverse_lambda(self, lam: Array) -> Array:
        level = -lam - math.log(self.sigma_min)
        return np.where(level < 0.0, np.expm1(np.minimum(level, 0.0)), level / self._slope)

    def _model_time(self, t: Array) -> Array:
        return self.t_max - t

    def prior_std(self, t: float | None = None) -> float:
        """sigma at `t`, by default sigma_max."""
        return self.at(self.t_max if t is None else t).sigma


def smld(sigma_min: float = 0.01, sigma_max: float = 50.0, levels: int = 1000, *, time_scale: float = 1.0) -> SMLD:
    """The noise levels of SMLD (Song et al. 2021, arXiv 2011.13456, App. C): the public time is the index."""
    return SMLD(sigma_min, sigma_max, levels, time_scale=time_scale)
