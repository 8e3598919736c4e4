"""Schedules of continuous time: VP, sub-VP, VE, EDM and flow."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from fastdiff.schedules.base import Array, NoiseSchedule, positive, vp_log_alpha, vp_parts
from fastdiff.values import number


@dataclasses.dataclass(frozen=True, repr=False)
class VPLinear(NoiseSchedule):
    """The VP SDE with beta(t) linear from `beta_min` at t = 0 to `beta_max` at t = 1; t in [0, 1]."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    kind: ClassVar[str] = "vp"
    factory: ClassVar[str] = "vp_linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "beta_min", positive("beta_min", self.beta_min))
        object.__setattr__(self, "beta_max", positive("beta_max", self.beta_max))
        if self.beta_max < self.beta_min:
            raise ValueError(f"expected beta_min <= beta_max; got {self.beta_min!r} and {self.beta_max!r}")

    def _log_alpha(self, t: Array) -> Array:
        # Minus half of the integral of beta.
        return -t * (0.25 * (self.beta_max - self.beta_min) * t + 0.5 * self.beta_min)

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        return vp_parts(self._log_alpha(t))

    def _drift_diffusion(self, t: Array) -> tuple[Array, Array]:
        beta = self._beta(t)
        return -0.5 * beta, beta

    def _beta(self, t: Array) -> Array:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _inverse_lambda(self, lam: Array) -> Array:
        return self._inverse_log_alpha(vp_log_alpha(lam))

    def _inverse_log_alpha(self, log_alpha: Array) -> Array:
        # a t^2 + b t + log_alpha = 0 in the form of the quadratic formula that does not cancel.
        a, b = 0.25 * (self.beta_max - self.beta_min), 0.5 * self.beta_min
        return -2.0 * log_alpha / (b + np.sqrt(b * b - 4.0 * a * log_alpha))


@dataclasses.dataclass(frozen=True, repr=False)
class SubVP(VPLinear):
    """The sub-VP SDE: alpha as in VPLinear, sigma = 1 - alpha^2; t in [0, 1]."""

    kind: ClassVar[str] = "subvp"
    factory: ClassVar[str] = "subvp"

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        log_alpha = self._log_alpha(t)
        sigma = 0.0 - np.expm1(2.0 * log_alpha)
        return np.exp(log_alpha), sigma, log_alpha, np.log(sigma)

    def _drift_diffusion(self, t: Array) -> tuple[Array, Array]:
        # g² = beta (1 − alpha⁴): exp(−2 ∫ beta) is alpha⁴.
        beta = self._beta(t)
        return -0.5 * beta, beta * (0.0 - np.expm1(4.0 * self._log_alpha(t)))

    def _inverse_lambda(self, lam: Array) -> Array:
        # sigma / alpha = 1 / alpha - alpha = 2 sinh(-log alpha).
        return self._inverse_log_alpha(-np.arcsinh(0.5 * np.exp(-lam)))


@dataclasses.dataclass(frozen=True, repr=False)
class VPCosine(NoiseSchedule):
    """alpha(t) = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)); t in [0, 0.9946], where lambda is still finite."""

    s: float = 0.008

    kind: ClassVar[str] = "vp"
    factory: ClassVar[str] = "vp_cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "s", positive("s", self.s, zero=True))

    @property
    def t_max(self) -> float:
        """0.9946, as in DPM-Solver (Lu et al. 2022, arXiv 2206.00927, App. D.4)."""
        return 0.9946

    @property
    def _origin(self) -> float:
        return 0.5 * math.pi * self.s / (1.0 + self.s)

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        # cos(a + d) / cos(a) - 1 = -2 sin^2(d/2) - tan(a) sin(d), which is exact near d = 0.
        d = 0.5 * math.pi / (1.0 + self.s) * t
        return vp_parts(np.log1p(-2.0 * np.sin(0.5 * d) ** 2 - math.tan(self._origin) * np.sin(d)))

    def _drift_diffusion(self, t: Array) -> tuple[Array, Array]:
        rate = 0.5 * math.pi / (1.0 + self.s)
        f = -rate * np.tan(self._origin + rate * t)
        return f, -2.0 * f

    def _inverse_lambda(self, lam: Array) -> Array:
        alpha, sigma, _, _ = vp_parts(vp_log_alpha(lam))
        sin_a, cos_a = math.sin(self._origin), math.cos(self._origin)
        # With c = alpha cos(a) = cos(a + d) and s = sin(a + d): d from its sine and cosine, every term positive.
        s = np.hypot(sin_a, cos_a * sigma)
        total = s + alpha * sin_a
        sin_d = cos_a * np.divide(sigma**2, total, out=np.zeros_like(total), where=total > 0.0)
        d = np.arctan2(sin_d, alpha * cos_a**2 + s * sin_a)
        return d * (1.0 + self.s) / (0.5 * math.pi)


