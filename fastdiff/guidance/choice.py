"""From what the caller gives to one guidance object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdiff.guidance.base import UNGUIDED, Guidance, settled_scale
from fastdiff.guidance.classifier_free import ClassifierFree
from fastdiff.names import one_of
from fastdiff.plan import Plan


def choose(arguments: Mapping[str, Any], method: str, plan: Plan | None = None) -> Guidance:
    """The guidance that `guidance`, `guidance_scale`, `classifier_grad` and `classifier_form` ask for.

    Args:
        plan: of a method that has one: its rows may say what becomes of guidance, as those of CFG++ do.

    Raises:
        ValueError, TypeError: two at once, a scale that is not finite, no such form, or one that does not go with the
            method's.
    """
    chosen = _chosen(arguments, method)
    return chosen if plan is None or not plan.shifted else _of_method(chosen, method)


def _of_method(chosen: Guidance, method: str) -> Guidance:
    from fastdiff.guidance.cfg_pp import CFGPlusPlus, ShiftedCFGPlusPlus

    if isinstance(chosen, CFGPlusPlus):
        return ShiftedCFGPlusPlus(chosen.scale)
    if type(chosen) is ClassifierFree:
        return ShiftedCFGPlusPlus(chosen.scale)
    got = "no guidance" if chosen is UNGUIDED else f"guidance={type(chosen).__name__}(...)"
    raise ValueError(
        f"method {method!r} is CFG++: give its scale, guidance=0.6, with cond and uncond (or "
        f"guidance=CFGPlusPlus(0.6)); got {got}"
    )


def _chosen(arguments: Mapping[str, Any], method: str) -> Guidance:
    guidance, scale = arguments["guidance"], arguments["guidance_scale"]
    gradient, form = arguments["classifier_grad"], arguments["classifier_form"]
    if guidance is not None and scale is not None:
        raise ValueError(
            f"guidance={guidance!r} and guidance_scale={scale!r} are two words for one thing: give guidance alone"
        )
    if gradient is None and form is None:
        return _classifier_free("guidance_scale" if guidance is None else "guidance", scale, guidance)
    # Read where it is needed: most runs have no classifier.
    from fastdiff.guidance.classifier import FORMS

    if form is not None:
        one_of("classifier_form", form, FORMS)
    if gradient is None:
        raise ValueError(f"classifier_form={form!r} without a classifier: give classifier_grad=(x, t) -> grad too")
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
    scale = settled_scale(name, given)
    return ClassifierFree(float(scale) if isinstance(scale, int | float) else scale)
