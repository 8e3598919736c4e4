"""Stochastic methods on Gaussian data, where every stage is affine: exact means and variances, without Monte Carlo.

The interpreter runs on arrays of coefficients over (1, x_T, draw 0, draw 1, ...) in the place of numbers, so that its
result is
the final x as an affine function of independent standard normals.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from helpers.analytic import Array
from helpers.methods import TABLES as METHODS
from helpers.run_plan import run

from fastdiff.plan import ZA, Plan, Stage
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.solvers import plan

DRAWS = 2


def moments(p: Plan, schedule: NoiseSchedule, mean: float, std: float) -> tuple[float, float, float, float]:
    """Mean and variance of the result, and the true ones, for data N(mean, std²) and x_T from its marginal."""
    first, last = schedule.at(p.times[0]), schedule.at(p.times[-1])
    size = DRAWS + p.draws

    def unit(j: int, scale: float = 1.0) -> Array:
        return scale * np.eye(size)[j]

    def eps(u: Array, stage: Stage) -> Array:
        variance = (stage.alpha * std) ** 2 + stage.sigma**2
        return stage.sigma / variance * (u - unit(0, stage.alpha * mean))

    x = unit(0, first.alpha * mean) + unit(1, math.hypot(first.alpha * std, first.sigma))
    result = run(p, eps, x, "eps", noise=lambda draw, like: unit(DRAWS + draw))
    return float(result[0]), float((result[1:] ** 2).sum()), last.alpha * mean, (last.alpha * std) ** 2 + last.sigma**2


def times(schedule: NoiseSchedule, steps: int, low: float = -2.5, high: float = 2.0) -> list[float]:
    """Steps of equal lambda, on which alpha and sigma both change."""
    return [float(schedule.inverse_lambda(lam)) for lam in np.linspace(low, high, steps + 1)]


@pytest.mark.parametrize("name", ["ddpm", "subvp", "edm", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(
    ("method", "options"), [("ddpm", {"variance": "small"}), *[("ddim", {"eta": e}) for e in (0.0, 0.3, 1.0)]]
)
def test_posterior_variance_is_exact_on_a_point_mass(
    method: str, options: dict[str, object], steps: int, name: str
) -> None:
    # Ho et al. 2020, section 3.2: beta-tilde is right for one fixed x0; DDIM keeps the marginals given x0 for every
    # eta.
    schedule = resolve(name)
    p = plan(method, schedule=schedule, spacing=times(schedule, steps), **options)
    mean, variance, true_mean, true_variance = moments(p, schedule, 0.7, 0.0)
    assert mean == pytest.approx(true_mean, abs=1e-13) and variance == pytest.approx(true_variance, rel=1e-12)


@pytest.mark.parametrize("name", ["ddpm", "scaled_linear", "vp_linear", "vp_cosine"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_large_variance_is_exact_on_standard_normal_data(steps: int, name: str) -> None:
    # Ho et al. 2020, section 3.2: beta is right for x0 ~ N(0, 1).
    schedule = resolve(name)
    p = plan("ddpm", schedule=schedule, spacing=times(schedule, steps), variance="large")
    mean, variance, true_mean, true_variance = moments(p, schedule, 0.0, 1.0)
    assert (
        mean == true_mean == 0.0
        and variance == pytest.approx(true_variance, rel=1e-13)
        and true_variance == pytest.approx(1.0)
    )


def variance_errors(method: str, name: str, steps: tuple[int, ...], **options: object) -> list[float]:
    schedule = resolve(name)
    found = []
    for n in steps:
        p = plan(method, schedule=schedule, spacing=times(schedule, n), **options)
        mean, variance, true_mean, true_variance = moments(p, schedule, 0.7, 0.5)
        # eps = 0 where x = alpha·mean: along the means every method is exact, as for a point mass.
        assert mean == pytest.approx(true_mean, rel=1e-12)
        found.append(abs(variance - true_variance))
    return found


CHURNED = ("heun", "edm_euler", "dpm_2")
# pc's means are not exact along the means of the marginals: tests/solvers/test_score_sde.py. The samplers of distilled
# networks do not converge with those that are not, restarts have steps of their own, and of dpm2s_sde two errors cancel
# for this Gaussian: tests/solvers/test_stochastic_laws.py. The noise of cps does not shrink with the step:
# tests/solvers/test_grpo.py.
ELSEWHERE = {"pc", "lcm", "consistency", "tcd", "restart", "dpm2s_sde", "cps"}
VARIED = [
    ("ddpm", {"variance": "small"}),
    ("ddpm", {"variance": "large"}),
    ("ddim", {"eta": 0.5}),
    ("ddim", {"eta": 1.0}),
    *[("dpmpp2m_sde", {"eta": e, "solver_type": t}) for e in (0.5, 1.0) for t in ("midpoint", "heun")],
    *((m, {"s_churn": 3.0}) for m in CHURNED),
]
# Every other method that draws noise, as it is by default: one that is registered enters here.
PLAIN = [(m, {}) for m, entry in METHODS.items() if entry.stochastic and m not in {name for name, _ in VARIED}]
CONVERGING = [*VARIED, *((m, options) for m, options in PLAIN if m not in ELSEWHERE)]


@pytest.mark.parametrize("name", ["vp_linear", "edm", "flow"])
@pytest.mark.parametrize(("method", "options"), CONVERGING, ids=str)
def test_variance_converges_at_the_claimed_order(method: str, options: dict[str, object], name: str) -> None:
    claimed = METHODS[method].order
    extra = {"s_tmax": 5.0} if method in CHURNED else {}
    steps = (40, 80, 160)
    found = variance_errors(method, name, steps, **options, **extra)
    order = float(-np.polyfit(np.log(steps), np.log(found), 1)[0])
    assert order > claimed - 0.3, (order, found)


@pytest.mark.parametrize("name", ["ddpm", "cosine", "subvp", "edm", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_ddim_with_eta_one_is_ddpm(name: str, steps: int) -> None:
    ours = [plan(m, steps, name, "trailing", **o) for m, o in (("ddim", {"eta": 1.0}), ("ddpm", {}))]
    rows = [np.array([s.next_u for s in p.stages]) for p in ours]
    assert ours[0].times == ours[1].times and [s.draws for s in ours[0].stages] == [s.draws for s in ours[1].stages]
    assert np.abs(rows[0] - rows[1]).max() <= 1e-12 * np.abs(rows[0]).max()


@pytest.mark.parametrize("name", ["ddpm", "subvp", "edm", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize(("form", "published"), [("midpoint", "dpmsolver"), ("heun", "taylor")])
def test_two_step_sde_without_noise_is_the_ode_method(form: str, published: str, steps: int, name: str) -> None:
    sde = plan("dpmpp2m_sde", steps, name, "karras", eta=0.0, solver_type=form)
    ode = plan("dpmpp2m", steps, name, "karras", solver_type=published, lower_order_final=False)
    assert not sde.stochastic and sde.times == ode.times
    for a, b in zip(sde.stages, ode.stages, strict=True):
        # The difference of adjacent times in lambda is the only thing that is rounded differently.
        assert np.allclose(a.next_u, b.next_u, rtol=1e-12, atol=1e-12)


def test_without_noise_nothing_is_drawn() -> None:
    assert not plan("ddim", 5, eta=0.0).stochastic
    assert not plan("heun", 5, "edm", s_churn=0.0).stochastic
    assert not plan("heun", 5, "edm", s_churn=3.0, s_noise=0.0).stochastic
    assert not plan("dpmpp2m_sde", 5, s_noise=0.0).stochastic
    assert not plan("heun", 5, "edm", s_churn=3.0, s_tmin=1e3).stochastic


@pytest.mark.parametrize(("method", "options"), CONVERGING, ids=str)
def test_draws_are_numbered_in_order(method: str, options: dict[str, object]) -> None:
    p = plan(method, 12, "edm", "karras", **options)
    used = list(dict.fromkeys(d for s in p.stages for d in s.draws if d >= 0))
    assert p.stochastic and used == list(range(p.draws)) and len(used) >= 10
    for s in p.stages:
        for d in range(3):
            assert (s.draws[d] >= 0) == (s.next_u[ZA + d] != 0 or s.next_x[ZA + d] != 0)
    if (METHODS[method].nfe_per_step > 1 and method not in (*CHURNED, "pc")) or method == "sa_solver":
        # Several stages read the noise of one step, which covers the step together.
        spans = {d: s.spans[i] for s in p.stages for i, d in enumerate(s.draws) if d >= 0}
        ends = [spans[d] for d in used]
        assert p.spanned and all(a[1] == b[0] for a, b in pairwise(ends)) and ends[0][0] == p.times[0]
        assert ends[-1][1] == p.times[-2]
        return
    # Each is used once.
    assert len(used) == sum(d >= 0 for s in p.stages for d in s.draws)
    for s in p.stages:
        # Churn and Langevin corrections go over times again, or stay at one: their noise is no part of a path.
        on_path = method not in CHURNED and (method != "pc" or s.t != s.t_next)
        assert s.spans == (((s.t, s.t_next), (), ()) if s.noisy and on_path else ())
    assert p.spanned == all(s.spans for s in p.stages if s.noisy)


def test_churn_takes_place_within_its_limits_only() -> None:
    p = plan("heun", 18, "edm", s_churn=40.0, s_tmin=0.05, s_tmax=50.0)
    churned = [s for s in p.stages if s.draws[0] >= 0]
    # Karras et al. 2022, Algorithm 2: gamma = min(40/18, sqrt(2) − 1).
    for s in churned:
        at = s.t_next / math.sqrt(2.0)
        assert 0.05 <= at * (1 + 1e-12) and at <= 50.0 * (1 + 1e-12)
        assert s.next_u[ZA] == pytest.approx(math.sqrt(s.t_next**2 - at**2), rel=1e-12)
    assert len(churned) == sum(0.05 <= t <= 50.0 for t in p.times[:-1])


def test_churn_above_the_schedule_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"churn at t=.* above the schedule's range: use s_tmax < "):
        plan("heun", 5, "vp_linear", s_churn=2.0)
    assert plan("heun", 5, "vp_linear", s_churn=2.0, s_tmax=50.0).stochastic


def test_churn_without_noise_still_moves_to_the_noisier_time() -> None:
    # Algorithm 2 with S_noise = 0: x/alpha is kept, and the step begins at the larger sigma/alpha.
    schedule = resolve("vp_linear")
    p = plan("heun", schedule=schedule, spacing=times(schedule, 4), s_churn=1.0, s_noise=0.0)
    lift = p.stages[0]
    assert not lift.evaluate and lift.t_next > lift.t
    assert lift.next_u[0] == pytest.approx(schedule.alpha(lift.t_next) / schedule.alpha(lift.t), rel=1e-13)
