"""A plan's rows in the form in which rows of other plans may stand beside them in one launch. NumPy only, but specs.

The stage has one structure for the whole batch, the union of all rows. A row means the same in every union: what it
does not use has the coefficient 0, or for a conversion the form that leaves its input as it is. Every evaluation is
kept in the history, whether the plan keeps it or not, so the coefficients of h1 … h6 move to the places that this gives
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fastdiff.bind import Binding, Table, bind, bind_stages_x0, clock_dtype, rounded, without_late
from fastdiff.bind.program import check_growth
from fastdiff.engine.table import Block
from fastdiff.ops.layout import (
    CG,
    CU,
    DEPTH,
    HISTORY,
    IN_SCALE,
    KEEP,
    LINEAR,
    NEXT_U,
    NEXT_X,
    NONE,
    PG,
    PU,
    QX,
    RAW,
    StageSpec,
    masks_of,
)
from fastdiff.plan import H1, MAX_HISTORY, NREG, SECOND, Plan, U, X

ALL = (1 << NREG) - 1


@dataclass(frozen=True)
class Joint:
    """A bound plan whose rows go with those of others.

    Attributes:
        plan, binding: what it was made from.
        specs: of each row, u' and x' apart, the network's input written once.
        block: of stages + 1 rows; row 0 is the opening, row k + 1 the plan's stage k. Its clock is 0 where nothing is
            evaluated.
        history: how many evaluations ago the oldest value is that a row reads.
        evaluated: the rows that evaluate the network.
        spec: the union of these.
        scaled: whether the network's input is ever other than u.
        opens: whether row 0 changes anything: whether the network's first input is other than x.
    """

    plan: Plan
    binding: Binding
    specs: tuple[StageSpec, ...]
    block: Block
    history: int
    evaluated: tuple[int, ...]
    spec: StageSpec
    scaled: bool
    opens: bool

    @cached_property
    def held(self) -> Block:
        """`block` with rows that do nothing, for a request whose stages run by themselves."""
        values = torch.zeros_like(self.block.values)
        values[:, [NEXT_U + U, NEXT_X + X, IN_SCALE]], values[:, DEPTH] = 1.0, -1.0
        return self.block._replace(values=values)

    @cached_property
    def observed(self) -> tuple[torch.Tensor, tuple[StageSpec, ...]]:
        """(stages + 1, WIDTH): the rows whose u' is the predicted x0, and their structures; for previews.

        Raises:
            ValueError: numbers that the state's dtype cannot hold.
        """
        rows, specs = bind_stages_x0([s for s in self.plan.stages if s.evaluate], self.binding)
        seen, found = torch.zeros_like(self.block.values), list(self.specs)
        seen[list(self.evaluated)] = rounded(without_late(rows), seen.dtype)
        for k, spec in zip(self.evaluated, specs, strict=True):
            found[k] = spec
        return seen, tuple(found)


def union(specs: Iterable[StageSpec]) -> StageSpec:
    """The structure of one launch for rows of all these; without any, one that writes the network's input alone."""
    convert, guided, reads_u, u_mask, x_mask, learned = NONE, False, False, 0, 0, 0
    for s in specs:
        convert, guided, reads_u = max(convert, s.convert), guided or s.guided, reads_u or s.m_reads_u
        u_mask, x_mask, learned = u_mask | s.u_mask, x_mask | s.x_mask, max(learned, s.learned)
    return StageSpec(convert, guided, reads_u, u_mask, x_mask, 1, learned)


def widest(history: int) -> StageSpec:
    """The structure that holds every row with at most so long a history: that of a graph, which is captured once."""
    mask = ALL & ~HISTORY | ((1 << history) - 1) << H1
    return StageSpec(4, True, True, mask, mask, 1, 0)


