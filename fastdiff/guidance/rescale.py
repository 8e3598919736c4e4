"""Classifier-free guidance whose result has the conditional output's spread: Lin et al. 2023, arXiv 2305.08891."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdiff.guidance.base import Blend, Guidance, Number, Outputs, Place, Scale
from fastdiff.guidance.classifier_free import ClassifierFree, classifier_free
from fastdiff.ops.sums import sample_sums


@dataclass(frozen=True)
class Rescale(Guidance):
    """g·(phi·std(cond)/std(g) + 1 − phi), with the standard deviations of each sample (eqs. 15 and 16).

    They are taken on the device before the stage runs, which reads a row of its own for each sample: three more passes
    over the network's output an evaluation.

    Args:
        scale: of the classifier-free guidance, or a `ClassifierFree` form such as `Interval`.
        phi: from 0, no change, to 1, the conditional spread; 0.7 as published. diffusers calls it guidance_rescale.

    Raises:
        ValueError: a scale that is not finite, or phi outside [0, 1].
    """

    scale: Scale | ClassifierFree
    phi: float = 0.7

    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", classifier_free(self.scale))
        if isinstance(self.phi, bool) or not isinstance(self.phi, int | float) or not 0.0 <= self.phi <= 1.0:
            raise ValueError(f"guidance rescale phi={self.phi!r}: expected a number from 0 to 1, such as 0.7")

    def weights(self, at: Place) -> tuple[Number, Number]:
        assert isinstance(self.scale, ClassifierFree)
        return self.scale.weights(at)

    @property
    def blends(self) -> bool:
        return self.phi > 0

    @property
    def fixed(self) -> float:
        return self.phi

    def blend(self, outputs: Outputs) -> Blend:
        w1, w2 = super().blend(outputs)[:2]
        if not self.blends:
            return Blend(w1, w2)
        first = outputs.wide(0)
        spread = std(outputs.column(w1) * first + outputs.column(w2) * outputs.wide(1))
        # A sample that is the same everywhere, or of one element, has no spread to take over.
        factor = torch.where(spread > 0, self.phi * std(first) / spread + (1.0 - self.phi), 1.0)
        return Blend(w1 * factor, w2 * factor)


def std(v: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each sample of (B, ...), up to a factor that depends on its size alone: (B,)."""
    n = math.prod(v.shape[1:])
    mean = sample_sums(v.clone()) / n
    return sample_sums((v - mean.reshape(-1, *[1] * (v.ndim - 1))).square()).sqrt()
