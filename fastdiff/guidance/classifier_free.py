"""Classifier-free guidance: Ho and Salimans 2022, arXiv 2207.12598."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.guidance.base import Guidance, Place, Scale, check_scale, scale_at


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """uncond + scale·(cond − uncond), from one call of the network on both halves (eq. 6, with w = scale − 1).

    Args:
        scale: a finite number, 1 for the conditional output alone; or a function of the schedule's time.

    Raises:
        ValueError: a scale that is not finite.
    """

    scale: Scale

    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_scale("guidance", self.scale)

    def weights(self, at: Place) -> tuple[float, float]:
        s = scale_at(self.scale, at.stage.t)
        return s, 1.0 - s
