"""One stage of every method: ours, the eager formulas, `torch.compile` of these, and as many bytes copied."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import fastdiff
from benchmarks import eager
from fastdiff.bind.table import bind
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.ops.layout import NONE, RAW, StageSpec
from fastdiff.ops.philox import STEP
from fastdiff.plan import MAX_DRAWS, ZA, Plan

SIZES: dict[str, tuple[int, ...]] = {
    "1x4x64x64": (1, 4, 64, 64),
    "4x4x64x64": (4, 4, 64, 64),
    "16x3x256x256": (16, 3, 256, 256),
    "32x3x512x512": (32, 3, 512, 512),
}
HEADLINE = "16x3x256x256"
STEPS = 10


def stage_bytes(spec: StageSpec, buf: Buffers) -> int:
    """Bytes that the stage must move: each stream that it reads once, each that it writes once.

    Buffers that are read and written count twice; noise drawn in the kernel moves nothing.
    """

    def size(t: Tensor | None) -> int:
        return 0 if t is None else t.numel() * t.element_size()

    read: dict[int, int] = {}
    streams = [
        buf.x if spec.reads_x else None,
        buf.u if spec.reads_u else None,
        buf.first if spec.convert != NONE else None,
        buf.second,
        *(h for i, h in enumerate(buf.h) if spec.reads_h(i)),
        *buf.z,
    ]
    for t in streams:
        if t is not None:
            read[t.data_ptr()] = size(t)
    return sum(read.values()) + sum(size(t) for t in (buf.u_out, buf.x_out, buf.m_out, buf.net_in))


@dataclass
class Case:
    """One stage of one method, ready to run.

    Attributes:
        method, plan, k: stage `k` of the plan.
        spec, coeffs: as a back end takes them.
        sets: rotating sets of buffers, so that small ones do not all stay in the nearest cache.
        network: the network's dtype.
    """

    method: str
    plan: Plan
    k: int
    spec: StageSpec
    coeffs: Coeffs
    sets: list[Buffers]
    network: torch.dtype

    @property
    def bytes(self) -> int:
        return stage_bytes(self.spec, self.sets[0])

    def noiseless(self) -> StageSpec:
        """The same structure without the normals."""
        return self.spec._replace(u_mask=self.spec.u_mask & ~(((1 << MAX_DRAWS) - 1) << ZA))


def make_case(
    method: str,
    shape: tuple[int, ...],
    network: torch.dtype,
    *,
    state: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    sets: int = 1,
    **options: Any,
) -> Case:
    """The method's fullest stage of ten, with buffers laid out as the loop has them."""
    plan = fastdiff.plan(method, STEPS, schedule="ddpm", **options)
    k = eager.stage_of(method)
    table = bind(plan, copies=int(network != state))
    spec, stage = table.specs[k + 1], plan.stages[k]
    raw = all(table.specs[i + 1].convert == RAW for i, s in enumerate(plan.stages) if s.keep)
    kept = network if raw else state
    batch = shape[0]

    def drawn(dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.float32).to(dtype)

    def buffers() -> Buffers:
        joint = eager_base(plan, k)
        x = drawn(state)
        u = x if joint else drawn(state)
        buf = Buffers(x=x, u=u, first=drawn(network))
        buf.h = tuple(drawn(kept) if spec.reads_h(i) else None for i in range(spec.history))
        if spec.x_mask:
            buf.u_out, buf.x_out = u if not joint else torch.empty_like(x), x
        else:
            buf.u_out = u
        if stage.keep and not raw:
            # The oldest value's place, once it was read.
            ring = spec.history if spec.history == plan.history else None
            oldest = buf.h[ring - 1] if ring else None
            buf.m_out = oldest if oldest is not None else torch.empty(shape, dtype=kept, device=device)
        if spec.copies:
            buf.net_in = torch.empty(shape, dtype=network, device=device)
        return buf

    coeffs = Coeffs(
        torch.as_tensor(table.values).to(device=device, dtype=state),
        torch.as_tensor(table.draws).to(device),
        torch.full((batch,), 1, dtype=torch.int64, device=device),
        torch.arange(batch, dtype=torch.int32, device=device),
    )
    return Case(method, plan, k, spec, coeffs, [buffers() for _ in range(sets)], network)


def eager_base(plan: Plan, k: int) -> bool:
    """Whether x and u are one buffer when stage `k` begins."""
    return k == 0 or plan.stages[k - 1].next_u == plan.stages[k - 1].next_x


def ours(case: Case, backend: ModuleType, spec: StageSpec | None = None) -> Callable[[], None]:
    """A call that runs the stage on the next set of buffers."""
    chosen, stage, coeffs, row = spec or case.spec, backend.stage, case.coeffs, case.k + 1
    turn = _cycle(case.sets)

    def run() -> None:
        stage(chosen, row, coeffs, next(turn))

    return run


def normals(case: Case, backend: ModuleType) -> Callable[[], None]:
    """A call that only fills a buffer with the normals of one draw: what of the stage's time is the noise."""
    like = case.sets[0].x
    assert like is not None
    out = torch.empty_like(like)
    return lambda: backend.normal_(out, case.coeffs.seeds, case.coeffs.index, 0, STEP)


