"""One stage of a sampler as one Triton kernel; fastdiff/ops/reference.py is the same operation in plain PyTorch."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff._triton.noise import normals, normals_from, path_sum

# Columns of a table row, as in fastdiff/table.py.
W1 = tl.constexpr(0)
W2 = tl.constexpr(1)
CU = tl.constexpr(2)
CG = tl.constexpr(3)
PU = tl.constexpr(4)
PG = tl.constexpr(5)
QU = tl.constexpr(6)
QX = tl.constexpr(7)
IN_SCALE = tl.constexpr(8)
NEXT_U = tl.constexpr(9)
NEXT_X = tl.constexpr(22)
S0 = tl.constexpr(35)
S1 = tl.constexpr(36)
QG = tl.constexpr(37)
WIDTH = tl.constexpr(40)

# How m is made, as in fastdiff/table.py.
NONE = tl.constexpr(0)
RAW = tl.constexpr(1)
LINEAR = tl.constexpr(2)
CLIP = tl.constexpr(3)
BLEND = tl.constexpr(4)

# Registers, in the order of fastdiff/plan.py.
X = tl.constexpr(0)
U = tl.constexpr(1)
M = tl.constexpr(2)
H1 = tl.constexpr(3)
SECOND = tl.constexpr(9)
ZA = tl.constexpr(10)

ONE = tl.constexpr(1)  # on the left of << and &, since an int there does not know constexpr in the interpreter
CHUNK = tl.constexpr(128)  # elements in a sum of squares
STEP = tl.constexpr(0)  # the Philox stream of the stages' noise
PATH_WIDTH = tl.constexpr(129)  # words of one draw of a Brownian path, as in csrc/stage.h


@triton.jit
def _read(source, offset, inside, USED: tl.constexpr, TYPE: tl.constexpr):
    """One stream in the state's dtype; a scalar zero, and no load, where the specialisation does not use it."""
    if USED:
        value = tl.load(source + offset, mask=inside, other=0.0).to(TYPE)
    else:
        value = 0.0
    return value


