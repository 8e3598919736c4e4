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

from fastdiff.bind import Binding, Table, bind, bind_stage_x0, clock_dtype, in_range, without_late
from fastdiff.bind.program import check_growth
from fastdiff.engine.table import Block, block
from fastdiff.ops.layout import (
    CG,
    CU,
    DEPTH,
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
)
from fastdiff.plan import H1, MAX_HISTORY, NREG, SECOND, Plan, U, X

ALL = (1 << NREG) - 1
_IN_ORDER = tuple(range(1, MAX_HISTORY + 1))
_HISTORY = ((1 << MAX_HISTORY) - 1) << H1


@dataclass(frozen=True)
class Joint:
    """A bound plan whose rows go with those of others.

    Attributes:
        plan, binding: what it was made from.
        values: (stages + 1, WIDTH) float64; row 0 is the opening, row k + 1 the plan's stage k.
        draws: (stages + 1, 3) int32.
        clock: (stages + 1,) float64: the model's time of the evaluation of each row; 0 where there is none.
        specs: of each row, u' and x' apart, the network's input written once.
        block: values, draws and clock as the device's table has them.
        dtypes: of the state and of the network's time.
        history: how many evaluations ago the oldest value is that a row reads.
        evaluated: the rows that evaluate the network.
        spec: the union of these.
        scaled: whether the network's input is ever other than u.
        opens: whether row 0 changes anything: whether its u' or the network's input is other than x.
    """

    plan: Plan
    binding: Binding
    values: np.ndarray
    draws: np.ndarray
    clock: np.ndarray
    specs: tuple[StageSpec, ...]
    block: Block
    dtypes: tuple[torch.dtype, torch.dtype]
    history: int
    evaluated: tuple[int, ...]
    spec: StageSpec
    scaled: bool
    opens: bool

    @cached_property
    def held(self) -> Block:
        """`block` with rows that do nothing, for a request whose stages run by themselves."""
        return block(_hold(self.values), self.draws, self.clock, self.evaluated, *self.dtypes)

    @cached_property
    def observed(self) -> tuple[torch.Tensor, tuple[StageSpec, ...]]:
        """(stages + 1, WIDTH): the rows whose u' is the predicted x0, and their structures; for previews.

        Raises:
            ValueError: numbers that the state's dtype cannot hold.
        """
        pairs = [bind_stage_x0(s, self.binding) for s in self.plan.stages if s.evaluate]
        seen, found = np.zeros_like(self.values), [self.specs[0]] * len(self.values)
        for k, (row, spec) in zip(self.evaluated, pairs, strict=True):
            seen[k], found[k] = without_late(row[None])[0], spec
        return torch.from_numpy(in_range(seen, self.dtypes[0])).to(self.dtypes[0]), tuple(found)


def union(specs: Iterable[StageSpec]) -> StageSpec:
    """The structure of one launch for rows of all these; without any, one that writes the network's input alone."""
    convert, guided, reads_u, u_mask, x_mask, learned = NONE, False, False, 0, 0, 0
    for s in specs:
        convert, guided, reads_u = max(convert, s.convert), guided or s.guided, reads_u or s.m_reads_u
        u_mask, x_mask, learned = u_mask | s.u_mask, x_mask | s.x_mask, max(learned, s.learned)
    return StageSpec(convert, guided, reads_u, u_mask, x_mask, 1, learned)