def baseline(case: Case, compiled: bool = False) -> Callable[[], None]:
    """A call that runs the eager formulas, or what `torch.compile` makes of them, on the next set of buffers."""
    feeds = case.spec.copies > 0
    step = eager.whole(case.method, case.plan, case.k, case.network, feeds)
    if compiled:
        step = torch.compile(step, dynamic=False, fullgraph=True)
    state = case.coeffs.table.dtype
    # Eager code keeps its history in the state's dtype.
    given = [(b.x, b.u, b.first, history(b, state)) for b in case.sets]
    turn = _cycle(given)

    def run() -> None:
        with torch.no_grad():
            step(*next(turn))

    return run


def history(buf: Buffers, dtype: torch.dtype) -> list[Tensor]:
    """The earlier model values in `dtype`; a value that no stage reads is stood in for by x."""
    assert buf.x is not None
    return [buf.x if h is None else h.to(dtype) for h in buf.h]


def _cycle(items: list[Any]) -> Iterator[Any]:
    while True:
        yield from items


def restore(case: Case, evict: Tensor | None = None) -> Callable[[], None]:
    """A call that puts x back, which updates in place would let grow; and writes `evict`, to empty the cache."""
    kept = [b.x.clone() for b in case.sets if b.x is not None]

    def run() -> None:
        for buf, x in zip(case.sets, kept, strict=True):
            assert buf.x is not None
            buf.x.copy_(x)
        if evict is not None:
            evict.add_(1)

    return run


def copies(nbytes: int, device: torch.device | str = "cpu", sets: int = 1) -> dict[str, Callable[[], None]]:
    """Copies that move `nbytes` in all, half read and half written.

    On the CPU two kinds: torch's, and the C library's memcpy in as many threads, which bypasses the cache when large.
    """
    half = nbytes // 2
    pairs = [
        (
            torch.randint(256, (half,), dtype=torch.uint8, device=device),
            torch.zeros(half, dtype=torch.uint8, device=device),
        )
        for _ in range(sets)
    ]
    turn = _cycle(pairs)

    def by_torch() -> None:
        source, target = next(turn)
        target.copy_(source)

    by_torch.buffers = pairs[0]  # type: ignore[attr-defined]
    found = {"copy_": by_torch}
    if torch.device(device).type != "cpu":
        return found
    threads = torch.get_num_threads()
    if half < 4 << 20 or threads > 64:
        return found
    pool = ThreadPoolExecutor(threads)
    part = -(-half // threads) // 64 * 64 + 64
    pieces = [
        [(t.data_ptr() + at, s.data_ptr() + at, min(part, half - at)) for at in range(0, half, part)] for s, t in pairs
    ]
    piece = _cycle(pieces)

    def by_memcpy() -> None:
        list(pool.map(lambda p: ctypes.memmove(*p), next(piece)))

    by_memcpy.buffers = pairs[0]  # type: ignore[attr-defined]
    found["memcpy"] = by_memcpy
    return found


def rotation(nbytes: int, cache: int) -> int:
    """How many sets of buffers to rotate among: enough to exceed the last cache fourfold, at most 4."""
    return max(1, min(4, math.ceil(4 * cache / max(nbytes, 1))))


def agreement(case: Case, backend: ModuleType) -> float:
    """Largest difference of our stage and the eager formulas, relative to the largest value; noise is given to both."""
    buf = case.sets[0]
    shape_like = buf.x
    assert shape_like is not None and buf.u is not None and buf.first is not None
    z = torch.randn_like(shape_like)
    fresh = Buffers(
        x=buf.x.clone() if buf.x is not None else None,
        u=buf.u.clone(),
        first=buf.first,
        h=tuple(None if h is None else h.clone() for h in buf.h),
        z=(z if case.spec.reads_z(0) else None, None, None),
        u_out=torch.full_like(shape_like, math.nan),
        x_out=torch.full_like(shape_like, math.nan) if case.spec.x_mask else None,
        m_out=None if buf.m_out is None else torch.full_like(buf.m_out, math.nan),
        net_in=None if buf.net_in is None else torch.full_like(buf.net_in, math.nan),
    )
    backend.stage(case.spec, case.k + 1, case.coeffs, fresh)
    step = eager.step_of(case.method, case.plan, case.k)
    state = case.coeffs.table.dtype
    u, x, m = step(eager.Inputs(shape_like, buf.u, buf.first.to(state), history(buf, state)), lambda like: z)
    pairs = [(fresh.u_out, u), (fresh.x_out, x), (fresh.m_out, m)]
    worst = 0.0
    for got, want in pairs:
        if got is not None and want is not None:
            worst = max(worst, ((got - want.to(got.dtype)).abs().max() / want.abs().max()).item())
    if fresh.net_in is not None:
        assert fresh.u_out is not None
        if not torch.equal(fresh.net_in, fresh.u_out.to(fresh.net_in.dtype)):
            return math.inf
    return worst
