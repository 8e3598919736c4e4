"""The stage as an operation that PyTorch knows: its schema, fake tensors, and runs that are recorded or compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.stage_cases import random_case
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import fastdiff
from fastdiff import guidance
from fastdiff.ops import Recorded, load, select, tracing

X, OTHER = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
# Reads of x, u, history and noise; several buffers; a second network call a step; a step whose row is made on the way.
METHODS = ("dpm3", "unipc", "dpmpp2m_sde", "heun", "ddpm", "pc")


class Net(torch.nn.Module):
    """A network with weights, whose output depends on the time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(6) * 0.5 + 0.1, requires_grad=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        out = torch.sin(x @ self.weight) + 1e-4 * t.reshape(-1, 1)
        return out if y is None else out + y.reshape(-1, 1)


class Run(torch.nn.Module):
    """A sampler and its network as one module."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.net, self.sampler = Net(), fastdiff.Sampler(method, 3)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sampler(self.net, x)


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal but for the rounding of the network, which a compiler may change: its 6 products, over 3 steps."""
    return torch.allclose(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def arguments(seed: int, backend: str) -> tuple[Any, ...] | None:
    """The operation's, from a random case; None where buffers are shared, which an alias in its schema would be."""
    case = random_case(seed, state=torch.float32, shape=(2, 4, 3))
    c, b = case.coeffs, case.buf
    h = (*b.h, *[None] * (6 - len(b.h)))
    tensors = (
        c.table, c.draws, c.seeds, c.index, c.lo, c.hi, c.scale, c.rows, b.x, b.u, b.first, b.second, *h, *b.z,
        b.u_out, b.x_out, b.m_out, b.net_in, b.squares,
    )  # fmt: skip
    given = [id(t) for t in tensors if t is not None]
    if len(given) != len(set(given)):
        return None
    for t in tensors[-5:]:
        if t is not None:
            t.zero_()
    for t in (b.first, b.second):
        if t is not None:
            t.nan_to_num_()
    return (backend, [int(v) for v in case.spec], case.k, c.inner, *tensors)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck(backend: str) -> None:
    if not load(backend).available()[0]:
        pytest.skip(load(backend).available()[1])
    checked = 0
    for seed in range(40):
        given = arguments(seed, backend)
        if given is not None:
            torch.library.opcheck(torch.ops.fastdiff.stage, given)
            checked += 1
    assert checked > 5
    seeds, index = torch.arange(2), torch.arange(2, dtype=torch.int32)
    torch.library.opcheck(torch.ops.fastdiff.normal_, (backend, torch.zeros(2, 5), seeds, index, 1, 0))
    torch.library.opcheck(torch.ops.fastdiff.quantile_, (backend, torch.zeros(2), torch.rand(2, 5), 0.9))


def test_fake_tensors() -> None:
    with FakeTensorMode():
        assert isinstance(fastdiff.randn((2, 3)), FakeTensor)
        for options in ({}, {"clip": "dynamic"}, {"dtype": torch.float64}):
            for method in METHODS:
                made = fastdiff.sample(lambda x, t: 0.5 * x, shape=(2, 6), steps=3, method=method, **options)  # type: ignore[call-overload]
                assert isinstance(made, FakeTensor) and made.shape == (2, 6)
                assert made.dtype == options.get("dtype", torch.float32)
    # Nothing fake is kept: the same call without the mode.
    real = fastdiff.sample(lambda x, t: 0.5 * x, shape=(2, 6), steps=3, method="dpm3")
    assert type(real) is torch.Tensor and bool(torch.isfinite(real).all())


def test_a_missing_stream_is_refused_where_shapes_alone_are_known() -> None:
    with FakeTensorMode():
        t, i = torch.zeros(1, 40), torch.zeros(2, dtype=torch.int32)
        given = ["reference", [0, 0, 0, 1, 0, 0, 0], 0, 0, t, torch.zeros(1, 3), i.long(), i, *[None] * 17]
        with pytest.raises(ValueError, match="the stage needs x, which was not given"):
            torch.ops.fastdiff.stage(*given, torch.zeros(2, 3), None, None, None, None)


@pytest.mark.parametrize("method", METHODS)
def test_export(method: str) -> None:
    run = Run(method)
    want = run(OTHER)
    exported = torch.export.export(run, (X,), strict=False)
    assert torch.equal(exported.module()(OTHER), want)
    assert torch.equal(run(OTHER), want)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("method", METHODS)
def test_jit_trace(method: str) -> None:
    run = Run(method)
    want = run(OTHER)
    traced = torch.jit.trace(run, (X,), check_trace=False)
    assert torch.equal(traced(OTHER), want)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode: str) -> None:
    run = Run("dpmpp2m_sde")
    made = make_fx(run, tracing_mode=mode, _allow_non_fake_inputs=True)(X)
    assert torch.equal(made(OTHER), run(OTHER))
    assert any("fastdiff" in str(node.target) for node in made.graph.nodes)


