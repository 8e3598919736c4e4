"""Ticks as graphs, with stand-ins for a GPU: one capture a bucket, whatever enters, leaves or changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.graph_stand_in import FakeCapture, stand_in
from helpers.pages import told

import fastdiff
from fastdiff import guidance
from fastdiff.solvers import METHODS

SHAPE = (2, 4, 4)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    yield from stand_in(monkeypatch)


class Net(torch.nn.Module):
    """Exact operations alone, with a weight and a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x / (1.0 + x * x) * self.weight + y.reshape(-1, 1, 1, 1) * 0.125


def labelled(y: float) -> dict[str, torch.Tensor]:
    return {"y": torch.tensor([y])}


def alone(net: Net, method: str, steps: int, **given: Any) -> torch.Tensor:
    if given.get("guidance") is None:
        given["model_kwargs"] = given.pop("cond")
        given.pop("uncond", None)
    return fastdiff.sample(net, shape=(1, *SHAPE), method=method, steps=steps, schedule="ddpm", graph=False, **given)[0]


def test_one_capture_a_bucket(capture: type[FakeCapture]) -> None:
    """A hundred requests of all methods, with guidance, clips, previews and cancellations, bit-equal to runs alone."""
    net, rng = Net(), random.Random(5)
    engine = fastdiff.Engine(net, slots=4, shape=SHAPE, schedule="ddpm", graph=True)
    methods = [name for name, m in METHODS.items() if not m.adaptive]
    forms = (None, 3.0, guidance.Interval(2.0, 0.3, 5.0), guidance.Rescale(3.0))
    found = []
    for i in range(100):
        given = {"cond": labelled(1.0), "uncond": labelled(0.0), "guidance": forms[i % 4], "seed": i}
        given["clip"] = (None, (-1.0, 1.0), "dynamic")[i % 3]
        steps = 2 + i % 3
        found.append((engine.submit(methods[i % len(methods)], steps, previews=i % 5 == 0, **given), steps, given))
        if rng.random() < 0.1:
            rng.choice(found)[0].cancel()
        for _ in range(rng.randrange(3)):
            engine.step()
    engine.run()
    # 1, 2, 4 and 8 rows of the network's input.
    assert engine.stats.captures == capture.captures <= 4
    assert capture.replays == engine.stats.ticks
    done = [one for one in found if not one[0].cancelled()]
    assert len(done) > 80
    for request, steps, given in done:
        assert torch.equal(request.result(), alone(net, request.method, steps, **given)), (request, given)


def test_guidance_changes_without_a_capture(capture: type[FakeCapture]) -> None:
    net = Net()
    given: dict[str, Any] = {"cond": labelled(1.0), "uncond": labelled(0.0), "seed": 3}
    engines = [fastdiff.Engine(net, slots=2, shape=SHAPE, schedule="ddpm", graph=g) for g in (True, False)]
    requests = [e.submit("dpm3", 6, guidance=3.0, **given) for e in engines]
    for e, request in zip(engines, requests, strict=True):
        e.step()
        request.guidance = 5.0
        e.run()
    assert capture.captures == 1
    assert torch.equal(requests[0].result(), requests[1].result())
    assert not torch.equal(requests[0].result(), alone(net, "dpm3", 6, guidance=3.0, **given))


def test_weights_that_moved_are_captured_again(capture: type[FakeCapture]) -> None:
    net = Net()
    engine = fastdiff.Engine(net, slots=1, shape=SHAPE, schedule="ddpm", graph=True, buckets=(1,))
    engine.submit("ddim", 3, cond=labelled(0.0)).result()
    net.weight.data = torch.full((), 0.5)
    moved = engine.submit("ddim", 3, cond=labelled(0.0), seed=1).result()
    assert capture.captures == 2
    assert torch.equal(moved, alone(net, "ddim", 3, cond=labelled(0.0), seed=1))


def test_what_cannot_be_captured(capture: type[FakeCapture]) -> None:
    """Eagerly with one warning, or an error where graphs were asked for; an error of the network stays its own."""
    net = Net()
    capture.failure = RuntimeError("operation not permitted when stream is capturing")
    engine = fastdiff.Engine(net, slots=2, shape=SHAPE, schedule="ddpm")
    requests = [engine.submit("unipc", 4, seed=i, cond=labelled(0.0)) for i in range(3)]
    with pytest.warns(UserWarning, match="cannot be captured in a CUDA graph .*; the engine runs eagerly"):
        engine.run()
    for i, request in enumerate(requests):
        assert torch.equal(request.result(), alone(net, "unipc", 4, seed=i, cond=labelled(0.0)))
    strict = fastdiff.Engine(net, slots=2, shape=SHAPE, schedule="ddpm", graph=True)
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
        strict.submit(cond=labelled(0.0)).result()
    capture.failure = None
    broken = fastdiff.Engine(lambda x, t: x[0, 7], slots=2, shape=SHAPE, schedule="ddpm", graph=True)
    with pytest.raises(IndexError):
        broken.submit().result()


class Restless(Net):
    """Gives its weight other memory whenever it runs."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.weight.data = self.weight.data.clone()
        self.kept = [*getattr(self, "kept", []), self.weight.data]
        return super().forward(x, t, y)


def test_weights_that_never_stay(capture: type[FakeCapture]) -> None:
    engine = fastdiff.Engine(Restless(), slots=1, shape=SHAPE, schedule="ddpm", graph=True)
    with pytest.raises(RuntimeError, match="gives its parameters or buffers other memory whenever it runs"):
        engine.submit("ddim", 3, cond=labelled(0.0)).result()


REHEARSED = """
import json, sys
sys.path.insert(0, {tests!r})
from helpers import cuda_on_cpu
cuda_on_cpu.install()
import torch, fastdiff

def network(x, t, y):
    return x / (1.0 + x * x) + y.reshape(-1, 1, 1, 1) * 0.125

engine = fastdiff.Engine(network, slots=4, shape=(1, 4, 4), schedule="ddpm", backend="cuda", device="cuda", graph=True)
label = lambda y: {{"y": torch.tensor([y])}}
def submit(i):
    form = 2.0 if i % 2 else None
    given = {{"guidance": form, "cond": label(1.0), "uncond": label(0.0)}}
    return engine.submit(("dpm3", "unipc", "ddpm", "heun")[i % 4], 3, seed=i, **given)
requests = [submit(i) for i in range(12)]
engine.step()
requests[0].guidance = 4.0
requests[1].guidance = 3.0
requests[2].cancel()
engine.run()
eager = fastdiff.Engine(network, slots=4, shape=(1, 4, 4), schedule="ddpm", backend="cpu", graph=False)
engine, graphs = eager, engine
same = [torch.equal(submit(i).result(), requests[i].result()) for i in range(3, 12)]
print(json.dumps({{"same": same, "captures": graphs.stats.captures, "ticks": graphs.stats.ticks}}))
"""


def test_a_rehearsal_of_cuda(tmp_path: Path) -> None:
    """With the capture of CUDA itself, on a device that the CPU plays: a wait within a graph raises there, and what a
    launch was given by value is stale in a replay."""
    if not fastdiff.backends()["cpu"][0]:
        pytest.skip(f"no back end 'cpu' to play the device: {fastdiff.backends()['cpu'][1]}")
    tests = str(Path(__file__).resolve().parents[1])
    found = told(REHEARSED.format(tests=tests), tmp_path)
    assert all(found["same"]) and found["captures"] <= 4 < found["ticks"]
