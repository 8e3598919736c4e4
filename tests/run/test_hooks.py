"""What a run reports: progress, callbacks, trajectories, the first NaN; and partial runs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers.methods import LOOPED
from helpers.models import BACKENDS, MIXTURE, Exact, Pooled, wavy

import fastdiff

METHODS = LOOPED
X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
CHURN = {"s_churn": 10.0, "s_tmax": 50.0}


class Bar:
    """Stands for tqdm: keeps the total and counts the updates."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, total: int, **kwargs) -> None:
        self.total, self.n, self.closed = total, 0, False
        Bar.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error) -> None:
        self.closed = True

    def update(self, n: int = 1) -> None:
        self.n += n


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_progress_counts_steps(method, pooled, monkeypatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    Bar.made.clear()
    fastdiff.sample(Pooled(wavy, 1) if pooled else wavy, X, method=method, steps=7, progress=True)
    (bar,) = Bar.made
    assert bar.n == bar.total == fastdiff.plan(method, 7).steps and bar.closed


def test_progress_closes_when_the_model_fails(monkeypatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    Bar.made.clear()
    with pytest.raises(ZeroDivisionError):
        fastdiff.sample(lambda x, t: 1 / 0, X, progress=True)
    assert Bar.made[0].closed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("method", METHODS)
def test_callback_is_told_the_truth(method, prediction, backend) -> None:
    """x and x0 at every evaluation: x0 must be what the distribution's own formula predicts from that x."""
    plan, calls = fastdiff.plan(method, 5), []

    def callback(stage, time, x, x0):
        calls.append((stage, time, x, x0))

    model = Exact(MIXTURE, prediction=prediction)
    common = {"method": method, "steps": 5, "prediction": prediction, "dtype": torch.float64, "backend": backend}
    got = fastdiff.sample(model, X, callback=callback, **common)
    assert torch.equal(got, fastdiff.sample(model, X, **common))
    evaluated = [k for k, s in enumerate(plan.stages) if s.evaluate]
    assert [c[0] for c in calls] == evaluated and [c[1] for c in calls] == [plan.stages[k].t for k in evaluated]
    for k, _, x, x0 in calls:
        want = MIXTURE.x0(x.numpy(), plan.stages[k].alpha, plan.stages[k].sigma)
        # One conversion at 1/alpha_T = 160 amplifies round-off.
        np.testing.assert_allclose(x0.numpy(), want, rtol=1e-9, atol=1e-9)
    memory = [t.untyped_storage().data_ptr() for _, _, *tensors in calls for t in tensors]
    assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["dpm3", "heun", "dpmpp2m_sde"])
def test_a_callback_cannot_disturb_the_run(method, backend) -> None:
    def spoil(stage, time, x, x0):
        x.fill_(float("nan"))
        x0.fill_(float("nan"))

    want = fastdiff.sample(wavy, X, method=method, backend=backend, return_trajectory=True)
    got = fastdiff.sample(wavy, X, method=method, backend=backend, return_trajectory=True, callback=spoil)
    for a, b in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0}, {"clip": (-0.4, 0.4)}, {"clip": "dynamic"}])
@pytest.mark.parametrize("method", [*METHODS, "churn"])
def test_trajectory(method, options, backend) -> None:
    more = {}
    if method == "churn":
        method, more = "heun", CHURN
    plan = fastdiff.plan(method, 6, **more)
    model = Exact(MIXTURE)
    guided = {"cond": {"y": X}, "uncond": {"y": X}} if "guidance_scale" in options else {}
    result, path = fastdiff.sample(
        lambda x, t, **kwargs: model(x, t),
        X,
        method=method,
        steps=6,
        dtype=torch.float64,
        backend=backend,
        return_trajectory=True,
        **options,
        **guided,
        **more,
    )
    assert path.times.tolist() == list(plan.times) and path.times.dtype == torch.float64
    assert path.x.shape == (plan.steps + 1, 4, 3) and path.x0.shape == (plan.steps, 4, 3)
    assert torch.equal(path.x[0], X) and torch.equal(path.x[-1], result)
    if "clip" in options:
        assert path.x0.abs().max() <= (0.4 if options["clip"] != "dynamic" else 1.0)
    elif not more:
        for i in range(plan.steps):
            s = fastdiff.schedules.ddpm().at(plan.times[i])
            np.testing.assert_allclose(
                path.x0[i], MIXTURE.x0(path.x[i].numpy(), s.alpha, s.sigma), rtol=1e-9, atol=1e-9
            )


