"""`AdaptiveSampler`: predictions, guidance, clipping, dtypes, hooks, habits of models, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.analytic import mixture
from helpers.models import BACKENDS, MIXTURE, Field, X, simple, wavy

import fastdiff
from fastdiff import schedules
from fastdiff.solvers import find

ADAPTIVE = [m for m, entry in fastdiff.methods().items() if entry["adaptive"]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_predictions_agree(method: str, backend: str) -> None:
    options = {"schedule": "ddpm", "method": method, "dtype": torch.float64, "backend": backend}
    results = [
        fastdiff.sample(Field(MIXTURE, "ddpm", p), X, prediction=p, **options)
        for p in ("eps", "x0", "v", "score", "flow")
    ]
    for other in results[1:]:
        # One distribution told five ways: round-off, amplified by 1/alpha_T = 160 in the conversions.
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_guidance_equals_the_formula(method: str, control: str) -> None:
    a, b = torch.ones(4, 3, dtype=torch.float64), -0.3 * torch.ones(4, 3, dtype=torch.float64)

    def conditional(x, t, y):
        return simple(x + y, t)

    def mixed(x, t):
        return 2.5 * conditional(x, t, a) - 1.5 * conditional(x, t, b)

    common = {"method": method, "control": control, "dtype": torch.float64}
    for backend in BACKENDS:
        got = fastdiff.sample(
            conditional, X, guidance_scale=2.5, cond={"y": a}, uncond={"y": b}, backend=backend, **common
        )
        torch.testing.assert_close(got, fastdiff.sample(mixed, X, backend=backend, **common), rtol=1e-9, atol=1e-9)
    s = schedules.ddpm()

    def shifted(x, t):
        sigma = torch.from_numpy(s.sigma(t.double().numpy())).reshape(-1, 1)
        return simple(x, t) - sigma * 0.3 * torch.tanh(x)

    got = fastdiff.sample(simple, X, classifier_grad=lambda x, t: 0.3 * torch.tanh(x), **common)
    # The time reaches the model as float32 here, off by 2^-25 of it.
    torch.testing.assert_close(got, fastdiff.sample(shifted, X, **common), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_clipping_reaches_every_evaluation(method: str) -> None:
    for clip in ((-0.5, 0.5), "dynamic"):
        for control in ("batch", "sample"):
            results = [
                fastdiff.sample(
                    Field(MIXTURE, "ddpm"),
                    X,
                    method=method,
                    clip=clip,
                    control=control,
                    denoise_to_zero=True,
                    dtype=torch.float64,
                    backend=b,
                )
                for b in BACKENDS
            ]
            bound = 0.5 if clip != "dynamic" else 1.0
            assert float(results[0].abs().max()) <= bound + 1e-12
            for other in results[1:]:
                # Where all is clipped an ode step's error is round-off, and so is the next step's width: the times
                # differ, and the results by what the tolerance allows: atol + rtol·|x| = 2e-5.
                tolerance = 2e-5 if method == "ode" else 1e-9
                torch.testing.assert_close(other, results[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_networks_and_states_of_every_dtype(method: str) -> None:
    class Net(torch.nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))

        def forward(self, x, t):
            seen.append(x.dtype)
            return simple(x, t) * self.weight

    exact = fastdiff.sample(simple, X, method=method, rtol=1e-3, atol=1e-3, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        for backend in BACKENDS:
            seen: list[torch.dtype] = []
            got = fastdiff.sample(Net(dtype), X, method=method, rtol=1e-3, atol=1e-3, backend=backend)
            assert set(seen) == {dtype} and got.dtype == torch.float32
            # Both are within the tolerance of a step of the ODE's solution; bfloat16 outputs add their 2^-9.
            assert float((got.double() - exact).abs().max()) < (0.02 if dtype == torch.float32 else 0.3)


def bent(x0: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """Depends on the time of the batch, or of each sample."""
    return 0.8 * x0 + 0.1 * torch.sin(x0 + 0.001 * torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1))


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize("clip", [None, (-0.5, 0.7), "dynamic"])
@pytest.mark.parametrize("options", [{"method": "ode"}, {"method": "ode", "form": "noise"}, {"method": "dpm_adaptive"}])
def test_correct_x0_is_a_network_that_predicts_the_corrected_x0(options, clip, control) -> None:
    """A network that gives x0 and bends it itself must lead to the same sample, with the same steps."""
    x0 = Field(MIXTURE, "ddpm", "x0")
    common = {"clip": clip, "control": control, "denoise_to_zero": True, "dtype": torch.float64, "return_info": True}
    for backend in BACKENDS:
        common |= {"backend": backend, **options}
        got, info = fastdiff.sample(Field(MIXTURE, "ddpm"), X, correct_x0=bent, **common)
        want, same = fastdiff.sample(lambda x, t: bent(x0(x, t), t), X, prediction="x0", **common)
        # The same in another order, over 1/alpha_T = 160. Where all is clipped an ode step's error is round-off, and so
        # is the next step's width: apart by what the tolerance allows, 2e-5.
        tolerance = 2e-5 if clip is not None and options["method"] == "ode" else 1e-9
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        if tolerance < 1e-6:
            assert info.nfe == same.nfe and torch.equal(info.rejected, same.rejected)
        plain, _ = fastdiff.sample(Field(MIXTURE, "ddpm"), X, **common)
        assert not torch.allclose(got, plain, atol=1e-3)


PUBLISHED = [
    ("vp_linear", "dpmsolver", 0.05, 0.0078, (0.9171247050136704, -0.9427729193499367), 38),
    ("vp_linear", "taylor", 1e-3, 1e-4, (0.9196329211571097, -0.9450499846659859), 116),
    ("ddpm", "dpmsolver", 1e-3, 1e-4, (0.9198343920174439, -0.9450779045128905), 115),
]


@pytest.mark.parametrize(("schedule", "form", "rtol", "atol", "expected", "nfe"), PUBLISHED)
def test_correct_x0_of_the_published_adaptive_solver(schedule, form, rtol, atol, expected, nfe) -> None:
    """DPM_Solver(algorithm_type="dpmsolver++", correcting_x0_fn=f).sample(method="adaptive", order=3,
    denoise_to_zero=True) of LuChengTHU/dpm-solver in float64; the first of three samples, which share their steps."""
    dist = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
    z = torch.tensor([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]], dtype=torch.float64)
    result, info = fastdiff.sample(
        Field(dist, schedule),
        z,
        method="dpm_adaptive",
        algorithm_type="dpmsolver++",
        solver_type=form,
        rtol=rtol,
        atol=atol,
        denoise_to_zero=True,
        schedule=schedule,
        correct_x0=lambda x0, t: 0.9 * x0 + 0.1 * torch.sin(2 * x0),
        dtype=torch.float64,
        return_info=True,
    )
    # The two agree to 1e-12; the widths of steps carry the rounding of each step's error.
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=0, atol=1e-10)
    assert info.nfe == nfe


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_correct_x0_sees_what_guidance_made_and_the_time(method: str, control: str) -> None:
    times: list[float | torch.Tensor] = []
    calls = 0

    def keep(x0: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        times.append(t)
        return x0

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | float = 0.0) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return simple(x + y, t)

    half = torch.ones(4, 3, dtype=torch.float64)
    common = {"method": method, "control": control, "dtype": torch.float64}
    for guided in (
        {"guidance_scale": 2.5, "cond": {"y": half}, "uncond": {"y": -0.3 * half}},
        {"classifier_grad": lambda x, t: 0.3 * torch.tanh(x)},
    ):
        times, calls = [], 0
        got = fastdiff.sample(model, X, correct_x0=keep, **guided, **common)
        assert len(times) == calls > 0
        if control == "batch":
            assert all(type(t) is float for t in times)
        else:
            assert all(t.shape == (4,) and t.dtype == torch.float64 for t in times)
            # The schedule's times, each sample's own.
            assert any(len(set(t.tolist())) > 1 for t in times)
        torch.testing.assert_close(got, fastdiff.sample(model, X, **guided, **common), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_corrected_samples_do_not_depend_on_their_batch(method: str) -> None:
    def correct(x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x0 / (1.0 + x0 * x0 * 0.25 * (t.reshape(-1, 1) > 300))

    common = {"method": method, "control": "sample", "correct_x0": correct}
    together = fastdiff.sample(simple, X.float(), **common)
    for b in range(len(X)):
        assert torch.equal(fastdiff.sample(simple, X[b : b + 1].float(), **common)[0], together[b])


def test_a_corrected_x0_does_not_pass_sigma_zero() -> None:
    """A flow network alone runs to sigma = 0; the corrected x0 ends the run at `t_floor`, as x0 networks do."""
    flow, x0 = Field(MIXTURE, "flow", "flow"), Field(MIXTURE, "flow", "x0")
    common = {"method": "ode", "schedule": "flow", "dtype": torch.float64, "return_info": True}
    got, info = fastdiff.sample(flow, X, prediction="flow", correct_x0=lambda x0, t: 0.9 * x0, **common)
    want, same = fastdiff.sample(lambda x, t: 0.9 * x0(x, t), X, prediction="x0", **common)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert len(info.times[0]) == len(same.times[0]) and info.times[0][-2] == schedules.resolve("flow").t_floor


def test_the_bar_counts_percent_without_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    fastdiff.sample(simple, X, method="ode", progress=True)
    shown = capsys.readouterr().err
    assert "ode: 100%|" in shown and "%/s" not in shown and "it/s" not in shown


def test_hooks_and_outputs() -> None:
    seen, out = [], torch.empty(4, 3, dtype=torch.float64)
    got, path, info = fastdiff.sample(
        Field(MIXTURE, "vp_linear"), X, method="ode", schedule="vp_linear", dtype=torch.float64, return_trajectory=True,
        return_info=True, callback=lambda step, t, x, x0: seen.append((step, t, x, x0)), out=out, progress=True,
    )  # fmt: skip
    steps = int(info.accepted[0])
    assert got is out and path.x.shape == (steps + 1, 4, 3) and path.x0.shape == (steps, 4, 3)
    assert path.times.tolist() == list(info.times[0]) == [*(t for _, t, _, _ in seen), 1e-3]
    assert torch.equal(path.x[0], X) and torch.equal(path.x[-1], got) and [k for k, *_ in seen] == list(range(steps))
    s = schedules.vp_linear()
    for t, x, x0 in zip(path.times.tolist(), path.x, path.x0, strict=False):
        # x0 = (u − sigma·eps)/alpha cancels to 1/alpha_T = 150 round-offs.
        np.testing.assert_allclose(x0.numpy(), MIXTURE.x0(x.numpy(), s.alpha(t), s.sigma(t)), rtol=1e-10, atol=1e-10)
    assert torch.equal(fastdiff.sample(wavy, X, method="ode"), fastdiff.sample(wavy, X, method="rk45"))
    assert torch.equal(X, path.x[0])


@pytest.mark.parametrize("method", ADAPTIVE)
def test_habits_of_models(method: str) -> None:
    want = fastdiff.sample(wavy, X, method=method)
    buffer = torch.empty(4, 3)
    assert torch.equal(fastdiff.sample(lambda x, t: buffer.copy_(wavy(x, t)), X, method=method), want)
    same = fastdiff.sample(lambda x, t: x, X, method=method)
    assert torch.equal(same, fastdiff.sample(lambda x, t: x.clone(), X, method=method))
    with pytest.raises(RuntimeError, match="changed its input in place"):
        fastdiff.sample(lambda x, t: x.mul_(0.5), X, method=method)
    assert torch.equal(fastdiff.sample(lambda x, t: wavy(x, t.mul_(1.0)), X, method=method), want)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 10}, ValueError, r"steps=10 does not apply.*\(method='ode', rtol=1e-05, atol=1e-05\)"),
        ({"spacing": "logsnr"}, ValueError, "spacing='logsnr' does not apply"),
        ({"rtl": 1e-3}, ValueError, "unknown option of method 'ode': 'rtl'; did you mean 'rtol'"),
        ({"rtol": -1.0}, ValueError, "rtol=-1.0: method 'ode' accepts"),
        (
            {"rtol": 1e-8, "atol": 1e-9},
            ValueError,
            "rtol=1e-08, atol=1e-09 are below what a state in float32 can show.*dtype=torch.float64",
        ),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "rtol=0 and atol=0: method 'ode' needs one of them above 0"),
        ({"control": "each"}, ValueError, "unknown control of method 'ode': 'each'.*Valid: batch, sample"),
        ({"t_start": 5.0, "t_end": 5.0}, ValueError, "the same time"),
        ({"t_start": 1200.0}, ValueError, "t_start: time 1200.0 is outside"),
        ({"t_start": 0.0, "t_end": 9.0, "denoise_to_zero": True}, ValueError, "goes from noise to data"),
        ({"graph": True}, RuntimeError, "graph=True: method 'ode' chooses each step from the error of the last"),
        ({"max_nfe": 20, "rtol": 1e-9}, RuntimeError, r"max_nfe=20: at t=.* rejected steps.*raise max_nfe"),
        ({"control": "sample", "return_trajectory": True}, ValueError, "control='sample' each sample has its own"),
        ({"correct_xt": lambda x, t, step: x}, ValueError, "correct_xt does not go with adaptive .* use correct_x0="),
        ({"correct_x0": lambda x0: x0}, TypeError, r"called as correct_x0\(x0, t\).*takes \(x0\): wrap it"),
        ({"correct_x0": lambda x0, t: x0[:1]}, ValueError, "correct_x0 returned .*expected a tensor of shape"),
        ({"callback": 3}, TypeError, r"callback must be callable as callback\(stage, time, x, x0\), got int"),
        ({"method": "dpm_adaptive", "t_start": 0.0, "t_end": 9.0}, ValueError, "method='ode' runs either way"),
        ({"method": "dpm_adaptive", "order": 4}, ValueError, "order=4: method 'dpm_adaptive' accepts 2, 3"),
        ({"method": "dpm_adaptive", "h_max": 0.0}, ValueError, "h_max=0: .*expects a number above 0"),
        ({"method": "dpm_adaptive", "theta": 0.0}, ValueError, "theta=0: .*expects a number above"),
        ({"method": "dpm3", "return_info": True}, ValueError, r"adaptive methods.*\(10 network evaluations\)"),
    ],
)  # fmt: skip
def test_errors(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        fastdiff.sample(simple, X, **{"method": "ode", **arguments})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tolerances_that_cannot_be_reached(dtype: torch.dtype) -> None:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 1e12 * torch.randn_like(x)

    wider = ", use dtype=torch.float64" if dtype == torch.float32 else ""
    with pytest.raises(RuntimeError, match=f"the step fell to .*below rounding.*loosen rtol and atol{wider}, or look"):
        fastdiff.sample(model, X, method="ode", rtol=1e-6, atol=1e-6, dtype=dtype)


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_values_that_are_not_finite(method: str, control: str) -> None:
    def model(x, t):
        out = simple(x, t)
        out[2] = torch.where(t[2] < 500, torch.full_like(out[2], float("nan")), out[2])
        return out

    with pytest.raises(
        FloatingPointError,
        match=r"error of the step from t=.* is NaN or Inf for " + ("sample 2" if control == "sample" else "the batch"),
    ):
        fastdiff.sample(model, X, method=method, control=control)
    with pytest.raises(FloatingPointError, match=r"returned NaN or Inf at step .* for sample 2 of 4"):
        fastdiff.sample(model, X, method=method, control=control, check_finite=True)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_there_is_no_plan(method: str) -> None:
    sampler = fastdiff.Sampler(method)
    assert isinstance(sampler, fastdiff.Sampler) and repr(sampler).startswith(f"Sampler({method!r}, rtol=")
    with pytest.raises(AttributeError, match=f"'{method}' is adaptive and has no plan"):
        _ = sampler.plan
    with pytest.raises(ValueError, match=f"'{method}' is adaptive and has no plan"):
        fastdiff.plan(method)
    with pytest.raises(ValueError, match="its loop cannot be the caller's"):
        sampler.begin(X)
    assert find(method).adaptive and fastdiff.methods()[method]["adaptive"]
    if method == "dpm_adaptive":
        with pytest.raises(ValueError, match="invert method='ode'"):
            sampler.invert(simple, X)
