"""What a capture does to torch's state, with stand-ins for `torch.cuda` that fail as it does; tests/test_gpu.py has the
device's own word."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from fastdiff.run import capture, graph

DEVICE = torch.device("cuda", 0)
ENDED = "CUDA error: operation failed due to a previous error during capture"


class Stream:
    def __init__(self, device: torch.device | None = None) -> None:
        self.waited: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)


class Cuda:
    """The calls, in order, and the current stream."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.current = Stream()
        self.handles = 0

    def handle(self) -> tuple[int, int]:
        self.handles += 1
        return 0, self.handles

    @contextlib.contextmanager
    def stream(self, stream: Stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    state = Cuda()

    class Graph:
        """As torch.cuda.graph up to 2.13: where the end of the capture raises, its stream stays current."""

        def __init__(self, graph, pool=None, stream=None, capture_error_mode="global") -> None:
            self.pool, self.stream = pool, stream

        def __enter__(self) -> None:
            self.before, state.current = state.current, self.stream
            state.calls.append("begin")

        def __exit__(self, kind, value, trace) -> None:
            if kind is not None:
                raise RuntimeError(ENDED)
            state.calls.append("end")
            state.current = self.before

    def log(name: str):
        return lambda *arguments: state.calls.append((name, *arguments))

    monkeypatch.setattr(threading, "active_count", lambda: 1)
    for name, value in {
        "CUDAGraph": object,
        "Stream": Stream,
        "stream": state.stream,
        "graph": Graph,
        "current_stream": lambda device=None: state.current,
        "synchronize": log("synchronize"),
        "graph_pool_handle": state.handle,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", log("end pool"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", log("release pool"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: state.calls.append("clear"), raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: state.calls.append("mend"))
    return state


def fails() -> torch.Tensor:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


def test_a_failed_capture_leaves_nothing_behind(cuda: Cuda) -> None:
    before, pool = cuda.current, capture.Pool(DEVICE)
    with pytest.raises(RuntimeError, match="previous error") as error:
        capture.CudaCapture(DEVICE, pool).capture(fails)
    assert cuda.current is before
    assert graph._reason(error.value).startswith("it waits for the device")
    # The allocator's capture is ended before another begins, which takes the generator out of its capturing state.
    tail = cuda.calls[cuda.calls.index("begin") + 1 :]
    assert tail == [
        ("synchronize", DEVICE),
        ("end pool", 0, (0, 1)),
        ("release pool", 0, (0, 1)),
        "begin",
        "mend",
        "end",
        "clear",
    ]
    assert not pool.graphs and pool.handle() == (0, 2)


def test_memory_that_torch_ended_itself_is_not_released_twice(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(device: int, handle: object) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ended)
    with pytest.raises(RuntimeError, match="previous error"):
        capture.CudaCapture(DEVICE, capture.Pool(DEVICE)).capture(fails)
    assert not any(call[0] == "release pool" for call in cuda.calls if isinstance(call, tuple))
    assert "mend" in cuda.calls


def test_graphs_share_memory_while_one_of_them_lives(cuda: Cuda) -> None:
    """Torch refuses the id of memory that no graph holds any more."""
    pool, result = capture.Pool(DEVICE), torch.ones(1)
    first, second = capture.CudaCapture(DEVICE, pool), capture.CudaCapture(DEVICE, pool)
    assert first.capture(lambda: result) is result and second.capture(lambda: result) is result
    assert cuda.handles == 1
    del first
    assert pool.handle() == (0, 1)
    del second
    assert pool.handle() == (0, 2)


def test_a_failed_warm_up_is_waited_for(cuda: Cuda) -> None:
    """Its kernels may still read what is given back to the current stream."""
    made = capture.CudaCapture(DEVICE, capture.Pool(DEVICE))
    with pytest.raises(RuntimeError, match="not permitted"):
        made.warm_up(fails)
    assert cuda.current.waited == [made.stream] and made.stream.waited == [cuda.current]


def test_uses_of_a_pool_wait_for_each_other(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device, whichever stream they are on: each waits for what the last one recorded, also where it failed."""

    class Event:
        def record(self, stream: Stream) -> None:
            cuda.calls.append(("record", stream))

    waits = lambda self, event: cuda.calls.append(("wait", self))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Stream, "wait_event", waits, raising=False)
    pool, streams = capture.Pool(DEVICE), [Stream() for _ in range(3)]
    for i, stream in enumerate(streams):
        with contextlib.suppress(ZeroDivisionError), cuda.stream(stream), pool.turn():
            cuda.calls.append(i)
            _ = 1 // i
    a, b, c = streams
    assert cuda.calls == [0, ("record", a), ("wait", b), 1, ("record", b), ("wait", c), 2, ("record", c)]


def test_a_capture_is_recorded_on_its_stream_and_leaves_other_threads_alone(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything before it is done, and the workspaces of libraries are taken anew in it and after it."""
    given: list[tuple[object, str]] = []
    made = torch.cuda.graph

    class Watched(made):  # type: ignore[valid-type, misc]
        def __init__(self, graph, pool=None, stream=None, capture_error_mode="global") -> None:
            given.append((stream, capture_error_mode))
            super().__init__(graph, pool, stream, capture_error_mode)

    monkeypatch.setattr(torch.cuda, "graph", Watched)
    one = capture.CudaCapture(DEVICE, capture.Pool(DEVICE))
    one.capture(lambda: cuda.calls.append("body") or torch.ones(1))
    assert cuda.calls == [("synchronize", DEVICE), "clear", "begin", "body", "end", "clear"]
    assert given == [(one.stream, "thread_local")]


def test_beside_other_threads_no_workspace_is_cleared(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be using one. The graphs then read workspaces of one stream, and wait for each other on the
    device, whichever model they are of; those that were captured alone wait for none."""

    class Event:
        def record(self, stream: Stream) -> None:
            cuda.calls.append("record")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Stream, "wait_event", lambda self, event: cuda.calls.append("wait"), raising=False)
    monkeypatch.setattr(capture, "_WORKSPACES", {})
    alone, one, two = (capture.Pool(DEVICE) for _ in range(3))
    capture.CudaCapture(DEVICE, alone)
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    made = capture.CudaCapture(DEVICE, one)
    capture.CudaCapture(DEVICE, two)
    made.capture(lambda: torch.ones(1))
    assert "clear" not in cuda.calls and (alone.shared, one.shared, two.shared) == (False, True, True)
    made.warm_up(lambda: torch.ones(1))
    cuda.calls.clear()
    for pool in (alone, two, one):
        with pool.turn():
            cuda.calls.append("use")
    # Each is the first use of its memory; the last two wait for the workspaces: the warm-up, then one another.
    assert cuda.calls == ["use", "record", *2 * ["wait", "use", "record", "record"]]
