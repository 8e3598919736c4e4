"""The phi functions of exponential integrators (Hochbruck and Ostermann 2010, eq. 2.9 to 2.11)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Values = TypeVar("Values", float, NDArray[np.float64])

# The series is used for |h| < max(2, k) <= 8. The first term left out, relative to the first one of all, is at most
# |h|^n k! / (n + k)!, k >= 1, where n is one more than the number of terms: less than 2e-19 in each line.
_TERMS = ((0.25, 12), (1.0, 20), (2.0, 26), (math.inf, 48))
_FEW = 32
"""Up to so many numbers the series costs less one by one."""


def phi(k: int, h: Values) -> Values:
    """phi_0(h) = e^h and phi_{k+1}(h) = (phi_k(h) - 1/k!) / h, with phi_k(0) = 1/k!.

    `k` is an integer of 0 to 8; `h` a float or a float64 array, of any sign and size: phi_k(-inf) = 0 and
    phi_k(inf) = inf. Relative error below 1e-13. Raises ValueError for another `k`.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= 8:
        raise ValueError(f"phi got k={k!r}; k must be an integer from 0 to 8, as in phi(1, h)")
    # Each step of the recursion cancels about |h| / (k + 1) of its digits for small |h|: there, use the series.
    limit = max(2.0, float(k))
    if isinstance(h, float):
        # The same operations on one number, at a small part of the cost.
        if k == 1 and 0.0 < abs(h) < 700.0:
            return cast(Values, np.float64(np.expm1(h) / h))
        if k > 1 and abs(h) < limit:
            return cast(Values, _series_at(k, float(h)))
    x = np.asarray(h, dtype=np.float64)
    if k == 1 and x.all() and (np.abs(x) < 700.0).all():
        return cast(Values, np.expm1(x) / x)
    near = np.abs(x) < limit if k > 1 else x == 0.0
    if 0 < x.size <= _FEW and near.all():
        return cast(Values, np.array([_series_at(k, v) for v in x.ravel().tolist()]).reshape(x.shape)[()])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if k == 0:
            return cast(Values, np.exp(x)[()])
        value = np.expm1(x) / x
        for j in range(1, k):
            value = (value - 1.0 / math.factorial(j)) / x
    value = np.where(np.isposinf(x), np.inf, value)
    value = np.where(near, _series(k, np.where(near, x, 0.0), limit), value)
    return cast(Values, value[()])


# Correctors ask for what their predictors asked for.
@lru_cache(maxsize=4096)
def _series_at(k: int, h: float) -> np.float64:
    return np.float64(_series(k, h, abs(h)))


def _series(k: int, x: Values, largest: float) -> Values:
    """Sum over j of x^j / (j + k)!, by Horner's rule, for |x| <= largest."""
    value = x * 0.0
    for j in range(next(n for limit, n in _TERMS if largest <= limit), 0, -1):
        value = (value + 1.0) * x / (j + k)
    return (value + 1.0) / math.factorial(k)
