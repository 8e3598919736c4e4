"""From a plan to the numbers that the kernels read: prediction type, guidance and clipping are bound here.

NumPy only. The result is a float64 table (rows of `WIDTH` coefficients) and, per stage, a `StageSpec`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastdiff.bind.clipping import unclipped_parts
from fastdiff.guidance import UNGUIDED, Guidance, Place
from fastdiff.guidance.base import Number
from fastdiff.ops.brownian import PATH_WIDTH, Path
from fastdiff.ops.layout import (
    BLEND,
    CG,
    CLIP,
    CU,
    HISTORY,
    IN_SCALE,
    LINEAR,
    NEXT_U,
    NEXT_X,
    NONE,
    PG,
    PU,
    QG,
    QU,
    QX,
    RAW,
    S0,
    S1,
    W1,
    W2,
    WIDTH,
    StageSpec,
    masks_of,
)
from fastdiff.plan import H1, IDENTITY, MAX_DRAWS, NREG, REGISTERS, SECOND, ZA, M, Plan, Stage, U, X
from fastdiff.prediction import PREVIOUS, check_previous, conversion, previous_conversion
from fastdiff.schedules import NoiseSchedule
from fastdiff.solvers import step_variances


@dataclass(frozen=True)
class Binding:
    """How a network's outputs become model values.

    Attributes:
        prediction: what the network gives: one of `PREDICTIONS`, or `PREVIOUS` with DDPM's plans.
        guidance: a form of `fastdiff.guidance`.
        clip: whether m goes through the clamped x0.
        corrected: whether the user corrects x0, which is then read instead of the guided output.
    """

    prediction: str = "eps"
    guidance: Guidance = UNGUIDED
    clip: bool = False
    corrected: bool = False


DEFAULT = Binding()
_TERMS = 32
"""The bound of a path's sums in a structure is a multiple of it; common grids have sums of at most 30."""


class Table(NamedTuple):
    """A bound plan: `values` float64 (stages + 1, WIDTH), `draws` int32 (stages + 1, 3), or as `path_table`, one spec
    per row, `times` (stages,), or (stages, 2) where the network is given two. `numbers`, float64 (stages + 1, 1 or B,
    K), are those that the guidance's `blend` reads, or None where w1 and w2 of the rows are all there is; w1 and w2 are
    NaN where they are not in the row.

    Row 0 is the opening: it writes the first network input from x. Row k + 1 is the plan's stage k.
    """

    values: np.ndarray
    draws: np.ndarray
    specs: tuple[StageSpec, ...]
    times: np.ndarray
    numbers: np.ndarray | None = None


