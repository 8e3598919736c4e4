"""The whole loop as one CUDA graph: capture, replay with other values, and the eager loop where nothing can be
captured.

A graph is kept for each signature: model, shapes, dtypes, and the plan's structure. Everything that is a value (seeds,
x, coefficients, times, bounds, conditioning) lies in static buffers, which every call fills before it replays.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from types import MethodType
from typing import Any, NamedTuple

import torch

from fastdiff.names import warn
from fastdiff.run.capture import CudaCapture
from fastdiff.run.entry import Entry, leaves_of, sources_of, static_run
from fastdiff.run.history import recycles
from fastdiff.run.loop import Run, run
from fastdiff.run.weights import Weights

MAX_GRAPHS = 16
"""How many graphs are kept, the least recently used going first."""

_MAX_SEEN = 1024

CAPTURE: Any = CudaCapture


class Refusal(NamedTuple):
    """Why a run can have no graph. `asked`: because the call asks for work on the host, which needs no warning."""

    why: str
    asked: bool = False


class Cache:
    """Graphs by signature; signatures seen once; and signatures that failed, with the reason."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.entries: dict[Hashable, Entry] = {}
        self.uses = 0
        self.seen: OrderedDict[Hashable, None] = OrderedDict()
        self.failed: OrderedDict[Hashable, str] = OrderedDict()
        self.pools: dict[Hashable, Any] = {}

    def get(self, key: Hashable) -> Entry | None:
        with self.lock:
            entry = self.entries.get(key)
            if entry is not None:
                self.touch(entry)
            return entry

    def touch(self, entry: Entry) -> None:
        """It is being used."""
        self.uses += 1
        entry.used = self.uses

    def put(self, key: Hashable, entry: Entry) -> None:
        with self.lock:
            self.entries[key] = entry
            self.touch(entry)
            while len(self.entries) > MAX_GRAPHS:
                del self.entries[min(self.entries, key=lambda k: self.entries[k].used)]

    def forget(self, key: Hashable) -> None:
        with self.lock:
            self.entries.pop(key, None)

    def first_time(self, key: Hashable) -> bool:
        with self.lock:
            if key in self.seen:
                return False
            self.seen[key] = None
            while len(self.seen) > _MAX_SEEN:
                self.seen.popitem(last=False)
            return True

    def fail(self, key: Hashable, why: str) -> None:
        with self.lock:
            self.failed[key] = why
            while len(self.failed) > _MAX_SEEN:
                self.failed.popitem(last=False)

    def pool(self, owner: Hashable, device: torch.device) -> Any:
        with self.lock:
            key = (owner, device)
            if key not in self.pools:
                self.pools[key] = CAPTURE.make_pool(device)
            return self.pools[key]

    def drop(self, match: Callable[[Any], bool]) -> None:
        with self.lock:
            for table in (self.entries, self.seen, self.failed):
                for key in [k for k in table if match(k)]:
                    del table[key]
            for key in [k for k in self.pools if match(k)]:
                del self.pools[key]


CACHE = Cache()


def capture_refusal() -> str | None:
    """Why nothing can be captured in this process, or None."""
    why: str | None = CAPTURE.refusal()
    return why


def clear_graphs() -> None:
    """Free every captured graph and its memory, and forget which models could not be captured."""
    CACHE.drop(lambda key: True)


def _identity(model: Any) -> Hashable | None:
    """What stands for the model in a signature, and does not keep it alive; None if nothing can."""
    owner, function = (model.__self__, model.__func__) if isinstance(model, MethodType) else (model, None)
    try:
        return (weakref.ref(owner, _forget), function)
    except TypeError:
        return None


def _has_own_graphs(model: Any) -> bool:
    """Whether it was compiled in a mode that makes CUDA graphs."""
    asked = getattr(model, "get_compiler_config", None)
    config = asked() if asked is not None else None
    return bool(isinstance(config, dict) and config.get("triton.cudagraphs"))


def _forget(dead: Any) -> None:
    # None while the interpreter ends.
    if CACHE is not None:
        CACHE.drop(lambda key: key[0][0] is dead or key[0][0] == dead)


