"""Schedules given at the integer training times 0 .. N - 1."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fastdiff.names import short
from fastdiff.schedules.base import Array, Indexed, positive, vp_log_alpha, vp_parts
from fastdiff.values import flag, floats, number


@dataclasses.dataclass(frozen=True, repr=False)
class Discrete(Indexed):
    """A variance-preserving schedule known at integer times; the public time is the index, as a float.

    log alpha is linear between integer times, and between -1, where the sample is clean, and 0 (the log-linear
    interpolation of DPM-Solver, Lu et al. 2022, arXiv 2206.00927, App. D.4). Where the last alpha is exactly 0
    (zero terminal SNR), alpha itself is linear on the last interval. Make one with `discrete`, `ddpm`,
    `scaled_linear` or `cosine`.
    """

    log_alphas: tuple[float, ...]
    """log alpha at 0 .. N - 1: negative, strictly decreasing, only the last may be -inf."""
    label: str = dataclasses.field(default="discrete", compare=False)

    kind: ClassVar[str] = "vp"
    factory: ClassVar[str] = "discrete"

    def __post_init__(self) -> None:
        super().__post_init__()
        values = floats("log_alphas", self.log_alphas)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"log_alphas got shape {values.shape}; expected (N,) with N >= 1")
        if not (np.all(np.isfinite(values[:-1])) and values[-1] < 0.0 and np.all(np.diff(values, prepend=0.0) < 0.0)):
            raise ValueError("log_alphas must be negative and strictly decreasing, and finite except for the last")
        if values.size == 1 and math.isinf(values[0]):
            raise ValueError("a schedule of one time must have alpha > 0 there; got alphas_cumprod = [0]")
        object.__setattr__(self, "log_alphas", tuple(values.tolist()))
        object.__setattr__(self, "_table", np.concatenate([[0.0], values]))
        object.__setattr__(self, "_index", np.arange(-1.0, values.size))
        object.__setattr__(self, "_rising", -self._table)
        for array in (self._table, self._index, self._rising):
            array.flags.writeable = False

    # Of a thousand numbers it takes longer than many a question that it is asked for.
    @cached_property
    def _hash(self) -> int:
        return hash((self.log_alphas, self.time_scale))

    def __hash__(self) -> int:
        return self._hash

    _table: ClassVar[Array]
    _index: ClassVar[Array]
    _rising: ClassVar[Array]

    @property
    def num_train(self) -> int:
        """The number of training times N."""
        return len(self.log_alphas)

    @property
    def zero_terminal(self) -> bool:
        """Whether alpha is exactly 0 at N - 1."""
        return math.isinf(self.log_alphas[-1])

    @property
    def alphas_cumprod(self) -> Array:
        """alpha^2 at 0 .. N - 1, the alpha-bar of DDPM; a new array of shape (N,)."""
        return np.exp(2.0 * self._table[1:])

    @property
    def betas(self) -> Array:
        """1 - alpha_t^2 / alpha_{t-1}^2 at 0 .. N - 1; a new array of shape (N,)."""
        return -np.expm1(2.0 * np.diff(self._table))

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        if not self.zero_terminal:
            return vp_parts(np.interp(t, self._index, self._table))
        log_alpha = np.interp(t, self._index[:-1], self._table[:-1])
        last = np.maximum(self._index[-1] - t, 0.0)
        log_alpha = np.where(last < 1.0, self._table[-2] + np.log(np.minimum(last, 1.0)), log_alpha)
        return vp_parts(log_alpha)

    def _inverse_lambda(self, lam: Array) -> Array:
        log_alpha = vp_log_alpha(lam)
        if not self.zero_terminal:
            return np.interp(-log_alpha, self._rising, self._index)
        t = np.interp(-log_alpha, self._rising[:-1], self._index[:-1])
        below = log_alpha < self._table[-2]
        return np.where(below, self._index[-1] - np.exp(np.minimum(log_alpha - self._table[-2], 0.0)), t)

    def _parameters(self) -> dict[str, Any]:
        # JSON has no -inf, which the last may be.
        values: list[float | None] = list(self.log_alphas)
        if self.zero_terminal:
            values[-1] = None
        return {"log_alphas": values, "time_scale": self.time_scale}

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "label": self.label}

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Discrete:
        values = tuple(fields["log_alphas"])
        if None in values:
            values = tuple(-math.inf if v is None else v for v in values)
        return cls(**{**fields, "log_alphas": values})

    def __repr__(self) -> str:
        tail = ", zero_terminal_snr=True" if self.zero_terminal else ""
        tail += f", time_scale={self.time_scale:g}" if self.time_scale != 1.0 else ""
        last = math.exp(2.0 * self.log_alphas[-1])
        return f"{self.label}(num_train={self.num_train}{tail}; alphas_cumprod[-1]={last:.4g})"


def discrete(
    betas: ArrayLike | None = None,
    *,
    alphas_cumprod: ArrayLike | None = None,
    zero_terminal_snr: bool = False,
    time_scale: float = 1.0,
    label: str = "discrete",
) -> Discrete:
    """A discrete schedule from its `betas` or its `alphas_cumprod`, of shape (N,).

    betas lie in (0, 1), alphas_cumprod in (0, 1) and strictly decreasing; the last beta may be 1, and the last
    alphas_cumprod 0, or 2^-24 in its place where the entry before is smaller, as diffusers has it.
    `zero_terminal_snr` rescales alpha linearly so that the last is 0 and the first is kept (Lin et al. 2023, arXiv
    2305.08891, Algorithm 1). Raises ValueError for anything else.
    """
    flag("zero_terminal_snr", zero_terminal_snr)
    if (betas is None) == (alphas_cumprod is None):
        raise ValueError("discrete got both or neither of betas and alphas_cumprod; call discrete(betas=...) with one")
    if betas is not None:
        values = _vector("betas", betas)
        if not (np.all(values > 0.0) and np.all(values[:-1] < 1.0) and values[-1] <= 1.0):
            bad = values[(values <= 0.0) | (values >= 1.0)][0]
            raise ValueError(f"betas must lie in (0, 1) (the last may be 1); got {float(bad)!r}")
        with np.errstate(divide="ignore"):
            log_alpha = 0.5 * np.cumsum(np.log1p(-values))
    else:
        values = _vector("alphas_cumprod", alphas_cumprod)
        if not (np.all(values < 1.0) and np.all(values[:-1] > 0.0) and values[-1] >= 0.0):
            bad = values[(values <= 0.0) | (values >= 1.0)][0]
            raise ValueError(f"alphas_cumprod must lie in (0, 1) (the last may be 0); got {float(bad)!r}")
        # diffusers writes 2^-24 for the 0 of zero terminal SNR, which may be above the entry before.
        if values.size > 1 and values[-1] == 2.0**-24 and values[-2] <= values[-1]:
            values = np.append(values[:-1], 0.0)
        if np.any(np.diff(values) >= 0.0):
            i = int(np.argmax(np.diff(values) >= 0.0))
            raise ValueError(
                f"alphas_cumprod must strictly decrease with time; got {float(values[i])!r} at {i} and "
                f"{float(values[i + 1])!r} at {i + 1}"
            )
        with np.errstate(divide="ignore"):
            log_alpha = 0.5 * np.log(values)
    if zero_terminal_snr:
        log_alpha = _zero_terminal(log_alpha)
    return Discrete(tuple(log_alpha.tolist()), label, time_scale=time_scale)


def _vector(name: str, values: ArrayLike | None) -> Array:
    array = floats(name, values, "(N,) numbers")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} got shape {array.shape}; expected one dimension, (N,) with N >= 1")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite; got {float(array[~np.isfinite(array)][0])!r}")
    return array


def _zero_terminal(log_alpha: Array) -> Array:
    if log_alpha.size < 2:
        raise ValueError(f"zero_terminal_snr needs at least 2 training times; got {log_alpha.size}")
    alpha = np.exp(log_alpha)
    with np.errstate(divide="ignore"):
        rescaled = np.log((alpha - alpha[-1]) / (alpha[0] - alpha[-1])) + log_alpha[0]
    rescaled[0] = log_alpha[0]
    return rescaled


def _count(num_train: int) -> int:
    if isinstance(num_train, bool) or not isinstance(num_train, (int, np.integer)) or num_train < 1:
        raise ValueError(f"num_train got {num_train!r}; expected an integer >= 1, as in ddpm(num_train=1000)")
    if num_train > 10**7:
        raise ValueError(f"num_train got {short(num_train)}; expected at most 10**7, as in ddpm(num_train=1000)")
    return int(num_train)


def ddpm(
    num_train: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    zero_terminal_snr: bool = False,
    time_scale: float = 1.0,
) -> Discrete:
    """betas linear from `beta_start` to `beta_end` (Ho et al. 2020, arXiv 2006.11239, section 4).

    The same two betas for every `num_train`. guided-diffusion's "linear" schedule divides both by N/1000, which keeps
    alpha at the end nearly the same: of N != 1000 times it is ddpm(N, 0.1 / N, 20 / N).
    """
    ends = number("beta_start", beta_start, "1e-4"), number("beta_end", beta_end, "0.02")
    betas = np.linspace(*ends, _count(num_train))
    return discrete(betas, zero_terminal_snr=zero_terminal_snr, time_scale=time_scale, label="ddpm")


def scaled_linear(
    num_train: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    *,
    zero_terminal_snr: bool = False,
    time_scale: float = 1.0,
) -> Discrete:
    """sqrt(beta) linear in time: latent diffusion's and Stable Diffusion's schedule (arXiv 2112.10752)."""
    root = np.linspace(
        math.sqrt(positive("beta_start", beta_start)), math.sqrt(positive("beta_end", beta_end)), _count(num_train)
    )
    return discrete(root**2, zero_terminal_snr=zero_terminal_snr, time_scale=time_scale, label="scaled_linear")


def cosine(
    num_train: int = 1000,
    s: float = 0.008,
    max_beta: float = 0.999,
    *,
    zero_terminal_snr: bool = False,
    time_scale: float = 1.0,
) -> Discrete:
    """alpha^2 as a squared cosine, betas at most `max_beta` (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
    count, s = _count(num_train), positive("s", s, zero=True)
    angle = (np.arange(count + 1) / count + s) / (1.0 + s) * (math.pi / 2.0)
    # 1 - cos^2(b) / cos^2(a) = sin(b - a) sin(b + a) / cos^2(a): no cancellation for the first, small betas.
    a, b = angle[:-1], angle[1:]
    betas = np.minimum(np.sin(b - a) * np.sin(b + a) / np.cos(a) ** 2, number("max_beta", max_beta, "0.999"))
    return discrete(betas, zero_terminal_snr=zero_terminal_snr, time_scale=time_scale, label="cosine")
