"""`Engine`: many requests, each with its own method, steps, guidance and seed, in one batch."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

import torch
from typing_extensions import Unpack

from fastdiff import ops
from fastdiff.bind import clock_dtype
from fastdiff.engine import conditions
from fastdiff.engine.aio import Driver
from fastdiff.engine.batch import Batch
from fastdiff.engine.desk import Desk, Terms
from fastdiff.engine.floor import Floor, Stats
from fastdiff.engine.graphs import Graphs
from fastdiff.engine.options import SUBMIT_DEFAULTS, SubmitOptions
from fastdiff.engine.place import Place
from fastdiff.engine.queue import Queue
from fastdiff.engine.request import Closed, Preview, QueueFull, Request
from fastdiff.engine.run import Run
from fastdiff.engine.table import IDLE, Rows
from fastdiff.names import short
from fastdiff.options import Prediction, shows
from fastdiff.plan import MAX_HISTORY
from fastdiff.run import graph as graphs
from fastdiff.run.arguments import (
    check_run,
    check_shape,
    default_schedule,
    resolve_device,
    warn_of_training,
)
from fastdiff.run.job import sampling_mode
from fastdiff.run.network import check_kwargs, check_model, placement, sample_shape, stated
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.values import flag, whole

_PARKED = 64
_MOST_BYTES = 256 << 20
"""Parked requests and the memory for them, where the caller does not say how many."""


class Engine:
    """Runs many requests together: one call of the network and one launch of the stage for all of them, tick by tick.

        engine = fastdiff.Engine(model, slots=32, shape=(4, 64, 64), schedule="ddpm")
        request = engine.submit(method="dpm3", steps=10, seed=0, guidance=7.5, cond=..., uncond=...)
        engine.run()
        x = request.result()

    A request enters at the next tick and leaves when its sample is done. The sample is that of `fastdiff.sample` with
    the same arguments, bit for bit, as far as the network's output does not depend on its batch.

    Args:
        model: as of `fastdiff.sample`.
        slots: requests of which a tick takes each an evaluation further, at least 1.
        parked: how many more may be under way. Where there are more than `slots`, a new one has its first evaluation at
            the next tick, and then they take turns. Default: 64, or three times `slots` if that is more, as far as
            their states fit in 256 MiB.
        shape: of one sample, without a batch. Default: the model's own.
        schedule, prediction, dtype, backend: as of `fastdiff.sample`, of all requests.
        device: where the states live; default: the model's.
        graph: "auto": on a CUDA device each bucket's tick is one CUDA graph, captured once; True: or an error; False.
        buckets: sizes that the network's batch is filled up to, ascending. Default: the powers of 2 below `slots`,
            `slots`, and the same up to twice that, for unconditional halves. One size gives each sample the same bits
            whatever else runs.
        queue: requests that may wait.
        uncond: the condition of requests that have none, and the unconditional half of those that are guided.
        model_kwargs: given to the network with every call.
        collate: a list of conditions, one for each row of the network's input, to one dict of keyword arguments, such
            as a function that pads them. Default: tensors are joined along their first dimension, which is 1.
        history: how many evaluations are kept for each slot, 0 to 6. A method that needs more runs its stages by
            itself.
        rows: of the device's table: those of all running requests together.
        learned_variance: whether the network gives twice the channels, the prediction and then its learned variance.
        check_finite: whether a request whose state is NaN or Inf is ended with an error.

    Raises:
        ValueError, TypeError, RuntimeError: bad arguments, with what is valid.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        slots: int = 32,
        parked: int | None = None,
        shape: Sequence[int] | None = None,
        schedule: str | NoiseSchedule | None = None,
        prediction: Prediction | None = None,
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
        device: torch.device | str | None = None,
        graph: bool | str = "auto",
        buckets: Sequence[int] | None = None,
        queue: int = 1024,
        uncond: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        collate: conditions.Collate | None = None,
        history: int = 3,
        rows: int = 16384,
        learned_variance: bool = False,
        check_finite: bool = True,
    ) -> None:
        check_model(model)
        check_run(prediction, dtype, backend, graph)
        check_kwargs(model_kwargs)
        slots = whole("slots", slots, 1, 2**16, "slots=32")
        history = whole("history", history, 0, MAX_HISTORY, "history=3")
        size = sample_shape(model) if shape is None else check_shape(shape, "(C, ...), without a batch", (3, 32, 32))
        if size is None:
            raise ValueError(
                "cannot tell the shape of a sample: give shape=(C, H, W), without a batch, or the model an attribute "
                "sample_shape"
            )
        if collate is not None and not callable(collate):
            raise TypeError(f"collate={short(collate)}: expected a function of a list of conditions")
        self.shape, self.slots, self.dtype = size, slots, dtype
        self.prediction = prediction or stated(model, "prediction")
        said = stated(model, "schedule") if schedule is None else schedule
        self.schedule = resolve(default_schedule(self.prediction) if said is None else said)
        warn_of_training(model)
        self.queue = whole("queue", queue, 1, 2**31, "queue=1024")
        found, network_dtype = placement(model)
        self.device = resolve_device(device, None, found)
        module = ops.select(backend, self.device, dtype, network_dtype or dtype)
        given = network_dtype or dtype
        if parked is None:
            parked = min(max(3 * slots, _PARKED), _MOST_BYTES // ((2 + history) * math.prod(size) * dtype.itemsize))
        parked = whole("parked", parked, 0, 2**16, "parked=96")
        captured, self._place = self._captures(graph), Place(self.device)
        # Held through a tick; and for what other threads may change meanwhile.
        self._turn, self._door = threading.RLock(), threading.RLock()
        sizes = _buckets(buckets, slots)
        with sampling_mode():
            table = Rows(whole("rows", rows, 2, 2**24, "rows=16384"), dtype, clock_dtype(given), self.device)
            own = module.NAME == "cpu" and not captured
            batch = Batch(slots, parked, size, dtype, given, table, module, sizes[-1], history, not captured, own)
        self._floor = Floor(
            model,
            model_kwargs or {},
            batch,
            slots,
            parked,
            sizes,
            collate,
            Graphs(self.device) if captured else None,
            flag("check_finite", check_finite),
            flag("learned_variance", learned_variance),
            graph is True,
            self._forget,
            self._door,
            self._place,
        )
        fixed = frozenset(model_kwargs or {})
        self._desk = Desk(
            Terms(
                size,
                dtype,
                given,
                self.device,
                self.schedule,
                None if said is None else self.schedule,
                self.prediction,
                conditions.checked("uncond", uncond, self.device, collate is None, fixed),
                collate is None,
                history,
                learned_variance,
                own,
                table.capacity,
                sizes[-1],
                fixed,
            )
        )
        self._ticking: int | None = None
        self._process = os.getpid()
        self._numbers = itertools.count()
        self._waiting = Queue()
        self._known: dict[Request, Run] = {}
        self._closed = False
        self._driver = Driver(self)

    def _captures(self, graph: bool | str) -> bool:
        """Whether ticks are graphs."""
        if graph is False:
            return False
        why = graphs.capture_refusal()
        if why is None and self.device.type != graphs.CAPTURE.DEVICE:
            why = f"it needs a CUDA device, and the engine is on {self.device}"
        if why is not None and graph is True:
            raise RuntimeError(f"graph=True: {why}; use graph='auto' or graph=False")
        return why is None

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Engine belongs to its process, and cannot be copied or pickled: make one there")

    def __repr__(self) -> str:
        running, waiting = len(self._floor.residents), len(self._waiting)
        return f"Engine({self.slots} slots of {self.shape}, {running} running, {waiting} waiting)"

    @property
    def stats(self) -> Stats:
        """Ticks, evaluations, rows with padding, and captures so far."""
        return self._floor.stats

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        floor = self._floor
        # Not between the queue and a slot, where another thread's tick has a request in neither.
        with self._door:
            return not (self._waiting or floor.coming or floor.running or floor.parked or floor.verdicts)

    @shows(SUBMIT_DEFAULTS, "method_options")
    def submit(self, method: Any = "dpm3", steps: int | None = None, **options: Unpack[SubmitOptions]) -> Request:
        """Ask for one sample. From any thread; nothing here waits for the device.

        Args:
            method, steps, plan, spacing, t_start, t_end, clip: as of `fastdiff.sample`, with the method's own options.
            x: the start, of the engine's shape; default: drawn from the prior with `seed`.
            seed, first_sample: as of `fastdiff.sample`: the sample is that of batch index 0.
            guidance: as of `fastdiff.sample`; `request.guidance = 5.0` changes it later.
            cond, uncond: what the network is given: dicts of keyword arguments, with tensors of first dimension 1.
                Without guidance `cond` alone is used.
            priority: those of a higher one enter first; among equals the oldest.
            previews: whether the predicted x0 of every evaluation is kept as `request.preview`.
            on_preview: called with each `Preview`, in the thread of the tick.
            noise, correct_x0, correct_xt: as of `fastdiff.sample`, for batches of 1.

        Raises:
            ValueError: a method that cannot enter, with the reason; arguments as `fastdiff.sample`.
            QueueFull: as many wait as the queue holds.
            Closed: the engine was closed.
        """
        return self._queued(self._desk.run(self, method, steps, dict(options)))

    def _mine(self) -> None:
        """RuntimeError after a fork, where the threads that hold locks are gone."""
        if os.getpid() != self._process:
            raise RuntimeError("this engine was made in another process, before a fork: make one in this process")

    def _queued(self, run: Run) -> Request:
        self._mine()
        with self._door:
            if self._closed:
                raise Closed("the engine is closed and takes no more requests: make a new one")
            if len(self._waiting) >= self.queue:
                for gone in self._waiting.leave_done():
                    self._known.pop(gone.request, None)
            if len(self._waiting) >= self.queue:
                raise QueueFull(
                    f"{len(self._waiting)} requests wait, as many as queue={self.queue} allows: try again when some "
                    "are done, or give Engine(..., queue=...) more"
                )
            run.since, run.ready = self._floor.ticks, self._place.mark()
            self._waiting.push(run)
            self._known[run.request] = run
        return run.request

    def rebind(self, request: Request, guidance: Any) -> None:
        """What `request.guidance = ...` calls."""
        run = self._known.get(request)
        # What takes long is done before the door is shut.
        bound = None if run is None else self._desk.rebound(run, guidance)
        with self._door:
            if run is None or bound is None or request not in self._known:
                raise ValueError(f"{request!r} is over: its guidance cannot change any more")
            guided, floor = bound.binding.guidance.batched, self._floor
            # With a block it runs, or is about to enter in another thread.
            if guided and (floor.buckets[-1] < 2 or (run.block != IDLE and not floor.holds(0, True))):
                raise ValueError("there is no room for another unconditional half: Engine(..., buckets=...) with more")
            run.next = bound
            floor.stirred = True

    def recall(self, request: Request) -> None:
        """What `request.cancel()` calls."""
        with self._door:
            run = self._known.get(request)
            if run is not None and run in self._waiting.inside:
                self._waiting.leave(run)
                del self._known[request]
            self._floor.stirred = True

    def _forget(self, run: Run) -> None:
        with self._door:
            self._known.pop(run.request, None)

    def _following(self, bound: int | None, rows: int) -> Run | None:
        """The next request, with a block of the table, or None where none may enter now: a `turns.Following`."""
        with self._door:
            run = self._waiting.first
            if run is None:
                return None
            run.renew()
            if (bound is not None and run.order[0] > bound) or run.width > rows or not self._floor.holds(1, run.guided):
                return None
            block = self._floor.batch.table.take(run.size)
            if block is None:
                return None
            self._waiting.leave(run)
            self._floor.admit(run, block)
            return run

    def step(self) -> int:
        """One tick: requests enter and leave, the network is called once, and each running request, or where there are
        more than slots each whose turn it is, gets one evaluation further. Returns how many rows of the network's input
        were requests'; 0 where there was nothing to do.

        An error of the network ends the requests of this tick, and not the engine.
        """
        self._alone()
        with self._turn:
            return self._tick()

    def _alone(self) -> None:
        """RuntimeError where this thread cannot begin a tick."""
        self._mine()
        if self._ticking == threading.get_ident():
            raise RuntimeError("a tick is under way in this thread, which one of its own functions asked to go on")

    def advance(self) -> bool:
        """`step`, unless another thread is at it. Returns whether it was done here."""
        self._alone()
        try:
            if not self._turn.acquire(blocking=False):
                return False
            self._tick()
            return True
        finally:
            # Not by what `acquire` returned: an interrupt may come before that is known.
            try:
                self._turn.release()
            except RuntimeError:
                pass

    def _tick(self) -> int:
        if self._place.cuda and graphs.CAPTURE.under_way():
            raise RuntimeError(
                "a CUDA graph is being captured on this stream, and a tick is the host's work too: call it outside"
            )
        try:
            self._ticking = threading.get_ident()
            with self._place.here():
                needed = self._evaluated()
                # Here callbacks of the caller's run, which must not wait for a tick either.
                self._floor.collect(wait=not needed)
        except BaseException as error:
            # The device's own, after which nothing runs, or an interrupt: nobody must wait for ever.
            self._broken(error, not isinstance(error, Exception))
            raise
        finally:
            self._ticking = None
        return needed

    def _evaluated(self) -> int:
        floor = self._floor
        try:
            with sampling_mode():
                floor.arrange(bool(self._waiting), self._following)
                needed = floor.evaluate() if floor.running else 0
                if floor.stirred and floor.over and not self._waiting:
                    # No tick may come, and they would keep their memory.
                    floor.arrange(False, self._following)
                return needed
        except Exception as error:
            floor.abandon(error)
            return 0

    def _broken(self, error: BaseException, queue: bool) -> None:
        """End every request that has begun, with the reason. `queue`: those that wait go on later. An interrupt comes
        between any two operations, after which no state is known to be whole, and the lists may not be."""
        with self._door:
            if not queue:
                self._waiting.clear()
            waiting = {run.request: run for run in self._waiting}
            ended = [request for request in self._known if request not in waiting]
            ended += self._floor.forget()
            self._known = dict(waiting)
        for request in ended:
            request.fail(error)

    def run(self) -> None:
        """Tick until nothing runs and nothing waits."""
        while not self.idle:
            self.step()

    def close(self, cancel: bool = False) -> None:
        """Take no more requests, and run those that are there to their end, or `cancel` them."""
        with self._door:
            self._closed = True
            known = list(self._known) if cancel else []
        for request in known:
            request.cancel()
        self.run()
        self._driver.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    async def generate(
        self, method: Any = "dpm3", steps: int | None = None, **options: Unpack[SubmitOptions]
    ) -> torch.Tensor:
        """`submit`, and the sample. The ticks run in a thread of the engine's own as long as there is something to do.
        Cancelling the task cancels the request."""
        return await self._driver.generate(self.submit(method, steps, **options))

    async def stream(
        self, method: Any = "dpm3", steps: int | None = None, **options: Unpack[SubmitOptions]
    ) -> AsyncGenerator[Preview, None]:
        """`submit` with previews, and `follow`, from the first evaluation on."""
        run = self._desk.run(self, method, steps, {**options, "previews": True})
        arrived = self._driver.listen(run.request)
        async with contextlib.aclosing(self._driver.follow(self._queued(run), arrived)) as previews:
            async for preview in previews:
                yield preview

    async def follow(self, request: Request) -> AsyncGenerator[Preview, None]:
        """The `Preview` of each evaluation of a request that was submitted with `previews=True`, from the latest;
        the last one's x0 is the sample, at the time where the run ends. Leaving the loop cancels the request.

        Raises:
            Exception: what ended the request; RuntimeError where it was cancelled.
        """
        arrived = self._driver.listen(request)
        async with contextlib.aclosing(self._driver.follow(request, arrived)) as previews:
            async for preview in previews:
                yield preview


def _buckets(given: Sequence[int] | None, slots: int) -> tuple[int, ...]:
    if given is None:
        powers = {2**k for k in range((2 * slots).bit_length())}
        return tuple(sorted({n for n in powers if n < 2 * slots} | {slots, 2 * slots}))
    if not isinstance(given, Iterable):
        raise TypeError(f"buckets={short(given)}: expected ascending sizes, such as buckets=(1, 2, 4, 8)")
    found = tuple(whole("buckets", n, 1, 2**17, "buckets=(1, 2, 4, 8)") for n in given)
    if not found or list(found) != sorted(set(found)):
        raise ValueError(f"buckets={short(given)}: expected ascending sizes, such as buckets=(1, 2, 4, 8)")
    return found
