"""A stand-in for the CUDA graph that runs on the CPU.

It records the loop's body once, and runs it again at every replay on the same static buffers: what a graph does. A
value that the capture had baked in instead of reading it from a buffer would show as a stale result.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
import torch

import fastdiff
from fastdiff.run import graph


class FakePool:
    def __init__(self, device: torch.device) -> None:
        self.lock = threading.RLock()

    @contextlib.contextmanager
    def turn(self):
        with self.lock:
            yield


class FakeCapture:
    """Counts captures and replays; `failure` is raised instead of a capture."""

    DEVICE = "cpu"
    captures = replays = 0
    failure: Exception | None = None

    def __init__(self, device: torch.device, pool: FakePool) -> None:
        self.body = self.result = None

    @staticmethod
    def refusal() -> str | None:
        return None

    @staticmethod
    def under_way() -> bool:
        return False

    @staticmethod
    def make_pool(device: torch.device) -> FakePool:
        return FakePool(device)

    def warm_up(self, body) -> None:
        body()

    def capture(self, body) -> torch.Tensor:
        if type(self).failure is not None:
            raise type(self).failure
        type(self).captures += 1
        # Only the network's and the static buffers' identity may be kept: the result of the recording is poisoned.
        self.body, self.result = body, body().fill_(float("nan"))
        return self.result

    def replay(self) -> None:
        type(self).replays += 1
        self.result.copy_(self.body())


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    """The stand-in in the place of CUDA's graphs, with an empty cache: the body of a fixture."""

    class Capture(FakeCapture):
        pass

    monkeypatch.setattr(graph, "CAPTURE", Capture)
    graph.clear_graphs()
    yield Capture
    graph.clear_graphs()


class Net(torch.nn.Module):
    """A small network with weights, that depends on x, t and y."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        h = torch.tanh(self.conv(x) + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)
        return h if y is None else h + y.reshape(-1, 1, 1, 1)


SHAPE = (3, 2, 5, 5)


def pair(net: Net, *, method: str = "dpm3", build: dict | None = None, **call: object):
    """The same call with graph=True and eagerly."""
    build = {"steps": 4, **(build or {})}
    ours = fastdiff.Sampler(method, graph=True, **build)(net, **call)
    eager = fastdiff.Sampler(method, graph=False, **build)(net, **call)
    return ours, eager
