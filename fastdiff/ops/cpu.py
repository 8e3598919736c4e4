"""The fused stage on the CPU: C++ with SIMD chosen at run time, and OpenMP.

FASTDIFF_SIMD=portable|avx2|avx512 forces an instruction set; one that cannot run is an error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from fastdiff.ops.buffers import Buffers, Coeffs, Kinds, Launch, per_sample
from fastdiff.ops.extension import CODES, extension, packed
from fastdiff.ops.layout import StageSpec
from fastdiff.ops.rank import rank

NAME = "cpu"

_ext: Any = None
try:
    _ext = extension("_cpu")
    _reason = f"SIMD {_ext.simd_level()}, OpenMP {'on' if _ext.has_openmp() else 'off'}"
except ImportError as error:
    if "FASTDIFF_SIMD" in str(error):
        _reason = str(error)
    else:
        _reason = (
            f"fastdiff._cpu cannot be imported ({error}); reinstall with a C++ compiler at hand: "
            "FASTDIFF_CPU=1 pip install --force-reinstall --no-deps ..., which fails with the reason if there is none"
        )
_stage = None if _ext is None else _ext.stage
_threads = torch.get_num_threads

look: Any = None if _ext is None else _ext.look
"""(torch.Tensor.data_ptr, list of dicts of tensors, list of weak references to modules) -> bytes: where the tensors lie
and which modules are the children. None where the extension is missing."""


def available() -> tuple[bool, str]:
    """Whether the extension is there, and which instruction set it uses, or why it is not."""
    return _ext is not None, _reason


def supports(device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[bool, str]:
    """CPU tensors; state float32 or float64; network float16, bfloat16, float32 or float64."""
    if device.type != "cpu":
        return False, f"it takes CPU tensors, and the state is on {device}"
    if state not in (torch.float32, torch.float64):
        return False, f"the state must be float32 or float64, got {state}"
    if network not in CODES:
        return False, f"the network's dtype must be float16, bfloat16, float32 or float64, got {network}"
    return True, ""


def stage(spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
    """Run table row `k` (or `coeffs.rows`, one row per sample or frame); see `Buffers` for shapes and dtypes."""
    table, seeds, rows = coeffs.table, coeffs.seeds, coeffs.rows
    first, second, h = buf.first, buf.second, buf.h
    u_out, x_out, m_out, net_in = buf.u_out, buf.x_out, buf.m_out, buf.net_in
    batch = seeds.numel()
    n = per_sample(buf, batch, spec.copies) if u_out is None else u_out.numel() // batch
    state = CODES[table.dtype]
    given = first if first is not None else second
    hist = state
    for entry in h:
        if entry is not None:
            hist = CODES[entry.dtype]
            break
    else:
        if m_out is not None:
            hist = CODES[m_out.dtype]
    assert _stage is not None, _reason
    _stage(
        spec,
        k,
        batch,
        n,
        state,
        state if given is None else CODES[given.dtype],
        hist,
        state if net_in is None else CODES[net_in.dtype],
        buf.x,
        buf.u,
        first,
        second,
        h,
        buf.z,
        u_out,
        x_out,
        m_out,
        net_in,
        table,
        coeffs.draws,
        rows,
        seeds,
        coeffs.index,
        coeffs.lo,
        coeffs.hi,
        coeffs.scale,
        coeffs.inner,
        rows.shape[2] if coeffs.inner and rows is not None else 0,
        buf.squares,
        0,
        _threads(),
    )


def launcher(
    coeffs: Coeffs, batch: int, n: int, network: torch.dtype, history: torch.dtype, given: torch.dtype
) -> Launch:
    """Stages of a run by addresses, their common arguments packed once: `n` elements in a sample, the dtypes of the
    network's output, of the history and of the network's input. The coefficients must outlive it."""
    return functools.partial(_ext.launch, packed(_ext, coeffs, batch, n, (network, history, given)), _threads())


def walks(coeffs: Coeffs, batch: int, n: int, kinds: Kinds, program: Any, *like: Any) -> Callable[..., Any]:
    """What makes a `Walk` of csrc/walk.h, launches one after the other, from the arguments after `last` there; `like`
    are those before it. The coefficients must outlive it."""
    make, shared, course = _ext.Walk, packed(_ext, coeffs, batch, n, kinds), program.course(_ext.course)
    return lambda *more: make(shared, course, *like, _threads(), *more)


def start(x: torch.Tensor, elements: int) -> int:
    """Where `x` lies, a tensor of a state's dtype and of so many elements: 0 where a run cannot begin with it as it is,
    since it is not contiguous, wants a gradient, has no memory of its own, or has values that are not finite."""
    try:
        at: int = _ext.start(x, elements, CODES[x.dtype], _threads())
    except RuntimeError:
        # It has no address to ask for, as inside torch.vmap.
        return 0
    return at


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two contiguous tensors of one size hold the same bytes."""
    found: bool = _ext.same(a.data_ptr(), b.data_ptr(), a.nbytes)
    return found


def normal_(out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
    """Fill `out` (B, ...), contiguous float32 or float64, with the normals of draw `draw` of stream `stream`."""
    assert _ext is not None, _reason
    n = math.prod(out.shape[1:])
    _ext.normal(
        out.data_ptr(), CODES[out.dtype], len(out), n, seeds.data_ptr(), index.data_ptr(), draw, stream, _threads()
    )


def quantile_(out: torch.Tensor, x0: torch.Tensor, q: float) -> None:
    """Set `out` (B,) to the q-quantile of each sample's |x0|; x0 (B, ...), contiguous float32 or float64, and out
    alike."""
    assert _ext is not None, _reason
    batch = len(x0)
    n = x0.numel() // batch
    workspace = torch.empty_like(x0)
    _ext.quantile(
        out.data_ptr(), x0.data_ptr(), CODES[x0.dtype], batch, n, *rank(q, n), workspace.data_ptr(), _threads()
    )