@triton.jit
def _write(target, value, offset, inside, BITS: tl.constexpr):
    """Round to the target's dtype: to 16-bit formats by way of float32, as PyTorch's copy does.

    BITS: round to bfloat16 by integer arithmetic, for the interpreter, whose own conversion truncates.
    """
    if target.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)
    if target.dtype.element_ty == tl.float16:
        value = value.to(tl.float32)
    if BITS:
        if target.dtype.element_ty == tl.bfloat16:
            bits = value.to(tl.uint32, bitcast=True).to(tl.uint64)
            # NaN must stay NaN: adding the rounding bias could carry out of its mantissa.
            rounded = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
            value = (rounded >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    tl.store(target + offset, value.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _term(total, row, value, J: tl.constexpr, FIRST: tl.constexpr, MASK: tl.constexpr, FRAMED: tl.constexpr):
    """total + coefficient·value for register J of the combination whose coefficients begin at column FIRST.

    With frames a coefficient of 0 is not used.
    """
    if (ONE << J) & MASK:
        c = tl.load(row + FIRST + J)
        before = total
        if ((ONE << J) - 1) & MASK:
            total = tl.fma(c, value, total)
        else:
            total = c * value
        if FRAMED:
            total = tl.where(c != 0, total, before)
    return total


@triton.jit
def _combine(row, x, u, m, h1, h2, h3, h4, h5, h6, second, za, zb, zc, zero, FIRST: tl.constexpr, MASK: tl.constexpr,
    FRAMED: tl.constexpr,
):  # fmt: skip
    total = _term(zero, row, x, X, FIRST, MASK, FRAMED)
    total = _term(total, row, u, U, FIRST, MASK, FRAMED)
    total = _term(total, row, m, M, FIRST, MASK, FRAMED)
    total = _term(total, row, h1, H1, FIRST, MASK, FRAMED)
    total = _term(total, row, h2, H1 + 1, FIRST, MASK, FRAMED)
    total = _term(total, row, h3, H1 + 2, FIRST, MASK, FRAMED)
    total = _term(total, row, h4, H1 + 3, FIRST, MASK, FRAMED)
    total = _term(total, row, h5, H1 + 4, FIRST, MASK, FRAMED)
    total = _term(total, row, h6, H1 + 5, FIRST, MASK, FRAMED)
    total = _term(total, row, second, SECOND, FIRST, MASK, FRAMED)
    total = _term(total, row, za, ZA, FIRST, MASK, FRAMED)
    total = _term(total, row, zb, ZA + 1, FIRST, MASK, FRAMED)
    return _term(total, row, zc, ZA + 2, FIRST, MASK, FRAMED)


@triton.jit
def _noise(
    given, offset, inside, tile, row_number, sample, draws, seeds, index,
    NUMBER: tl.constexpr, MASK: tl.constexpr, PATH: tl.constexpr, TYPE: tl.constexpr, FRAMED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw NUMBER of the stage: the user's stream where one is given, else Philox.

    tile: the number of BLOCK elements of a sample; with frames, the sample's element that the program begins with.
    """
    if (ONE << (ZA + NUMBER)) & MASK:
        if given is None:
            seed = tl.load(seeds + sample)
            number, stream = tl.load(index + sample), tl.cast(STEP, tl.uint32)
            if PATH:
                words = draws + (row_number * 3 + NUMBER) * PATH_WIDTH
                value = path_sum(tile, number, words, seed, BLOCK).to(TYPE)
            else:
                draw = tl.load(draws + row_number * 3 + NUMBER)
                if FRAMED:
                    value = normals_from(tile, number, draw, stream, seed, FRAMED == 1, BLOCK).to(TYPE)
                else:
                    value = normals(tile, number, draw, stream, seed, BLOCK).to(TYPE)
        else:
            value = tl.load(given + offset, mask=inside, other=0.0).to(TYPE)
    else:
        value = 0.0
    return value


@triton.jit
def _exponential(v):
    """exp; for float32 the same operations as csrc/stage.h, which says how they are made."""
    if v.dtype == tl.float32:
        w = tl.minimum(v, 88.0, propagate_nan=tl.PropagateNan.ALL)
        w = tl.maximum(w, -87.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = tl.fma(w, 1.44269504, 12582912.0)
        k = shifted - 12582912.0
        r = tl.fma(k, -0.693147182, w)
        p = tl.fma(r, 1.3814540e-3, 8.3687454e-3)
        p = tl.fma(p, r, 4.1668389e-2)
        p = tl.fma(p, r, 1.6666521e-1)
        p = tl.fma(p, r, 4.9999994e-1)
        p = tl.fma(p, r, 1.0)
        p = tl.fma(p, r, 1.0)
        power = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
        result = p * power.to(tl.float32, bitcast=True)
    else:
        result = tl.exp(v)
    return result


@triton.jit
def _model_value(
    row, u, g, sample, lo, hi, scale, CONVERT: tl.constexpr, M_READS_U: tl.constexpr
):  # fmt: skip
    """m from the (guided) output g: the prediction in the solver's space, through the clamped x0 under CLIP, BLEND."""
    m = g
    if CONVERT == LINEAR:
        m = tl.load(row + CG) * g
        if M_READS_U:
            m = tl.fma(tl.load(row + CU), u, m)
    if CLIP <= CONVERT:
        x0 = tl.load(row + PG) * g
        if M_READS_U:
            x0 = tl.fma(tl.load(row + PU), u, x0)
        x0 = tl.minimum(x0, tl.load(hi + sample), propagate_nan=tl.PropagateNan.ALL)
        x0 = tl.maximum(x0, tl.load(lo + sample), propagate_nan=tl.PropagateNan.ALL)
        x0 = x0 * tl.load(scale + sample)
        m = tl.load(row + QX) * x0
        if M_READS_U:
            m = tl.fma(tl.load(row + QU), u, m)
    if CONVERT == BLEND:
        m = tl.fma(tl.load(row + QG), g, m)
    return m


@triton.jit(
    do_not_specialize=["k", "tiles", "frames"],
    do_not_specialize_on_alignment=["table", "draws", "seeds", "index", "rows", "lo", "hi", "scale"],
)
def stage_kernel(
    x, u, first, second, h1, h2, h3, h4, h5, h6, za, zb, zc, u_out, x_out, m_out, net_in, squares,
    table, draws, seeds, index, rows, lo, hi, scale, n, total, tiles, k, inner, frames,
    CONVERT: tl.constexpr, GUIDED: tl.constexpr, M_READS_U: tl.constexpr, U_MASK: tl.constexpr, X_MASK: tl.constexpr,
    COPIES: tl.constexpr, LEARNED: tl.constexpr, PATH: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr,
    EXCHANGES: tl.constexpr, FRAMED: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK consecutive elements of one sample, every stream read once, every output written once.

    Pointers are None where the stage does not use the stream; see fastdiff/ops/buffers.py for the rest. n: elements per
    sample (of the whole batch if not SPLIT); total: elements of the batch, the offset of net_in's second copy; tiles:
    programs per sample; k: the table row; PATH: the draws are increments of a Brownian path; SPLIT: samples differ (own
    noise, bounds or rows); WIDE: offsets inside a sample need 64 bits; EXCHANGES: an element may be stored by another
    thread than the one that loaded it. Outputs may be the same memory as inputs: all loads come before all stores, and
    no element is touched by two programs.
    FRAMED: 0, with `inner` and `frames` None; else a program has elements of one frame: `inner` of them lie together,
    and `tiles` is programs for each such run; 1 where inner is a multiple of 4.
    """
    TYPE: tl.constexpr = table.dtype.element_ty
    MASK: tl.constexpr = U_MASK | X_MASK
    tile = tl.program_id(0)
    sample = tile * 0
    if SPLIT:
        sample = tile // tiles
        tile = tile % tiles
    start = tile.to(tl.int64) * BLOCK if WIDE else tile * BLOCK
    offset = start + tl.arange(0, BLOCK)
    number = k
    if FRAMED:
        inside = offset < inner
        run = sample
        sample = run // (n // inner)
        base = sample.to(tl.int64) * n
        offset = run.to(tl.int64) * inner + offset
        tile = run.to(tl.int64) * inner + start - base
        number = tl.load(rows + sample * frames + run % frames)
    else:
        inside = offset < n
        base = sample.to(tl.int64) * n
        offset = base + offset
        if rows is not None:
            number = tl.load(rows + sample)
    row = table + number * WIDTH

    xv = _read(x, offset, inside, (ONE << X) & MASK, TYPE)
    uv = xv  # u is not given where it is the same memory as x
    if u is not None:
        uv = _read(u, offset, inside, True, TYPE)
    # Where the network gives v too, a sample of its output has 2n elements: the prediction, then v.
    at_first = offset
    if LEARNED:
        at_first = base + offset
    at_second = offset
    if LEARNED == 2:
        at_second = at_first
    g = _read(first, at_first, inside, CONVERT != NONE, TYPE)
    av = _read(second, at_second, inside, (ONE << SECOND) & MASK | GUIDED, TYPE)
    v1 = _read(h1, offset, inside, (ONE << H1) & MASK, TYPE)
    v2 = _read(h2, offset, inside, (ONE << (H1 + 1)) & MASK, TYPE)
    v3 = _read(h3, offset, inside, (ONE << (H1 + 2)) & MASK, TYPE)
    v4 = _read(h4, offset, inside, (ONE << (H1 + 3)) & MASK, TYPE)
    v5 = _read(h5, offset, inside, (ONE << (H1 + 4)) & MASK, TYPE)
    v6 = _read(h6, offset, inside, (ONE << (H1 + 5)) & MASK, TYPE)
    n1 = _noise(za, offset, inside, tile, number, sample, draws, seeds, index, 0, MASK, PATH, TYPE, FRAMED, BLOCK)
    if squares is not None:
        parts = tl.sum(tl.reshape(tl.where(inside, n1 * n1, 0.0), (BLOCK // CHUNK, CHUNK)), axis=1)
        chunks = (n + (CHUNK - 1)) // CHUNK
        own = tile * (BLOCK // CHUNK) + tl.arange(0, BLOCK // CHUNK)
        tl.store(squares + sample.to(tl.int64) * chunks + own, parts, mask=own < chunks)
    n2 = _noise(zb, offset, inside, tile, number, sample, draws, seeds, index, 1, MASK, PATH, TYPE, FRAMED, BLOCK)
    n3 = _noise(zc, offset, inside, tile, number, sample, draws, seeds, index, 2, MASK, PATH, TYPE, FRAMED, BLOCK)

    if GUIDED:
        g = tl.fma(tl.load(row + W1), g, tl.load(row + W2) * av)
    if ((ONE << SECOND | ONE << ZA) & MASK) * LEARNED:
        e = _exponential(tl.fma(tl.load(row + S1), _read(first, at_first + n, inside, True, TYPE), tl.load(row + S0)))
        if (ONE << ZA) & MASK:
            n1 = e * n1
        if (ONE << SECOND) & MASK:
            av = e * e * av
    m = _model_value(row, uv, g, sample, lo, hi, scale, CONVERT, M_READS_U)
    zero = tl.zeros((BLOCK,), TYPE)
    if (COPIES > 0) | (u_out is not None):
        u_next = _combine(row, xv, uv, m, v1, v2, v3, v4, v5, v6, av, n1, n2, n3, zero, NEXT_U, U_MASK, FRAMED)
    if COPIES > 0:
        scaled = tl.load(row + IN_SCALE) * u_next
    if X_MASK:
        x_next = _combine(row, xv, uv, m, v1, v2, v3, v4, v5, v6, av, n1, n2, n3, zero, NEXT_X, X_MASK, FRAMED)

    if EXCHANGES:
        tl.debug_barrier()
    if m_out is not None:
        _write(m_out, m, offset, inside, BITS)
    if COPIES > 0:
        _write(net_in, scaled, offset, inside, BITS)
        if COPIES > 1:
            _write(net_in + tl.cast(total, tl.int64), scaled, offset, inside, BITS)
    if X_MASK:
        _write(x_out, x_next, offset, inside, BITS)
    if u_out is not None:
        _write(u_out, u_next, offset, inside, BITS)
