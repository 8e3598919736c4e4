"""Networks that write where torch does not see it, and networks with a state of their own: no wrong result, no call
twice."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from helpers.models import BACKENDS, wavy

import fastdiff
from fastdiff.run import history

X = torch.linspace(-2, 2, 2 * 3 * 4).reshape(2, 3, 4)
# Their history keeps the network's own outputs.
RAW = [("dpm2", "eps"), ("dpm3", "eps"), ("heun", "eps"), ("unipc", "x0"), ("dpmpp3m", "x0")]


def run(model, method="dpm3", prediction="eps", **more):
    return fastdiff.sample(model, X, method=method, prediction=prediction, schedule="ddpm", **more)


class Engine:
    """Writes its outputs into `buffers` fixed buffers through NumPy, which no version counter sees."""

    def __init__(self, buffers: int) -> None:
        self.memory = [np.empty(tuple(X.shape), dtype=np.float32) for _ in range(buffers)]
        self.calls = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = self.memory[self.calls % len(self.memory)]
        out[...] = wavy(x, t).numpy()
        self.calls += 1
        return torch.from_numpy(out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "prediction"), RAW)
@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_a_fixed_buffer_costs_no_call_twice(buffers, method, prediction, backend) -> None:
    engine = Engine(buffers)
    want = run(wavy, method, prediction, steps=6, backend=backend)
    nfe = fastdiff.plan(method, 6).nfe
    for runs in (1, 2):
        assert torch.equal(run(engine, method, prediction, steps=6, backend=backend), want)
        assert engine.calls == runs * nfe


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "prediction"), RAW)
def test_an_earlier_output_used_as_scratch_behind_torch(method, prediction, backend) -> None:
    """Other memory is returned, and the earlier one is written to through NumPy: neither address nor version tells."""
    kept = []

    def model(x, t):
        for old in kept:
            old.numpy()[...] = 7.0
        kept.append(wavy(x, t))
        return kept[-1]

    assert torch.equal(run(model, method, prediction, backend=backend), run(wavy, method, prediction, backend=backend))
    assert history.recycles(model)
    assert torch.equal(run(model, method, prediction, backend=backend), run(wavy, method, prediction, backend=backend))


def test_a_network_with_random_numbers_of_its_own_is_called_once_for_each_step() -> None:
    """Its generator goes on as in a loop by hand: with a static buffer as with a fresh one."""
    want = []
    buffer = torch.empty_like(X)
    for make in (lambda out: out, lambda out: buffer.copy_(out)):
        generator = torch.Generator().manual_seed(3)

        def model(x, t, generator=generator, make=make):
            return make(wavy(x, t) + 0.1 * torch.randn(X.shape, generator=generator))

        want.append(run(model, steps=6))
    assert torch.equal(*want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", [lambda x: x.data.mul_(0.5), lambda x: np.multiply(x.numpy(), 0.5, out=x.numpy())])
@pytest.mark.parametrize("method", ["dpm3", "ddim", "heun", "ode"])
def test_an_input_changed_behind_torch(method, change, backend) -> None:
    def model(x, t):
        change(x)
        return wavy(x, t)

    steps = {} if method == "ode" else {"steps": 4}
    with pytest.raises(RuntimeError, match=r"changed its input in place.*model\(x.clone\(\), t"):
        run(model, method, backend=backend, **steps)
    got = run(lambda x, t: model(x.clone(), t), method, backend=backend, **steps)
    assert torch.equal(got, run(lambda x, t: wavy(x * 0.5, t), method, backend=backend, **steps))


def test_an_input_changed_behind_torch_in_a_loop_of_the_callers_own() -> None:
    sampler = fastdiff.Sampler("dpm3", 4, schedule="ddpm")
    state = sampler.begin(X)
    state.input.data.mul_(0.5)
    with pytest.raises(RuntimeError, match="changed its input in place"):
        sampler.step(state, torch.zeros_like(X))


def test_what_is_learnt_is_learnt_once_and_forgotten_with_the_model(monkeypatch) -> None:
    looks = []
    same = history.same_bits
    for where in ("history", "evaluate"):
        monkeypatch.setattr(f"fastdiff.run.{where}.same_bits", lambda a, b: looks.append(1) or same(a, b))

    def model(x, t):
        return wavy(x, t)

    run(model, steps=6)
    assert looks
    looks.clear()
    run(model, steps=6)
    assert not looks
    # UniPC of order 3 keeps more outputs than dpm3 did.
    run(model, "unipc", "x0", steps=6, order=4)
    assert looks and not history.recycles(model)
    known = len(history.HABITS.fresh)
    del model
    gc.collect()
    assert len(history.HABITS.fresh) < known


def test_nan_is_no_change() -> None:
    def model(x, t):
        return torch.full_like(x, float("nan"))

    assert run(model).isnan().all() and not history.recycles(model)
