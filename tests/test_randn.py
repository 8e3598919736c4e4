"""The random-number contract, as users see it: a sample is a function of its seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import BACKENDS, Pooled, wavy

import fastdiff
from fastdiff.ops.philox import PRIOR, STEP, normals

STOCHASTIC = ["ddpm", "dpmpp2m_sde", "dpm3"]
SEEDS = [0, 1, -1, -(2**63), 2**63, 2**64 - 1, 123456789012345678]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 1025), (2, 3, 5)])
def test_equals_the_contract(shape, dtype, backend) -> None:
    for seed, draw, first, prior in ((0, 0, 0, False), (7, 3, 2, True), (-5, 2**31 - 1, 2**31 - 10, False)):
        got = fastdiff.randn(shape, seed=seed, draw=draw, first_sample=first, prior=prior, dtype=dtype, backend=backend)
        n = int(np.prod(shape[1:]))
        want = [normals(n, seed, first + b, draw, PRIOR if prior else STEP) for b in range(shape[0])]
        assert got.dtype == dtype and got.shape == shape
        # The contract: 2 units in the last place of float32 (2^-22 relative), or 1e-6.
        np.testing.assert_allclose(got.double().numpy().reshape(shape[0], n), np.stack(want), rtol=2.0**-22, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_beyond_31_bits(backend) -> None:
    got = fastdiff.randn((1, 9), seed=3, draw=2**32 - 1, backend=backend)
    np.testing.assert_allclose(got.numpy()[0], normals(9, 3, 0, 2**32 - 1), rtol=2.0**-22, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_holds_the_float32_values(backend) -> None:
    a, b = (fastdiff.randn((2, 33), seed=1, dtype=d, backend=backend) for d in (torch.float32, torch.float64))
    assert torch.equal(a.double(), b)


def test_streams_draws_seeds_and_samples_are_apart() -> None:
    shape = (2, 257)
    all_of = [
        fastdiff.randn(shape, seed=1),
        fastdiff.randn(shape, seed=1, prior=True),
        fastdiff.randn(shape, seed=1, draw=1),
        fastdiff.randn(shape, seed=2),
        fastdiff.randn(shape, seed=1 + 2**32),
        fastdiff.randn(shape, seed=1, first_sample=2),
    ]
    rows = torch.cat(all_of)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    # 66 correlations of 257 independent pairs, each of standard deviation 1/16: five are exceeded once in 3e4 tests.
    assert correlation.abs().max() < 5 / 257**0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", STOCHASTIC)
@pytest.mark.parametrize("seed", SEEDS)
def test_any_batch_split_gives_the_same_samples(method, seed, backend) -> None:
    run = fastdiff.Sampler(method, 4, backend=backend)
    whole = run(wavy, shape=(5, 3, 7), seed=seed)
    parts = [run(wavy, shape=(n, 3, 7), seed=seed, first_sample=first) for first, n in ((0, 2), (2, 1), (3, 2))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("method", STOCHASTIC)
def test_back_ends_draw_the_same(method) -> None:
    if "cpu" not in BACKENDS:
        pytest.skip("the cpu back end is not built")
    results = [
        fastdiff.sample(
            lambda x, t: x * 0.5, shape=(3, 41), method=method, steps=3, seed=-9, backend=b, dtype=torch.float64
        )
        for b in ("reference", "cpu")
    ]
    # Normals within 1e-6 of each other, times at most 1/alpha_T = 160.
    torch.testing.assert_close(*results, rtol=1e-6, atol=3e-4)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
def test_a_seed_for_each_sample(form) -> None:
    seeds = [5, -3, 2**62]
    got = fastdiff.sample(wavy, shape=(3, 4), seed=form(seeds), method="ddpm", steps=3)
    for b, seed in enumerate(seeds):
        alone = fastdiff.sample(wavy, shape=(1, 4), seed=seed, method="ddpm", steps=3)
        assert torch.equal(got[b : b + 1], alone)
    mixed = fastdiff.sample(wavy, shape=(3, 4), seed=form(seeds[::-1]), method="ddpm", steps=3)
    assert torch.equal(mixed, got.flip(0))


def test_seeds_are_taken_modulo_64_bits() -> None:
    same = [fastdiff.randn((1, 8), seed=s) for s in (-1, 2**64 - 1)]
    assert torch.equal(*same)
    assert torch.equal(fastdiff.randn((1, 8), seed=np.uint64(2**64 - 1)), same[0])


def test_the_prior_has_the_schedules_width() -> None:
    got = []
    fastdiff.sample(
        lambda x, t: got.append(x.clone()) or x, shape=(2, 9), schedule=fastdiff.schedules.ve(0.01, 50.0), seed=8
    )
    torch.testing.assert_close(got[0], fastdiff.randn((2, 9), seed=8, prior=True) * 50.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [*STOCHASTIC, "heun"])
def test_own_noise_is_asked_for_once_a_draw(method, backend) -> None:
    options = {"s_churn": 20.0, "s_tmax": 50.0} if method == "heun" else {}
    plan = fastdiff.plan(method, 6, **options)
    asked = []

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        assert like.shape == (2, 3, 5) and like.dtype == torch.float32
        asked.append(draw)
        return fastdiff.randn(like.shape, seed=11, draw=max(draw, 0), prior=draw < 0, backend=backend)

    # A network that would make a run begin anew after the first draws, which must not ask for noise twice.
    model = wavy if method != "heun" else Pooled(wavy, 1, fresh=8)
    got = fastdiff.sample(model, shape=(2, 3, 5), steps=6, method=method, noise=noise, backend=backend, **options)
    assert asked == [-1, *range(plan.draws)]
    want = fastdiff.sample(wavy, shape=(2, 3, 5), steps=6, method=method, seed=11, backend=backend, **options)
    assert torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_noise_may_fill_what_it_is_given_or_one_buffer(backend) -> None:
    buffer = torch.empty(2, 15)

    def value(draw, like):
        return fastdiff.randn((2, 15), seed=3, draw=max(draw, 0), prior=draw < 0, backend=backend)

    want = fastdiff.sample(wavy, shape=(2, 15), method="ddpm", seed=3, backend=backend)
    for noise in (
        lambda draw, like: like.copy_(value(draw, like)),
        lambda draw, like: buffer.copy_(value(draw, like)),
        lambda draw, like: value(draw, like).double(),
        lambda draw, like: value(draw, like).t().contiguous().t(),
    ):
        assert torch.equal(fastdiff.sample(wavy, shape=(2, 15), method="ddpm", noise=noise, backend=backend), want)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"shape": (2, 3), "draw": -1}, ValueError, "draw=-1: expected an integer from 0"),
        ({"shape": (2, 3), "draw": 1.5}, ValueError, "draw=1.5: expected an integer"),
        ({"shape": (2, 3), "dtype": torch.float16}, ValueError, "float16: expected torch.float32 or torch.float64"),
        ({"shape": (0, 3)}, ValueError, r"shape=\(0, 3\): expected \(B, ...\) with sizes of at least 1"),
        ({"shape": (2.5, 3)}, TypeError, r"shape=\(2.5, 3\): expected"),
        ({"shape": 3}, TypeError, "shape=3: expected"),
        ({"shape": (2, 3), "seed": 1.0}, TypeError, "seed=1.0: expected an integer"),
        ({"shape": (2, 3), "seed": True}, TypeError, "seed=True: expected an integer"),
        ({"shape": (2, 3), "seed": 2**64}, TypeError, "expected an integer from -2"),
        (
            {"shape": (2, 3), "seed": [1, 2, 3]},
            ValueError,
            "got 3 seeds for a batch of 2: give one seed, or one per sample",
        ),
        ({"shape": (2, 3), "seed": [1, 2], "first_sample": 1}, ValueError, "first_sample goes with a single seed"),
        ({"shape": (2, 3), "first_sample": -1}, ValueError, "first_sample=-1: expected an integer from 0"),
        ({"shape": (2, 3), "first_sample": 2**31}, ValueError, "expected an integer from 0"),
        ({"shape": (2, 3), "backend": "tritn"}, ValueError, "triton"),
    ],
)
def test_errors(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        fastdiff.randn(**arguments)
