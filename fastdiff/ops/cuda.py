"""The fused stage on CUDA devices: csrc/cuda, compiled ahead by nvcc. Launches are asynchronous and may be captured."""

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

NAME = "cuda"
CAPABILITY = (8, 0)
"""The oldest compute capability that the extension carries code for."""

_ext: Any = None
_missing = ""
try:
    _ext = extension("_cuda")
except ImportError as error:
    _missing = f"built without CUDA ({error}); reinstall where nvcc is on PATH, with FASTDIFF_CUDA=1"

look: Any = None if _ext is None else _ext.look
"""As that of `fastdiff.ops.cpu`."""


def available() -> tuple[bool, str]:
    """Whether the extension is there and finds a device; asks the driver, and needs none."""
    if _ext is None:
        return False, _missing
    count, why = _ext.devices()
    version = f"CUDA runtime {_ext.runtime // 1000}.{_ext.runtime % 1000 // 10}"
    if not count:
        return False, f"no CUDA driver or device: {why}; built with {version}"
    return True, f"{version}, {count} device{'s' if count > 1 else ''}"


def supports(device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[bool, str]:
    """CUDA tensors on compute capability 8.0 or later; state float32 or float64; network also float16 or bfloat16."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False, f"it takes tensors on an NVIDIA GPU, and the state is on {device}"
    if state not in (torch.float32, torch.float64):
        return False, f"the state must be float32 or float64, got {state}"
    if network not in CODES:
        return False, f"the network's dtype must be float16, bfloat16, float32 or float64, got {network}"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        have, need = (".".join(map(str, pair)) for pair in (capability, CAPABILITY))
        return False, f"it needs compute capability {need} or later, and {device} has {have}"
    return True, ""


def stage(spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
    """Launch table row `k` (or `coeffs.rows`, one row per sample or frame) on the current stream; see `Buffers` for
    shapes."""
    table, seeds = coeffs.table, coeffs.seeds
    first, second, h = buf.first, buf.second, buf.h
    u_out, x_out, m_out, net_in = buf.u_out, buf.x_out, buf.m_out, buf.net_in
    batch = seeds.numel()
    n = per_sample(buf, batch, spec.copies)
    state = CODES[table.dtype]
    given = first if first is not None else second
    entry = next((e for e in h if e is not None), m_out)
    device = table.device
    assert _ext is not None, _missing
    _ext.stage(
        spec,
        k,
        batch,
        n,
        state,
        state if given is None else CODES[given.dtype],
        state if entry is None else CODES[entry.dtype],
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
        coeffs.rows,
        seeds,
        coeffs.index,
        coeffs.lo,
        coeffs.hi,
        coeffs.scale,
        coeffs.inner,
        coeffs.rows.shape[2] if coeffs.inner and coeffs.rows is not None else 0,
        buf.squares,
        device.index or 0,
        _stream(device),
    )


def _stream(device: torch.device) -> int:
    """The current stream's handle, without an object around it."""
    handle: int = torch._C._cuda_getCurrentRawStream(device.index or 0)
    return handle


def launcher(
    coeffs: Coeffs, batch: int, n: int, network: torch.dtype, history: torch.dtype, given: torch.dtype
) -> Launch:
    """As that of `fastdiff.ops.cpu`. A launch goes to the stream that is current then."""
    shared = packed(_ext, coeffs, batch, n, (network, history, given), coeffs.table.device.index or 0)
    return functools.partial(_ext.launch, shared, torch._C._cuda_getCurrentRawStream)


def walks(coeffs: Coeffs, batch: int, n: int, kinds: Kinds, program: Any, *like: Any) -> Callable[..., Any]:
    """As those of `fastdiff.ops.cpu`. A launch goes to the stream that is current then."""
    shared = packed(_ext, coeffs, batch, n, kinds, coeffs.table.device.index or 0)
    return functools.partial(_ext.Walk, shared, program.course(_ext.course), *like, torch._C._cuda_getCurrentRawStream)


def normal_(out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
    """Fill `out` (B, ...), contiguous float32 or float64, with the normals of draw `draw` of stream `stream`."""
    assert _ext is not None, _missing
    n, on = math.prod(out.shape[1:]), _stream(out.device)
    device = out.device.index or 0
    _ext.normal(
        out.data_ptr(), CODES[out.dtype], len(out), n, seeds.data_ptr(), index.data_ptr(), draw, stream, device, on
    )


def quantile_(out: torch.Tensor, x0: torch.Tensor, q: float) -> None:
    """Set `out` (B,) to the q-quantile of each sample's |x0|; x0 (B, ...), contiguous float32 or float64, and out
    alike."""
    assert _ext is not None, _missing
    batch = len(x0)
    n, on = x0.numel() // batch, _stream(x0.device)
    workspace = torch.empty(_ext.quantile_workspace(batch, n), dtype=torch.uint8, device=x0.device)
    addresses = out.data_ptr(), x0.data_ptr(), workspace.data_ptr()
    _ext.quantile(*addresses, CODES[x0.dtype], batch, n, *rank(q, n), x0.device.index or 0, on)