def signature(r: Run, start: torch.Tensor) -> Hashable | Refusal:
    """The key of a run's graph, or why it cannot have one."""
    model, hooks, program = r.network.model, r.hooks, r.program
    if start.device.type != CAPTURE.DEVICE:
        return Refusal(f"it needs a CUDA device, and this run is on {start.device}", True)
    guidance = r.evaluator.binding.guidance
    asked = {
        "callback": hooks.callback,
        "return_trajectory": hooks.trajectory,
        "check_finite": hooks.finite or None,
        "progress": hooks.progress,
        "noise": r.noise,
        "classifier_grad": guidance.gradient,
        "correct_x0": hooks.correct_x0,
        "correct_xt": hooks.correct_xt,
    }
    present = [name for name, value in asked.items() if value is not None]
    if present:
        return Refusal(f"{', '.join(present)} runs on the host between the network's calls", True)
    owner = _identity(model)
    if owner is None:
        return Refusal(f"a {type(model).__name__} cannot be weakly referenced, so its graph could outlive it")
    if _has_own_graphs(model):
        return Refusal(f"the model {_OWN_GRAPHS}")
    leaves = leaves_of(r.network.kwargs)
    elsewhere = next((t.device for t in leaves.tensors if t.device != start.device), None)
    if elsewhere is not None:
        return Refusal(
            f"a tensor on {elsewhere} in model_kwargs or cond would be read once, when the graph is captured"
        )
    autocast = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
    form: Hashable = None
    if program.numbers is not None or r.network.outputs > 1:
        shape = None if program.numbers is None else program.numbers.shape
        weak = None if guidance.weak is None else (_identity(guidance.weak), getattr(guidance.weak, "training", None))
        if weak is not None and weak[0] is None:
            return Refusal(
                f"a {type(guidance.weak).__name__} cannot be weakly referenced, so its graph could outlive it"
            )
        form = (type(guidance), guidance.fixed, shape, weak)
    key = (
        owner,
        bool(getattr(model, "training", False)),
        start.shape,
        start.dtype,
        start.device,
        r.network_dtype,
        r.direct,
        program.history,
        program.inner,
        None if program.rows is None else (program.rows.shape, program.values.shape),
        program.raw,
        r.network.guided,
        form,
        guidance.reverses,
        program.opening,
        program.moves,
        r.backend.NAME,
        r.coeffs.lo is None,
        r.evaluator.threshold,
        None if program.x0 is None else program.x0[1],
        tuple((t.shape, t.dtype, t.device) for t in leaves.tensors),
        leaves.rest,
        # 1, 1.0 and True are equal.
        tuple(type(v) for v in leaves.rest),
        str(leaves.spec),
        autocast,
        recycles(model),
    )
    try:
        hash(key)
    except TypeError:
        return Refusal("model_kwargs holds values that are neither tensors nor hashable")
    return key


def execute(r: Run, start: torch.Tensor, mode: bool | str, out: torch.Tensor | None = None) -> torch.Tensor:
    """Run eagerly, capture or replay, as `mode` ("auto", True, False) says; into `out` if given.

    Raises:
        RuntimeError: mode is True and the run cannot be captured; the message says why.
    """
    if mode is False or (mode == "auto" and start.device.type != CAPTURE.DEVICE):
        return _deliver(run(r, start), out)
    if CAPTURE.under_way():
        # A capture inside the caller's is neither possible nor needed: the loop becomes part of that graph.
        return _deliver(run(r, start), out)
    key = signature(r, start)
    if isinstance(key, Refusal):
        if mode is True:
            raise RuntimeError(f"graph=True: {key.why}; use graph='auto' or graph=False")
        if not key.asked and CACHE.first_time((("refused",), key.why)):
            warn(f"{_EAGERLY}{key.why}")
        return _deliver(run(r, start), out)
    entry = CACHE.get(key)
    if entry is not None and entry.weights.moved():
        # Before the launch, which would read the old places.
        CACHE.forget(key)
        entry = None
    if entry is None:
        why = CACHE.failed.get(key)
        if mode == "auto" and (why is not None or CACHE.first_time(key)):
            return _deliver(run(r, start), out)
        reason = None
        try:
            entry = _capture(key, r, start)
        except Exception as error:
            reason = _reason(error)
            CACHE.fail(key, reason)
            if mode is True:
                raise RuntimeError(f"graph=True: the model cannot be captured: {reason}") from error
        if entry is None:
            # Not in the handler, where the error's frames would still hold the memory of the attempt.
            warn(f"{_EAGERLY}{reason}")
            return _deliver(run(r, start), out)
    result = _replay(entry, r, start, out)
    if r.note is not None:
        r.note(entry, r)
    return result


