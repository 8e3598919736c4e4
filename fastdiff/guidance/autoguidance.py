"""Guidance by a weaker network: Karras et al. 2024, arXiv 2406.02507."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastdiff.guidance.base import Guidance, Number, Place, Scale
from fastdiff.guidance.classifier_free import ClassifierFree, classifier_free


@dataclass(frozen=True)
class Autoguidance(Guidance):
    """weak + scale·(network − weak), both at the same conditions (eq. 3).

    Two calls an evaluation, one of each network; both are given `model_kwargs`.

    Args:
        scale: a number, one for each sample, a function of the schedule's time, or a `ClassifierFree` form such as
            `Interval`; 1 for the network alone.
        network: the weaker one, called as the model is: smaller, or trained for less time, and with the same prediction
            and schedule.

    Raises:
        ValueError: a scale that is not finite.
        TypeError: a network that cannot be called.
    """

    scale: Scale | ClassifierFree
    network: Callable[..., Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", classifier_free(self.scale))
        if not callable(self.network):
            raise TypeError(
                f"Autoguidance's network must be callable as network(x, t, **kwargs), got {type(self.network).__name__}"
            )

    @property
    def halves(self) -> tuple[str, ...]:
        return "network's own", "weaker network's"

    @property
    def weak(self) -> Callable[..., Any]:
        return self.network

    @property
    def key(self) -> tuple[str, object]:
        return "autoguidance", self.scale

    def weights(self, at: Place) -> tuple[Number, Number]:
        assert isinstance(self.scale, ClassifierFree)
        return self.scale.weights(at)
