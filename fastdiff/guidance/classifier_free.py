"""Classifier-free guidance: Ho and Salimans 2022, arXiv 2207.12598."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.guidance.base import Guidance, Number, Place, Scale, scale_at, settled_scale


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """uncond + scale·(cond − uncond), from one call of the network on both halves (eq. 6, with w = scale − 1).

    Args:
        scale: a finite number, 1 for the conditional output alone; a tensor or list of them, one for each sample; or a
            function of the schedule's time that gives either.

    Raises:
        ValueError: a scale that is not finite.
    """

    scale: Scale

    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", settled_scale("guidance", self.scale))

    def weights(self, at: Place) -> tuple[Number, Number]:
        s = scale_at(self.scale, at.stage.t)
        return s, 1.0 - s


def classifier_free(scale: Scale | ClassifierFree) -> ClassifierFree:
    """The form itself, or that of a scale."""
    return scale if isinstance(scale, ClassifierFree) else ClassifierFree(scale)
