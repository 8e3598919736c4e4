"""What every solver is made of: its description, its request, and the recorder of its rows. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from fastdiff.names import representable, short, unknown, unknown_option
from fastdiff.plan import MAX_DRAWS, MAX_HISTORY, NO_DRAWS, NREG, REGISTERS, ZA, Plan, Stage, register
from fastdiff.plan.phi import phi
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.schedules.grids import MAX_STEPS, checked, end_time, grid

Row = np.ndarray
"""A linear form over the registers: float64 (13,)."""

ROW: Mapping[str, Row] = {name: register(name) for name in REGISTERS}
HISTORY: tuple[Row, ...] = tuple(ROW[f"h{i}"] for i in range(1, MAX_HISTORY + 1))


@dataclass(frozen=True)
class Option:
    """One option of a method: its default, what it accepts, and what it means."""

    default: Any
    doc: str
    choices: tuple[Any, ...] | Mapping[str, Any] | None = None
    """What it accepts; the keys of a mapping, which others may add to."""
    minimum: float | None = None
    maximum: float | None = None

    @property
    def accepted(self) -> tuple[Any, ...] | None:
        """The choices as they are now."""
        return None if self.choices is None else tuple(self.choices)

    def settled(self, value: Any) -> Any:
        """`value` with files read, so that it is a value that stays what it is."""
        return value

    def check(self, method: str, name: str, value: Any) -> Any:
        """`value`, or ValueError or TypeError that names the method, the option and what it accepts."""
        call = f"method={method!r}, {name}={self.default!r}"
        choices = self.accepted
        if choices is not None:
            kind = type(choices[0])
            if isinstance(value, np.integer):
                value = int(value)
            if type(value) is not kind or value not in choices:
                if isinstance(value, str):
                    raise ValueError(unknown(f"{name} of method {method!r}:", value, [str(c) for c in choices]))
                raise ValueError(
                    f"{name}={value!r}: method {method!r} accepts {', '.join(map(repr, choices))} ({call})"
                )
            return value
        if isinstance(self.default, bool):
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"{name}={value!r}: method {method!r} expects True or False ({call})")
            return bool(value)
        if isinstance(value, bool | str) or not isinstance(value, int | float | np.integer | np.floating):
            raise TypeError(f"{name}={short(value)}: method {method!r} expects a number ({call})")
        if not representable(value) and not (value == math.inf and self.default == math.inf):
            raise ValueError(f"{name}={short(value)}: method {method!r} expects a finite number ({call})")
        low, high = self.minimum, self.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"[{'-inf' if low is None else f'{low:g}'}, {'inf' if high is None else f'{high:g}'}]"
            raise ValueError(f"{name}={value!r}: method {method!r} accepts {bounds} ({call})")
        return float(value) if isinstance(self.default, float) else value


class DrawsNoise(ValueError):
    """A step that draws noise has no upward form: no single x_T leads to a sample."""

    def __init__(self, method: str) -> None:
        super().__init__(
            f"method {method!r} with these options draws noise, so that no single x_T leads to a sample: invert a "
            "deterministic one, such as ddim with eta=0"
        )


GOOD_FOR: Mapping[str, str] = {
    "few": "few steps, deterministic",
    "noise": "noise in the sampler",
    "distilled": "distilled networks, one to eight steps",
    "flow": "flow matching",
    "video": "video, where each evaluation is dear",
    "rl": "reinforcement learning: steps with a likelihood",
}
"""What a method may be good for, as docs/solvers.md has it."""


@dataclass(frozen=True)
class Request:
    """What a builder is asked for: a schedule and a time grid that it can evaluate between any two times.

    Adaptive methods have no grid, and ask for both `ends`.
    """

    schedule: NoiseSchedule
    steps: int | None = None
    spacing: str | tuple[float, ...] = ""
    t_start: float | None = None
    t_end: float | None = None
    grid_options: Mapping[str, Any] = field(default_factory=dict)
    upward: bool = False
    """Whether the run goes from data to noise: the same times in increasing order."""
    prediction: str = "eps"
    """What the network gives, for adaptive methods, whose range may depend on it."""

    def ends(self, method: str) -> tuple[Point, Point]:
        """The schedule at `t_start` and `t_end`, in either order; its whole range by default.

        Raises:
            ValueError: a time outside the schedule, or twice the same.
        """
        first = end_time("t_start", self.t_start, self.schedule.t_max, self.schedule)
        last = end_time("t_end", self.t_end, self.schedule.t_min, self.schedule)
        if first == last:
            raise ValueError(f"method {method!r}: t_start={first:g} and t_end={last:g} are the same time")
        return self.schedule.at(first), self.schedule.at(last)

    def points(self, steps: int | None = None) -> list[Point]:
        """The schedule at `steps + 1` times over the whole range (default: the requested number of steps).

        Upwards, a clean end (sigma = 0), where most networks and solvers are not defined, is left out; the first time
        is then the lowest that is left, or the schedule's `t_floor` where that is lower.
        """
        times = self._grid(steps or self.steps)
        if self.upward:
            ends_clean = self.schedule.at(float(times[-1])).sigma == 0
            if ends_clean and steps is not None:
                times = self._grid(steps + 1)
            floor = self.schedule.t_floor
            times = times[:-1] if ends_clean else times
            if ends_clean and times[-1] > floor:
                times = np.append(times if steps is None else times[:-1], floor)
            times = times[::-1]
            if len(times) < 2:
                raise ValueError(
                    f"{self.schedule!r} has one time with noise, t={times[0]:g}: a run upwards needs two of them"
                )
        return self.schedule.points(times)

    def _grid(self, steps: int | None) -> np.ndarray:
        return grid(self.spacing, self.schedule, steps, self.t_start, self.t_end, **self.grid_options)

    def inside(self, steps: Sequence[tuple[Point, Point, int]]) -> list[list[Point]]:
        """For each step (s, t, count), in the order of the run, the count − 1 points that part it: spaced as the whole
        grid, or in logSNR where that lists times.

        Raises:
            ValueError: times that are one in float32.
        """
        if self.spacing in ("time_uniform", "time_quadratic", "karras", "exponential"):
            options = {k: v for k, v in self.grid_options.items() if k == "rho"}
            parts = [
                grid(self.spacing, self.schedule, count, max(s.t, t.t), min(s.t, t.t), final="t_min", **options)[1:-1]
                for s, t, count in steps
            ]
            times = np.concatenate([[], *(part[::-1] if self.upward else part for part in parts)])
        else:
            lam = [s.lam + np.arange(1, count) / count * (t.lam - s.lam) for s, t, count in steps]
            times = self.schedule.inverse_lambda(np.concatenate([[], *lam]))
        found = iter(self.schedule.points(times))
        inner = [list(islice(found, count - 1)) for _, _, count in steps]
        path = [p.t for (s, *_), part in zip(steps, inner, strict=True) for p in (s, *part)]
        path += [t.t for _, t, _ in steps[-1:]]
        checked(np.array(path[::-1] if self.upward else path), self.schedule, f"spacing {self.spacing!r} inside a step")
        return inner


@dataclass(frozen=True)
class Method:
    """A solver: its names, its claims (tested), its options and its table builder."""

    name: str
    summary: str
    paper: str
    order: int
    build: Callable[..., Any]
    space: str
    spacing: str
    nfe_per_step: int = 1
    stochastic: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    aliases: Sequence[str] = ()
    adaptive: bool = False
    """Whether steps are chosen while it runs: `build` then gives a `solvers.embedded.Embedded`, and there is no
    plan."""
    good_for: Sequence[str] = ()
    """The needs, keys of `GOOD_FOR`, that it serves well: for `fastdiff methods --for`."""

    def check_options(self, options: Mapping[str, Any], others: Iterable[Method] = ()) -> dict[str, Any]:
        """`options` with the defaults filled in; `others` may be named as the methods that have an unknown one.

        Raises:
            ValueError: an option that this method does not take, or a value out of range.
            TypeError: a value of the wrong type.
        """
        for name in options:
            if name not in self.options:
                owners = [m.name for m in others if name in m.options]
                raise ValueError(unknown_option(self.name, name, sorted(self.options), owners))
        filled = {name: option.default for name, option in self.options.items()}
        filled.update({name: self.options[name].check(self.name, name, value) for name, value in options.items()})
        return filled


@dataclass(frozen=True, eq=False)
class Draw:
    """Standard normal noise that acts between the times `start` and `end`, or at no interval of times (None, None).

    Each object is a draw of its own: given to two stages it is the same numbers in both, and two objects are
    independent. With `noise="brownian"` it is the increment of one path between its times over the square root of the
    path's variance there, so two draws of one plan may not overlap in time. Noise over an interval that holds that of
    another draw is written as a sum of parts.
    """

    start: Point | None = None
    end: Point | None = None

    @property
    def span(self) -> tuple[float, ...]:
        """(from, to) in the schedule's times, or ()."""
        return () if self.start is None or self.end is None else (self.start.t, self.end.t)


