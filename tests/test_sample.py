"""`fastdiff.sample` against an independent NumPy run of the table and against closed forms, for every method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.analytic import gaussian, gaussian_ode, point
from helpers.methods import LOOPED
from helpers.models import BACKENDS, MIXTURE, DiffusersLike, Exact, Linear, X, rounding_bound, wavy
from helpers.run_plan import network, run

import fastdiff
from fastdiff import schedules
from fastdiff.ops.philox import normals

METHODS = LOOPED
# Coefficients that depend on norms are made on the device, and have tests of their own.
TABLED = [m for m in METHODS if not any(s.langevin_norm for s in fastdiff.plan(m, 2).stages)]


def drawn(seed: int):
    """The built-in noise of samples 0, 1, ..., as run_plan wants it."""
    return lambda draw, like: np.stack([normals(like[0].size, seed, b, draw) for b in range(len(like))]).reshape(
        like.shape
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", TABLED)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_equals_the_table_run_in_numpy(method: str, backend: str, steps: int) -> None:
    plan = fastdiff.plan(method, steps)
    want = run(plan, network(MIXTURE, "eps"), X.numpy(), noise=drawn(5))
    got = fastdiff.sample(Exact(MIXTURE), X, steps=steps, method=method, dtype=torch.float64, seed=5, backend=backend)
    # float64 round-off, amplified by eps -> x0 at alpha_T = 0.006. Noise is float32: 1e-6 by its contract.
    tolerance = 1e-6 if plan.stochastic else 1e-11
    np.testing.assert_allclose(got.numpy(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("schedule", ["ddpm", "scaled_linear", "vp_linear", "edm"])
@pytest.mark.parametrize("method", [m for m in METHODS if not fastdiff.methods()[m]["stochastic"]])
def test_point_mass_is_exact(method: str, schedule: str, backend: str) -> None:
    """On a point mass every ODE method follows x_t = alpha·mean + sigma·z without error, whatever its order."""
    mean = np.array([0.7, -1.3, 0.2])
    s = schedules.resolve(schedule)
    plan = fastdiff.plan(method, 6, s)
    first, last = s.at(plan.times[0]), s.at(plan.times[-1])
    z = X.numpy()
    start = torch.from_numpy(gaussian_ode(mean, 0.0, z, first.alpha, first.sigma))
    got = fastdiff.sample(
        Exact(point(mean), s), start, steps=6, method=method, schedule=s, dtype=torch.float64, backend=backend
    )
    np.testing.assert_allclose(got.numpy(), gaussian_ode(mean, 0.0, z, last.alpha, last.sigma), rtol=0, atol=2e-10)


def test_converges_to_the_ode_of_a_gaussian() -> None:
    mean, std, s = np.array([0.7, -1.3, 0.2]), 0.4, schedules.vp_linear()
    plan = fastdiff.plan("dpm3", 80, s)
    first, last = s.at(plan.times[0]), s.at(plan.times[-1])
    start = torch.from_numpy(gaussian_ode(mean, std, X.numpy(), first.alpha, first.sigma))
    want = gaussian_ode(mean, std, X.numpy(), last.alpha, last.sigma)
    model = Exact(gaussian(mean, std), s)
    error = [
        np.abs(
            fastdiff.sample(model, start, steps=n, schedule=s, spacing="logsnr", dtype=torch.float64).numpy() - want
        ).max()
        for n in (40, 80)
    ]
    # Third order: halving the step divides the error by about 8; measured against the closed form.
    assert error[1] < 1e-4 and error[0] / error[1] > 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", TABLED)
def test_float32_is_within_its_rounding_bound(method: str, backend: str) -> None:
    plan = fastdiff.plan(method, 10)
    exact = fastdiff.sample(Linear(dtype=torch.float64), X, method=method, dtype=torch.float64, backend="reference")
    got = fastdiff.sample(Linear(), X, method=method, backend=backend)
    bound = rounding_bound(plan, X.numpy(), 0.5, 2.0**-24, 2.0**-24, lambda draw: drawn(0)(draw, X.numpy()))
    assert got.dtype == torch.float32 and bound < 1e-4
    # A float32 time is off by 2^-25 of it, so the slope is by about as much as one more rounding: twice the bound.
    assert float((got.double() - exact).abs().max()) <= 2 * bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-11)])
@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m", "heun", "ddpm", "unipc"])
def test_half_precision_networks(method: str, dtype: torch.dtype, unit: float, backend: str) -> None:
    """The network's rounding alone: state and history stay float32, and so does the result."""
    model, seen = Linear(dtype=dtype), []
    model.register_forward_pre_hook(lambda module, args: seen.append((args[0].dtype, args[1].dtype)))
    plan = fastdiff.plan(method, 10)
    exact = fastdiff.sample(Linear(dtype=torch.float64), X, method=method, dtype=torch.float64, backend="reference")
    got = fastdiff.sample(model, X, method=method, backend=backend)
    assert got.dtype == torch.float32 and set(seen) == {(dtype, torch.float32)}
    bound = rounding_bound(plan, X.numpy(), 0.5, 2.0**-24, unit, lambda draw: drawn(0)(draw, X.numpy()))
    assert float((got.double() - exact).abs().max()) <= bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_predictions_agree(method: str, backend: str) -> None:
    results = [
        fastdiff.sample(
            Exact(MIXTURE, prediction=p),
            X,
            prediction=p,
            schedule="ddpm",
            method=method,
            steps=5,
            dtype=torch.float64,
            seed=3,
            backend=backend,
        )
        for p in ("eps", "x0", "v", "score", "flow")
    ]
    for other in results[1:]:
        # One distribution told five ways: round-off, amplified by 1/alpha_T = 160 per conversion.
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1,), (1, 1, 1, 1), (7, 3, 5, 1), (2, 1025), (3, 2, 4, 4, 4)])
@pytest.mark.parametrize("method", ["dpm3", "heun", "dpmpp2m_sde"])
def test_odd_sizes(shape: tuple[int, ...], method: str, backend: str) -> None:
    got = fastdiff.sample(wavy, shape=shape, method=method, steps=4, dtype=torch.float64, seed=9, backend=backend)
    plan = fastdiff.plan(method, 4)
    n = int(np.prod(shape[1:]))
    x = np.stack([normals(n, 9, b, 0, 1) for b in range(shape[0])]).reshape(shape).astype(np.float64) * plan.prior_std
    want = run(plan, lambda u, stage: np.sin(u * 0.7 + stage.model_time * 0.01), x, noise=drawn(9))
    # The normals of the prior, amplified by 1/alpha_T = 160 and by sin's slope, agree to 1e-6 each.
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=5e-4)


