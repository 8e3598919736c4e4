"""From what the caller gives to one guidance object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastdiff.guidance.base import UNGUIDED, Guidance
from fastdiff.guidance.classifier import ClassifierGuidance, ClassifierMean, ClassifierScore, ScoreAfterClip
from fastdiff.guidance.classifier_free import ClassifierFree
from fastdiff.names import one_of, representable

FORMS: dict[str, type[ClassifierGuidance]] = {
    "score": ClassifierScore,
    "mean": ClassifierMean,
    "score_after_clip": ScoreAfterClip,
}


def choose(arguments: Mapping[str, Any], method: str) -> Guidance:
    """The guidance that `guidance`, `guidance_scale`, `classifier_grad` and `classifier_form` ask for.

    Raises:
        ValueError, TypeError: two at once, a scale that is not finite, no such form.
    """
    guidance, scale = arguments["guidance"], arguments["guidance_scale"]
    gradient, form = arguments["classifier_grad"], arguments["classifier_form"]
    if guidance is not None and scale is not None:
        raise ValueError(
            f"guidance={guidance!r} and guidance_scale={scale!r} are two words for one thing: give guidance alone"
        )
    if form is not None:
        one_of("classifier_form", form, FORMS)
    if gradient is None:
        if form is not None:
            raise ValueError(f"classifier_form={form!r} without a classifier: give classifier_grad=(x, t) -> grad too")
        return _classifier_free("guidance_scale" if guidance is None else "guidance", scale, guidance)
    if guidance is not None or scale is not None:
        raise ValueError(
            "classifier_grad and classifier-free guidance (guidance_scale, cond, uncond) do not go together: use one"
        )
    return FORMS[form or ("mean" if method == "ddpm" else "score")](gradient)


def _classifier_free(name: str, scale: Any, guidance: Any) -> Guidance:
    given = scale if guidance is None else guidance
    if given is None:
        return UNGUIDED
    if isinstance(given, Guidance):
        return given
    number = isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)
    if callable(given):
        return ClassifierFree(given)
    if not number or not representable(given):
        more = "" if name == "guidance_scale" else ", or a form of fastdiff.guidance"
        raise ValueError(f"{name}={given!r}: expected a finite number, such as 3.0{more}")
    return ClassifierFree(float(given))
