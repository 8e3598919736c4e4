"""What every noise schedule offers; the schedules themselves are the other files of this folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastdiff.names import short, unknown
from fastdiff.values import floats

Array = NDArray[np.float64]
Values = TypeVar("Values", float, NDArray[np.float64])


ROUNDING = 2.0**-23
"""Relative; of float32, in which grids of other libraries come. A time so far beyond the last is taken for it."""


class Point(NamedTuple):
    """One evaluation of a schedule: everything that a stage needs to know about one time."""

    t: float
    model_time: float
    alpha: float
    sigma: float
    lam: float


@dataclasses.dataclass(frozen=True, repr=False)
class NoiseSchedule:
    """x_t = alpha(t) x_0 + sigma(t) eps, with lam(t) = log(alpha / sigma).

    Frozen, hashable, equal by content. Times are public times (see each schedule). Every function of time takes a float
    or an array and returns the same in float64; a time outside `[t_clean, t_max]` raises ValueError (VE and EDM take
    any sigma >= 0, as churn may pass the largest). Make one with the functions of `fastdiff.schedules`.

    `time_scale`: what the network is given is `time_scale` times its own time (999 for score_sde's VP networks, 1000
    for SD3's flow network).
    """

    time_scale: float = dataclasses.field(default=1.0, kw_only=True)

    kind: ClassVar[str]
    """"vp", "subvp", "ve", "edm" or "flow"."""
    factory: ClassVar[str]
    """The function of `fastdiff.schedules` that makes it."""
    discrete: ClassVar[bool] = False
    _types: ClassVar[dict[str, type[NoiseSchedule]]] = {}

    def __init_subclass__(cls) -> None:
        if "factory" in vars(cls):
            NoiseSchedule._types[cls.__name__] = cls

    def __post_init__(self) -> None:
        object.__setattr__(self, "time_scale", positive("time_scale", self.time_scale))

    # The ends of the time axis.

    @property
    def num_train(self) -> int | None:
        """The number of training times N of a discrete schedule, else None."""
        return None

    @property
    def t_max(self) -> float:
        """Where sampling starts by default."""
        return 1.0

    @property
    def t_min(self) -> float:
        """Where ODE solvers end by default."""
        return 1e-3

    @property
    def t_clean(self) -> float:
        """Where sigma is exactly 0 and alpha exactly 1; a legal end of every grid."""
        return 0.0

    @property
    def t_floor(self) -> float:
        """The lowest time with noise that a grid in log-SNR ends at: `t_min`, unless that is already clean."""
        return self.t_min

    def check(self, t: float | Array) -> None:
        """Raise ValueError unless every time is in `[t_clean, t_max]`, or above it by float32's rounding alone."""
        self._inside(floats("t", t, "times, a number or an array of them"), self.t_max)

    def within(self, t: float | Array) -> Array:
        """The times, those above `t_max` by float32's rounding taken for it. float64."""
        x = floats("t", t, "times, a number or an array of them")
        return np.where((x > self.t_max) & (x <= self.t_max * (1.0 + ROUNDING)), self.t_max, x)

    def _inside(self, x: Array, upper: float) -> Array:
        """The times, which are at most `upper`, or ValueError."""
        if ((x >= self.t_clean) & (x <= upper)).all():
            return x
        # Where any sigma is a time, none is rounded to the last.
        x = x if math.isinf(upper) else self.within(x)
        bad = ~((x >= self.t_clean) & (x <= upper))
        if bad.any():
            raise ValueError(
                f"time {float(x[bad].flat[0])!r} is outside the range of {self!r}: expected "
                f"{self.t_clean!r} (clean) <= t <= {upper!r}"
            )
        return x

    def _times(self, t: float | Array) -> Array:
        return self._inside(floats("t", t, "times, a number or an array of them"), self._t_limit)

    @property
    def _t_limit(self) -> float:
        return self.t_max

    # Functions of time. Subclasses give _log_alpha_sigma, and the rest follows.

    def _log_alpha_sigma(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """alpha, sigma and their logarithms (-inf for 0) at float64 times inside the range."""
        raise NotImplementedError

    def _inverse_lambda(self, lam: Array) -> Array:
        raise NotImplementedError

    def _model_time(self, t: Array) -> Array:
        return t

    def _all(self, t: float | Array) -> tuple[Array, Array, Array, Array]:
        x = self._times(t)
        with np.errstate(divide="ignore"):
            return self._log_alpha_sigma(x)

    def alpha(self, t: Values) -> Values:
        """The coefficient of x_0."""
        return cast(Values, self._all(t)[0][()])

    def sigma(self, t: Values) -> Values:
        """The standard deviation of the noise."""
        return cast(Values, self._all(t)[1][()])

    def log_alpha(self, t: Values) -> Values:
        """log alpha, -inf where alpha is 0."""
        return cast(Values, self._all(t)[2][()])

    def lam(self, t: Values) -> Values:
        """log(alpha / sigma), half the log-SNR: inf where sigma is 0, -inf where alpha is 0."""
        _, _, log_alpha, log_sigma = self._all(t)
        return cast(Values, (log_alpha - log_sigma)[()])

    @cached_property
    def lam_min(self) -> float:
        """log(alpha / sigma) at `t_max`."""
        return float(self.lam(self.t_max))

    def model_time(self, t: Values) -> Values:
        """The time given to the network."""
        return cast(Values, (self.time_scale * self._model_time(self._times(t)))[()])

    def drift(self, t: Values) -> Values:
        """f(t) = d log alpha / dt of the SDE dx = f(t) x dt + g(t) dw with these alpha and sigma (see `diffusion`)."""
        return cast(Values, self._sde(t)[0][()])

    def diffusion(self, t: Values) -> Values:
        """g(t) of the SDE dx = f(t) x dt + g(t) dw, with g² = d sigma²/dt − 2 f sigma² (Song et al. 2021, 2011.13456).

        Both take the public time, and mean derivatives with respect to the SDE's own time. The two are the same but for
        VE, where the SDE's is u in [0, 1] with sigma = sigma_min (sigma_max / sigma_min)^u (App. C), and ours is sigma.
        Discrete schedules are chains, not SDEs: ValueError.
        """
        return cast(Values, np.sqrt(self._sde(t)[1])[()])

    def _sde(self, t: float | Array) -> tuple[Array, Array]:
        x = self._times(t)
        with np.errstate(divide="ignore"):
            return self._drift_diffusion(x)

    def _drift_diffusion(self, t: Array) -> tuple[Array, Array]:
        """f and g² at float64 times inside the range."""
        raise ValueError(
            f"{self!r} is a chain of {self.num_train} steps without an SDE of its own; expected a continuous schedule, "
            "such as fastdiff.schedules.vp_linear(), which DDPM's becomes with many steps"
        )

    def at(self, t: float) -> Point:
        """Everything at one time, from one evaluation."""
        x = floats("t", t, "one time")
        if x.ndim:
            raise TypeError(f"t got {short(t)}; expected one time")
        return self.points(x[None])[0]

    def points(self, times: ArrayLike) -> list[Point]:
        """Everything at several times, from one evaluation."""
        return list(map(Point._make, self.table(times).T.tolist()))

    def table(self, times: ArrayLike) -> Array:
        """(5, n): the fields of the `Point` of each of n times."""
        given = np.asarray(times, dtype=np.float64)
        x = self._times(given)
        with np.errstate(divide="ignore"):
            alpha, sigma, log_alpha, log_sigma = self._log_alpha_sigma(x)
        return np.array((given, self.time_scale * self._model_time(x), alpha, sigma, log_alpha - log_sigma))

    def inverse_lambda(self, lam: Values) -> Values:
        """The time at which log(alpha / sigma) is `lam`; inf gives `t_clean`.

        Raises ValueError where `lam` is below its value at `t_max` by more than rounding.
        """
        x = floats("lam", lam, "values of log(alpha/sigma), a number or an array of them")
        lowest = -math.inf if math.isinf(self._t_limit) else self.lam_min
        # Rounding: lam(t) is good to a few units in the last place of |lam| + 1.
        bad = ~(x >= lowest - 1e-12 * (1.0 + abs(lowest))) if math.isfinite(lowest) else np.isnan(x)
        if bad.any():
            raise ValueError(
                f"lambda {float(x[bad].flat[0])!r} is not reached by {self!r}: expected at least {lowest!r}, "
                f"its value at t_max = {self.t_max!r}"
            )
        with np.errstate(over="ignore", divide="ignore"):
            t = self._inverse_lambda(x)
        return cast(Values, np.minimum(np.maximum(t, self.t_clean), self._t_limit)[()])

    def prior_std(self, t: float | None = None) -> float:
        """The standard deviation of x at time `t` (default `t_max`) when nothing but noise is known."""
        self.check(self.t_max if t is None else t)
        return 1.0

    # Content.

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        scale = values.pop("time_scale")
        if scale != 1.0:
            values["time_scale"] = scale
        return f"{self.factory}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def _parameters(self) -> dict[str, Any]:
        """What equality is made of, as JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}

    def to_dict(self) -> dict[str, Any]:
        """A JSON object from which `NoiseSchedule.from_dict` makes an equal schedule."""
        return {"type": type(self).__name__, **self._parameters()}

    @cached_property
    def told(self) -> Told:
        """`to_dict()`, read-only: the same object every time, of which `from_dict` gives this schedule."""
        return Told(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule that `to_dict` wrote; ValueError for an unknown type or field."""
        if isinstance(data, Told):
            return data.schedule
        fields = dict(data)
        name = fields.pop("type", None)
        cls = NoiseSchedule._types.get(name) if isinstance(name, str) else None
        if cls is None:
            raise ValueError(unknown("schedule type", name, NoiseSchedule._types))
        valid = {f.name for f in dataclasses.fields(cls)}
        for field in fields:
            if field not in valid:
                raise ValueError(unknown(f"field of {name}", field, sorted(valid)))
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in fields and f.default is dataclasses.MISSING]
        if missing:
            raise ValueError(f"{name} lacks the fields {', '.join(missing)}; expected what to_dict() gives")
        return cls._from_fields(fields)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> NoiseSchedule:
        return cls(**fields)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the canonical JSON of the content: equal for equal schedules."""
        content = {"type": type(self).__name__, **self._parameters()}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Told(Mapping[str, Any]):
    """What a schedule's `to_dict` gives, read-only, with lists as tuples; and the schedule itself."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self._values = {k: tuple(v) if isinstance(v, list) else v for k, v in schedule.to_dict().items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class Indexed(NoiseSchedule):
    """A schedule of N training times; the public time is their index, as a float."""

    discrete: ClassVar[bool] = True

    @property
    def num_train(self) -> int:
        """The number of training times N."""
        raise NotImplementedError

    @property
    def t_max(self) -> float:
        """The last index, N - 1."""
        return float(self.num_train - 1)

    @property
    def t_min(self) -> float:
        """Index 0."""
        return 0.0

    @property
    def t_clean(self) -> float:
        """-1: one step before index 0."""
        return -1.0


def positive(name: str, value: float, *, zero: bool = False) -> float:
    """`value` as a finite positive float (or 0, where `zero`), else ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0.0 or (number == 0.0 and not zero):
        raise ValueError(f"{name} got {value!r}; expected a finite number {'>= 0' if zero else '> 0'}")
    return number


def vp_parts(log_alpha: Array) -> tuple[Array, Array, Array, Array]:
    """alpha, sigma and logarithms where alpha^2 + sigma^2 = 1: no cancellation at either end."""
    variance = 0.0 - np.expm1(2.0 * log_alpha)
    return np.exp(log_alpha), np.sqrt(variance), log_alpha, 0.5 * np.log(variance)


def vp_log_alpha(lam: Array) -> Array:
    """log alpha of a variance-preserving schedule: -log(1 + exp(-2 lam)) / 2, to full relative accuracy."""
    return -0.5 * np.logaddexp(0.0, -2.0 * lam)
