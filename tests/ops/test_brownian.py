"""The tree of a Brownian path: the covariances of its increments, as sums of normals, are those of Brownian motion."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fastdiff import ops
from fastdiff.ops import Buffers, Coeffs
from fastdiff.ops.brownian import DEPTH, PATH, PATH_WIDTH, REACH, TERMS, Clock, Path, signal
from fastdiff.ops.buffers import require
from fastdiff.ops.layout import NONE, WIDTH, StageSpec
from fastdiff.ops.philox import normals
from fastdiff.plan import MAX_DRAWS, ZA
from fastdiff.run.noise import increment_

CLOCKS: dict[str, Clock] = {"signal": signal, "sigma": lambda low, high: math.exp(-low) - math.exp(-high)}
EDGES = [-math.inf, -5.0, -3.25, -1.0, 0.0, 0.4, 2.0, math.inf]
"""Cells' edges, dyadic numbers and others, and the ends where alpha or sigma is 0."""


def weights(increment: tuple[np.ndarray, np.ndarray]) -> dict[int, float]:
    return dict(zip(increment[0].tolist(), increment[1].astype(np.float64).tolist(), strict=True))


def product(a: dict[int, float], b: dict[int, float]) -> float:
    """The covariance of two sums of independent normals."""
    return sum(w * b.get(node, 0.0) for node, w in a.items())


@pytest.mark.parametrize("name", CLOCKS)
def test_increments_have_the_covariances_of_brownian_motion(name: str) -> None:
    """Of any two intervals: the variance of what they share. Unit variances, independent disjoint increments, sums of
    parts and the bridge between known ends all follow from it, since all is Gaussian."""
    path, clock, rng = Path(CLOCKS[name]), CLOCKS[name], np.random.default_rng(1)
    times = sorted([*rng.uniform(-6.0, 6.0, 24), *EDGES[1 if name == "sigma" else 0 :]])
    fine = [(a, b) for a, b in itertools.pairwise(times)]
    wide = [tuple(sorted(rng.choice(len(times), 2, replace=False))) for _ in range(40)]
    spans = fine + [(times[i], times[j]) for i, j in wide]
    sums = [weights(path.increment(*span)) for span in spans]

    def variance(a: float, b: float) -> float:
        return clock(max(a, -float(REACH)), min(b, float(REACH))) if a < b else 0.0

    for (s, one), (t, other) in itertools.product(zip(spans, sums, strict=True), repeat=2):
        shared = variance(max(s[0], t[0]), min(s[1], t[1]))
        want = shared / math.sqrt(variance(*s) * variance(*t))
        # Weights are rounded to float32, and sums of up to 40 of them, of squares 1, leave out weights below 2^-25.
        assert product(one, other) == pytest.approx(want, abs=2e-6), (s, t)


def test_backwards_is_the_negative() -> None:
    path = Path()
    forth, back = weights(path.increment(-1.3, 0.7)), weights(path.increment(0.7, -1.3))
    assert forth == {node: -weight for node, weight in back.items()}


def test_the_clock_is_the_share_of_the_signal() -> None:
    for low, high in ((-3.0, 1.0), (-20.0, -19.0), (14.0, 14.001)):
        # 1/(1 + e^(-2 high)) - 1/(1 + e^(-2 low)) over a common denominator.
        want = math.exp(-2.0 * high) * math.expm1(2.0 * (high - low))
        want /= (1.0 + math.exp(-2.0 * high)) * (1.0 + math.exp(-2.0 * low))
        assert signal(low, high) == pytest.approx(want, rel=1e-12)
    assert signal(-float(REACH), float(REACH)) == pytest.approx(1.0, rel=1e-12)


def test_how_many_normals_an_increment_takes() -> None:
    """About two ways down the tree, also for steps over several cells and where alpha or sigma is 0."""
    path = Path()
    for steps in (1, 5, 20, 100, 1000):
        counts = [len(path.increment(a, b)[0]) for a, b in itertools.pairwise(np.linspace(-5.03, 6.9, steps + 1))]
        assert max(counts) <= 2 * (DEPTH + 2) + 11
    assert len(path.increment(-math.inf, math.inf)[0]) <= TERMS


def test_words_hold_the_increment() -> None:
    path = Path()
    nodes, values = path.increment(-0.3, 1.9)
    words = path.words(-0.3, 1.9)
    n = len(nodes)
    assert words.shape == (PATH_WIDTH,) and words.dtype == np.int32 and words[0] == n == len(set(nodes.tolist()))
    assert np.array_equal(words[1 : 1 + 2 * n : 2].view(np.uint32), nodes)
    assert np.array_equal(words[2 : 2 + 2 * n : 2].view(np.float32), values) and not words[1 + 2 * n :].any()


