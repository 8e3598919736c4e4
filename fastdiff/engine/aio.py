"""The engine under asyncio: its ticks in one thread, as long as there is something to do."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Protocol

import torch

from fastdiff.engine.request import Preview, Request


class Ticking(Protocol):
    """What is driven."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""

    def step(self) -> int:
        """One tick."""


class Driver:
    """Ticks of one engine for the event loops that wait for its requests."""

    def __init__(self, engine: Ticking) -> None:
        self.engine = engine
        self.thread: ThreadPoolExecutor | None = None
        # The event loops that ask for one tick after the other. None has a task of ours, which it would have to end.
        self.loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    def wake(self) -> None:
        """See to it that ticks run until the engine is idle."""
        loop = asyncio.get_running_loop()
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1, "fastdiff-engine")
        if loop not in self.loops:
            self.loops.add(loop)
            self._next(loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask for a tick, in the event loop's thread: what waits there comes between two ticks."""
        thread = self.thread
        if thread is not None and not self.engine.idle:
            with contextlib.suppress(RuntimeError):
                thread.submit(self._tick, loop)
                return
        # Nothing is left to do, or the engine was closed at this moment.
        self.loops.discard(loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.engine.step()
        finally:
            # Whatever it raised, which the requests that it ended have too: others wait.
            with contextlib.suppress(RuntimeError):
                # The loop was closed.
                loop.call_soon_threadsafe(self._next, loop)

    async def generate(self, request: Request) -> torch.Tensor:
        """The sample; the request is cancelled with the task that waits for it."""
        self.wake()
        done = asyncio.Event()
        self._tell(request, done.set)
        try:
            await done.wait()
        except asyncio.CancelledError:
            # The ticks go on until it has left; where they were cancelled too, the loop is ending.
            request.cancel()
            raise
        return _result(request)

    def listen(self, request: Request) -> asyncio.Queue[Preview | None]:
        """Where previews come from now on, and None at the end."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Preview | None]()
        request.watch(lambda preview: loop.call_soon_threadsafe(arrived.put_nowait, preview))
        self._tell(request, lambda: arrived.put_nowait(None))
        return arrived

    async def follow(self, request: Request, arrived: asyncio.Queue[Preview | None]) -> AsyncGenerator[Preview, None]:
        """Previews as they come; the last one is the sample."""
        self.wake()
        last = 0
        try:
            while (preview := await arrived.get()) is not None:
                if last < preview.done < preview.nfe:
                    last = preview.done
                    yield preview
            yield Preview(request.nfe, request.nfe, request.ends, _result(request))
        finally:
            request.cancel()

    def _tell(self, request: Request, call: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        request.add_done_callback(lambda r: loop.call_soon_threadsafe(call))

    def close(self) -> None:
        """Let the thread end."""
        if self.thread is not None:
            self.thread.shutdown(wait=False)
            self.thread = None


def _result(request: Request) -> torch.Tensor:
    try:
        return request.result(0)
    except CancelledError:
        # The event loop's own error of that name would say that the waiting task was cancelled.
        raise RuntimeError(f"{request!r} was cancelled while it was waited for") from None
