"""The fused stage through Triton: any CUDA or ROCm device; CPU tensors in Triton's interpreter, for tests."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from typing import Any, NamedTuple

import torch

from fastdiff.ops.buffers import Buffers, Coeffs, require
from fastdiff.ops.layout import NONE, StageSpec
from fastdiff.ops.rank import rank
from fastdiff.plan import MAX_DRAWS, MAX_HISTORY, SECOND, X

NAME = "triton"

STATES = (torch.float32, torch.float64)
NETWORKS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Elements per program and warps: 8 elements a thread are two 16-byte loads of float32, or one of a 16-bit dtype.
_ELEMENTS_PER_WARP = {torch.float32: 256, torch.float64: 128}
_MAX_WARPS = 4

# Fused multiply-adds are written out in the kernels; the compiler adds none, so no specialisation can change a sample.
_OPTIONS = {"enable_fp_fusion": False}

# From here on, offsets inside a sample need 64 bits (2^31 less the largest block, so that no sum overflows).
_WIDE = 2**31 - 2**12

_NO_HISTORY = (None,) * MAX_HISTORY


def _interpreter() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def available() -> tuple[bool, str]:
    """(whether Triton kernels can run in this process, one sentence that says why)."""
    if importlib.util.find_spec("triton") is None:
        return False, "the package triton is not installed (pip install triton; Linux only)"
    if _interpreter():
        return True, "interpreter mode (TRITON_INTERPRET=1): CPU tensors only, for tests"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA or ROCm device"
    try:
        import triton
    except Exception as error:  # A broken install must be a reason, not a crash.
        return False, f"importing triton failed: {type(error).__name__}: {error}"
    return True, f"triton {triton.__version__} on {torch.cuda.get_device_name()}"


def supports(device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[bool, str]:
    """Whether tensors on `device` with these dtypes can be given to `stage`."""
    if _interpreter():
        wanted, what = "cpu", "CPU tensors in interpreter mode (TRITON_INTERPRET=1)"
    else:
        wanted, what = "cuda", "CUDA or ROCm tensors"
    if device.type != wanted:
        return False, f"it takes {what}, got a tensor on {device}"
    if state not in STATES:
        return False, f"the state must be float32 or float64, got {state}"
    if network not in NETWORKS:
        return False, f"the network's dtype must be float16, bfloat16, float32 or float64, got {network}"
    return True, ""


@functools.cache
def _kernels() -> tuple[Any, Any, bool]:
    """(stage_kernel, fill_kernel, whether they are interpreted), imported when first used."""
    import triton

    from fastdiff._triton import noise, stage

    return stage.stage_kernel, noise.fill_kernel, not isinstance(stage.stage_kernel, triton.JITFunction)


@functools.cache
def _keeps_compiled() -> bool:
    """Whether a compiled kernel may be kept and launched again by `_launch`.

    From Triton 3.3 on it takes the kernel's full argument list. On ROCm Triton also specialises on the size of the
    memory behind a pointer, which the key below does not hold.
    """
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return version >= (3, 3) and torch.version.hip is None


_compiled: dict[tuple[Any, ...], Any] = {}
"""Compiled kernels by all that Triton specialises on, where streams are aligned: its own search takes far longer."""


def _launch(
    spec: StageSpec, device: torch.device, grid: int, warps: int, streams: tuple[torch.Tensor | None, ...],
    rest: tuple[Any, ...], aligned: bool,
) -> None:  # fmt: skip
    """Launch the stage's kernel on `streams` and `rest`; `aligned`: the sizes allow 16-byte accesses throughout."""
    kernel, _, interpreted = _kernels()
    key: tuple[Any, ...] | None = None
    if aligned and not interpreted:
        addresses = 0
        dtypes: list[torch.dtype | None] = []
        for stream in streams:
            if stream is None:
                dtypes.append(None)
            else:
                addresses |= stream.data_ptr()
                dtypes.append(stream.dtype)
        if addresses & 15 == 0:
            # The rest of the structure (noise, bounds, rows) follows from which of these pointers are given.
            key = (
                spec,
                warps,
                device.index,
                rest[0].dtype,
                rest[1] is None,
                rest[4] is None,
                rest[12] is None,
                *dtypes,
            )
            known = _compiled.get(key)
            if known is not None:
                known[(grid, 1, 1)](*streams, *rest)
                return
    found = kernel[(grid,)](*streams, *rest, num_warps=warps, **_OPTIONS)
    if key is not None and _keeps_compiled():
        _compiled[key] = found


class _Structure(NamedTuple):
    """What a spec fixes about a launch: which arguments are passed, and the kernel's constants."""

    reads_x: bool
    reads_u: bool
    converts: bool
    reads_second: bool
    reads_h: tuple[bool, ...]
    reads_z: tuple[bool, ...]
    noises: bool
    clips: bool
    constants: tuple[int, ...]


@functools.cache
def _structure(spec: StageSpec) -> _Structure:
    mask = spec.mask
    return _Structure(
        reads_x=bool(mask >> X & 1),
        reads_u=spec.reads_u,
        converts=spec.convert != NONE,
        reads_second=spec.guided or bool(mask >> SECOND & 1),
        reads_h=tuple(spec.reads_h(i) for i in range(MAX_HISTORY)),
        reads_z=tuple(spec.reads_z(i) for i in range(MAX_DRAWS)),
        noises=spec.noises > 0,
        clips=spec.clips,
        constants=(
            spec.convert,
            int(spec.guided),
            int(spec.m_reads_u),
            spec.u_mask,
            spec.x_mask,
            spec.copies,
            spec.learned,
            int(spec.path > 0),
        ),
    )


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device; make it the tensors' own where it is not."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def _warps(n: int, state: torch.dtype) -> int:
    per_warp = _ELEMENTS_PER_WARP[state]
    return 1 if n <= per_warp else 2 if n <= 2 * per_warp else _MAX_WARPS


