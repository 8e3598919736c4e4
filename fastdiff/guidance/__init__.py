"""Forms of guidance, one small class each: `sample(model, guidance=Interval(2.0, 0.28, 2.9), cond=..., uncond=...)`."""

from typing import TYPE_CHECKING

from fastdiff.guidance.base import UNGUIDED, Blend, Guidance, Outputs, Place
from fastdiff.guidance.choice import choose
from fastdiff.guidance.classifier_free import ClassifierFree
from fastdiff.guidance.describe import described
from fastdiff.lazy import lazy

if TYPE_CHECKING:
    from fastdiff.guidance.apg import AdaptiveProjected
    from fastdiff.guidance.autoguidance import Autoguidance
    from fastdiff.guidance.cfg_pp import CFGPlusPlus
    from fastdiff.guidance.cfg_zero import CFGZeroStar
    from fastdiff.guidance.classifier import ClassifierGuidance, ClassifierMean, ClassifierScore, ScoreAfterClip
    from fastdiff.guidance.interval import Interval
    from fastdiff.guidance.perp_neg import PerpNeg
    from fastdiff.guidance.rescale import Rescale
else:
    # Forms that a run asks for are read when it does. The same names as above, which type checkers read.
    __getattr__, __dir__ = lazy(
        "fastdiff.guidance",
        {
            "AdaptiveProjected": "fastdiff.guidance.apg",
            "Autoguidance": "fastdiff.guidance.autoguidance",
            "CFGPlusPlus": "fastdiff.guidance.cfg_pp",
            "CFGZeroStar": "fastdiff.guidance.cfg_zero",
            **dict.fromkeys(
                ("ClassifierGuidance", "ClassifierMean", "ClassifierScore", "ScoreAfterClip"),
                "fastdiff.guidance.classifier",
            ),
            "Interval": "fastdiff.guidance.interval",
            "PerpNeg": "fastdiff.guidance.perp_neg",
            "Rescale": "fastdiff.guidance.rescale",
        },
    )

__all__ = [
    "UNGUIDED",
    "AdaptiveProjected",
    "Autoguidance",
    "Blend",
    "CFGPlusPlus",
    "CFGZeroStar",
    "ClassifierFree",
    "ClassifierGuidance",
    "ClassifierMean",
    "ClassifierScore",
    "Guidance",
    "Interval",
    "Outputs",
    "PerpNeg",
    "Place",
    "Rescale",
    "ScoreAfterClip",
    "choose",
    "described",
]
