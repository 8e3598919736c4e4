"""The Plan: a sampler written as data, one row (a `Stage`) per network evaluation.

NumPy only. A plan says nothing about the network, its prediction type or guidance; `fastdiff.table.bind` adds those.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fastdiff.names import unknown
from fastdiff.schedules import NoiseSchedule

REGISTERS = ("x", "u", "m", "h1", "h2", "h3", "h4", "h5", "h6", "aux", "za", "zb", "zc")
"""What a stage may combine, element by element; DESIGN of each register is in docs/architecture.md."""

NREG = len(REGISTERS)
X, U, M, H1, AUX, ZA = (REGISTERS.index(name) for name in ("x", "u", "m", "h1", "aux", "za"))
MAX_HISTORY = 6
MAX_DRAWS = 3
SPACES = ("noise", "data", "velocity", "score")
NORMS = ("", "batch", "sample")

FORMAT = 1


def register(name: str) -> np.ndarray:
    """The linear form that selects one register: a float64 vector of `len(REGISTERS)` with a single 1.

    Solvers add and scale these, so a table row is written as the paper writes its update.
    """
    row = np.zeros(NREG)
    row[REGISTERS.index(name)] = 1.0
    return row


IDENTITY = tuple(register("x").tolist())


@dataclass(frozen=True)
class Stage:
    """One row: where the network is evaluated, and what becomes of x and u afterwards.

    Attributes:
        t: the schedule's time of `u`, where the network is evaluated.
        model_time: the time given to the network there.
        alpha, sigma: signal and noise scale at `t`.
        next_u: 13 coefficients over `REGISTERS`: the next evaluation point u'.
        next_x: 13 coefficients: the next base x'. Equal to `next_u` where one buffer serves both.
        t_next: the schedule's time of u'.
        evaluate: False for a stage without a network evaluation (no `m`, no `aux`).
        push: whether `m` enters the history (and is `h1` from the next stage on).
        draws: numbers of the standard normal draws za, zb, zc; -1 where unused.
        in_scale: the network's input at this stage is `in_scale * u`.
        step: index of the outer step to which this stage belongs, from 0.
        norms: "" in the usual case. Else, when the stage runs, the coefficient of m is multiplied by q² and that of za
            by q, with q = ‖za‖/‖m‖: norms of each sample, "batch" taking the mean of each over the batch, "sample"
            every sample's own (the Langevin step of Song et al. 2021, arXiv 2011.13456, Algorithms 4 and 5).
        spread: () in the usual case. Else (c0, c1), for networks that give twice the channels, the prediction and then
            v: when the stage runs, the coefficient of za is multiplied by e and that of aux by e², e = exp(c0 + c1·v),
            element by element (the learned variances of Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15).
        variance: of the step's noise, by which the mean form of classifier guidance multiplies the gradient (Dhariwal
            and Nichol 2021, arXiv 2105.05233, Algorithm 1); with `spread`, times e². 0: no such form.
        unclipped: w where x0 is clipped for (1 − w) of m alone, m = (1 − w)·clip(x0) + w·x0 in the "data" space: what a
            step makes of the network's own eps. 0: all of m goes through the clip.
    """

    t: float
    model_time: float
    alpha: float
    sigma: float
    next_u: tuple[float, ...]
    next_x: tuple[float, ...]
    t_next: float
    evaluate: bool = True
    push: bool = False
    draws: tuple[int, int, int] = (-1, -1, -1)
    in_scale: float = 1.0
    step: int = 0
    norms: str = ""
    spread: tuple[float, ...] = ()
    variance: float = 0.0
    unclipped: float = 0.0


def _fail(where: str, message: str) -> None:
    raise ValueError(f"invalid plan: {where}: {message}")


@dataclass(frozen=True)
class Plan:
    """A frozen, validated sampler table. Build one with `fastdiff.plan(...)`, or by hand from `Stage` rows.

    Attributes:
        method: canonical name of the solver.
        space: what `m` is: "noise" (eps), "data" (x0), "velocity" (alpha'·x0 + sigma'·eps) or "score".
        order: the order of convergence that the solver claims.
        times: the outer time grid, `steps + 1` schedule times, strictly monotone.
        stages: the rows, in the order in which they run.
        prior_std: standard deviation of x at `times[0]` when it is drawn from the prior.
        schedule: `NoiseSchedule.to_dict()` of the schedule that the coefficients came from.
        options: the solver's options, as given and defaulted.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", _frozen(self.schedule))
        object.__setattr__(self, "options", _frozen(self.options))
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
        used = [j - H1 + 1 for s in self.stages for j in range(H1, AUX) if s.next_u[j] or s.next_x[j]]
        return max(used, default=0)

    @cached_property
    def stochastic(self) -> bool:
        """Whether any stage draws noise."""
        return any(d >= 0 for s in self.stages for d in s.draws)

    @cached_property
    def draws(self) -> int:
        """One more than the largest draw number in use (0 for a deterministic plan)."""
        return 1 + max((d for s in self.stages for d in s.draws), default=-1)

    @cached_property
    def wide(self) -> bool:
        """Whether the network gives twice the channels: the prediction and v, from which a stage makes its variance."""
        return any(s.spread for s in self.stages)

    def _validate(self) -> None:
        if self.space not in SPACES:
            _fail("space", f"got {self.space!r}, expected one of {', '.join(SPACES)}")
        times = np.asarray(self.times, dtype=np.float64)
        if times.ndim != 1 or len(times) < 2:
            _fail("times", f"expected at least two, got {len(np.atleast_1d(times))}")
        if not np.isfinite(times).all():
            _fail("times", f"not finite: {self.times}")
        steps = np.diff(times)
        if not ((steps < 0).all() or (steps > 0).all()):
            bad = int(np.argmax(steps * np.sign(steps[0]) <= 0)) if steps[0] else 0
            _fail(
                "times",
                f"must be strictly monotone, but times[{bad}]={times[bad]:g}, times[{bad + 1}]={times[bad + 1]:g}",
            )
        if not (np.isfinite(self.prior_std) and self.prior_std > 0):
            _fail("prior_std", f"expected a positive finite number, got {self.prior_std}")
        if not self.stages:
            _fail("stages", "a plan needs at least one")
        starts: dict[float, int] = {}
        pushed, step = 0, -1
        for k, s in enumerate(self.stages):
            self._validate_stage(f"stage {k}", s, pushed)
            pushed += s.push
            # Heun and singlestep methods come back to a time inside a step; two steps that begin at one model time do
            # not.
            if s.evaluate and s.step != step:
                step = s.step
                if s.model_time in starts:
                    _fail(
                        f"stage {k}",
                        f"model time {s.model_time:g} already began the step of stage {starts[s.model_time]}",
                    )
                starts[s.model_time] = k
        self._validate_times()
        last = self.stages[-1]
        if last.next_u != last.next_x:
            _fail(f"stage {len(self.stages) - 1}", "the last stage's next_u must equal its next_x, which is the result")

    def _validate_times(self) -> None:
        first, last = self.stages[0], self.stages[-1]
        if first.t != self.times[0]:
            _fail("times", f"begin at {self.times[0]:g}, but stage 0 is at t={first.t:g}")
        for k, (s, following) in enumerate(zip(self.stages, self.stages[1:], strict=False)):
            if s.t_next != following.t:
                _fail(f"stage {k + 1}", f"t={following.t:g}, but stage {k} leads to t_next={s.t_next:g}")
        if last.t_next != self.times[-1]:
            _fail("times", f"end at {self.times[-1]:g}, but the last stage leads to t_next={last.t_next:g}")

    def _check_schedule(self) -> None:
        schedule = NoiseSchedule.from_dict(self.schedule)
        t = np.array([s.t for s in self.stages])
        truth = {"alpha": schedule.alpha(t), "sigma": schedule.sigma(t), "model_time": schedule.model_time(t)}
        for name, values in truth.items():
            own = np.array([getattr(s, name) for s in self.stages])
            # What another machine's exp and log may change, and no more.
            bad = np.abs(own - values) > 1e-9 * np.abs(values) + 1e-12
            if bad.any():
                k = int(np.argmax(bad))
                _fail(f"stage {k}", f"{name}={own[k]:g}, but the schedule has {values[k]:g} at t={t[k]:g}")

    @staticmethod
    def _validate_stage(where: str, s: Stage, pushed: int) -> None:
        for name, row in (("next_u", s.next_u), ("next_x", s.next_x)):
            if len(row) != NREG:
                _fail(where, f"{name} needs {NREG} coefficients ({', '.join(REGISTERS)}), got {len(row)}")
            if not np.isfinite(row).all():
                bad = REGISTERS[int(np.argmax(~np.isfinite(row)))]
                _fail(where, f"{name} has a non-finite coefficient of {bad}")
            for j in range(H1, AUX):
                if row[j] and j - H1 >= pushed:
                    _fail(where, f"{name} reads {REGISTERS[j]}, but only {pushed} earlier model values are kept")
            if not s.evaluate and (row[M] or row[AUX]):
                _fail(where, f"{name} reads the model value, but the stage does not evaluate the network")
            for d in range(MAX_DRAWS):
                if row[ZA + d] and s.draws[d] < 0:
                    _fail(where, f"{name} reads {REGISTERS[ZA + d]}, which has no draw number")
        if s.push and not s.evaluate:
            _fail(where, "push without a network evaluation")
        if s.norms not in NORMS:
            _fail(where, f"norms got {s.norms!r}, expected one of {', '.join(map(repr, NORMS))}")
        if s.norms and not (s.next_u[M] and s.next_u[ZA] and s.next_x == s.next_u):
            _fail(where, f"norms={s.norms!r} needs a next_u that reads m and za, and a next_x equal to it")
        if s.norms and s.draws[1:] != (-1, -1):
            _fail(where, f"norms={s.norms!r} goes with one draw, za; got draws={s.draws}")
        if s.spread and (len(s.spread) != 2 or not np.isfinite(s.spread).all()):
            _fail(where, f"spread got {s.spread}, expected () or two finite numbers (c0, c1)")
        if s.spread and (s.norms or not s.evaluate):
            _fail(where, "spread needs a network evaluation, and does not go with norms")
        if not (np.isfinite(s.variance) and s.variance >= 0):
            _fail(where, f"variance got {s.variance}, expected a finite number, at least 0")
        if s.variance and not (s.evaluate and s.next_x == s.next_u):
            _fail(where, "variance needs a network evaluation, and a next_x equal to next_u")
        if s.unclipped and not s.evaluate:
            _fail(where, "unclipped needs a network evaluation")
        for name in ("unclipped", "t", "model_time", "alpha", "sigma", "t_next", "in_scale"):
            if not np.isfinite(getattr(s, name)):
                _fail(where, f"{name} is not finite: {getattr(s, name)}")
        if s.alpha < 0 or s.sigma < 0 or s.alpha + s.sigma == 0:
            _fail(where, f"alpha={s.alpha:g} and sigma={s.sigma:g} must be non-negative and not both zero")

    def to_json(self) -> str:
        """Lossless JSON: floats are written with their shortest round-trip representation."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["stages"] = [dataclasses.asdict(stage) for stage in self.stages]
        return json.dumps({"format": FORMAT, **data}, indent=1, allow_nan=False, default=dict)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`. Raises ValueError if `text` is not a plan, or of an unknown format."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a fastdiff plan: not JSON ({error})") from None
        if not isinstance(data, dict) or "format" not in data:
            raise ValueError(
                "not a fastdiff plan: expected a JSON object with the key 'format', as plan.save(path) writes"
            )
        found = data.pop("format")
        if found != FORMAT:
            raise ValueError(f"plan format {found!r} is not supported; this version reads format {FORMAT}")
        _check_fields("a plan", "", data, cls)
        rows = data.pop("stages")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("not a fastdiff plan: 'stages' must be a list of objects")
        for k, row in enumerate(rows):
            _check_fields("a stage", f"stage {k} ", row, Stage)
        fields: list[dict[str, Any]] = [
            {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows
        ]
        stages = tuple(Stage(**row) for row in fields)
        return cls(stages=stages, times=tuple(data.pop("times")), **data)

    def save(self, path: str | Path) -> None:
        """Write `to_json()` to `path`."""
        Path(path).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote."""
        return cls.from_json(Path(path).read_text())

    def fingerprint(self) -> str:
        """SHA-256 of the plan's JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __hash__(self) -> int:
        return hash((self.method, self.space, self.times, self.stages))

    def __str__(self) -> str:
        head = (
            f"{self.method}: {self.steps} steps, {self.nfe} network evaluations, order {self.order}, {self.space} "
            f"space, history {self.history}, {'stochastic' if self.stochastic else 'deterministic'}"
        )
        columns = ["stage", "step", "t", "model t", "alpha", "sigma", "next u", "next x"]
        rows = [columns]
        for k, s in enumerate(self.stages):
            same = s.next_x == s.next_u
            marks = "".join(
                mark
                for mark, wanted in (("*", not s.evaluate), ("+", s.push), ("~", s.norms), ("^", s.spread))
                if wanted
            )
            rows.append(
                [
                    f"{k}{marks}",
                    str(s.step),
                    f"{s.t:.6g}",
                    f"{s.model_time:.6g}" if s.evaluate else "-",
                    f"{s.alpha:.6g}",
                    f"{s.sigma:.6g}",
                    _formula(s.next_u, s.draws),
                    "= u" if same else ("= x" if s.next_x == IDENTITY else _formula(s.next_x, s.draws)),
                ]
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        body = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        norms = next((s.norms for s in self.stages if s.norms), "")
        tail = f"; ~: m times q², za times q, q = ‖za‖/‖m‖ of the {norms}" if norms else ""
        if self.wide:
            tail += "; ^: za times exp(c0 + c1·v), v the second half of the network's channels"
        return f"{head}\n{body}\n(+: the model value enters the history; *: no network evaluation{tail})"

    def plot(self, path: str | Path) -> None:
        """Draw the coefficients of every register against the stage, and alpha, sigma and lambda, to a picture file.

        Needs matplotlib (`pip install matplotlib`); the file's ending chooses the format.
        """
        from fastdiff.plot import plot_plan

        plot_plan(self, path)


def _frozen(value: Any) -> Any:
    """A read-only copy made of mappings, tuples, and what JSON keeps as it is."""
    if isinstance(value, Mapping):
        return MappingProxyType({str(k): _frozen(v) for k, v in value.items()})
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a plan's options must be JSON values, got {type(value).__name__}")


def _check_fields(kind: str, where: str, data: Mapping[str, Any], cls: type) -> None:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise ValueError(unknown(f"field of {kind}", name, fields))
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"not a fastdiff plan: {where}lacks {name!r}")


def _formula(row: Sequence[float], draws: Sequence[int]) -> str:
    terms = []
    for j, c in enumerate(row):
        if c:
            name = REGISTERS[j] + (f"#{draws[j - ZA]}" if j >= ZA else "")
            terms.append(f"{'+' if c > 0 else '-'} {abs(c):.5g} {name}")
    text = " ".join(terms) or "0"
    return text.removeprefix("+ ")
