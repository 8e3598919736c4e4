"""The running requests of an engine and one tick over them: who enters and leaves, the network's call, what is done."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from fastdiff.engine import blame, conditions
from fastdiff.engine.batch import Batch, Shape
from fastdiff.engine.graphs import Graphs, Uncaptured
from fastdiff.engine.joint import union, widest
from fastdiff.engine.place import Place
from fastdiff.engine.request import Request
from fastdiff.engine.run import Run
from fastdiff.engine.table import IDLE, put
from fastdiff.engine.turns import Following, turns
from fastdiff.names import warn
from fastdiff.options import RUN_DEFAULTS
from fastdiff.run.job import begin
from fastdiff.run.network import Network

_LOOKS = 8
"""Ticks between two looks at all states."""


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


class Verdict(NamedTuple):
    """Whether the states after a tick are finite. The host knows it where `event` is None or done. `runs`: with their
    samples, where these were made by that tick."""

    runs: list[tuple[Run, torch.Tensor | None]]
    good: torch.Tensor
    event: torch.cuda.Event | None


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
        self.graphs, self.finite, self.learned, self.strict, self.ended = graphs, finite, learned, strict, ended
        self.door, self.place = door, place
        self.running: list[Run] = []
        self.parked: list[Run] = []
        # Requests that left the queue at this moment and have no slot yet.
        self.coming: list[Run] = []
        # Whether u is the network's input, as it was at the last tick.
        self.direct = False
        self.verdicts: deque[Verdict] = deque()
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
        # Who is cancelled after the others were let go at this tick keeps a place until the next. What is asked for
        # between two ticks comes after they left.
        runs = [run for run in (*self.residents, *self.coming) if (run.block != IDLE if more else not run.over)]
        behind, count, rows = self.places - self.slots, len(runs) + more, self.buckets[-1]
        if count <= behind + min(self.slots, rows // 2):
            return True
        guided = guided or any(run.width > 1 for run in runs)
        return count <= behind + min(self.slots, rows // (1 + guided))

    def arrange(self, waits: bool, following: Following) -> None:
        """Let those leave who are done, those enter who wait, and those pause whose turn it is not; then what the next
        tick needs is known. `waits`: whether anybody does."""
        changed, self.settled = self.shape is None, False
        for run in self.residents:
            if run.over:
                self._release(run)
                changed = True
            elif run.next is not None:
                with self.door:
                    run.joint, run.next = run.next, None
                run.rewrite(self.batch)
                changed = True
        here = [run for run in self.residents if run.block != IDLE] if changed else self.residents
        if changed or waits or self.parked:
            changed = self._seat(here, turns(here, self.slots, self.buckets[-1], following)) or changed
        if changed:
            self._settle()
        self.settled = True

    def _settle(self) -> None:
        """What the next tick needs, without those whose conditions do not go with the others'."""
        while self.running and (blamed := self._compose()) is not None:
            self._dismiss(*blamed)

    def _dismiss(self, slot: int, error: Exception) -> None:
        """End one of those that run."""
        run = self.running[slot]
        run.request.fail(error)
        self._release(run)
        self._close(slot)

    def _bucket(self, rows: int) -> int:
        return self.buckets[bisect.bisect_left(self.buckets, rows)]

    def _seat(self, here: list[Run], going: list[Run]) -> bool:
        """Give those who go on and those who enter the first slots, and the others a place behind. Returns whether
        anything changed."""
        count, chosen = len(going) + len(self.coming), set(map(id, going))
        held = {run.slot for run in going if run.slot < count}
        paused = [run for run in here if id(run) not in chosen]
        if len(held) == count == len(self.running):
            self.parked = paused
            return False
        seats = iter([slot for slot in range(count) if slot not in held])
        places = iter(sorted(set(range(self.slots, self.places)) - {run.slot for run in paused}))
        moves = []
        for run, to in (*((r, seats) for r in going if r.slot >= count), *((r, places) for r in paused)):
            if to is seats or run.slot < self.slots:
                place = next(to)
                moves.append((run.slot, place))
                run.slot = place
        self.batch.seat(moves, count)
        with self.door:
            self.running, self.parked = sorted(going, key=lambda run: run.slot), paused
        holes = []
        for slot in seats:
            run = self.coming[0]
            run.slot = slot
            if not self._entered(run):
                holes.append(slot)
            with self.door:
                self.running.insert(slot, run)
                del self.coming[0]
        for hole in reversed(holes):
            self._close(hole)
        return True

    def _entered(self, run: Run) -> bool:
        """Whether a request begins; one that fails here is over at once."""
        run.request.began(self.ticks - run.since)
        given = {**RUN_DEFAULTS, **run.arguments, "device": self.batch.x.device}
        try:
            self.place.wait(run.ready)
            run.place(self.batch)
            size, dtypes = (1, *self.batch.x.shape[1:]), (self.batch.x.dtype, self.batch.backend.NAME)
            start = begin(run.engine, run.arguments["x"], size, given, *dtypes, None, self.batch.given.dtype)
            run.enter(self.batch, run.slot, start, self.model, self.batch.given.dtype)
            return True
        except Exception as error:
            run.request.fail(error)
            self._release(run)
            return False

    def _close(self, hole: int) -> None:
        """The slots in use are the first ones: the last one's request goes where another left."""
        last = len(self.running) - 1
        with self.door:
            moved = self.running.pop()
            if hole != last:
                self.running[hole], moved.slot = moved, hole
        self.batch.seat([(last, hole)] if hole != last else [], last)

    def _release(self, run: Run) -> None:
        if run.block != IDLE:
            self.batch.table.give(run.block, run.size)
            run.block = IDLE
        run.state = None
        self.ended(run)

    def _compose(self) -> blame.Blamed | None:
        """The rows of the network's input, their conditions and the union of the table's rows. Where the conditions do
        not go together, who is to blame."""
        n, batch = len(self.running), self.batch
        partners, source = list(range(n)), list(range(n))
        rows = [run.cond for run in self.running]
        for slot, run in enumerate(self.running):
            run.partner = slot
            if run.guided:
                assert run.uncond is not None
                run.partner = partners[slot] = len(source)
                source.append(slot)
                rows.append(run.uncond)
        self.needed = len(source)
        size = self._bucket(self.needed)
        if self.collate is None:
            blamed = blame.unlike(self.running, self.residents, self._called_alone)
            if blamed is not None:
                return blamed
        try:
            self.network = self._called_on(size, rows)
        except Exception as error:
            return blame.uncollated(self.running, self._collated, error)
        self.version += 1
        joint = [run.joint for run in self.running if run.alone is None]
        before = any(run.shows for run in self.running)
        if self.graphs is None:
            spec = union(j.spec for j in joint)
            history = max((j.history for j in joint), default=0)
            direct = self._direct()
            if direct:
                spec = spec._replace(copies=0)
            elif self.direct:
                for run in self.residents:
                    # At the others' entrance it was written.
                    if run.at:
                        batch.given[run.slot].copy_(batch.u[run.slot])
            self.direct = direct
            self.shape = Shape(n, size, self._learned(spec), history, size == n, direct, before)
        else:
            history = len(batch.order)
            self.shape = Shape(min(size, self.slots), size, self._learned(widest(history)), history, False, False, True)
        if not self.shape.whole:
            put(batch.source[:size], torch.tensor(source + [0] * (size - len(source))))
            # Idle slots read a row too, which must be there.
            partners += range(n, self.shape.stage)
            put(batch.partner[: len(partners)], torch.tensor(partners))
        return None

    def _direct(self) -> bool:
        """Whether u can be the network's input."""
        batch = self.batch
        return batch.given.dtype is batch.u.dtype and not any(
            run.alone is not None or run.joint.scaled for run in self.residents
        )

    def _learned(self, spec: Any) -> Any:
        return spec._replace(learned=1 + spec.guided) if self.learned else spec

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
        given = (batch.u if self.direct else batch.given)[slot : slot + 1].repeat_interleave(size, 0)
        clock = batch.table.clock.index_select(0, batch.numbers[0, slot : slot + 1]).repeat(size)
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
        self.ticks += 1
        self.evaluations += self.needed
        self.padded += shape.network
        done: list[int] = []
        for slot, run in enumerate(self.running):
            request = run.request
            if request.ended:
                continue
            if run.plain and run.at + 1 < request.nfe:
                run.at = request.count = run.at + 1
                continue
            try:
                run.advance(batch, slot)
            except Exception as error:
                request.fail(error)
            if run.result is not None:
                done.append(slot)
        self._judge(done)
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

    def _judge(self, done: list[int]) -> None:
        """Look for states that are not finite, without waiting for the device: of the slots that are done, and now and
        then of all, since a NaN stays."""
        every = self.finite and self.ticks % _LOOKS == 0
        slots = list(range(len(self.running))) if every else done
        if not slots:
            return
        runs = [(run, run.result) for run in (self.running[slot] for slot in slots)]
        if not self.finite:
            self.verdicts.append(Verdict(runs, torch.ones(len(runs), dtype=torch.bool), None))
            return
        # A sum of finite values that overflows has left the range of any sample.
        u = self.batch.u
        sums = u[: len(slots)].flatten(1).sum(1) if every else torch.stack([u[slot].sum() for slot in slots])
        good = sums.isfinite()
        event = None
        if good.device.type == "cuda":
            seen = torch.empty(good.shape, dtype=torch.bool, pin_memory=True)
            good = seen.copy_(good, non_blocking=True)
            event = self.place.mark()
        self.verdicts.append(Verdict(runs, good, event))

    def collect(self, wait: bool) -> None:
        """Hand out the results, and end the requests, whose states the host knows by now. `wait`: for all of them."""
        while self.verdicts:
            runs, good, event = self.verdicts[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            judged = zip(runs, good.tolist(), strict=True)
            # Those of one tick are told of in the order in which they came.
            for (run, made), fine in sorted(judged, key=lambda one: one[0][0].order[1]):
                if not fine and not run.request.ended:
                    run.request.fail(
                        FloatingPointError(
                            f"a sample of method {run.request.method!r} is NaN or Inf after evaluation {run.at} of "
                            f"{run.request.nfe}: check the network's dtype, its input scale, prediction=... and "
                            "guidance"
                        )
                    )
                elif fine and made is not None:
                    run.request.finish(made)
            # Afterwards, so that nobody is forgotten where a callback is interrupted.
            self.verdicts.popleft()

    @property
    def over(self) -> bool:
        """Whether every resident is over."""
        return all(run.over for run in self.running) and all(run.over for run in self.parked)

    def forget(self) -> list[Request]:
        """Let go of all requests, and return them. Without the device, which may be broken."""
        known = [*self.residents, *self.coming, *(run for verdict in self.verdicts for run, _ in verdict.runs)]
        for runs in (self.running, self.parked, self.coming, self.verdicts):
            runs.clear()
        self.batch.clear()
        self.shape = None
        return [run.request for run in known]

    def abandon(self, error: Exception) -> None:
        """End those whose turn it is, for a reason that is none of theirs. The parked ones have lost nothing, but where
        it came while requests changed places."""
        judged = {id(run) for verdict in self.verdicts for run, made in verdict.runs if made is not None}
        for run in (*self.running, *self.coming, *([] if self.settled else self.parked)):
            if id(run) not in judged:
                run.request.fail(error)
            self._release(run)
        self.running.clear()
        self.coming.clear()
        if not self.settled:
            self.parked.clear()
        self.batch.seat([], 0)
        self.shape = None
