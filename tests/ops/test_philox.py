"""The NumPy reference of the random numbers: known answers, exact pieces of the contract, and statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fastdiff.ops import philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    """The kat_vectors of Random123 for philox4x32 with 10 rounds."""
    out = philox.philox4x32(np.array(counter, np.uint32), np.array(key, np.uint32))
    assert out.dtype == np.uint32 and out.tolist() == expected


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python integers, as in the paper's figure."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & ONES, (p0 >> 32) ^ c[3] ^ k[1], p0 & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return c


def test_vectorised_equals_scalar_and_broadcasts() -> None:
    rng = np.random.default_rng(0)
    counter = rng.integers(0, 1 << 32, (5, 3, 4), dtype=np.uint32)
    key = rng.integers(0, 1 << 32, (3, 2), dtype=np.uint32)
    out = philox.philox4x32(counter, key)
    assert out.shape == (5, 3, 4)
    for i in range(5):
        for j in range(3):
            assert out[i, j].tolist() == scalar_philox(counter[i, j].tolist(), key[j].tolist())


def test_counter_and_key_layout() -> None:
    seed, index, draw = 0x123456789ABCDEF0, 7, 11
    words = philox.integers(10, seed, index, draw, philox.PRIOR).tolist()
    blocks = [scalar_philox([k, index, draw, 1], [0x9ABCDEF0, 0x12345678]) for k in range(3)]
    assert words == [word for block in blocks for word in block][:10]
    assert philox.integers(8, -1, 0, 0).tolist() == philox.integers(8, (1 << 64) - 1, 0, 0).tolist()
    assert philox.integers(8, 1 << 64, 0, 0).tolist() == philox.integers(8, 0, 0, 0).tolist()


def test_uniform_is_exact() -> None:
    c = np.array(
        [0, 1, 2, 3, (1 << 24) + 1, (1 << 25) + 2, (1 << 31) - 1, 1 << 31, ONES - 128, ONES - 127, ONES], np.uint32
    )
    u = philox.uniforms(c)
    assert u.dtype == np.float32
    # Rational arithmetic, each step rounded to 24 bits by the float64 to float32 conversion: c and the sum of two
    # float32 numbers within 2^33 of each other are exact in float64.
    for word, value in zip(c.tolist(), u.tolist(), strict=True):
        rounded = float(np.float32(float(word)))
        assert value == float(np.float32(rounded * 2.0**-32 + 2.0**-33))
    assert u[0] == 2.0**-33 and u[-1] == 1.0


def test_normals_by_the_formula() -> None:
    """Against Box-Muller with the angle 2 pi c / 2^32 taken whole, in extended precision, without quarter turns."""
    n = 4096
    words = philox.integers(n, 3, 1, 2).reshape(-1, 4)
    r = np.sqrt(-2.0 * np.log(philox.uniforms(words[:, 0::2]).astype(np.longdouble)))
    angle = words[:, 1::2].astype(np.longdouble) * (2.0 * np.longdouble(np.pi) * 2.0**-32)
    truth = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1).reshape(-1)
    got = philox.normals(n, 3, 1, 2)
    assert got.dtype == np.float32
    # Rounding to float32, half a unit in the last place, and double's 2 pi, wrong by 2.5e-16 relative, times |r| < 6.8.
    assert np.all(np.abs(got - truth) <= 2.0**-24 * np.abs(truth) * 1.001 + 2e-14)


def test_quarter_turns() -> None:
    c = np.array([0, 1 << 30, 1 << 31, 3 << 30, 1 << 29, (1 << 29) - 1, ONES, 5 << 29], np.uint32)
    cos, sin = philox._turn(c)
    assert cos[:4].tolist() == [1.0, 0.0, -1.0, 0.0] and sin[:4].tolist() == [0.0, 1.0, 0.0, -1.0]
    angle = c * (2.0 * math.pi / 2**32)
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-15)
    np.testing.assert_allclose(sin, np.sin(angle), atol=1e-15)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 1025])
def test_prefix_does_not_depend_on_n(n: int) -> None:
    long = philox.normals(2048, 9, 4, 3)
    assert np.array_equal(philox.normals(n, 9, 4, 3), long[:n])
    assert philox.normals(n, 9, 4, 3).shape == (n,)


def test_partition() -> None:
    """Samples 0..7 of one seed are the same in any split of the batch, and a list of seeds is index 0 of each."""
    whole = [philox.normals(33, 5, i, 0) for i in range(8)]
    split = [philox.normals(33, 5, first + b, 0) for first, size in ((0, 3), (3, 1), (4, 4)) for b in range(size)]
    assert all(np.array_equal(a, b) for a, b in zip(whole, split, strict=True))
    assert len({w.tobytes() for w in whole}) == 8


N = 1 << 20
# A standard-normal statistic passes |z| < 5 but for a chance of 6e-7; about 60 such statistics are taken below, with
# fixed seeds.
Z = 5.0


@pytest.fixture(scope="module")
def sample() -> NDArray[np.float64]:
    return philox.normals(N, 2024, 0, 0).astype(np.float64)


def test_moments(sample: NDArray[np.float64]) -> None:
    # Var(x^k) = E x^2k - (E x^k)^2 of the standard normal: 1, 2, 15, 96 for k = 1..4.
    for k, mean, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        z = (np.mean(sample**k) - mean) * math.sqrt(N / variance)
        assert abs(z) < Z, (k, z)


def test_distribution_and_tails(sample: NDArray[np.float64]) -> None:
    assert stats.kstest(sample, "norm").pvalue > 1e-4
    # 64 cells of equal probability, then the tails, where a weak r(c) would show.
    cells = np.bincount(np.minimum((stats.norm.cdf(sample) * 64).astype(int), 63), minlength=64)
    assert stats.chisquare(cells).pvalue > 1e-4
    for bound in (2.0, 3.0, 4.0, 4.5):
        p = stats.norm.sf(bound)
        for count in (np.sum(sample > bound), np.sum(sample < -bound)):
            # Exact binomial test: the counts are small out there.
            assert stats.binomtest(int(count), N, p).pvalue > 1e-4, bound


def test_each_lane_is_normal(sample: NDArray[np.float64]) -> None:
    """Each of the four normals of a block is normal by itself, and uncorrelated with the others, as are the squares."""
    lanes = sample.reshape(-1, 4)
    for i in range(4):
        assert stats.kstest(lanes[:, i], "norm").pvalue > 1e-4
        for j in range(i):
            # Products of independent standard normals have variance 1; of centred squares, 4.
            assert abs(np.mean(lanes[:, i] * lanes[:, j])) < Z / math.sqrt(len(lanes))
            squares = (lanes[:, i] ** 2 - 1.0) * (lanes[:, j] ** 2 - 1.0)
            assert abs(np.mean(squares)) < Z * 2.0 / math.sqrt(len(lanes))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2025},
        {"seed": 2024 + (1 << 32)},
        {"index": 1},
        {"draw": 1},
        {"stream": philox.PRIOR},
    ],
    ids=["seed", "high seed", "sample", "draw", "stream"],
)
def test_neighbours_are_independent(sample: NDArray[np.float64], other: dict[str, int]) -> None:
    n = 1 << 18
    x, y = sample[:n], philox.normals(n, **{"seed": 2024, "index": 0, "draw": 0, **other}).astype(np.float64)
    assert abs(np.mean(x * y)) * math.sqrt(n) < Z
    assert abs(np.mean((x**2 - 1.0) * (y**2 - 1.0))) * math.sqrt(n) / 2.0 < Z
    # Joint: a 16 x 16 table of their quantiles, 255 degrees of freedom.
    cells = [np.minimum((stats.norm.cdf(v) * 16).astype(int), 15) for v in (x, y)]
    table = np.bincount(cells[0] * 16 + cells[1], minlength=256)
    assert stats.chisquare(table).pvalue > 1e-4


def test_elements_are_independent(sample: NDArray[np.float64]) -> None:
    for lag in (1, 2, 3, 4, 8, 64, 256, 4096):
        assert abs(np.mean(sample[:-lag] * sample[lag:])) * math.sqrt(N - lag) < Z, lag


def test_many_seeds_and_samples() -> None:
    """First elements over consecutive seeds, sample indices and draws are normal too, not only along one sample."""
    key = np.stack([np.arange(1 << 16, dtype=np.uint32), np.zeros(1 << 16, np.uint32)], axis=-1)
    by_seed = philox.philox4x32(np.zeros(4, np.uint32), key)
    for word in range(1, 3):
        counter = np.zeros((1 << 16, 4), np.uint32)
        counter[:, word] = np.arange(1 << 16)
        for words in (by_seed, philox.philox4x32(counter, np.zeros(2, np.uint32))):
            for lane in range(4):
                assert stats.kstest((words[:, lane] + 0.5) / 2.0**32, "uniform").pvalue > 1e-4


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="expected uint32"):
        philox.philox4x32(np.zeros(4, np.int64), np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match=r"expected \(..., 4\) and \(..., 2\)"):
        philox.philox4x32(np.zeros(3, np.uint32), np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match="index got -1"):
        philox.normals(4, 0, -1, 0)
    with pytest.raises(ValueError, match="draw got 4294967296"):
        philox.normals(4, 0, 0, 1 << 32)
    with pytest.raises(ValueError, match="n got -1"):
        philox.integers(-1, 0, 0, 0)
