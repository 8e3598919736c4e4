"""The times of a fitted plan: coordinate search over the teacher's grid with halving steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastdiff.fitting.student import Reached, Rows, Student

COARSE = (1 / 10, 1 / 40)
"""First and last step of the search on a part of the trajectories, as parts of the grid."""
GAIN = 1e-3
"""A move must lower the loss by this part of it."""
SWEEPS = 4
"""Most passes over the times with one step."""
BASINS = 3
"""Starts that are moved before one is chosen."""

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
        told: called with the evaluations of each trajectory that a trial costs a search from the beginning, whether
            this one had to make them or knew the loss before; its places; and its loss.

    Attributes:
        spent: evaluations of each trajectory that were asked for; those of trials that are made twice count twice, so
            that a search ends.
    """

    def __init__(
        self, student: Student, known: dict[Places, float], told: Callable[[int, Places, float], None]
    ) -> None:
        self.student, self.known, self.told = student, known, told
        self.spent = 0
        self.path: list[Reached] = []
        self.of: Places = ()
        self.trial: tuple[Places, list[Reached]] | None = None
        # What a search from the beginning would hold: the same places, whose paths may have to be made again here.
        self.asked: set[Places] = set()
        self.walked = False
        self.tried: Places = ()

    def loss(self, places: Places, from_stage: int = 0) -> float:
        """Of a plan that evaluates at `places`; `self.of` has the same places before `from_stage`."""
        cost = self.student.cost(from_stage, len(places) - 1)
        self.spent += cost
        self.trial, self.tried = None, ()
        if places in self.asked:
            cost = 0
        else:
            cost += self._walk() if from_stage else 0
            self.asked.add(places)
            self.tried = places
        found = self.known.get(places)
        if found is None:
            if from_stage and not self.path:
                _, self.path = self.student.reach(self.of, 0, [])
            found, path = self.student.reach(places, from_stage, self.path)
            self.known[places] = found
            self.trial = places, path
        self.told(cost, places, found)
        return found

    def _walk(self) -> int:
        """Evaluations that a search from the beginning needs for the path of `of`."""
        cost = 0 if self.walked else self.student.cost(0, len(self.of) - 1)
        self.walked = True
        return cost

    def take(self, places: Places) -> None:
        """Go on from `places`."""
        if places == self.of:
            return
        self.of = places
        self.path = self.trial[1] if self.trial is not None and self.trial[0] == places else []
        self.walked = self.tried == places

    def rows(self) -> tuple[Rows, float]:
        """Coefficients of the places taken."""
        self.told(self._walk(), self.of, self.known[self.of])
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


class _Walk:
    """A way downhill: places and their loss."""

    def __init__(self, memo: Memo, places: Places, loss: float, budget: int) -> None:
        self.memo, self.places, self.loss, self.budget = memo, places, loss, budget
        self.steps, self.complete = len(places) - 1, True

    def tried(self, places: Places) -> bool:
        """Whether these places are better; then they are taken."""
        gap = [a != b for a, b in zip(places, self.places, strict=True)]
        if not any(gap) or any(a >= b for a, b in pairwise((-1, *places))):
            return False
        k = gap.index(True)
        if self.memo.spent + self.memo.student.cost(k, self.steps) > self.budget:
            self.complete = False
            return False
        loss = self.memo.loss(places, k)
        if loss < self.loss * (1.0 - GAIN):
            self.places, self.loss = places, loss
            self.memo.take(places)
            return True
        return False

    def down(self, step: int) -> None:
        """Move one time after another by `step` places, and then once more all as they went together, while it gains.

        Later times come first: what they change costs least. A time whose move fails in both directions waits for the
        next pass. The first evaluation moves too: the way to it is one factor, which needs no network.
        """
        self.memo.take(self.places)
        for _ in range(SWEEPS):
            before = self.places
            for k in range(self.steps - 1, -1, -1):
                for direction in (step, -step):
                    if self.tried((*self.places[:k], self.places[k] + direction, *self.places[k + 1 :])):
                        break
            if self.places == before or not self.complete:
                return
            while self.tried(tuple(2 * b - a for a, b in zip(before, self.places, strict=True))):
                pass


def search(memo: Memo, starts: Sequence[Places], budget: int, first: int, last: int = 1) -> Found:
    """The best places that coordinate search reaches by steps of `first` places of the grid, half of that, ... `last`.

    The best `BASINS` of `starts` are moved with the first step, and the best of what they lead to goes on: the loss
    has several minima, and the best start is not always beside the deepest (docs/fitting.md).
    """
    step = max(first, last)
    walks = [_Walk(memo, start, memo.loss(start), budget) for start in starts]
    walks = sorted(walks, key=lambda walk: walk.loss)[: BASINS if len(starts) > 1 else 1]
    for walk in walks:
        walk.down(step)
    best = min(walks, key=lambda walk: walk.loss)
    while step > last and best.complete:
        step = max(step // 2, last)
        best.down(step)
    memo.take(best.places)
    return Found(best.places, best.loss, *memo.rows(), best.complete)


def coarse_steps(grid: Sequence[float]) -> tuple[int, int]:
    """First and last step, in places of the grid, of the search on a part of the trajectories."""
    first, last = (max(1, round(part * (len(grid) - 1))) for part in COARSE)
    return first, last
