"""Perpendicular negative prompts: Armandpour et al. 2023, arXiv 2304.04968."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastdiff.guidance.base import HALVES, Blend, Guidance, Number, Outputs, Place, Scale, scale_at, settled_scale
from fastdiff.guidance.classifier_free import ClassifierFree, classifier_free
from fastdiff.ops.sums import dots


@dataclass(frozen=True, eq=False)
class PerpNeg(Guidance):
    """uncond + scale·(p − weight·(n − <n, p>/‖p‖²·p)), p = cond − uncond, n = negative − uncond (eq. 8).

    Of the negative condition only what is perpendicular to the positive one acts, each sample by itself. Three outputs
    from one call on 3·B rows: `cond`, `uncond` (the empty prompt) and `negative`.

    Args:
        scale: of the classifier-free guidance, or a `ClassifierFree` form such as `Interval`.
        negative: the negative conditions, with the structure of `cond`; tensors have the batch as first dimension, or 1
            for all samples.
        weight: of the negative direction, as `scale`; 0 for plain guidance.

    Raises:
        ValueError: a scale or a weight that is not finite.
        TypeError: `negative` is no dict.
    """

    scale: Scale | ClassifierFree
    negative: Mapping[str, Any]
    weight: Scale = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", classifier_free(self.scale))
        object.__setattr__(self, "weight", settled_scale("PerpNeg's weight", self.weight))
        if not isinstance(self.negative, Mapping):
            raise TypeError(
                "negative must be a dict of keyword arguments, such as negative={'y': labels}; got "
                f"{type(self.negative).__name__}"
            )

    @property
    def halves(self) -> tuple[str, ...]:
        return *HALVES, "negative"

    @property
    def conditioned(self) -> bool:
        return True

    @property
    def further(self) -> Mapping[str, Any]:
        return self.negative

    @property
    def key(self) -> tuple[object, ...]:
        return "perp_neg", self.scale, self.weight

    def weights(self, at: Place) -> tuple[Number, Number]:
        assert isinstance(self.scale, ClassifierFree)
        return self.scale.weights(at)

    @property
    def blends(self) -> bool:
        return True

    def numbers(self, at: Place) -> tuple[Number, ...]:
        return self.weights(at)[0], scale_at(self.weight, at.stage.t)

    def blend(self, outputs: Outputs) -> Blend:
        scale, weight = outputs.number(0), outputs.number(1)
        uncond = outputs.wide(1)
        p, n = outputs.wide(0) - uncond, outputs.wide(2) - uncond
        square = dots(p, p)
        along = torch.where(square > 0, dots(n, p) / square, 0.0)
        of_cond = scale * (1.0 + weight * along)
        second = outputs.column(1.0 - of_cond) * uncond - outputs.column(scale * weight) * n
        return Blend(of_cond, torch.ones_like(of_cond), second=second)
