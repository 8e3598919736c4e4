"""The pytest-benchmark suite: `pytest benchmarks/bench_stages.py` (with --benchmark-json=... to keep the figures)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastdiff
from benchmarks import eager, fused, overhead
from fastdiff import ops

SHAPE = fused.SIZES["4x4x64x64"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("network", DTYPES)
@pytest.mark.parametrize("method", eager.METHODS)
@pytest.mark.parametrize("variant", ["eager", "fastdiff"])
def test_stage(benchmark: Callable[..., Any], method: str, network: str, variant: str) -> None:
    torch.manual_seed(0)
    case = fused.make_case(method, SHAPE, DTYPES[network])
    work = fused.baseline(case) if variant == "eager" else fused.ours(case, ops.load("cpu"))
    benchmark.group = f"{method}, {network} network"  # type: ignore[attr-defined]
    benchmark.extra_info["bytes"] = case.bytes  # type: ignore[attr-defined]
    benchmark(work)


@pytest.mark.parametrize("variant", ["torch", "fastdiff"])
def test_normals(benchmark: Callable[..., Any], variant: str) -> None:
    benchmark.group = "normals"  # type: ignore[attr-defined]
    if variant == "torch":
        benchmark(torch.randn, SHAPE)
    else:
        benchmark(fastdiff.randn, SHAPE, seed=1)


@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m", "ddpm"])
def test_loop(benchmark: Callable[..., Any], method: str) -> None:
    benchmark.group = "ten steps around a trivial network"  # type: ignore[attr-defined]
    benchmark(overhead.sampler(method, 10, torch.zeros(overhead.SHAPE)))
