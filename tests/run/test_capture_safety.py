"""The loop on a CUDA device that is not there: fake tensors, on which a wait for the device cannot even be expressed.

Anything that would read a device value on the host (`.item()`, `.cpu()`, `bool(tensor)`, `nonzero`) fails here, and so
does memory taken by the loop after its first stages. What a launch is given by value is listed, because a graph keeps
it.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers.methods import LOOPED
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff import ops
from fastdiff.bind import Binding
from fastdiff.guidance import UNGUIDED, ClassifierFree
from fastdiff.ops.layout import StageSpec
from fastdiff.run import loop
from fastdiff.run.evaluate import Hooks
from fastdiff.run.job import Job, Start
from fastdiff.run.loop import State
from fastdiff.run.network import Network

DEVICE = torch.device("cuda", 0)
SHAPE = (2, 3, 8, 8)
FIXED = sorted(LOOPED)

SYNCS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
}


class Watch(TorchDispatchMode):
    """Fails on a wait for the device or a copy to or from the host; counts what is allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func not in SYNCS, f"{func} waits for the device"
        if func in ALLOCATIONS:
            self.allocated += 1
        out = func(*args, **kwargs)
        if func in COPIES:
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            assert source.device.type == out.device.type, f"{func} copies between host and device"
        return out


class Recorder:
    """A back end that launches nothing, and keeps what it would have launched with."""

    NAME = "recorder"

    def __init__(self) -> None:
        self.launches: list[tuple[StageSpec, int, ops.Coeffs, ops.Buffers]] = []

    def supports(self, device, state, network):
        return True, ""

    def stage(self, spec, k, coeffs, buf) -> None:
        self.launches.append((spec, k, coeffs, buf))

    def normal_(self, out, seeds, index, draw, stream) -> None:
        pass


def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    return x * 0.5 + t.to(x.dtype).reshape(-1, 1, 1, 1)


def prepare(sampler: fastdiff.Sampler, backend, *, guided: bool = False, dtype: torch.dtype = torch.float32):
    """A run of `sampler` whose tensors are all on the fake device, and its start."""
    y = torch.ones(SHAPE[0], device=DEVICE)
    kwargs = {"cond": {"y": y}, "uncond": {"y": y}} if guided else {}
    model = Network(network, SHAPE[0], None, **kwargs)
    start = torch.zeros(SHAPE, dtype=sampler.dtype, device=DEVICE)
    seeds = torch.zeros(SHAPE[0], dtype=torch.int64, device=DEVICE)
    index = torch.zeros(SHAPE[0], dtype=torch.int32, device=DEVICE)
    binding = Binding("eps", ClassifierFree(2.0) if guided else UNGUIDED, clip=sampler.clip is not None)
    job = Job(Start(backend, start, seeds, index, None), model, dtype, binding, sampler.clip, Hooks())
    return sampler.engine.prepare(job), start


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    # Fake tensors have no address; every one of these is a tensor of its own, so none is recycled.
    monkeypatch.setattr("fastdiff.run.history.History.arrived", lambda self, out, own, k: out)
    # The method's binding asks for a CUDA runtime; the operator itself does not.
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, source: torch.ops.aten.copy_.default(self, source))
    with FakeTensorMode(), torch.no_grad():
        yield


@pytest.mark.parametrize(("clip", "guided"), [(None, False), ((-1.0, 1.0), True)], ids=["plain", "guided-and-clipped"])
@pytest.mark.parametrize("method", FIXED)
def test_the_loop_never_waits(fake, method: str, clip, guided: bool) -> None:
    """With the reference as back end: plain PyTorch, in which a wait would be seen."""
    sampler = fastdiff.Sampler(method, 4, clip=clip)
    r, start = prepare(sampler, ops.load("reference"), guided=guided)
    with Watch():
        result = loop._run(r, start, True, 0)
    assert result.device == DEVICE and result.shape == SHAPE


def test_dynamic_thresholding_never_waits(fake) -> None:
    r, start = prepare(fastdiff.Sampler("dpmpp2m", 4, clip="dynamic"), ops.load("reference"))
    with Watch():
        loop._run(r, start, True, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("method", ["dpm3", "unipc", "heun", "dpmpp2m_sde", "dpm3s", "ddpm"])
def test_nothing_is_allocated_after_the_first_stages(fake, method: str, guided: bool, dtype: torch.dtype) -> None:
    """Slots, network input and history are taken once; a stage after that takes none. The result may be one more."""
    backend = Recorder()
    sampler = fastdiff.Sampler(method, 12)
    r, start = prepare(sampler, backend, guided=guided, dtype=dtype)
    state = State(r, start, copies=True)
    warm = r.program.plan.history + 2
    counts = []
    while not state.done:
        out = network(state.input, state.time)
        with Watch() as watch:
            state.step(out)
        counts.append(watch.allocated)
    assert sum(counts[warm:-1]) == 0, counts
    assert counts[-1] <= 1


def test_what_a_launch_is_given_by_value(fake) -> None:
    """The structure and the row's number; all else is a tensor. A graph may keep these, since its signature holds
    them."""
    backend = Recorder()
    r, start = prepare(fastdiff.Sampler("dpmpp2m_sde", 6, clip=(-1, 1)), backend, guided=True)
    loop._run(r, start, True, 0)
    assert [k for _, k, _, _ in backend.launches] == list(range(7))
    for spec, k, coeffs, buf in backend.launches:
        assert spec == (r.program.opening if k == 0 else r.program.moves[k - 1].spec)
        assert all(isinstance(v, bool | int) for v in spec)
        assert coeffs is r.coeffs
        for holder in (coeffs, buf):
            for field in dataclasses.fields(holder):
                value = getattr(holder, field.name)
                if field.name == "inner":
                    assert value == 0, "without frames"
                    continue
                parts = value if isinstance(value, tuple) else (value,)
                assert all(p is None or isinstance(p, torch.Tensor) for p in parts), field.name


def test_structure_is_free_of_values(fake) -> None:
    """Two plans of one structure have equal programs: what a graph's signature compares."""
    made = [
        prepare(fastdiff.Sampler("ddim", 6, **options), Recorder())[0]
        for options in (
            {"eta": 0.5},
            {"eta": 1.0},
            {"eta": 0.5, "schedule": "cosine"},
            {"eta": 0.5, "spacing": "trailing"},
        )
    ]
    assert all(r.program.moves == made[0].program.moves and r.program.opening == made[0].program.opening for r in made)
    other = prepare(fastdiff.Sampler("ddim", 6, eta=0.0), Recorder())[0]
    assert other.program.moves != made[0].program.moves


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: float(x.max()),
    ],
    ids=["item", "bool", "cpu", "nonzero", "float"],
)
def test_the_watch_sees_a_wait(fake, spoil) -> None:
    """The guard itself: a network that waits for the device is caught."""
    r, start = prepare(fastdiff.Sampler("dpm3", 4), ops.load("reference"))

    def bad(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        spoil(x)
        return x

    r.network.model = bad
    with pytest.raises(Exception), Watch():  # noqa: B017 - fake tensors have an exception of their own for each
        loop._run(r, start, True, 0)


def test_simple_namespace_models_have_no_hidden_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device that is asked for and not there is an error, not a run on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RuntimeError, match="torch sees no CUDA device"):
        fastdiff.sample(lambda x, t: SimpleNamespace(sample=x), shape=SHAPE, device="cuda")
