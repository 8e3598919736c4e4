"""Lanes: the controlled steps of an adaptive run, and the rows that carry several of them through one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastdiff.bind import Binding, bind_stages, bind_stages_x0, blend_numbers, check_batch, join, without_late
from fastdiff.guidance import Place
from fastdiff.ops.layout import IN_SCALE, StageSpec
from fastdiff.plan import Stage
from fastdiff.schedules import Point


@dataclass
class Lane:
    """One controlled step: of the batch, or of one sample.

    Attributes:
        at: where it is; to: where its trial leads.
        h: the width of the next trial; retried: whether the last one was rejected.
        stages: the rows of its trial.
    """

    at: Point
    h: float = 0.0
    retried: bool = False
    done: bool = False
    accepted: int = 0
    rejected: int = 0
    evaluations: int = 0
    times: list[float] = field(default_factory=list)
    stages: tuple[Stage, ...] = ()
    to: Point | None = None


def stage_rows(stages: Sequence[Stage], space: str, binding: Binding, copies: int) -> tuple[np.ndarray, StageSpec]:
    """The table rows of one stage, of each lane, and the structure that holds all of them."""
    rows, specs = bind_stages([Place(s, space, binding.prediction) for s in stages], binding)
    values = without_late(rows)
    values[:, IN_SCALE] = 1.0
    return values, join(specs)._replace(copies=copies)


def x0_rows(stages: Sequence[Stage], binding: Binding) -> tuple[np.ndarray, StageSpec]:
    """Rows that give the predicted x0 of those stages, neither corrected nor clipped."""
    rows, specs = bind_stages_x0(stages, binding)
    return without_late(rows), join(specs)


def lane_numbers(stages: Sequence[Stage], space: str, binding: Binding, batch: int) -> np.ndarray | None:
    """(1 or B, K): what the guidance's `blend` reads at one stage, of a step for the batch or one for each sample; None
    where it need not be asked."""
    if not stages[0].evaluate:
        return None
    form = binding.guidance
    made = blend_numbers([form.numbers(Place(s, space, binding.prediction)) for s in stages], form)
    if made is None:
        return None
    check_batch(made, batch)
    if len(stages) == 1:
        return made[0]
    lanes = np.arange(len(stages))
    return made[lanes, lanes if made.shape[1] > 1 else 0]
