"""The quantile of |x0| on every back end against torch.quantile and sorting, and dynamic thresholding in a run.

Triton's interpreter must be asked for before Triton is imported, so that its tests run in a process of their own, which
the last test starts.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.ops.rank import rank
from fastdiff.run import graph
from fastdiff.run.threshold import Threshold

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU = torch.device("cpu")
RUNNABLE = [
    name
    for name in (("triton",) if INTERPRETED else ops.BACKENDS)
    if ops.load(name).available()[0] and ops.load(name).supports(CPU, torch.float32, torch.float32)[0]
]
DTYPES = (torch.float32, torch.float64)
# The interpreter takes a tenth of a second for each quantile. 4099 elements are two of its blocks.
SIZES = (2, 7, 1025, 4099) if INTERPRETED else (1, 2, 3, 7, 1025, 5000, 65536 + 3)
SOME_SIZES = (7,) if INTERPRETED else (1, 2, 7, 1025, 5000)
QUANTILES = (0.3, 0.995) if INTERPRETED else (0.0, 0.3, 0.5, 0.995, 1.0)


@pytest.fixture(params=RUNNABLE)
def backend(request: pytest.FixtureRequest) -> ModuleType:
    return ops.load(request.param)


def quantile(backend: ModuleType, x: torch.Tensor, q: float) -> torch.Tensor:
    # Neither 7 nor NaN may stay where nothing was written.
    out = torch.full((len(x),), 7.0, dtype=x.dtype)
    backend.quantile_(out, x, q)
    return out


def data(kind: str, n: int, dtype: torch.dtype) -> torch.Tensor:
    """(3, n) values, of scales that differ between samples."""
    info, g = torch.finfo(dtype), torch.Generator().manual_seed(n)
    normal = torch.randn(3, n, dtype=torch.float64, generator=g)
    rows = torch.arange(1.0, 4.0, dtype=torch.float64).reshape(3, 1)
    x = {
        "normal": normal * rows,
        "constant": -rows.expand(3, n),
        "ties": (2 * normal).round() * rows,
        "rising": torch.arange(n) * rows,
        "falling": -torch.arange(n, 0, -1) * rows,
        "zeros": torch.zeros(3, n) * -rows,
        "denormal": normal.abs().mul(100).ceil() * rows * info.smallest_normal * info.eps,
        "huge": normal.sign() * info.max * (1 - normal.abs() / 64),
    }[kind]
    return x.to(dtype).contiguous()


KINDS = ("normal", "constant", "ties", "rising", "falling", "zeros", "denormal", "huge")


@pytest.mark.parametrize(
    ("q", "n"), [(q, n) for q in (0.0, 0.1, 0.5, 0.995, 1.0) for n in (1, 2, 3, 1025, 3 * 2**30 + 1)]
)
def test_rank_is_that_of_exact_arithmetic(q: float, n: int) -> None:
    low, weight = rank(q, n)
    assert 0 <= low < n and 0.0 <= weight < 1.0
    assert weight == 0.0 or low + 1 < n
    assert (weight * 2.0**53).is_integer()
    # q·(n - 1) is rounded once, to 53 bits.
    assert abs(low + Fraction(weight) - Fraction(q) * (n - 1)) <= Fraction(q) * (n - 1) / 2**53 + Fraction(1, 2**53)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch_quantile(kind: str, n: int, dtype: torch.dtype, backend: ModuleType) -> None:
    if INTERPRETED and (n == 4099 or dtype is torch.float64) and kind != "normal":
        pytest.skip("the interpreter is slow")
    x = data(kind, n, dtype)
    exact = x.abs().double()
    # Smaller, so that no difference of two of torch.quantile's neighbours overflows or loses denormal bits; exact.
    unit = {"denormal": 2.0**80, "huge": 2.0**-80}.get(kind, 1.0)
    for q in QUANTILES:
        got = quantile(backend, x, q)
        # The difference, its product with the weight and the sum are rounded once each, and torch.quantile's likewise.
        want = torch.quantile(exact * unit, q, dim=1) / unit
        info = torch.finfo(dtype)
        bound = 3 * info.eps * want + info.smallest_normal * info.eps
        assert bool(((got.double() - want).abs() <= bound).all()), (q, got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", (1, *SOME_SIZES))
def test_order_statistics_are_exact(n: int, dtype: torch.dtype, backend: ModuleType) -> None:
    """Where the rank is an integer, the result is an element, bit for bit."""
    x = data("normal", n, dtype)
    ordered = x.abs().sort(dim=1).values
    for i in sorted({0, n // 3, n // 2, n - 1}):
        q = i / (n - 1) if n > 1 else 0.5
        if rank(q, n) != (i, 0.0):
            continue  # i/(n - 1) was rounded
        torch.testing.assert_close(quantile(backend, x, q), ordered[:, i], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SOME_SIZES)
def test_all_back_ends_give_the_same_bits(n: int, dtype: torch.dtype, backend: ModuleType) -> None:
    reference = ops.load("reference")
    for kind in ("normal",) if INTERPRETED else KINDS:
        for q in QUANTILES:
            x = data(kind, n, dtype)
            torch.testing.assert_close(quantile(backend, x, q), quantile(reference, x, q), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SOME_SIZES)
def test_nan_and_infinity(n: int, dtype: torch.dtype, backend: ModuleType) -> None:
    """One NaN anywhere makes its own sample's quantile NaN. An infinite neighbour counts as the limit of large ones."""
    for where in {n // 2} if INTERPRETED else {0, n // 2, n - 1}:
        for bad in (math.nan, -math.nan):
            x = data("normal", n, dtype)
            x[1, where] = bad
            for q in QUANTILES:
                got, want = quantile(backend, x, q), torch.quantile(x.abs().double(), q, dim=1)
                assert got.isnan().tolist() == [False, True, False]
                bound = {"rtol": 3 * torch.finfo(dtype).eps, "atol": 0}
                torch.testing.assert_close(got.double(), want, equal_nan=True, **bound)
        x = data("normal", n, dtype)
        x[1, where], x[2] = -math.inf, math.inf
        largest = quantile(backend, x, 1.0)
        assert largest[0] == x[0].abs().max() and largest[1] == largest[2] == math.inf
        for q in QUANTILES[:-1]:
            got = quantile(backend, x, q)
            low, weight = rank(q, n)
            finite = low + (weight > 0) < n - 1
            assert got.isfinite().tolist() == [True, finite, False] and not bool(got.isnan().any())
            if finite:
                ordered = x[1].abs().sort().values.double()
                want = ordered[low] + weight * (ordered[low + (weight > 0)] - ordered[low])
                torch.testing.assert_close(got[1].double(), want, rtol=3 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 9, 7)] if INTERPRETED else [(5, 3, 9, 7), (5, 4096), (6,)])
