"""The times of a fitted plan: coordinate search over the teacher's grid with halving steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fastdiff.fitting.student import Reached, Rows, Student

COARSE = (1 / 10, 1 / 40)
"""First and last step of the search on a part of the trajectories, as parts of the grid."""
GAIN = 1e-3
"""A move must lower the loss by this part of it."""
SWEEPS = 4
"""Most passes over the times with one step."""

Places = tuple[int, ...]
Told = Callable[[int, Places, float], None]


class Found(NamedTuple):
    """The result of a search."""

    places: Places
    loss: float
    rows: Rows
    opening: float
    complete: bool
    """Whether no step of one grid time gains any more, or the budget ended the search before."""


class Memo:
    """The losses of all tried places. What is known is not evaluated again, so that a search that begins again with
    the memo of one that was killed goes the same way.

    Args:
        known: losses by places; added to.
        told: called with the evaluations of each trajectory that a trial asked for, known or not, its places and its
            loss.

    Attributes:
        spent: those evaluations.
    """

    def __init__(
        self, student: Student, known: dict[Places, float], told: Callable[[int, Places, float], None]
    ) -> None:
        self.student, self.known, self.told = student, known, told
        self.spent = 0
        self.path: list[Reached] = []
        self.of: Places = ()
        self.trial: tuple[Places, list[Reached]] | None = None

    def loss(self, places: Places, from_stage: int = 0) -> float:
        """Of a plan that evaluates at `places`; `self.of` has the same places before `from_stage`."""
        cost = self.student.cost(from_stage, len(places) - 1)
        self.spent += cost
        found = self.known.get(places)
        self.trial = None
        if found is None:
            if from_stage and not self.path:
                _, self.path = self.student.reach(self.of, 0, [])
            found, path = self.student.reach(places, from_stage, self.path)
            self.known[places] = found
            self.trial = places, path
        self.told(cost, places, found)
        return found

    def take(self, places: Places) -> None:
        """Go on from `places`, which were tried last."""
        self.of = places
        self.path = self.trial[1] if self.trial is not None and self.trial[0] == places else []

    def rows(self) -> tuple[Rows, float]:
        """Coefficients of the places taken."""
        if not self.path:
            _, self.path = self.student.reach(self.of, 0, [])
        return self.path[-1].rows, self.path[-1].opening


def snap(grid: Sequence[float], times: Sequence[float], steps: int) -> Places:
    """The `steps` different places of the grid that are nearest to `times`, descending, and its end."""
    own = sorted({float(t) for t in times}, reverse=True)
    while len(own) < steps:
        # Singlestep methods evaluate at one time twice: the widest gap gets another.
        ends = [*own, grid[-1]]
        gap = max(range(len(own)), key=lambda i: _way(grid, ends[i + 1]) - _way(grid, ends[i]))
        own.insert(gap + 1, 0.5 * (ends[gap] + ends[gap + 1]))
    values = np.asarray(grid)
    places = [int(np.argmin(np.abs(values - t))) for t in own[:steps]]
    for k in range(1, steps):
        places[k] = max(places[k], places[k - 1] + 1)
    end = len(grid) - 1
    for k in range(steps - 1, -1, -1):
        places[k] = min(places[k], end - (steps - k))
    return (*places, end)


def _way(grid: Sequence[float], t: float) -> int:
    return int(np.argmin(np.abs(np.asarray(grid) - t)))


def search(memo: Memo, starts: Sequence[Places], budget: int, first: int, last: int = 1) -> Found:
    """The best of `starts`, moved one time after another by `first` places of the grid, half of that, ... `last`.

    Later times come first: what they change costs least. A time whose move fails in both directions waits for the
    next pass. The first evaluation moves too: the way to it is one factor, which needs no network.
    """
    best, places = min((memo.loss(start), start) for start in starts)
    memo.take(places)
    steps, step = len(places) - 1, max(first, last)
    while step >= last:
        for _ in range(SWEEPS):
            moved = False
            for k in range(steps - 1, -1, -1):
                for direction in (step, -step):
                    tried = (*places[:k], places[k] + direction, *places[k + 1 :])
                    low = places[k - 1] + 1 if k else 0
                    if not low <= tried[k] < places[k + 1]:
                        continue
                    if memo.spent + steps - k > budget:
                        return Found(places, best, *memo.rows(), False)
                    loss = memo.loss(tried, k)
                    if loss < best * (1.0 - GAIN):
                        best, places, moved = loss, tried, True
                        memo.take(places)
                        break
            if not moved:
                break
        step //= 2
    return Found(places, best, *memo.rows(), True)


def coarse_steps(grid: Sequence[float]) -> tuple[int, int]:
    """First and last step, in places of the grid, of the search on a part of the trajectories."""
    first, last = (max(1, round(part * (len(grid) - 1))) for part in COARSE)
    return first, last
