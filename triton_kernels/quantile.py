"""The quantile of each sample's |x| in Triton: radix selection by counting, exact to the order statistic."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keys(x, offset, n, DOUBLE: tl.constexpr):
    """|x| as unsigned integers of the same order, NaN last, 0 from element n on; and which of them are elements."""
    inside = offset < n
    v = tl.load(x + offset, mask=inside, other=0.0)
    if DOUBLE:
        return v.to(tl.uint64, bitcast=True) & 0x7FFFFFFFFFFFFFFF, inside
    else:
        return v.to(tl.uint32, bitcast=True) & 0x7FFFFFFF, inside


@triton.jit(do_not_specialize=["low", "weight_high", "weight_low"])
def quantile_kernel(
    out, x, n, low, weight_high, weight_low, DOUBLE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """out[b] = a + w·(c − a), a and c being the order statistics `low` and `low` + 1 of |x[b]|; NaN where x[b] has one.

    One program per sample. The largest key with at most `low` keys below it is found two bits a round, by counting the
    keys below three candidates: 16 rounds over the sample in float32, 32 in float64, and one for the next key.

    out: (B,); x: (B, n); w = (weight_high·2^27 + weight_low)/2^53, in integers since Triton passes floats as float32.
    WIDE: offsets inside a sample need 64 bits.
    """
    sample = tl.program_id(0)
    key: tl.constexpr = tl.uint64 if DOUBLE else tl.uint32
    bits: tl.constexpr = 64 if DOUBLE else 32
    infinite: tl.constexpr = 0x7FF0000000000000 if DOUBLE else 0x7F800000
    x += sample.to(tl.int64) * n
    lanes = tl.arange(0, BLOCK)
    if WIDE:
        lanes = lanes.to(tl.int64)

    found = tl.full([], 0, key)
    step = tl.full([], 1 << (bits - 2), key)
    for _ in range(bits // 2):
        below1 = tl.zeros([BLOCK], tl.int32)
        below2 = tl.zeros([BLOCK], tl.int32)
        below3 = tl.zeros([BLOCK], tl.int32)
        first = found + step
        second = first + step
        third = second + step
        for start in range(0, n, BLOCK):
            k, inside = keys(x, start + lanes, n, DOUBLE)
            below1 += (inside & (k < first)).to(tl.int32)
            below2 += (inside & (k < second)).to(tl.int32)
            below3 += (inside & (k < third)).to(tl.int32)
        # The counts rise from one candidate to the next.
        found = tl.where(tl.sum(below1.to(tl.int64)) <= low, first, found)
        found = tl.where(tl.sum(below2.to(tl.int64)) <= low, second, found)
        found = tl.where(tl.sum(below3.to(tl.int64)) <= low, third, found)
        step = step >> 2

    through = tl.zeros([BLOCK], tl.int32)
    above = tl.full([BLOCK], infinite, key)
    top = tl.full([BLOCK], 0, key)
    for start in range(0, n, BLOCK):
        k, inside = keys(x, start + lanes, n, DOUBLE)
        through += (inside & (k <= found)).to(tl.int32)
        above = tl.where(inside & (k > found) & (k < above), k, above)
        top = tl.where(k > top, k, top)
    largest = tl.max(top)
    weight = weight_high.to(tl.float64) * 1.4901161193847656e-08 + weight_low.to(tl.float64) * 1.1102230246251565e-16
    alone = (weight == 0.0) | (tl.sum(through.to(tl.int64)) > low + 1)
    following = tl.where(alone, found, tl.min(above))

    kind: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    # Equal neighbours, infinite ones among them, have no difference.
    a = tl.where(following == found, 0, found).to(kind, bitcast=True)
    c = tl.where(following == found, 0, following).to(kind, bitcast=True)
    result = found.to(kind, bitcast=True) + weight.to(kind) * (c - a)
    tl.store(out + sample, tl.where(largest > infinite, largest.to(kind, bitcast=True), result))
