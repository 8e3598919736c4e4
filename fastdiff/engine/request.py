"""A submitted run as its owner sees it: a future, with progress, previews and a guidance that may change."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, NamedTuple, NoReturn, Protocol

import torch


class QueueFull(RuntimeError):
    """As many requests wait as the engine's queue holds."""


class Closed(RuntimeError):
    """The engine takes no more requests."""


class Preview(NamedTuple):
    """What an evaluation predicted.

    Attributes:
        done: evaluations so far, from 1; nfe: of the whole run.
        t: the schedule's time of the evaluation.
        x0: the predicted x0 there, of a sample's shape, in the state's dtype: guided, corrected and clipped, as the
            callback of `fastdiff.sample` is given it.
    """

    done: int
    nfe: int
    t: float
    x0: torch.Tensor


class Progress(NamedTuple):
    """Evaluations done, and of the whole run."""

    done: int
    nfe: int


class Owner(Protocol):
    """What a request needs of its engine."""

    def advance(self) -> bool:
        """One tick, unless another thread is at it. Returns whether it was done here."""

    def recall(self, request: Request) -> None:
        """Take a cancelled request out of the queue."""

    def rebind(self, request: Request, guidance: Any) -> None:
        """Other guidance from the next tick on."""


class Request(Future[torch.Tensor]):
    """One run in an `Engine`, and a future of its sample: `concurrent.futures.wait`, `as_completed` and
    `asyncio.wrap_future` take it where another thread advances the engine. Not made by hand: `Engine.submit` gives it.

    Attributes:
        method: the name of its method.
        nfe: how often its network is evaluated.
        ends: the schedule's time at which its run ends.
        seed: as it was given.
        waited: ticks that began while it was in the queue.
        preview: the latest `Preview`, or None; only where previews were asked for.
        count: evaluations done. ended: whether it is done, failed or cancelled.
    """

    def __init__(
        self,
        owner: Owner,
        method: str,
        nfe: int,
        ends: float,
        seed: int,
        guidance: Any,
        watch: Callable[[Preview], object] | None,
    ) -> None:
        super().__init__()
        self.method, self.nfe, self.ends, self.seed, self.waited = method, nfe, ends, seed, 0
        self.preview: Preview | None = None
        self._owner, self._guidance = owner, guidance
        self._watches = [] if watch is None else [watch]
        self.count, self.ended = 0, False
        self._running, self._notified = False, threading.Lock()

    def __repr__(self) -> str:
        return f"Request({self.method!r}, {self.status}, {self.count} of {self.nfe} evaluations)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Request belongs to its engine in this process and cannot be copied or pickled: send request.result()"
        )

    @property
    def status(self) -> str:
        """'waiting', 'running', 'done', 'cancelled' or 'failed'."""
        if self.cancelled():
            return "cancelled"
        if self.done():
            return "done" if super().exception() is None else "failed"
        return "running" if self._running else "waiting"

    @property
    def progress(self) -> Progress:
        return Progress(self.count, self.nfe)

    @property
    def guidance(self) -> Any:
        """A number, a function of time or a form of `fastdiff.guidance`, as it was given. Setting it changes the
        running request from the next tick on.

        Raises:
            ValueError, TypeError: as `Engine.submit`; a request without `uncond` that is to be guided; forms that run
                by themselves (docs/engine.md), to which and from which a running request does not change.
        """
        return self._guidance

    @guidance.setter
    def guidance(self, value: Any) -> None:
        self._owner.rebind(self, value)
        self._guidance = value

    def result(self, timeout: float | None = None) -> torch.Tensor:
        """The sample, of the engine's shape. Where nobody else advances the engine, this does, for all requests.

        Raises:
            concurrent.futures.TimeoutError: not done after `timeout` seconds.
            concurrent.futures.CancelledError: it was cancelled.
            FloatingPointError: the sample is not finite.
            Exception: what ended it.
        """
        self._wait(threading.TIMEOUT_MAX if timeout is None else timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What ended it, or None; raises as `result` for one that was cancelled, or is not done in time."""
        self._wait(threading.TIMEOUT_MAX if timeout is None else timeout)
        return super().exception(0)

    def running(self) -> bool:
        """Whether it has a slot. It may be cancelled all the same."""
        return self._running and not self.done()

    def cancel(self) -> bool:
        """Give it up, also while it runs: False if it is done already. Its slot is free at the next tick."""
        given_up = super().cancel()
        if given_up:
            self.ended = True
            # Once, of all threads that cancel it: tells those that wait for several futures.
            if self._notified.acquire(blocking=False):
                self.set_running_or_notify_cancel()
            self._owner.recall(self)
        return given_up

    def watch(self, call: Callable[[Preview], object]) -> None:
        """`call(preview)` with the latest at once, where there is one, and with each from now on, in the thread of the
        tick; what it raises there ends the request. It may be given one twice. Only where previews were asked for."""
        self._watches.append(call)
        if self.preview is not None:
            call(self.preview)

    # What follows is the engine's, in the thread of its tick.

    def began(self, waited: int) -> None:
        self._running, self.waited = True, waited

    def shown(self, preview: Preview) -> None:
        """A preview arrived; raises what the caller's own function raises."""
        self.preview = preview
        for watch in self._watches:
            watch(preview)

    def finish(self, x: torch.Tensor) -> None:
        # Cancelled at this moment: its owner was told so.
        with contextlib.suppress(InvalidStateError):
            self.set_result(x)
        self.ended = True

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):
            self.set_exception(error)
        self.ended = True

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + min(seconds, threading.TIMEOUT_MAX)
        while not self.done():
            if time.monotonic() >= ends:
                raise FutureTimeout(f"{self!r} was not done in {seconds:g} s")
            if not self._owner.advance():
                try:
                    super().exception(min(0.05, max(0.0, ends - time.monotonic())))
                except (FutureTimeout, CancelledError):
                    continue