def test_trajectory_states_are_those_of_shorter_runs() -> None:
    times = fastdiff.plan("dpm2", 6).times
    _, path = fastdiff.sample(wavy, X, method="dpm2", spacing=times, return_trajectory=True, lower_order_final=False)
    for n in range(1, 7):
        short = fastdiff.sample(wavy, X, method="dpm2", spacing=times[: n + 1], lower_order_final=False)
        assert torch.equal(path.x[n], short)


def test_observers_after_a_run_that_began_anew() -> None:
    seen, want = [], []
    fastdiff.sample(Pooled(wavy, 2), X, callback=lambda *a: seen.append(a), check_finite=True)
    fastdiff.sample(wavy, X, callback=lambda *a: want.append(a))
    assert [s[:2] for s in seen] == [w[:2] for w in want]
    assert all(torch.equal(a, b) for s, w in zip(seen, want, strict=True) for a, b in zip(s[2:], w[2:], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["dpm3", "heun", "dpmpp2s"])
def test_check_finite_names_the_first(method, bad) -> None:
    calls = []

    def model(x, t):
        calls.append(1)
        out = wavy(x, t)
        if len(calls) >= 5:
            out[2, 1] = bad
        if len(calls) >= 6:
            out[0] = bad
        return out

    stage = fastdiff.plan(method, 10).stages[4]
    words = rf"NaN or Inf at step {stage.step} \(stage 4, model time {stage.model_time:g}\) for sample 2 of 4:"
    with pytest.raises(FloatingPointError, match=words):
        fastdiff.sample(model, X, method=method, check_finite=True)
    calls.clear()
    assert not torch.isfinite(fastdiff.sample(model, X, method=method)).all()


def test_check_finite_under_guidance_names_the_half() -> None:
    def model(x, t, y):
        return torch.where(y > 1, float("nan"), x)

    y = torch.zeros(4, 1)
    for cond, uncond, half in (
        (y, y + torch.tensor([[0.0], [2], [0], [0]]), "unconditional"),
        (y + 2, y, "conditional"),
    ):
        with pytest.raises(FloatingPointError, match=rf"step 0 .* for sample [01] of 4, in the {half} half"):
            fastdiff.sample(model, X, guidance_scale=2.0, cond={"y": cond}, uncond={"y": uncond}, check_finite=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ddim", "dpm1", "dpmpp1", "heun", "dpmpp2s"])
def test_a_partial_run_continues_a_full_one(method, backend) -> None:
    """One-step methods on one grid: the second half of the run, from where the first half ended, is the full run's."""
    spacing = "time_uniform"
    middle = fastdiff.plan(method, 12, spacing=spacing).times[6 if method != "dpmpp2s" else 3]
    common = {"method": method, "spacing": spacing, "dtype": torch.float64, "backend": backend}
    first = fastdiff.sample(wavy, X, steps=6, t_end=middle, **common)
    second = fastdiff.sample(wavy, first, steps=6, t_start=middle, **common)
    full = fastdiff.sample(wavy, X, steps=12, **common)
    # The grids are equal to round-off in the times, 1e-13 relative, amplified by 1/alpha_T = 160.
    torch.testing.assert_close(second, full, rtol=1e-9, atol=1e-9)


def test_a_start_in_the_middle_is_at_that_time() -> None:
    seen = []
    options = {"t_start": 400.0, "t_end": 100.0, "steps": 3, "spacing": "time_uniform"}
    got = fastdiff.sample(lambda x, t: seen.append(t.clone()) or wavy(x, t), X, **options)
    assert [float(t[0]) for t in seen] == [400.0, 300.0, 200.0] and torch.isfinite(got).all()
