"""Classifier-free and classifier guidance, and clipping of the predicted x0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.analytic import gaussian, gaussian_ode
from helpers.methods import LOOPED
from helpers.models import BACKENDS, Exact, levels, wavy
from helpers.run_plan import network, run

import fastdiff
from fastdiff import schedules

METHODS = LOOPED
TABLED = [m for m in METHODS if not any(s.langevin_norm for s in fastdiff.plan(m, 2).stages)]
ODE = [m for m in METHODS if not fastdiff.methods()[m]["stochastic"]]
X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
A, B = (
    torch.linspace(0.1, 1.2, 12, dtype=torch.float64).reshape(4, 3),
    torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3),
)


def conditional(x, t, y):
    return wavy(x + y, t)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0, 1, 1.0, 3.5, -1.0])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_formula_with_two_calls(method, scale, backend) -> None:
    def mixed(x, t):
        return scale * conditional(x, t, A) + (1 - scale) * conditional(x, t, B)

    common = {"method": method, "steps": 4, "dtype": torch.float64, "backend": backend, "seed": 2}
    got = fastdiff.sample(conditional, X, guidance_scale=scale, cond={"y": A}, uncond={"y": B}, **common)
    # The same numbers in another order: round-off, amplified by 1/alpha_T = 160 over 4 steps.
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **common), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_on_both_halves(dtype) -> None:
    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))

        def forward(self, x, t, y, more, extra, flag):
            seen.append((x.shape, x.dtype, t.shape))
            assert torch.equal(x[:4], x[4:])
            assert torch.equal(y, torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]))
            assert torch.equal(more["deep"][0], torch.tensor([[2.0]] * 4 + [[3.0]] * 4)) and more["deep"][1] == "name"
            assert torch.equal(extra["mask"], torch.tensor([1.0, 2, 3, 4, 1, 2, 3, 4]))
            assert extra["table"].shape == (7,) and flag is True
            return x * 0.1

    got = fastdiff.sample(
        Model(),
        X,
        guidance_scale=2.0,
        cond={"y": torch.ones(4, dtype=torch.long), "more": {"deep": [torch.full((4, 1), 2.0), "name"]}},
        uncond={"more": {"deep": [torch.full((4, 1), 3.0), "name"]}, "y": torch.zeros(4, dtype=torch.long)},
        model_kwargs={"extra": {"mask": torch.tensor([1.0, 2, 3, 4]), "table": torch.ones(7)}, "flag": True},
    )
    assert len(seen) == 10 and set(seen) == {((8, 3), dtype, (8,))} and got.shape == (4, 3)


def test_model_kwargs_reach_every_call_as_they_are() -> None:
    y = torch.ones(4)
    seen = []
    fastdiff.sample(lambda x, t, y, z: seen.append((y, z)) or x, X, model_kwargs={"y": y, "z": None})
    assert len(seen) == 10 and all(a is y and b is None for a, b in seen)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"cond": {"y": A}},
            ValueError,
            "got cond, missing guidance, uncond; to condition without guidance, give model_kwargs",
        ),
        (
            {"guidance_scale": 2.0},
            ValueError,
            "needs guidance, cond and uncond together: got guidance_scale, missing cond, uncond",
        ),
        ({"guidance_scale": 2.0, "cond": {"y": A}}, ValueError, "got guidance_scale, cond, missing uncond"),
        (
            {"guidance_scale": 2.0, "cond": {"y": A}, "uncond": {"z": A}},
            ValueError,
            r"same structure; got keys \['y'\] and \['z'\]",
        ),
        ({"guidance_scale": 2.0, "cond": {"y": A}, "uncond": {"y": [A]}}, ValueError, "same structure.*pass tensors"),
        (
            {"guidance_scale": 2.0, "cond": {"y": [1, 2, 0, 1]}, "uncond": {"y": [3, 3, 3, 3]}},
            ValueError,
            r"values of tensors only; got 1 and 3: pass tensors .*torch.tensor\(\[1, 2\]\)",
        ),
        (
            {"guidance_scale": 2.0, "cond": {"y": np.arange(4)}, "uncond": {"y": np.arange(4)}},
            ValueError,
            r"got array\(\[0, 1, 2, 3\]\) and array.*: pass tensors",
        ),
        (
            {"guidance_scale": 2.0, "cond": {"y": A}, "uncond": {"y": A[:, :2]}},
            ValueError,
            r"differ in shape: \(4, 3\) and \(4, 2\)",
        ),
        (
            {"guidance_scale": 2.0, "cond": {"y": A[:1]}, "uncond": {"y": A[:1]}},
            ValueError,
            r"cond\['y'\] has shape \(1, 3\); expected the batch, 4",
        ),
        (
            {"guidance_scale": 2.0, "cond": {"y": A}, "uncond": {"y": None}},
            ValueError,
            "values of tensors only; got a tensor and None",
        ),
        (
            {"guidance_scale": 2.0, "cond": {"y": 1}, "uncond": {"y": 2}},
            ValueError,
            "values of tensors only; got 1 and 2",
        ),
        (
            {"guidance_scale": 2.0, "cond": A, "uncond": A},
            TypeError,
            r"cond must be a dict of keyword arguments, such as cond=\{'y'",
        ),
        (
            {"guidance_scale": 2.0, "cond": {"y": A}, "uncond": {"y": B}, "model_kwargs": {"y": A}},
            ValueError,
            r"\['y'\] given both",
        ),
        (
            {"guidance_scale": float("nan"), "cond": {"y": A}, "uncond": {"y": B}},
            ValueError,
            "guidance_scale=nan: expected a finite number",
        ),
        (
            {"guidance_scale": True, "cond": {"y": A}, "uncond": {"y": B}},
            ValueError,
            "guidance_scale=True: expected a finite number",
        ),
        (
            {"guidance_scale": "3", "cond": {"y": A}, "uncond": {"y": B}},
            ValueError,
            "guidance_scale='3': expected a finite number",
        ),
        ({"classifier_grad": 3}, TypeError, r"callable as classifier_grad\(x, t\), got int"),
        (
            {"classifier_grad": lambda x, t: x, "guidance_scale": 2.0, "cond": {"y": A}, "uncond": {"y": B}},
            ValueError,
            "do not go together",
        ),
        (
            {"classifier_grad": lambda x, t: x[:1]},
            ValueError,
            r"classifier_grad returned \(1, 3\), expected a tensor of x's shape \(4, 3\)",
        ),
        ({"classifier_grad": lambda x, t: 1.0}, ValueError, "classifier_grad returned float"),
    ],
)
def test_errors(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        fastdiff.sample(lambda x, t, **kwargs: x, X, **arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("method", ODE)
def test_classifier_gradient_samples_the_posterior(method, prediction, backend) -> None:
    """Prior N(m, s²), likelihood N(y; x0, r²): the guided score is the posterior's, so the samples are."""
    mean, s, r, y = np.array([0.7, -0.3, 0.1]), 0.5, 0.8, np.array([1.4, 0.2, -1.0])
    schedule = schedules.resolve("ddpm")
    variance = 1 / (1 / s**2 + 1 / r**2)
    posterior = gaussian(variance * (mean / s**2 + y / r**2), variance**0.5)

    def gradient(x, t):
        alpha, sigma = levels(schedule, t)
        # p(y | x) = N(y; E[x0 | x], Var[x0 | x] + r²), and E is linear in x with slope alpha·s²/total.
        total = alpha**2 * s**2 + sigma**2
        expected = mean + alpha * s**2 / total * (x.numpy() - alpha * mean)
        return torch.from_numpy((y - expected) / (s**2 * sigma**2 / total + r**2) * alpha * s**2 / total)

    common = {"prediction": prediction, "method": method, "steps": 8, "dtype": torch.float64, "backend": backend}
    common["schedule"] = "ddpm"
    got = fastdiff.sample(Exact(gaussian(mean, s), prediction=prediction), X, classifier_grad=gradient, **common)
    want = fastdiff.sample(Exact(posterior, prediction=prediction), X, **common)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_guided_samples_follow_the_posteriors_ode() -> None:
    """The same against the closed-form solution, with autograd as users write it."""
    s, r, y, schedule = 0.5, 0.8, 1.4, schedules.vp_linear()
    variance = 1 / (1 / s**2 + 1 / r**2)

    def gradient(x, t):
        alpha, sigma = levels(schedule, t)
        total = alpha**2 * s**2 + sigma**2
        with torch.enable_grad():
            x = x.requires_grad_()
            error = (y - alpha * s**2 / total * x) ** 2 / (s**2 * sigma**2 / total + r**2)
            return torch.autograd.grad(-0.5 * error.sum(), x)[0]

    plan = fastdiff.plan("dpm3", 100, schedule, "logsnr")
    first, last = (schedule.at(plan.times[i]) for i in (0, -1))
    mean, z = np.full(3, variance * y / r**2), X.numpy()
    start = torch.from_numpy(gaussian_ode(mean, variance**0.5, z, first.alpha, first.sigma))
    model = Exact(gaussian([0.0] * 3, s), schedule)
    got = fastdiff.Sampler(plan=plan, dtype=torch.float64)(model, start, classifier_grad=gradient)
    np.testing.assert_allclose(got, gaussian_ode(mean, variance**0.5, z, last.alpha, last.sigma), atol=1e-4)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("method", ["dpm3", "ddpm", "unipc", "ode", "dpm_adaptive"])
