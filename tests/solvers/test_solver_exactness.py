"""Deterministic methods where the answer is known: a point mass, few steps, clean ends, zero terminal SNR."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.analytic import Array, gaussian, gaussian_ode, mixture, mixture_ode, point
from helpers.methods import TABLES as METHODS
from helpers.run_plan import network, run

from fastdiff import schedules
from fastdiff.plan import Plan
from fastdiff.prediction import PREDICTIONS
from fastdiff.schedules import SCHEDULES, NoiseSchedule, peers, resolve
from fastdiff.schedules.grids import SPACINGS
from fastdiff.solvers import plan

MEAN = [0.7, -1.3]
POINT = point(MEAN)
Z = np.array([[0.5, -1.1], [2.0, 0.3], [-1.7, -0.2]])
MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])

DETERMINISTIC = [m.name for m in METHODS.values() if not m.stochastic]
NOISE_SPACE = [m for m in DETERMINISTIC if METHODS[m].space == "noise"]
DATA_SPACE = [m for m in DETERMINISTIC if METHODS[m].space == "data"]
ONLY_DISCRETE = ("quadratic", "leading", "lcm")
NAMED = (*peers.NAMED, "simple", "ddim_uniform")
U = 2.0**-53


def spacings(schedule: NoiseSchedule) -> list[str]:
    """Every spacing that is defined for the schedule from its t_max on, but for those of other programs: the times of
    tests/schedules/test_peer_grids.py, which say nothing new to a solver."""
    names = [s for s in SPACINGS if s not in NAMED and (schedule.discrete or s not in ONLY_DISCRETE)]
    if schedule.alpha(schedule.t_max) == 0:
        names.remove("logsnr")
    return names


def start_time(schedule: NoiseSchedule, method: str) -> float | None:
    """None, or a time with alpha > 0 for methods that cannot begin without it."""
    return 0.99 if schedule.kind == "flow" and method in NOISE_SPACE else None


def levels(p: Plan) -> Array:
    return np.array([s.sigma / s.alpha for s in p.stages if s.alpha > 0])


def bound(p: Plan) -> float:
    """1e-11, or what rounding does to a plan of few, long steps.

    With r = sigma/alpha, eps = (x − alpha·mean)/sigma at r has the error U·r of x/alpha over r. A step in noise space
    from r to r' is a difference of terms of size r·|z|, |z| <= 2: an error of a few U·r in x'/alpha', which eps there
    divides by r' and the next step multiplies by its length, r again where it shares the base (heun, singlestep). The
    factor 32 covers |z| = 2, exp(h)'s relative error |lambda|·U <= 10·U, and the sum of some steps. In velocity space a
    step is at most 1 long, and the error U·r of x0 at its begin is divided by the r' of each later evaluation in it,
    which takes eps from there.
    """
    r = levels(p)
    inner = r.max(initial=0.0)
    if p.space == "noise":
        inner = np.max(r[:-1] * np.maximum(1.0, r[:-1] / r[1:]), initial=inner)
    elif p.space == "velocity":
        used = [s for s in p.stages if s.alpha > 0]
        groups = [r[[s.step == i for s in used]] for i in {s.step for s in used}]
        inner = max([inner, *(float(g.max() * max(1.0, 1.0 / g.min())) for g in groups)])
    return max(1e-11, 32 * U * float(inner))


def check_point_mass(p: Plan, schedule: NoiseSchedule, prediction: str) -> None:
    first, last = schedule.at(p.times[0]), schedule.at(p.times[-1])
    mean = np.array(MEAN)
    result = run(p, network(POINT, prediction), first.alpha * mean + first.sigma * Z, prediction)
    truth = last.alpha * mean + last.sigma * Z
    assert np.isfinite(result).all()
    # The ends of EDM's ODE are as large as sigma; here all lie within a few units of the data.
    assert np.abs(result - truth).max() <= bound(p), (p.method, p.steps)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", DETERMINISTIC)
def test_exact_on_a_point_mass(method: str, name: str) -> None:
    schedule = resolve(name)
    start = start_time(schedule, method)
    usable = [*spacings(schedule), *(["logsnr"] if start else [])]
    for spacing in usable:
        # Longer runs repeat what the steps of short ones do: one spacing of them is enough.
        for steps in (1, 2, 7, 20) if spacing == usable[0] else (2, 7):
            p = plan(method, steps, schedule, spacing, t_start=start)
            prediction = "eps" if p.stages[0].alpha > 0 else "x0"
            check_point_mass(p, schedule, prediction)
    long_plan = plan(method, 20, schedule, usable[0], t_start=start)
    if method != "heun" and levels(long_plan)[0] < 1e3:
        assert bound(long_plan) < 3e-11


@pytest.mark.parametrize(
    "options",
    [
        {"variant": v, "order": p, "corrector": c, "prediction_type": s}
        for v in ("bh1", "bh2", "vary_coeff")
        for p in (1, 2, 3, 6)
        for c in (True, False)
        for s in ("data", "noise")
    ],
    ids=str,
)
def test_unipc_of_every_kind_is_exact_on_a_point_mass(options: dict[str, object]) -> None:
    for steps in (1, 2, 7):
        for zero in (False, True):
            check_point_mass(plan("unipc", steps, denoise_to_zero=zero, **options), resolve("ddpm"), "eps")


@pytest.mark.parametrize("method", [m for m in DETERMINISTIC if "solver_type" in METHODS[m].options])
@pytest.mark.parametrize("form", ["taylor", "dpmsolver"])
def test_both_forms_and_denoise_to_zero_are_exact_on_a_point_mass(method: str, form: str) -> None:
    fixed = {"fixed": True} if "fixed" in METHODS[method].options else {}
    for options in ({}, fixed):
        p = plan(method, 9, "vp_linear", solver_type=form, denoise_to_zero=True, **options)
        assert p.times[-1] == 0.0 and p.stages[-1].t == 1e-3
        check_point_mass(p, resolve("vp_linear"), "eps")


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("name", ["ddpm", "subvp", "edm", "flow"])
def test_every_prediction_gives_the_same_result(method: str, name: str) -> None:
    schedule = resolve(name)
    # Moderate logSNR: the conversions then lose less than two digits.
    times = [float(schedule.inverse_lambda(lam)) for lam in np.linspace(-2.0, 2.0, 7)]
    p = plan(method, schedule=schedule, spacing=times)
    results = [run(p, network(MIXTURE, k), p.stages[0].sigma * Z, k) for k in PREDICTIONS]
    scale = np.abs(results[0]).max() + p.stages[0].sigma
    for other in results[1:]:
        assert np.abs(other - results[0]).max() < 1e-13 * scale * 10


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("steps", [1, 2])
def test_one_and_two_steps_stay_near_the_data(method: str, steps: int) -> None:
    for name in SCHEDULES:
        schedule = resolve(name)
        p = (
            plan(method, steps, schedule, t_start=start_time(schedule, method))
            if name != "flow" or METHODS[method].spacing != "logsnr"
            else plan(method, steps, schedule, "time_uniform", t_start=start_time(schedule, method))
        )
        prediction = "eps" if p.stages[0].alpha > 0 else "v"
        x = run(p, network(MIXTURE, prediction), p.prior_std * Z, prediction)
        assert np.isfinite(x).all() and p.steps <= steps


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("name", ["ddpm", "vp_linear", "edm", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_a_final_sigma_of_zero(method: str, name: str, steps: int) -> None:
    schedule = resolve(name)
    p = plan(method, steps, schedule, "karras", t_start=start_time(schedule, method))
    assert schedule.at(p.times[-1]).sigma == 0.0 and p.stages[-1].sigma > 0.0
    check_point_mass(p, schedule, "eps" if p.stages[0].alpha > 0 else "x0")


ZERO_SNR = {"ddpm": schedules.ddpm(zero_terminal_snr=True), "flow": schedules.flow(shift=3.0)}


@pytest.mark.parametrize("name", ZERO_SNR)
@pytest.mark.parametrize("method", [*DATA_SPACE, "ddpm", "dpmpp2m_sde"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12])
def test_data_space_methods_start_at_zero_terminal_snr(method: str, name: str, steps: int) -> None:
    p = plan(method, steps, ZERO_SNR[name], "trailing")
    assert p.stages[0].alpha == 0.0
    for prediction in ("x0", "v", "flow"):
        x = run(p, network(POINT, prediction), Z, prediction, noise=lambda draw, like: 0.3 * np.cos(draw + like))
        # All of them end clean, so on the point itself.
        assert np.abs(x - np.array(MEAN)).max() < 1e-12


@pytest.mark.parametrize("name", ZERO_SNR)
@pytest.mark.parametrize("method", NOISE_SPACE)
def test_noise_space_methods_refuse_zero_terminal_snr(method: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot start at t=.*alpha = 0 \(zero terminal SNR\).*earlier t_start"):
        plan(method, 5, ZERO_SNR[name], "time_uniform")


def test_fixed_singlestep_refuses_what_it_cannot_do() -> None:
    with pytest.raises(
        ValueError, match=r"'dpm3s' with fixed=True takes 3 evaluations a step and needs steps >= 3, got 2"
    ):
        plan("dpm3s", 2, fixed=True)
    with pytest.raises(ValueError, match=r"cannot take a step of order 2 from alpha = 0: start at t_start < 1"):
        plan("dpmpp2s", 4, "flow", "time_uniform", fixed=True)
    with pytest.raises(ValueError, match=r"cannot take a step of order 2 to sigma = 0: end at t_end > 0"):
        plan("dpm2s", 4, "edm", "time_uniform", fixed=True)
    with pytest.raises(ValueError, match=r"6 own times make 5"):
        plan("dpm2s", spacing=[900, 700, 500, 300, 100, 0], fixed=True)


def test_singlestep_takes_own_times_as_they_are() -> None:
    times = [900.0, 700.0, 480.0, 300.0, 110.0, 0.0]
    for method in ("dpm3s", "dpmpp3s"):
        p = plan(method, spacing=times)
        assert [s.t for s in p.stages] == times[:-1] and p.times == (900.0, 300.0, 0.0)


@pytest.mark.parametrize("method", ["dpm3", "dpmpp3m", "dpm3s", "unipc", "heun"])
@pytest.mark.parametrize("name", ["ddpm", "vp_linear", "subvp", "ve"])
def test_close_to_the_gaussian_ode(method: str, name: str) -> None:
    schedule = resolve(name)
    p = plan(method, 120 if method == "heun" else 60, schedule, "logsnr")
    first, last = schedule.at(p.times[0]), schedule.at(p.times[-1])
    mean = np.array(MEAN)
    x = run(p, network(gaussian(MEAN, 0.5), "eps"), gaussian_ode(mean, 0.5, Z, first.alpha, first.sigma))
    h = (last.lam - first.lam) / p.steps
    # |z| = 2; the constants h²/4 and h³/4 are those of a slope that changes within one unit of lambda.
    assert np.abs(x - gaussian_ode(mean, 0.5, Z, last.alpha, last.sigma)).max() < 2 * h**p.order / 4


def test_reference_solution_agrees_with_the_closed_form() -> None:
    start, end = (0.1, 0.99), (0.999, 0.04)
    mean = np.array(MEAN)
    x = gaussian_ode(mean, 0.5, Z, *start)
    # rtol 1e-13 a step, about 100 steps, amplified by alpha ratios of 10.
    assert np.abs(mixture_ode(gaussian(MEAN, 0.5), x, start, end) - gaussian_ode(mean, 0.5, Z, *end)).max() < 1e-10


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("spacing", ["time_uniform", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 13])
def test_first_order_methods_agree(name: str, spacing: str, steps: int) -> None:
    schedule = resolve(name)
    start = start_time(schedule, "dpm1")
    equal = [
        ("dpm1", {}),
        ("ddim", {}),
        ("dpmpp1", {}),
        ("unipc", {"order": 1, "corrector": False}),
        ("unipc", {"order": 1, "corrector": False, "prediction_type": "noise"}),
    ]
    plans = [plan(m, steps, schedule, spacing, t_start=start, **o) for m, o in equal]
    first = plans[0].stages[0]
    results = [run(p, network(MIXTURE, "eps"), first.sigma * Z) for p in plans]
    # 1e-12 of the data, or rounding where a first step multiplies by 1/alpha (cosine's: 2e4).
    for other in results[1:]:
        assert np.abs(other - results[0]).max() < max(1e-12, 32 * U * first.sigma / first.alpha)