def joint(plan: Plan, binding: Binding, dtype: torch.dtype, network_dtype: torch.dtype, own: bool) -> Joint:
    """Bind `plan` for a batch of many plans.

    Args:
        own: whether each row says how its history lies, as the back end `cpu` reads it.

    Raises:
        ValueError: as `fastdiff.bind.bind`, and numbers that `dtype` cannot hold.
    """
    table = bind(plan, binding, copies=1)
    if table.numbers is not None:
        if not binding.guidance.blends:
            raise ValueError("a request is one sample, and its guidance has a list of scales: give one number")
        # Such a request runs its stages by itself.
        table = table._replace(values=without_late(table.values))
    check_growth(plan, dtype)
    same = [s.next_u == s.next_x for s in plan.stages]
    # Whether x is ever another state than u; if not, u stands for both. Two terms are added one after the other, which
    # one coefficient would not repeat to the last bit.
    apart = not all(same) or any(s.next_u[X] and s.next_u[U] for s in plan.stages)
    moved, most = _ages(plan, table)
    values = _rows(table, moved, same, apart)
    order = np.array([k for k, s in enumerate(plan.stages, 1) if s.evaluate])
    if own and most <= MAX_HISTORY:
        values[:, DEPTH] = most or -1
        values[order, KEEP] = np.arange(len(order)) % max(most, 1)
    host = rounded(values, dtype)
    clock = np.array([0.0, *(s.model_time if s.evaluate else 0.0 for s in plan.stages)])
    times = rounded(clock, clock_dtype(network_dtype), "the network's time")
    evaluated = tuple(order.tolist())
    specs = tuple(
        # An x that nobody reads stays as it is, beside rows that write theirs.
        StageSpec(s.convert, s.guided, s.m_reads_u, u_mask, x_mask if apart else 0, 1, s.learned)
        for s, (u_mask, x_mask) in zip(table.specs, masks_of(values), strict=True)
    )
    return Joint(
        plan=plan,
        binding=binding,
        specs=specs,
        block=Block(host, torch.from_numpy(table.draws), times),
        history=most,
        evaluated=evaluated,
        spec=union({specs[k] for k in evaluated}),
        scaled=any(s.evaluate and s.in_scale != 1.0 for s in plan.stages),
        opens=bool(values[0, IN_SCALE] != 1.0),
    )


def _rows(table: Table, moved: dict[int, list[int]], same: list[bool], apart: bool) -> np.ndarray:
    """All rows, with x' written out or without any x, the conversion in both forms, and the history by evaluations.

    Args:
        moved: as `_ages` has it.
        same: whether u' is x', of each stage. apart: whether there is an x.
    """
    made = table.values.copy()
    next_u, next_x = made[:, NEXT_U : NEXT_U + NREG], made[:, NEXT_X : NEXT_X + NREG]
    if not apart:
        next_x[:] = 0.0
        next_x[:, X] = 1.0
        next_u[1:, U] += next_u[1:, X]
        next_u[1:, X] = 0.0
    else:
        both = [True, *same]
        next_x[both] = next_u[both]
    for k, ages in moved.items():
        for row in (next_u[k], next_x[k]):
            old = row[H1:SECOND].copy()
            row[H1:SECOND] = 0.0
            for i in np.flatnonzero(old):
                # Beyond the sixth there is no register; such a plan is not run in the joint launch.
                if ages[i] <= MAX_HISTORY:
                    row[H1 + ages[i] - 1] = old[i]
    # As a clip without bounds: clamp(cu·u + cg·g)·1 is m.
    plain = np.array([k for k, spec in enumerate(table.specs) if spec.convert in (RAW, LINEAR)], dtype=np.intp)
    made[plain, PU : PG + 1], made[plain, QX] = made[plain, CU : CG + 1], 1.0
    return made


def _ages(plan: Plan, table: Table) -> tuple[dict[int, list[int]], int]:
    """How many evaluations ago h1, h2, … were made, newest first, by row, where that is not 1, 2, …; and the greatest
    that is read."""
    kept: list[int] = []
    moved: dict[int, list[int]] = {}
    done, most = 0, 0
    for k, (s, spec) in enumerate(zip(plan.stages, table.specs[1:], strict=True), 1):
        count = (((spec.u_mask | spec.x_mask) & HISTORY) >> H1).bit_length()
        if count:
            oldest = done - kept[-count]
            most = max(most, oldest)
            if oldest > count:
                moved[k] = [done - at for at in reversed(kept[-count:])]
        if s.keep:
            kept.append(done)
        done += s.evaluate
    return moved, most
