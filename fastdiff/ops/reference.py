"""The fused stage and the noise in plain PyTorch: the truth in tests, and what runs on devices without a kernel."""

from __future__ import annotations

import math

import torch

from fastdiff.ops.brownian import PATH, PATH_WIDTH
from fastdiff.ops.buffers import CHUNK, Buffers, Coeffs, require
from fastdiff.ops.layout import (
    BLEND,
    CG,
    CU,
    IN_SCALE,
    LINEAR,
    NEXT_U,
    NEXT_X,
    NONE,
    PG,
    PU,
    QG,
    QU,
    QX,
    RAW,
    S0,
    S1,
    W1,
    W2,
    StageSpec,
)
from fastdiff.ops.philox import STEP
from fastdiff.ops.rank import rank
from fastdiff.ops.sums import sample_sums
from fastdiff.plan import H1, MAX_DRAWS, NREG, SECOND, ZA, M, U, X

NAME = "reference"


def available() -> tuple[bool, str]:
    """(True, reason): the reference always runs."""
    return True, "plain PyTorch"


def supports(device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[bool, str]:
    """Every device and floating-point dtype that PyTorch computes with."""
    return True, ""


def stage(spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
    """Run table row `k` (or `coeffs.rows`, one row per sample or frame); see `Buffers` for shapes and dtypes."""
    require(spec, coeffs, buf)
    batch = coeffs.seeds.shape[0]
    half = None if buf.net_in is None else buf.net_in.narrow(0, 0, batch)
    like = next(t for t in (buf.u_out, buf.x_out, half) if t is not None)
    dtype, shape = coeffs.table.dtype, like.shape
    column = (-1,) + (1,) * (len(shape) - 1)
    frame = None if not coeffs.inner else _frames(coeffs, shape)
    rows = _rows(coeffs.table, k, coeffs, batch)

    def coefficient(j: int) -> torch.Tensor:
        values = rows.select(1, j)
        return values.reshape(column) if frame is None else values.index_select(0, frame).reshape(shape)

    registers: list[torch.Tensor | None] = [None] * NREG
    registers[X], registers[U] = buf.x, buf.u
    for i, h in enumerate(buf.h):
        registers[H1 + i] = None if h is None else h.to(dtype)
    first, second, v = buf.first, buf.second, None
    if spec.learned and first is not None:
        first, v = first.chunk(2, dim=1)
        second = second.chunk(2, dim=1)[0] if spec.learned == 2 and second is not None else second
    if second is not None:
        registers[SECOND] = second.to(dtype)
    if spec.noises:
        draws = _rows(coeffs.draws, k, coeffs, batch)
        for i in range(MAX_DRAWS):
            if spec.reads_z(i):
                z = buf.z[i]
                if z is None:
                    own = draws if frame is None else draws.index_select(0, frame).reshape(batch, -1, MAX_DRAWS)
                    z = drawn(spec, shape, coeffs, own, i).to(dtype)
                registers[ZA + i] = z
        if buf.squares is not None:
            z = registers[ZA]
            assert z is not None
            buf.squares.copy_(_squares(z))

    m = None
    if spec.convert != NONE:
        assert first is not None
        g = first.to(dtype)
        if spec.guided:
            other = registers[SECOND]
            assert other is not None
            g = coefficient(W1) * g + coefficient(W2) * other
        if spec.convert == RAW:
            m = g
        elif spec.convert == LINEAR:
            m = coefficient(CG) * g
            if spec.m_reads_u:
                assert buf.u is not None
                m = coefficient(CU) * buf.u + m
        elif spec.clips:
            assert coeffs.lo is not None and coeffs.hi is not None and coeffs.scale is not None
            x0 = coefficient(PG) * g
            if spec.m_reads_u:
                assert buf.u is not None
                x0 = coefficient(PU) * buf.u + x0
            # Written out: every back end must show a NaN after the clamp.
            x0 = torch.maximum(torch.minimum(x0, coeffs.hi.reshape(column)), coeffs.lo.reshape(column))
            x0 = x0 * coeffs.scale.reshape(column)
            m = coefficient(QX) * x0
            if spec.m_reads_u:
                assert buf.u is not None
                m = coefficient(QU) * buf.u + m
            if spec.convert == BLEND:
                m = coefficient(QG) * g + m
    registers[M] = m
    if spec.reads_v:
        assert v is not None
        e = torch.exp(coefficient(S0) + coefficient(S1) * v.to(dtype))
        for j, factor in ((ZA, e), (SECOND, e * e)):
            value = registers[j]
            registers[j] = None if value is None else factor * value

    def combine(first: int, mask: int) -> torch.Tensor:
        total = torch.zeros(shape, dtype=dtype, device=like.device)
        for j in range(NREG):
            if mask >> j & 1:
                value = registers[j]
                assert value is not None
                c = coefficient(first + j)
                term = total + c * value
                total = term if frame is None else torch.where(c == 0, total, term)
        return total

    u_next = combine(NEXT_U, spec.u_mask)
    x_next = combine(NEXT_X, spec.x_mask) if spec.x_mask else None
    # All outputs are written last: they may share memory with the inputs.
    if buf.m_out is not None:
        assert m is not None
        buf.m_out.copy_(m)
    if spec.copies:
        assert buf.net_in is not None
        scaled = coefficient(IN_SCALE) * u_next
        for c in range(spec.copies):
            buf.net_in.narrow(0, c * batch, batch).copy_(scaled)
    if x_next is not None:
        assert buf.x_out is not None
        buf.x_out.copy_(x_next)
    if buf.u_out is not None:
        buf.u_out.copy_(u_next)


def _rows(table: torch.Tensor, k: int, coeffs: Coeffs, batch: int) -> torch.Tensor:
    """(B, columns): row `k` for every sample, or each sample's own; (B·F, columns) with frames. Not by indexing, which
    fake tensors cannot do."""
    if coeffs.rows is None:
        return table.select(0, k).expand(batch, -1)
    return table.index_select(0, coeffs.rows.select(0, k).reshape(-1) if coeffs.inner else coeffs.rows)


def _squares(z: torch.Tensor) -> torch.Tensor:
    """(B, chunks): the sums of the squares of each CHUNK elements."""
    flat = z.reshape(len(z), -1)
    chunks = -(-flat.shape[1] // CHUNK)
    whole = flat.new_zeros(len(z), chunks * CHUNK)
    whole.narrow(1, 0, flat.shape[1]).copy_(flat)
    return sample_sums(whole.square_().reshape(-1, CHUNK)).reshape(len(z), chunks)


def _frames(coeffs: Coeffs, shape: torch.Size) -> torch.Tensor:
    """(elements of the batch,): which of the B·F rows each element has."""
    assert coeffs.rows is not None
    count, device = coeffs.rows.shape[2], coeffs.rows.device
    each = torch.arange(math.prod(shape[1:]), device=device) // coeffs.inner % count
    return (torch.arange(shape[0], device=device).reshape(-1, 1) * count + each).reshape(-1)


def drawn(spec: StageSpec, shape: torch.Size, coeffs: Coeffs, draws: torch.Tensor, i: int) -> torch.Tensor:
    """float32 (B, ...): draw `i`, from each sample's row of the draws; or with draws (B, n, 3) each element's."""
    if not spec.path:
        return noise(shape, coeffs.seeds, coeffs.index, draws.select(-1, i), STEP)
    words = draws.narrow(1, i * PATH_WIDTH + 1, 2 * spec.path)
    column = (-1,) + (1,) * (len(shape) - 1)
    total = torch.zeros(shape, dtype=torch.float64, device=draws.device)
    for j in range(spec.path):
        # What pads the sum has weight 0.
        weight = words.select(1, 2 * j + 1).contiguous().view(torch.float32).double().reshape(column)
        total += weight * noise(shape, coeffs.seeds, coeffs.index, words.select(1, 2 * j), PATH)
    return total.float()


def _mulhilo(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # int64 holds the low 64 bits of the product; the shift's sign extension is masked off.
    product = b * a
    return product >> 32 & 0xFFFFFFFF, product & 0xFFFFFFFF


def philox(c: list[torch.Tensor], key: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    """Philox4x32-10 (Salmon et al. 2011) on int64 tensors that hold 32-bit words."""
    k0, k1 = key
    c0, c1, c2, c3 = c
    for _ in range(10):
        hi0, lo0 = _mulhilo(0xD2511F53, c0)
        hi1, lo1 = _mulhilo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def noise(shape: torch.Size, seeds: torch.Tensor, index: torch.Tensor, draw: torch.Tensor, stream: int) -> torch.Tensor:
    """Standard normals, float32 (B, ...): the contract of `fastdiff.ops.philox.normals`, for a batch of samples.

    Args:
        shape: (B, ...).
        seeds: (B,) int64.
        index: (B,) integers: sample index.
        draw: (B,) integers: draw number; or (B, n), each element's own.
        stream: stream tag.
    """
    n = math.prod(shape[1:])
    each = draw.ndim == 2
    block = torch.arange(n if each else (n + 3) // 4, device=seeds.device, dtype=torch.int64).reshape(1, -1)
    lane, block = block % 4, block // 4 if each else block
    ones = torch.ones_like(block)
    word = 0xFFFFFFFF
    number = draw.long().reshape(shape[0], -1) & word
    counter = [block & word, (index.long().reshape(-1, 1) & word) * ones, number * ones]
    counter = [c.expand(shape[0], -1) for c in (counter[0], counter[1], counter[2])] + [
        ones.expand(shape[0], -1) * stream
    ]
    key = (seeds.reshape(-1, 1) & word, seeds.reshape(-1, 1) >> 32 & word)
    c0, c1, c2, c3 = philox(counter, key)
    first, second = _box_muller(c0, c1), _box_muller(c2, c3)
    normals = torch.stack([*first, *second], dim=-1)
    if each:
        return normals.gather(2, lane.expand(shape[0], -1).unsqueeze(2)).reshape(shape)
    return normals.reshape(shape[0], -1).narrow(1, 0, n).reshape(shape)


def _box_muller(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # int64 -> float64 is exact here, and float64 -> float32 rounds once, as uint32 -> float32 does.
    u1 = a.double().float() * 2.0**-32 + 2.0**-33
    r = torch.sqrt(-2.0 * torch.log(u1.double()))
    quadrant = (b + (1 << 29) & 0xFFFFFFFF) >> 30
    # Wrapped to a signed 32-bit difference.
    rho = (b - (quadrant << 30) + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
    phi = rho.double() * (2.0 * math.pi * 2.0**-32)
    cos, sin = torch.cos(phi), torch.sin(phi)
    turned = [(cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)]
    c = torch.where(
        quadrant == 0,
        turned[0][0],
        torch.where(quadrant == 1, turned[1][0], torch.where(quadrant == 2, turned[2][0], turned[3][0])),
    )
    s = torch.where(
        quadrant == 0,
        turned[0][1],
        torch.where(quadrant == 1, turned[1][1], torch.where(quadrant == 2, turned[2][1], turned[3][1])),
    )
    return (r * c).float(), (r * s).float()


def normal_(out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
    """Fill `out` (B, ...) with the normals of draw `draw`."""
    draws = torch.full_like(index, draw, dtype=torch.int64)
    out.copy_(noise(out.shape, seeds, index, draws, stream))


def quantile_(out: torch.Tensor, x0: torch.Tensor, q: float) -> None:
    """Set `out` (B,) to the q-quantile of each sample's |x0| (B, ...), in x0's dtype: linear between order statistics,
    as torch.quantile, but without its limit of 2^24 elements. NaN where a sample has one."""
    size = x0.abs().reshape(len(x0), -1)
    n = size.shape[1]
    low, weight = rank(q, n)
    bound = size.kthvalue(low + 1, dim=1).values
    if weight:
        following = size.kthvalue(low + 2, dim=1).values
        # Equal infinite neighbours have no difference.
        bound = torch.where(bound == following, bound, bound + weight * (following - bound))
    largest = size.amax(dim=1)
    out.copy_(torch.where(largest.isnan(), largest, bound))
