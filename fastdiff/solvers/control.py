"""Step size control: what an error is measured against, whether a step is accepted, and how wide the next one is.

NumPy only. A controller knows nothing of the method whose steps it controls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Controller:
    """The elementary control of Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, II.4.

    The error of an element is measured against atol + rtol·max(|x|, |x'|), x and x' being the step's ends; that of a
    sample is the root mean square of its elements.

    Attributes:
        rtol, atol: relative and absolute tolerance.
        exponent: the error grows with this power of the step's width.
        safety, smallest, largest: factor of the best width, and bounds of a step's change.
    """

    rtol: float
    atol: float
    exponent: int
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0

    against_lower = False
    """Whether the scale is made of the lower order's results, instead of the step's ends."""
    worst_sample = False
    """Whether a batch's error is that of its worst sample, instead of the root mean square."""

    def judge(self, error: float, retried: bool) -> tuple[bool, float]:
        """Whether the step is accepted, and the factor of the next one's width; `retried`: the last one was not."""
        change = self.safety * error ** (-1 / self.exponent) if error > 0 else self.largest
        if error < 1:
            return True, min(1.0 if retried else self.largest, change)
        return False, max(self.smallest, change)


@dataclass(frozen=True)
class Extrapolation(Controller):
    """The control of Jolicoeur-Martineau et al. 2021 (arXiv 2105.14080), as DPM-Solver has it.

    The error of an element is measured against max(atol, rtol·max(|x'_low|, |x'_low before|)), the lower order's
    results of this step and of the last; a batch's error is that of its worst sample, and a step's change has no
    bounds.
    """

    against_lower = True
    worst_sample = True

    def judge(self, error: float, retried: bool) -> tuple[bool, float]:
        return error <= 1, self.safety * error ** (-1 / self.exponent) if error > 0 else math.inf


@dataclass(frozen=True)
class Limited(Extrapolation):
    """k-diffusion's control: the change of a step is 1 + atan(E^(-1/exponent) − 1), the smooth limiter of Söderlind and
    Wang 2006 ("Adaptive time-stepping and computational stability"), and a step is accepted if that is at least
    `accept_safety`. A batch's error is the root mean square of all its elements."""

    accept_safety: float = 0.81

    worst_sample = False

    def judge(self, error: float, retried: bool) -> tuple[bool, float]:
        # Beside an error of rounding's size the inverse stays finite.
        change = 1.0 + math.atan((error + 1e-8) ** (-1 / self.exponent) - 1.0)
        return change >= self.accept_safety, change
