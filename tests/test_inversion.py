"""From data to noise and back: against the closed-form solution of the probability flow ODE, and as a round trip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.analytic import gaussian, gaussian_ode, mixture
from helpers.models import BACKENDS, Exact, Linear

import fastdiff
from fastdiff import schedules
from fastdiff.inversion import reconstruct

MEAN, STD = np.array([0.7, -0.3]), 0.5
X = torch.tensor([[0.2, -0.9], [1.3, 0.4], [0.8, -0.1]], dtype=torch.float64)
METHODS = fastdiff.methods()
ODE = [m for m, i in METHODS.items() if not (i["stochastic"] or i["guided"] or m in ("ode", "dpm_adaptive"))]


def sampler(method: str, steps: int | None, schedule: str = "ddpm", **options: object) -> fastdiff.Sampler:
    for name, value in (("lower_order_final", False), ("fixed", True)):
        if name in METHODS[method]["options"]:
            options = {name: value, **options}
    return fastdiff.Sampler(method, steps, schedule=schedule, dtype=torch.float64, **options)


def encoded(plan: fastdiff.Plan) -> np.ndarray:
    """X, taken as the state at the plan's first time, carried to its last by the ODE of N(MEAN, STD²)."""
    schedule = schedules.NoiseSchedule.from_dict(plan.schedule)
    a, b = schedule.at(plan.times[0]), schedule.at(plan.times[-1])
    z = (X.numpy() - a.alpha * MEAN) / math.hypot(a.alpha * STD, a.sigma)
    return gaussian_ode(MEAN, STD, z, b.alpha, b.sigma)


@pytest.mark.parametrize("schedule", ["ddpm", "vp_linear"])
@pytest.mark.parametrize("method", ODE)
def test_encoding_converges_to_the_ode_at_the_methods_order(method: str, schedule: str) -> None:
    errors, back = [], []
    order = METHODS[method]["order"]
    # Singlestep methods take two or three evaluations a step, and dpm3s is by chance too good at 36.
    few = 24 * order if "fixed" in METHODS[method]["options"] else 18
    for steps in (few, 4 * few):
        s = sampler(method, steps, schedule, spacing="logsnr")
        plan = s.inverse.plan
        assert plan.times[0] < plan.times[-1] == s.plan.times[0]
        noise = s.invert(Exact(gaussian(MEAN, STD), schedule), X)
        errors.append(np.abs(noise.numpy() - encoded(plan)).max())
        back.append(float((s(Exact(gaussian(MEAN, STD), schedule), noise) - X).abs().max()))
    # A quarter of the steps: the error grows by 4^order, less what the higher terms at few steps take off.
    assert math.log(errors[0] / errors[1], 4) > order - 0.3 or errors[1] < 1e-9
    assert math.log(back[0] / back[1], 4) > order - 0.3
    # At 72 steps: orders 1 to 3, rk4, and the multistep methods whose polynomials are not in lambda, as the steps are.
    measured = {"rk4": 6e-9, "lms": 3.9e-4, "deis": 8.9e-4}.get(
        method, {1: 0.055, 2: 4.6e-4, 3: 1.9e-4}.get(order, 0.0)
    )
    assert back[1] < 1.1 * measured


SPACINGS = ["leading", "trailing", "linspace", "uniform", "quadratic", "karras", "ddim25", "time_uniform"]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("method", ["ddim", "dpmpp2m", "dpm3s", "unipc", "heun"])
def test_both_runs_use_the_same_times(method: str, spacing: str) -> None:
    """What is off by one in other libraries: the times at which the network is evaluated, and where the run starts."""
    steps = 25 if spacing == "ddim25" else 10
    s = fastdiff.Sampler(method, steps, spacing=spacing)
    down, up = s.plan, s.inverse.plan
    assert up.times[-1] == down.times[0] and up.times[0] == 0.0
    if method in ("ddim", "dpmpp2m", "unipc"):
        inner = [t for t in down.times if t > 0]
        assert list(up.times[1:]) == inner[::-1]
        # Downwards the network sees every time but the end; upwards every time but the start of the sampler.
        assert [st.model_time for st in up.stages] == [0.0, *inner[:0:-1]]
    schedule = schedules.ddpm()
    for stage in up.stages:
        point = schedule.at(stage.t)
        assert (stage.alpha, stage.sigma, stage.model_time) == (point.alpha, point.sigma, point.model_time)


