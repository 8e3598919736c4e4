"""One CUDA graph for each bucket, with the conditions' static memory. Captured once, replayed for ever."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from fastdiff.engine.batch import Batch, Shape
from fastdiff.run import graph
from fastdiff.run.entry import Leaves, leaves_of
from fastdiff.run.network import Network
from fastdiff.run.weights import Weights


@dataclass
class Entry:
    """A captured tick.

    Attributes:
        out: the network's output, which every replay fills.
        leaves: the conditions that the graph reads.
        version: of the batch whose conditions lie there.
        weights: where the network's lay when it was captured.
    """

    graph: Any
    out: torch.Tensor
    leaves: Leaves
    version: int
    weights: Weights


class Uncaptured(RuntimeError):
    """A tick cannot be a graph."""


class Graphs:
    """Ticks of one engine as graphs that share one pool of memory.

    Attributes:
        captures: how many were made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.captures = device, 0
        self.pool = graph.CAPTURE.make_pool(device)
        self.entries: dict[Hashable, Entry] = {}
        # Of the last tick: its version, its conditions, their key and what was captured for them.
        self.last = -1
        self.found: Leaves | None = None
        self.key: Hashable = None
        self.entry: Entry | None = None

    def tick(self, batch: Batch, shape: Shape, network: Network, version: int) -> torch.Tensor:
        """Replay the tick of this shape, or capture it first. `version` tells one set of conditions from the next."""
        found, key = self.found, self.key
        if found is None or self.last != version:
            found = leaves_of(network.kwargs)
            key = (shape, tuple((t.shape, t.dtype) for t in found.tensors), found.rest, str(found.spec))
            self.last, self.found, self.key = version, found, key
            self.entry = self.entries.get(key)
        entry = self.entry
        if entry is not None and entry.weights.moved():
            # Before the launch, which would read the old places.
            del self.entries[key]
            entry = self.entry = None
        if entry is None:
            entry = self.entry = self.entries[key] = self._capture(batch, shape, network, found, version)
        with self.pool.turn():
            if entry.version != version:
                for kept, given in zip(entry.leaves.tensors, found.tensors, strict=True):
                    kept.copy_(given)
                entry.version = version
            entry.graph.replay()
        return entry.out

    def _capture(self, batch: Batch, shape: Shape, network: Network, found: Leaves, version: int) -> Entry:
        leaves = found._replace(tensors=[t.clone() for t in found.tensors])
        static = network.with_kwargs(leaves.fill(leaves.tensors))
        body = functools.partial(batch.tick, shape, static)
        # The warm-up is a tick like any other, which must not count.
        memory = (batch.states, batch.given, batch.seats.rows, batch.before)
        with self.pool.turn():
            before = [t.clone() for t in memory]
            made = graph.CAPTURE(self.device, self.pool)
            try:
                # What it raises is the network's own.
                made.warm_up(body)
                weights = Weights(network.model)
                out = _recorded(made, body)
            finally:
                for kept, value in zip(memory, before, strict=True):
                    kept.copy_(value)
        if weights.moved():
            raise Uncaptured("the network gives its parameters or buffers other memory whenever it runs")
        self.captures += 1
        return Entry(made, out, leaves, version, weights)


def _recorded(made: Any, body: Callable[[], torch.Tensor]) -> torch.Tensor:
    try:
        out: torch.Tensor = made.capture(body)
        return out
    except Exception as error:
        told = "".join(str(error).strip().splitlines()[:1])
        raise Uncaptured(f"the network cannot be captured in a CUDA graph [{type(error).__name__}: {told}]") from error
