"""The engine under asyncio: its ticks in one thread, as long as there is something to do."""

from __future__ import annotations

import asyncio
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
        # Of each event loop that waits for requests, the task that ticks.
        self.tasks: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """See to it that ticks run until the engine is idle."""
        loop = asyncio.get_running_loop()
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1, "fastdiff-engine")
        task = self.tasks.get(loop)
        if task is None or task.done():
            self.tasks[loop] = loop.create_task(self._drive(loop))

    async def _drive(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while not self.engine.idle:
                await loop.run_in_executor(self.thread, self.engine.step)
        finally:
            self.tasks.pop(loop, None)

    async def generate(self, request: Request) -> torch.Tensor:
        """The sample; the request is cancelled with the task that waits for it."""
        self.wake()
        done = asyncio.Event()
        self._tell(request, done.set)
        try:
            await done.wait()
        except asyncio.CancelledError:
            request.cancel()
            self.wake()
            raise
        return _result(request)

    async def follow(self, request: Request) -> AsyncGenerator[Preview, None]:
        """Previews as they come; the last one is the sample."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Preview | None]()
        request.watch(lambda preview: loop.call_soon_threadsafe(arrived.put_nowait, preview))
        self._tell(request, lambda: arrived.put_nowait(None))
        self.wake()
        try:
            while (preview := await arrived.get()) is not None:
                if preview.done < preview.nfe:
                    yield preview
            yield Preview(request.nfe, request.nfe, request.ends, _result(request))
        finally:
            if request.cancel():
                self.wake()

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
