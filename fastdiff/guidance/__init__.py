"""Forms of guidance, one small class each: `sample(model, guidance=Interval(2.0, 0.28, 2.9), cond=..., uncond=...)`."""

from fastdiff.guidance.apg import AdaptiveProjected
from fastdiff.guidance.autoguidance import Autoguidance
from fastdiff.guidance.base import UNGUIDED, Blend, Guidance, Outputs, Place
from fastdiff.guidance.cfg_pp import CFGPlusPlus
from fastdiff.guidance.cfg_zero import CFGZeroStar
from fastdiff.guidance.choice import choose
from fastdiff.guidance.classifier import ClassifierGuidance, ClassifierMean, ClassifierScore, ScoreAfterClip
from fastdiff.guidance.classifier_free import ClassifierFree
from fastdiff.guidance.describe import described
from fastdiff.guidance.interval import Interval
from fastdiff.guidance.perp_neg import PerpNeg
from fastdiff.guidance.rescale import Rescale

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