def test_samples_do_not_know_each_other(shape: tuple[int, ...], dtype: torch.dtype, backend: ModuleType) -> None:
    x = torch.randn(shape, dtype=dtype)
    whole = quantile(backend, x, 0.7)
    for start, stop in ((0, 1), (1, 4), (4, len(x))):
        assert torch.equal(quantile(backend, x[start:stop].clone(), 0.7), whole[start:stop])
    changed = x.clone()
    changed[1:] = math.nan
    assert torch.equal(quantile(backend, changed, 0.7)[:1], whole[:1])


@pytest.mark.skipif("cpu" not in RUNNABLE, reason="the extension is not built")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "n"), [(1, 300_001), (2, 200_000), (5, 70_000), (40, 2500), (3, 7)])
def test_threads_do_not_matter(batch: int, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are split among threads where there are more threads than samples; also where one part has them all."""
    cpu = ops.load("cpu")
    for x in (
        torch.randn(batch, n, dtype=dtype),
        torch.ones(batch, n, dtype=dtype),
        torch.arange(n).to(dtype).repeat(batch, 1),
    ):
        results = []
        for threads in (1, 2, 3, 8):
            monkeypatch.setattr(cpu, "_threads", lambda threads=threads: threads)
            results.append(quantile(cpu, x, 0.995))
        assert all(torch.equal(r, results[0]) for r in results)
        assert torch.equal(results[0], quantile(ops.load("reference"), x, 0.995))


@pytest.mark.skipif(INTERPRETED, reason="torch.kthvalue on 2^24 elements is slow enough once")
@pytest.mark.skipif("cpu" not in RUNNABLE, reason="the extension is not built")
def test_more_elements_than_torch_quantile_takes() -> None:
    n = 2**24 + 2
    x = torch.arange(n, dtype=torch.float64).flip(0).reshape(1, -1)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.995)
    low, weight = rank(0.995, n)
    assert quantile(ops.load("cpu"), x, 0.995).item() == low + weight


def clipped(x0: torch.Tensor, q: float = 0.995, least: float = 1.0) -> torch.Tensor:
    s = torch.quantile(x0.abs().flatten(1), q, dim=1).clamp(min=least).reshape(-1, *[1] * (x0.ndim - 1))
    return torch.maximum(torch.minimum(x0, s), -s) / s


@pytest.mark.parametrize("clip", ["dynamic", fastdiff.Dynamic(0.9, 0.25)], ids=["published", "own"])
@pytest.mark.parametrize("method", ["ddim", "dpmpp1", "dpmpp2m"])
def test_a_run_equals_the_formulas(method: str, clip: str | fastdiff.Dynamic, backend: ModuleType) -> None:
    """Each step written out with torch alone, from the plan's times and the schedule; the network predicts noise."""
    q, least = (0.995, 1.0) if clip == "dynamic" else (0.9, 0.25)
    sampler = fastdiff.Sampler(method, 4, clip=clip, dtype=torch.float64, backend=backend.NAME)
    schedule = fastdiff.schedules.ddpm()
    start = torch.randn(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    start *= torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(2, 1, 1, 1)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(3.0 * x) + 0.5 * x

    x, points, past = start, [schedule.at(t) for t in sampler.plan.times], []
    for s, t in itertools.pairwise(points):
        eps = network(x, torch.zeros(1))
        past.append(clipped((x - s.sigma * eps) / s.alpha, q, least))
        d = past[-1]
        if method == "ddim":
            x = t.alpha * d + t.sigma * (x - s.alpha * d) / s.sigma
            continue
        # Lu et al. 2022, arXiv 2211.01095, Algorithm 2; its last step, and its first, are of order 1.
        h = t.lam - s.lam
        if method == "dpmpp2m" and len(past) > 1 and len(past) < len(points) - 1:
            r = (s.lam - points[len(past) - 2].lam) / h
            d = (1.0 + 0.5 / r) * d - 0.5 / r * past[-2]
        x = t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * d
    got = sampler(network, start)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(
        got, fastdiff.Sampler(method, 4, clip=None, dtype=torch.float64)(network, start), atol=1e-3
    )


def test_a_nan_is_seen_in_its_own_sample(backend: ModuleType) -> None:
    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = torch.sin(x)
        out[1, 0, 3] = math.nan
        return out

    got = fastdiff.sample(network, shape=(3, 2, 8), method="dpmpp2m", steps=2, clip="dynamic", backend=backend.NAME)
    assert got.isnan().flatten(1).all(dim=1).tolist() == [False, True, False]
    assert bool(got[0].isfinite().all()) and bool(got[2].isfinite().all())


def test_options_and_signature() -> None:
    a = fastdiff.Dynamic(0.9, 2)
    assert a == fastdiff.Dynamic(quantile=0.9, max_value=2.0) and hash(a) == hash(fastdiff.Dynamic(0.9, 2.0))
    assert fastdiff.Sampler(clip="dynamic").clip == fastdiff.Dynamic()
    first, second = ops.load("reference"), ops.load("triton")
    assert Threshold(a, first) == Threshold(fastdiff.Dynamic(0.9, 2.0), first)
    assert len({Threshold(a, first), Threshold(a, second), Threshold(fastdiff.Dynamic(), first)}) == 3


def test_a_graph_is_not_replayed_with_other_options(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def record(r, start, mode, out=None):
        monkeypatch.setattr(graph.CAPTURE, "DEVICE", "cpu")
        keys.append(graph.signature(r, start))
        return start

    monkeypatch.setattr("fastdiff.run.planned.execute", record)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    clips = ("dynamic", fastdiff.Dynamic(), fastdiff.Dynamic(0.9), fastdiff.Dynamic(0.995, 2.0), (-1.0, 1.0), None)
    for clip in clips:
        fastdiff.Sampler("dpmpp2m", 3, clip=clip)(network, shape=(1, 4))
    assert not any(isinstance(key, graph.Refusal) for key in keys), keys
    assert keys[0] == keys[1] and len(set(keys)) == len(clips) - 1


@pytest.mark.parametrize(
    "arguments", [(1.5,), (-0.1,), (math.nan,), (0.9, 0.0), (0.9, -1.0), (0.9, math.inf), (0.9, math.nan)]
)
def test_options_outside_their_range(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"(quantile|max_value)=.*: expected a (finite )?number"):
        fastdiff.Dynamic(*arguments)


@pytest.mark.parametrize("arguments", [("high",), (None,), (True,), (0.9, "1 m"), (0.9, [1.0])])
def test_options_that_are_no_numbers(arguments: tuple[object, ...]) -> None:
    with pytest.raises(
        TypeError, match=r"expected a number, as in fastdiff\.Dynamic\(quantile=0\.995, max_value=1\.0\)"
    ):
        fastdiff.Dynamic(*arguments)  # type: ignore[arg-type]


def test_an_unknown_clip_names_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"clip='quantile': expected None, 'dynamic', fastdiff\.Dynamic\(\.\.\.\), or bounds"
    ):
        fastdiff.Sampler(clip="quantile")


@pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted, not compiled")
@pytest.mark.parametrize("arch", (80, 90, 100))
@pytest.mark.parametrize("dtype", ("fp32", "fp64"))
def test_the_triton_kernel_compiles_without_spilling(dtype: str, arch: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastdiff._triton.quantile import quantile_kernel

    kinds = {"out": f"*{dtype}", "x": f"*{dtype}"} | dict.fromkeys(("n", "low", "weight_high", "weight_low"), "i32")
    fixed = {"DOUBLE": dtype == "fp64", "WIDE": False, "BLOCK": 4096}
    signature = {name: kinds.get(name, "constexpr") for name in quantile_kernel.arg_names}
    source = ASTSource(quantile_kernel, signature, fixed, {(i,): [["tt.divisibility", 16]] for i in range(3)})
    options = {"num_warps": 16, "enable_fp_fusion": False}
    ptx = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["ptx"]
    assert "ld.global.v4.b32" in ptx if dtype == "fp32" else "ld.global.v2.b64" in ptx
    assert ".local" not in ptx
    # The interpolation's product and sum are rounded apart, as on the other back ends.
    assert f"fma.rn.f{dtype[2:]}" not in ptx


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernel as a host library."""
    compiler = shutil.which("g++") or pytest.skip("there is no g++")
    root, library = Path(__file__).resolve().parents[2], tmp_path_factory.mktemp("host") / "quantile.so"
    (library.parent / "cuda_runtime_api.h").touch()
    (library.parent / "main.cpp").write_text('#include "cuda_on_host.h"\n')
    options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    places = [f"-I{folder}" for folder in (library.parent, root / "tests" / "helpers", root / "csrc")]
    command = [compiler, *options, *places, str(library.parent / "main.cpp"), "-o", str(library)]
    run = subprocess.run(command, capture_output=True, text=True)
    if "barrier: No such file" in run.stderr or "unrecognized command-line option" in run.stderr:
        pytest.skip("this g++ has no std::barrier")
    assert run.returncode == 0, run.stderr[-3000:]
    made = ctypes.CDLL(str(library))
    sizes = [ctypes.c_int, *[ctypes.c_int64] * 3, ctypes.c_double, ctypes.c_int64, ctypes.c_int]
    made.quantile_on_host.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *sizes]
    return made


@pytest.mark.skipif(INTERPRETED, reason="once is enough")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "elements"), [(1, 1), (1025, 300), (5000, 2500)])
def test_the_cuda_kernel_on_the_host(n: int, elements: int, dtype: torch.dtype, on_host: ctypes.CDLL) -> None:
    reference = ops.load("reference")
    for i, kind in enumerate(("ties", "infinite", "nan") if n == 1025 else ("normal",)):
        x = data(kind if kind in KINDS else "normal", n, dtype)
        if kind not in KINDS:
            x[1, n // 2] = math.inf if kind == "infinite" else -math.nan
        for q in (0.995, 1.0) if kind == "infinite" else (0.995,):
            out, code = torch.full((3,), 7.0, dtype=dtype), 2 if dtype is torch.float32 else 3
            on_host.quantile_on_host(x.data_ptr(), out.data_ptr(), code, 3, n, *rank(q, n), elements, i % 2)
            torch.testing.assert_close(out, quantile(reference, x, q), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(importlib.util.find_spec("fastdiff._cuda") is None, reason="fastdiff._cuda is not built")
@pytest.mark.parametrize("n", (1, 7, 4096, 4097, 196_608, 2**24 + 1, 2**32 + 5, 2**36))
@pytest.mark.parametrize("batch", (1, 7, 1023, 1024, 100_000))
def test_cuda_shares_cover_every_element_once(batch: int, n: int) -> None:
    from fastdiff import _cuda

    blocks, elements = _cuda.quantile_shares(batch, n)
    assert (blocks - 1) * elements < n <= blocks * elements
    # Counts of 32 bits; at most about 1024 blocks where that is enough; none for less than 4096 elements.
    assert elements <= 2**31
    assert blocks * batch <= max(1024, batch * -(-n // 2**31)) and (blocks == 1 or elements > 2048)
    assert blocks == 1 or elements % 4 == 0
    assert _cuda.quantile_workspace(batch, n) == batch * (40 + 8 * 2048 if blocks > 1 else 0)


def _version(module: ModuleType) -> tuple[int, ...]:
    return tuple(map(int, module.__version__.split(".")[:2]))


@pytest.mark.skipif(INTERPRETED, reason="this is what it runs")
@pytest.mark.slow
def test_in_triton_s_interpreter() -> None:
    if _version(pytest.importorskip("triton")) < (3, 7) and _version(np) >= (2, 4):
        pytest.skip("the interpreter of Triton before 3.7 cannot run a loop over a range with NumPy 2.4")
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command.append(__file__)
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
