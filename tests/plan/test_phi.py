"""phi functions against mpmath at 60 digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from fastdiff.plan.phi import phi


def exact(k: int, h: float) -> float:
    # phi_k(h) = sum over j of h^j / (j + k)! = 1F1(1; k + 1; h) / k!, an identity that the code does not use.
    with mpmath.workdps(60):
        return float(mpmath.hyp1f1(1, k + 1, mpmath.mpf(h)) / mpmath.factorial(k)) if k else float(mpmath.exp(h))


SIZES = [*np.geomspace(1e-8, 50.0, 60).tolist(), 1.9999999, 2.0, 2.0000001, 3.0, 4.0, 7.9999, 8.0]


@pytest.mark.parametrize("k", range(9))
def test_accuracy(k: int) -> None:
    h = np.array([s * v for v in SIZES for s in (1.0, -1.0)])
    truth = np.array([exact(k, v) for v in h])
    error = np.abs(phi(k, h) / truth - 1.0)
    assert error.max() < 1e-13, h[error.argmax()]


def test_recursion_and_limits() -> None:
    for k in range(5):
        assert phi(k, 0.0) == 1.0 / math.factorial(k)
        assert phi(k, -math.inf) == 0.0
        assert phi(k, math.inf) == math.inf
        assert math.isnan(phi(k, math.nan))
        assert math.isclose(phi(k, 1e-300), 1.0 / math.factorial(k), rel_tol=1e-15)
        assert phi(k + 1, -1e200) == pytest.approx(1e-200 / math.factorial(k), rel=1e-14)


def test_shapes() -> None:
    assert isinstance(phi(1, 0.5), float)
    h = np.linspace(-3.0, 3.0, 12).reshape(3, 4)
    values = phi(2, h)
    assert values.shape == (3, 4) and values.dtype == np.float64
    assert [phi(2, float(v)) for v in h.ravel()] == values.ravel().tolist()


@pytest.mark.parametrize("k", [-1, 9, 1.0, True])
def test_bad_order(k: object) -> None:
    with pytest.raises(ValueError, match="k must be an integer from 0 to 8"):
        phi(k, 1.0)  # type: ignore[arg-type]
