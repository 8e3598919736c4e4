"""One row of a plan: the registers that it combines, and what makes it valid. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import NoReturn

import numpy as np

REGISTERS = ("x", "u", "m", "h1", "h2", "h3", "h4", "h5", "h6", "second", "za", "zb", "zc")
"""What a stage may combine, element by element; docs/architecture.md says what each is."""

NREG = len(REGISTERS)
X, U, M, H1, SECOND, ZA = (REGISTERS.index(name) for name in ("x", "u", "m", "h1", "second", "za"))
MAX_HISTORY = 6
MAX_DRAWS = 3
NO_DRAWS = (-1, -1, -1)
LANGEVIN_NORMS = ("", "batch", "sample")
_FINITE = ("t", "model_time", "alpha", "sigma", "t_next", "in_scale")
_numbers = attrgetter(*_FINITE)


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
        model_time_to: None in the usual case. Else the time of the step's end as the network knows it, for flow maps:
            the network is called as model(x, t, s).
        alpha, sigma: signal and noise scale at `t`.
        next_u: 13 coefficients over `REGISTERS`: the next evaluation point u'.
        next_x: 13 coefficients: the next base x'. Equal to `next_u` where one buffer serves both.
        t_next: the schedule's time of u'.
        evaluate: False for a stage without a network evaluation (no `m`, no `second`).
        keep: whether `m` is kept in the history (and is `h1` from the next stage on).
        draws: numbers of the standard normal draws za, zb, zc; -1 where unused.
        spans: () where no draw has one. Else three entries, one for each draw: () or (from, to), the schedule's times
            between which the noise acts. With `noise="brownian"` the draw is the increment of one path between them.
        in_scale: the network's input at this stage is `in_scale * u`.
        step: index of the outer step to which this stage belongs, from 0.
        langevin_norm: "" in the usual case. Else, when the stage runs, the coefficient of m is multiplied by q² and
            that of za by q, with q = ‖za‖/‖m‖: norms of each sample, "batch" taking the mean of each over the batch,
            "sample" every sample's own (the Langevin step of Song et al. 2021, arXiv 2011.13456, Algorithms 4 and 5).
        learned_variance: () in the usual case. Else (c0, c1), for networks that give twice the channels, the
            prediction and then v: when the stage runs, the coefficient of za is multiplied by e and that of `second`
            by e², e = exp(c0 + c1·v), element by element (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15).
    """

    t: float
    model_time: float
    alpha: float
    sigma: float
    next_u: tuple[float, ...]
    next_x: tuple[float, ...]
    t_next: float
    evaluate: bool = True
    keep: bool = False
    draws: tuple[int, int, int] = NO_DRAWS
    spans: tuple[tuple[float, ...], ...] = ()
    in_scale: float = 1.0
    step: int = 0
    langevin_norm: str = ""
    learned_variance: tuple[float, ...] = ()
    model_time_to: float | None = None

    @property
    def noisy(self) -> bool:
        """Whether any draw is used."""
        return max(self.draws) >= 0

    @property
    def reach(self) -> int:
        """How many of h1, h2, … the rows read: the number of the last one."""
        for j in range(SECOND - 1, H1 - 1, -1):
            if self.next_u[j] or self.next_x[j]:
                return j - H1 + 1
        return 0

    def span(self, d: int) -> tuple[float, ...]:
        """(from, to) of the d-th draw, or ()."""
        return self.spans[d] if self.spans else ()

    def validate(self, where: str, kept: int) -> None:
        """Raise ValueError, naming `where`, for what no back end could run; `kept` model values are in the history."""
        self._validate_row(where, "next_u", self.next_u, kept)
        if self.next_x is not self.next_u:
            self._validate_row(where, "next_x", self.next_x, kept)
        if self.keep and not self.evaluate:
            fail(where, "keep without a network evaluation")
        if self.langevin_norm not in LANGEVIN_NORMS:
            fail(
                where,
                f"langevin_norm got {self.langevin_norm!r}, expected one of {', '.join(map(repr, LANGEVIN_NORMS))}",
            )
        if self.langevin_norm:
            if not (self.next_u[M] and self.next_u[ZA] and self.next_x == self.next_u):
                fail(
                    where,
                    f"langevin_norm={self.langevin_norm!r} needs a next_u that reads m and za, and a next_x equal to "
                    "it",
                )
            if self.draws[1:] != (-1, -1):
                fail(where, f"langevin_norm={self.langevin_norm!r} goes with one draw, za; got draws={self.draws}")
        if self.learned_variance:
            if len(self.learned_variance) != 2 or not np.isfinite(self.learned_variance).all():
                fail(where, f"learned_variance got {self.learned_variance}, expected () or two finite numbers (c0, c1)")
            if self.langevin_norm or not self.evaluate:
                fail(where, "learned_variance needs a network evaluation, and does not go with langevin_norm")
        if self.spans:
            self._validate_spans(where)
        if not all(map(math.isfinite, _numbers(self))):
            name = next(name for name in _FINITE if not math.isfinite(getattr(self, name)))
            fail(where, f"{name} is not finite: {getattr(self, name)}")
        if self.model_time_to is not None and not (np.isfinite(self.model_time_to) and self.evaluate):
            fail(where, f"model_time_to={self.model_time_to} needs a network evaluation and a finite time")
        if self.alpha < 0 or self.sigma < 0 or self.alpha + self.sigma == 0:
            fail(where, f"alpha={self.alpha:g} and sigma={self.sigma:g} must be non-negative and not both zero")

    def _validate_spans(self, where: str) -> None:
        if len(self.spans) != MAX_DRAWS:
            fail(where, f"spans needs () or {MAX_DRAWS} entries, one for each of za, zb, zc; got {self.spans}")
        for d, span in enumerate(self.spans):
            name = REGISTERS[ZA + d]
            if span and (len(span) != 2 or not np.isfinite(span).all() or span[0] == span[1]):
                fail(where, f"the span of {name} got {span}, expected () or two different finite times (from, to)")
            if span and self.draws[d] < 0:
                fail(where, f"the span of {name} is {span}, but {name} has no draw number")

    def _validate_row(self, where: str, name: str, row: tuple[float, ...], kept: int) -> None:
        if len(row) != NREG:
            fail(where, f"{name} needs {NREG} coefficients ({', '.join(REGISTERS)}), got {len(row)}")
        if not all(map(math.isfinite, row)):
            bad = REGISTERS[int(np.argmax(~np.isfinite(row)))]
            fail(where, f"{name} has a non-finite coefficient of {bad}")
        if kept < MAX_HISTORY and any(row[H1 + kept : SECOND]):
            j = next(j for j in range(H1 + kept, SECOND) if row[j])
            fail(where, f"{name} reads {REGISTERS[j]}, but only {kept} earlier model values are kept")
        if not self.evaluate and (row[M] or row[SECOND]):
            fail(where, f"{name} reads the model value, but the stage does not evaluate the network")
        for d, number in enumerate(self.draws):
            if number < 0 and row[ZA + d]:
                fail(where, f"{name} reads {REGISTERS[ZA + d]}, which has no draw number")


def fail(where: str, message: str) -> NoReturn:
    raise ValueError(f"invalid plan: {where}: {message}")