def stage(spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
    """Run table row `k` (or `coeffs.rows`, one row per sample or frame); see `Buffers` for shapes and dtypes."""
    require(spec, coeffs, buf)
    s = _structure(spec)
    table, batch = coeffs.table, coeffs.seeds.shape[0]
    u_out, x_out, net_in = buf.u_out, buf.x_out if spec.x_mask else None, buf.net_in
    if u_out is not None:
        total = u_out.numel()
    elif x_out is not None:
        total = x_out.numel()
    elif net_in is not None:
        total = net_in.numel() // spec.copies
    else:
        raise ValueError("the stage writes nothing: u_out, x_out and net_in are all None; give at least one")
    if total == 0:
        return

    h1, h2, h3, h4, h5, h6 = _NO_HISTORY
    if spec.history:
        given = buf.h + _NO_HISTORY
        h1, h2, h3, h4, h5, h6 = (given[i] if s.reads_h[i] else None for i in range(MAX_HISTORY))
    za = zb = zc = draws = seeds = index = None
    if s.noises:
        za, zb, zc = (buf.z[i] if s.reads_z[i] else None for i in range(MAX_DRAWS))
        if any(s.reads_z[i] and buf.z[i] is None for i in range(MAX_DRAWS)):
            draws, seeds, index = coeffs.draws, coeffs.seeds, coeffs.index
    lo = hi = scale = None
    if s.clips:
        lo, hi, scale = coeffs.lo, coeffs.hi, coeffs.scale

    # Where samples do not differ, the batch is one long sample: fewer partial blocks, and aligned whatever n is.
    split = seeds is not None or s.clips or coeffs.rows is not None or spec.learned > 0
    n = total // batch if split else total
    inner, frames, rows, framed = None, None, coeffs.rows, 0
    length, runs = n, batch if split else 1
    if coeffs.inner and rows is not None:
        # A program has elements of one frame.
        length = inner = coeffs.inner
        frames, rows, runs, framed = rows.shape[2], rows.select(0, k), total // length, 2 if length % 4 else 1
    warps = _warps(length, table.dtype)
    block = warps * _ELEMENTS_PER_WARP[table.dtype]
    tiles = -(-length // block)
    wide = length >= _WIDE
    streams = (
        buf.x if s.reads_x else None,
        buf.u if s.reads_u and not (s.reads_x and buf.u is buf.x) else None,
        buf.first if s.converts else None,
        buf.second if s.reads_second else None,
        h1, h2, h3, h4, h5, h6, za, zb, zc, u_out, x_out, buf.m_out, net_in if spec.copies else None, buf.squares,
    )  # fmt: skip
    # Threads hold elements by the width of a stream, and normals by blocks of 4: a barrier keeps loads before stores.
    size = table.element_size()
    exchanges = s.noises or any(t is not None and t.element_size() != size for t in streams)
    rest = (
        table, draws, seeds, index, rows, lo, hi, scale, n, total, tiles, k, inner, frames,
        *s.constants, split, wide, exchanges, framed, _kernels()[2], block,
    )  # fmt: skip
    with _on(table.device):
        aligned = not (n & 15 or total & 15 or length & 15 or wide or total >= _WIDE)
        _launch(spec, table.device, tiles * runs, warps, streams, rest, aligned)


def _fill(out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int, raw: bool) -> None:
    kernel = _kernels()[1]
    batch = seeds.shape[0]
    n = out.numel() // batch
    if n == 0:
        return
    warps = _warps(n, torch.float32)
    block = warps * _ELEMENTS_PER_WARP[torch.float32]
    tiles = -(-n // block)
    draw = (draw + 2**31) % 2**32 - 2**31  # the 32-bit word as the kernel's int32
    with _on(out.device):
        kernel[(tiles * batch,)](
            out, seeds, index, n, tiles, draw, stream, raw, n >= _WIDE, block, num_warps=warps, **_OPTIONS
        )


def normal_(out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
    """Fill `out` (B, ...), float32 or float64 and contiguous, with the normals of draw `draw`.

    seeds: (B,) int64; index: (B,) int32; stream: the stream's tag.
    """
    _fill(out, seeds, index, draw, stream, False)


def words_(out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
    """Fill `out` (B, ...) int32 with the raw Philox words behind `normal_`; for tests, since these are exact."""
    _fill(out, seeds, index, draw, stream, True)


@functools.cache
def _quantile_kernel() -> Any:
    from fastdiff._triton import quantile

    return quantile.quantile_kernel


def quantile_(out: torch.Tensor, x0: torch.Tensor, q: float) -> None:
    """Set `out` (B,) to the q-quantile of each sample's |x0|; x0 (B, ...), contiguous float32 or float64, and out
    alike.

    One program per sample reads it 17 times (float32) or 33 times (float64): a sample is bound by one multiprocessor.
    """
    batch = len(x0)
    n = x0.numel() // batch
    low, weight = rank(q, n)
    high, rest = divmod(int(weight * 2.0**53), 2**27)
    warps = min(16, max(1, -(-n // 256)))
    warps = 1 << (warps - 1).bit_length()
    with _on(x0.device):
        _quantile_kernel()[(batch,)](
            out, x0, n, low, high, rest, x0.dtype == torch.float64, n >= _WIDE, 256 * warps, num_warps=warps, **_OPTIONS
        )
