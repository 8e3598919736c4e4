"""The random numbers, in NumPy: Philox4x32-10 (Salmon et al. 2011) and Box-Muller normals.

This file is the contract. Every back end gives the same integers bit for bit, and normals within 2 units in the last
place of float32 or 1e-6 of these.

    key     = low and high 32 bits of the sample's 64-bit seed
    counter = (block k, sample index, draw, stream); a block gives c0..c3, for elements 4k..4k+3 of the sample
    u1(c)   = float32(c) * 2^-32 + 2^-33, in float32, each operation rounded to nearest even: in [2^-33, 1]
    r(c)    = sqrt(-2 ln u1(c))
    angle   = c * 2 pi / 2^32, split into the nearest quarter turn j and a remainder rho in [-2^29, 2^29) units
    normals = r(c0) cos(c1), r(c0) sin(c1), r(c2) cos(c3), r(c2) sin(c3)

Here log, sqrt, sin and cos act in float64, and the normal is rounded to float32 once.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

STEP = 0
"""Stream of the noise that a sampler adds in its steps."""
PRIOR = 1
"""Stream of the sample that it starts from."""

_ROUNDS = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Philox4x32-10 of `counter`, uint32 (..., 4), under `key`, uint32 (..., 2); leading dimensions broadcast.

    Returns uint32 (..., 4). Raises ValueError for other last dimensions, TypeError for other dtypes.
    """
    words, keys = np.asarray(counter), np.asarray(key)
    if words.dtype != np.uint32 or keys.dtype != np.uint32:
        raise TypeError(f"philox4x32 got counter of {words.dtype} and key of {keys.dtype}; expected uint32 arrays")
    if words.shape[-1:] != (4,) or keys.shape[-1:] != (2,):
        raise ValueError(f"philox4x32 got counter {words.shape} and key {keys.shape}; expected (..., 4) and (..., 2)")
    x0, x1, x2, x3 = (words[..., i] for i in range(4))
    k0, k1 = keys[..., 0], keys[..., 1]
    with np.errstate(over="ignore"):
        for _ in range(_ROUNDS):
            p0, p1 = x0.astype(np.uint64) * _M0, x2.astype(np.uint64) * _M1
            x0, x2 = _high(p1) ^ x1 ^ k0, _high(p0) ^ x3 ^ k1
            x1, x3 = (p1 & _LOW).astype(np.uint32), (p0 & _LOW).astype(np.uint32)
            k0, k1 = k0 + _W0, k1 + _W1
    return np.stack(np.broadcast_arrays(x0, x1, x2, x3), axis=-1)


def _high(product: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return (product >> _HALF).astype(np.uint32)


def integers(n: int, seed: int, index: int, draw: int, stream: int = STEP) -> NDArray[np.uint32]:
    """The raw uint32 words, (n,), behind `normals` of the same arguments."""
    n, seed = operator.index(n), operator.index(seed)
    if not 0 <= n <= 1 << 34:
        raise ValueError(f"n got {n}; expected 0 to 2^34 elements in one sample")
    key = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], dtype=np.uint32)
    blocks = (n + 3) // 4
    counter = np.empty((blocks, 4), dtype=np.uint32)
    counter[:, 0] = np.arange(blocks, dtype=np.uint64)
    counter[:, 1] = _word("index", index)
    counter[:, 2] = _word("draw", draw)
    counter[:, 3] = _word("stream", stream)
    return philox4x32(counter, key).reshape(-1)[:n]


def _word(name: str, value: int) -> int:
    number = operator.index(value)
    if not 0 <= number < 1 << 32:
        raise ValueError(f"{name} got {number}; expected 0 <= {name} < 2^32")
    return number


def normals(n: int, seed: int, index: int, draw: int, stream: int = STEP) -> NDArray[np.float32]:
    """Elements 0 .. n - 1, float32 (n,), of one draw of one sample.

    `seed`: any integer, taken modulo 2^64; `index`: the sample's index under that seed; `draw`: the draw's number;
    `stream`: STEP or PRIOR. The first m elements do not depend on n. Raises ValueError for numbers that do not fit.
    """
    words = integers((operator.index(n) + 3) // 4 * 4, seed, index, draw, stream).reshape(-1, 4)
    radius, angle = words[:, 0::2], words[:, 1::2]
    r = np.sqrt(-2.0 * np.log(uniforms(radius).astype(np.float64)))
    cos, sin = _turn(angle)
    return np.stack([r * cos, r * sin], axis=-1).reshape(-1)[:n].astype(np.float32)


def uniforms(c: NDArray[np.uint32]) -> NDArray[np.float32]:
    """u1 of the contract: float32 in [2^-33, 1], the same shape, bit for bit the same everywhere."""
    return c.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)


def _turn(c: NDArray[np.uint32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of 2 pi c / 2^32, by the quarter turns of the contract."""
    with np.errstate(over="ignore"):
        quarter = (c + np.uint32(1 << 29)) >> np.uint32(30)
        rho = (c - (quarter << np.uint32(30))).view(np.int32)
    phi = rho.astype(np.float64) * (2.0 * math.pi * 2.0**-32)
    cos, sin = np.cos(phi), np.sin(phi)
    swap = (quarter & 1).astype(bool)
    first, second = np.where(swap, sin, cos), np.where(swap, cos, sin)
    return (
        np.where((quarter == 1) | (quarter == 2), -first, first),
        np.where(quarter >= 2, -second, second),
    )
