"""The running requests of an engine and one tick over them: who enters and leaves, the network's call, what is done."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from fastdiff.engine import blame, conditions
from fastdiff.engine.batch import Batch, Shape
from fastdiff.engine.graphs import Graphs, Uncaptured
from fastdiff.engine.joint import union, widest
from fastdiff.engine.place import Place
from fastdiff.engine.request import Request
from fastdiff.engine.run import Mix, Run
from fastdiff.engine.table import IDLE
from fastdiff.engine.turns import Following, turns
from fastdiff.engine.verdicts import Verdicts
from fastdiff.names import warn
from fastdiff.ops.layout import StageSpec
from fastdiff.run.network import Network

_LOOKS = 8
"""Ticks between two looks at all states."""


@functools.lru_cache(256)
def _mixture(mixes: frozenset[Mix | None], direct: bool, learned: bool) -> tuple[StageSpec, int, bool]:
    """The structure of a launch for all of these, the history that it reads, and whether any makes previews. `direct`,
    `learned`: as of `Batch` and `Floor`."""
    joint = [mix for mix in mixes if mix is not None]
    history, before = max((mix.history for mix in joint), default=0), any(mix.shows for mix in joint)
    spec = union(mix.spec for mix in joint)._replace(copies=int(not direct))
    return _learned(spec) if learned else spec, history, before


def _learned(spec: StageSpec) -> StageSpec:
    return spec._replace(learned=1 + spec.guided)


class Stats(NamedTuple):
    """What an engine did so far.

    Attributes:
        ticks: calls of the network.
        evaluations: rows of its input that a request needed; padded: all rows.
        captures: CUDA graphs made.
    """

    ticks: int
    evaluations: int
    padded: int
    captures: int


class Floor:
    """Where requests run.

    Args:
        model: the network.
        model_kwargs: given with every call.
        slots, parked: as of `Batch`.
        buckets: sizes of the network's input, ascending.
        collate: one batch of keyword arguments from the conditions of its rows, or None for `conditions.stack`.
        graphs: ticks as CUDA graphs, or None.
        finite: whether states are looked at for NaN and Inf.
        learned: whether the network gives twice the channels.
        strict: whether a tick that cannot be captured is an error.
        ended: told of each request that is over.
        door: held while what other threads ask for changes.
        place: the device.
    """

    def __init__(
        self,
        model: Any,
        model_kwargs: Mapping[str, Any],
        batch: Batch,
        slots: int,
        parked: int,
        buckets: tuple[int, ...],
        collate: conditions.Collate | None,
        graphs: Graphs | None,
        finite: bool,
        learned: bool,
        strict: bool,
        ended: Callable[[Run], None],
        door: AbstractContextManager[Any],
        place: Place,
    ) -> None:
        self.model, self.model_kwargs, self.batch = model, dict(model_kwargs), batch
        self.slots, self.places, self.buckets, self.collate = slots, slots + parked, buckets, collate
        self.graphs, self.learned, self.strict, self.ended = graphs, learned, strict, ended
        self.door, self.place = door, place
        self.running: list[Run] = []
        self.parked: list[Run] = []
        # Requests that left the queue at this moment and have no slot yet; that have one, and have not begun.
        self.coming: list[Run] = []
        self.entering: list[Run] = []
        # Places behind the slots that nobody has.
        self.vacant = list(range(slots, slots + parked))
        # How many have a block of the table's rows; and of those, whose input for the network is other than u.
        self.blocks = self.scaled = 0
        # Whether somebody may be over, or wants other guidance. Any thread may say so; a tick alone takes it back.
        self.stirred = False
        # Of those that run: whose evaluations are only counted, until the first of them is done after so many ticks;
        # and for whom there is something to do after every tick.
        self.counted: list[Request] = []
        self.until = 0
        self.attended: list[Run] = []
        self.verdicts = Verdicts(place, finite)
        self.ticks = self.evaluations = self.padded = self.version = self.needed = 0
        # Whether everybody has the place that its slot says.
        self.settled = True
        self.network = Network(model, 1, learned=learned)
        self.shape: Shape | None = None

    @property
    def stats(self) -> Stats:
        captures = 0 if self.graphs is None else self.graphs.captures
        return Stats(self.ticks, self.evaluations, self.padded, captures)

    @property
    def residents(self) -> list[Run]:
        """All requests that have begun: those whose turn it is, and the parked ones."""
        return [*self.running, *self.parked]

    def holds(self, more: int, guided: bool) -> bool:
        """Whether there is a place for all residents, for those that enter at this moment, and for `more`: some have
        their turn, and the others lie behind. `guided`: whether one of them has, or will have, two halves."""
        behind, rows = self.places - self.slots, self.buckets[-1]
        if self.blocks + more <= behind + min(self.slots, rows // 2):
            return True
        # Who is cancelled after the others were let go at this tick keeps a place until the next. What is asked for
        # between two ticks comes after they left.
        runs = [run for run in (*self.residents, *self.coming) if (run.block != IDLE if more else not run.over)]
        guided = guided or any(run.width > 1 for run in runs)
        return len(runs) + more <= behind + min(self.slots, rows // (1 + guided))

    def admit(self, run: Run, block: int) -> None:
        """Let a request come that the floor holds, with a block of the table."""
        run.block = block
        self.blocks, self.scaled = self.blocks + 1, self.scaled + run.scales
        self.coming.append(run)

    def arrange(self, waits: bool, following: Following) -> None:
        """Let those leave who are done, those enter who wait, and those pause whose turn it is not; then what the next
        tick needs is known. `waits`: whether anybody does."""
        changed, self.settled = self.shape is None, False
        if self.stirred:
            # Before the look, so that what is said meanwhile counts at the next tick.
            self.stirred = False
            changed = self._looked_after() or changed
        if changed or waits or self.parked:
            # The parked ones are in order.
            here = [run for run in (*self.parked, *self.running) if run.block != IDLE]
            changed = self._seat(*turns(here, self.slots, self.buckets[-1], following)) or changed
        if changed:
            self._settle()
        self.settled = True

    def _looked_after(self) -> bool:
        """Let those go who are over, and give the others the guidance they ask for. Returns whether there was any."""
        changed = False
        for run in self.residents:
            if run.over:
                if run.slot >= self.slots:
                    self.vacant.append(run.slot)
                self._release(run)
                changed = True
            elif run.next is not None:
                with self.door:
                    run.renew()
                run.rewrite(self.batch)
                changed = True
        return changed

    def _settle(self) -> None:
        """What the next tick needs, without those that cannot begin, or whose conditions do not go with the others'."""
        if self.graphs is None:
            # Whether u can be the network's input.
            self.batch.hand_over(not self.scaled and self.batch.given.dtype is self.batch.u.dtype)
        self._tell()
        entering, self.entering = self.entering, []
        for run in entering:
            try:
                self._enter(run)
            except Exception as error:
                self._dismiss(run.slot, error)
        while self.running and (blamed := self._compose()) is not None:
            self._dismiss(*blamed)

    def _enter(self, run: Run) -> None:
        run.request.began(self.ticks - run.since)
        self.place.wait(run.ready)
        run.place(self.batch)
        run.enter(self.batch, self.model)

    def _dismiss(self, slot: int, error: Exception) -> None:
        """End one of those that run. The slots in use are the first ones: the last one's request goes there."""
        run, last = self.running[slot], len(self.running) - 1
        run.request.fail(error)
        self._release(run)
        with self.door:
            moved = self.running.pop()
            if slot != last:
                self.running[slot], moved.slot = moved, slot
                self.batch.seats.take(slot, moved.row, moved.key)
        self.batch.move(*(([last], [slot]) if slot != last else ([], [])), last)
        self._tell()

    def _bucket(self, rows: int) -> int:
        return self.buckets[bisect.bisect_left(self.buckets, rows)]

    def _seat(self, going: list[Run], paused: list[Run]) -> bool:
        """Give those who go on and those who come the first slots, and the others a place behind. Returns whether
        anything changed."""
        count = len(going) + len(self.coming)
        held = {run.slot for run in going if run.slot < count}
        if len(held) == count == len(self.running):
            self.parked = paused
            return False
        seats = iter([slot for slot in range(count) if slot not in held])
        take, places, to = self.batch.seats.take, [], []
        for run in going:
            if run.slot >= count:
                if run.slot >= self.slots:
                    self.vacant.append(run.slot)
                places.append(run.slot)
                run.slot = next(seats)
                to.append(run.slot)
                take(run.slot, run.row, run.key)
        for run in paused:
            if run.slot < self.slots:
                places.append(run.slot)
                run.slot = self.vacant.pop()
                to.append(run.slot)
        for run in self.coming:
            run.slot = next(seats)
            take(run.slot, run.row, run.key)
        self.batch.move(places, to, count)
        with self.door:
            self.running, self.parked = sorted([*going, *self.coming], key=attrgetter("slot")), paused
            self.entering, self.coming = self.coming, []
        return True

    def _release(self, run: Run) -> None:
        if run.block != IDLE:
            self.batch.table.give(run.block, run.size)
            run.block = IDLE
            self.blocks, self.scaled = self.blocks - 1, self.scaled - run.scales
        run.state = None
        self.ended(run)

    def _tell(self) -> None:
        """Who sits where, for the device; and what is to be done after each tick."""
        running, seats = self.running, self.batch.seats
        guided = [run for run in running if run.guided]
        self.needed = len(running)
        for run in guided:
            run.partner, self.needed = self.needed, self.needed + 1
        seats.link(len(running), [run.slot for run in guided])
        seats.send()
        self.counted = [run.request for run in running if run.plain]
        self.until = min([request.nfe - request.count for request in self.counted], default=0)
        self.attended = [run for run in running if not run.plain]

    def _compose(self) -> blame.Blamed | None:
        """The conditions of the network's rows and the union of the table's. Where the conditions do not go together,
        who is to blame."""
        batch, running = self.batch, self.running
        rows = [run.cond for run in running]
        if self.needed > len(running):
            rows += [run.uncond for run in running if run.guided and run.uncond is not None]
        size = self._bucket(self.needed)
        if self.collate is None:
            blamed = blame.unlike(running, self.residents, self._called_alone)
            if blamed is not None:
                return blamed
        try:
            self.network = self._called_on(size, rows)
        except Exception as error:
            return blame.uncollated(running, self._collated, error)
        self.version += 1
        if self.graphs is None:
            mixes = frozenset([run.mix for run in running])
            spec, history, before = _mixture(mixes, batch.direct, self.learned)
            self.shape = Shape(len(running), size, spec, history, size == len(running), batch.direct, before)
        else:
            history = len(batch.order)
            spec = _learned(widest(history)) if self.learned else widest(history)
            self.shape = Shape(min(size, self.slots), size, spec, history, False, False, True)
        return None

    def _collated(self, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
        if self.collate is None:
            return conditions.stack(rows)
        made = self.collate(rows)
        if not isinstance(made, Mapping):
            raise TypeError(f"collate returned {type(made).__name__}; expected a dict of the network's arguments")
        for key, value in made.items():
            if isinstance(value, torch.Tensor) and (value.ndim == 0 or len(value) != len(rows)):
                raise ValueError(
                    f"collate made {key!r} of shape {tuple(value.shape)} from {len(rows)} conditions; expected "
                    f"{len(rows)} as its first dimension"
                )
        return made

    def _called_on(self, size: int, rows: list[dict[str, Any]]) -> Network:
        """The network on `size` rows with these conditions, repeated to fill it up."""
        kwargs = self._collated(rows + [rows[0]] * (size - len(rows)))
        return self.network.with_kwargs({**self.model_kwargs, **kwargs})

    def _isolated(self) -> bool:
        """After an error of the network: whether it comes from the conditions of requests that just entered, which then
        end alone. The others have lost nothing, since the stage comes after the network."""
        found = blame.failing(self.running, self._called_alone)
        for slot, error in reversed(found):
            self._dismiss(slot, error)
        return bool(found)

    def _called_alone(self, slot: int, rows: list[dict[str, Any]]) -> None:
        """Call the network with one slot's state and its conditions."""
        batch, size = self.batch, self._bucket(len(rows))
        given = (batch.u if batch.direct else batch.given)[slot : slot + 1].repeat_interleave(size, 0)
        clock = batch.table.clock.index_select(0, batch.seats.rows[slot : slot + 1]).repeat(size)
        self._called_on(size, rows)(given, clock)

    def evaluate(self) -> int:
        """One tick. Returns how many rows of the network's input requests needed."""
        batch, shape = self.batch, self.shape
        assert shape is not None
        try:
            batch.out = self._ticked(shape)
        except Exception:
            if not self._isolated():
                raise
            self._settle()
            return self.evaluate() if self.running else 0
        batch.seats.advanced()
        self.ticks += 1
        self.evaluations += self.needed
        self.padded += shape.network
        for request in self.counted:
            request.count += 1
        self.until -= 1
        done = []
        for run in self.running if self.until <= 0 else self.attended:
            request = run.request
            if not (run.plain or request.ended):
                request.count += 1
            try:
                if not request.ended:
                    run.advance(batch)
            except Exception as error:
                request.fail(error)
            if run.result is not None:
                done.append(run)
            if run.over:
                self.stirred = True
        # Of those that are done, and now and then of all, since a NaN stays.
        if self.verdicts.finite and self.ticks % _LOOKS == 0:
            self.verdicts.ask(self.running, batch.u[: len(self.running)])
        elif done:
            self.verdicts.ask(done, None)
        return self.needed

    def _ticked(self, shape: Shape) -> torch.Tensor:
        if self.graphs is not None:
            try:
                return self.graphs.tick(self.batch, shape, self.network, self.version)
            except Uncaptured as error:
                if self.strict:
                    raise
                warn(f"{error}; the engine runs eagerly, with the same result")
                self.graphs = None
        return self.batch.tick(shape, self.network)

    def collect(self, wait: bool) -> None:
        """Hand out the samples, and end the requests, whose states the host knows by now. `wait`: for all of them."""
        if self.verdicts and self.verdicts.collect(wait):
            self.stirred = True

    @property
    def over(self) -> bool:
        """Whether every resident is over."""
        return all(run.over for run in self.running) and all(run.over for run in self.parked)

    def forget(self) -> list[Request]:
        """Let go of all requests, and return them. Without the device, which may be broken."""
        known = [*self.residents, *self.coming, *(run for run, _ in self.verdicts.runs)]
        for runs in (self.running, self.parked, self.coming, self.entering, self.verdicts):
            runs.clear()
        self.batch.clear()
        self.vacant, self.blocks, self.scaled, self.shape = list(range(self.slots, self.places)), 0, 0, None
        return [run.request for run in known]

    def abandon(self, error: Exception) -> None:
        """End those whose turn it is, for a reason that is none of theirs. The parked ones have lost nothing, but where
        it came while requests changed places."""
        judged = {id(run) for run, made in self.verdicts.runs if made is not None}
        for run in (*self.running, *self.coming, *([] if self.settled else self.parked)):
            if id(run) not in judged:
                run.request.fail(error)
            self._release(run)
        self.running.clear()
        self.coming.clear()
        self.entering.clear()
        if not self.settled:
            self.parked.clear()
            self.vacant = list(range(self.slots, self.places))
        self.batch.move([], [], 0)
        self.shape = None
