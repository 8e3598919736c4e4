"""Adaptive projected guidance: Sadat et al. 2024, arXiv 2410.02416."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastdiff.guidance.base import Blend, Guidance, Number, Outputs, Place, Scale
from fastdiff.guidance.classifier_free import ClassifierFree, classifier_free
from fastdiff.names import representable, short
from fastdiff.ops.sums import dots, lengths
from fastdiff.plan import Plan
from fastdiff.prediction import conversion


@dataclass(frozen=True)
class AdaptiveProjected(Guidance):
    """x0(cond) + (scale − 1)·(d_orthogonal + eta·d_parallel), d = x0(cond) − x0(uncond) (Algorithm 1).

    d is a running mean with `momentum`, d ← d + momentum·(the d before), then shortened to at most `norm_threshold`,
    and then split into the parts parallel and orthogonal to x0(cond), each sample by itself. All in x0, whatever the
    network predicts. Inner products are taken on the device before the stage, which reads a row of its own for each
    sample.

    Args:
        scale: of the classifier-free guidance, or a `ClassifierFree` form such as `Interval`.
        eta: what is left of the part parallel to x0(cond): 0 as published, 1 for all of it.
        norm_threshold: the greatest length of d, above 0, over all elements of a sample; infinity for any. As
            published 2.5 to 15, by network.
        momentum: −0.5 or −0.75 as published; 0 for none. Above −1 and below 1. One more buffer of the state's size. Not
            with adaptive methods.

    Raises:
        ValueError: a scale that is not finite, or a number outside its range.
    """

    scale: Scale | ClassifierFree
    eta: float = 0.0
    norm_threshold: float = math.inf
    momentum: float = 0.0

    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", classifier_free(self.scale))
        for name, expected, good in (
            ("eta", "a finite number, such as 0.0", representable),
            ("norm_threshold", "a number above 0, such as 15.0", lambda v: v > 0),
            ("momentum", "a number above -1 and below 1, such as -0.5", lambda v: -1 < v < 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not good(value):
                raise ValueError(f"adaptive projected guidance {name}={short(value)}: expected {expected}")

    def check(self, plan: Plan | None, name: str) -> None:
        if plan is None and self.momentum:
            raise ValueError(
                f"adaptive projected guidance with momentum={self.momentum:g} keeps a mean over the evaluations of a "
                f"run, of which method {name!r} rejects some: use momentum=0, or a method with a plan"
            )

    def weights(self, at: Place) -> tuple[Number, Number]:
        assert isinstance(self.scale, ClassifierFree)
        return self.scale.weights(at)

    @property
    def blends(self) -> bool:
        return True

    @property
    def fixed(self) -> Hashable:
        return self.eta, self.norm_threshold, self.momentum

    def numbers(self, at: Place) -> tuple[Number, ...]:
        of_u, of_out = conversion(at.prediction, "data", at.stage.alpha, at.stage.sigma)
        if not of_out:
            raise ValueError(
                f"adaptive projected guidance at t={at.stage.t:g}: there x0 does not depend on the network's "
                f"prediction={at.prediction!r}: end at a later t_end"
            )
        return self.weights(at)[0], of_u / of_out, of_out

    def reads_u(self, at: Place) -> bool:
        return conversion(at.prediction, "data", at.stage.alpha, at.stage.sigma)[0] != 0

    def blend(self, outputs: Outputs) -> Blend:
        # In units of the output: x0 = of_out·(out + ratio·u).
        more, ratio, of_out = outputs.number(0) - 1.0, outputs.number(1), outputs.number(2)
        cond = outputs.wide(0)
        d, second = cond - outputs.wide(1), None
        if self.momentum:
            mean = outputs.column(of_out) * d
            if "mean" in outputs.memory:
                mean = mean + self.momentum * outputs.memory["mean"]
            outputs.memory["mean"] = second = mean
            d = mean / outputs.column(of_out)
        x0 = cond + outputs.column(ratio) * outputs.u
        kept = torch.ones_like(more)
        if self.norm_threshold < math.inf:
            length = of_out.abs() * lengths(d)
            kept = torch.where(length > self.norm_threshold, self.norm_threshold / length, 1.0)
        square = dots(x0, x0)
        along = torch.where(square > 0, dots(d, x0) / square, 0.0)
        lost = more * (1.0 - self.eta) * kept * along
        of_d = more * kept
        if second is None:
            return Blend(1.0 - lost + of_d, -of_d, -lost * ratio)
        return Blend(1.0 - lost, of_d / of_out, -lost * ratio, second)