def bind(plan: Plan, binding: Binding = DEFAULT, *, copies: int = 1, path: bool = False) -> Table:
    """The numbers and the structure of every stage.

    Args:
        copies: how often the next network input is written (2 where both halves are evaluated; 0 where the state serves
            as input).
        path: whether the draws are increments of one Brownian path.

    Raises:
        ValueError: an unknown prediction, one that the plan's method cannot use, or a conversion that divides by zero
            at some stage; with `path`, as `path_table`.
    """
    check_previous(binding.prediction, plan.method)
    stages, guidance = plan.stages, binding.guidance
    variances = step_variances(plan) or (None,) * len(stages)
    places = [Place(s, plan.space, binding.prediction, v) for s, v in zip(stages, variances, strict=True)]
    written = [copies if following.evaluate else 0 for following in stages[1:]] + [0]
    rows, specs = bind_stages(places, binding, unclipped_parts(plan), written, _learned(plan, binding))
    _check_reads(plan, specs, guidance)
    read = [guidance.numbers(place) if place.stage.evaluate else () for place in places]
    values = np.concatenate([_opening(), rows])
    values[:, IN_SCALE] = _scales_ahead(plan)
    specs.insert(0, StageSpec(NONE, False, False, 1 << X, 0, copies))
    times = np.array([s.model_time for s in stages])
    if plan.two_times:
        times = np.stack([times, [s.model_time if s.model_time_to is None else s.model_time_to for s in stages]], 1)
    draws = np.full((len(values), MAX_DRAWS), -1, dtype=np.int32)
    if plan.stochastic:
        draws[1:] = [s.draws for s in stages]
    if path and plan.stochastic:
        draws = path_table(plan)
        # One structure for all of them, and for other times, so that rows can share a launch and grids a graph.
        terms = -(-int(draws[:, ::PATH_WIDTH].max()) // _TERMS) * _TERMS
        specs = [spec._replace(path=terms if spec.noises else 0) for spec in specs]
    return Table(values, draws, tuple(specs), times, blend_numbers([(), *read], guidance))


def blend_numbers(read: Sequence[tuple[Number, ...]], guidance: Guidance) -> np.ndarray | None:
    """float64 (rows, 1 or B, K): what `blend` reads of each row; None where it need not be asked.

    Raises:
        ValueError: numbers for other numbers of samples.
    """
    counts = {len(v) for row in read for v in row if isinstance(v, np.ndarray)}
    if not counts and not guidance.blends:
        return None
    if len(counts) > 1:
        raise ValueError(f"the guidance gives numbers for {' and '.join(map(str, sorted(counts)))} samples")
    made = np.zeros((len(read), max(counts, default=1), max(map(len, read), default=0)))
    for k, row in enumerate(read):
        for j, value in enumerate(row):
            made[k, :, j] = value
    return made


def without_late(values: np.ndarray) -> np.ndarray:
    """Rows with 0 for the w1 and w2 that come with each evaluation."""
    made = values.copy()
    weights = made[:, [W1, W2]]
    made[:, [W1, W2]] = np.where(np.isnan(weights), 0.0, weights)
    return made


def check_batch(numbers: np.ndarray, batch: int) -> None:
    """ValueError for numbers of another batch."""
    if numbers.shape[1] not in (1, batch):
        raise ValueError(
            f"the guidance scale has {numbers.shape[1]} numbers, and the batch has {batch} samples: give one "
            "number, or one for each sample"
        )


def _learned(plan: Plan, binding: Binding) -> int:
    return 0 if not plan.learned_variance else (2 if binding.guidance.halves else 1)


def path_table(plan: Plan) -> np.ndarray:
    """int32 (stages + 1, 3·PATH_WIDTH): every draw as a sum of the path's normals; row 0 is the opening's.

    Raises:
        ValueError: a draw without a span, a plan without a schedule, or steps shorter than the path resolves.
    """
    if not plan.spanned:
        raise ValueError(
            f"noise='brownian': method {plan.method!r} with these options draws noise that belongs to no interval of "
            "time (churn, Langevin corrections, or rows without `noise=(Draw(s, t),)`), so it has no place on a path; "
            "use a method such as dpmpp2m_sde, ddim with eta=1 or ddpm, or leave noise out"
        )
    if not plan.schedule:
        raise ValueError(
            "noise='brownian' needs the plan's schedule, which says how much noise lies between two times: "
            "Plan(..., schedule=schedule.to_dict())"
        )
    schedule, path = NoiseSchedule.from_dict(plan.schedule), Path()
    table = np.zeros((len(plan.stages) + 1, MAX_DRAWS, PATH_WIDTH), dtype=np.int32)
    for k, stage in enumerate(plan.stages):
        for d, span in enumerate(stage.spans):
            if span:
                table[k + 1, d] = path.words(*(schedule.at(t).lam for t in span))
    return table.reshape(len(table), -1)


def _check_reads(plan: Plan, specs: Sequence[StageSpec], guidance: Guidance) -> None:
    """Raise ValueError for a register that a bound row reads and that no run with this guidance gives."""
    two, history = bool(guidance.halves) or guidance.gradient is not None, 0
    for k, (stage, spec) in enumerate(zip(plan.stages, specs, strict=True)):
        given = 1 << X | 1 << U | history | stage.evaluate * (1 << M | two << SECOND)
        missing = (spec.u_mask | spec.x_mask | spec.guided << SECOND) & ~given
        if missing:
            missing &= ~sum((d >= 0) << ZA + i for i, d in enumerate(stage.draws))
        if missing:
            lacking = (missing & -missing).bit_length() - 1
            kept = sum(s.keep for s in plan.stages[:k])
            why = {
                SECOND: "the unconditional output or a classifier's gradient: give guidance=..., cond=... and "
                "uncond=..., or classifier_grad=...",
                M: "the model value, and the stage does not evaluate the network",
            }.get(lacking, f"which the plan does not have there ({kept} model values kept, draws {stage.draws})")
            raise ValueError(f"stage {k} of method {plan.method!r} reads {REGISTERS[lacking]!r}, {why}")
        if stage.keep:
            history = (history << 1 | 1 << H1) & HISTORY


def bind_x0(plan: Plan, binding: Binding) -> tuple[np.ndarray, tuple[StageSpec, ...]]:
    """The rows that give the predicted x0 of every stage as u', guided, neither corrected nor clipped."""
    rows, specs = bind_stages_x0(plan.stages, binding, _learned(plan, binding))
    values = np.concatenate([_opening(), rows])
    values[0, IN_SCALE] = _scales_ahead(plan)[0]
    return values, (StageSpec(NONE, False, False, 1 << M, 0, 0), *specs)


def bind_stages_x0(stages: Sequence[Stage], binding: Binding, learned: int = 0) -> tuple[np.ndarray, list[StageSpec]]:
    """For each stage the row whose u' is the predicted x0."""
    observed = Binding(binding.prediction, binding.guidance)
    places = [Place(s, "data", binding.prediction) for s in stages]
    rows, specs = bind_stages(places, observed, learned=learned, combine=False)
    rows[:, NEXT_U : NEXT_X + NREG] = 0.0
    rows[:, NEXT_U + M] = 1.0
    return rows, [StageSpec(s.convert, s.guided, s.m_reads_u, 1 << M, 0, 0, s.learned) for s in specs]


def bind_stages(
    places: Sequence[Place],
    binding: Binding,
    unclipped: Sequence[float] | None = None,
    copies: Sequence[int] | None = None,
    learned: int = 0,
    *,
    combine: bool = True,
) -> tuple[np.ndarray, list[StageSpec]]:
    """The table rows of some stages, (stages, WIDTH), and their structures.

    Args:
        unclipped: of each, w where x0 is clipped for (1 − w) of m alone, m = (1 − w)·clip(x0) + w·x0; default: 0.
        copies, learned: as of `StageSpec`, the former of each; default: 0. `learned` is of those that evaluate.
        combine: whether the guidance may change the outputs' rows.
    """
    guidance, none = binding.guidance, (0,) * len(places)
    rows = np.zeros((len(places), WIDTH))
    next_u, next_x = rows[:, NEXT_U : NEXT_U + NREG], rows[:, NEXT_X : NEXT_X + NREG]
    next_u[:] = [place.stage.next_u for place in places]
    next_x[:] = next_u
    # Most forms leave the outputs as they are.
    one, changes = [], combine and type(guidance).combine is not Guidance.combine
    for k, place in enumerate(places):
        stage = place.stage
        same = stage.next_x == stage.next_u
        if not same:
            next_x[k] = stage.next_x
        one.append(same or stage.next_x == IDENTITY)
        if changes and stage.evaluate:
            next_u[k] = guidance.combine(place, next_u[k])
            if not one[k]:
                next_x[k] = guidance.combine(place, next_x[k])
    weigh = None if binding.corrected else guidance.weights if combine else guidance.observed
    blends, specs = guidance.blends, []
    for place, row, w, (u_mask, x_mask), alone, count in zip(
        places, rows, unclipped or none, masks_of(rows), one, copies or none, strict=True
    ):
        stage, x_mask = place.stage, 0 if alone else x_mask
        if stage.learned_variance:
            row[S0], row[S1] = stage.learned_variance
        if not stage.evaluate:
            specs.append(StageSpec(NONE, False, False, u_mask, x_mask, count))
            continue
        weights, blends_u = None if weigh is None else weigh(place), False
        if weights is None:
            row[W1] = 1.0
        else:
            # Where `blend` gives them they are not known yet: a row that is run without it is seen to be none.
            late = blends or any(isinstance(v, np.ndarray) for v in weights)
            row[W1], row[W2] = (math.nan, math.nan) if late else weights
            blends_u = blends and guidance.reads_u(place)
        convert, reads_u = _convert(row, place, binding, w)
        if blends_u:
            convert, reads_u = max(convert, LINEAR), True
        specs.append(StageSpec(convert, weights is not None, reads_u, u_mask, x_mask, count, learned))
    return rows, specs


def _convert(row: np.ndarray, place: Place, binding: Binding, unclipped: float) -> tuple[int, bool]:
    """Write into the row how m is made of u and g. Returns its kind, and whether it reads u."""
    stage, given = place.stage, "x0" if binding.corrected else binding.prediction
    if not binding.clip:
        row[CU], row[CG] = made = _conversion(stage, given, place.space)
        return RAW if made == (0.0, 1.0) else LINEAR, bool(made[0])
    row[PU], row[PG] = _conversion(stage, given, "data")
    row[QU], row[QX] = conversion("x0", place.space, stage.alpha, stage.sigma)
    if unclipped:
        # The part of x0 that the clip leaves alone, written out in u and g.
        row[[QU, QG]] += unclipped * row[QX] * row[[PU, PG]]
        row[QX] *= 1.0 - unclipped
    return BLEND if unclipped else CLIP, bool(row[PU] or row[QU])


def join(specs: Sequence[StageSpec]) -> StageSpec:
    """The structure that holds rows of all these: what any of them reads is read."""
    first = specs[0]
    u_mask = x_mask = 0
    for s in specs:
        u_mask, x_mask = u_mask | s.u_mask, x_mask | s.x_mask
    return first._replace(
        convert=max(s.convert for s in specs),
        m_reads_u=any(s.m_reads_u for s in specs),
        u_mask=u_mask,
        x_mask=x_mask,
    )


def is_raw(table: Table, plan: Plan) -> bool:
    """Whether every model value that is kept in the history is the network's output as it came."""
    kept = [table.specs[k + 1] for k, s in enumerate(plan.stages) if s.keep]
    return all(spec.convert == RAW and not spec.guided and not spec.learned for spec in kept)


def _opening() -> np.ndarray:
    """(1, WIDTH): u' = x."""
    row = np.zeros((1, WIDTH))
    row[0, NEXT_U + X] = 1.0
    return row


def _scales_ahead(plan: Plan) -> list[float]:
    """Of each stage, and of the end: the in_scale of the first evaluation from there on, 1 where there is none."""
    scales = [1.0]
    for stage in reversed(plan.stages):
        scales.append(stage.in_scale if stage.evaluate else scales[-1])
    return scales[::-1]


def _conversion(stage: Stage, prediction: str, space: str) -> tuple[float, float]:
    # DDPM's plans work in data space, as does the predicted x0.
    if prediction == PREVIOUS:
        return previous_conversion(stage.next_u[X], stage.next_u[M], stage.model_time)
    return conversion(prediction, space, stage.alpha, stage.sigma)
