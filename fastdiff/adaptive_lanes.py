"""Lanes: the controlled steps of an adaptive run, and the rows that carry several of them through one stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fastdiff.ops.buffers import Coeffs
from fastdiff.plan import Stage
from fastdiff.schedule_base import Point
from fastdiff.table import IN_SCALE, StageSpec, _bind_stage, model_value_rows

Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Binding:
    """How model outputs become model values: what `table.bind` takes.

    Attributes:
        corrects: whether the user corrects x0, which then takes the place of the network's output, guided or not.
    """

    prediction: str
    guidance_scale: float | None = None
    gradient: Gradient | None = None
    clip: bool = False
    threshold: Callable[[torch.Tensor, Coeffs], None] | None = None
    corrects: bool = False

    def rows(self, stages: Sequence[Stage], space: str, copies: int) -> tuple[np.ndarray, StageSpec]:
        """The table rows of one stage, of each lane, and the structure that holds all of them."""
        form, given, scale = "" if self.gradient is None else "score", self.prediction, self.guidance_scale
        if self.corrects:
            form, given, scale = "", "x0", None
        pairs = [_bind_stage(s, given, space, scale, form, self.clip) for s in stages]
        values = np.stack([row for row, _ in pairs])
        values[:, IN_SCALE] = 1.0
        first = pairs[0][1]
        spec = StageSpec(
            max(s.convert for _, s in pairs),
            first.guided,
            any(s.m_reads_u for _, s in pairs),
            int(np.bitwise_or.reduce([s.u_mask for _, s in pairs])),
            int(np.bitwise_or.reduce([s.x_mask for _, s in pairs])),
            copies,
        )
        return values, spec

    def x0_rows(self, stages: Sequence[Stage]) -> tuple[np.ndarray, StageSpec]:
        """Rows that give the predicted x0 of those stages, neither corrected nor clipped."""
        values, spec = replace(self, clip=False, corrects=False).rows(stages, "data", 0)
        values, (only,) = model_value_rows(values, [spec])
        return values, only


@dataclass
class Lane:
    """One controlled step: of the batch, or of one sample."""

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