def test_models_of_every_kind_give_the_same() -> None:
    class Module(torch.nn.Module):
        def forward(self, x, t):
            return wavy(x, t)

    want = fastdiff.sample(wavy, shape=(1, 2, 4, 4))
    for model in (
        Module(),
        Module().forward,
        DiffusersLike(),
        lambda x, t: (wavy(x, t), "more"),
        lambda x, t: [wavy(x, t)],
        lambda x, t: {"sample": wavy(x, t)},
    ):
        assert torch.equal(fastdiff.sample(model, shape=(1, 2, 4, 4)), want)
    assert torch.equal(fastdiff.sample(DiffusersLike()), want)
    assert fastdiff.sample(DiffusersLike(3, (2, 5))).shape == (1, 3, 2, 5)


def test_what_the_model_states_is_honoured() -> None:
    model = Exact(MIXTURE, "vp_cosine", "v")
    model.schedule, model.prediction, model.sample_shape = model.noise, "v", (3,)
    got = fastdiff.sample(model, seed=2)
    want = fastdiff.sample(Exact(MIXTURE, "vp_cosine", "v"), shape=(1, 3), schedule="vp_cosine", prediction="v", seed=2)
    assert got.shape == (1, 3) and torch.equal(got, want)
    # What is asked for goes before what is stated.
    asked = fastdiff.sample(DiffusersLike(3), schedule="flow", prediction="flow", seed=2, method="dpmpp2m")
    stating = DiffusersLike(3)
    stating.schedule, stating.prediction = "ddpm", "v"
    got = fastdiff.sample(stating, schedule="flow", prediction="flow", seed=2, method="dpmpp2m")
    assert torch.equal(got, asked)


