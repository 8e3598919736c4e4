"""Signatures, the filling of static buffers, refusals and the fall-back, with a stand-in for the CUDA graph."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from helpers.graph_stand_in import SHAPE, FakeCapture, Net, pair, stand_in
from helpers.methods import LOOPED

import fastdiff
from fastdiff.run import graph


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    yield from stand_in(monkeypatch)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("method", sorted(LOOPED))
def test_every_method_captures_and_replays(fake, net, method: str) -> None:
    ours, eager = pair(net, method=method, shape=SHAPE, seed=1)
    assert torch.equal(ours, eager)
    again, eager = pair(net, method=method, shape=SHAPE, seed=2)
    assert torch.equal(again, eager) and not torch.equal(again, ours)
    assert (fake.captures, fake.replays) == (1, 2)


def test_a_path_of_noise_is_a_value(fake, net) -> None:
    for build, call in (
        ({}, {}),
        ({"spacing": "trailing"}, {}),
        ({"eta": 0.5}, {"seed": 5}),
        ({}, {"seed": [4, 5, 6]}),
    ):
        options = {"eta": 1.0, "schedule": "vp_linear", **build}
        ours, eager = pair(net, method="ddim", build=options, shape=SHAPE, noise="brownian", **call)
        assert torch.equal(ours, eager)
    assert (fake.captures, fake.replays) == (1, 4)


def test_every_value_may_change_between_replays(fake, net) -> None:
    """Seed, first_sample, x, schedule, times, eta, guidance weight, conditioning, bounds: none is captured."""
    ones = torch.ones(3)
    base = {"shape": SHAPE, "guidance_scale": 2.0, "cond": {"y": ones}, "uncond": {"y": 0 * ones}}
    changes = [
        ({}, {}),
        ({}, {"seed": 5}),
        ({}, {"first_sample": 7}),
        ({}, {"seed": [4, 5, 6]}),
        ({}, {"shape": None, "x": torch.full(SHAPE, 0.25)}),
        ({}, {"guidance_scale": 0.5}),
        ({}, {"cond": {"y": 3 * ones}}),
        ({}, {"uncond": {"y": -ones}}),
        ({"schedule": "cosine"}, {}),
        ({"spacing": "trailing"}, {}),
        ({"eta": 0.25}, {}),
        ({"clip": (-0.5, 0.25)}, {}),
        ({}, {}),
    ]
    seen = []
    for build, call in changes:
        options = {"eta": 1.0, "clip": (-1.0, 1.0), **build}
        ours, eager = pair(net, method="ddim", build=options, **{**base, **call})
        assert torch.equal(ours, eager), (build, call)
        seen.append(ours)
    assert fake.captures == 1
    assert torch.equal(seen[0], seen[-1])
    assert all(not torch.equal(seen[0], s) for s in seen[1:-1])


def test_a_replay_writes_into_nothing_that_is_the_caller_s(fake, net) -> None:
    """Samplers that share a graph keep their tables and times, and what one call was given is not the next one's."""
    options = ({"schedule": "ddpm"}, {"schedule": "cosine", "spacing": "trailing"})
    samplers = [fastdiff.Sampler("ddim", 4, clip=(-1, 1), graph=True, **o) for o in options]
    eager = [fastdiff.Sampler("ddim", 4, clip=(-1, 1), graph=False, **o) for o in options]
    given = [{"y": torch.full((3,), float(i))} for i in range(2)]
    starts = [torch.full(SHAPE, 0.5 - i) for i in range(2)]
    for i in (0, 1, 0, 1):
        ours = samplers[i](net, starts[i], model_kwargs=given[i])
        assert torch.equal(ours, eager[i](net, starts[i], model_kwargs=given[i])), i
    assert fake.captures == 1
    assert all(torch.equal(g["y"], torch.full((3,), float(i))) for i, g in enumerate(given))
    assert all(torch.equal(x, torch.full(SHAPE, 0.5 - i)) for i, x in enumerate(starts))
    for i in range(2):
        (ours,), (want,) = samplers[i].engine.programs.values(), eager[i].engine.programs.values()
        assert torch.equal(ours.clock, want.clock) and torch.equal(ours.values, want.values)


