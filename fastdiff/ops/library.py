"""The fused stage, its noise and its quantiles as operations that PyTorch knows: `torch.ops.fastdiff`.

FakeTensor, torch.export, torch.compile, torch.jit.trace and dispatch modes see an operation with a schema, what it
writes, and what it does to shapes: nothing, since all memory is the caller's. Runs that nobody records call the back
end itself, which is faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.ops.buffers import Buffers, Coeffs, check_width, require
from fastdiff.ops.layout import StageSpec
from fastdiff.ops.registry import Backend, load
from fastdiff.plan import MAX_HISTORY

_STAGE = """(str backend, int[] spec, int k, int inner, Tensor table, Tensor draws, Tensor seeds, Tensor index,
Tensor? lo, Tensor? hi, Tensor? scale, Tensor? rows, Tensor? x, Tensor? u, Tensor? first, Tensor? second,
Tensor? h1, Tensor? h2, Tensor? h3, Tensor? h4, Tensor? h5, Tensor? h6, Tensor? za, Tensor? zb, Tensor? zc,
Tensor(a!)? u_out, Tensor(b!)? x_out, Tensor(c!)? m_out, Tensor(d!)? net_in, Tensor(e!)? squares) -> ()"""
_NORMAL = "(str backend, Tensor(a!) out, Tensor seeds, Tensor index, int draw, int stream) -> ()"
_QUANTILE = "(str backend, Tensor(a!) out, Tensor x0, float q) -> ()"
_WRITTEN = 5
"""How many of the stage's tensors, the last ones, are written."""


def _given(spec: Sequence[int], inner: int, tensors: Sequence[Tensor | None]) -> tuple[StageSpec, Coeffs, Buffers]:
    """The operation's arguments as a back end takes them."""
    convert, guided, m_reads_u, *rest = spec
    table, draws, seeds, index, lo, hi, scale, rows, x, u, first, second, *more = tensors
    h, (za, zb, zc), written = more[:MAX_HISTORY], more[MAX_HISTORY:-_WRITTEN], more[-_WRITTEN:]
    assert table is not None and draws is not None and seeds is not None and index is not None
    return (
        StageSpec(convert, bool(guided), bool(m_reads_u), *rest),
        Coeffs(table, draws, seeds, index, lo, hi, scale, rows, inner),
        Buffers(x, u, first, second, tuple(h), (za, zb, zc), *written),
    )


def _stage(backend: str, spec: Sequence[int], k: int, inner: int, *tensors: Tensor | None) -> None:
    # A compiler is free to choose other strides.
    dense = [None if t is None else t.contiguous() for t in tensors]
    structure, coeffs, buf = _given(spec, inner, dense)
    check_width(structure, coeffs)
    load(backend).stage(structure, k, coeffs, buf)
    for result, value in zip(tensors[-_WRITTEN:], dense[-_WRITTEN:], strict=True):
        if result is not None and value is not None and value is not result:
            result.copy_(value)


def _stage_shapes(backend: str, spec: Sequence[int], k: int, inner: int, *tensors: Tensor | None) -> None:
    require(*_given(spec, inner, tensors))


def _normal(backend: str, out: Tensor, seeds: Tensor, index: Tensor, draw: int, stream: int) -> None:
    value = out.contiguous()
    load(backend).normal_(value, seeds.contiguous(), index.contiguous(), draw, stream)
    if value is not out:
        out.copy_(value)


def _quantile(backend: str, out: Tensor, x0: Tensor, q: float) -> None:
    value = out.contiguous()
    load(backend).quantile_(value, x0.contiguous(), q)
    if value is not out:
        out.copy_(value)


stage = torch.library.custom_op(
    "fastdiff::stage", _stage, mutates_args=("u_out", "x_out", "m_out", "net_in", "squares"), schema=_STAGE
)
stage.register_fake(_stage_shapes)
normal_ = torch.library.custom_op("fastdiff::normal_", _normal, mutates_args=("out",), schema=_NORMAL)
normal_.register_fake(lambda backend, out, seeds, index, draw, stream: None)
quantile_ = torch.library.custom_op("fastdiff::quantile_", _quantile, mutates_args=("out",), schema=_QUANTILE)
quantile_.register_fake(lambda backend, out, x0, q: None)


_NONE = (None,) * MAX_HISTORY


class Recorded:
    """A back end whose operations are those of `torch.ops.fastdiff`."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.NAME = backend, backend.NAME

    def available(self) -> tuple[bool, str]:
        return self.backend.available()

    def supports(self, device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[bool, str]:
        return self.backend.supports(device, state, network)

    def stage(self, spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
        c, b = coeffs, buf
        torch.ops.fastdiff.stage(
            self.NAME, [int(v) for v in spec], k, c.inner, c.table, c.draws, c.seeds, c.index, c.lo, c.hi,
            c.scale, c.rows, b.x, b.u, b.first, b.second, *b.h,
            *_NONE[len(b.h):], *b.z, b.u_out, b.x_out, b.m_out, b.net_in, b.squares,
        )  # fmt: skip

    def normal_(self, out: Tensor, seeds: Tensor, index: Tensor, draw: int, stream: int) -> None:
        torch.ops.fastdiff.normal_(self.NAME, out, seeds, index, draw, stream)

    def quantile_(self, out: Tensor, x0: Tensor, q: float) -> None:
        torch.ops.fastdiff.quantile_(self.NAME, out, x0, q)
