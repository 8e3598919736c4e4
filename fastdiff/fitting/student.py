"""The student: the state that fitted coefficients lead to, stage by stage, from its own states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastdiff.fitting.explicit import VALUES
from fastdiff.fitting.loss import mean, of_samples
from fastdiff.fitting.problem import Batch, Problem
from fastdiff.fitting.squares import join, products, solve

Rows = tuple[tuple[float, ...], ...]


class Reached(NamedTuple):
    """A student before evaluation k: what later stages are fitted from.

    Attributes:
        x: the state of each batch.
        values: model values of each batch, newest first: those of the evaluations before.
        rows: coefficients of the stages before.
        opening: the coefficient of the opening, 1 without one.
    """

    x: tuple[torch.Tensor, ...]
    values: tuple[tuple[torch.Tensor, ...], ...]
    rows: Rows
    opening: float


class Student:
    """Fits the stages of plans that evaluate at given times of the teacher's grid.

    Args:
        states: the teacher's, of each batch: (G + 1, count, ...).
        loss: of the end, as of `fit`.
    """

    def __init__(
        self,
        problem: Problem,
        times: Sequence[float],
        batches: Sequence[Batch],
        states: Sequence[torch.Tensor],
        loss: object = "norm",
    ) -> None:
        self.problem, self.times, self.batches, self.states, self.loss = problem, times, batches, states, loss
        self.robust = loss != "square"

    def reach(self, places: tuple[int, ...], from_stage: int, path: Sequence[Reached]) -> tuple[float, list[Reached]]:
        """The loss at the end, and the student before each evaluation and at the end.

        Args:
            places: of the evaluations in the grid, and then its end.
            from_stage: the first evaluation whose place, or whose stage's end, is not that of `path`.
            path: of other places, equal before `from_stage`; unused where that is 0.
        """
        kept, values = [*path[:from_stage]], None
        if not kept:
            kept.append(self._open(places[0]))
        else:
            # The stage before is fitted to another end; its evaluation is the path's own.
            values = path[from_stage].values
        while len(kept) < len(places):
            kept.append(self._advance(places, kept[-1], values))
            values = None
        return self._end_loss(kept[-1]), kept

    def cost(self, from_stage: int, steps: int) -> int:
        """Evaluations of each trajectory that `reach` asks for."""
        return steps - from_stage

    def _open(self, place: int) -> Reached:
        first = [s[0] for s in self.states]
        if place == 0:
            return Reached(tuple(first), tuple(() for _ in first), (), 1.0)
        c = self._fit([(x,) for x in first], place)
        return Reached(tuple(c[0] * x for x in first), tuple(() for _ in first), (), c[0])

    def _fit(self, columns: Sequence[tuple[torch.Tensor, ...]], place: int) -> tuple[float, ...]:
        where = self.problem.device
        made = [
            products([c.to(where) for c in own], s[place].to(where))
            for own, s in zip(columns, self.states, strict=True)
        ]
        return tuple(solve(join(made), self.robust).tolist())

    def _advance(
        self, places: tuple[int, ...], at: Reached, values: tuple[tuple[torch.Tensor, ...], ...] | None
    ) -> Reached:
        k, p = len(at.rows), self.problem
        if values is None:
            t = self.times[places[k]]
            values = tuple(
                (p.value(x.to(p.device), t, b).to(p.store), *older)
                for x, b, older in zip(at.x, self.batches, at.values, strict=True)
            )
        columns = [(x, *own[:VALUES]) for x, own in zip(at.x, values, strict=True)]
        c = self._fit(columns, places[k + 1])
        following = tuple(_combined(c, own) for own in columns)
        return Reached(following, values, (*at.rows, c), at.opening)

    def _end_loss(self, end: Reached) -> float:
        losses = [
            of_samples(self.loss, x.to(self.problem.device), s[-1].to(self.problem.device))
            for x, s in zip(end.x, self.states, strict=True)
        ]
        return mean(torch.cat(losses))


def _combined(c: Sequence[float], columns: Sequence[torch.Tensor]) -> torch.Tensor:
    out = c[0] * columns[0]
    for coefficient, column in zip(c[1:], columns[1:], strict=True):
        out.add_(column, alpha=coefficient)
    return out
