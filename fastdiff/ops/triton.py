"""The fused stage through Triton: any CUDA or ROCm device; CPU tensors in Triton's interpreter, for tests."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from typing import Any, NamedTuple

import torch

from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.plan import AUX, MAX_DRAWS, MAX_HISTORY, X
from fastdiff.table import CLIP, NONE, StageSpec

NAME = "triton"

STATES = (torch.float32, torch.float64)
NETWORKS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Elements per program and warps: 8 elements a thread are two 16-byte loads of float32, or one of a 16-bit dtype.
_ELEMENTS_PER_WARP = {torch.float32: 256, torch.float64: 128}
_MAX_WARPS = 4

# Fused multiply-adds are written out in the kernels. The compiler adds none, so that a specialisation cannot change a sample.
_OPTIONS = {"enable_fp_fusion": False}

# Beyond this many elements per sample, offsets inside it need 64 bits (less the largest block, so that no sum overflows).
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
    wanted = "cpu" if _interpreter() else "cuda"
    if device.type != wanted:
        why = "in interpreter mode (TRITON_INTERPRET=1) it takes CPU tensors" if wanted == "cpu" else "it takes CUDA or ROCm tensors"
        return False, f"{why}, got a tensor on {device}"
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


class _Structure(NamedTuple):
    """What a spec fixes about a launch: which arguments are passed, and the kernel's constants."""

    reads_x: bool
    reads_u: bool
    converts: bool
    reads_aux: bool
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
        reads_aux=spec.guided or bool(mask >> AUX & 1),
        reads_h=tuple(spec.reads_h(i) for i in range(MAX_HISTORY)),
        reads_z=tuple(spec.reads_z(i) for i in range(MAX_DRAWS)),
        noises=spec.noises > 0,
        clips=spec.convert == CLIP,
        constants=(spec.convert, int(spec.guided), int(spec.m_reads_u), spec.u_mask, spec.x_mask, spec.copies),
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
    """Run table row `k` (or `coeffs.rows`, one row per sample); see `Buffers` for shapes and dtypes."""
    kernel, _, interpreted = _kernels()
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
    split = seeds is not None or s.clips or coeffs.rows is not None
    n = total // batch if split else total
    warps = _warps(n, table.dtype)
    block = warps * _ELEMENTS_PER_WARP[table.dtype]
    tiles = -(-n // block)
    with _on(table.device):
        kernel[(tiles * batch if split else tiles,)](
            buf.x if s.reads_x else None,
            buf.u if s.reads_u else None,
            buf.out if s.converts else None,
            buf.aux if s.reads_aux else None,
            h1, h2, h3, h4, h5, h6, za, zb, zc, u_out, x_out, buf.m_out, net_in if spec.copies else None,
            table, draws, seeds, index, coeffs.rows, lo, hi, scale, n, total, tiles, k,
            *s.constants, split, n >= _WIDE, interpreted, block,
            num_warps=warps, **_OPTIONS,
        )  # fmt: skip


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
    """Fill `out` (B, ...) int32 with the raw Philox words behind `normal_`, for tests: these are equal bit for bit everywhere."""
    _fill(out, seeds, index, draw, stream, True)
