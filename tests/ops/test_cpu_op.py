"""The CPU back end against the reference, on every instruction set that this processor has."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.stage_cases import NORMAL_TOLERANCE, check, random_case

from fastdiff.ops import cpu
from fastdiff.ops import philox as truth
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.ops.layout import LINEAR, NEXT_U, RAW, WIDTH, StageSpec
from fastdiff.plan import H1, NREG, ZA, M, X, register

if not cpu.available()[0]:
    pytest.skip(cpu.available()[1], allow_module_level=True)

from fastdiff import _cpu

LEVELS = _cpu.simd_levels()


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.simd_level()
    _cpu.set_simd(request.param)
    yield request.param
    _cpu.set_simd(before)


@pytest.mark.parametrize("group", range(6))
def test_random_stages(level: str, group: int) -> None:
    for seed in range(group * 100, group * 100 + 100):
        check(cpu, random_case(seed))


@pytest.mark.parametrize(("state", "network"), ((torch.float32, torch.float32), (torch.float64, torch.bfloat16)))
def test_on_two_threads_and_past_the_cache(level: str, state: torch.dtype, network: torch.dtype) -> None:
    # Above the thresholds for threads and for non-temporal stores; an odd n makes the second sample unaligned.
    spec = StageSpec(LINEAR, True, True, 1 << X | 1 << M | 1 << H1, 1 << X | 1 << ZA, 1)
    check(
        cpu,
        random_case(
            0,
            spec=spec,
            state=state,
            network=network,
            shape=(2, 1025, 1027) if state == torch.float32 else (2, 513, 1027),
        ),
    )


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_every_16_bit_number_survives(level: str, dtype: torch.dtype) -> None:
    # m = out and u' = 1·m: the float32 value must be torch's, and converted back the same bits, subnormals included.
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, -1)
    value, back = torch.full(every.shape, math.nan), torch.full_like(every, math.nan)
    table = torch.zeros(1, WIDTH)
    table[0, NEXT_U : NEXT_U + NREG] = torch.from_numpy(register("m"))
    table[0, 8] = 1
    coeffs = _coeffs(table, 1)
    cpu.stage(StageSpec(RAW, False, False, 1 << M, 0, 1), 0, coeffs, Buffers(first=every, u_out=value, net_in=back))
    assert torch.equal(value.nan_to_num(nan=7e7), every.float().nan_to_num(nan=7e7))
    numbers = ~every.isnan()
    assert torch.equal(back[numbers].view(torch.int16), every[numbers].view(torch.int16))
    assert back[~numbers].isnan().all()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_rounding_to_16_bits_is_torchs(level: str, dtype: torch.dtype) -> None:
    # Random bit patterns cover overflow, subnormals and ties.
    bits = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 1 << 17, dtype=np.uint32).astype(np.int32))
    ties = (torch.arange(0, 1 << 16, dtype=torch.int32) << 16) + (1 << 12)
    value = torch.cat([bits, ties, ties + (1 << 13), ties - (1 << 12) + (1 << 15)]).view(torch.float32).reshape(1, -1)
    got = torch.empty_like(value, dtype=dtype)
    table = torch.zeros(1, WIDTH)
    table[0, NEXT_U + X] = table[0, 8] = 1
    cpu.stage(StageSpec(0, False, False, 1 << X, 0, 1), 0, _coeffs(table, 1), Buffers(x=value, net_in=got))
    want = value.to(dtype)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~want.isnan()].view(torch.int16), want[~want.isnan()].view(torch.int16))


def _coeffs(table: torch.Tensor, batch: int) -> Coeffs:
    draws = torch.zeros((len(table), 3), dtype=torch.int32)
    return Coeffs(table, draws, torch.arange(batch), torch.arange(batch, dtype=torch.int32))


def test_philox_known_answers() -> None:
    # Random123's kat_vectors for philox4x32-10.
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert _cpu.philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert _cpu.philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert _cpu.philox(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("n", (1, 7, 64, 1025, 5003))
def test_normals(level: str, dtype: torch.dtype, n: int) -> None:
    seeds = torch.tensor([0, -1, 2**63 - 1, 12345678901234567], dtype=torch.int64)
    index = torch.tensor([0, 1, 2**31 - 1, 77], dtype=torch.int32)
    got = torch.full((4, n), math.nan, dtype=dtype)
    cpu.normal_(got, seeds, index, 3, 2)
    want = _truth((4, n), seeds, index, 3, 2)
    assert np.abs(got.double().numpy() - want).max() <= NORMAL_TOLERANCE


def _truth(shape: tuple[int, int], seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> np.ndarray:
    batch, n = shape
    rows = [truth.normals(n, int(seeds[b]), int(index[b]), draw, stream) for b in range(batch)]
    return np.stack(rows).astype(np.float64)


def test_normals_do_not_depend_on_threads_or_batch(level: str) -> None:
    seeds, index = torch.full((3,), 5), torch.arange(3, dtype=torch.int32)
    whole = torch.empty((3, 100_003))
    cpu.normal_(whole, seeds, index, 0, 0)
    alone = torch.empty((1, 100_003))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        cpu.normal_(alone, seeds[2:], index[2:], 0, 0)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole[2:], alone)


def test_tails_are_accurate(level: str) -> None:
    # A float32 shortcut in ln would show in the largest normals, |z| near 5.
    got = torch.empty((1, 1 << 20))
    seeds, index = torch.tensor([9]), torch.zeros(1, dtype=torch.int32)
    cpu.normal_(got, seeds, index, 0, 0)
    want = _truth((1, 1 << 20), seeds, index, 0, 0)
    assert np.abs(want).max() > 4.5
    assert np.abs(got.numpy() - want).max() <= NORMAL_TOLERANCE


def test_history_in_place_of_the_oldest_entry(level: str) -> None:
    # The ring of buffers: m replaces h3, which the same stage reads.
    torch.manual_seed(0)
    h = tuple(torch.randn(2, 33) for _ in range(3))
    x, out = torch.randn(2, 33), torch.randn(2, 33)
    table = torch.zeros(1, WIDTH)
    table[0, NEXT_U + X], table[0, NEXT_U + M] = 0.5, 2.0
    table[0, NEXT_U + H1 : NEXT_U + H1 + 3] = torch.tensor([1.0, -1.0, 3.0])
    want = 0.5 * x + 2 * out + h[0] - h[1] + 3 * h[2]
    spec = StageSpec(RAW, False, False, 1 << X | 1 << M | 7 << H1, 0, 0)
    oldest = h[2]
    cpu.stage(spec, 0, _coeffs(table, 2), Buffers(x=x, first=out, h=h, m_out=oldest, u_out=x))
    torch.testing.assert_close(x, want, rtol=0, atol=12 * 2**-24 * 12)  # 12 roundings of sums below 12
    assert torch.equal(oldest, out)


def test_unknown_or_impossible_level_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"SIMD level 'sse9' cannot run here: .* has portable"):
        _cpu.set_simd("sse9")
    code = "from fastdiff.ops import cpu; print(cpu.available())"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FASTDIFF_SIMD": "sse9"}, capture_output=True, text=True
    )
    assert run.returncode == 0 and "(False, " in run.stdout and "sse9" in run.stdout, run.stderr


def test_refuses_what_it_cannot_run() -> None:
    assert cpu.supports(torch.device("cpu"), torch.float32, torch.bfloat16) == (True, "")
    assert "float32 or float64" in cpu.supports(torch.device("cpu"), torch.float16, torch.float32)[1]
    assert "cuda" in cpu.supports(torch.device("cuda"), torch.float32, torch.float32)[1]
