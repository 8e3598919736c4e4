"""Habits of real networks, threads, and what the loop may and may not do."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from helpers.methods import LOOPED
from helpers.models import BACKENDS, Pooled, wavy
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff.run import history

METHODS = LOOPED
# Their history keeps the network's own outputs; the last with an x0 prediction and noise.
RAW = [("dpm2", "eps"), ("dpm3", "eps"), ("heun", "eps"), ("unipc", "x0"), ("dpmpp3m", "x0"), ("dpmpp2m_sde", "x0")]
X = torch.linspace(-2, 2, 2 * 3 * 4).reshape(2, 3, 4)


def run(model, method="dpm3", prediction="eps", **more):
    return fastdiff.sample(model, more.pop("x", X), method=method, prediction=prediction, seed=4, **more)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "prediction"), RAW)
@pytest.mark.parametrize(("buffers", "fresh"), [(1, 0), (2, 0), (3, 0), (4, 0), (1, 5), (2, 6), (3, 4)])
def test_output_buffers_used_again(method, prediction, buffers, fresh, backend) -> None:
    want = run(wavy, method, prediction, backend=backend)
    model = Pooled(wavy, buffers, fresh)
    assert torch.equal(run(model, method, prediction, backend=backend), want)
    # The second run knows the habit: one call per evaluation, no more.
    model.calls = 0
    assert torch.equal(run(model, method, prediction, backend=backend), want)
    nfe = fastdiff.plan(method, 10).nfe
    assert model.calls == nfe if history.recycles(model) else model.calls <= 2 * nfe


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "prediction"), RAW)
def test_an_output_used_as_scratch_later(method, prediction, backend) -> None:
    """The buffer of an earlier output is written to by a call that returns other memory: its version tells."""
    kept = []

    def model(x, t):
        for old in kept:
            old.fill_(7.0)
        kept.append(wavy(x, t))
        return kept[-1]

    assert torch.equal(run(model, method, prediction, backend=backend), run(wavy, method, prediction, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_returns_its_input_or_a_view_of_it(method, dtype, backend) -> None:
    class Same(torch.nn.Module):
        def __init__(self, form):
            super().__init__()
            self.form, self.weight = form, torch.nn.Parameter(torch.zeros(1, dtype=dtype))

        def forward(self, x, t):
            return self.form(x)

    want = run(Same(torch.clone), method, backend=backend)
    square = X[:, :, :3].contiguous()
    for form in (lambda x: x, lambda x: x.view(-1).view(x.shape), lambda x: x.detach()):
        assert torch.equal(run(Same(form), method, backend=backend), want)
    turned = run(Same(lambda x: x.transpose(1, 2)), method, x=square, backend=backend)
    assert torch.equal(turned, run(Same(lambda x: x.transpose(1, 2).clone()), method, x=square, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m", "heun"])
def test_outputs_of_any_layout(method, backend) -> None:
    x = torch.linspace(-2, 2, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    want = run(wavy, method, x=x, backend=backend)
    for form in (
        lambda out: out.contiguous(memory_format=torch.channels_last),
        lambda out: out.transpose(0, 3).contiguous().transpose(0, 3),
        lambda out: torch.stack([out, out], dim=-1)[..., 0],
        lambda out: torch.complex(out, -out).conj().imag,
    ):
        assert torch.equal(run(lambda u, t, form=form: form(wavy(u, t)), method, x=x, backend=backend), want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["dpm3", "ddim", "heun"])
def test_an_input_changed_in_place(method, backend) -> None:
    class InPlace(torch.nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))

        def forward(self, x, t):
            return x.mul_(0.5).sin_()

    with pytest.raises(RuntimeError, match=r"changed its input in place.*model\(x.clone\(\), t"):
        run(InPlace(torch.float32), method, backend=backend)
    # A cast copy belongs to the network: nothing else reads it.
    got = run(InPlace(torch.bfloat16), method, backend=backend)
    module = InPlace(torch.bfloat16)
    module.forward = lambda x, t: (x * 0.5).sin()
    assert torch.equal(got, run(module, method, backend=backend))


def test_times_changed_in_place() -> None:
    def model(x, t):
        t /= 999.0
        return wavy(x, t * 100)

    sampler = fastdiff.Sampler("dpm3")
    want = sampler(lambda x, t: wavy(x, t / 999.0 * 100), X)
    assert torch.equal(sampler(model, X), want) and torch.equal(sampler(model, X), want)
    assert torch.equal(sampler(Pooled(model, 1), X), want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradient_modes(mode, backend) -> None:
    """No graph is recorded, whatever the caller's mode, and the result is an ordinary tensor."""
    weight = torch.ones((), requires_grad=True)
    grads = []

    def model(x, t):
        grads.append(torch.is_grad_enabled() or torch.is_inference_mode_enabled())
        return wavy(x * weight, t)

    want = run(wavy, backend=backend)
    with mode():
        x = X * 1.0
        got = run(model, x=x.detach(), backend=backend)
    assert torch.equal(got, want) and not any(grads)
    assert not got.requires_grad and not got.is_inference()
    assert torch.equal(run(torch.inference_mode()(model), backend=backend), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend) -> None:
    linear = torch.nn.Linear(4, 4)
    seen = []

    def model(x, t):
        out = linear(x)
        seen.append((x.dtype, out.dtype))
        return out

    with torch.autocast("cpu", torch.bfloat16):
        got = run(model, backend=backend)
    assert set(seen) == {(torch.float32, torch.bfloat16)} and got.dtype == torch.float32
    half = run(lambda x, t: torch.nn.functional.linear(
        x.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16()), backend=backend)  # fmt: skip
    assert torch.equal(got, half)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "prediction"), [*RAW, ("ddim", "eps"), ("dpmpp2m", "eps")])
