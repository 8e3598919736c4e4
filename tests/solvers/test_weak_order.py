"""Weak order on data that are not Gaussian: the law of each scheme on a mixture in one dimension, without sampling.

V(state) = E[f(x_end) | state] is carried from the end to the start through the rows of the plan: a step is a
Gauss-Hermite sum over its noise of a spline of the V after it. The state is x, and h1 for multistep methods.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers.analytic import Array, mixture
from scipy.interpolate import RectBivariateSpline, make_interp_spline
from test_solver_stochastic import times

from fastdiff.plan import H1, ZA, M, Plan, Stage, U, X
from fastdiff.schedules import resolve
from fastdiff.solvers import plan

DIST = mixture([0.4, 0.6], [[-0.9], [0.6]], [0.35, 0.45])
SCHEDULE = resolve("vp_linear")
# To 7 standard deviations of x, and what x0 is there.
GRID, VALUES = np.linspace(-7.0, 7.0, 101), np.linspace(-5.0, 5.0, 31)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def f(x: Array) -> Array:
    """Its mean tells more of the law than two moments do."""
    return np.cos(2.0 * x) + 0.3 * x**3


def x0(stage: Stage, u: Array) -> Array:
    return DIST.x0(u.reshape(-1, 1), stage.alpha, stage.sigma).reshape(u.shape)


def mean_of(function: Any, alpha: float, sigma: float) -> float:
    """E function(alpha·x0 + sigma·eps), by the same rule on each Gaussian."""
    z, w = np.polynomial.hermite_e.hermegauss(80)
    return sum(
        float(share * function(alpha * mean + np.hypot(alpha * std, sigma) * z) @ w / w.sum())
        for share, mean, std in zip(DIST.weights, DIST.means[:, 0], DIST.stds, strict=True)
    )


def of_u(p: Plan) -> list[Array]:
    """next_u of each stage in u, m, h1 and za alone: (x, m, h1, za) coefficients.

    A corrector (PEC) starts from the base x with the predictor's noise zb. The predictor was u = d·x + g·h1 + s·z, so
    that x and z come as (u − g·h1)·(coefficient of x)/d.
    """
    rows, before = [], None
    for stage in p.stages:
        u, base = np.array(stage.next_u), np.array(stage.next_x)
        row = np.array([u[X] + u[U], u[M], u[H1], u[ZA]])
        if u[ZA + 1]:
            assert before is not None
            d, g, s = before
            assert u[ZA + 1] * d == pytest.approx(u[X] * s, rel=1e-9)
            row[0] = u[X] / d
            row[2] -= row[0] * g
        rows.append(row)
        d = u[X] / base[X] if base[X] else 0.0
        before = d, u[M] - d * base[M], u[ZA]
    return rows


def multistep(p: Plan) -> float:
    """E f at the end of a method whose state is (x, h1)."""
    value: Any = lambda x, h: f(x)  # noqa: E731 - the first of many
    for stage, (cx, cm, ch, cz) in reversed(list(zip(p.stages, of_u(p), strict=True))[1:]):
        m = x0(stage, GRID)
        mean = (cx * GRID + cm * m)[:, None] + ch * VALUES
        kept = np.broadcast_to(m[:, None], mean.shape)
        total = sum(w * value(mean + cz * z, kept) for z, w in zip(NODES, WEIGHTS, strict=True))
        value = RectBivariateSpline(GRID, VALUES, total).ev
    stage, (cx, cm, _, cz) = p.stages[0], of_u(p)[0]

    def first(x: Array) -> Array:
        m = x0(stage, x)
        return sum(w * value(cx * x + cm * m + cz * z, m) for z, w in zip(NODES, WEIGHTS, strict=True))

    return mean_of(first, stage.alpha, stage.sigma)


def singlestep(p: Plan) -> float:
    """E f at the end of a method whose state is x: its draws are summed over together within a step."""
    value: Any = f
    for _, stages in reversed([(k, list(g)) for k, g in itertools.groupby(p.stages, lambda s: s.step)]):
        draws = sorted({d for s in stages for d in s.draws if d >= 0})
        chosen = np.array(list(itertools.product(range(len(NODES)), repeat=len(draws))), dtype=int)
        z = dict(zip(draws, NODES[chosen].T, strict=True))
        x = u = np.broadcast_to(GRID[:, None], (len(GRID), len(chosen)))
        kept: list[Array] = []
        for stage in stages:
            m = x0(stage, u)
            registers = [x, u, m, *kept, *[0.0] * (7 - len(kept)), *(z.get(d, 0.0) for d in stage.draws)]
            u, x = (
                sum((c * r for c, r in zip(row, registers, strict=True) if c), np.zeros_like(m))
                for row in (stage.next_u, stage.next_x)
            )
            kept = [m, *kept] if stage.keep else kept
        total = value(u) @ WEIGHTS[chosen].prod(1)
        value = make_interp_spline(GRID, total, k=5)
    return mean_of(value, p.stages[0].alpha, p.stages[0].sigma)


CASES: list[tuple[str, dict[str, Any], int, int]] = [
    ("dpmpp1_sde", {}, 16, 1),
    ("dpmpp2m_sde", {}, 16, 2),
    ("dpmpp2m_sde", {"solver_type": "heun"}, 16, 2),
    ("er_sde", {"order": 2}, 16, 2),
    ("sa_solver", {"predictor_order": 1, "corrector_order": 2}, 16, 2),
    ("seeds_2", {}, 16, 2),
    # Its errors are smaller than seeds_2's, and fall as steps^-1.5 up to 32 steps.
    ("seeds_3", {}, 64, 2),
]


@pytest.mark.parametrize(("method", "options", "steps", "claimed"), CASES, ids=str)
def test_weak_order_on_a_mixture(method: str, options: dict[str, Any], steps: int, claimed: int) -> None:
    errors = []
    for n in (steps, 2 * steps):
        p = plan(method, schedule=SCHEDULE, spacing=times(SCHEDULE, n), **options)
        end = SCHEDULE.at(p.times[-1])
        law = singlestep if p.nfe > p.steps else multistep
        errors.append(law(p) - mean_of(f, end.alpha, end.sigma))
    # What is left of the next order at these steps.
    assert np.log2(abs(errors[0] / errors[1])) > claimed - 0.15, errors