def test_a_classifiers_gradient_by_autograd_needs_no_mode_of_its_own(method, mode) -> None:
    """Of a linear classifier with weights w: grad log p(y | x) = w_y − sum_c p_c w_c."""
    weights = torch.tensor([[0.4, -0.2, 0.7], [-0.5, 0.9, 0.1], [0.3, 0.6, -0.8], [0.0, -0.4, 0.2]]).double()
    classifier = torch.nn.Linear(3, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        classifier.weight.copy_(weights)
    labels, modes = [2, 0, 3, 1], []

    def by_autograd(x, t):
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad((classifier(x) + 0.0 * t[:, None]).log_softmax(-1)[range(4), labels].sum(), x)[0]

    def by_hand(x, t):
        assert not x.requires_grad
        return weights[labels] - torch.softmax(x @ weights.T, -1) @ weights

    def model(x, t):
        modes.append(torch.is_grad_enabled())
        return wavy(x, t)

    steps = None if fastdiff.methods()[method]["adaptive"] else 6
    common = {"method": method, "dtype": torch.float64, "seed": 3, "steps": steps}
    want = fastdiff.sample(model, X, classifier_grad=by_hand, **common)
    with mode():
        got = fastdiff.sample(model, X.clone(), classifier_grad=by_autograd, **common)
    # The same numbers in another order, amplified by 1/alpha_T = 160; adaptive steps move with them.
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert not got.requires_grad and not any(modes)


def test_the_classifier_is_given_the_times_also_where_the_network_scales_them_in_place() -> None:
    seen = {True: [], False: []}
    for scales in seen:

        def model(x, t, scales=scales):
            return 0.1 * x * (t.div_(1000.0) if scales else t / 1000.0)[:, None]

        def gradient(x, t, scales=scales):
            seen[scales].append(t.clone())
            t.zero_()
            return torch.zeros_like(x)

        for _ in range(2):
            fastdiff.sample(model, X, method="ddim", steps=4, classifier_grad=gradient)
    plan = fastdiff.plan("ddim", 4)
    assert [t.tolist() for t in seen[True]] == [t.tolist() for t in seen[False]]
    np.testing.assert_allclose(seen[True][0].numpy(), plan.stages[0].model_time, rtol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("method", TABLED)
def test_clip_equals_clamping_in_the_formula(method, prediction, backend) -> None:
    dist = gaussian([0.7, -1.3, 0.2], 0.8)
    plan = fastdiff.plan(method, 5)
    x = X.numpy()

    def noise(draw, like):
        return fastdiff.randn(X.shape, draw=draw, dtype=torch.float64, backend=backend).numpy()

    want = run(plan, network(dist, prediction), x, prediction, noise=noise, clip=(-0.5, 1.0))
    common = {"method": method, "prediction": prediction, "steps": 5, "dtype": torch.float64, "backend": backend}
    got = fastdiff.sample(Exact(dist, prediction=prediction), X, clip=(-0.5, 1.0), **common)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got, fastdiff.sample(Exact(dist, prediction=prediction), X, **common), atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 9, 7), (2, 1), (1, 2), (2, 1025)])
