"""The Triton kernels' machine code, executed, and held against the CUDA kernels bit for bit."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
import sass
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)
if sass.tool("cuobjdump") is None or sass.tool("nvdisasm") is None:
    pytest.skip("cuobjdump and nvdisasm are neither in the triton package nor on PATH", allow_module_level=True)

from helpers.stage_cases import check, random_case
from launches import Backend, Kernels
from triton_launches import TritonBackend
from variants import ALL, FRAMES, ONE, TWO, Variant, case_for

from fastdiff.ops import reference
from fastdiff.ops.buffers import Buffers
from fastdiff.ops.layout import LINEAR, RAW, StageSpec
from fastdiff.plan import H1, M, U, X

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
OUTPUTS = ("u_out", "x_out", "m_out", "net_in")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("arch", (80, 90))
def test_random_stages(arch: int, seed: int) -> None:
    shape = ((2, 3, 16, 16), (1, 64), (7, 5, 41), (3, 1024))[seed % 4]
    check(TritonBackend(arch, skew=(0, 0, 8)[seed % 3]), random_case(40 + seed, shape=shape))


@pytest.mark.parametrize("shape", [(2, 2, 3, 80), (1, 2, 2, 45)])
def test_a_row_for_each_frame(shape: tuple[int, ...]) -> None:
    """Whose elements that lie together are a multiple of what shares a block of the noise, and not."""
    check(TritonBackend(90), random_case(3 + shape[0] % 2, shape=shape, frames=2))


@pytest.mark.parametrize("hist", (F32, BF16))
def test_warps_may_run_in_any_order(hist: torch.dtype) -> None:
    """Streams of two widths, and m in place of a history entry that m does not come from."""
    spec = StageSpec(LINEAR, False, True, 1 << X | 1 << M | 1 << H1, 1 << U | 1 << H1, 1)
    case = random_case(9, spec=spec, state=F32, network=BF16, shape=(1, 2048))
    case.buf.h = tuple(None if h is None else h.to(hist) for h in case.buf.h)
    case.buf.m_out, case.buf.u_out, case.buf.x_out = case.buf.h[0], case.buf.u, case.buf.x
    assert case.buf.net_in is not None
    case.buf.net_in = case.buf.net_in.to(BF16)
    for seed in range(3):
        check(TritonBackend(90, order=np.random.default_rng(seed)), case)


class WithoutBarrier(TritonBackend):
    def run(self, kernel: Any, values: dict[str, Any], grid: int, warps: int) -> None:
        super().run(kernel, {**values, "EXCHANGES": False}, grid, warps)


def test_the_barrier_before_the_stores() -> None:
    """m, which neither row reads, goes over h3, which one reads: the two have nothing in common but their memory, and a
    16-bit stream gives a thread other elements than a 32-bit one. Without the barrier a warp stores m where another has
    yet to load h3."""
    spec = StageSpec(RAW, False, False, 1 << X | 7 << H1, 0, 1)
    case = random_case(27, spec=spec, state=F32, network=BF16, shape=(1, 2048))
    case.buf.h = tuple(torch.randn(1, 2048) for _ in range(3))
    case.buf.m_out, case.buf.u_out, case.buf.net_in = case.buf.h[2], case.buf.x, torch.empty(1, 2048, dtype=BF16)
    racing = 0
    for seed in range(4):
        check(TritonBackend(90, order=np.random.default_rng(seed)), case)
        try:
            check(WithoutBarrier(90, order=np.random.default_rng(seed)), case)
        except AssertionError:
            racing += 1
    assert racing, "the machine does not see the race"


@pytest.mark.skipif(importlib.util.find_spec("fastdiff._cuda") is None, reason="fastdiff._cuda is not built")
@pytest.mark.slow
def test_triton_and_cuda_give_the_same_bits(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One arithmetic: with noise, guidance, clipping, a learned variance, and networks of every dtype."""
    spec = importlib.util.find_spec("fastdiff._cuda")
    assert spec is not None and spec.origin is not None
    kernels = Kernels(spec.origin, "sm_90", tmp_path_factory.mktemp("cubins"))
    stages = (
        Variant(F32, F32, F32, ONE, 2, False, False, False),
        Variant(F32, F32, F32, ONE, 1, False, False, True),
        Variant(F32, BF16, F32, ONE, 1, True, False, True),
        Variant(F32, BF16, F32, ONE, 0, False, True, True),
        Variant(F32, F16, F32, TWO, 3, True, False, False),
        Variant(F32, F32, F32, ALL, 6, True, True, True),
        Variant(F32, F32, F32, ALL, 6, True, True, True, known=False),
        Variant(F32, F32, F32, FRAMES, 6, True, False, True),
        Variant(F32, F32, F32, ALL, 6, True, True, True, True, known=False),
    )
    for seed, v in enumerate(stages):
        case = case_for(v, seed)
        case.buf.z = (None, None, None)
        results: list[Buffers] = []
        for backend in (Backend(kernels), TritonBackend(90)):
            buf = case.fresh()
            backend.stage(case.spec, case.k, case.coeffs, buf)
            results.append(buf)
        for name in OUTPUTS:
            ours, theirs = (getattr(buf, name) for buf in results)
            if ours is not None:
                assert torch.equal(ours.nan_to_num(), theirs.nan_to_num()), (v, name)


@pytest.mark.parametrize("arch", (80, 90))
@pytest.mark.parametrize(("n", "dtype"), [(701, torch.float32), (5, torch.float64)])
def test_quantiles(n: int, dtype: torch.dtype, arch: int) -> None:
    """By one warp and by several, with ties, an infinite element and a NaN."""
    x = torch.randn(3, n, dtype=dtype)
    x[1] = x[1].mul(4).round()
    x[2, n // 2] = torch.nan if n == 701 else torch.inf
    for q in (0.995, 0.5):
        out, want = torch.full((3,), 7.0, dtype=dtype), torch.empty(3, dtype=dtype)
        reference.quantile_(want, x, q)
        TritonBackend(arch).quantile_(out, x, q)
        torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
