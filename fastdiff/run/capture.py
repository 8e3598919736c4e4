"""One CUDA graph of torch's: its memory, its capture on a side stream, and what a failed capture must leave behind."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Turn:
    """Uses of something on a device, from any thread and stream, one after another: one lock, and one event between
    streams. As a context: waits for the last use, on whichever stream it was, and lets the next one wait for this."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.event: torch.cuda.Event | None = None
        # Of the uses within each other, of the thread that has the lock.
        self.streams: list[Any] = []

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            stream = torch.cuda.current_stream(self.device)
            if self.event is None:
                self.event = torch.cuda.Event()
            else:
                stream.wait_event(self.event)
        except BaseException:
            self.lock.release()
            raise
        self.streams.append(stream)

    def __exit__(self, *exception: object) -> None:
        try:
            assert self.event is not None
            self.event.record(self.streams.pop())
        finally:
            self.lock.release()


# Of the workspaces that libraries keep for the captures' stream of a device.
_WORKSPACES: dict[torch.device, Turn] = {}


class Pool:
    """The memory that the graphs of one model share, which never replay at the same time.

    Attributes:
        shared: whether one of them reads a workspace that graphs of other models read too.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.shared = device, False
        self.own = Turn(device)
        self.graphs: weakref.WeakSet[CudaCapture] = weakref.WeakSet()
        self._handle: Any = None

    def handle(self) -> Any:
        """The memory's id; a fresh one where no graph holds the old one, which torch then refuses to use again."""
        if self._handle is None or not self.graphs:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle

    def abandon(self) -> None:
        """Take other memory for the next graph."""
        self._handle = None

    def turn(self) -> contextlib.AbstractContextManager[Any]:
        """The use of this memory, and of the workspaces where these are shared."""
        return self._both() if self.shared else self.own

    @contextlib.contextmanager
    def _both(self) -> Iterator[None]:
        with self.own, self.workspaces():
            yield

    def workspaces(self) -> contextlib.AbstractContextManager[Any]:
        """The turn at the workspaces of the captures' stream, where graphs share them."""
        if not self.shared:
            return contextlib.nullcontext()
        with _CAPTURING:
            return _WORKSPACES.setdefault(self.device, Turn(self.device))


# The start of a capture synchronises the device and empties the allocator's cache, which would break another capture.
_CAPTURING = threading.RLock()


# Streams are few and never given back by torch: captures, which take turns, share one for each device.
_STREAMS: dict[torch.device, Any] = {}


def side_stream(device: torch.device) -> Any:
    """The stream of a device that captures are recorded on."""
    with _CAPTURING:
        if device not in _STREAMS:
            _STREAMS[device] = torch.cuda.Stream(device)
        return _STREAMS[device]


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a capture may free what belongs to another graph, which breaks the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CudaCapture:
    """One CUDA graph, with the stream that it is recorded on. Tests use a stand-in with the same methods instead."""

    DEVICE = "cuda"

    def __init__(self, device: torch.device, pool: Pool) -> None:
        self.device, self.pool = device, pool
        self.graph = torch.cuda.CUDAGraph()
        self.stream = side_stream(device)
        # What is cleared for one thread may be in use by another.
        self.clears = threading.active_count() == 1
        pool.shared = pool.shared or not self.clears

    @staticmethod
    def refusal() -> str | None:
        """Why this process cannot capture, or None."""
        return None if torch.cuda.is_available() else "it needs a CUDA device, and torch sees none here"

    @staticmethod
    def under_way() -> bool:
        """Whether the caller is capturing a graph of its own on the current stream, which this run then belongs to."""
        return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()

    @staticmethod
    def make_pool(device: torch.device) -> Pool:
        return Pool(device)

    def warm_up(self, body: Callable[[], torch.Tensor]) -> None:
        """Run once on the capture's stream, so that libraries make their handles and workspaces outside the graph."""
        with self.pool.workspaces():
            current = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):
                    body()
            finally:
                # Also where it raised: its kernels still read buffers that are now given back.
                current.wait_stream(self.stream)

    def capture(self, body: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Record `body`; its result is the tensor that every replay fills."""
        # The outer stream, which is the current one, is there to be restored: where the end of a capture raises,
        # torch.cuda.graph leaves its own stream current.
        with _CAPTURING, no_garbage_collection(), torch.cuda.stream(torch.cuda.current_stream(self.device)):
            torch.cuda.synchronize(self.device)
            handle = self.pool.handle()
            self._clear_workspaces()
            try:
                # Other threads may go on allocating and launching.
                with torch.cuda.graph(self.graph, pool=handle, stream=self.stream, capture_error_mode="thread_local"):
                    result = body()
            except BaseException:
                self.pool.abandon()
                _recover(self.device, handle)
                raise
            finally:
                self._clear_workspaces()
            self.pool.graphs.add(self)
            return result

    def replay(self) -> None:
        self.graph.replay()

    def _clear_workspaces(self) -> None:
        """Let cuBLAS take its workspace again: inside a capture from the graph's own memory, after it from elsewhere.

        Torch keeps one for each thread's handle and stream. The warm-up's would be read by the graph's launches, while
        torch may give it back (it does with every graph of torch.compile, and with graphs captured on the same stream:
        pytorch/pytorch#193402), or use it for other work on that stream at the same time. Torch clears those of all
        threads, so that where there are others nothing is cleared: graphs captured then take turns instead.
        """
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None and self.clears:
            clear()


def _recover(device: torch.device, handle: Any) -> None:
    """After a failed capture, put right what torch leaves behind where ending it raises.

    Before 2.13 the allocator takes the capture to be under way for ever (pytorch/pytorch#180395): every later one, and
    torch.cuda.empty_cache(), would raise. The default generator stays in its capturing state, in which eager random
    numbers raise, until another capture ends well.
    """
    with contextlib.suppress(Exception):
        torch.cuda.synchronize(device)
    with contextlib.suppress(Exception):
        names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")
        end = next(getattr(torch._C, name) for name in names if hasattr(torch._C, name))
        # Raises where torch has ended it itself; the graph then gives the memory back as well.
        end(device.index, handle)
        torch._C._cuda_releasePool(device.index, handle)
    with contextlib.suppress(Exception):
        stream = torch.cuda.Stream(device)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
            torch.zeros(1, device=device)
