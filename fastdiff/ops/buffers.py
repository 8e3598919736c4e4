"""What every back end's `stage` takes: the structure (`StageSpec`), the coefficients and the buffers of one stage."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastdiff.ops.brownian import PATH_WIDTH
from fastdiff.ops.layout import NONE, StageSpec
from fastdiff.plan import MAX_DRAWS, MAX_HISTORY, SECOND, M

CHUNK = 128
"""Elements in a sum of squares: what a warp of the CUDA kernel handles."""
Launch = Callable[..., None]
"""One stage of a run by addresses: (spec, k, x, u, first, second, h, u_out, x_out, m_out, net_in), `h` a list, 0 for
what is not given. Shapes and dtypes are as the stages of the run share them; all noise is drawn by the kernel."""

Kinds = tuple[torch.dtype, torch.dtype, torch.dtype]
"""Dtypes that the stages of a run share: of the network's output, of the history, and of the network's input."""


@dataclass(slots=True)
class Coeffs:
    """Everything that may change between two runs of the same structure; all tensors live on the state's device.

    Attributes:
        table: (rows, layout.WIDTH) in the state's dtype, contiguous.
        draws: (rows, 3) int32, contiguous: draw numbers of za, zb, zc; where a spec has a `path`, (rows,
            3·brownian.PATH_WIDTH): for each of the three, `brownian.Path.words` of its increment.
        seeds: (B,) int64: each sample's 64-bit seed (negative values stand for seed + 2^64).
        index: (B,) int32: each sample's index, the second word of the Philox counter.
        lo, hi, scale: (B,) in the state's dtype: bounds of x0 and the factor after clamping. None unless a spec clips.
        rows: (B,) int32: a table row for each sample, instead of one row for the batch; None in the usual case.
        inner: 0 in the usual case. Else `rows` is (calls, B, F) int32, contiguous: element i of sample b belongs to
            frame f = (i // inner) % F, which has table row rows[k, b, f] at call k, and draws by that row's numbers as
            element i of the sample. A coefficient of 0 is then not used at all: what it would multiply may be NaN.
    """

    table: torch.Tensor
    draws: torch.Tensor
    seeds: torch.Tensor
    index: torch.Tensor
    lo: torch.Tensor | None = None
    hi: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    inner: int = 0


@dataclass(slots=True)
class Buffers:
    """The streams of one stage; every tensor is contiguous and on one device, None where the spec does not use it.

    Outputs may be the same buffer as an input (element i is read before element i is written) but must not overlap an
    input with another offset. B is the batch, n the number of elements per sample (of the trailing dimensions,
    row-major).

    Attributes:
        x, u: (B, ...) state dtype (float32 or float64).
        first, second: (B, ...) the network's output, and the second one beside it (the unconditional half, or a
            classifier's gradient), in the network's dtype (float16, bfloat16, float32, float64; both the same). Where
            spec.learned is set, first is (B, 2·C, ...), the prediction and then v, and no result may share its memory;
            where it is 2, so is second, of which the second half is not read.
        h: h1, h2, …: (B, ...) all of one dtype, the state's or the network's. Entries that the spec does not read may
            be None.
        z: the user's own noise for za, zb, zc in the state dtype; None entries are drawn by Philox in the kernel.
        u_out, x_out: (B, ...) state dtype: u' and x'. x_out is given exactly if spec.x_mask is not 0. u_out may be None
            if only `net_in` wants u'.
        m_out: (B, ...) dtype of `h` (of the state where h is empty): where m is written, or None.
        net_in: (copies·B, ...) network input dtype: in_scale·u', written spec.copies times. None exactly if copies is
            0.
        squares: (B, ceil(n / CHUNK)) state dtype: where the sums of za's squares go, of each CHUNK elements in order;
            None in the usual case, and with frames. The spec must read za.
    """

    x: torch.Tensor | None = None
    u: torch.Tensor | None = None
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None
    h: tuple[torch.Tensor | None, ...] = ()
    z: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] = (None, None, None)
    u_out: torch.Tensor | None = None
    x_out: torch.Tensor | None = None
    m_out: torch.Tensor | None = None
    net_in: torch.Tensor | None = None
    squares: torch.Tensor | None = None


def require(spec: StageSpec, coeffs: Coeffs, buf: Buffers) -> None:
    """Raise ValueError for a stream that the structure reads or writes and that is not given: a kernel would read
    address 0. The compiled back ends check the same in csrc/bindings.h."""
    needs = _needs(spec)
    lacking = [name for name in needs.buffers if getattr(buf, name) is None]
    lacking += [f"h{i + 1}" for i in needs.h if i >= len(buf.h) or buf.h[i] is None]
    if spec.convert == NONE and (spec.mask >> M & 1 or buf.m_out is not None):
        lacking.append("first, which m is made of,")
    if any(buf.z[i] is None for i in needs.z):
        lacking += [name for name in ("draws", "seeds", "index") if getattr(coeffs, name) is None]
    check_width(spec, coeffs)
    if spec.clips:
        lacking += [name for name in ("lo", "hi", "scale") if getattr(coeffs, name) is None]
    if lacking:
        raise ValueError(f"the stage needs {lacking[0]}, which was not given")


def check_width(spec: StageSpec, coeffs: Coeffs) -> None:
    """ValueError for a table of draws of the wrong width, of which a kernel would read beyond the end."""
    width = MAX_DRAWS * (PATH_WIDTH if spec.path else 1)
    if spec.noises and coeffs.draws is not None and coeffs.draws.shape[-1] != width:
        raise ValueError(
            f"the stage's draws have {coeffs.draws.shape[-1]} columns, expected {width} "
            f"({'of a Brownian path' if spec.path else 'draw numbers'})"
        )


class _Needs(NamedTuple):
    buffers: tuple[str, ...]
    h: tuple[int, ...]
    z: tuple[int, ...]


@functools.cache
def _needs(spec: StageSpec) -> _Needs:
    streams = {
        "x": spec.reads_x,
        "u": spec.reads_u,
        "first": spec.convert != NONE or spec.reads_v,
        "second": spec.guided or spec.mask >> SECOND & 1,
        "x_out": spec.x_mask,
        "net_in": spec.copies,
    }
    return _Needs(
        tuple(name for name, needed in streams.items() if needed),
        tuple(i for i in range(MAX_HISTORY) if spec.reads_h(i)),
        tuple(i for i in range(MAX_DRAWS) if spec.reads_z(i)),
    )


def per_sample(buf: Buffers, batch: int, copies: int) -> int:
    """The number of elements of one sample, from whichever output a stage writes."""
    if buf.u_out is not None:
        return buf.u_out.numel() // batch
    if buf.net_in is not None:
        return buf.net_in.numel() // (batch * copies)
    like = buf.x_out if buf.x_out is not None else buf.m_out
    assert like is not None, "a stage without an output"
    return like.numel() // batch