def test_two_quantiles_make_two_graphs(fake, net) -> None:
    """The quantile is a launch argument, which a graph keeps."""
    for i, q in enumerate((0.5, 0.9)):
        ours, eager = pair(net, method="dpmpp2m", build={"clip": fastdiff.Dynamic(q, 0.01)}, shape=SHAPE)
        assert torch.equal(ours, eager) and fake.captures == i + 1


def test_structure_makes_another_graph(fake, net) -> None:
    calls = [
        ({}, {"shape": SHAPE}),
        ({"steps": 5}, {"shape": SHAPE}),
        ({}, {"shape": (4, 2, 5, 5)}),
        ({"dtype": torch.float64}, {"shape": SHAPE}),
        ({"clip": (-1, 1)}, {"shape": SHAPE}),
        ({"prediction": "v"}, {"shape": SHAPE}),
        ({}, {"shape": SHAPE, "model_kwargs": {"y": torch.zeros(3)}}),
        ({"backend": "reference"}, {"shape": SHAPE}),
    ]
    for i, (build, call) in enumerate(calls):
        ours, eager = pair(net, build=build, **call)
        assert torch.equal(ours, eager)
        assert fake.captures == i + 1
    net.train(not net.training)
    pair(net, shape=SHAPE)
    assert fake.captures == len(calls) + 1


class Picky(Net):
    """Its arguments are a structure: a flag, tensors by name, tensors in a list of any length."""

    def forward(self, x, t, flag=None, parts=(), **named):
        h = super().forward(x, t)
        if flag is not None:
            h = h * {int: 0.5, bool: 0.75, float: 1.5}[type(flag)]
        h = h + (0.25 if isinstance(parts, list) else 0.5) * sum(p.reshape(-1, 1, 1, 1) for p in parts)
        return SimpleNamespace(sample=h - named["a"] if "a" in named else h + sum(named.values()))


def test_the_structure_of_arguments_makes_another_graph_and_their_tensors_do_not(fake) -> None:
    """A tree of tensors, names and plain values, by a model that answers as diffusers' do."""
    torch.manual_seed(0)
    model, one, two = Picky(), torch.ones(3), torch.full((3,), 2.0)
    calls = [
        *({"flag": flag} for flag in (1, True, 1.0)),
        *({name: torch.full((1,), 0.5)} for name in "ab"),
        *({"parts": parts} for parts in ([one, two], (one, two), [one])),
    ]
    for i, call in enumerate(calls):
        ours, eager = pair(model, shape=SHAPE, model_kwargs=call)
        assert torch.equal(ours, eager), call
        assert fake.captures == i + 1, call
    before = fake.captures
    for parts in ([two, one], [one, one]):
        ours, eager = pair(model, shape=SHAPE, model_kwargs={"parts": parts})
        assert torch.equal(ours, eager)
    ours, eager = pair(model, shape=SHAPE, model_kwargs={"a": torch.full((1,), -3.0)})
    assert torch.equal(ours, eager)
    assert fake.captures == before


def test_auto_runs_eagerly_then_captures_then_replays(fake, net) -> None:
    sampler = fastdiff.Sampler("dpm3", 4, graph="auto")
    counts = []
    for _ in range(4):
        sampler(net, shape=SHAPE)
        counts.append((fake.captures, fake.replays))
    assert counts == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_results_are_fresh_and_out_is_written(fake, net) -> None:
    sampler = fastdiff.Sampler("dpm3", 4, graph=True)
    first = sampler(net, shape=SHAPE, seed=1)
    kept = first.clone()
    second = sampler(net, shape=SHAPE, seed=2)
    assert torch.equal(first, kept) and first.data_ptr() != second.data_ptr()
    out = torch.full(SHAPE, float("nan"))
    assert sampler(net, shape=SHAPE, seed=1, out=out) is out
    assert torch.equal(out, kept)


