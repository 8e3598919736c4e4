"""The phi functions of exponential integrators (Hochbruck and Ostermann 2010, eq. 2.9 to 2.11)."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Values = TypeVar("Values", float, NDArray[np.float64])

# The series is used for |h| < max(2, k) <= 8: the first term left out, relative to the first term, is then below
# 8**49 8! / 57! < 1e-26. So it is with 16 terms up to 0.25, with 26 up to 1 and with 32 up to 2.
_TERMS = 48
_FEWER = ((0.25, 16), (1.0, 26), (2.0, 32))


def phi(k: int, h: Values) -> Values:
    """phi_0(h) = e^h and phi_{k+1}(h) = (phi_k(h) - 1/k!) / h, with phi_k(0) = 1/k!.

    `k` is an integer of 0 to 8; `h` a float or a float64 array, of any sign and size: phi_k(-inf) = 0 and
    phi_k(inf) = inf. Relative error below 1e-13. Raises ValueError for another `k`.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= 8:
        raise ValueError(f"phi got k={k!r}; k must be an integer from 0 to 8, as in phi(1, h)")
    # The same operations on one number, at a small part of the cost.
    if k == 1 and isinstance(h, float) and 0.0 < abs(h) < 700.0:
        return cast(Values, np.float64(np.expm1(h) / h))
    if k > 1 and isinstance(h, float) and abs(h) < max(2.0, float(k)):
        terms = next((n for limit, n in _FEWER if abs(h) <= limit), _TERMS)
        return cast(Values, np.float64(_series(k, float(h), terms)))
    x = np.asarray(h, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if k == 0:
            return cast(Values, np.exp(x)[()])
        value = np.expm1(x) / x
        for j in range(1, k):
            value = (value - 1.0 / math.factorial(j)) / x
    value = np.where(np.isposinf(x), np.inf, value)
    # Each step of the recursion above cancels about |h| / (k + 1) of its digits for small |h|: there, use the series.
    near = np.abs(x) < max(2.0, float(k)) if k > 1 else x == 0.0
    value = np.where(near, _series(k, np.where(near, x, 0.0)), value)
    return cast(Values, value[()])


def _series(k: int, x: Values, terms: int = _TERMS) -> Values:
    """Sum over j of x^j / (j + k)!, by Horner's rule."""
    value = x * 0.0
    for j in range(terms, 0, -1):
        value = (value + 1.0) * x / (j + k)
    return (value + 1.0) / math.factorial(k)