def test_a_dispatch_mode_sees_the_network_and_changes_nothing() -> None:
    run = Run("dpmpp2m")
    want = run(X)
    with FlopCounterMode(display=False) as counter:
        got = run(X)
    # 3 evaluations of a (2, 6) by (6, 6) product.
    assert torch.equal(got, want) and counter.get_total_flops() == 3 * 2 * 2 * 6 * 6
    with FlopCounterMode(display=False):
        assert fastdiff.sample(Net(), X, method="ode", rtol=1e-2, atol=1e-2).shape == X.shape


@pytest.mark.parametrize("method", METHODS)
def test_compiled_in_one_graph_and_once(method: str) -> None:
    torch._dynamo.reset()
    net, sampler = Net(), fastdiff.Sampler(method, 3)  # type: ignore[arg-type]
    want = [sampler(net, x) for x in (X, OTHER)]
    count = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: sampler(net, x), fullgraph=True, backend=count)
    for x, result in zip((X, OTHER, X), (*want, want[0]), strict=True):
        assert close(compiled(x), result)
    assert count.frame_count == 1


def test_seeds_are_arguments_of_a_compiled_run() -> None:
    torch._dynamo.reset()
    net, sampler = Net(), fastdiff.Sampler("dpmpp2m_sde", 2)
    for _ in range(4):
        # What is known of eager calls does not reach the compiled one.
        sampler(net, shape=(2, 6))
    count = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda seed: sampler(net, shape=(2, 6), seed=seed), fullgraph=True, backend=count)
    for seed in (1, 2, 3, 2**40):
        assert close(compiled(seed), sampler(net, shape=(2, 6), seed=seed))
    # The compiler takes a number for a constant until it sees a second one.
    assert count.frame_count == 2


GUIDED = {"cond": {"y": torch.ones(2)}, "uncond": {"y": torch.zeros(2)}}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": ({"clip": (-1.0, 1.0)}, {}),
    "dynamic": ({"clip": "dynamic"}, {}),
    "double": ({"dtype": torch.float64}, {}),
    "free": ({}, {"guidance": 2.0, **GUIDED}),
    "rescaled": ({}, {"guidance": guidance.Rescale(2.0, 0.7), **GUIDED}),
    "classifier": ({}, {"classifier_grad": lambda x, t: 0.1 * x}),
    "kwargs": ({}, {"model_kwargs": {"y": torch.ones(2)}}),
    "seeds": ({}, {"seed": [3, 4]}),
    "corrected": ({}, {"correct_x0": lambda x0, t: x0.clamp(-1, 1)}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_with_options(name: str) -> None:
    torch._dynamo.reset()
    made, run = OPTIONS[name]
    net, sampler = Net(), fastdiff.Sampler("dpmpp2m_sde", 3, **made)
    net = net.double() if "dtype" in made else net
    want = sampler(net, OTHER, **run)
    compiled = torch.compile(lambda x: sampler(net, x, **run), fullgraph=True, backend="aot_eager")
    assert close(compiled(OTHER), want)


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    torch._dynamo.reset()
    net, sampler = Net(), fastdiff.Sampler("dpmpp2m_sde", 3, clip="dynamic")
    want = sampler(net, OTHER)
    compiled = torch.compile(lambda x: sampler(net, x), fullgraph=True)
    assert close(compiled(X), sampler(net, X)) and close(compiled(OTHER), want)


def test_a_network_that_changes_its_input_gives_the_right_sample_when_compiled() -> None:
    # Without a compiler it is an error; a compiler does not tell, so it is given a copy.
    torch._dynamo.reset()
    sampler = fastdiff.Sampler("dpm3", 3)
    want = sampler(lambda x, t: 0.5 * x, X)
    compiled = torch.compile(lambda x: sampler(lambda x, t: x.mul_(0.5), x), fullgraph=True, backend="aot_eager")
    assert close(compiled(X), want)


def test_runs_that_nobody_records_call_the_back_end_itself() -> None:
    at = torch.device("cpu"), torch.float32, torch.float32
    assert not tracing() and not isinstance(select(None, *at), Recorded)
    with FakeTensorMode():
        assert tracing() and isinstance(select(None, *at), Recorded)
        assert select("reference", *at).NAME == "reference"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["ode", "dpm_adaptive"])
def test_adaptive_methods_are_not_recorded(method: str) -> None:
    # A trace would keep the steps that one x led to.
    run = Run.__new__(Run)
    torch.nn.Module.__init__(run)
    run.net, run.sampler = Net(), fastdiff.Sampler(method, rtol=1e-2)  # type: ignore[arg-type]
    for record in (
        lambda: torch.jit.trace(run, (X,), check_trace=False),
        lambda: torch.export.export(run, (X,), strict=False),
        lambda: make_fx(run, tracing_mode="real")(X),
    ):
        with pytest.raises(RuntimeError, match=f"method '{method}' is adaptive: its steps depend on values"):
            record()
