"""The memory on the device: states, history, rows and times of all requests under way, and one tick over them.

The requests whose turn it is have the first slots, without a gap. Those that are parked lie behind all slots, where no
launch reaches them. A tick gathers the network's input (the slots, then the unconditional halves, then copies of slot 0
that fill the bucket up), calls the network, and runs one stage, each slot with its own table row, seed and bounds. Rows
and times advance on the device. Nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from fastdiff.engine.seats import Seats
from fastdiff.engine.table import IDLE, Rows, Slate
from fastdiff.ops import Backend, Buffers, Coeffs, Launch
from fastdiff.ops.layout import StageSpec
from fastdiff.run.evaluate import clamped

Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The network with its conditions: (input, times) -> the output."""


class Shape(NamedTuple):
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


class Slot(NamedTuple):
    """The memory of one slot, (1, ...) each, with the coefficients of a launch with a row that the host knows.

    Attributes:
        history: (history, 1, ...), all that is kept.
        out: u without a batch.
    """

    coeffs: Coeffs
    x: torch.Tensor
    u: torch.Tensor
    history: torch.Tensor
    given: torch.Tensor
    out: torch.Tensor


class Span(NamedTuple):
    """The memory of the first slots together, with the coefficients of the joint launch, each with its own row."""

    coeffs: Coeffs
    rows: torch.Tensor
    steps: torch.Tensor
    partner: torch.Tensor
    u: torch.Tensor
    given: torch.Tensor
    before: torch.Tensor


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

    Attributes:
        direct: whether u is the network's input as it is, and `given` is not used.
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
        # By places, and by places of each of these.
        self._places, self._lines = Slate(self.states.transpose(0, 1)), Slate(self.states.flatten(0, 1))
        # h1, h2, ... lie in memory[order[0]], memory[order[1]], ...
        self.order = list(range(2, 2 + history))
        # The slots that the last tick took; and where the order changes, that of all other places when they were left.
        self.taken = 0
        self.left = [tuple(self.order)] * places if ring and not own else None
        self.fresh = None if ring else torch.zeros_like(self.x[:slots])
        self.before = torch.zeros_like(self.x[:slots])
        self.given = torch.zeros((places, *shape), dtype=network_dtype, device=device)
        # NumPy has no bfloat16.
        self._given = Slate(self.given.view(torch.int16) if network_dtype.itemsize == 2 else self.given)
        self.direct = False
        self.own_memory = [t.untyped_storage().data_ptr() for t in (self.states, self.given)]
        self.seats = Seats(slots, widest, dtype, device)
        self.out: torch.Tensor | None = None
        # Whether the network leaves its input as it is; None until it has run.
        self.spares: bool | None = None
        self.read: torch.dtype | None = None
        self._slots: dict[int, Slot] = {}
        self._spans: dict[int, Span] = {}
        self._sources: dict[int, torch.Tensor] = {}
        self._launcher = getattr(backend, "launcher", None)
        self._launches: dict[tuple[int, torch.dtype, int], Launch] = {}
        self._addresses = [value.data_ptr() for value in self.memory]
        self._to_given, self._to_fresh = self.given.data_ptr(), 0 if self.fresh is None else self.fresh.data_ptr()

    def span(self, count: int) -> Span:
        """Of the first `count` slots."""
        found = self._spans.get(count)
        if found is None:
            seats, table = self.seats, self.table
            seeds, index, rows, steps, partner = (
                part[:count] for part in (seats.seeds, seats.index, seats.rows, seats.steps, seats.partner)
            )
            bounds = seats.lo[:count], seats.hi[:count], seats.scale[:count]
            coeffs = Coeffs(table.values, table.draws, seeds, index, *bounds, rows)
            state = (memory[:count] for memory in (self.u, self.given, self.before))
            found = self._spans[count] = Span(coeffs, rows, steps, partner, *state)
        return found

    def slot(self, at: int) -> Slot:
        """Of one slot."""
        found = self._slots.get(at)
        if found is None:
            only, seats, table = slice(at, at + 1), self.seats, self.table
            bounds = seats.lo[only], seats.hi[only], seats.scale[only]
            coeffs = Coeffs(table.values, table.draws, seats.seeds[only], seats.index[only], *bounds)
            state = self.x[only], self.u[only], self.states[2:, only], self.given[only]
            found = self._slots[at] = Slot(coeffs, *state, self.u[at])
        return found

    def begin(self, at: int) -> None:
        """A new request's x is in its slot: the rest of it."""
        slot = self.slot(at)
        slot.u.copy_(slot.x)
        if not self.own_history:
            # Multiplied by 0 it is read all the same: no NaN must be left of another's.
            slot.history.zero_()
        if not self.direct:
            slot.given.copy_(slot.x)

    def hand_over(self, direct: bool) -> None:
        """Whether u is the network's input, from now on."""
        if self.direct and not direct:
            self.given.copy_(self.u)
        self.direct = direct

    def move(self, places: Sequence[int], to: Sequence[int], count: int) -> None:
        """The states of some places to others, all at once; then the first `count` slots are those of the next tick.

        The others keep the history as it lies: the order goes on turning without them.
        """
        if self.left is not None:
            self.left[: self.taken] = [tuple(self.order)] * self.taken
        self.taken = count
        if not places:
            return
        if not self.direct:
            self._given.move(places, to)
        if self.left is None:
            self._places.move(places, to)
            return
        all_places, now = len(self.given), tuple(self.order)
        source = [k * all_places + at for at in places for k in (0, 1, *self.left[at])]
        self._lines.move(source, [k * all_places + at for at in to for k in (0, 1, *now)])
        for at in to:
            self.left[at] = now

    def clear(self) -> None:
        """Nobody is there any more. Nothing here asks anything of the device, which may be broken."""
        self.table.free = [(IDLE + 1, self.table.capacity - 1)]
        self.order[:] = range(2, len(self.memory))
        self.taken = 0
        self.seats.clear()

    def run(self, at: int, row: int, spec: StageSpec, done: int, depth: int) -> None:
        """One table row of one slot without a network: an opening, or noise between two evaluations, of which `done`
        were made, and the last `depth` kept."""
        slot = self.slot(at)
        order = [2 + (done - 1 - i) % depth for i in range(depth)] if self.own_history else self.order
        buf = Buffers(x=slot.x, u=slot.u, h=tuple(slot.history[k - 2] for k in order[: spec.history]))
        buf.u_out, buf.net_in = slot.u, slot.given
        if spec.x_mask:
            buf.x_out = slot.x
        self.backend.stage(spec, row, slot.coeffs, buf)

    def observe(self, slot: int, partner: int, row: int, spec: StageSpec) -> torch.Tensor:
        """The x0 that was predicted at the last evaluation: a table row of its own. (1, ...), fresh memory."""
        at, out = slice(slot, slot + 1), self.out
        assert out is not None
        x0 = torch.empty_like(self.before[at])
        buf = Buffers(u=self.before[at], first=out[at], u_out=x0)
        if spec.guided:
            buf.second = out[partner : partner + 1]
        own = self.slot(slot).coeffs
        self.backend.stage(spec, row, own, buf)
        return clamped(x0, own)

    def tick(self, shape: Shape, network: Call) -> torch.Tensor:
        """One evaluation of every occupied slot, and its stage. Returns the network's output, contiguous."""
        n, spec, span = shape.stage, shape.spec, self.span(shape.stage)
        clock = self.table.clock.index_select(0, span.rows)
        if shape.whole:
            given = span.u if shape.direct else span.given
        else:
            source = self._sources.get(shape.network)
            if source is None:
                source = self._sources[shape.network] = self.seats.source[: shape.network]
            given = (self.u if shape.direct else self.given).index_select(0, source)
            clock = clock.index_select(0, source)
        out = self._admitted(self._called(network, given, clock, shape.whole and shape.direct).contiguous())
        if out.untyped_storage().data_ptr() in self.own_memory:
            # The stage writes the next input over it.
            out = out.clone()
        if shape.before:
            span.before.copy_(span.u)
        if spec.u_mask:
            self._stage(n, out, spec, shape.history)
        if shape.history and not self.own_history:
            self._turn(shape.history, n)
        span.rows.add_(span.steps)
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
        order, span = self.order[:history], self.span(n)
        second = out.index_select(0, span.partner) if spec.guided else None
        if self._launcher is None:
            x, u, h = self.x[:n], span.u, tuple(self.memory[k][:n] for k in order)
            buf = Buffers(x=x, u=u, first=out[:n], second=second, h=h, u_out=u)
            buf.x_out, buf.net_in = x if spec.x_mask else None, span.given if spec.copies else None
            if history:
                buf.m_out = h[-1] if self.fresh is None else self.fresh[:n]
            self.backend.stage(spec, 0, span.coeffs, buf)
            return
        key = n, out.dtype, torch.get_num_threads()
        launch = self._launches.get(key)
        if launch is None:
            size, x, given = self.x[0].numel(), self.x.dtype, self.given.dtype
            launch = self._launches[key] = self._launcher(span.coeffs, n, size, out.dtype, x, given)
        at = self._addresses
        (to_x, to_u), places = at[:2], [at[k] for k in order]
        to_m = (self._to_fresh or places[-1]) if history else 0
        at_second = 0 if second is None else second.data_ptr()
        outputs = to_u, to_x if spec.x_mask else 0, to_m, self._to_given if spec.copies else 0
        launch(spec, 0, to_x, to_u, out.data_ptr(), at_second, places, *outputs)

    def _turn(self, history: int, n: int) -> None:
        """What was just kept is now h1."""
        if self.fresh is None:
            self.order.insert(0, self.order.pop(history - 1))
            return
        for younger, older in zip(self.order[history - 2 :: -1], self.order[history - 1 : 0 : -1], strict=False):
            self.memory[older][:n].copy_(self.memory[younger][:n])
        self.memory[self.order[0]][:n].copy_(self.fresh[:n])
