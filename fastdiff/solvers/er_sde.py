"""Extended reverse-time SDE solvers (Cui et al. 2023, arXiv 2309.06169), of stages 1 to 3, for x0, on every schedule.

With y = x/alpha, r = sigma/alpha and a noise scale phi(r), a step from s to t is (their eqs. 16, 19 and 21)

    y_t = (phi_t/phi_s)·y + (1 − phi_t/phi_s)·D + [dr + phi_t·S]·D' + [dr²/2 + phi_t·S_1]·D'' + std·z
    dr = r_t − r_s,  S = ∫ 1/phi,  S_1 = ∫ (r − r_s)/phi  (both from r_t to r_s),  std² = r_t² − (r_s·phi_t/phi_s)²

with D the predicted x0, and D', D'' its divided differences over r. phi = r is the ODE, phi = r² the reverse SDE.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from fastdiff.plan import Plan
from fastdiff.schedules import Point
from fastdiff.solvers.base import HISTORY, ROW, Draw, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.reverse import S_NOISE, check_start

Scale = Callable[[np.ndarray], np.ndarray]
"""log(phi/r) of log r: what phi has beyond the ODE's."""
# Gauss and Legendre's nodes on [0, 1]: phi is smooth in log r, and 1/phi to 1e-13 with these over steps of a factor 50.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_RIEMANN = 200
"""Points of the published sums."""


def scale(noise_scaler: str, eta: float) -> Scale:
    """ "er_sde" is the published phi = r·(exp(r^0.3) + 10), "power" r^(1 + eta)."""
    if noise_scaler == "power":
        return lambda log_r: eta * log_r
    return lambda log_r: np.logaddexp(np.exp(0.3 * log_r), math.log(10.0))


def integrals(excess: Scale, high: float, low: float, published: bool) -> tuple[float, float]:
    """phi(low)·S and phi(low)·S_1, for r from `low` to `high`: exact to rounding, or the published sums of 200 left
    points."""
    end = float(excess(np.log(low))) + math.log(low)
    if published:
        width = (high - low) / _RIEMANN
        r = low + width * np.arange(_RIEMANN)
        weights = np.full(_RIEMANN, width)
    else:
        # In log r, where phi hardly bends.
        span = math.log(high / low)
        r = low * np.exp(0.5 * span * (_NODES + 1.0))
        weights = 0.5 * span * _WEIGHTS * r
    inverse = np.exp(end - np.log(r) - excess(np.log(r))) * weights
    return float(inverse.sum()), float(((r - high) * inverse).sum())


def slopes(points: list[Point], i: int, available: int) -> list[Row]:
    """D' and D'' at points[i] from the divided differences over r of the values that are kept."""
    values = (ROW["m"], *HISTORY)
    r = [p.sigma / p.alpha for p in points[i::-1][:available] if p.alpha > 0]
    if len(r) < 2:
        return []
    first = (values[0] - values[1]) / (r[0] - r[1])
    if len(r) < 3:
        return [first]
    before = (values[1] - values[2]) / (r[1] - r[2])
    return [first, 2.0 * (first - before) / (r[0] - r[2])]


def build(request: Request, *, order: int, noise_scaler: str, eta: float, s_noise: float, integral: str) -> Plan:
    if noise_scaler != "power" and eta != 1.0:
        raise ValueError(f"eta={eta:g} goes with noise_scaler='power', phi = r^(1 + eta); 'er_sde' has no eta")
    if noise_scaler != "power" or eta:
        check_downward(request, "er_sde")
    excess = scale(noise_scaler, eta)
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start("er_sde", s)
        x, m = ROW["x"], ROW["m"]
        if t.sigma == 0:
            rows.add(s, t, t.alpha * m, step=i, keep=True)
            continue
        if t.alpha == 0:
            # Upwards, into pure noise.
            rows.add(s, t, t.sigma / s.sigma * (x - s.alpha * m), step=i, keep=True)
            continue
        low = t.sigma / t.alpha
        if s.alpha == 0:
            # phi grows with r: nothing of x is kept. phi = r alone keeps its noise.
            keep = t.sigma / s.sigma if noise_scaler == "power" and eta == 0 else 0.0
            row, std = keep * x + t.alpha * m, 0.0 if keep else t.sigma
        else:
            high = s.sigma / s.alpha
            beyond = float(excess(np.log(low)) - excess(np.log(high)))
            log_ratio = math.log(low / high) + beyond
            row = t.alpha * (math.exp(log_ratio) / s.alpha * x - math.expm1(log_ratio) * m)
            # 1 − (phi_t·r_s/(phi_s·r_t))² without cancellation where steps are short.
            std = t.sigma * math.sqrt(max(-math.expm1(2.0 * beyond), 0.0))
            found = slopes(points, i, min(order, i + 1))
            if found:
                whole, tilted = integrals(excess, high, low, integral == "published")
                row = row + t.alpha * (low - high + whole) * found[0]
                if len(found) == 2:
                    row = row + t.alpha * (0.5 * (low - high) ** 2 + tilted) * found[1]
        rows.add(s, t, row + s_noise * std * ROW["za"], step=i, keep=True, noise=(Draw(s, t),))
    options = {"order": order, "noise_scaler": noise_scaler, "eta": eta, "s_noise": s_noise, "integral": integral}
    stochastic = noise_scaler != "power" or eta > 0
    return rows.plan("er_sde", "data", min(order, 2) if stochastic else order, request, points, options)


METHODS = (
    Method(
        name="er_sde",
        summary="Extended reverse-time SDE solver, multistep, of stages 1 to 3",
        paper="Cui et al. 2023, arXiv 2309.06169",
        order=2,
        build=build,
        space="data",
        spacing="karras",
        stochastic=True,
        options={
            "order": Option(3, "the stages of the paper: how many model values a step uses", choices=(1, 2, 3)),
            "noise_scaler": Option(
                "er_sde", "'er_sde': phi = r·(exp(r^0.3) + 10); 'power': phi = r^(1 + eta)", choices=("er_sde", "power")
            ),
            "eta": Option(1.0, "of noise_scaler='power': 1 is the reverse SDE, 0 the ODE", minimum=0.0),
            "s_noise": S_NOISE,
            "integral": Option(
                "exact",
                "'exact': integrals of 1/phi to rounding; 'published': sums of 200 points",
                choices=("exact", "published"),
            ),
        },
        aliases=("er_sde_solver",),
        good_for=("noise",),
    ),
)
