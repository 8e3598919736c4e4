"""A plan whose frames are at steps of their own, as a `Program`: each frame has its own row of the table at each stage.

The rows are the plan's. Since every evaluation gives a model value for all frames, what a frame calls h1 may lie
further back in the history than the newest entry, where it waited meanwhile: its row then has the coefficient in the
column of the entry that is meant. A frame that waits has a row that keeps x, and one that is clean too.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastdiff.bind.program import Move, Program, check_growth, clock_dtype, rounded
from fastdiff.bind.table import Binding, Table, bind, bind_x0, join
from fastdiff.ops.layout import IN_SCALE, NEXT_U, NEXT_X, NONE, RAW, WIDTH, StageSpec, mask_of
from fastdiff.plan import H1, IDENTITY, MAX_HISTORY, NREG, Frames, Plan, U, X
from fastdiff.schedules import NoiseSchedule

WAITS = -1
"""The stage of a frame that has none now."""
CLEAN = -1
"""The next evaluation of a frame that has none left."""


class Row(NamedTuple):
    """A row of the table, made for all frames that need the same.

    Attributes:
        stage: of the plan, or WAITS.
        following: the stage of the frame's next evaluation (of this one, while it waits), or CLEAN.
        entries: for each entry of the history that the plan's stage reads, where it lies: 1 is the newest.
        opens: whether this is the row that begins the run.
    """

    stage: int
    following: int
    entries: tuple[int, ...] = ()
    opens: bool = False


class Call(NamedTuple):
    """One stage of the run: what each lane does. Lanes are the columns of the scheduling matrix that differ.

    Attributes:
        stages: of the plan, by lane, or WAITS.
        following: by lane, as in `Row`; before the call for those that wait.
        ends: whether the evaluation's last stage.
    """

    evaluate: bool
    stages: tuple[int, ...]
    following: tuple[int, ...]
    ends: bool


def _walk(plan: Plan, columns: np.ndarray) -> list[Call]:
    """The stages that run, in order: those without an evaluation go with the evaluation before them, and those before
    the first with the first. `columns`: (evaluations + 1, lanes)."""
    stages = plan.stages
    at = [k for k, s in enumerate(stages) if s.evaluate]
    # Where a frame is that has so many evaluations behind it.
    place = [0, *at[1:], len(stages)]
    after = [*at, CLEAN]
    calls = []
    for before, then in itertools.pairwise(columns.tolist()):
        moves = [(n, n < m) for n, m in zip(before, then, strict=True)]
        early = [range(at[0]) if goes and n == 0 else () for n, goes in moves]
        late = [range(at[n] + 1, place[n + 1]) if goes else () for n, goes in moves]
        here, there = tuple(after[n] for n in before), tuple(after[n] for n in then)
        made = [Call(False, now, here, False) for now in itertools.zip_longest(*early, fillvalue=WAITS)]
        made.append(Call(True, tuple(at[n] if goes else WAITS for n, goes in moves), there, False))
        made += [Call(False, now, there, False) for now in itertools.zip_longest(*late, fillvalue=WAITS)]
        calls += [*made[:-1], made[-1]._replace(ends=True)]
    return calls


def _entries(
    plan: Plan, table: Table, calls: Sequence[Call], frame: Sequence[str]
) -> tuple[list[int], list[list[Row]]]:
    """The calls whose model value is kept, and each lane's row at each call.

    Raises:
        ValueError: a frame whose row reads a model value from before it began, or one that is too far back.
    """
    kept_before: list[list[int]] = []
    kept: list[int] = []
    for k, s in enumerate(plan.stages):
        kept_before.append(list(kept))
        kept += [k] if s.keep else []
    made: list[dict[int, int]] = [{} for _ in frame]
    sources: dict[tuple[int, int], tuple[int, ...]] = {}
    for c, call in enumerate(calls):
        for lane, stage in enumerate(call.stages):
            if stage == WAITS:
                continue
            spec = table.specs[stage + 1]
            found = []
            for i in range(spec.history):
                source = made[lane].get(kept_before[stage][-1 - i])
                if source is None and spec.reads_h(i):
                    raise ValueError(
                        f"{frame[lane]} begins at evaluation {_number(plan, stage)} of the plan, which reads a model "
                        f"value of the ones before: begin at 0, or take a method that keeps none, such as ddim, not "
                        f"{plan.method!r}"
                    )
                found.append(source if spec.reads_h(i) and source is not None else -1)
            sources[c, lane] = tuple(found)
            made[lane][stage] = c
    needed = sorted({c for found in sources.values() for c in found if c >= 0})
    rows = []
    for c, call in enumerate(calls):
        before, row = bisect.bisect_left(needed, c), []
        for lane, (stage, following) in enumerate(zip(call.stages, call.following, strict=True)):
            entries = tuple(before - needed.index(s) if s >= 0 else 0 for s in sources.get((c, lane), ()))
            if max(entries, default=0) > MAX_HISTORY:
                raise ValueError(
                    f"{frame[lane]} waits between evaluations of method {plan.method!r}, and the model value that its "
                    f"evaluation {_number(plan, stage)} reads lies {max(entries)} evaluations back: at most "
                    f"{MAX_HISTORY} are kept. Let it go on without a pause, or take a method that keeps none, such as "
                    "ddim"
                )
            row.append(Row(stage, following, entries))
        rows.append(row)
    return needed, rows


def _number(plan: Plan, stage: int) -> int:
    return sum(s.evaluate for s in plan.stages[:stage])


def _check_ends(plan: Plan, columns: np.ndarray, frame: Sequence[str]) -> None:
    """Raise ValueError for a frame that begins or ends inside a step, where the next point is not the state."""
    stages = plan.stages
    at = [k for k, s in enumerate(stages) if s.evaluate]
    for row, does in ((columns[0], "begins"), (columns[-1], "ends")):
        for lane, n in enumerate(row.tolist()):
            if 0 < n < len(at) and stages[at[n]].step == stages[at[n] - 1].step:
                raise ValueError(
                    f"{frame[lane]} {does} at evaluation {n}, inside a step of method {plan.method!r}, which has "
                    "several evaluations a step: give a multiple of them, or take a method with one"
                )


def _check(plan: Plan, binding: Binding, frames: Frames, shape: Sequence[int]) -> None:
    if frames.axis >= len(shape):
        raise ValueError(
            f"frames: axis={frames.axis}, but x has shape {tuple(shape)}: expected an axis from 1 to {len(shape) - 1}"
        )
    if any(s.langevin_norm for s in plan.stages):
        raise ValueError(
            f"method {plan.method!r} with these options takes norms over each whole sample, which do not go with "
            "frames at times of their own: take another method"
        )
    if plan.two_times:
        raise ValueError(
            f"method {plan.method!r} with two_times=True gives the network two times, and with frames each has one: "
            "leave one of them out"
        )
    if plan.learned_variance and frames.axis == 1:
        raise ValueError(
            "a learned variance doubles the channels, axis 1 of x, which cannot be the axis of frames: lay x out as "
            "(B, C, F, ...)"
        )
    if binding.guidance.blends:
        raise ValueError(
            f"guidance {type(binding.guidance).__name__} takes sums over each whole sample, which do not go with "
            "frames at times of their own: give plain guidance, guidance=7.5"
        )


def _clean_time(plan: Plan, frames: Frames) -> tuple[float, float]:
    """(schedule's time, model's time) of a clean frame."""
    end = plan.times[-1]
    if frames.clean_time is not None:
        return end, frames.clean_time
    if not plan.schedule:
        raise ValueError(
            "the plan states no schedule, so that the model's time for clean frames is not known: give "
            "Frames(..., clean_time=...)"
        )
    schedule = NoiseSchedule.from_dict(plan.schedule)
    # A chain has no index below 0, and networks of variance-exploding schedules take the logarithm of sigma.
    bare = end == schedule.t_clean and (schedule.model_time(end) < 0 or schedule.alpha(schedule.t_max) == 1.0)
    return end, float(schedule.model_time(schedule.t_floor if bare else end))


def program_of_frames(
    plan: Plan,
    binding: Binding,
    frames: Frames,
    shape: Sequence[int],
    *,
    copies: int,
    rows: int,
    observed: bool,
    path: bool,
    dtype: torch.dtype,
    network_dtype: torch.dtype,
    device: torch.device,
) -> Program:
    """As `program`, for x of `shape` whose frames are where `frames` says.

    Raises:
        ValueError: as `program`, and what does not go with frames at times of their own.
    """
    assert not path, "refused by check_frames"
    _check(plan, binding, frames, shape)
    batch, count = shape[0], shape[frames.axis]
    matrix = frames.matrix(batch, count, plan.nfe)
    flat, lane_of = np.unique(matrix.reshape(len(matrix), -1), axis=1, return_inverse=True)
    lane_of = lane_of.reshape(batch, count)
    places = [np.unravel_index(int(np.argmax(lane_of == lane)), lane_of.shape) for lane in range(flat.shape[1])]
    names = [f"frames: frame {f} of sample {b}" for b, f in places]
    _check_ends(plan, flat, names)
    check_growth(plan, dtype)
    table = bind(plan, binding, copies=copies)
    if table.numbers is not None:
        raise ValueError(
            "a guidance scale for each sample does not go with frames at times of their own: give one number, or a "
            "function of the time that gives one"
        )
    calls = _walk(plan, flat)
    kept, lanes = _entries(plan, table, calls, names)
    # Where x and the next point differ, each has a buffer of its own throughout.
    pairs = any(s.next_u != s.next_x for s in plan.stages)
    at = [k for k, s in enumerate(plan.stages) if s.evaluate]
    opening = [Row(WAITS, [*at, CLEAN][n], opens=True) for n in flat[0].tolist()]

    known: dict[Row, int] = {}
    numbers = [[known.setdefault(row, len(known)) for row in of] for of in [opening, *lanes]]
    values = np.stack([_values(plan, table, row, pairs) for row in known])
    draws = np.stack([table.draws[row.stage + 1 if row.stage != WAITS else 0] for row in known])
    specs, moves = [], []
    for k, call in enumerate(calls):
        used = values[sorted(set(numbers[k + 1]))]
        joined = join([table.specs[s + 1] for s in call.stages if s != WAITS])._replace(
            u_mask=_mask(used, NEXT_U),
            x_mask=_mask(used, NEXT_X) if pairs else 0,
            copies=copies if k + 1 < len(calls) and calls[k + 1].evaluate else 0,
        )
        specs.append(joined)
        x, u = (0, 1) if pairs and k else (0, 0)
        u_to, x_to = (1, 0) if pairs else (0, None)
        idle = (-1, -1, -1)
        moves.append(
            Move(k + 1, joined, call.evaluate, k in kept, idle, "", x, u, u_to, x_to, call.evaluate, call.ends)
        )

    clean, clean_model_time = _clean_time(plan, frames)
    # Of the stage that is evaluated next, by lane; the last entry is for clean frames.
    t_of = np.array([s.t for s in plan.stages] + [clean])
    model_time_of = np.array([s.model_time for s in plan.stages] + [clean_model_time])
    here = np.array(
        [[w if s == WAITS or not c.evaluate else s for s, w in zip(c.stages, c.following, strict=True)] for c in calls]
    )
    clock = rounded(model_time_of[here], clock_dtype(network_dtype), "the network's time")
    clock = clock[:, torch.from_numpy(lane_of)].repeat(1, rows // batch, 1)
    t = torch.from_numpy(t_of[here])[:, torch.from_numpy(lane_of)]
    ticks = np.cumsum([c.ends for c in calls])
    done = [k for k, c in enumerate(calls) if c.evaluate]
    final = t_of[[[*at, CLEAN][n] for n in flat[-1].tolist()]][lane_of]

    def put(array: np.ndarray) -> torch.Tensor:
        return rounded(array, dtype).to(device)

    x0 = _x0(plan, binding, list(known), lanes) if observed else None
    return Program(
        plan=plan,
        moves=tuple(moves),
        opening=StageSpec(NONE, False, False, 1 << X, 0, copies),
        values=put(values),
        draws=torch.from_numpy(draws).to(device),
        clock=clock.contiguous().to(device),
        x0=None if x0 is None else (put(x0[0]), x0[1]),
        raw=not binding.corrected
        and all(specs[k].convert == RAW and not specs[k].guided and not specs[k].learned for k in kept),
        history=max((n for of in lanes for row in of for n in row.entries), default=0),
        places=tuple((t[k], f"evaluation {int(ticks[k] - c.ends)} (stage {k})") for k, c in enumerate(calls)),
        done=tuple(int(n) for n in ticks),
        times=np.concatenate([t.numpy()[done], final[None]]),
        rows=torch.from_numpy(np.array(numbers, dtype=np.int32)[:, lane_of]).contiguous().to(device),
        inner=int(np.prod(shape[frames.axis + 1 :])),
    )


def _mask(values: np.ndarray, first: int) -> int:
    return mask_of((values[:, first : first + NREG] != 0).any(axis=0).tolist())


def _values(plan: Plan, table: Table, row: Row, pairs: bool) -> np.ndarray:
    """The coefficients of a row."""
    made = np.zeros(WIDTH)
    in_scale = 1.0 if row.following == CLEAN else plan.stages[row.following].in_scale
    if row.stage == WAITS:
        made[NEXT_U + (U if pairs and not row.opens else X)] = 1.0
        made[NEXT_X + X] = 1.0
    else:
        stage, made = plan.stages[row.stage], table.values[row.stage + 1].copy()
        if stage.next_x == stage.next_u:
            made[NEXT_X : NEXT_X + NREG] = made[NEXT_U : NEXT_U + NREG]
        elif stage.next_x == IDENTITY:
            made[NEXT_X : NEXT_X + NREG] = IDENTITY
        for first in (NEXT_U, NEXT_X):
            own = made[first + H1 : first + H1 + MAX_HISTORY].copy()
            made[first + H1 : first + H1 + MAX_HISTORY] = 0.0
            for i, entry in enumerate(row.entries):
                if entry:
                    made[first + H1 + entry - 1] = own[i]
    made[IN_SCALE] = in_scale
    return made


def _x0(
    plan: Plan, binding: Binding, known: Sequence[Row], lanes: Sequence[Sequence[Row]]
) -> tuple[np.ndarray, tuple[StageSpec, ...]]:
    """The rows that give the predicted x0: of the stage at which a frame is evaluated, and u itself for a clean one."""
    values, specs = bind_x0(plan, binding)

    def stage(row: Row) -> int:
        return row.following if row.stage == WAITS else row.stage

    clean = np.zeros(WIDTH)
    clean[NEXT_U + U] = 1.0
    made = np.stack([clean if stage(row) == CLEAN else values[stage(row) + 1] for row in known])
    structures = [specs[0]]
    for of in lanes:
        at = {stage(row) for row in of}
        joined = join([specs[s + 1] for s in at - {CLEAN}])
        structures.append(joined._replace(u_mask=joined.u_mask | (1 << U if CLEAN in at else 0)))
    return made, tuple(structures)
