"""What the stochastic solvers and the samplers of distilled networks do to a Gaussian, exactly, and peers' results.

Means and variances come from the affine forms of `test_solver_stochastic`: nothing is sampled. A Gaussian in several
dimensions is one of these for each axis of its covariance, so that its covariance follows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.analytic import Array, mixture, point
from helpers.run_plan import network, run
from test_solver_stochastic import DRAWS, moments, times

from fastdiff.plan import Plan, Stage
from fastdiff.schedules import flow, resolve
from fastdiff.solvers import METHODS, ancestral, dpm_sde, plan, seeds

STEPS = (40, 80, 160)
MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
Z = np.array([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]])
RECORDED = json.loads((Path(__file__).parent / "k_diffusion_noise.json").read_text(encoding="utf-8"))


def variance_error(p: Plan, name: str, std: float = 0.5) -> float:
    mean, variance, true_mean, true_variance = moments(p, resolve(name), 0.7, std)
    assert mean == pytest.approx(true_mean, rel=1e-11)
    return variance - true_variance


def order(errors: list[float]) -> float:
    return float(-np.polyfit(np.log(STEPS), np.log(np.abs(errors)), 1)[0])


VARIED = [
    ("euler_ancestral", {"eta": 0.5}, 1),
    ("dpm_2_ancestral", {"eta": 0.5}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.5, "down": "variance"}, 2),
    ("dpmpp3m_sde", {"solver_type": "dpmsolver"}, 2),
    ("dpm2_sde", {"solver_type": "heun", "eta": 0.5}, 2),
    ("seeds_2", {"solver_type": "phi_2", "r": 0.7}, 2),
    ("dpm2s_sde", {}, 2),
    ("seeds_3", {"eta": 0.5, "r_1": 0.4, "r_2": 0.8}, 2),
    ("dpmpp_sde", {"r": 0.7, "eta": 0.5}, 2),
    ("er_sde", {"order": 1}, 1),
    ("er_sde", {"order": 2, "noise_scaler": "power"}, 2),
    ("sa_solver", {"predictor_order": 2, "corrector_order": 2, "tau": 0.5}, 2),
    ("sa_solver", {"predictor_order": 2, "corrector_order": 0, "tau": 0.5}, 2),
    ("sa_solver", {"prediction_type": "noise", "predictor_order": 2, "corrector_order": 2}, 2),
    ("sa_solver", {"tau_low": 0.2, "tau_high": 0.6}, 2),
    ("sa_solver", {"tau": 0.5, "correct_end": True}, 2),
    ("sa_solver_pece", {"tau": 0.5, "simple_order_2": True, "predictor_order": 2, "corrector_order": 2}, 2),
]


@pytest.mark.parametrize(("method", "options", "claimed"), VARIED, ids=str)
def test_variance_converges_with_these_options(method: str, options: dict[str, Any], claimed: int) -> None:
    schedule = resolve("vp_linear")
    # A wider Gaussian for dpm2s_sde: at 0.5 the errors of its two halves cancel and change sign.
    std = 1.5 if method == "dpm2s_sde" else 0.5
    found = [
        variance_error(plan(method, schedule=schedule, spacing=times(schedule, n), **options), "vp_linear", std)
        for n in STEPS
    ]
    assert order(found) > claimed - 0.3, found


def test_published_sums_of_er_sde_lower_its_order() -> None:
    # The sum of 200 left points errs by width/200 relative to an integral of the order of the width, while what is
    # left of the bracket is of the second: the error of a step does not fall below the second order.
    schedule, steps = resolve("vp_linear"), (160, 640)
    found = {
        kind: [
            variance_error(plan("er_sde", schedule=schedule, spacing=times(schedule, n), integral=kind), "vp_linear")
            for n in steps
        ]
        for kind in ("exact", "published")
    }
    rates = {kind: math.log(abs(a / b)) / math.log(4.0) for kind, (a, b) in found.items()}
    assert rates["exact"] > 1.9 and rates["published"] < 1.4, found


def test_seeds_3_without_noise_is_of_third_order() -> None:
    schedule = resolve("vp_linear")
    plans = [plan("seeds_3", schedule=schedule, spacing=times(schedule, n), eta=0.0) for n in STEPS]
    assert plans[0].order == 3 and not plans[0].stochastic
    assert order([variance_error(p, "vp_linear") for p in plans]) > 2.8


def test_restarts_keep_the_law() -> None:
    schedule = resolve("edm")
    found = []
    for n in STEPS:
        restarts = ((0.3, 2.0, n // 2, 2), (1.0, 5.0, n // 4, 1))
        found.append(
            variance_error(plan("restart", schedule=schedule, spacing=times(schedule, n), restarts=restarts), "edm")
        )
    assert order(found) > 1.7, found


def test_restart_goes_back_where_it_was_asked_to() -> None:
    p = plan("restart", 12, "edm", restarts=((0.1, 2.0, 3, 2),))
    up = [s for s in p.stages if s.t_next > s.t]
    nearest = min((t for t in p.times[1:] if 0 < t < 2.0), key=lambda t: abs(t - 0.1))
    assert [(s.t, round(s.t_next, 12)) for s in up] == [(nearest, 2.0)] * 2
    # Noise that goes up is no part of the path, and two restarts draw it anew.
    assert [s.draws[0] for s in up] == [0, 1] and not p.spanned
    assert not plan("restart", 1, "edm").stochastic
    with pytest.raises(
        ValueError, match=r"sigma/alpha = 900 is above the range of vp_linear.*smaller t_max in restarts"
    ):
        plan("restart", 12, "vp_linear", restarts=((0.1, 900.0, 3, 1),))
    for bad in ((0.1, 2.0), ((0.1, 2.0, 3),), ((0.1, 2.0, 3.5, 1),), "x", ((2.0, 0.1, 3, 1),), ((0.1, 2.0, 0, 1),)):
        with pytest.raises(ValueError, match=r"method 'restart' expects .*t_min.*restarts="):
            plan("restart", 5, "edm", restarts=bad)


def consistent(u: Array, stage: Stage, mean: float, std: float, level: float = 0.0) -> Array:
    """The exact consistency function of N(mean, std²): where the ODE ends, at alpha = 1, sigma = `level`."""
    offset = np.zeros_like(u)
    offset[0] = 1.0
    scale = math.hypot(std, level) / math.hypot(stage.alpha * std, stage.sigma)
    return mean * offset + scale * (u - stage.alpha * mean * offset)


# tcd on a discrete schedule noises from index 0, which has noise of its own.
@pytest.mark.parametrize(
    ("method", "name"),
    [(m, n) for m in ("lcm", "consistency", "tcd") for n in ("ddpm", "edm", "flow") if (m, n) != ("tcd", "ddpm")],
)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_distilled_network_gives_the_law_at_any_number_of_steps(method: str, steps: int, name: str) -> None:
    schedule, mean, std = resolve(name), 0.7, 0.5
    level = 0.01 if method == "consistency" else 0.0
    options = {"epsilon": level} if method == "consistency" else {"gamma": 1.0} if method == "tcd" else {}
    grid = [*times(schedule, steps)[:-1], schedule.t_clean]
    p = plan(method, schedule=schedule, spacing=grid, **options)
    first = schedule.at(p.times[0])
    size = DRAWS + p.draws

    def unit(j: int) -> Array:
        return np.eye(size)[j]

    x = first.alpha * mean * unit(0) + math.hypot(first.alpha * std, first.sigma) * unit(1)
    result = run(
        p, lambda u, s: consistent(u, s, mean, std, level), x, "x0", noise=lambda draw, like: unit(DRAWS + draw)
    )
    assert result[0] == pytest.approx(mean, rel=1e-12)
    # tcd with gamma = 1 on a continuous schedule noises from the clean end: consistency's law.
    assert (result[1:] ** 2).sum() == pytest.approx(std**2 + level**2, rel=1e-12)


def test_tcd_without_noise_is_ddim() -> None:
    a, b = plan("tcd", 6, gamma=0.0), plan("ddim", spacing=plan("tcd", 6).times)
    assert a.times[:-1] == (999.0, 839.0, 679.0, 499.0, 339.0, 179.0)
    for one, other in zip(a.stages, b.stages, strict=True):
        assert np.allclose(one.next_u, other.next_u, rtol=1e-12, atol=1e-13)


def test_own_times_of_distilled_networks() -> None:
    # Self-forcing's list of 1000 for a flow shifted by 5, whose times are t = step/1000.
    p = plan("self_forcing", schedule=flow(5.0), spacing=[1.0, 0.75, 0.5, 0.25, 0.0])
    assert [round(s.sigma, 12) for s in p.stages] == [1.0, 0.9375, round(5 / 6, 12), 0.625]
    with pytest.raises(
        ValueError, match=r"timestep_scaling=10 is for the whole times of a discrete schedule.*leave it"
    ):
        plan("lcm", 4, "flow", timestep_scaling=10.0)
    with pytest.raises(ValueError, match=r"original_steps got 2000; expected .* 1 to 1000, such as original_steps=50"):
        plan("lcm", 4, original_steps=2000)
    with pytest.raises(ValueError, match=r"spacing 'lcm' takes 60 of the 50 times .*original_steps above 50"):
        plan("lcm", 60)


def draw(number: int, like: Array) -> Array:
    return np.cos(1.0 + number + 3 * np.arange(like.size)).reshape(like.shape)


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: c["sampler"] + "".join(c["options"]))
def test_k_diffusions_results_with_the_same_noise(case: dict[str, Any]) -> None:
    options = dict(case["options"])
    if case["method"] == "dpmpp3m_sde":
        options["solver_type"] = "dpmsolver"
    p = plan(case["method"], 10, "edm", "karras", **options)
    result = run(p, network(MIXTURE, "x0"), 80.0 * Z, "x0", noise=draw)
    # Rounding, 1e-16 times 80 and the steps.
    assert np.abs(result - np.array(case["result"])).max() < 1e-12


# ComfyUI's formulas (comfy/k_diffusion/sampling.py and sa_solver.py of 2026) in float64 on the same problem: the first
# row of the result.
COMFYUI: list[tuple[str, str, dict[str, Any], tuple[float, float]]] = [
    ("er_sde", "edm", {"integral": "published"}, (-0.7472624793590384, 0.3540761950448665)),
    ("er_sde", "flow", {"integral": "published", "order": 2}, (0.709984748533369, -0.6267570019668758)),
    (
        "seeds_2",
        "edm",
        {"eta": 0.6, "s_noise": 1.01, "r": 0.3, "solver_type": "phi_2"},
        (-0.9536100066467433, 0.292387694335381),
    ),
    ("seeds_2", "flow", {}, (-1.072332206126585, 0.41553743325116366)),
    ("seeds_3", "flow", {"eta": 0.6, "s_noise": 1.01}, (-1.0982338544858834, 0.4400458506494121)),
    ("exp_heun_2_x0_sde", "edm", {}, (0.8953896242736048, -0.6859080768732053)),
    ("sa_solver", "edm", {}, (3.01157815206676, -2.7219310065643847)),
    ("sa_solver_pece", "flow", {}, (0.4515287232909889, -0.2694982761599687)),
    ("res_multistep_ancestral", "edm", {"eta": 0.6, "s_noise": 1.01}, (0.8473830605054913, -0.8446407156051328)),
    ("euler_ancestral", "flow", {"eta": 0.6, "s_noise": 1.01}, (0.5694324933369257, -0.4656647994986449)),
    ("dpmpp_2s_ancestral", "flow", {}, (0.5752167629591616, -0.4657143556506623)),
]


@pytest.mark.parametrize(("method", "name", "options", "expected"), COMFYUI)
def test_comfyuis_results_with_the_same_noise(
    method: str, name: str, options: dict[str, Any], expected: tuple[float, float]
) -> None:
    p = plan(method, 10, name, "karras", t_start=80.0 if name == "edm" else 0.98, **options)
    start = 80.0 * Z if name == "edm" else Z
    assert np.abs(run(p, network(MIXTURE, "x0"), start, "x0", noise=draw)[0] - expected).max() < 1e-12


QUIET: list[tuple[str, dict[str, Any]]] = [
    *((m.name, {"eta": 0.0}) for family in (ancestral, dpm_sde, seeds) for m in family.METHODS),
    ("er_sde", {"noise_scaler": "power", "eta": 0.0}),
    ("sa_solver", {"tau": 0.0}),
    ("sa_solver_pece", {"tau": 0.0}),
    ("tcd", {"gamma": 0.0}),
    ("mean_flow", {}),
]


@pytest.mark.parametrize("name", ["ddpm", "vp_linear", "edm", "flow"])
@pytest.mark.parametrize(("method", "options"), QUIET, ids=str)
def test_without_noise_they_are_exact_on_a_point_mass_both_ways(
    method: str, options: dict[str, Any], name: str
) -> None:
    schedule, mean = resolve(name), np.array([0.7, -1.3])
    start = 0.99 if name == "flow" and METHODS[method].space == "noise" else None
    for invert in (False, True):
        p = plan(method, 7, name, t_start=start, invert=invert, **options)
        a, b = schedule.at(p.times[0]), schedule.at(p.times[-1])
        prediction = "x0" if min(a.alpha, b.alpha) == 0 else "eps"
        x = run(p, network(point([0.7, -1.3]), prediction), a.alpha * mean + a.sigma * Z, prediction)
        # Rounding, amplified by sigma/alpha = 157 and by steps in noise space.
        assert not p.stochastic and np.abs(x - b.alpha * mean - b.sigma * Z).max() < 1e-10 * max(1.0, b.sigma)


REFUSED = [
    ("sa_solver", {"use_pece": True, "corrector_order": 0}, r"use_pece=True .* corrector_order=0 corrects nothing"),
    ("sa_solver", {"correct_end": True}, r"correct_end=True evaluates .* ends at sigma = 0: final='t_min'"),
    (
        "sa_solver",
        {"correct_end": True, "use_pece": True, "final": "t_min"},
        r"correct_end=True corrects the last step of sa_solver, and use_pece=True does so already",
    ),
    (
        "seeds_3",
        {"r_1": 0.8, "r_2": 0.4},
        r"r_1=0.8, r_2=0.4: method 'seeds_3' expects nodes inside the step, in order",
    ),
    ("seeds_2", {"r": 0.0}, r"r=0: method 'seeds_2' expects nodes inside the step"),
    ("er_sde", {"eta": 0.5}, r"eta=0.5 goes with noise_scaler='power'"),
    ("euler_ancestral", {"down": "flow"}, r"down='flow' is for schedules with alpha \+ sigma = 1.*down='variance'"),
    (
        "dpm_2_ancestral",
        {"schedule": "flow", "spacing": "uniform", "down": "variance"},
        r"cannot start at t=1, where alpha = 0",
    ),
    ("seeds_2", {"schedule": "vp_linear", "spacing": [0.0, 0.0]}, r"repeat"),
]


@pytest.mark.parametrize(("method", "options", "message"), REFUSED)
def test_refusals(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(
            method, **{"steps": None if "spacing" in options and isinstance(options["spacing"], list) else 5, **options}
        )
