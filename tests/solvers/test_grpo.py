"""Flow-GRPO's and Flow-CPS's steps, against the formulas of the papers and of the authors' program."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastdiff
from fastdiff.plan import ZA, M, X
from fastdiff.schedules import flow


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_grpo(shift: float) -> None:
    """mean = x·(1 + s²/(2t)·dt) + v·(1 + s²(1 − t)/(2t))·dt and std s·sqrt(−dt), s = a·sqrt(t/(1 − t)); 1 − t of the
    next time where t = 1."""
    a, plan = 0.7, fastdiff.plan("grpo", 6, schedule=flow(shift))
    sigmas = [*(s.sigma for s in plan.stages), 0.0]
    for stage, t, after in zip(plan.stages, sigmas[:-1], sigmas[1:], strict=True):
        dt, s = after - t, a * math.sqrt(t / (1 - (sigmas[1] if t == 1 else t)))
        of_x, of_v = 1 + s**2 / (2 * t) * dt, (1 + s**2 * (1 - t) / (2 * t)) * dt
        # v = (x − x0)/t
        want = (of_x + of_v / t, -of_v / t, s * math.sqrt(-dt))
        assert np.allclose([stage.next_u[j] for j in (X, M, ZA)], want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_cps(eta: float) -> None:
    """x' = (1 − t')·x0 + sqrt(t'² − std²)·eps + std·z, std = t'·sin(eta·pi/2); x0 = x − t·v, eps = x + (1 − t)·v."""
    plan = fastdiff.plan("cps", 6, schedule="flow", eta=eta)
    sigmas = [*(s.sigma for s in plan.stages), 0.0]
    for stage, t, after in zip(plan.stages, sigmas[:-1], sigmas[1:], strict=True):
        std = after * math.sin(eta * math.pi / 2)
        kept = math.sqrt(max(after**2 - std**2, 0.0))
        of_x, of_v = 1 - after + kept, -t * (1 - after) + kept * (1 - t)
        assert np.allclose(
            [stage.next_u[j] for j in (X, M, ZA)], (of_x + of_v / t, -of_v / t, std), rtol=1e-12, atol=1e-12
        )


def test_without_noise() -> None:
    """cps is ddim, on every schedule, and grpo is Euler's step of the flow."""
    for schedule in ("ddpm", "flow", "edm"):
        cps, ddim = (fastdiff.plan(m, 5, schedule=schedule, spacing="time_uniform", eta=0.0) for m in ("cps", "ddim"))
        for ours, theirs in zip(cps.stages, ddim.stages, strict=True):
            row = np.array(theirs.next_u)
            if ddim.space == "noise":
                row[X], row[M] = row[X] + row[M] / theirs.sigma, -row[M] * theirs.alpha / theirs.sigma
            assert np.allclose(ours.next_u, row, rtol=1e-9, atol=1e-9)
    for s, after in zip(fastdiff.plan("grpo", 4, schedule="flow", eta=0.0).stages, (0.75, 0.5, 0.25, 0.0), strict=True):
        step = (after - s.sigma) / s.sigma
        assert np.allclose([s.next_u[X], s.next_u[M]], (1 + step, -step))


@pytest.mark.parametrize(("schedule", "start"), [("flow", 0.9), ("ddpm", 900)])
def test_the_sde_has_the_law_of_the_data(schedule: str, start: float) -> None:
    """Data N(0, s²): the variance after the run, by its recursion, goes to s² with the first order of the step.

    From below t = 1, where sigma_t is infinite, and every program's choice is its own.
    """
    s2, errors = 0.6, []
    for steps in (50, 100, 200):
        plan = fastdiff.plan("grpo", steps, schedule=schedule, t_start=start)
        first = plan.stages[0]
        variance = first.alpha**2 * s2 + first.sigma**2
        for stage in plan.stages:
            gain = stage.alpha * s2 / (stage.alpha**2 * s2 + stage.sigma**2)
            variance = (stage.next_u[X] + stage.next_u[M] * gain) ** 2 * variance + stage.next_u[ZA] ** 2
        errors.append(abs(variance - s2))
    assert errors[2] < 0.02 and 1.6 < errors[1] / errors[2] < 2.6, errors


def test_the_law_of_cps() -> None:
    """Data N(0, s²): where the network is exact, x0's variance at the end is less than s², whatever the steps."""
    s2 = 0.6
    for steps in (10, 100):
        plan = fastdiff.plan("cps", steps, schedule="flow", eta=0.7)
        variance = plan.stages[0].sigma ** 2
        for stage in plan.stages:
            gain = stage.alpha * s2 / (stage.alpha**2 * s2 + stage.sigma**2)
            variance = (stage.next_u[X] + stage.next_u[M] * gain) ** 2 * variance + stage.next_u[ZA] ** 2
        assert variance < 0.95 * s2
