"""`pc`: closed forms on Gaussian data, the published steps, structure, and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.analytic import Array
from helpers.models import MIXTURE, Exact, X
from helpers.run_plan import run

import fastdiff
from fastdiff import schedules
from fastdiff.plan import REGISTERS, Plan, Stage
from fastdiff.schedules import SCHEDULES, NoiseSchedule, resolve
from fastdiff.schedules.grids import grid
from fastdiff.solvers import plan

MEAN, STD = 0.7, 0.5
PREDICTORS = ("reverse_diffusion", "euler_maruyama", "ancestral")


def moments(p: Plan) -> tuple[float, float]:
    """Mean and variance of the result for data N(MEAN, STD²) from its marginal: the run is affine in its normals."""
    size = 2 + p.draws

    def unit(j: int, scale: float = 1.0) -> Array:
        return scale * np.eye(size)[j]

    def score(u: Array, stage: Stage) -> Array:
        return -(u - unit(0, stage.alpha * MEAN)) / ((stage.alpha * STD) ** 2 + stage.sigma**2)

    first = p.stages[0]
    x = unit(0, first.alpha * MEAN) + unit(1, math.hypot(first.alpha * STD, first.sigma))
    result = run(p, score, x, "score", noise=lambda draw, like: unit(2 + draw))
    return float(result[0]), float((result[1:] ** 2).sum())


def published_form(sde: str, predictor: str, steps: int) -> list[tuple[float, float, float]]:
    """(keep, score, std) of every step, from the paper's formulas: App. C, D, E and F, with steps of 1/N."""
    t = np.linspace(1.0, 1e-5 if sde == "ve" else 1e-3, steps)
    low, high, ratio = 0.01, 50.0, math.log(5000.0)
    table = np.exp(np.linspace(math.log(high), math.log(low), steps))
    after = np.append(table[1:], 0.0)
    beta = np.linspace(20.0, 0.1, steps) / steps
    at = (0.1 + 19.9 * t) / steps
    one = np.ones(steps)
    if sde == "subvp":
        gain = at * (1.0 - np.exp(-2.0 * (0.1 * t + 0.5 * 19.9 * t**2)))
        form = 1.0 + at / 2.0, gain, np.sqrt(gain)
    elif predictor == "euler_maruyama":
        sigma = low * np.exp(ratio * t)
        gain = 2.0 * ratio * sigma**2 / steps if sde == "ve" else at
        form = one if sde == "ve" else 1.0 + at / 2.0, gain, np.sqrt(gain)
    elif sde == "ve":
        gain = table**2 - after**2
        form = one, gain, np.sqrt(gain) * (after / table if predictor == "ancestral" else one)
    elif predictor == "ancestral":
        form = 1.0 / np.sqrt(1.0 - beta), beta / np.sqrt(1.0 - beta), np.sqrt(beta)
    else:
        form = 2.0 - np.sqrt(1.0 - beta), beta, np.sqrt(beta)
    return [(float(a), float(b), float(c)) for a, b, c in zip(*form, strict=True)]


SDES = [("ve", p) for p in PREDICTORS] + [("vp_linear", p) for p in PREDICTORS]
SDES += [("subvp", p) for p in PREDICTORS[:2]]


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize(("name", "predictor"), SDES)
def test_mean_and_variance_propagate_exactly(name: str, predictor: str, flow: bool) -> None:
    if flow and predictor == "ancestral":
        return
    options = {"predictor": predictor, "corrector": "none", "probability_flow": flow}
    p = plan("pc", 30, name, discretization="score_sde", **options)
    first = p.stages[0]
    mean, variance = first.alpha * MEAN, (first.alpha * STD) ** 2 + first.sigma**2
    for i, (stage, (keep, gain, std)) in enumerate(zip(p.stages, published_form(name, predictor, 30), strict=True)):
        if flow:
            gain, std = 0.5 * gain, 0.0
        here = (stage.alpha * STD) ** 2 + stage.sigma**2
        slope = keep - gain / here
        mean = slope * mean + gain * stage.alpha * MEAN / here
        variance = slope**2 * variance + (std**2 if i < 29 else 0.0)
    assert moments(p) == pytest.approx((mean, variance), rel=1e-11)


def even(schedule: NoiseSchedule, steps: int) -> list[float]:
    """Steps of equal lambda, on which alpha and sigma both change."""
    return [float(schedule.inverse_lambda(lam)) for lam in np.linspace(-2.5, 2.0, steps + 1)]