class Recorder:
    """Collects the stages of a plan. One `add` per network evaluation."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.numbers: dict[Draw, int] = {}

    def add(
        self,
        at: Point,
        to: Point,
        next_u: Row,
        next_x: Row | None = None,
        *,
        step: int,
        keep: bool = False,
        evaluate: bool = True,
        langevin_norm: str = "",
        noise: Sequence[Draw] = (),
        model_time_to: float | None = None,
    ) -> None:
        """A stage that evaluates the network at `at` and leads to `to`. `next_x` defaults to `next_u`: one buffer.

        `noise`: what za, zb and zc are, as many as the rows read. A draw gets its number where rows first read it, and
        has it in every stage that it is given to. za is a new draw without a span where none is given.
        """
        if len(self.stages) >= 2 * MAX_STEPS:
            raise ValueError(
                f"this plan would have more than {2 * MAX_STEPS} rows: use fewer steps, or fewer corrections a step "
                "(n_corrector)"
            )
        u = tuple(next_u.tolist())
        x = u if next_x is None else tuple(next_x.tolist())
        read = any(u[ZA:]) or any(x[ZA:])
        draws, spans = self._drawn(u, x, tuple(noise)) if read else (NO_DRAWS, ())
        self.stages.append(
            Stage(
                t=at.t,
                model_time=at.model_time,
                alpha=at.alpha,
                sigma=at.sigma,
                next_u=u,
                next_x=x,
                t_next=to.t,
                evaluate=evaluate,
                keep=keep,
                draws=draws,
                spans=spans,
                step=step,
                langevin_norm=langevin_norm,
                model_time_to=model_time_to,
            )
        )

    def _drawn(
        self, u: Sequence[float], x: Sequence[float], noise: tuple[Draw, ...]
    ) -> tuple[tuple[int, int, int], tuple[tuple[float, ...], ...]]:
        """The numbers and the spans of the draws that a stage with these rows reads."""
        draws, spans = list(NO_DRAWS), [Draw().span] * MAX_DRAWS
        given = noise or (Draw(),)
        for d in range(MAX_DRAWS):
            if u[ZA + d] or x[ZA + d]:
                if d >= len(given):
                    raise ValueError(
                        f"stage {len(self.stages)} reads {REGISTERS[ZA + d]}, but {len(noise)} draws were given: "
                        "add(..., noise=(Draw(s, mid), Draw(mid, t)))"
                    )
                draws[d], spans[d] = self.numbers.setdefault(given[d], len(self.numbers)), given[d].span
        return (draws[0], draws[1], draws[2]), tuple(spans) if any(spans) else ()

    def finish(self) -> tuple[Stage, ...]:
        """The stages, which keep no value in the history that no later stage reads."""
        stages = list(self.stages)
        oldest_read = math.inf
        number = sum(s.keep for s in stages)
        for k in range(len(stages) - 1, -1, -1):
            s = stages[k]
            if s.keep:
                number -= 1
                # `number` is the number of this value. It may go only where no older value is read either, so that the
                # numbers of the others stay.
                if oldest_read > number:
                    stages[k] = s = replace(s, keep=False)
            reach = s.reach
            if reach:
                oldest_read = min(oldest_read, number - reach)
        return tuple(stages)

    def plan(
        self,
        method: str,
        space: str,
        order: int,
        request: Request,
        points: Sequence[Point],
        options: Mapping[str, Any],
        *,
        denoise_to_zero: bool = False,
    ) -> Plan:
        """The plan of a run through `points`. With `denoise_to_zero`, where the last has noise, one more evaluation
        there and its predicted x0."""
        times, last = [p.t for p in points], points[-1]
        if denoise_to_zero and last.sigma > 0:
            clean = request.schedule.at(request.schedule.t_clean)
            self.add(last, clean, denoise(space, last), step=len(points) - 1)
            times.append(clean.t)
        return Plan(
            method=method,
            space=space,
            order=order,
            times=tuple(times),
            stages=self.finish(),
            prior_std=request.schedule.prior_std(times[0]),
            schedule=request.schedule.told,
            options=options,
        )


def finite(value: float | np.ndarray) -> bool:
    """Whether the number, or all of a column, are finite."""
    return math.isfinite(value) if isinstance(value, float) else bool(np.isfinite(value).all())


def nonzero(value: float | np.ndarray) -> bool:
    """Whether the number, or all of a column, are other than 0."""
    return value != 0.0 if isinstance(value, float) else bool(value.all())


def orders_of(order: int, steps: int, falls: bool) -> list[int]:
    """The order of each step of a multistep method: at first no more than points are behind it, and where it `falls`
    no more than steps are left."""
    return [min(order, i + 1, steps - i if falls else order) for i in range(steps)]


def multistep_rows(
    points: Sequence[Point], orders: Sequence[int], update: Callable[[np.ndarray, Sequence[Point], Point], Row]
) -> Row:
    """The rows of steps that read the points behind them: float64 (steps, 13).

    Args:
        points: where the steps begin and end: step i goes from points[i] to points[i + 1].
        orders: of each step: how many points, points[i] and earlier ones, it reads.
        update: called once for all steps of one order, whose lambdas are finite and infinite at the same places. Gets
            their indices, their points, newest first, and where they end. Of several steps the fields of these are
            columns, float64 (n, 1), so that what is written for one step gives a row for each.
    """
    table, known = np.array(points), [math.isfinite(p.lam) for p in points]
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, order in enumerate(orders):
        alike.setdefault((order, *known[i + 1 - order : i + 2]), []).append(i)
    made = np.empty((len(orders), NREG))
    for (order, *_), steps in alike.items():
        at = np.array(steps)
        if len(steps) == 1:
            i = steps[0]
            made[at] = update(at, points[i::-1][:order], points[i + 1])
        else:
            end, *nodes = (Point(*table[at + j].T[:, :, None]) for j in range(1, -order, -1))
            made[at] = update(at, nodes, end)
    return made


class Exponential:
    """The exponential integrator from s to t in noise or data space: x_t = decay·x + gain(1)·m + gain(2)·h·m' +
    gain(3)·h²·m'' …

    gain(k) is −sigma_t·h·phi_k(h) in noise space (DPM-Solver, Lu et al. 2022, eq. 3.6 and App. B) and
    alpha_t·h·phi_k(−h) in data space (DPM-Solver++, Lu et al. 2022b, eq. 8), with h = lambda_t − lambda_s. With
    sigma_t = 0 or alpha_s = 0, h is infinite, and only gain(1) exists.

    Of columns (see `multistep_rows`) all h are finite, or all infinite.
    """

    def __init__(self, space: str, s: Point, t: Point) -> None:
        self.space, self.s, self.t = space, s, t
        self.h = t.lam - s.lam
        self.finite = finite(self.h)
        """Whether h is finite, so that orders above 1 exist."""
        if space == "noise" and not nonzero(s.alpha):
            raise ValueError(
                f"a noise-prediction solver cannot start at t={np.extract(s.alpha == 0, s.t)[0]:g}, where alpha = 0 "
                "(zero terminal SNR): use a data-prediction one (ddim, dpmpp2m, unipc, ...) or an earlier t_start"
            )
        if space == "data" and not nonzero(s.sigma):
            raise ValueError(
                f"a data-prediction solver cannot start at t={np.extract(s.sigma == 0, s.t)[0]:g}, where sigma = 0: "
                "use a noise-prediction one (dpm1, dpm2, dpm3, ...) or a later start"
            )
        self.decay = t.alpha / s.alpha if space == "noise" else t.sigma / s.sigma

    def gain(self, k: int) -> float:
        """The coefficient of the k-th term."""
        if not self.finite:
            if k > 1:
                raise ValueError("a step to sigma = 0 or from alpha = 0 is of first order")
            s, t = self.s, self.t
            if self.space == "noise":
                return t.sigma - t.alpha * s.sigma / s.alpha
            return t.alpha - t.sigma * s.alpha / s.sigma
        if self.space == "noise":
            return -self.t.sigma * self.h * phi(k, self.h)
        return self.t.alpha * self.h * phi(k, -self.h)

    def first(self, x: Row, m: Row) -> Row:
        """The first-order step, DDIM's."""
        return self.decay * x + self.gain(1) * m

    def midpoint(self, x: Row, m: Row, d1: Row) -> Row:
        """Second order with d1 ≈ h·m', as the published "dpmsolver" form has it: half of gain(1) instead of
        gain(2)."""
        return self.first(x, m) + 0.5 * self.gain(1) * d1

    def taylor(self, x: Row, m: Row, *d: Row) -> Row:
        """d[k−1] ≈ h^k times the k-th derivative of m with respect to lambda."""
        return self.first(x, m) + sum((self.gain(k + 2) * dk for k, dk in enumerate(d)), np.zeros_like(x))


def denoise(space: str, s: Point) -> Row:
    """The predicted x0 as a row: the last step of `denoise_to_zero`."""
    if space == "data":
        return ROW["m"]
    return (ROW["x"] - s.sigma * ROW["m"]) / s.alpha
