"""What every form of guidance is: an object that binds itself into table rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from fastdiff.names import constant, no_values, representable, short
from fastdiff.plan import Plan, Stage

Scale = float | tuple[float, ...] | Callable[[float], Any]
"""A guidance scale: a number, one for each sample, or a function of the schedule's time that gives either."""
Number = float | np.ndarray
"""A number of a row; (B,) float64 where samples differ."""
Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
HALVES = ("conditional", "unconditional")


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


class Outputs(NamedTuple):
    """An evaluation, as `Guidance.blend` sees it.

    Attributes:
        values: the network's outputs, (B, ...) in its own dtype, in the order of `Guidance.halves`. Not to be written.
        u: (B, ...) where it was evaluated, in the state's dtype.
        numbers: (1, K) or (B, K) in the state's dtype: `Guidance.numbers` of this row.
        memory: kept from one evaluation of a run to the next; empty at its start.
    """

    values: tuple[torch.Tensor, ...]
    u: torch.Tensor
    numbers: torch.Tensor
    memory: dict[str, torch.Tensor]

    def wide(self, k: int) -> torch.Tensor:
        """Output k in the state's dtype, as the kernels combine it."""
        return self.values[k].to(self.u.dtype)

    def number(self, k: int) -> torch.Tensor:
        """Number k of the row: (1,) or (B,)."""
        return self.numbers.select(1, k)

    def column(self, values: torch.Tensor) -> torch.Tensor:
        """(B,) in the shape that multiplies outputs."""
        return values.reshape(-1, *[1] * (self.u.ndim - 1))


class Blend(NamedTuple):
    """g = w1·first + w2·second + wu·u for one evaluation; weights are (1,) or (B,), on the device.

    Attributes:
        wu: None for 0.
        second: (B, ...) in the state's dtype instead of the output that `second` is, or None.
    """

    w1: torch.Tensor
    w2: torch.Tensor
    wu: torch.Tensor | None = None
    second: torch.Tensor | None = None


@dataclass(frozen=True)
class Guidance:
    """No guidance, and the base of every form. A new form is one subclass. No kernel and no loop knows of it.

    g = w1·first + w2·second is what becomes the model value; `first` is the network's output (its conditional half),
    `second` the unconditional half or a classifier's gradient, which rows may read as a register too.

    Attributes:
        batched: whether the network is evaluated on a conditional and an unconditional half.
        reverses: whether `first` is the second of the outputs, and `second` the first.
        gradient: (x, t) -> the gradient that is `second`, or None.
    """

    batched: ClassVar[bool] = False
    reverses: ClassVar[bool] = False

    @property
    def gradient(self) -> Gradient | None:
        return None

    @property
    def halves(self) -> tuple[str, ...]:
        """What an evaluation's outputs are called, in the order in which they lie; () for a single one."""
        return HALVES if self.batched else ()

    @property
    def conditioned(self) -> bool:
        """Whether `cond` and `uncond` are to be given."""
        return self.batched

    @property
    def weak(self) -> Callable[..., Any] | None:
        """Another network, which gives the second output."""
        return None

    @property
    def further(self) -> Mapping[str, Any] | None:
        """Conditions of a third output beside the two halves."""
        return None

    @property
    def key(self) -> Hashable:
        """What the rows depend on: equal keys give equal rows."""
        return self

    def check(self, plan: Plan | None, name: str) -> None:
        """Raise ValueError for a plan that this form does not go with; None stands for the adaptive method `name`."""

    def weights(self, at: Place) -> tuple[Number, Number] | None:
        """(w1, w2), or None where g is `first` alone. Not asked where the user's corrected x0 is used instead of g."""
        return None

    def observed(self, at: Place) -> tuple[Number, Number] | None:
        """The weights that the reported x0 is made with."""
        return self.weights(at)

    def combine(self, at: Place, row: np.ndarray) -> np.ndarray:
        """The coefficients over the registers, (13,), of an output: `row` as the solver wrote it, or changed."""
        return row

    @property
    def blends(self) -> bool:
        """Whether the weights follow from the outputs, by `blend`."""
        return False

    def numbers(self, at: Place) -> tuple[Number, ...]:
        """What `blend` reads of a row, before the run."""
        weights = self.weights(at)
        return () if weights is None else weights

    def reads_u(self, at: Place) -> bool:
        """Whether `blend` gives a weight of u."""
        return False

    def blend(self, outputs: Outputs) -> Blend:
        """The weights of an evaluation, sample by sample. On the device, without synchronisation. Asked where `blends`,
        and where weights differ between samples."""
        return Blend(outputs.number(0), outputs.number(1))

    @property
    def fixed(self) -> Hashable:
        """The values, if any, that `blend` takes from the host: a captured graph serves these alone."""
        return None


UNGUIDED = Guidance()


def scale_at(scale: Any, t: float) -> Number:
    """The scale at a schedule time: a float, or (B,) float64; raises for one that is neither, or not finite."""
    value = scale(t) if callable(scale) else scale
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    got = short(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    try:
        number = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"the guidance scale at t={t:g} is {got}; expected a number, or one for each sample") from None
    if number.ndim > 1 or number.size == 0:
        raise ValueError(
            f"the guidance scale at t={t:g} has shape {number.shape}; expected a number, or one for each sample, (B,)"
        )
    if not np.isfinite(number).all():
        raise ValueError(f"the guidance scale at t={t:g} is {got}; expected finite numbers, such as 3.0")
    return number if number.ndim else float(number)


# Named, since torch.compile makes no unions of these.
_LISTS = (list, tuple, np.ndarray)
_ARRAYS = (np.ndarray, torch.Tensor)
_NUMBERS = (int, float, np.integer, np.floating)


def settled_scale(name: str, scale: Any) -> Scale:
    """A finite number as it is, a function of time, or a list or tensor of them as a tuple, a number for each sample.

    A tensor on a device is read here, once, which waits for the device.

    Raises:
        ValueError: anything else.
    """
    if callable(scale):
        return scale
    if torch.compiler.is_dynamo_compiling():
        if isinstance(scale, torch.Tensor):
            raise no_values(name)
        scale = constant(scale)
    listed = isinstance(scale, _LISTS) or (isinstance(scale, torch.Tensor) and scale.ndim > 0)
    values: Any = None
    try:
        values = scale.tolist() if isinstance(scale, _ARRAYS) else scale
        if listed and len(values) > 0 and all(_is_number(v) for v in values):
            return tuple(float(v) for v in values)
    except TypeError:
        values = scale
    if not listed and _is_number(values):
        return float(values) if isinstance(values, np.generic) else values
    raise ValueError(
        f"{name}={short(scale)}: expected a finite number, such as 3.0, one for each sample, (B,), or a function of "
        "the time"
    )


def _is_number(value: Any) -> bool:
    number = isinstance(value, _NUMBERS) and not isinstance(value, bool)
    return number and representable(value)


def one_evaluation_a_step(plan: Plan | None, what: str, instead: str) -> None:
    """ValueError unless every stage evaluates the network, keeps no history and leads to the next state itself."""
    if plan is not None and all(s.evaluate and not s.keep and s.next_u == s.next_x for s in plan.stages):
        return
    name = "an adaptive method" if plan is None else repr(plan.method)
    raise ValueError(
        f"{what} needs a method with one evaluation a step and no history, such as ddim, not {name}: use {instead}"
    )