@dataclasses.dataclass(frozen=True, repr=False)
class _Exploding(NoiseSchedule):
    """alpha = 1; the public time is sigma."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sigma_min", positive("sigma_min", self.sigma_min))
        object.__setattr__(self, "sigma_max", positive("sigma_max", self.sigma_max))
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"expected sigma_min < sigma_max; got {self.sigma_min!r} and {self.sigma_max!r}")

    @property
    def t_max(self) -> float:
        """sigma_max."""
        return self.sigma_max

    @property
    def t_floor(self) -> float:
        """sigma_min."""
        return self.sigma_min

    @property
    def _t_limit(self) -> float:
        return math.inf

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        return np.ones_like(t), t, np.zeros_like(t), np.log(t)

    def _drift_diffusion(self, t: Array) -> tuple[Array, Array]:
        # d sigma²/du, where sigma grows geometrically with u.
        return np.zeros_like(t), 2.0 * math.log(self.sigma_max / self.sigma_min) * t * t

    def _inverse_lambda(self, lam: Array) -> Array:
        return np.exp(-lam)

    def prior_std(self, t: float | None = None) -> float:
        """sigma at `t`, by default sigma_max."""
        return self.at(self.t_max if t is None else t).sigma


@dataclasses.dataclass(frozen=True, repr=False)
class VE(_Exploding):
    """The variance-exploding SDE (Song et al. 2021, arXiv 2011.13456): alpha = 1, the public time is sigma."""

    kind: ClassVar[str] = "ve"
    factory: ClassVar[str] = "ve"

    @property
    def t_min(self) -> float:
        """sigma_min."""
        return self.sigma_min


@dataclasses.dataclass(frozen=True, repr=False)
class EDM(_Exploding):
    """alpha = 1 and the public time is sigma, as in Karras et al. 2022 (arXiv 2206.00364); solvers end at sigma = 0."""

    kind: ClassVar[str] = "edm"
    factory: ClassVar[str] = "edm"

    @property
    def t_min(self) -> float:
        """0: EDM's sampler ends clean."""
        return 0.0

    def _drift_diffusion(self, t: Array) -> tuple[Array, Array]:
        return np.zeros_like(t), 2.0 * t


@dataclasses.dataclass(frozen=True, repr=False)
class Preconditioned(_Exploding):
    """What EDM's network itself sees: x of variance 1, alpha² + sigma² = 1 with sigma/alpha = t/sigma_data; the public
    time is EDM's sigma, and the network is given log(t)/4 (Karras et al. 2022, arXiv 2206.00364, Table 1)."""

    sigma_data: float = 0.5

    kind: ClassVar[str] = "vp"
    factory: ClassVar[str] = "preconditioned"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sigma_data", positive("sigma_data", self.sigma_data))

    @property
    def t_min(self) -> float:
        """sigma_min."""
        return self.sigma_min

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        scale = np.hypot(t, self.sigma_data)
        alpha, sigma = self.sigma_data / scale, t / scale
        return alpha, sigma, np.log(self.sigma_data) - np.log(scale), np.log(sigma)

    def _drift_diffusion(self, t: Array) -> tuple[Array, Array]:
        # alpha = sigma_data/scale, so that d log alpha/dt = -t/scale², and g² = -2 f.
        f = -t / (t * t + self.sigma_data**2)
        return f, -2.0 * f

    def _inverse_lambda(self, lam: Array) -> Array:
        return self.sigma_data * np.exp(-lam)

    def _model_time(self, t: Array) -> Array:
        # The clean end has no logarithm; no network is evaluated there.
        return 0.25 * np.log(np.maximum(t, np.finfo(np.float64).tiny))

    def prior_std(self, t: float | None = None) -> float:
        """1: x has the network's own scale."""
        return NoiseSchedule.prior_std(self, t)


@dataclasses.dataclass(frozen=True, repr=False)
class Flow(NoiseSchedule):
    """alpha = 1 - s, sigma = s, with s = shift t / (1 + (shift - 1) t) and t in [0, 1]; the network is given s.

    The shift (Esser et al. 2024, arXiv 2403.03206, eq. 23) acts here and nowhere else.
    """

    shift: float = 1.0

    kind: ClassVar[str] = "flow"
    factory: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shift", positive("shift", self.shift))

    @property
    def t_min(self) -> float:
        """0: the ODE is regular up to the data."""
        return 0.0

    @property
    def t_floor(self) -> float:
        """1e-3."""
        return 1e-3

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        scale = 1.0 + (self.shift - 1.0) * t
        alpha, sigma = (1.0 - t) / scale, self.shift * t / scale
        return alpha, sigma, np.log(alpha), np.log(sigma)

    def _drift_diffusion(self, t: Array) -> tuple[Array, Array]:
        # g² = −2 sigma² dlambda/dt, and lambda = log((1 − t) / (shift t)); f and g have no bound at t = 1.
        scale = 1.0 + (self.shift - 1.0) * t
        return -1.0 / (1.0 - t) - (self.shift - 1.0) / scale, 2.0 * self.shift**2 * t / (scale * scale * (1.0 - t))

    def _inverse_lambda(self, lam: Array) -> Array:
        # (1 - t) / (shift t) = exp(lam)
        return np.exp(-np.logaddexp(0.0, lam + math.log(self.shift)))

    def _model_time(self, t: Array) -> Array:
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def prior_std(self, t: float | None = None) -> float:
        """sigma at `t`: 1 at the default, t_max."""
        return self.at(self.t_max if t is None else t).sigma


