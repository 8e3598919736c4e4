"""A CUDA device played by the CPU, so that tests and benchmarks that need a GPU are executed without one.

As a pytest plugin (`-p helpers.cuda_on_cpu`) or by `install()`, in a process of its own. Tensors asked for on "cuda"
are made on the CPU; the back end "cuda" is the one for the CPU, and so is "triton", or Triton's interpreter where
TRITON_INTERPRET=1. A graph repeats what was recorded, on the same tensors: a value that a capture has baked in is stale
in a replay, and a wait for the device raises. What passes here says nothing about a GPU but that the code for it runs.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
WAITS = "CUDA error: operation not permitted when stream is capturing"
COPIES = "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned."
ENDED = "CUDA error: operation failed due to a previous error during capture"
HERE = threading.local()
KERNELS = ("stage", "normal_", "quantile_")


def _moved(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return "cpu" if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")) else value


class OnCpu(TorchFunctionMode):
    """Reads "cuda" as "cpu" in every call."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.record_stream:
            return None
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.device:
            return CPU
        given = [*args[1:], *(kwargs or {}).values()]
        if func is torch.Tensor.to and recording() is not None and any(isinstance(v, torch.device) for v in given):
            raise RuntimeError(COPIES)
        return func(*map(_moved, args), **{name: _moved(v) for name, v in (kwargs or {}).items()})


class Recorder(TorchDispatchMode):
    """Keeps every operation, to be repeated on the same memory."""

    def __init__(self, calls: list[Callable[[], object]]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            raise RuntimeError(WAITS)
        out = func(*args, **kwargs)
        if not func.__name__.startswith(("empty", "new_empty")):
            self.calls.append(lambda: _again(func, args, kwargs, out))
        return out


def _again(func: Any, args: Any, kwargs: Any, kept: Any) -> None:
    for old, new in zip(tree_leaves(kept), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
            old.copy_(new)


def recording() -> list[Callable[[], object]] | None:
    return getattr(HERE, "calls", None)


def recorded(launch: Callable[..., None]) -> Callable[..., None]:
    """A back end's own kernels, which torch does not see."""

    def run(*args: Any) -> None:
        launch(*args)
        if (calls := recording()) is not None:
            # What a launch is given by value is what it is now; buffers are named anew for every stage.
            calls.append(lambda: launch(*args))

    return run


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.cuda_stream = 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in ("wait_stream", "wait_event", "synchronize", "record_event"):
            raise AttributeError(name)
        return lambda *arguments: None


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, _moved(device))


class Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(str(_moved(device_type)), *args, **kwargs)


def compiled(model: Callable[..., Any], mode: str | None = None, **options: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    call.get_compiler_config = lambda: {"triton.cudagraphs": mode == "reduce-overhead"}  # type: ignore[attr-defined]
    return call


class CUDAGraph:
    living: ClassVar[weakref.WeakSet[CUDAGraph]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.living.add(self)

    def replay(self) -> None:
        assert recording() is None, "CUDAGraph: a replay inside a capture"
        for call in self.calls:
            call()


class Graph:
    """As torch.cuda.graph up to 2.13: where the end of the capture raises, its stream stays current."""

    def __init__(
        self, graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> None:
        self.graph, self.stream, self.mode = graph, stream or Stream(), Recorder(graph.calls)

    def __enter__(self) -> None:
        self.before, HERE.stream = current_stream(), self.stream
        HERE.calls = self.graph.calls
        self.mode.__enter__()

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.mode.__exit__(kind, value, trace)
        HERE.calls = None
        if WAITS in str(value):
            raise RuntimeError(ENDED)
        HERE.stream = self.before


DEFAULT = Stream()


def current_stream(device: Any = None) -> Stream:
    return getattr(HERE, "stream", DEFAULT)


@contextlib.contextmanager
def stream(given: Stream) -> Iterator[None]:
    before, HERE.stream = current_stream(), given
    try:
        yield
    finally:
        HERE.stream = before


def install() -> None:
    """From here on, in this process, the CPU is the CUDA device."""
    from fastdiff.ops import cpu, cuda, triton
    from fastdiff.run import capture

    OnCpu().__enter__()
    zero = ("memory_reserved", "current_device", "synchronize", "empty_cache", "set_sync_debug_mode")
    properties = SimpleNamespace(
        name="CPU", major=9, minor=0, total_memory=2**33, multi_processor_count=1, L2_cache_size=2**20
    )
    stand_ins: dict[str, Any] = {
        **{name: lambda *arguments: 0 for name in zero},
        # All that a graph holds goes with it.
        "memory_allocated": lambda: sum(len(g.calls) for g in CUDAGraph.living),
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: getattr(HERE, "calls", None) is not None,
        "get_device_name": lambda *arguments: "CPU",
        "get_device_capability": lambda *arguments: (9, 0),
        "get_device_properties": lambda *arguments: properties,
        "graph_pool_handle": lambda: (0, 1),
        **{f.__name__: f for f in (Stream, Event, CUDAGraph, current_stream, stream)},
        "graph": Graph,
    }
    for name, value in stand_ins.items():
        setattr(torch.cuda, name, value)
    # What no mode sees.
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        asked = getattr(torch, name)
        setattr(torch, name, lambda where="cpu", asked=asked: asked(str(_moved(where))))
    torch.Generator, torch.autocast = Generator, Autocast  # type: ignore[misc]
    torch.compile = compiled  # type: ignore[assignment]
    capture.CudaCapture.DEVICE = "cpu"
    for module in (cpu, cuda):
        # Launches by address keep nothing alive for a recorder.
        module.launcher = None  # type: ignore[assignment]
        module.walks = None  # type: ignore[assignment]
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for module in (cpu, triton) if interpreted else (cpu,):
        for name in KERNELS:
            setattr(module, name, recorded(getattr(module, name)))
    for module in (cuda,) if interpreted else (cuda, triton):
        for name in (*KERNELS, "supports"):
            setattr(module, name, getattr(cpu, name))
        module.available = lambda: (True, "played by the CPU")


def pytest_configure(config: Any) -> None:
    install()


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Some parameters of every test, and fewer repetitions."""
    kept: list[Any] = []
    for item in items:
        item.module.REPLAYS, item.module.BUSY = 20, (1, 2, 8, 8)
        same = [other for other in kept if other.function is item.function]
        given = item.callspec.params if hasattr(item, "callspec") else {}
        # The first ones of each kernel, and those of each of the other small sets.
        few = 4 if len(given.keys() & {"seed", "method", "n"}) else 8
        alike = [o for o in same if o.callspec.params.get("name") == given.get("name")]
        if len(alike) < few:
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