@pytest.mark.parametrize(("name", "t_start"), [("ve", 5.0), ("vp_linear", 0.5), ("subvp", 0.5)])
def test_the_published_steps_from_a_later_start(name: str, t_start: float) -> None:
    """N equal steps of what is left of the SDE's time: the error falls with 1/N, where eps is small."""
    ends = {} if name == "ve" else {"t_end": 1e-6, "final": "clean"}
    errors = []
    for n in (100, 400):
        p = plan("pc", n, name, t_start=t_start, corrector="none", discretization="score_sde", **ends)
        errors.append(math.hypot(*(a - b for a, b in zip(moments(p), (MEAN, STD**2), strict=True))))
    assert errors[1] < 0.35 * errors[0] and errors[1] < 0.01, errors


@pytest.mark.parametrize("name", ["vp_linear", "ve"])
def test_the_published_tables_are_read_at_or_below_the_time(name: str) -> None:
    """With N·eps above 1 the grid falls behind the table: entry floor(t·(N − 1)), as t.long() in the published code."""
    n, eps = 61, 0.03
    end = eps if name == "vp_linear" else 0.01 * 5000.0**eps
    p = plan(
        "pc", n, name, t_end=end, final="clean", discretization="score_sde", predictor="ancestral", corrector="none"
    )
    index = np.floor(np.linspace(1.0, eps, n) * (n - 1) + 1e-9).astype(int)
    assert index[-1] == 1 and len(set(index)) == n - 1
    if name == "vp_linear":
        beta = np.linspace(0.1 / n, 20.0 / n, n)[index]
        keep, score = 1.0 / np.sqrt(1.0 - beta), beta / np.sqrt(1.0 - beta)
    else:
        sigmas = np.append(np.geomspace(0.01, 50.0, n), 0.0)
        keep, score = np.ones(n), sigmas[index] ** 2 - sigmas[index - 1] ** 2
    for stage, k, g in zip(p.stages, keep, score, strict=True):
        assert tuple(stage.next_u[REGISTERS.index(r)] for r in ("x", "m")) == pytest.approx((k, g), rel=1e-11)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("name", ["ddpm", "vp_linear", "subvp", "ve", "smld", "edm", "flow"])
def test_mean_and_variance_converge_at_first_order(name: str, predictor: str, flow: bool) -> None:
    if predictor == "ancestral" and (flow or name in ("subvp", "flow", "flow_to_data")):
        return
    schedule, counts, found = resolve(name), (40, 80, 160), []
    for n in counts:
        p = plan("pc", None, schedule, even(schedule, n), predictor=predictor, corrector="none", probability_flow=flow)
        mean, variance = moments(p)
        last = schedule.at(p.times[-1])
        truth = last.alpha * MEAN, (last.alpha * STD) ** 2 + last.sigma**2
        found.append(math.hypot(mean - truth[0], variance - truth[1]))
    order = -np.polyfit(np.log(counts), np.log(found), 1)[0]
    assert 0.8 < order, (order, found)


@pytest.mark.parametrize(("name", "predictor"), SDES)
def test_the_published_steps_converge_to_the_data(name: str, predictor: str) -> None:
    errors = []
    for n in (200, 400, 800):
        mean, variance = moments(plan("pc", n, name, predictor=predictor, corrector="none", discretization="score_sde"))
        errors.append(math.hypot(mean - MEAN, variance - STD**2))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02, errors


