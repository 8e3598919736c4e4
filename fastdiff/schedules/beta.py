"""Quantiles of the beta distribution, for the time grid "beta". NumPy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_TERMS = 1000
"""More than the fraction needs: it converges in O(sqrt(max(a, b))) terms on its side of the mean."""
_HALVINGS = 60


def cdf(x: Array, a: float, b: float) -> Array:
    """The regularised incomplete beta function I_x(a, b) for x in [0, 1], by its continued fraction (DLMF 8.17.22)."""
    x = np.asarray(x, dtype=np.float64)
    lower = x <= (a + 1.0) / (a + b + 2.0)
    # I_x(a, b) = 1 − I_{1−x}(b, a): the fraction converges fast below the mean.
    with np.errstate(divide="ignore", invalid="ignore"):
        below = _fraction(np.where(lower, x, 0.0), a, b)
        above = 1.0 - _fraction(np.where(lower, 0.0, 1.0 - x), b, a)
    return np.where(lower, below, above)


def _fraction(x: Array, a: float, b: float) -> Array:
    log_front = a * np.log(x) + b * np.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    # Lentz's algorithm: value = 1/(1 + d1/(1 + d2/(1 + ...))).
    c, d = np.ones_like(x), 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    value = d.copy()
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d)
            c = 1.0 + term / c
            value = value * (c * d)
        if np.all(np.abs(c * d - 1.0) < 1e-15):
            break
    return np.where(x > 0.0, np.exp(log_front) / a * value, 0.0)


def quantile(p: Array, a: float, b: float) -> Array:
    """x with I_x(a, b) = p, for p in [0, 1], by bisection in x^a, which is proportional to p where x is small.

    So the result is good to its last digits there too.
    """
    p = np.asarray(p, dtype=np.float64)
    low, high = np.zeros_like(p), np.ones_like(p)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = cdf(middle ** (1.0 / a), a, b) > p
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    x = (0.5 * (low + high)) ** (1.0 / a)
    return np.where(p <= 0.0, 0.0, np.where(p >= 1.0, 1.0, x))