def widest(history: int) -> StageSpec:
    """The structure that holds every row with at most so long a history: that of a graph, which is captured once."""
    mask = ALL & ~_HISTORY | ((1 << history) - 1) << H1
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
    ages, most = _ages(plan)
    apart = _apart(plan)
    values = _rows(plan, table, ages, apart)
    bits = 1 << np.arange(NREG)
    u_masks, x_masks = (((values[:, at : at + NREG] != 0.0) @ bits).tolist() for at in (NEXT_U, NEXT_X))
    # An x that nobody reads stays as it is, beside rows that write theirs.
    specs = [
        spec._replace(u_mask=u_mask, x_mask=x_mask if apart else 0, copies=1)
        for spec, u_mask, x_mask in zip(table.specs, u_masks, x_masks, strict=True)
    ]
    evaluated = tuple(k + 1 for k, s in enumerate(plan.stages) if s.evaluate)
    if own and most <= MAX_HISTORY:
        values[:, DEPTH] = most or -1
        values[list(evaluated), KEEP] = np.arange(len(evaluated)) % max(most, 1)
    in_range(values, dtype)
    clock = np.array([0.0, *(s.model_time if s.evaluate else 0.0 for s in plan.stages)])
    in_range(clock, clock_dtype(network_dtype), "the network's time")
    dtypes = dtype, clock_dtype(network_dtype)
    spec, scaled = union(specs[k] for k in evaluated), bool((values[:-1, IN_SCALE] != 1.0).any())
    still = np.zeros(NREG)
    still[X] = 1.0
    opens = bool((values[0, NEXT_U : NEXT_U + NREG] != still).any() or values[0, IN_SCALE] != 1.0 or specs[0].convert)
    return Joint(
        plan=plan,
        binding=binding,
        values=values,
        draws=table.draws,
        clock=clock,
        specs=tuple(specs),
        block=block(values, table.draws, clock, evaluated, *dtypes),
        dtypes=dtypes,
        history=most,
        evaluated=evaluated,
        spec=spec,
        scaled=scaled,
        opens=opens,
    )


def _rows(plan: Plan, table: Table, ages: list[tuple[int, ...]], apart: bool) -> np.ndarray:
    """All rows, with x' written out or without any x, the conversion in both forms, and the history by evaluations."""
    made = table.values.copy()
    next_u, next_x = made[:, NEXT_U : NEXT_U + NREG], made[:, NEXT_X : NEXT_X + NREG]
    if not apart:
        next_x[:] = 0.0
        next_x[:, X] = 1.0
        next_u[1:, U] += next_u[1:, X]
        next_u[1:, X] = 0.0
    else:
        same = [0, *(k + 1 for k, s in enumerate(plan.stages) if s.next_u == s.next_x)]
        next_x[same] = next_u[same]
    for k, of_row in enumerate(ages):
        if of_row != _IN_ORDER[: len(of_row)]:
            for row in (next_u[k], next_x[k]):
                old = row[H1:SECOND].copy()
                row[H1:SECOND] = 0.0
                for i in np.flatnonzero(old):
                    # Beyond the sixth there is no register; such a plan is not run in the joint launch.
                    if of_row[i] <= MAX_HISTORY:
                        row[H1 + of_row[i] - 1] = old[i]
    # As a clip without bounds: clamp(cu·u + cg·g)·1 is m.
    plain = [k for k, spec in enumerate(table.specs) if spec.convert in (RAW, LINEAR)]
    made[plain, PU], made[plain, PG], made[plain, QX] = made[plain, CU], made[plain, CG], 1.0
    return made


def _apart(plan: Plan) -> bool:
    """Whether x is ever another state than u; if not, u stands for both."""
    if any(s.next_u != s.next_x for s in plan.stages):
        return True
    # Two terms are added one after the other, which one coefficient would not repeat to the last bit.
    return any(s.next_u[X] and s.next_u[U] for s in plan.stages)


def _ages(plan: Plan) -> tuple[list[tuple[int, ...]], int]:
    """For each row, how many evaluations ago h1, h2, … were made, newest first; and the greatest that is read."""
    kept: list[int] = []
    done, most = 0, 0
    ages: list[tuple[int, ...]] = [()] * (len(plan.stages) + 1)
    for k, s in enumerate(plan.stages):
        ages[k + 1] = tuple(done - at for at in reversed(kept[-MAX_HISTORY:]))
        read = [i for i in range(SECOND - H1) if s.next_u[H1 + i] or s.next_x[H1 + i]]
        most = max([most, *(ages[k + 1][i] for i in read)])
        if s.keep:
            kept.append(done)
        done += s.evaluate
    return ages, most


def _hold(rows: np.ndarray) -> np.ndarray:
    """As many rows that do nothing in the joint launch."""
    values = np.zeros_like(rows)
    values[:, [NEXT_U + U, NEXT_X + X, IN_SCALE]], values[:, DEPTH] = 1.0, -1.0
    return values
