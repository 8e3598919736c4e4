"""The Plan: a sampler written as data, one row (a `Stage`) per network evaluation.

NumPy only. A plan says nothing about the network, its prediction type or guidance; `fastdiff.bind` adds those.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fastdiff.files import write_whole
from fastdiff.plan.file import dump, parse
from fastdiff.plan.stage import Stage, fail
from fastdiff.plan.text import table_text
from fastdiff.schedules import NoiseSchedule
from fastdiff.schedules.base import Told

SPACES = ("noise", "data", "velocity", "score")


@dataclass(frozen=True)
class Plan:
    """A frozen, validated sampler table. Build one with `fastdiff.plan(...)`, or by hand from `Stage` rows.

    Attributes:
        method: canonical name of the solver.
        space: what `m` is: "noise" (eps), "data" (x0), "velocity" (eps − x0) or "score" (−eps/sigma).
        order: the order of convergence that the solver claims.
        times: the outer time grid, `steps + 1` schedule times, strictly monotone.
        stages: the rows, in the order in which they run.
        prior_std: standard deviation of x at `times[0]` when it is drawn from the prior.
        schedule: `NoiseSchedule.to_dict()` of the schedule that the coefficients came from.
        options: the solver's options, as given and defaulted.
        origin: where the numbers come from, for plans that were fitted: network, guidance, teacher, seeds, errors. A
            plan with an origin may give the network other times than its schedule's; alpha and sigma stay the
            schedule's at `t`.

    Raises:
        ValueError: naming the stage and the reason, for non-finite coefficients, repeated or non-monotone times,
            repeated model times, history read before it is written, draws that are used but not numbered, and the like.
    """

    method: str
    space: str
    order: int
    times: tuple[float, ...]
    stages: tuple[Stage, ...]
    prior_std: float = 1.0
    schedule: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Told):
            object.__setattr__(self, "schedule", _frozen(self.schedule))
        object.__setattr__(self, "options", _frozen(self.options))
        object.__setattr__(self, "origin", _frozen(self.origin))
        self._validate()
        if self.schedule:
            self._check_schedule()

    def __reduce__(self) -> tuple[Any, ...]:
        # Read-only mappings cannot be pickled.
        return Plan.from_json, (self.to_json(),)

    @property
    def steps(self) -> int:
        """Number of outer steps."""
        return len(self.times) - 1

    @cached_property
    def nfe(self) -> int:
        """Number of network evaluations."""
        return sum(stage.evaluate for stage in self.stages)

    @cached_property
    def history(self) -> int:
        """How many earlier model values the stages read, at most 6."""
        return max((s.reach for s in self.stages), default=0)

    @cached_property
    def shifted(self) -> bool:
        """Whether the rows say what becomes of guidance, as those of CFG++ do (the option guidance="cfg_pp"): m is then
        the unconditional value, and `second` in a row stands for the guided x0 minus the unconditional one."""
        return self.options.get("guidance") == "cfg_pp"

    @cached_property
    def stochastic(self) -> bool:
        """Whether any stage draws noise."""
        return any(d >= 0 for s in self.stages for d in s.draws)

    @cached_property
    def draws(self) -> int:
        """One more than the largest draw number in use (0 for a deterministic plan)."""
        return 1 + max((d for s in self.stages for d in s.draws), default=-1)

    @cached_property
    def spanned(self) -> bool:
        """Whether every draw has its span of time, as `noise="brownian"` needs; True for a deterministic plan."""
        return all(s.span(d) for s in self.stages for d, number in enumerate(s.draws) if number >= 0)

    @cached_property
    def two_times(self) -> bool:
        """Whether the network is given two times, where a step begins and where it ends."""
        return any(s.model_time_to is not None for s in self.stages)

    @cached_property
    def learned_variance(self) -> bool:
        """Whether the network gives twice the channels: the prediction and v, from which a stage makes its variance."""
        return any(s.learned_variance for s in self.stages)

    def _validate(self) -> None:
        if self.space not in SPACES:
            fail("space", f"got {self.space!r}, expected one of {', '.join(SPACES)}")
        times = np.asarray(self.times, dtype=np.float64)
        if times.ndim != 1 or len(times) < 2:
            fail("times", f"expected at least two, got {len(np.atleast_1d(times))}")
        if not np.isfinite(times).all():
            fail("times", f"not finite: {self.times}")
        steps = np.diff(times)
        if not ((steps < 0).all() or (steps > 0).all()):
            bad = int(np.argmax(steps * np.sign(steps[0]) <= 0)) if steps[0] else 0
            fail(
                "times",
                f"must be strictly monotone, but times[{bad}]={times[bad]:g}, times[{bad + 1}]={times[bad + 1]:g}",
            )
        if not (np.isfinite(self.prior_std) and self.prior_std > 0):
            fail("prior_std", f"expected a positive finite number, got {self.prior_std}")
        if not self.stages:
            fail("stages", "a plan needs at least one")
        starts: dict[float, int] = {}
        kept, step = 0, -1
        for k, s in enumerate(self.stages):
            s.validate(f"stage {k}", kept)
            kept += s.keep
            # Heun and singlestep methods evaluate one time twice inside a step. Two steps may not begin at one model
            # time.
            if s.evaluate and s.step != step:
                step = s.step
                if s.model_time in starts:
                    fail(
                        f"stage {k}",
                        f"model time {s.model_time:g} already began the step of stage {starts[s.model_time]}",
                    )
                starts[s.model_time] = k
        if self.two_times and any(s.evaluate and s.model_time_to is None for s in self.stages):
            fail("stages", "some evaluations have a model_time_to and some have none: a network takes two times or one")
        self._validate_times()
        self._validate_spans()
        last = self.stages[-1]
        if last.next_u != last.next_x:
            fail(f"stage {len(self.stages) - 1}", "the last stage's next_u must equal its next_x, which is the result")

    def _validate_times(self) -> None:
        first, last = self.stages[0], self.stages[-1]
        if first.t != self.times[0]:
            fail("times", f"begin at {self.times[0]:g}, but stage 0 is at t={first.t:g}")
        for k, (s, following) in enumerate(zip(self.stages, self.stages[1:], strict=False)):
            if s.t_next != following.t:
                fail(f"stage {k + 1}", f"t={following.t:g}, but stage {k} leads to t_next={s.t_next:g}")
        if last.t_next != self.times[-1]:
            fail("times", f"end at {self.times[-1]:g}, but the last stage leads to t_next={last.t_next:g}")

    def _validate_spans(self) -> None:
        """Draws of different numbers are independent, and so must be the parts of a path that they stand for."""
        spans: dict[int, tuple[float, ...]] = {}
        for k, s in enumerate(self.stages):
            for d, number in enumerate(s.draws):
                if number >= 0 and spans.setdefault(number, s.span(d)) != s.span(d):
                    fail(
                        f"stage {k}",
                        f"draw {number} has the span {s.span(d)}, but before it had {spans[number]}: a draw that is "
                        "used again keeps its span",
                    )
        ordered = sorted((min(span), max(span), number) for number, span in spans.items() if span)
        for (_, end, number), (begin, _, other) in itertools.pairwise(ordered):
            if begin < end:
                fail(
                    "spans",
                    f"those of draws {number} and {other}, {spans[number]} and {spans[other]}, overlap: draws of "
                    "different numbers are independent, so their spans must be apart",
                )

    def _check_schedule(self) -> None:
        _, model_time, alpha, sigma, _ = NoiseSchedule.from_dict(self.schedule).table([s.t for s in self.stages])
        own = np.array([(s.alpha, s.sigma, s.model_time) for s in self.stages]).T
        # The times that a fitted plan gives to the network are numbers of their own.
        truth = np.array((alpha, sigma, own[2] if self.origin else model_time))
        # No more than the exp and log of another machine may change.
        bad = np.abs(own - truth) > 1e-9 * np.abs(truth) + 1e-12
        if bad.any():
            j, k = np.argwhere(bad)[0].tolist()
            name = ("alpha", "sigma", "model_time")[j]
            fail(f"stage {k}", f"{name}={own[j, k]:g}, but the schedule has {truth[j, k]:g} at t={self.stages[k].t:g}")

    def to_json(self) -> str:
        """Lossless JSON: floats are written with their shortest round-trip representation."""
        return dump(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`. Raises ValueError if `text` is not a plan, or of an unknown format."""
        fields = parse(text, cls)
        try:
            return cls(**fields)
        except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # Of the mappings, whose content only their readers know.
            raise ValueError(f"not a fastdiff plan: {type(error).__name__}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write `to_json()` to `path`, whole or not at all."""
        write_whole(path, (self.to_json() + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote. Raises ValueError, with the path, for any other content."""
        content = Path(path).read_bytes()
        try:
            return cls.from_json(content.decode())
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def fingerprint(self) -> str:
        """SHA-256 of the plan's JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def _hash(self) -> int:
        return hash((self.method, self.space, self.times, self.stages))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return table_text(self)

    def plot(self, path: str | Path) -> None:
        """Draw the coefficients of every register against the stage, and alpha, sigma and lambda, to a picture file.

        Needs matplotlib (`pip install matplotlib`); the file's ending chooses the format.
        """
        from fastdiff.plan.picture import draw

        draw(self, path)


def _frozen(value: Any) -> Any:
    """A read-only copy made of mappings, tuples, and what JSON keeps as it is."""
    if isinstance(value, Mapping):
        return MappingProxyType({str(k): _frozen(v) for k, v in value.items()})
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        # Of the 1000 betas of a schedule all are numbers.
        return tuple(value) if set(map(type, value)) <= {int, float} else tuple(_frozen(v) for v in value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a plan's options must be JSON values, got {type(value).__name__}")
