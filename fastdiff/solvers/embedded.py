"""What an adaptive method is made of: trial steps as rows, with an error row beside the result. NumPy only.

`fastdiff.run.adaptive` runs them. Every trial step finds the model value at its beginning in the history (h1), so that
a rejected step does not evaluate it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastdiff.plan import H1, M, Stage
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import ROW, Option, Row
from fastdiff.solvers.control import Controller

CONTROL = Option(
    "batch",
    "one step for the batch, as published, or each sample's own, so that a sample does not depend on its batch",
    choices=("batch", "sample"),
)
MAX_NFE = Option(10000, "give up with an error after so many network evaluations", minimum=1)
DENOISE = Option(False, "end with the predicted x0 at t_end")


@dataclass(frozen=True)
class Embedded:
    """An adaptive method, bound to a schedule and its two times.

    Attributes:
        method, space, order: as of `Method`.
        controller: what judges its steps.
        start, stop: where the integration begins and ends.
        clean: where a last step, to the predicted x0, leads from `stop`; None without it.
        first_step: the first trial's width in the independent variable; None: found from two evaluations.
        longest: no trial is wider.
        doubtful: an accepted step that is wider gives a warning, since the estimate of its error says little.
        control: "batch" for one step of the batch, "sample" for each sample's own.
        fsal: whether a step's last evaluation is the next one's first.
        forward: whether it runs from noise to data.
    """

    method: str
    space: str
    order: int
    controller: Controller
    schedule: NoiseSchedule
    start: Point
    stop: Point
    clean: Point | None
    control: str
    max_nfe: int
    options: dict[str, Any]
    first_step: float | None = None
    longest: float = math.inf
    doubtful: float = math.inf
    fsal: bool = False

    @property
    def forward(self) -> bool:
        return self.start.t > self.stop.t

    @property
    def prior_std(self) -> float:
        return self.schedule.prior_std(self.start.t)

    def position(self, p: Point) -> float:
        """The independent variable at a point."""
        raise NotImplementedError

    def point(self, w: float) -> Point:
        """The inverse of `position`."""
        raise NotImplementedError

    def scale(self, p: Point) -> float:
        """c with x = c·y, for a method that integrates y."""
        raise NotImplementedError

    def trial(self, s: Point, t: Point) -> tuple[Stage, ...]:
        """The stages of one step from s to t. The first evaluates nothing; the last has the result as next_u and its
        estimated error as next_x."""
        raise NotImplementedError

    def weights(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Of a Runge-Kutta step: the weights of its evaluations in the result and in the error."""
        return None

    def begun(self, s: Point, p: Point) -> tuple[Stage, Stage] | None:
        """The two stages that find the first step: x to p by Euler's rule, then the change of the model value."""
        return None

    def arrived(self, p: Point) -> bool:
        """Whether p is the end, or so close that it counts as the end."""
        return p == self.stop

    def value(self, p: Point) -> Stage:
        """The stage that evaluates the network at x, and gives the model value itself."""
        return stage(p, p, ROW["m"])

    def denoise(self, p: Point) -> Stage:
        """The predicted x0, from x and the model value in h1."""
        to = self.clean or p
        if self.space == "data":
            row = ROW["h1"]
        elif self.space == "noise":
            row = (ROW["x"] - p.sigma * ROW["h1"]) / p.alpha
        else:
            row = (ROW["x"] - p.sigma * ROW["h1"]) / (p.alpha + p.sigma)
        return stage(p, to, row, evaluate=False)

    def needs_step(self, h: float, w: float) -> bool:
        """Whether a width of h still moves w by more than rounding."""
        return h > 10 * np.spacing(abs(w))


def stage(
    at: Point, to: Point, next_u: Row, next_x: Row | None = None, *, evaluate: bool = True, keep: bool = False
) -> Stage:
    return Stage(
        t=at.t,
        model_time=at.model_time,
        alpha=at.alpha,
        sigma=at.sigma,
        next_u=tuple(next_u.tolist()),
        next_x=tuple((ROW["x"] if next_x is None else next_x).tolist()),
        t_next=to.t,
        evaluate=evaluate,
        keep=keep,
    )


def from_history(first: Stage) -> Stage:
    """The stage with the model value taken from h1 instead of evaluated."""

    def moved(row: tuple[float, ...]) -> tuple[float, ...]:
        values = list(row)
        values[H1] += values[M]
        values[M] = 0.0
        return tuple(values)

    return replace(first, next_u=moved(first.next_u), next_x=moved(first.next_x), evaluate=False, keep=False)


def last_point(
    schedule: NoiseSchedule, stop: Point, denoise_to_zero: bool, through: bool
) -> tuple[Point, Point | None]:
    """Where to stop, and the clean point that a last step leads to. `through`: it can run to sigma = 0 itself."""
    clean = schedule.at(schedule.t_clean)
    if stop.sigma == 0 and not through:
        return schedule.at(schedule.t_floor), stop
    return stop, (clean if denoise_to_zero and stop.sigma > 0 else None)