def test_dynamic_thresholding_equals_torch_quantile(shape, guided, backend) -> None:
    """One step of dpmpp1 to a low noise: the result tells the clipped x0, sample by sample."""
    base = torch.randn(shape, dtype=torch.float64) * torch.arange(1.0, shape[0] + 1).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    plan = fastdiff.plan("dpmpp1", 1)
    a, b = plan.stages[0], fastdiff.schedules.ddpm().at(plan.times[-1])
    x = torch.randn(shape, dtype=torch.float64)
    both = (
        {"guidance_scale": 3.0, "cond": {"y": base}, "uncond": {"y": base * 0.5}}
        if guided
        else {"model_kwargs": {"y": base}}
    )
    got = fastdiff.sample(
        lambda x, t, y: y,
        x,
        method="dpmpp1",
        steps=1,
        prediction="x0",
        clip="dynamic",
        dtype=torch.float64,
        backend=backend,
        **both,
    )
    x0 = 3.0 * base - 2.0 * base * 0.5 if guided else base
    bound = torch.quantile(x0.abs().flatten(1), 0.995, dim=1).clamp(min=1.0).reshape(-1, *[1] * (len(shape) - 1))
    x0 = x0.clamp(-bound, bound) / bound
    want = b.alpha * x0 + b.sigma * (x - a.alpha * x0) / a.sigma
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip", ["dynamc", (1, -1), (0, 0), (0.0, float("inf")), 1.0, (1, 2, 3), ("a", "b")])
def test_bad_bounds(clip) -> None:
    with pytest.raises(ValueError, match=r"clip=.*expected .*bounds.*\(-1, 1\)"):
        fastdiff.sample(wavy, X, clip=clip)
