"""A bound plan as the loop runs it: where x and u live at every stage, and the numbers on one device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdiff.bind.table import Binding, bind, bind_x0, check_batch, is_raw, without_late
from fastdiff.ops.layout import IN_SCALE, NEXT_U, StageSpec
from fastdiff.plan import IDENTITY, Plan, U, X


class Move(NamedTuple):
    """One stage as the loop runs it: structure alone, which a captured graph's signature holds.

    Attributes:
        row: of the table; the plan's stage is the one before.
        x, u, u_to, x_to: the slots (0 or 1) of x, u and their successors.
        begins: whether this evaluation is the first of its step.
        ends: whether this stage is the last of its step.
    """

    row: int
    spec: StageSpec
    evaluate: bool
    keep: bool
    draws: tuple[int, int, int]
    langevin_norm: str
    x: int
    u: int
    u_to: int
    x_to: int | None
    begins: bool
    ends: bool


Launched = tuple[StageSpec, int, int, int, int, int | None, bool, bool]
"""Of a move: (spec, row, x, u, u_to, x_to, evaluate, keep), as csrc/walk.h reads it."""


def moves(plan: Plan, specs: tuple[StageSpec, ...]) -> tuple[Move, ...]:
    """Where every stage finds and leaves x and u, with two slots and no copies.

    x and u share a slot until a stage makes them differ; a stage that keeps x sends u to the other slot; a stage whose
    next_u and next_x are equal brings them together again.
    """
    result = []
    x = u = 0
    begun = None
    stages = plan.stages
    for k, stage in enumerate(stages):
        u_to, x_to = u, None
        if stage.next_u == stage.next_x:
            after = u
        elif stage.next_x == IDENTITY:
            u_to, after = (u if u != x else 1 - u), x
        else:
            after = x_to = x if u != x else 1 - u
        # Whether this is the first evaluation of its step: churn may open a step with a stage that has none. A stage
        # that only corrects ends a step, and the next step begins with the value that it keeps.
        ends = k + 1 == len(stages) or stages[k + 1].step != stage.step
        begins = stage.evaluate and (stage.step != begun or (ends and stage.keep and stage.t_next == stage.t))
        begun = stage.step if stage.evaluate else begun
        flow = (stage.evaluate, stage.keep, stage.draws, stage.langevin_norm)
        result.append(Move(k + 1, specs[k + 1], *flow, x, u, u_to, x_to, begins, ends))
        x, u = after, u_to
    return tuple(result)


class Site(NamedTuple):
    """Where the network is evaluated.

    Attributes:
        row: of the table, and of the x0 rows.
        spec: the structure of the stage.
        t: the schedule's time: a float, or float64, (B,) where samples differ, (B, F) where frames do.
        clock: (rows of the network's input,) the times that the network is given; (2, rows) where it is given two; with
            frames (rows, F).
        x0: coefficients and structure of the predicted x0, or None where it is not needed.
        where: for errors, such as "step 3 (stage 4, model time 7)": of the batch, or of every sample.
        ignored: (rows,) bool: outputs whose NaN and Inf do not matter, or None.
        numbers: (1 or B, K) in the state's dtype: what the guidance's `blend` reads, or None.
    """

    row: int
    spec: StageSpec
    t: Any
    clock: torch.Tensor
    x0: tuple[torch.Tensor, StageSpec] | None
    where: tuple[str, ...]
    ignored: torch.Tensor | None = None
    numbers: torch.Tensor | None = None


@dataclass(frozen=True)
class Program:
    """A bound plan with its tensors on one device.

    Attributes:
        plan: what it was made from.
        moves: the stages, as the loop runs them.
        opening: structure of row 0, which writes x into its slot and the network's first input.
        values: (stages + 1, WIDTH) coefficients in the state's dtype.
        draws: int32, (stages + 1, 3), or as `path_table` (bind/table.py).
        clock: (stages, rows of network input): the model's times; (stages, 2, rows) where it is given two.
        x0: coefficients and structures of the predicted x0, or None where it is not needed.
        raw: whether the model value is the network's raw output, so that outputs themselves may be the history.
        history: how many earlier model values the stages read.
        places: of each stage, the schedule's time and the words for errors that are a `Site`'s.
        done: steps, or with frames evaluations, that are done after each stage.
        times: of a trajectory, float64: (steps + 1,), or with frames (evaluations + 1, B, F).
        rows, inner: with frames, (stages + 1, B, F) int32 rows of `values`, and the elements of a frame that lie
            together; `clock` is then (stages, rows of network input, F).
        numbers: (stages + 1, 1 or B, K): what the guidance's `blend` reads, or None.
    """

    plan: Plan
    moves: tuple[Move, ...]
    opening: StageSpec
    values: torch.Tensor
    draws: torch.Tensor
    clock: torch.Tensor
    x0: tuple[torch.Tensor, tuple[StageSpec, ...]] | None
    raw: bool
    history: int
    places: tuple[tuple[Any, str], ...]
    done: tuple[int, ...]
    times: np.ndarray
    rows: torch.Tensor | None = None
    inner: int = 0
    numbers: torch.Tensor | None = None

    @cached_property
    def courses(self) -> dict[Callable[[StageSpec, tuple[Launched, ...]], bytes], bytes]:
        return {}

    @cached_property
    def launches(self) -> tuple[Launched, ...] | None:
        """The stages as `Launched`; None where one of them is more than a launch."""
        if any(m.langevin_norm for m in self.moves):
            return None
        return tuple((m.spec, m.row, m.x, m.u, m.u_to, m.x_to, m.evaluate, m.keep) for m in self.moves)

    def course(self, pack: Callable[[StageSpec, tuple[Launched, ...]], bytes]) -> bytes:
        """`opening` and `launches`, packed by an extension for its `Walk`."""
        found = self.courses.get(pack)
        if found is None:
            assert self.launches is not None
            found = self.courses[pack] = pack(self.opening, self.launches)
        return found

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Of each stage."""
        made = []
        for (t, where), move, clock in zip(self.places, self.moves, self.clock.unbind(0), strict=True):
            x0 = None if self.x0 is None else (self.x0[0], self.x0[1][move.row])
            numbers = None if self.numbers is None else self.numbers.select(0, move.row)
            made.append(Site(move.row, move.spec, t, clock, x0, (where,), None, numbers))
        return tuple(made)


def program(
    plan: Plan,
    binding: Binding,
    *,
    copies: int,
    rows: int,
    batch: int,
    observed: bool,
    path: bool,
    dtype: torch.dtype,
    network_dtype: torch.dtype,
    device: torch.device,
) -> Program:
    """Bind `plan`, and put its numbers in `dtype` on `device`.

    Args:
        copies: as in `fastdiff.bind.table.bind`.
        rows: rows of the network's input, each with its time.
        batch: samples.
        observed: whether the predicted x0 is asked for, which needs rows of its own.
        path: whether the draws are increments of one Brownian path.

    Raises:
        ValueError: as `bind`, and coefficients that `dtype` cannot hold.
    """
    table = bind(plan, binding, copies=copies, path=path)
    check_growth(plan, dtype)
    if table.numbers is not None:
        check_batch(table.numbers, batch)

    def put(array: np.ndarray) -> torch.Tensor:
        return rounded(array, dtype).to(device)

    def put_rows(array: np.ndarray) -> torch.Tensor:
        return put(array if table.numbers is None else without_late(array))

    x0 = None
    if observed:
        values, specs = bind_x0(plan, binding)
        x0 = put_rows(values), specs
    # Spread over the rows before it goes to the device: what is kept there can then be read from any stream.
    times = rounded(table.times, clock_dtype(network_dtype), "the network's time")
    clock = times.unsqueeze(-1).expand(*times.shape, rows).contiguous().to(device)
    return Program(
        plan=plan,
        moves=moves(plan, table.specs),
        opening=table.specs[0],
        values=put_rows(table.values),
        draws=torch.from_numpy(table.draws).to(device),
        clock=clock,
        x0=x0,
        raw=is_raw(table, plan) and not binding.corrected and not binding.guidance.reverses,
        history=plan.history,
        places=tuple(
            (s.t, f"step {s.step} (stage {k}, model time {s.model_time:g})") for k, s in enumerate(plan.stages)
        ),
        done=tuple(s.step + 1 for s in plan.stages),
        times=np.array(plan.times),
        numbers=None if table.numbers is None else put(table.numbers),
    )


def check_growth(plan: Plan, dtype: torch.dtype) -> None:
    """ValueError where x alone, without what the network adds, grows beyond `dtype` from the start to the end.

    Row by row the coefficients may be harmless: alpha grows by e^100 over a run of vp_linear(0.1, 400).
    """
    grown, limit = 0.0, math.log(torch.finfo(dtype).max)
    for s in plan.stages:
        # The base; a plan of two registers leaves it alone until its step ends.
        x = s.next_x
        kept = abs(x[X]) + abs(x[U])
        grown = grown + math.log(kept) if kept else 0.0
        if grown > limit:
            raise ValueError(
                f"x grows by a factor above e^{grown:.0f} on the way to t={s.t_next:g}, which {dtype} cannot hold: "
                "start at a less noisy t_start, or check the schedule's range"
            )
        grown = max(grown, 0.0)


def clock_dtype(network_dtype: torch.dtype) -> torch.dtype:
    """Of the times given to a network: float64 for one that computes in it, float32, which is exact for every training
    index, for all others."""
    return torch.float64 if network_dtype == torch.float64 else torch.float32


def in_range(values: np.ndarray, dtype: torch.dtype, what: str = "a coefficient") -> np.ndarray:
    """`values`; ValueError where one is not finite, or not once it is rounded to `dtype`."""
    good = np.abs(values) <= torch.finfo(dtype).max
    # all() takes longer than the comparison.
    if np.count_nonzero(good) < good.size:
        bad = float(values[~good].flat[0])
        wider = "; dtype=torch.float64 (and a network in float64) holds it" if np.isfinite(bad) else ""
        raise ValueError(
            f"{what} of this run is {bad:.4g}, which {dtype} cannot hold: check the schedule's range, its time_scale "
            f"and the guidance scale{wider}"
        )
    return values


def rounded(values: np.ndarray, dtype: torch.dtype, what: str = "a coefficient") -> torch.Tensor:
    """`in_range`, in `dtype`, float32 or float64; on the host, contiguous."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    return torch.from_numpy(np.ascontiguousarray(in_range(values, dtype, what), dtype=kind))


def echo_rows(values: torch.Tensor) -> torch.Tensor:
    """The rows that write x where stage k writes u', with its in_scale: for an x that was corrected after it."""
    rows = torch.zeros_like(values)
    rows[:, IN_SCALE] = values[:, IN_SCALE]
    rows[:, NEXT_U + X] = 1.0
    return rows