@pytest.mark.parametrize("name", ["ve", "vp_linear", "subvp"])
def test_probability_flow_is_euler_of_the_ode(name: str) -> None:
    """Along the ODE of Gaussian data, x = alpha·mean + v·z, v² = (alpha·std)² + sigma²: its velocity by differences."""
    schedule = resolve(name)
    p = plan("pc", 5, schedule, "time_uniform", predictor="euler_maruyama", corrector="none", probability_flow=True)
    assert not p.stochastic
    ratio = math.log(5000.0)

    def at(time: float) -> float:
        return 0.01 * math.exp(ratio * time) if name == "ve" else time

    def path(time: float, z: float) -> float:
        alpha, sigma = schedule.alpha(at(time)), schedule.sigma(at(time))
        return alpha * MEAN + math.hypot(alpha * STD, sigma) * z

    for stage in p.stages:
        time, then = (math.log(v / 0.01) / ratio if name == "ve" else v for v in (stage.t, stage.t_next))
        # x = alpha·mean + v·z solves the ODE for every z, and the velocity is a function of x: any z will do.
        for z in (-1.3, 0.4):
            x = path(time, z)
            # Inside the range at both ends; the third derivative times 1e-10 is below 1e-6 of the velocity.
            width = 1e-5 if time < 0.5 else -1e-5
            velocity = (4.0 * path(time + width, z) - 3.0 * x - path(time + 2 * width, z)) / (2.0 * width)
            score = -z / math.hypot(stage.alpha * STD, stage.sigma)
            step = (stage.next_u[0] - 1.0) * x + stage.next_u[2] * score
            assert step == pytest.approx((then - time) * velocity, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "variance"), [("ddpm", "large"), ("vp_linear", "large"), ("ve", "small"), ("smld", "small")]
)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_ancestral_is_ddpm(name: str, variance: str, steps: int) -> None:
    """Both rows over x and x0, with the score −(x − alpha·x0)/sigma²."""
    schedule = resolve(name)
    ours = plan("pc", steps, schedule, "karras", predictor="ancestral", corrector="none")
    ddpm = plan("ddpm", steps, schedule, "karras", variance=variance)
    for a, b in zip(ours.stages, ddpm.stages, strict=True):
        x, score, z = (a.next_u[REGISTERS.index(r)] for r in ("x", "m", "za"))
        got = np.array([x - score / a.sigma**2, score * a.alpha / a.sigma**2, z])
        want = np.array([b.next_u[REGISTERS.index(r)] for r in ("x", "m", "za")])
        # The coefficient of x, (sigma_t/sigma_s)²·r, is a difference of numbers of size 1/r.
        assert np.abs(got - want).max() <= 1e-14 * max(1.0, abs(x)), (a.t, got, want)
    assert [s.draws for s in ours.stages] == [s.draws for s in ddpm.stages]


def test_annealed_langevin_becomes_stationary() -> None:
    """x' = (1 − e/v)·x + sqrt(2e)·z has the variance v/(1 − e/(2v)); e = 2·(snr·sigma)², v = std² + sigma²."""
    p = plan("pc", None, "ve", [2.0, 1.0], predictor="none", corrector="ald", n_corrector=150, snr=0.3)
    v, e = STD**2 + 4.0, 2.0 * (0.3 * 2.0) ** 2
    mean, variance = moments(p)
    assert variance == pytest.approx(v / (1.0 - e / (2.0 * v)), rel=1e-10) and mean == pytest.approx(MEAN, rel=1e-10)