def test_a_step_up_and_down_cancels_where_the_network_says_the_same() -> None:
    """With a network that is constant, DDIM's steps are exact: the round trip is, but for rounding."""
    eps = torch.tensor([0.3, -0.8], dtype=torch.float64)
    for spacing in ("leading", "trailing", "quadratic"):
        s = fastdiff.Sampler("ddim", 10, spacing=spacing, dtype=torch.float64)
        noise = s.invert(lambda x, t: eps.expand(x.shape), X)
        first, floor = s.plan.stages[0], schedules.ddpm().at(0.0)
        x0 = (X - floor.sigma * eps) / floor.alpha
        torch.testing.assert_close(noise, first.alpha * x0 + first.sigma * eps, rtol=1e-12, atol=1e-12)
        back = s(lambda x, t: eps.expand(x.shape), noise)
        # The run ends clean: at the x0 of the state at index 0 that the data were taken to be. 1/alpha_T amplifies.
        torch.testing.assert_close(back, x0, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", ["ddim", "pf_euler", "dpm1"])
def test_one_map_by_three_names(method: str) -> None:
    dist = mixture([0.3, 0.7], [[-1.2, 0.4], [0.8, -0.6]], [0.25, 0.4])
    want = sampler("ddim", 12, spacing="leading").invert(Exact(dist), X)
    got = sampler(method, 12, spacing="leading").invert(Exact(dist), X)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


# LuChengTHU/dpm-solver's `inverse` from PUBLISHED_X in float64 on MIXTURE's exact model, betas linspace(1e-4, 0.02,
# 1000): the first row. All rows of all orders, methods and spacings agree to 1.5e-13.
MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
PUBLISHED_X = torch.tensor([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]], dtype=torch.float64)
PUBLISHED = [
    ("dpm2", 12, "logsnr", (-0.317838150697178, -1.6466800968435225)),
    ("dpmpp3m", 12, "time_uniform", (-0.16582696139788528, -1.3648277559507596)),
    ("dpm3s", 7, "time_quadratic", (-0.15753843186087263, -1.7114797161014437)),
    ("dpmpp2s", 7, "logsnr", (-0.6706318984890456, -2.3969105013153404)),
]


