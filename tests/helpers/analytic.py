"""Distributions whose diffusion is known in closed form: float64 truth for the tests of the solvers.

With x_t = alpha·x0 + sigma·eps, every quantity follows from the mixture's score; nothing here uses the package.
Arrays are
(n, d): n points of a d-dimensional space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """A mixture of isotropic Gaussians: weights (k,), means (k, d), stds (k,); a std of 0 is a point mass."""

    weights: Array
    means: Array
    stds: Array

    def _components(self, x: Array, alpha: float, sigma: float) -> tuple[Array, Array, Array]:
        """Responsibilities (n, k), offsets x − alpha·mean (n, k, d), and variances (k,) of the components at x."""
        variance = (alpha * self.stds) ** 2 + sigma**2
        offset = x[:, None, :] - alpha * self.means
        log_p = np.log(self.weights) - 0.5 * x.shape[1] * np.log(variance) - 0.5 * (offset**2).sum(-1) / variance
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True), offset, variance

    def eps(self, x: Array, alpha: float, sigma: float) -> Array:
        """E[eps | x] = −sigma·score(x)."""
        p, offset, variance = self._components(x, alpha, sigma)
        return sigma * np.einsum("nk,nkd->nd", p / variance, offset)

    def x0(self, x: Array, alpha: float, sigma: float) -> Array:
        """E[x0 | x]; finite for alpha = 0 too, since it does not divide by alpha."""
        p, offset, variance = self._components(x, alpha, sigma)
        return p @ self.means + np.einsum("nk,nkd->nd", p * (alpha * self.stds**2 / variance), offset)

    def predict(self, prediction: str, x: Array, alpha: float, sigma: float) -> Array:
        """What a perfect network with that prediction gives."""
        if prediction == "eps":
            return self.eps(x, alpha, sigma)
        if prediction == "x0":
            return self.x0(x, alpha, sigma)
        if prediction == "v":
            return alpha * self.eps(x, alpha, sigma) - sigma * self.x0(x, alpha, sigma)
        if prediction == "score":
            return -self.eps(x, alpha, sigma) / sigma
        if prediction == "flow":
            return self.eps(x, alpha, sigma) - self.x0(x, alpha, sigma)
        if prediction == "flow_to_data":
            return self.x0(x, alpha, sigma) - self.eps(x, alpha, sigma)
        if prediction == "edm":
            return sigma * self.x0(x, alpha, sigma) - alpha * self.eps(x, alpha, sigma)
        raise ValueError(prediction)


def mixture(weights: Sequence[float], means: Sequence[Sequence[float]], stds: Sequence[float]) -> Mixture:
    return Mixture(
        np.array(weights, dtype=np.float64), np.array(means, dtype=np.float64), np.array(stds, dtype=np.float64)
    )


def gaussian(mean: Sequence[float], std: float) -> Mixture:
    """N(mean, std²)."""
    return mixture([1.0], [mean], [std])


def point(mean: Sequence[float]) -> Mixture:
    """All mass at `mean`."""
    return gaussian(mean, 0.0)


def gaussian_ode(mean: Array, std: float, z: Array, alpha: float, sigma: float) -> Array:
    """The solution of the probability flow ODE for N(mean, std²): z is constant along it, for every schedule."""
    return alpha * mean + np.sqrt((alpha * std) ** 2 + sigma**2) * z


def mixture_ode(dist: Mixture, x: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
    """The probability flow ODE from (alpha, sigma) = start to end, by DOP853 to about 1e-12.

    In y = x/alpha and r = sigma/alpha it reads dy/dr = eps, for every schedule; solved in log r.
    """
    from scipy.integrate import solve_ivp

    def slope(log_r: float, y: Array) -> Array:
        r = np.exp(log_r)
        return r * dist.eps(y.reshape(x.shape), 1.0, r).ravel()

    span = [np.log(sigma / alpha) for alpha, sigma in (start, end)]
    solution = solve_ivp(slope, span, (x / start[0]).ravel(), method="DOP853", rtol=1e-13, atol=1e-14)
    assert solution.success
    return end[0] * solution.y[:, -1].reshape(x.shape)