def test_auto_falls_back_with_one_warning(fake, net) -> None:
    fake.failure = RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
    sampler = fastdiff.Sampler("dpm3", 4, graph="auto")
    want = sampler(net, shape=SHAPE)
    with pytest.warns(UserWarning, match=r"runs eagerly, with the same result: it waits for the device"):
        assert torch.equal(sampler(net, shape=SHAPE), want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sampler(net, shape=SHAPE), want)
    # The cache is usable: another signature captures.
    fake.failure = None
    pair(net, shape=(1, 2, 5, 5))
    assert fake.captures == 1


def test_the_reason_is_the_first_error(fake, net) -> None:
    """Ending a capture that failed raises an error of its own, in whose context the cause is."""
    failure = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    failure.__context__ = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    fake.failure = failure
    with pytest.raises(RuntimeError, match=r"cannot be captured: it waits for the device"):
        fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=SHAPE)


def test_a_failed_capture_gives_its_memory_back_before_the_eager_run(fake, net, monkeypatch) -> None:
    """An error holds the frames that it passed; out of memory, what they hold would be missing again."""
    held = []

    def capture(self, body):
        held.append(weakref.ref(self))
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(fake, "capture", capture)
    sampler = fastdiff.Sampler("dpm3", 4, graph="auto")

    def model(x, t):
        assert not held or held[0]() is None
        return net(x, t)

    sampler(model, shape=SHAPE)
    with pytest.warns(UserWarning, match="not enough memory for a graph"):
        sampler(model, shape=SHAPE)
    assert held


def test_a_tensor_elsewhere_would_be_baked(fake, net) -> None:
    """A scalar on the host, which operations on the device take by value."""
    with pytest.raises(RuntimeError, match="a tensor on meta in model_kwargs or cond would be read once"):
        fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=SHAPE, model_kwargs={"y": torch.ones(3, device="meta")})


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_networks_that_make_graphs_of_their_own_are_refused(fake, net, mode: str) -> None:
    """torch.compile's mode tells, before anything is compiled."""
    compiled = torch.compile(net, mode=mode)
    if mode in ("default", "max-autotune-no-cudagraphs"):
        assert not graph._has_own_graphs(compiled) and not graph._has_own_graphs(net)
        return
    with pytest.raises(RuntimeError, match=r"graph=True: the model makes or replays CUDA graphs of its own, .*mode="):
        fastdiff.Sampler("dpm3", 4, graph=True)(compiled, shape=SHAPE)
    assert fake.captures == 0


