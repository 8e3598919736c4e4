"""The running requests of an engine and one tick over them: who enters and leaves, the network's call, what is done."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdiff.engine import conditions
from fastdiff.engine.batch import Batch, Shape
from fastdiff.engine.graphs import Graphs, Uncaptured
from fastdiff.engine.joint import union, widest
from fastdiff.engine.run import Run
from fastdiff.engine.table import IDLE, put
from fastdiff.names import warn
from fastdiff.options import RUN_DEFAULTS
from fastdiff.run.job import begin, sampling_mode
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
    """Whether the states after a tick are finite. The host knows it where `event` is None or done."""

    runs: list[Run]
    good: torch.Tensor
    event: torch.cuda.Event | None


class Floor:
    """Where requests run.

    Args:
        model: the network.
        model_kwargs: given with every call.
        buckets: sizes of the network's input, ascending.
        collate: one batch of keyword arguments from the conditions of its rows, or None for `conditions.stack`.
        graphs: ticks as CUDA graphs, or None.
        finite: whether states are looked at for NaN and Inf.
        learned: whether the network gives twice the channels.
        strict: whether a tick that cannot be captured is an error.
        ended: told of each request that is over.
        door: held while what other threads ask for changes.
    """

    def __init__(
        self,
        model: Any,
        model_kwargs: Mapping[str, Any],
        batch: Batch,
        slots: int,
        buckets: tuple[int, ...],
        collate: conditions.Collate | None,
        graphs: Graphs | None,
        finite: bool,
        learned: bool,
        strict: bool,
        ended: Callable[[Run], None],
        door: AbstractContextManager[Any],
    ) -> None:
        self.model, self.model_kwargs, self.batch = model, dict(model_kwargs), batch
        self.slots, self.buckets, self.collate = slots, buckets, collate
        self.graphs, self.finite, self.learned, self.strict, self.ended = graphs, finite, learned, strict, ended
        self.door = door
        self.running: list[Run] = []
        self.verdicts: deque[Verdict] = deque()
        self.ticks = self.evaluations = self.padded = self.version = self.needed = 0
        self.network = Network(model, 1, learned=learned)
        self.shape: Shape | None = None
        # The request that leaves the queue at this moment and has no slot yet.
        self.coming: Run | None = None

    @property
    def stats(self) -> Stats:
        captures = 0 if self.graphs is None else self.graphs.captures
        return Stats(self.ticks, self.evaluations, self.padded, captures)

    @property
    def room(self) -> int:
        """Rows of the network's input that are free."""
        runs = self.running if self.coming is None else [*self.running, self.coming]
        return self.buckets[-1] - sum(run.width for run in runs if not run.over)

    def arrange(self, following: Callable[[], Run | None]) -> None:
        """Let those leave who are done, and those enter who wait; then what the next tick needs is known.

        Args:
            following: the next request that there is room for, its block taken, or None.
        """
        batch, holes = self.batch, []
        changed = self.shape is None
        for slot, run in enumerate(self.running):
            with self.door:
                bound, run.next = run.next, None
                run.joint = run.joint if bound is None else bound
            if bound is not None:
                run.rewrite(batch)
                changed = True
            if run.result is not None or run.request.ended:
                holes.append(slot)
                self._release(run)
        before = len(self.running)
        for slot in [*holes, *range(before, self.slots)]:
            entered = self._entered(slot, following)
            if entered is None:
                break
            changed = True
            with self.door:
                self.coming = None
                if slot < before:
                    self.running[slot] = entered
                else:
                    self.running.append(entered)
            if slot < before:
                holes.remove(slot)
        self.coming = None
        for hole in reversed(holes):
            changed = True
            self._close(hole)
        while changed and self.running:
            blamed = self._compose()
            changed = blamed is not None
            if blamed is not None:
                self._release(self.running[blamed])
                self._close(blamed)

    def _entered(self, slot: int, following: Callable[[], Run | None]) -> Run | None:
        """The next request, in this slot; those that fail here are over at once."""
        while (run := following()) is not None:
            run.request.began(self.ticks - run.since)
            given = {**RUN_DEFAULTS, **run.arguments, "device": self.batch.x.device}
            try:
                run.place(self.batch)
                size, dtypes = (1, *self.batch.x.shape[1:]), (self.batch.x.dtype, self.batch.backend.NAME)
                start = begin(run.engine, run.arguments["x"], size, given, *dtypes, None, self.batch.given.dtype)
                run.enter(self.batch, slot, start, self.model, self.batch.given.dtype)
                return run
            except BaseException as error:
                # First of all: on a broken device the rest raises too.
                run.request.fail(error)
                self._release(run)
                self.batch.numbers[0, slot].fill_(IDLE)
                if not isinstance(error, Exception):
                    raise
        return None

    def _close(self, hole: int) -> None:
        """The slots in use are the first ones: the last one's request goes where another left."""
        last = len(self.running) - 1
        if hole != last:
            self.batch.move(last, hole)
        with self.door:
            moved = self.running.pop()
            if hole != last:
                self.running[hole] = moved
        self.batch.numbers[0, last].fill_(IDLE)

    def _release(self, run: Run) -> None:
        if run.block != IDLE:
            self.batch.table.give(run.block, run.size)
            run.block = IDLE
        run.state = None
        self.ended(run)

    def _compose(self) -> int | None:
        """The rows of the network's input, their conditions and the union of the table's rows. Where the conditions do
        not go together, the slot whose request failed for it."""
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
        size = self.buckets[bisect.bisect_left(self.buckets, self.needed)]
        rows += [rows[0]] * (size - len(source))
        try:
            kwargs = self._collated(rows)
        except Exception as error:
            return self._blame(error)
        self.version += 1
        self.network = Network(self.model, size, learned=self.learned).with_kwargs({**self.model_kwargs, **kwargs})
        joint = [run.joint for run in self.running if run.alone is None]
        before = any(run.shows for run in self.running)
        if self.graphs is None:
            spec = union(j.spec for j in joint)
            history = max((j.history for j in joint), default=0)
            direct = self._direct()
            if direct:
                spec = spec._replace(copies=0)
            elif self.shape is not None and self.shape.direct:
                for slot, run in enumerate(self.running):
                    # At the others' entrance it was written.
                    if run.at:
                        batch.given[slot].copy_(batch.u[slot])
            self.shape = Shape(n, size, self._learned(spec), history, size == n, direct, before)
        else:
            history = len(batch.values)
            self.shape = Shape(min(size, self.slots), size, self._learned(widest(history)), history, False, False, True)
        if not self.shape.whole:
            put(batch.source[:size], np.array(source + [0] * (size - len(source))))
            # Idle slots read a row too, which must be there.
            partners += range(n, self.shape.stage)
            put(batch.partner[: len(partners)], np.array(partners))
        return None

    def _direct(self) -> bool:
        """Whether u can be the network's input."""
        batch = self.batch
        return batch.given.dtype is batch.u.dtype and not any(
            run.alone is not None or run.joint.scaled for run in self.running
        )

    def _learned(self, spec: Any) -> Any:
        return spec._replace(learned=1 + spec.guided) if self.learned else spec

    def _collated(self, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
        if self.collate is None:
            if any(run.likeness != self.running[0].likeness for run in self.running):
                raise ValueError("conditions of several kinds")
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

    def _blame(self, error: Exception) -> int:
        """Conditions do not go together: a request that fails by itself is to blame, or else the newest of those that
        are unlike the others. Returns its slot."""
        runs = self.running
        # One that has been evaluated is right.
        model = min(runs, key=lambda run: (run.at == 0, run.order[1]))
        slots = [slot for slot, run in enumerate(runs) if run.at == 0] or [*range(len(runs))]
        for slot in slots:
            own = self._alone(slot, runs[slot])
            if own is not None:
                break
        else:
            apart = self.collate is None
            unlike = [slot for slot in slots if apart and runs[slot].likeness != model.likeness]
            slot, own = max(unlike or slots, key=lambda slot: runs[slot].order[1]), error
        other = next((run for run in runs if run.likeness != runs[slot].likeness), None)
        if self.collate is None and other is not None:
            told = ValueError(conditions.unlike("cond", runs[slot].cond, other.cond))
            told.__cause__, own = own, told
        runs[slot].request.fail(own)
        return slot

    def blame_newcomers(self) -> bool:
        """The network raised. Whether it does so for requests alone that it has not seen before: these are over, and
        the others can go on."""
        found = False
        for slot, run in enumerate(self.running):
            error = self._alone(slot, run) if run.at == 0 and not run.over and len(self.running) > 1 else None
            if error is not None:
                run.request.fail(error)
                found = True
        return found

    def _alone(self, slot: int, run: Run) -> Exception | None:
        """What the network raises for a request that has not been evaluated yet, alone in its batch."""
        rows = [run.cond, *([run.uncond] if run.guided and run.uncond is not None else [])]
        size = self.buckets[bisect.bisect_left(self.buckets, len(rows))]
        rows += rows[:1] * (size - len(rows))
        batch = self.batch
        try:
            with sampling_mode():
                made = conditions.stack(rows) if self.collate is None else self._collated(rows)
                network = Network(self.model, size, learned=self.learned).with_kwargs({**self.model_kwargs, **made})
                x = batch.u[[slot] * size].to(batch.given.dtype)
                network(x, batch.table.clock[[run.block + run.joint.evaluated[0]] * size])
        except Exception as error:
            return error
        return None

    def evaluate(self) -> int:
        """One tick. Returns how many rows of the network's input requests needed."""
        batch, shape = self.batch, self.shape
        assert shape is not None
        batch.out = self._ticked(shape)
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
        runs = [self.running[slot] for slot in slots]
        if not self.finite:
            self.verdicts.append(Verdict(runs, torch.ones(len(runs), dtype=torch.bool), None))
            return
        # A sum of finite values that overflows has left the range of any sample.
        u = self.batch.u
        sums = u[: len(slots)].flatten(1).sum(1) if every else torch.stack([u[slot].sum() for slot in slots])
        good = sums.isfinite()
        event = None
        if good.device.type == "cuda":
            event, seen = torch.cuda.Event(), torch.empty(good.shape, dtype=torch.bool, pin_memory=True)
            good = seen.copy_(good, non_blocking=True)
            event.record()
        self.verdicts.append(Verdict(runs, good, event))

    def collect(self, wait: bool) -> None:
        """Hand out the results, and end the requests, whose states the host knows by now. `wait`: for all of them."""
        while self.verdicts:
            runs, good, event = self.verdicts[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self.verdicts.popleft()
            for run, fine in zip(runs, good.tolist(), strict=True):
                if not fine and not run.request.ended:
                    run.request.fail(
                        FloatingPointError(
                            f"a sample of method {run.request.method!r} is NaN or Inf after evaluation {run.at} of "
                            f"{run.request.nfe}: check the network's dtype, its input scale, prediction=... and "
                            "guidance"
                        )
                    )
                elif fine and run.result is not None:
                    run.request.finish(run.result)

    def abandon(self, error: BaseException) -> None:
        """End all that run, for a reason that is none of theirs."""
        for run in self.running:
            if run.result is None:
                run.request.fail(error)
            self._release(run)
        self.running.clear()
        self.batch.numbers[0].fill_(IDLE)
        self.shape = None
