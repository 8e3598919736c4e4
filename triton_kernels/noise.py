"""Philox4x32-10 and Box-Muller in Triton: the random-number contract of docs/architecture.md, four normals a block."""

from __future__ import annotations

import triton
import triton.language as tl

# In units of 2^-23. The first has 9 bits: its product with a float32 exponent is exact.
LN2_HIGH = tl.constexpr(0.693359375 / 8388608)
LN2_LOW = tl.constexpr(-2.12194440e-4 / 8388608)
SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
PATH = tl.constexpr(2)  # the Philox stream of Brownian paths
ANGLE = tl.constexpr(3.657295198167899e-10)  # 2 pi / 2^34


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Ten rounds of Philox4x32 (Salmon et al. 2011).

    c0 … c3: the counter's uint32 words, tensors or scalars; seed: int64 scalar, its low word the first half of the key.
    Returns four uint32 words.
    """
    k0 = seed & 0xFFFFFFFF
    k1 = (seed >> 32) & 0xFFFFFFFF
    for _ in tl.static_range(10):
        # One widening product gives both halves: a single wide multiply-add on the device.
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0.to(tl.uint32)
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@triton.jit
def log_unit(u):
    """Natural logarithm for float32 u in [2^-33, 1], relative error below 2^-23 also next to 1.

    u = 2^e·(1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = f − f²/2 + f³·P(f), P of degree 7 with least maximal
    relative error (fitted in float64, 0.1 units of 2^-24).
    """
    bits = u.to(tl.int32, bitcast=True)
    # 2^23 e: its conversion is exact.
    scaled = (bits - SQRT_HALF_BITS) & -8388608
    f = (bits - scaled).to(tl.float32, bitcast=True) - 1.0
    e = scaled.to(tl.float32)
    p = tl.fma(f, -0.0763443, 0.1276155)
    p = tl.fma(f, p, -0.13160194)
    p = tl.fma(f, p, 0.14201762)
    p = tl.fma(f, p, -0.16623357)
    p = tl.fma(f, p, 0.20001227)
    p = tl.fma(f, p, -0.25000823)
    p = tl.fma(f, p, 0.3333333)
    square = f * f
    tail = tl.fma(f * square, p, -0.5 * square)
    return tl.fma(e, LN2_HIGH, f + tl.fma(e, LN2_LOW, tail))


@triton.jit
def box_muller(a, b):
    """Two float32 standard normals from uint32 words: r·cos and r·sin of the angle 2 pi b / 2^32, r = sqrt(−2 ln u(a)).

    sin and cos by least-maximum polynomials on [−pi/4, pi/4] (0.06 units of 2^-24). Fused multiply-adds are written
    out, and fusion by the compiler is off, so that noise has the same bits in every specialisation of every kernel.
    """
    u = tl.fma(a.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)
    r = tl.sqrt_rn(-2.0 * log_unit(u))
    # Quadrant: the two leading bits of b + 2^29. What is left is b's low 30 bits as a signed number, here times 4.
    turn = b + 0x20000000
    phi = (b << 2).to(tl.int32, bitcast=True).to(tl.float32) * ANGLE
    q = phi * phi
    s = tl.fma(q, -0.00019515282, 0.00833216)
    s = tl.fma(q, s, -0.16666655)
    s = r * tl.fma(phi * q, s, phi)
    c = tl.fma(q, 2.4433155e-05, -0.0013887316)
    c = tl.fma(q, c, 0.041666646)
    c = r * tl.fma(q * q, c, tl.fma(q, -0.5, 1.0))
    # (c, s), (−s, c), (−c, −s), (s, −c) by quadrant: swap where odd, then flip the sign bits.
    odd = (turn & 0x40000000) != 0
    first = tl.where(odd, s, c).to(tl.uint32, bitcast=True) ^ ((turn + 0x40000000) & 0x80000000)
    second = tl.where(odd, c, s).to(tl.uint32, bitcast=True) ^ (turn & 0x80000000)
    return first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True)


@triton.jit
def spread(a, b, c, d):
    """Four (P,) tensors to (4 P,) in the order a0 b0 c0 d0 a1 …; lanes keep the four words that they computed."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def words(tile, index, draw, stream, seed, BLOCK: tl.constexpr):
    """The Philox words of tile number `tile` of a sample: four uint32 (BLOCK / 4,) tensors, one column a block of 4.

    index, draw: int32 scalars; seed: int64 scalar; stream: uint32 scalar.
    """
    block = tile.to(tl.uint32) * (BLOCK // 4) + tl.arange(0, BLOCK // 4).to(tl.uint32)
    return philox(block, index.to(tl.uint32, bitcast=True), draw.to(tl.uint32, bitcast=True), stream, seed)


@triton.jit
def normals(tile, index, draw, stream, seed, BLOCK: tl.constexpr):
    """float32 (BLOCK,) standard normals for the elements of a tile, in order."""
    w0, w1, w2, w3 = words(tile, index, draw, stream, seed, BLOCK)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return spread(n0, n1, n2, n3)


@triton.jit
def normals_from(element, index, draw, stream, seed, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """float32 (BLOCK,) standard normals from element number `element` of a sample on, an int64 scalar; ALIGNED: it is a
    multiple of 4. Else each element makes the four normals of its block and takes its own."""
    at = index.to(tl.uint32, bitcast=True)
    number = draw.to(tl.uint32, bitcast=True)
    if ALIGNED:
        block = (element // 4).to(tl.uint32) + tl.arange(0, BLOCK // 4).to(tl.uint32)
        w0, w1, w2, w3 = philox(block, at, number, stream, seed)
        n0, n1 = box_muller(w0, w1)
        n2, n3 = box_muller(w2, w3)
        value = spread(n0, n1, n2, n3)
    else:
        own = element + tl.arange(0, BLOCK)
        w0, w1, w2, w3 = philox((own // 4).to(tl.uint32), at, number, stream, seed)
        n0, n1 = box_muller(w0, w1)
        n2, n3 = box_muller(w2, w3)
        lane = own % 4
        value = tl.where(lane == 0, n0, tl.where(lane == 1, n1, tl.where(lane == 2, n2, n3)))
    return value


@triton.jit
def path_sum(tile, index, words, seed, BLOCK: tl.constexpr):
    """float32 (BLOCK,): the sum of normals that `words` says, their number and then a node and the bits of a weight
    for each (fastdiff/ops/brownian.py), by the same fused multiply-adds as in csrc."""
    total = tl.zeros((BLOCK,), tl.float32)
    for j in range(0, tl.load(words)):
        node = tl.load(words + 1 + 2 * j)
        weight = tl.load(words + 2 + 2 * j).to(tl.float32, bitcast=True)
        total = tl.fma(weight, normals(tile, index, node, tl.cast(PATH, tl.uint32), seed, BLOCK), total)
    return total


@triton.jit(do_not_specialize=["tiles", "draw", "stream"])
def fill_kernel(
    out, seeds, index, n, tiles, draw, stream, WORDS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Write a draw to `out` (B, n): its normals, or (WORDS, for known-answer tests) the raw words as int32.

    seeds: (B,) int64; index: (B,) int32; tiles: programs per sample; WIDE: offsets inside a sample need 64 bits.
    """
    sample = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    seed = tl.load(seeds + sample)
    sample_index = tl.load(index + sample)
    start = tile.to(tl.int64) * BLOCK if WIDE else tile * BLOCK
    offset = start + tl.arange(0, BLOCK)
    target = out + sample.to(tl.int64) * n + offset
    tag = stream.to(tl.uint32)
    if WORDS:
        w0, w1, w2, w3 = words(tile, sample_index, draw, tag, seed, BLOCK)
        tl.store(target, spread(w0, w1, w2, w3).to(tl.int32, bitcast=True), mask=offset < n)
    else:
        z = normals(tile, sample_index, draw, tag, seed, BLOCK)
        tl.store(target, z.to(out.dtype.element_ty), mask=offset < n)