def test_a_replay_on_another_stream_keeps_every_static_buffer(fake, net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator is told of each, so that none is given away before that replay is over."""
    y = {"cond": {"y": torch.ones(3)}, "uncond": {"y": torch.zeros(3)}, "guidance_scale": 2.0}
    fastdiff.Sampler("ddpm", 4, clip="dynamic", graph=True)(net, shape=SHAPE, **y)
    (entry,) = graph.CACHE.entries.values()
    told: list[tuple[int, object]] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: told.append((id(self), stream)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "another")
    entry.in_use()
    assert not told
    entry.stream = "another"
    entry.in_use()
    assert not told
    entry.stream = "its own"
    entry.in_use()
    c = entry.coeffs
    static = [entry.start, entry.clock, entry.x0, c.table, c.draws, c.seeds, c.index, c.lo, c.hi, c.scale]
    assert {name for name, _ in told} == {id(t) for t in (*static, *entry.leaves.tensors)}
    assert len(entry.leaves.tensors) == 1 and all(t is not None for t in static)
    assert {stream for _, stream in told} == {"another"}


def test_a_model_that_moves_its_buffers_is_refused(fake) -> None:
    class Moves(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(1))
            self.kept: list[torch.Tensor] = []

        def forward(self, x, t, y=None):
            self.kept.append(self.last)
            self.last = t.clone()
            return super().forward(x, t, y)

    with pytest.raises(RuntimeError, match="gives its parameters or buffers other memory"):
        fastdiff.Sampler("dpm3", 4, graph=True)(Moves(), shape=SHAPE)


@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m", "ddim"])
def test_the_prediction_of_x0_is_part_of_the_structure(fake, net, method: str) -> None:
    """With prediction="x0" the dynamic threshold looks at the output alone, otherwise at u as well."""
    for prediction in ("x0", "eps", "v", "x0"):
        build = {"clip": "dynamic", "prediction": prediction}
        ours, eager = pair(net, method=method, build=build, shape=SHAPE)
        assert torch.equal(ours, eager), prediction


def test_true_raises_with_the_reason(fake, net) -> None:
    fake.failure = RuntimeError("Expected all tensors to be on the same device, but found cpu")
    with pytest.raises(RuntimeError, match=r"graph=True: the model cannot be captured: it holds CPU tensors"):
        fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=SHAPE)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ({"callback": lambda *a: None}, "callback"),
        ({"return_trajectory": True}, "return_trajectory"),
        ({"check_finite": True}, "check_finite"),
        ({"noise": lambda d, like: torch.zeros_like(like)}, "noise"),
        ({"classifier_grad": lambda x, t: x}, "classifier_grad"),
    ],
)
def test_host_work_between_calls_is_refused_by_name(fake, net, call: dict, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"graph=True: {name} runs on the host"):
        fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=SHAPE, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            fastdiff.Sampler("dpm3", 4, graph="auto")(net, shape=SHAPE, **call)
    assert fake.captures == 0


def test_unhashable_arguments_are_refused(fake, net) -> None:
    def model(x, t, table):
        return net(x, t)

    call = {"shape": SHAPE, "model_kwargs": {"table": {1, 2}}}
    with pytest.raises(RuntimeError, match="neither tensors nor hashable"):
        fastdiff.Sampler("dpm3", 4, graph=True)(model, **call)
    with pytest.warns(UserWarning, match="runs eagerly, with the same result: model_kwargs holds values"):
        fastdiff.Sampler("dpm3", 4, graph="auto")(model, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdiff.Sampler("dpm3", 4, graph="auto")(model, **call)


def test_without_cuda_true_says_why(net) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RuntimeError, match="graph=True: it needs a CUDA device, and torch sees none here"):
        fastdiff.Sampler("dpm3", 4, graph=True)
    assert torch.isfinite(fastdiff.Sampler("dpm3", 4, graph="auto")(net, shape=SHAPE)).all()


def test_step_equals_call(net) -> None:
    """Callers who own the loop get the same numbers, one stage at a time."""
    for method, scale in (("unipc", None), ("heun", 2.0), ("dpmpp2m_sde", None), ("dpm3s", 0.5)):
        for dtype in (torch.float32, torch.float64):
            sampler = fastdiff.Sampler(method, 5, dtype=dtype)
            network = Net().to(torch.float32)
            y = {"cond": {"y": torch.ones(3)}, "uncond": {"y": torch.zeros(3)}, "guidance_scale": scale}
            want = sampler(network, shape=SHAPE, seed=3, **(y if scale is not None else {}))
            labels = torch.cat([torch.ones(3), torch.zeros(3)])
            state = sampler.begin(shape=SHAPE, seed=3, guidance_scale=scale, network_dtype=torch.float32)
            buffer = torch.empty_like(state.input)
            evaluations = 0
            while not state.done:
                with torch.no_grad():
                    buffer.copy_(network(state.input, state.time, labels if scale is not None else None))
                state = sampler.step(state, buffer)
                evaluations += 1
            assert torch.equal(state.x, want), (method, dtype)
            assert evaluations == sampler.plan.nfe


def test_step_checks_its_output(net) -> None:
    sampler = fastdiff.Sampler("dpm3", 2)
    state = sampler.begin(shape=SHAPE)
    with pytest.raises(ValueError, match=r"returned shape \(3, 2, 4, 5\), expected \(3, 2, 5, 5\)"):
        sampler.step(state, torch.zeros(3, 2, 4, 5))
    for _ in range(2):
        state = sampler.step(state, torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="the run is complete"):
        sampler.step(state, torch.zeros(SHAPE))


@pytest.mark.parametrize("bad", [torch.zeros(2, 2, 5, 5), torch.zeros(SHAPE, dtype=torch.float64), "x"])
def test_out_is_checked(net, bad) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^out "):
        fastdiff.sample(net, shape=SHAPE, out=bad)
