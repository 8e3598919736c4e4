"""Where a quantile lies among the order statistics, for every back end alike."""

from __future__ import annotations

import math


def rank(q: float, n: int) -> tuple[int, float]:
    """(low, weight): the q-quantile of n values is that order statistic, counted from 0, plus weight times the step to
    the next one. Of float64; the weight is in [0, 1), a multiple of 2^-53, and 0 where there is no next one."""
    exact = q * (n - 1)
    low = math.floor(exact)
    return low, math.floor((exact - low) * 2.0**53) * 2.0**-53
