"""A captured run: its static buffers, and how a call fills them before the graph is launched."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastdiff.ops import Coeffs
from fastdiff.run.loop import Run
from fastdiff.run.weights import Weights

SLOT = type("SLOT", (), {"__repr__": lambda self: "SLOT"})()
"""Stands for a tensor among the other values of the keyword arguments."""


class Leaves(NamedTuple):
    """The tensors of the model's keyword arguments, and all else about them."""

    tensors: list[torch.Tensor]
    rest: tuple[Any, ...]
    spec: Any

    def fill(self, tensors: list[torch.Tensor]) -> dict[str, Any]:
        """The keyword arguments with these tensors in their places."""
        given = iter(tensors)
        filled: dict[str, Any] = tree_unflatten([next(given) if v is SLOT else v for v in self.rest], self.spec)
        return filled


def leaves_of(kwargs: dict[str, Any]) -> Leaves:
    """The keyword arguments of a network, taken apart."""
    values, spec = tree_flatten(kwargs)
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    rest = tuple(SLOT if isinstance(v, torch.Tensor) else v for v in values)
    return Leaves(tensors, rest, spec)


class Sources(NamedTuple):
    """What a call's coefficients, times and bounds are copied from. A sampler's are made once and never written again:
    the same tensors need no second copy."""

    table: torch.Tensor
    draws: torch.Tensor
    clock: torch.Tensor
    x0: torch.Tensor | None
    numbers: torch.Tensor | None
    lo: torch.Tensor | None
    hi: torch.Tensor | None
    scale: torch.Tensor | None
    rows: torch.Tensor | None


def sources_of(r: Run) -> Sources:
    """The tensors of a run that hold these values."""
    c, program = r.coeffs, r.program
    x0 = None if program.x0 is None else program.x0[0]
    return Sources(c.table, c.draws, program.clock, x0, program.numbers, c.lo, c.hi, c.scale, c.rows)


def static_run(r: Run, leaves: Leaves) -> tuple[Run, torch.Tensor]:
    """A copy of the run whose every device value lies in a buffer of its own; `leaves` holds the static tensors. Beside
    it (3·B,) int32: the memory of the seeds and then of the indices."""
    c, program, batch = r.coeffs, r.program, len(r.coeffs.seeds)

    def own(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else t.clone()

    # In one buffer, so that one copy fills both.
    words = torch.empty(3 * batch, dtype=torch.int32, device=c.seeds.device)
    seeds, index = words.narrow(0, 0, 2 * batch).view(torch.int64), words.narrow(0, 2 * batch, batch)
    seeds.copy_(c.seeds)
    index.copy_(c.index)
    bounds = own(c.lo), own(c.hi), own(c.scale)
    coeffs = Coeffs(c.table.clone(), c.draws.clone(), seeds, index, *bounds, own(c.rows), c.inner)
    x0 = None if program.x0 is None else (program.x0[0].clone(), program.x0[1])
    network = r.network.with_kwargs(leaves.fill(leaves.tensors))
    program = dataclasses.replace(program, clock=program.clock.clone(), x0=x0, numbers=own(program.numbers))
    own_run = dataclasses.replace(r, coeffs=coeffs, program=program, evaluator=r.evaluator.on(network), note=None)
    return own_run, words


@dataclasses.dataclass(eq=False)
class Entry:
    """A captured run: the graph and the static buffers that it reads and writes. It does not keep the model alive.

    Attributes:
        words: the memory of the seeds and the indices.
        seeded: what the seeds' buffer holds, (seed, first_sample) of a call with one seed, or None.
        used: when it was last used, as the cache counts.
    """

    graph: Any
    pool: Any
    coeffs: Coeffs
    words: torch.Tensor
    clock: torch.Tensor
    x0: torch.Tensor | None
    numbers: torch.Tensor | None
    start: torch.Tensor
    result: torch.Tensor
    leaves: Leaves
    weights: Weights
    stream: Any
    sources: Sources | None = None
    seeded: tuple[int, int] | None = None
    used: int = 0

    @property
    def statics(self) -> Sources:
        """Where the sources are copied to."""
        c = self.coeffs
        return Sources(c.table, c.draws, self.clock, self.x0, self.numbers, c.lo, c.hi, c.scale, c.rows)

    def in_use(self) -> None:
        """Tell the allocator where another stream than the buffers' own reads them, perhaps beyond the entry's life."""
        if self.stream is None:
            return
        stream = torch.cuda.current_stream(self.start.device)
        if stream == self.stream:
            return
        buffers = (self.start, *self.statics, self.coeffs.seeds, self.coeffs.index, *self.leaves.tensors)
        for buffer in buffers:
            if buffer is not None:
                buffer.record_stream(stream)

    def load(self, sources: Sources) -> None:
        """Copy what is not there yet. On the device: no synchronisation."""
        before = self.sources
        if before is sources:
            return
        # What fails half-way is copied again.
        self.sources = None
        for i, (static, given) in enumerate(zip(self.statics, sources, strict=True)):
            if static is not None and given is not None and (before is None or before[i] is not given):
                static.copy_(given)
        self.sources = sources

    def seed(self, seed: int | list[int], first: int) -> None:
        """Fill seeds and indices, in one operation at most: one seed and samples from `first` on, or a seed for each
        sample. Seeds as signed 64-bit integers."""
        c, before = self.coeffs, self.seeded
        if isinstance(seed, int):
            if before == (seed, first):
                return
            if before is not None and before[1] == first:
                c.seeds.fill_(seed)
                self.seeded = seed, first
                return
        batch = len(c.index)
        words = np.empty(3 * batch, np.int32)
        words[: 2 * batch].view(np.int64)[:] = seed
        words[2 * batch :] = np.arange(first, first + batch) if isinstance(seed, int) else 0
        host = torch.from_numpy(words)
        if c.index.device.type == "cuda":
            host = host.pin_memory()
        self.seeded = None
        self.words.copy_(host, non_blocking=True)
        if isinstance(seed, int):
            self.seeded = seed, first