def _deliver(result: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return result if out is None else out.copy_(result)


def _capture(key: Any, r: Run, start: torch.Tensor) -> Entry:
    """Warm up, record, and keep a graph of `r`."""
    model = r.network.model
    pool = CACHE.pool(key[0], start.device)
    with pool.turn(), _no_autocast_cache():
        made = CACHE.get(key)
        if made is not None:
            # Another thread captured it while this one waited.
            return made
        found = leaves_of(r.network.kwargs)
        leaves = found._replace(tensors=[t.clone() for t in found.tensors])
        (static, words), first = static_run(r, leaves), start.clone()
        graph = CAPTURE(start.device, pool)
        body = functools.partial(run, static, first)
        graph.warm_up(body)
        if recycles(model) != key[-1]:
            # Learnt in the warm-up: the model returns buffers of its own again. The next call's signature knows it.
            raise RuntimeError(
                "it returns the same output buffer again, as networks that replay graphs of their own do"
            )
        weights = Weights(model, r.network.weak)
        result = graph.capture(body)
        if weights.moved():
            raise RuntimeError("it gives its parameters or buffers other memory whenever it runs")
        stream = torch.cuda.current_stream(start.device) if start.device.type == "cuda" else None
        x0 = None if static.program.x0 is None else static.program.x0[0]
        made_of = static.program.clock, x0, static.program.numbers
        entry = Entry(graph, pool, static.coeffs, words, *made_of, first, result, leaves, weights, stream)
        CACHE.put(key, entry)
    return entry


def _replay(entry: Entry, r: Run, start: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """Fill the static buffers, launch, and return a fresh tensor, or `out` filled."""
    with entry.pool.turn():
        entry.in_use()
        entry.start.copy_(start)
        entry.seeded = None
        entry.coeffs.seeds.copy_(r.coeffs.seeds)
        entry.coeffs.index.copy_(r.coeffs.index)
        entry.load(sources_of(r))
        for kept, given in zip(entry.leaves.tensors, leaves_of(r.network.kwargs).tensors, strict=True):
            kept.copy_(given)
        entry.graph.replay()
        return entry.result.clone() if out is None else out.copy_(entry.result)


@contextlib.contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Weights cast by autocast must be cast inside the graph: a cached copy would be freed under it."""
    if not torch.is_autocast_enabled("cuda"):
        yield
        return
    torch.clear_autocast_cache()
    with torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), cache_enabled=False):
        yield


_EAGERLY = "the model cannot be captured in a CUDA graph, so its loop runs eagerly, with the same result: "
_OWN_GRAPHS = (
    'makes or replays CUDA graphs of its own, as torch.compile does with mode="reduce-overhead" or "max-autotune": '
    "compile it in the default mode, or with graph=False"
)
_UNRECORDED = "it uses the device in a way that a capture cannot record (another stream, or a synchronisation)"
_INVALIDATED = "failed due to a previous error during capture"

_CAUSES = (
    (
        "stream is capturing",
        "it waits for the device or copies to the host inside the loop (.item(), .cpu(), printing, "
        "a Python branch on a tensor)",
    ),
    ("StreamCapture", _UNRECORDED),
    ("uncaptured work in another stream", _UNRECORDED),
    ("unjoined work", _UNRECORDED),
    (_INVALIDATED, _UNRECORDED),
    ("generator", "it draws random numbers from a generator that the graph does not know"),
    ("Offset increment outside graph capture", "it draws random numbers from a generator that the graph does not know"),
    ("Expected all tensors to be on the same device", "it holds CPU tensors"),
    ("CPU and CUDA", "it copies between the CPU and the device inside the loop"),
    ("CUDAGraph", f"it {_OWN_GRAPHS}"),
    ("out of memory", "there is not enough memory for a graph beside what is in use"),
)


def _reason(error: BaseException) -> str:
    """One sentence for the causes that are known, and the error's own first line."""
    # The end of a capture that failed raises too, over the error that says why.
    while _INVALIDATED in str(error) and error.__context__ is not None:
        error = error.__context__
    text = str(error)
    own = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    for sign, cause in _CAUSES:
        if sign in text:
            return f"{cause} [{type(error).__name__}: {own}]"
    return f"{type(error).__name__}: {own}"