def test_another_output_dtype_in_mid_run(method, prediction, backend) -> None:
    """Two experts of different precision in one run: the result is that of the rounded values in the state's dtype."""

    def experts(cast):
        calls = []

        def model(x, t):
            calls.append(1)
            out = wavy(x, t)
            return out if len(calls) > 4 else cast(out.bfloat16())

        return model

    got = run(experts(lambda out: out), method, prediction, backend=backend)
    want = run(experts(lambda out: out.float()), method, prediction, backend=backend)
    assert torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["dpm3", "heun", "dpmpp2m_sde"])
def test_eight_threads_share_a_sampler(method, backend) -> None:
    sampler = fastdiff.Sampler(method, 6, backend=backend)
    want = [sampler(wavy, shape=(1 + i % 3, 5, 7), seed=i) for i in range(8)]
    got: dict[int, torch.Tensor] = {}
    gate = threading.Barrier(8)

    def work(i: int) -> None:
        gate.wait()
        for _ in range(3):
            got[i] = sampler(wavy, shape=(1 + i % 3, 5, 7), seed=i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], want[i]) for i in range(8))


def test_results_and_inputs_are_not_shared() -> None:
    for method in METHODS:
        x, outputs = X.clone(), []

        def model(u, t, outputs=outputs):
            outputs.append(wavy(u, t))
            return outputs[-1]

        sampler = fastdiff.Sampler(method, 3)
        first = sampler(model, x)
        kept = first.clone()
        memory = {first.untyped_storage().data_ptr()}
        assert memory.isdisjoint(t.untyped_storage().data_ptr() for t in (*outputs, x))
        assert first.untyped_storage().nbytes() == first.numel() * 4
        sampler(model, x)
        assert torch.equal(first, kept) and torch.equal(x, X)


@pytest.mark.parametrize("given", [lambda x: x, lambda x: x.double(), lambda x: x.half(), lambda x: x.bfloat16()])
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    ],
)
def test_starts_of_any_layout_and_dtype(given, layout) -> None:
    x = torch.linspace(-2, 2, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    start = layout(given(x))
    before = start.clone()
    got = run(wavy, x=start)
    assert torch.equal(start, before) and got.dtype == torch.float32 and got.is_contiguous()
    assert torch.equal(got, run(wavy, x=given(x).float()))
    assert run(wavy, x=start, dtype=torch.float64).dtype == torch.float64


def test_a_run_keeps_nothing_alive() -> None:
    sampler = fastdiff.Sampler("dpm3", 4)
    outputs = []

    def model(x, t):
        out = wavy(x, t)
        outputs.append(weakref.ref(out))
        return out

    x = X.clone()
    seen = weakref.ref(x)
    result = sampler(model, x)
    del x
    gc.collect()
    assert seen() is None and all(ref() is None for ref in outputs) and result is not None


class NoSync(TorchDispatchMode):
    """Fails on every operation whose result must reach the host, or whose shape depends on values."""

    SYNCS = (
        "_local_scalar_dense",
        "nonzero",
        "equal",
        "is_nonzero",
        "masked_select",
        "unique",
        "allclose",
        "repeat_interleave",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not any(name.lstrip("_").startswith(bad.lstrip("_")) for bad in self.SYNCS), f"the loop calls {name}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0), "dynamic"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_loop_never_waits_for_the_device(method, guided, clip) -> None:
    extra = {"guidance_scale": 2.0, "cond": {"y": torch.ones(2)}, "uncond": {"y": torch.zeros(2)}} if guided else {}

    def model(x, t, y=None):
        assert mode is not None
        return wavy(x, t)

    mode = NoSync()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), mode:
        float(torch.ones(()))

    def sample() -> None:
        fastdiff.sample(model, shape=(2, 3, 4), method=method, steps=3, backend="reference", clip=clip, **extra)

    # In the host's memory a model's first run looks at values, to learn its habits; on a device none does.
    sample()
    with mode:
        sample()


@pytest.mark.parametrize("method", METHODS)
def test_shapes_alone_decide_the_loop(method) -> None:
    """On the meta device there are no values at all: whatever the loop decides, it decides without them."""
    got = fastdiff.sample(wavy, shape=(2, 3, 4), method=method, steps=4, device="meta")
    assert got.device.type == "meta" and got.shape == (2, 3, 4)


def test_custom_plan_is_run() -> None:
    plan = fastdiff.plan("dpm2", 5, "vp_linear")
    got = fastdiff.Sampler(plan=plan)(wavy, X)
    assert torch.equal(got, run(wavy, "dpm2", steps=5, schedule="vp_linear"))
    assert np.isfinite(got.numpy()).all()


def test_a_bound_method_is_known_by_its_owner() -> None:
    class Engine:
        def __init__(self):
            self.calls, self.buffer = 0, torch.empty_like(X)

        def infer(self, x, t):
            self.calls += 1
            return self.buffer.copy_(wavy(x, t))

    engine, want = Engine(), run(wavy)
    assert torch.equal(run(engine.infer), want)
    engine.calls = 0
    assert torch.equal(run(engine.infer), want) and engine.calls == 10