@pytest.mark.parametrize(("method", "steps", "spacing", "expected"), PUBLISHED)
def test_dpm_solver_inverse(method, steps, spacing, expected) -> None:
    options = {"solver_type": "dpmsolver"} if "solver_type" in METHODS[method]["options"] else {}
    s = fastdiff.Sampler(method, steps, spacing=spacing, dtype=torch.float64, **options)
    np.testing.assert_allclose(s.invert(Exact(MIXTURE), PUBLISHED_X)[0], expected, rtol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("method", ODE)
def test_few_steps(method: str, steps: int) -> None:
    for spacing in (None, "trailing"):
        s = fastdiff.Sampler(method, steps, spacing=spacing, dtype=torch.float64)
        found = reconstruct(s, Exact(gaussian(MEAN, STD)), X)
        assert found.noise.isfinite().all() and found.x.isfinite().all()


def test_guidance_clip_own_times_and_noisy_ends() -> None:
    model = Exact(gaussian(MEAN, STD))
    times = (900.0, 500.0, 100.0, 20.0)
    s = fastdiff.Sampler("dpm2", spacing=times, dtype=torch.float64)
    assert s.inverse.plan.times == times[::-1]
    s = fastdiff.Sampler("dpm2", 5, t_end=30.0, t_start=800.0, spacing="time_uniform", dtype=torch.float64)
    assert (s.inverse.plan.times[0], s.inverse.plan.times[-1]) == (30.0, 800.0)
    s = fastdiff.Sampler("dpm2", 5, denoise_to_zero=True, spacing="logsnr", dtype=torch.float64)
    assert s.inverse.plan.steps == 5 and not s.inverse.plan.options["denoise_to_zero"]
    half = {"guidance_scale": 2.0, "cond": {"y": X}, "uncond": {"y": X}}
    guided = s.invert(lambda x, t, y: model(x, t), X, **half)
    torch.testing.assert_close(guided, s.invert(model, X), rtol=1e-12, atol=1e-12)
    free, clipped = (fastdiff.Sampler("ddim", 5, clip=clip, dtype=torch.float64) for clip in (None, (-0.1, 0.1)))
    assert not torch.allclose(clipped.invert(model, X), free.invert(model, X))
    noise, trajectory = s.invert(model, X, return_trajectory=True)
    assert trajectory.times.tolist() == list(s.inverse.plan.times) and torch.equal(trajectory.x[-1], noise)
    assert torch.equal(trajectory.x[0], X)


# Flow starts at alpha = 0, where x_T is all noise, and noise prediction and sigma/alpha are not defined.
FLOW = ["ddim", "dpmpp2m", "dpmpp2s", "unipc"]


@pytest.mark.parametrize(("schedule", "method"), [("edm", m) for m in ODE] + [("flow", m) for m in FLOW])
def test_edm_and_flow(schedule: str, method: str) -> None:
    prediction = "flow" if schedule == "flow" else "eps"
    s = fastdiff.Sampler(method, 64, schedule=schedule, prediction=prediction, dtype=torch.float64)
    found = reconstruct(s, Exact(gaussian(MEAN, STD), schedule, prediction), X)
    assert found.max_error.max() < 0.1
    assert found.mean_error.shape == (3,) and (found.mean_error <= found.max_error).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_digits_with_100_steps(backend: str) -> None:
    """Visually exact: pixels have 17 grey levels 0.125 apart, and no reconstructed one is off by half of that."""
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    from fastdiff.demo import load_model
    from fastdiff.demo.data import load_digits

    images, labels = load_digits()
    found = reconstruct(
        fastdiff.Sampler("ddim", 100, spacing="quadratic", backend=backend),
        load_model(),
        images[:10],
        model_kwargs={"y": labels[:10]},
    )
    assert found.max_error.max() < 0.0625
    second = reconstruct(
        fastdiff.Sampler("dpm2", 100, spacing="logsnr", backend=backend),
        load_model(),
        images[:10],
        model_kwargs={"y": labels[:10]},
    )
    # Second order: far better than first at the same cost.
    assert second.max_error.max() < 0.1 * found.max_error.max()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fastdiff.Sampler("ddpm", 5), r"method 'ddpm' with these options draws noise.*ddim with eta=0"),
        (lambda: fastdiff.Sampler("ddim", 5, eta=0.5), r"method 'ddim' with these options draws noise"),
        (lambda: fastdiff.Sampler(plan=fastdiff.plan("ddim", 5)), r"ready-made.*fastdiff.plan\(..., invert=True\)"),
    ],
)
def test_what_cannot_be_inverted(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make().invert(Linear(), X)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="method 'ddpm' with these options draws noise"):
        fastdiff.plan("ddpm", 4, invert=True)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        fastdiff.Sampler("ddim", 4).invert(Linear(), [1.0])
    with pytest.raises(TypeError, match=r"unknown argument of Sampler\.invert: 'seed'"):
        fastdiff.Sampler("ddim", 4).invert(Linear(), X, seed=1)
    plan = fastdiff.plan("dpm2", 4, invert=True)
    assert fastdiff.Plan.from_json(plan.to_json()) == plan


def test_reconstruct_needs_a_sampler() -> None:
    with pytest.raises(TypeError, match=r"sampler must be a fastdiff.Sampler, such as .*, got str"):
        fastdiff.inversion.reconstruct("dpm2", lambda x, t: x, torch.zeros(2, 3))  # type: ignore[arg-type]