@dataclasses.dataclass(frozen=True, repr=False)
class FlowToData(Flow):
    """The same paths for a network whose own time is 0 at the noise and 1 at the data: it is given 1 - s.

    The times of this library stay those of `Flow`, with the noise at 1: `t_start`, `t_end`, spacings, callbacks.
    """

    factory: ClassVar[str] = "flow_to_data"

    def _model_time(self, t: Array) -> Array:
        # 1 - s without a difference.
        return (1.0 - t) / (1.0 + (self.shift - 1.0) * t)


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0, *, time_scale: float = 1.0) -> VPLinear:
    """The VP SDE of Song et al. 2021 (arXiv 2011.13456, App. C): t in [0, 1], ODE solvers end at 1e-3."""
    return VPLinear(beta_min, beta_max, time_scale=time_scale)


def vp_cosine(s: float = 0.008, *, time_scale: float = 1.0) -> VPCosine:
    """The continuous cosine schedule of DPM-Solver (arXiv 2206.00927, App. D.4): t in [0, 0.9946]."""
    return VPCosine(s, time_scale=time_scale)


def subvp(beta_min: float = 0.1, beta_max: float = 20.0, *, time_scale: float = 1.0) -> SubVP:
    """The sub-VP SDE of Song et al. 2021 (arXiv 2011.13456, eq. 15): sigma = 1 - alpha^2."""
    return SubVP(beta_min, beta_max, time_scale=time_scale)


def preconditioned(
    sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5, *, time_scale: float = 1.0
) -> Preconditioned:
    """EDM's network without the preconditioning around it (Karras et al. 2022, Table 1): x is EDM's times c_in and x0
    is data divided by sigma_data; times are EDM's sigmas. Its output is prediction="edm"."""
    return Preconditioned(sigma_min, sigma_max, sigma_data, time_scale=time_scale)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0, *, time_scale: float = 1.0) -> VE:
    """The VE SDE: public time and model time are sigma; ODE solvers end at sigma_min."""
    return VE(sigma_min, sigma_max, time_scale=time_scale)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, *, time_scale: float = 1.0) -> EDM:
    """Karras et al. 2022: public time and model time are sigma; solvers end at 0."""
    return EDM(sigma_min, sigma_max, time_scale=time_scale)


def flow(shift: float | None = None, *, mu: float | None = None, time_scale: float = 1.0) -> Flow:
    """Flow matching; `shift` as in SD3, applied once. SD3's network takes `time_scale=1000`; Flux's is given s itself.
    Where t = 1 is data: `flow_to_data`.

    `mu`, in place of shift, is its logarithm, as Flux's pipelines have it ("dynamic shifting"): flow(mu=m) is
    flow(exp(m)).
    """
    if mu is None:
        return Flow(1.0 if shift is None else shift, time_scale=time_scale)
    if shift is not None:
        raise ValueError(f"shift={shift!r} and mu={mu!r} say the same thing twice: flow(mu={mu!r}) is flow(exp(mu))")
    return Flow(math.exp(number("mu", mu, "1.15")), time_scale=time_scale)


def flow_to_data(shift: float = 1.0, *, time_scale: float = 1.0) -> FlowToData:
    """Flow matching where t = 1 is data, as in Lipman et al. 2023 (arXiv 2210.02747) and most robot policies: the
    network is given 1 - s, and its velocity is x0 - eps (prediction="flow")."""
    return FlowToData(shift, time_scale=time_scale)


def dynamic_shift(
    tokens: int, *, base_tokens: int = 256, max_tokens: int = 4096, base_mu: float = 0.5, max_mu: float = 1.15
) -> float:
    """The shift for an image of so many tokens: exp(mu), mu on the straight line through (base_tokens, base_mu) and
    (max_tokens, max_mu); the defaults are Flux's.

    For example: schedules.flow(schedules.dynamic_shift(height // 16 * (width // 16))).

    Raises:
        ValueError: numbers of tokens that are not positive, or two equal ones.
    """
    count, low, high = (
        positive(n, v) for n, v in (("tokens", tokens), ("base_tokens", base_tokens), ("max_tokens", max_tokens))
    )
    base_mu, max_mu = number("base_mu", base_mu, "0.5"), number("max_mu", max_mu, "1.15")
    if low == high:
        raise ValueError(f"base_tokens and max_tokens are both {base_tokens!r}; expected two points of a line")
    return math.exp(base_mu + (max_mu - base_mu) * (count - low) / (high - low))
