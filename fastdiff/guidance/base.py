"""What every form of guidance is: an object that binds itself into table rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from fastdiff.names import representable
from fastdiff.plan import Plan, Stage

Scale = float | Callable[[float], float]
"""A guidance scale: a number, or a function of the schedule's time."""
Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Place(NamedTuple):
    """Where a row is bound.

    Attributes:
        stage: the plan's row.
        space: of the model value: "noise", "data", "velocity" or "score".
        prediction: what the network gives, and so what `second` is where the network is evaluated on both halves.
        variance: of the reverse step's noise, where the plan states it, else None.
    """

    stage: Stage
    space: str
    prediction: str
    variance: float | None = None


@dataclass(frozen=True)
class Guidance:
    """No guidance, and the base of every form. A new form is one subclass. No kernel and no loop knows of it.

    g = w1·first + w2·second is what becomes the model value; `first` is the network's output (its conditional half),
    `second` the unconditional half or a classifier's gradient, which rows may read as a register too.

    Attributes:
        batched: whether the network is evaluated on a conditional and an unconditional half.
        gradient: (x, t) -> the gradient that is `second`, or None.
    """

    batched: ClassVar[bool] = False

    @property
    def gradient(self) -> Gradient | None:
        return None

    @property
    def key(self) -> Hashable:
        """What the rows depend on: equal keys give equal rows."""
        return self

    def check(self, plan: Plan | None, name: str) -> None:
        """Raise ValueError for a plan that this form does not go with; None stands for the adaptive method `name`."""

    def weights(self, at: Place) -> tuple[float, float] | None:
        """(w1, w2), or None where g is `first` alone. Not asked where the user's corrected x0 is used instead of g."""
        return None

    def combine(self, at: Place, row: np.ndarray) -> np.ndarray:
        """The coefficients over the registers, (13,), of an output: `row` as the solver wrote it, or changed."""
        return row

    def rescale(self, first: torch.Tensor, g: torch.Tensor) -> torch.Tensor | None:
        """(B,) factors of g, from the conditional output and g in the state's dtype, (B, ...); g may be overwritten.
        On the device, without synchronisation. None: there are none."""
        return None

    @property
    def rescales(self) -> bool:
        """Whether `rescale` gives factors."""
        return False

    @property
    def fixed(self) -> Hashable:
        """The values, if any, that `rescale` takes from the host: a captured graph serves these alone."""
        return None


UNGUIDED = Guidance()


def scale_at(scale: Any, t: float) -> float:
    """The scale at a schedule time; ValueError for one that is not finite."""
    value = scale(t) if callable(scale) else scale
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"the guidance scale at t={t:g} is {value!r}; expected a number") from None
    if not math.isfinite(number):
        raise ValueError(f"the guidance scale at t={t:g} is {value!r}; expected a finite number, such as 3.0")
    return number


def check_scale(name: str, scale: Any) -> None:
    """Raise for what is neither a finite number nor a function of time."""
    if callable(scale):
        return
    number = isinstance(scale, int | float | np.integer | np.floating) and not isinstance(scale, bool)
    if not number or not representable(scale):
        raise ValueError(f"{name}={scale!r}: expected a finite number, such as 3.0, or a function of the time")


def one_evaluation_a_step(plan: Plan | None, what: str, instead: str) -> None:
    """ValueError unless every stage evaluates the network, keeps no history and leads to the next state itself."""
    if plan is not None and all(s.evaluate and not s.keep and s.next_u == s.next_x for s in plan.stages):
        return
    name = "an adaptive method" if plan is None else repr(plan.method)
    raise ValueError(
        f"{what} needs a method with one evaluation a step and no history, such as ddim, not {name}: use {instead}"
    )