@pytest.mark.parametrize("corrector", ["langevin", "ald", "none"])
@pytest.mark.parametrize("predictor", [*PREDICTORS, "none"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_with_one_and_two_steps(name: str, predictor: str, corrector: str) -> None:
    if predictor == corrector == "none" or (predictor == "ancestral" and name in ("subvp", "flow", "flow_to_data")):
        return
    for steps, corrections in ((1, 1), (2, 3), (5, 1)):
        p = plan("pc", steps, name, predictor=predictor, corrector=corrector, n_corrector=corrections)
        assert p.steps == steps
        assert p.nfe == steps * ((predictor != "none") + corrections * (corrector != "none"))
        used = [s.draws[0] for s in p.stages if s.draws[0] >= 0]
        assert used == list(range(p.draws)), "no draw is used twice"
        assert (p.stages[-1].draws[0] < 0) == (predictor != "none"), "the mean is returned"
        noisy = plan("pc", steps, name, predictor=predictor, corrector=corrector, denoise=False)
        # At the clean end an ancestral step on VE has no noise at all.
        silent = predictor == "ancestral" and resolve(name).kind in ("ve", "edm")
        assert (noisy.stages[-1].draws[0] >= 0) == (not silent)
        assert Plan.from_json(p.to_json()) == p


def test_the_published_times() -> None:
    np.testing.assert_allclose(grid("sde_uniform", resolve("vp_linear"), 7), [*np.linspace(1, 1e-3, 7), 0], rtol=1e-15)
    sigmas = 0.01 * 5000.0 ** np.linspace(1.0, 1e-5, 7)
    np.testing.assert_allclose(grid("sde_uniform", schedules.ve(0.01, 50.0), 7), [*sigmas, 0.0], rtol=1e-13)
    assert grid("sde_uniform", resolve("ddpm"), 1000).tolist() == list(range(999, -2, -1))
    # The published eps under its own name: t_end, with the clean end after it.
    t = grid("sde_uniform", resolve("vp_linear"), 7, t_end=1e-2, final="clean")
    np.testing.assert_allclose(t, [*np.linspace(1, 1e-2, 7), 0], rtol=1e-15)


def test_smld_levels() -> None:
    s = schedules.smld(0.01, 50.0, 5)
    np.testing.assert_allclose(s.sigma(np.arange(5.0)), np.geomspace(0.01, 50.0, 5), rtol=1e-14)
    assert s.model_time(np.arange(5.0)).tolist() == [4.0, 3.0, 2.0, 1.0, 0.0] and s.alpha(2.5) == 1.0
    assert s.sigma(-1.0) == 0.0 and s.sigma(-0.5) == pytest.approx(0.005, rel=1e-14)
    t = np.array([-0.9, -0.5, 0.0, 1.3, 4.0])
    np.testing.assert_allclose(s.inverse_lambda(s.lam(t)), t, rtol=1e-12, atol=1e-13)
    assert (s.t_max, s.t_min, s.t_clean, s.num_train, s.prior_std()) == (4.0, 0.0, -1.0, 5, pytest.approx(50.0))
    assert NoiseSchedule.from_dict(s.to_dict()) == s and repr(s) == "smld(sigma_min=0.01, sigma_max=50.0, levels=5)"
    with pytest.raises(ValueError, match=r"levels got 1; expected an integer >= 2, as in smld\(levels=1000\)"):
        schedules.smld(levels=1)
    with pytest.raises(ValueError, match=r"expected sigma_min < sigma_max"):
        schedules.smld(2.0, 1.0)


BAD = [
    ({"predictor": "reverse_difusion"}, ValueError, r"unknown predictor of method 'pc': .*; did you mean 'reverse_dif"),
    ({"corrector": "langevine"}, ValueError, r"unknown corrector of method 'pc': 'langevine'; did you mean 'langevin'"),
    ({"predictor": "none", "corrector": "none"}, ValueError, r"changes nothing: choose predictor='reverse_diffusion'"),
    ({"snr": 0.0}, ValueError, r"snr=0.0: method 'pc' expects a number above 0 \(snr=0.16\)"),
    ({"snr": -1}, ValueError, r"snr=-1.0: method 'pc' expects a number above 0"),
    ({"n_corrector": 0}, ValueError, r"n_corrector=0: method 'pc' accepts \[1, inf\]"),
    ({"n_corrector": 1.5}, TypeError, r"n_corrector=1.5: method 'pc' expects an integer \(n_corrector=1\)"),
    ({"norm": "pixel"}, ValueError, r"unknown norm of method 'pc': 'pixel'. Valid: batch, sample"),
    ({"norm": "sample", "corrector": "ald"}, ValueError, r"norm='sample' goes with corrector='langevin'"),
    ({"predictor": "ancestral", "probability_flow": True}, ValueError, r"probability_flow=True with predictor='anc"),
    ({"schedule": "subvp", "predictor": "ancestral"}, ValueError, r"predictor='ancestral' is defined for VE and VP, a"),
    ({"schedule": "flow", "predictor": "ancestral"}, ValueError, r"use predictor='reverse_diffusion' or 'euler_m"),
    ({"discretization": "score_sde"}, ValueError, r"is for ve, vp_linear and subvp, and the schedule is ddpm\("),
    (
        {"schedule": "vp_linear", "discretization": "score_sde", "steps": 20},
        ValueError,
        r"with steps=20: beta·dt = 1 at step 0 is not below 1, .* use more steps, or discretization='exact'",
    ),
    (
        {"schedule": "ve", "discretization": "score_sde", "spacing": "karras"},
        ValueError,
        r"got spacing='karras' from 50 to 0: use spacing='sde_uniform', or discretization='exact'",
    ),
    (
        {"schedule": schedules.ddpm(zero_terminal_snr=True)},
        ValueError,
        r"cannot start at t=999, where alpha = 0 \(zero terminal SNR\): use predictor='reverse_diffusion' with",
    ),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD)
def test_bad_arguments(arguments: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        plan("pc", **{"steps": 5, **arguments})


def test_zero_terminal_snr_without_a_corrector() -> None:
    schedule = schedules.ddpm(zero_terminal_snr=True)
    got = fastdiff.sample(
        Exact(MIXTURE, schedule), X, method="pc", steps=20, schedule=schedule, corrector="none", dtype=torch.float64
    )
    assert torch.isfinite(got).all()