@pytest.mark.parametrize("ends", [(0.1, 0.1), (0.1, 0.1 + 2.0**-DEPTH / 3), (33.0, 40.0), (-math.inf, -40.0)])
def test_what_the_tree_does_not_resolve(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"brownian noise between lambda=.*: its path is resolved to steps of 2\^-12"):
        Path().increment(*ends)


def test_too_many_normals() -> None:
    with pytest.raises(
        ValueError, match=r"between lambda=-31.9 and 31.9 would be a sum of \d+ normals, and at most 64"
    ):
        Path(lambda low, high: high - low).increment(-31.9, 31.9)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_the_kernels_add_up_the_contracts_normals(dtype: torch.dtype) -> None:
    path, n = Path(), 1030
    seeds, index = torch.tensor([5, -3]), torch.tensor([0, 9], dtype=torch.int32)
    out = torch.empty(2, n, dtype=dtype)
    increment_(out, path, -1.1, 0.37, seeds, index)
    for b, seed in enumerate((5, 2**64 - 3)):
        pairs = list(zip(*path.increment(-1.1, 0.37), strict=True))
        want = sum(float(w) * normals(n, seed, (0, 9)[b], int(node), PATH).astype(np.float64) for node, w in pairs)
        # Each normal to 1e-6, times its weight; and one rounding for each term of a sum below 7.
        allowed = 1e-6 * sum(abs(float(w)) for _, w in pairs) + len(pairs) * 2.0**-24 * 7
        np.testing.assert_allclose(out[b].double().numpy(), want, rtol=0, atol=allowed)


def test_the_law_of_the_numbers_themselves() -> None:
    """Moments of increments and of the bridge between them, of 2^18 numbers: 5 standard errors."""
    n, at = 1 << 18, (-1.0, -0.2, 0.9)
    seeds, index = torch.tensor([7]), torch.tensor([0], dtype=torch.int32)
    z = {}
    for i, j in ((0, 1), (1, 2), (0, 2)):
        z[i, j] = torch.empty(1, n, dtype=torch.float64)
        increment_(z[i, j], Path(), at[i], at[j], seeds, index)
    error, first, second, whole = 5.0 / math.sqrt(n), z[0, 1][0], z[1, 2][0], z[0, 2][0]
    for v in (first, second, whole):
        assert abs(v.mean()) < error and abs(v.var() - 1.0) < error * math.sqrt(2.0)
        assert abs((v**4).mean() - 3.0) < error * math.sqrt(96.0)
    assert abs((first * second).mean()) < error
    # The bridge: W(1) given W(2), from W(0) = 0, has mean share * W(2) and variance share * (1 - share) * gained.
    gained, share = signal(at[0], at[2]), signal(at[0], at[1]) / signal(at[0], at[2])
    rest = first * math.sqrt(signal(at[0], at[1])) - share * whole * math.sqrt(gained)
    assert abs((rest * whole).mean()) < error * rest.std()
    assert float(rest.var()) == pytest.approx(share * (1.0 - share) * gained, rel=error * math.sqrt(2.0))


def test_a_table_of_another_width_is_refused() -> None:
    spec = StageSpec(NONE, False, False, 1 << ZA, 0, 0)
    numbers = Coeffs(
        torch.zeros(1, WIDTH), torch.zeros(1, 3, dtype=torch.int32), torch.tensor([0]),
        torch.tensor([0], dtype=torch.int32),
    )  # fmt: skip
    buf = Buffers(u_out=torch.empty(1, 4))
    require(spec, numbers, buf)
    for backend in ("reference", "cpu"):
        if not ops.load(backend).available()[0]:
            continue
        with pytest.raises(ValueError, match=rf"draws have 3 columns, expected {MAX_DRAWS * PATH_WIDTH} \(of a Brown"):
            ops.Recorded(ops.load(backend)).stage(spec._replace(path=4), 0, numbers, buf)
    words = Coeffs(
        numbers.table, torch.zeros(1, MAX_DRAWS * PATH_WIDTH, dtype=torch.int32), *(numbers.seeds, numbers.index)
    )
    with pytest.raises(ValueError, match=r"draws have 387 columns, expected 3 \(draw numbers\)"):
        require(spec, words, buf)
