"""The memory on the device: states, history, rows and times of all requests under way, and one tick over them.

The requests whose turn it is have the first slots, without a gap. Those that are parked lie behind all slots, where no
launch reaches them. A tick gathers the network's input (the slots, then the unconditional halves, then copies of slot 0
that fill the bucket up), calls the network, and runs one stage, each slot with its own table row, seed and bounds. Rows
and times advance on the device. Nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastdiff.engine.table import IDLE, Rows, put, sent
from fastdiff.ops import Backend, Buffers, Coeffs, Launch
from fastdiff.ops.layout import StageSpec
from fastdiff.run.evaluate import clamped

Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The network with its conditions: (input, times) -> the output."""


@dataclass(frozen=True)
class Shape:
    """What the host knows of a tick.

    Attributes:
        stage: slots that the stage runs on.
        network: rows of the network's input: a bucket.
        spec: the union of the rows' structures.
        history: how many earlier evaluations are read.
        whole: whether the network's input is the slots and nothing else.
        direct: whether u is the network's input as it is; else the stage writes it into memory of its own.
        before: whether u is kept beside, for predicted x0 that are asked for after the tick.
    """

    stage: int
    network: int
    spec: StageSpec
    history: int
    whole: bool
    direct: bool
    before: bool


class Batch:
    """The memory of all slots.

    Args:
        slots: how many requests a tick takes at most.
        parked: how many more have a place.
        shape: of one sample.
        dtype, network_dtype: of the state, and of the network's input.
        widest: the most rows that the network is called on.
        history: how many evaluations are kept.
        ring: whether the history turns by its pointers; else its memory is copied, as a graph needs, which has fixed
            addresses.
        own: whether each row says how its history lies, of which then no more is touched than the row needs.
    """

    def __init__(
        self,
        slots: int,
        parked: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        network_dtype: torch.dtype,
        rows: Rows,
        backend: Backend,
        widest: int,
        history: int,
        ring: bool,
        own: bool,
    ) -> None:
        device = rows.values.device
        self.table, self.backend, self.own_history = rows, backend, own
        places = slots + parked
        # x, u, and the history.
        self.states = torch.zeros((2 + history, places, *shape), dtype=dtype, device=device)
        self.memory = list(self.states)
        self.x, self.u = self.memory[:2]
        # h1, h2, ... lie in memory[order[0]], memory[order[1]], ...
        self.order = list(range(2, 2 + history))
        # The slots that the last tick took; and of all other places, the order that held when they were left.
        self.taken = 0
        self.left = [tuple(self.order)] * places
        self.fresh = None if ring else torch.zeros_like(self.x[:slots])
        self.before = torch.zeros_like(self.x[:slots])
        self.given = torch.zeros((places, *shape), dtype=network_dtype, device=device)
        self.own_memory = [t.untyped_storage().data_ptr() for t in (self.states, self.given)]
        # Of each slot: the row and the sample's index; its seed; lo, hi and scale of x0.
        self.numbers = torch.zeros((2, places), dtype=torch.int32, device=device)
        self.seeds = torch.zeros(places, dtype=torch.int64, device=device)
        self.bounds = torch.zeros((3, places), dtype=dtype, device=device)
        # The slot of each row of the network's input; and of each slot, the row of its unconditional half.
        self.source = torch.zeros(widest, dtype=torch.int64, device=device)
        self.partner = torch.zeros(slots, dtype=torch.int64, device=device)
        self.out: torch.Tensor | None = None
        # Whether the network leaves its input as it is; None until it has run.
        self.spares: bool | None = None
        self.read: torch.dtype | None = None
        self._coeffs: dict[int, Coeffs] = {}
        self._launcher = getattr(backend, "launcher", None)
        self._launches: dict[tuple[int, torch.dtype, int], Launch] = {}

    def coeffs(self, count: int) -> Coeffs:
        """Of the first `count` slots, each with its own row."""
        found = self._coeffs.get(count)
        if found is None:
            rows, index = self.numbers[:, :count]
            lo, hi, scale = self.bounds[:, :count]
            table = self.table
            found = Coeffs(table.values, table.draws, self.seeds[:count], index, lo, hi, scale, rows)
            self._coeffs[count] = found
        return found

    def own(self, slot: int) -> Coeffs:
        """Of one slot, for a launch with a row that the host knows."""
        at, (lo, hi, scale), table = slice(slot, slot + 1), self.bounds, self.table
        return Coeffs(table.values, table.draws, self.seeds[at], self.numbers[1, at], lo[at], hi[at], scale[at])

    def enter(
        self, slot: int, x: torch.Tensor, seed: torch.Tensor, index: torch.Tensor, bounds: tuple[float, float]
    ) -> None:
        """A new request's start, (1, ...): the rest of the slot is zero, so that no NaN is left of another's."""
        self.states[2:, slot].zero_()
        self.states[:2, slot].copy_(x)
        self.given[slot].copy_(x[0])
        self.seeds[slot : slot + 1].copy_(seed)
        self.numbers[1, slot : slot + 1].copy_(index)
        put(self.bounds[:, slot], torch.tensor((*bounds, 1.0), dtype=x.dtype))

    def seat(self, moves: Sequence[tuple[int, int]], count: int) -> None:
        """Everything of some places into others, all at once; then the first `count` slots are those of the next tick.

        The others keep the history as it lies: the order goes on turning without them.
        """
        now = tuple(self.order)
        self.left[: self.taken] = [now] * self.taken
        if moves:
            places = len(self.given)
            sources = np.array([[k * places + source for k in (0, 1, *self.left[source])] for source, _ in moves])
            ends = np.array([[k * places + to for k in (0, 1, *now)] for _, to in moves])
            whole, alone = (
                [sent(i, self.x.device) for i in at] for at in ((sources, ends), (sources[:, 0], ends[:, 0]))
            )
            for memory, dim, (source, to) in (
                (self.states.flatten(0, 1), 0, whole),
                (self.given, 0, alone),
                (self.seeds, 0, alone),
                (self.numbers, 1, alone),
                (self.bounds, 1, alone),
            ):
                memory.index_copy_(dim, to, memory.index_select(dim, source))
            for _, place in moves:
                self.left[place] = now
        if count < self.taken:
            self.numbers[0, count : self.taken].fill_(IDLE)
        self.taken = count

    def clear(self) -> None:
        """Nobody is there any more. Nothing here asks anything of the device, which may be broken."""
        self.table.free = [(IDLE + 1, self.table.capacity - 1)]
        self.order[:] = range(2, len(self.memory))
        # So that the next seats leave every other slot's row idle.
        self.taken = len(self.partner)

    def run(self, slot: int, row: int, spec: StageSpec, done: int, depth: int) -> None:
        """One table row of one slot without a network: an opening, or noise between two evaluations, of which `done`
        were made, and the last `depth` kept."""
        at = slice(slot, slot + 1)
        order = [2 + (done - 1 - i) % depth for i in range(depth)] if self.own_history else self.order
        x, u = self.x[at], self.u[at]
        buf = Buffers(x=x, u=u, h=tuple(self.memory[k][at] for k in order[: spec.history]))
        buf.u_out, buf.net_in = u, self.given[at]
        if spec.x_mask:
            buf.x_out = x
        self.backend.stage(spec, row, self.own(slot), buf)

    def observe(self, slot: int, partner: int, row: int, spec: StageSpec) -> torch.Tensor:
        """The x0 that was predicted at the last evaluation: a table row of its own. (1, ...), fresh memory."""
        at, out = slice(slot, slot + 1), self.out
        assert out is not None
        x0 = torch.empty_like(self.before[at])
        buf = Buffers(u=self.before[at], first=out[at], u_out=x0)
        if spec.guided:
            buf.second = out[partner : partner + 1]
        own = self.own(slot)
        self.backend.stage(spec, row, own, buf)
        return clamped(x0, own)

    def tick(self, shape: Shape, network: Call) -> torch.Tensor:
        """One evaluation of every occupied slot, and its stage. Returns the network's output, contiguous."""
        n, spec = shape.stage, shape.spec
        coeffs = self.coeffs(n)
        rows = coeffs.rows
        assert rows is not None
        clock = self.table.clock.index_select(0, rows)
        given = self.u if shape.direct else self.given
        if shape.whole:
            given = given[:n]
        else:
            source = self.source[: shape.network]
            given, clock = given.index_select(0, source), clock.index_select(0, source)
        out = self._admitted(self._called(network, given, clock, shape.whole and shape.direct).contiguous())
        if out.untyped_storage().data_ptr() in self.own_memory:
            # The stage writes the next input over it.
            out = out.clone()
        if shape.before:
            self.before[:n].copy_(self.u[:n])
        if spec.u_mask:
            self._stage(n, out, spec, shape.history)
        if shape.history and not self.own_history:
            self._turn(shape.history, n)
        rows.copy_(self.table.follow.index_select(0, rows))
        return out

    def _called(self, network: Call, given: torch.Tensor, clock: torch.Tensor, state: bool) -> torch.Tensor:
        """The network's output. `state`: `given` is u itself. The first call gets a copy, as do all of a network that
        writes to it.

        Raises:
            RuntimeError: it wrote to its input, which it had not done before.
        """
        if not state:
            return network(given, clock)
        if not self.spares:
            copy = given.clone()
            version = copy._version
            out = network(copy, clock)
            if self.spares is None:
                self.spares = copy._version == version and torch.equal(copy, given)
            return out
        version = given._version
        out = network(given, clock)
        if given._version != version:
            self.spares = False
            raise RuntimeError(
                "the network wrote to its input, which it had not done at its first call, and the states are lost: it "
                "gets copies from now on, submit the requests again"
            )
        return out

    def _admitted(self, out: torch.Tensor) -> torch.Tensor:
        """TypeError for an output of a dtype that the back end does not read."""
        if out.dtype is not self.read:
            ok, why = self.backend.supports(out.device, self.x.dtype, out.dtype)
            if not ok:
                raise TypeError(
                    f"the model returned {out.dtype}, which the back end {self.backend.NAME!r} does not read: {why}; "
                    "cast it, lambda x, t, **kw: model(x, t, **kw).float()"
                )
            self.read = out.dtype
        return out

    def _stage(self, n: int, out: torch.Tensor, spec: StageSpec, history: int) -> None:
        """The joint launch. The oldest value may be overwritten: every element is read before it is written."""
        x, u, h = self.x, self.u, [self.memory[k] for k in self.order[:history]]
        kept = (h[-1] if self.fresh is None else self.fresh) if history else None
        second = out.index_select(0, self.partner[:n]) if spec.guided else None
        if self._launcher is None:
            buf = Buffers(x=x[:n], u=u[:n], first=out[:n], second=second, h=tuple(value[:n] for value in h))
            buf.u_out, buf.x_out, buf.net_in = (
                buf.u,
                buf.x if spec.x_mask else None,
                self.given[:n] if spec.copies else None,
            )
            buf.m_out = None if kept is None else kept[:n]
            self.backend.stage(spec, 0, self.coeffs(n), buf)
            return
        key = n, out.dtype, torch.get_num_threads()
        launch = self._launches.get(key)
        if launch is None:
            size, given = x[0].numel(), self.given.dtype
            launch = self._launches[key] = self._launcher(self.coeffs(n), n, size, out.dtype, x.dtype, given)
        to_x = x.data_ptr()
        to_u, at_second = u.data_ptr(), 0 if second is None else second.data_ptr()
        to_m = 0 if kept is None else kept.data_ptr()
        places = [value.data_ptr() for value in h]
        outputs = to_u, to_x if spec.x_mask else 0, to_m, self.given.data_ptr() if spec.copies else 0
        launch(spec, 0, to_x, to_u, out.data_ptr(), at_second, places, *outputs)

    def _turn(self, history: int, n: int) -> None:
        """What was just kept is now h1."""
        if self.fresh is None:
            self.order.insert(0, self.order.pop(history - 1))
            return
        for younger, older in zip(self.order[history - 2 :: -1], self.order[history - 1 : 0 : -1], strict=False):
            self.memory[older][:n].copy_(self.memory[younger][:n])
        self.memory[self.order[0]][:n].copy_(self.fresh[:n])
