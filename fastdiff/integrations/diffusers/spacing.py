"""What the times of diffusers' scheduler classes are made of: spacings, curves of sigma, shifts. float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fastdiff.schedules import NoiseSchedule, flow, preconditioned
from fastdiff.schedules.diffusers import alphas_cumprod

Config = Mapping[str, Any]
Array = np.ndarray[Any, Any]
Values = Sequence[float] | Array


@dataclass(frozen=True)
class Asked:
    """The arguments of one `set_timesteps`."""

    steps: int | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    mu: float | None = None
    original_steps: int | None = None
    strength: float = 1.0

    @property
    def count(self) -> int:
        """The number of steps."""
        if self.steps is not None:
            return self.steps
        given = self.timesteps if self.timesteps is not None else self.sigmas
        assert given is not None
        return len(given)


@dataclass(frozen=True)
class Grid:
    """Where the steps of a run begin, and where the last ends.

    Attributes:
        schedule: on which `times` are public times.
        times: of the n steps' beginnings and of the end; equal neighbours are a step that changes nothing.
        network: the n times that the network is given there.
        sigmas: the n + 1 values that diffusers calls sigmas.
        clock: the network's time at a public time between these.
        data_std: what x0 of the plan is multiplied by to be data.
        exploding: whether the pipeline's sample is x/alpha.
    """

    schedule: NoiseSchedule
    times: tuple[float, ...]
    network: tuple[float, ...]
    sigmas: tuple[float, ...]
    clock: Callable[[float], float]
    data_std: float = 1.0
    exploding: bool = False

    def unit(self, t: float) -> float:
        """What the pipeline's sample is multiplied by to be the schedule's x, at public time t."""
        return float(self.schedule.alpha(t)) / self.data_std if self.exploding else 1.0


def spaced(config: Config, steps: int, inner: bool) -> Array:
    """Training times by `timestep_spacing`, descending. `inner`: of classes that leave out the last of steps + 1."""
    count, offset = int(config["num_train_timesteps"]), int(config.get("steps_offset", 0))
    last = count - clipped(config)
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "linspace":
        if not inner:
            return np.linspace(0, count - 1, steps)[::-1]
        return np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
    if spacing == "leading":
        if not inner:
            return np.arange(steps)[::-1] * float(count // steps) + offset
        return np.arange(steps + 1)[::-1][:-1] * float(last // (steps + 1)) + offset
    return np.arange(last if inner else count, 0, -count / steps).round() - 1.0


def clipped(config: Config) -> int:
    """How many of the noisiest times lie below `lambda_min_clipped`."""
    floor = config.get("lambda_min_clipped", -math.inf)
    if floor in (None, -math.inf):
        return 0
    a = alphas_cumprod(config, floor=True)
    return int(np.searchsorted(np.sort(0.5 * np.log(a / (1.0 - a))), float(floor)))


def table(config: Config) -> Array:
    """sigma/alpha of the N training times."""
    a = alphas_cumprod(config, floor=True)
    return np.sqrt((1.0 - a) / a)


def sigma_clock(sigmas: Array) -> Callable[[float], float]:
    """The training time of a sigma: linear in log sigma, inside the table.

    Between the last entry that is not above it and the next: a terminal entry of 2^-24 can lie below those before it.
    """
    logs = np.log(sigmas)

    def clock(sigma: float) -> float:
        value = math.log(max(sigma, 1e-10))
        # An entry is met in spite of the rounding of two logarithms.
        below = np.flatnonzero(logs <= value + 1e-12)
        low = min(int(below[-1]) if below.size else 0, len(logs) - 2)
        return low + float(np.clip((value - logs[low]) / (logs[low + 1] - logs[low]), 0.0, 1.0))

    return clock


def cut(times: Array) -> Array:
    """Integers below, as tensors of integers have it; a whole number is not missed by the rounding of a logarithm."""
    return np.floor(times + 1e-6)


def karras(high: float, low: float, steps: int, rho: float = 7.0) -> Array:
    """Karras et al. 2022, arXiv 2206.00364, eq. 5."""
    a, b = high ** (1.0 / rho), low ** (1.0 / rho)
    return (a + np.linspace(0, 1, steps) * (b - a)) ** rho


def exponential(high: float, low: float, steps: int) -> Array:
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def beta(high: float, low: float, steps: int) -> Array:
    """Lee et al. 2024, "Beta Sampling is All You Need" (arXiv 2407.12173), with both parameters 0.6."""
    try:
        from scipy.special import betaincinv
    except ImportError:
        raise ImportError("use_beta_sigmas=True needs scipy: pip install scipy") from None
    return low + betaincinv(0.6, 0.6, 1.0 - np.linspace(0, 1, steps)) * (high - low)


def curved(config: Config, inside: Array, steps: int) -> Array | None:
    """The sigmas of use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas or use_lu_lambdas, or None.

    From the first to the last of `inside`, descending, or from sigma_max to sigma_min of the config.
    """
    named = [k for k in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if config.get(k)]
    if len(named) > 1:
        raise ValueError(f"{named[0]}=True and {named[1]}=True: a grid has one form, so give one of them")
    low, high = config.get("sigma_min"), config.get("sigma_max")
    low = float(inside[-1]) if low is None else float(low)
    high = float(inside[0]) if high is None else float(high)
    if config.get("use_karras_sigmas"):
        return karras(high, low, steps)
    if config.get("use_lu_lambdas") or config.get("use_exponential_sigmas"):
        # Lu's steps of equal lambda with rho = 1 are steps of equal log sigma.
        return exponential(high, low, steps)
    return beta(high, low, steps) if config.get("use_beta_sigmas") else None


def variance_preserving(
    sigmas: Values,
    network: Values,
    clock: Callable[[float], float],
    *,
    data_std: float = 1.0,
    exploding: bool = False,
) -> Grid:
    """The grid of sigmas that are sigma/alpha, times data_std."""
    largest, least = max(sigmas), min([s for s in sigmas if s > 0])
    schedule = preconditioned(least if least < largest else 0.5 * least, largest, data_std)
    values = snapped(sigmas)
    return Grid(schedule, values, tuple(map(float, network)), values, clock, data_std, exploding)


def snapped(sigmas: Values) -> tuple[float, ...]:
    """The sigmas, neighbours that float32 hardly tells apart made equal: a step that changes nothing."""
    made = [float(sigmas[0])]
    for s in sigmas[1:]:
        made.append(made[-1] if abs(s - made[-1]) <= 2.0**-22 * made[-1] else float(s))
    return tuple(made)


def in_flow(sigmas: Values, network: Values, scale: float, shown: Values) -> Grid:
    """The grid of noise levels of flow matching; `shown`: what diffusers calls sigmas."""
    values = snapped(sigmas)
    return Grid(flow(), values, tuple(map(float, network)), tuple(map(float, shown)), lambda s: s * scale)


def shifted(shift: float, s: Array) -> Array:
    """Esser et al. 2024, arXiv 2403.03206, eq. 23."""
    return shift * s / (1.0 + (shift - 1.0) * s)


def stretched(config: Config, s: Array) -> Array:
    """Levels stretched so that the last is `shift_terminal` (LTX-Video)."""
    last = config.get("shift_terminal")
    return 1.0 - (1.0 - s) / ((1.0 - s[-1]) / (1.0 - float(last))) if last else s


def merged(times: Sequence[float]) -> tuple[float, ...]:
    """The times without repetition of the one before."""
    return (times[0], *(b for a, b in pairwise(times) if a != b))
