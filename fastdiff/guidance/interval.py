"""Guidance in a limited interval of noise levels: Kynkäänniemi et al. 2024, arXiv 2404.07724."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdiff.guidance.base import Number, Place, scale_at
from fastdiff.guidance.classifier_free import ClassifierFree
from fastdiff.names import short


@dataclass(frozen=True)
class Interval(ClassifierFree):
    """Classifier-free guidance where sigma_lo < sigma/alpha <= sigma_hi, the conditional output elsewhere (eq. 5).

    Args:
        scale: as of `ClassifierFree`.
        sigma_lo, sigma_hi: noise levels in EDM's units, sigma/alpha, from 0 to infinity: the paper has (0.28, 2.9) for
            ImageNet-512 with EDM2-XXL, and scale 2.

    Raises:
        ValueError: a scale that is not finite, or no interval.
    """

    sigma_lo: float
    sigma_hi: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigma_lo", "sigma_hi"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"guidance interval {name}={short(value)}: expected a number, as in (2.0, 0.28, 2.9)")
        if not 0.0 <= self.sigma_lo < self.sigma_hi:
            raise ValueError(
                f"guidance interval from sigma_lo={self.sigma_lo!r} to sigma_hi={self.sigma_hi!r}: expected "
                "0 <= sigma_lo < sigma_hi, in sigma/alpha, such as Interval(2.0, 0.28, 2.9)"
            )

    def weights(self, at: Place) -> tuple[Number, Number]:
        s = at.stage
        level = s.sigma / s.alpha if s.alpha else math.inf
        scale = scale_at(self.scale, s.t) if self.sigma_lo < level <= self.sigma_hi else 1.0
        return scale, 1.0 - scale
