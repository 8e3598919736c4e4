"""Classifier guidance: Dhariwal and Nichol 2021, arXiv 2105.05233."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastdiff.guidance.base import Gradient, Guidance, Place, one_evaluation_a_step
from fastdiff.plan import SECOND, M, Plan
from fastdiff.prediction import score_shift


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """What all forms have: the gradient of log p(y | x) with respect to x, times its scale.

    Args:
        grad: (x, t) -> (B, ...) tensor. Called with gradients enabled, on a copy of x that requires none, with the
            model's times. Kept in the wider of its dtype and the network's.
    """

    grad: Gradient

    def __post_init__(self) -> None:
        if not callable(self.grad):
            raise TypeError(
                f"classifier_grad must be callable as classifier_grad(x, t), got {type(self.grad).__name__}"
            )

    @property
    def gradient(self) -> Gradient:
        return self.grad

    @property
    def key(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class ClassifierScore(ClassifierGuidance):
    """The gradient is added to the score (Algorithm 2). For every method."""

    def weights(self, at: Place) -> tuple[float, float]:
        return 1.0, score_shift(at.prediction, at.stage.alpha, at.stage.sigma)


@dataclass(frozen=True)
class ClassifierMean(ClassifierGuidance):
    """The step's variance times the gradient is added to the step's mean (Algorithm 1). For method "ddpm"."""

    def check(self, plan: Plan | None, name: str) -> None:
        if name != "ddpm":
            raise ValueError(
                f"classifier_form='mean' shifts the mean of a reverse step by its variance, which method {name!r} does "
                "not state: use method='ddpm', or classifier_form='score'"
            )

    def combine(self, at: Place, row: np.ndarray) -> np.ndarray:
        assert at.variance is not None
        changed = row.copy()
        changed[SECOND] += at.variance
        return changed


@dataclass(frozen=True)
class ScoreAfterClip(ClassifierGuidance):
    """The gradient shifts the x0 that was corrected and clipped, which may then leave the bounds: guided-diffusion's
    DDIM. For methods with one evaluation a step and no history."""

    def check(self, plan: Plan | None, name: str) -> None:
        one_evaluation_a_step(
            plan,
            "classifier_form='score_after_clip' shifts the x0 of a step after its clip, which",
            "classifier_form='score'",
        )

    def combine(self, at: Place, row: np.ndarray) -> np.ndarray:
        s = at.stage
        if s.alpha == 0:
            raise ValueError("classifier_form='score_after_clip' needs alpha > 0: start at an earlier t_start")
        changed = row.copy()
        changed[SECOND] += score_shift("x0" if at.space == "data" else "eps", s.alpha, s.sigma) * row[M]
        return changed


FORMS: dict[str, type[ClassifierGuidance]] = {
    "score": ClassifierScore,
    "mean": ClassifierMean,
    "score_after_clip": ScoreAfterClip,
}
"""By option `classifier_form`."""
