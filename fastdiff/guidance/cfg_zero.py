"""CFG-Zero*: Fan et al. 2025, arXiv 2503.18886."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdiff.guidance.base import Blend, Guidance, Number, Outputs, Place, Scale
from fastdiff.guidance.classifier_free import ClassifierFree, classifier_free
from fastdiff.names import short
from fastdiff.ops.sums import dots


@dataclass(frozen=True)
class CFGZeroStar(Guidance):
    """scale·v(cond) + (1 − scale)·s·v(uncond), s = <v(cond), v(uncond)>/‖v(uncond)‖² of each sample; v = 0 in the first
    steps (Algorithm 1).

    For networks of flow matching, prediction="flow". The inner products are taken on the device before the stage,
    which reads a row of its own for each sample.

    Args:
        scale: of the classifier-free guidance, or a `ClassifierFree` form such as `Interval`.
        zero_steps: in how many first steps the velocity is 0; 1 as published, 0 for none.

    Raises:
        ValueError: a scale that is not finite, zero_steps that is no whole number; and before a run another prediction.
    """

    scale: Scale | ClassifierFree
    zero_steps: int = 1

    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", classifier_free(self.scale))
        if isinstance(self.zero_steps, bool) or not isinstance(self.zero_steps, int) or self.zero_steps < 0:
            raise ValueError(
                f"CFG-Zero* zero_steps={short(self.zero_steps)}: expected a whole number from 0, such as 1"
            )

    def check(self, plan: object, name: str) -> None:
        if plan is None and self.zero_steps:
            raise ValueError(
                f"CFG-Zero* leaves out the first zero_steps={self.zero_steps} steps, and method {name!r} chooses its "
                "steps by their error: use zero_steps=0, or a method with a plan"
            )

    def weights(self, at: Place) -> tuple[Number, Number]:
        assert isinstance(self.scale, ClassifierFree)
        if at.prediction != "flow":
            raise ValueError(
                f"CFG-Zero* is for networks of flow matching, prediction='flow', whose velocity it scales; got "
                f"prediction={at.prediction!r}: use AdaptiveProjected(scale) or guidance=7.5"
            )
        return self.scale.weights(at)

    @property
    def blends(self) -> bool:
        return True

    def numbers(self, at: Place) -> tuple[Number, ...]:
        if at.stage.step < self.zero_steps:
            return 0.0, 0.0
        w1, w2 = self.weights(at)
        return w1, w2

    def blend(self, outputs: Outputs) -> Blend:
        cond, uncond = outputs.wide(0), outputs.wide(1)
        square = dots(uncond, uncond)
        # A velocity of 0 has no direction, and no share in the sum.
        star = torch.where(square > 0, dots(cond, uncond) / square, 0.0)
        return Blend(outputs.number(0), outputs.number(1) * star)