def test_a_sampler_hears_what_the_model_states() -> None:
    model = DiffusersLike(3)
    model.prediction = "v"
    want = fastdiff.sample(wavy, shape=(1, 3, 4, 4), prediction="v", method="dpm3")
    sampler = fastdiff.Sampler("dpm3")
    assert torch.equal(sampler(model), want)
    assert torch.equal(sampler(wavy, shape=(1, 3, 4, 4)), fastdiff.sample(wavy, shape=(1, 3, 4, 4), method="dpm3"))
    assert torch.equal(fastdiff.Sampler("dpm3", prediction="eps")(model), sampler(wavy, shape=(1, 3, 4, 4)))
    model.schedule = "vp_linear"
    with pytest.raises(
        ValueError, match=r"states schedule=vp_linear\(.*made for the default, 'ddpm': Sampler\(..., schedule="
    ):
        sampler(model)
    told = fastdiff.Sampler("dpm3", schedule="ddpm")(model)
    assert torch.equal(told, want)
    model.prediction = "epsilon"
    with pytest.raises(ValueError, match=r"model.prediction.*epsilon.*eps"):
        fastdiff.sample(model)


def test_model_time_is_exact_for_every_index() -> None:
    seen = []

    def model(x, t):
        seen.append(t.clone())
        return x

    fastdiff.sample(model, torch.ones(2, 3), method="ddim", steps=1000)
    assert torch.equal(torch.stack(seen), torch.arange(999.0, -1, -1).reshape(-1, 1).repeat(1, 2))


@pytest.mark.parametrize("guided", [False, True])
def test_poisoned_memory_is_never_read(guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.empty, torch.empty_like
    extra = (
        {"guidance_scale": 2.0, "cond": {"y": torch.ones(2, 3)}, "uncond": {"y": torch.zeros(2, 3)}} if guided else {}
    )

    def model(x, t, y=0.0):
        return wavy(x, t) + y

    want = {
        (m, b): fastdiff.sample(model, X[:2], method=m, steps=5, backend=b, **extra) for m in METHODS for b in BACKENDS
    }
    monkeypatch.setattr(torch, "empty", lambda *a, **k: plain[0](*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: plain[1](*a, **k).fill_(float("nan")))
    for (method, backend), value in want.items():
        again = fastdiff.sample(model, X[:2], method=method, steps=5, backend=backend, **extra)
        assert torch.isfinite(again).all() and torch.equal(again, value), (method, backend)


def test_triton_interpreter_agrees(tmp_path) -> None:
    """A whole loop through Triton's interpreter, in a process of its own, since the variable is read at import."""
    import os
    import subprocess
    import sys

    pytest.importorskip("triton")
    code = (
        "import torch, fastdiff; from helpers.models import wavy\n"
        "for m in ('dpm3', 'dpmpp2m_sde'):\n"
        "    a, b = (fastdiff.sample(wavy, shape=(2, 3, 5), method=m, steps=3, backend=n)"
        " for n in ('triton', 'reference'))\n"
        "    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)\n"
    )
    paths = [
        os.path.dirname(__file__),
        os.path.dirname(os.path.dirname(fastdiff.__file__)),
        os.environ.get("PYTHONPATH", ""),
    ]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
