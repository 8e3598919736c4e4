"""The Triton kernels compiled for real GPUs, without one: what the machine code does, and what a launch passes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.stage_cases import random_case
from helpers.triton_ahead import BF16, BOUNDS, F32, F64, NOISE, architectures, compile_all, compiled, version
from helpers.triton_ahead import stage_constants as constants

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from fastdiff._triton.noise import fill_kernel  # noqa: E402
from fastdiff._triton.stage import stage_kernel  # noqa: E402
from fastdiff.ops import triton as backend  # noqa: E402
from fastdiff.ops.layout import CLIP, LINEAR, RAW, StageSpec  # noqa: E402
from fastdiff.plan import H1, NREG, ZA, M, X  # noqa: E402

ARCHITECTURES = architectures()
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

ALL = (1 << NREG) - 1
DPM3 = StageSpec(RAW, False, False, 1 << X | 1 << M | 3 << H1, 0, 1)
"""dpm3 with a network that predicts noise: x, the output and two history entries."""
SDE = StageSpec(LINEAR, False, True, 1 << X | 1 << M | 1 << H1 | 1 << ZA, 0, 1)
"""dpmpp2m_sde with a network that predicts noise; x and u are one buffer."""
CFG = StageSpec(CLIP, True, True, 1 << X | 1 << M | 1 << H1, 0, 2)
"""dpmpp2m, guided and clipped."""
EVERYTHING = StageSpec(CLIP, True, True, ALL, ALL, 2, 2)


class Case(NamedTuple):
    """A stage's specialisation, its streams by dtype, its other pointers, and the scalars that one thread loads.

    The scalars are the row's coefficients (one for each register of the mask, those of the conversion, and in_scale),
    the sample's bounds, draw number and index, and, of 64 bits, its seed: all from memory, none baked in or by value.
    """

    spec: StageSpec
    read: dict[str, str]
    written: dict[str, str]
    others: dict[str, str]
    words: int
    long_words: int = 0


STATE_OUT = {"u_out": F32, "m_out": F32}
CASES = {
    "dpm3": Case(DPM3, {"x": F32, "first": F32, "h1": F32, "h2": F32}, {"u_out": F32, "net_in": F32}, {}, 4 + 1),
    "dpm3-bf16": Case(
        DPM3, {"x": F32, "first": BF16, "h1": BF16, "h2": BF16}, {"u_out": F32, "net_in": BF16}, {}, 4 + 1
    ),
    "sde": Case(SDE, {"x": F32, "first": F32, "h1": F32}, {**STATE_OUT, "net_in": F32}, NOISE, 4 + 2 + 1 + 2, 1),
    "sde-bf16": Case(SDE, {"x": F32, "first": BF16, "h1": F32}, {**STATE_OUT, "net_in": BF16}, NOISE, 4 + 2 + 1 + 2, 1),
    "cfg-bf16": Case(
        CFG, {"x": F32, "first": BF16, "second": BF16, "h1": F32}, {**STATE_OUT, "net_in": BF16}, BOUNDS, 3 + 6 + 1 + 3
    ),
}


def resources(kernel: Any, path: Path) -> dict[str, int]:
    """What the assembler reports of the machine code: REG, STACK, SHARED, LOCAL."""
    path.write_bytes(kernel.asm["cubin"])
    report = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", path], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", report)}


def accesses(kernel: Any) -> dict[str, int]:
    """How often each kind of access to global memory stands in the PTX, as in {"ld.v4.b32": 8}."""
    counts: dict[str, int] = {}
    for kind, rest in re.findall(r"\b(ld|st)\.global((?:\.\w+)*)", kernel.asm["ptx"]):
        width = "".join(part for part in re.findall(r"\.\w+", rest) if re.fullmatch(r"\.(v\d|[bfus]\d+)", part))
        counts[kind + width] = counts.get(kind + width, 0) + 1
    return counts


def vectors(dtypes: dict[str, str], copies: int = 1) -> int:
    """16-byte accesses that 8 elements a thread need: two for a 32-bit stream, one for a 16-bit stream."""
    return sum((2 if dtype == F32 else 1) * (copies if name == "net_in" else 1) for name, dtype in dtypes.items())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
def test_every_stream_is_16_bytes_wide_and_nothing_spills(case: str, arch: int, tmp_path: Path) -> None:
    spec, read, written, others, words, long_words = CASES[case]
    kernel = compiled(stage_kernel, {**read, **written, "table": F32, **others}, constants(spec, bool(others)), arch)
    expected = {
        "ld.v4.b32": vectors(read),
        "st.v4.b32": vectors(written, spec.copies),
        "ld.b32": words,
        "ld.b64": long_words,
    }
    assert accesses(kernel) == {kind: count for kind, count in expected.items() if count}
    assert ".local" not in kernel.asm["ptx"]
    used = resources(kernel, tmp_path / "kernel.cubin")
    # Half of the 64 K registers' threads at 128 threads a program: enough loads in flight to fill the memory's queue.
    assert used["STACK"] == used["LOCAL"] == 0 and used["REG"] <= 64, used


@pytest.mark.parametrize(("state", "block"), [(F32, 1024), (F64, 512)])
def test_the_largest_stage_does_not_spill(state: str, block: int, tmp_path: Path) -> None:
    """All 13 registers in both combinations, three draws, guidance, clipping, and every output."""
    names = ("x", "u", "h1", "h2", "h3", "h4", "h5", "h6", "u_out", "x_out", "m_out", "table", "lo", "hi", "scale")
    pointers = {**dict.fromkeys(names, state), "first": BF16, "second": BF16, "net_in": BF16, **NOISE, "rows": "i32"}
    used = resources(
        compiled(stage_kernel, pointers, constants(EVERYTHING, True, block), 90), tmp_path / "kernel.cubin"
    )
    assert used["STACK"] == used["LOCAL"] == 0 and used["REG"] <= 255, used


def test_float64_streams_are_16_bytes_wide() -> None:
    """4 elements a thread: two accesses a stream."""
    pointers = dict.fromkeys(("x", "first", "h1", "h2", "u_out", "net_in", "table"), F64)
    kernel = compiled(stage_kernel, pointers, constants(DPM3, False, 512), 90)
    assert accesses(kernel) == {"ld.v2.b64": 4 * 2, "st.v2.b64": 2 * 2, "ld.b64": 4 + 1}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_noise_is_stored_16_bytes_wide(arch: int, tmp_path: Path) -> None:
    pointers = {"out": F32, "seeds": "i64", "index": "i32"}
    kernel = compiled(fill_kernel, pointers, {"WORDS": False, "WIDE": False, "BLOCK": 1024}, arch)
    assert accesses(kernel) == {"ld.b64": 1, "ld.b32": 1, "st.v4.b32": 2}
    assert kernel.metadata.shared == 0  # each thread stores the four normals of the blocks that it computed
    used = resources(kernel, tmp_path / "kernel.cubin")
    assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_multiply_adds_are_the_written_ones(arch: int) -> None:
    """With no fusion by the compiler, a register's product is fused into the sum only where the kernel says so."""
    spec, read, written, *_ = CASES["dpm3"]
    kernel = compiled(stage_kernel, {**read, **written, "table": F32}, constants(spec, False), arch)
    ptx = kernel.asm["ptx"]
    # For 8 elements: one product and three multiply-adds, and the product with in_scale.
    products = len(re.findall(r"mul(?:\.rn)?\.f32\s", ptx)) + 2 * len(re.findall(r"mul\.rn\.f32x2\s", ptx))
    fused = len(re.findall(r"fma\.rn\.f32\s", ptx)) + 2 * len(re.findall(r"fma\.rn\.f32x2\s", ptx))
    assert (products, fused) == (8 * 2, 8 * 3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_clamp_propagates_nan(arch: int) -> None:
    spec, read, written, others, *_ = CASES["cfg-bf16"]
    kernel = compiled(stage_kernel, {**read, **written, "table": F32, **others}, constants(spec, True), arch)
    assert len(re.findall(r"min\.NaN\.f32\s", kernel.asm["ptx"])) == 8
    assert len(re.findall(r"max\.NaN\.f32\s", kernel.asm["ptx"])) == 8


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loads_and_stores_are_ordered_where_threads_exchange_elements(arch: int) -> None:
    """x' of noise alone may be written over x, which other threads of the program still have to read for u'."""
    spec = StageSpec(RAW, False, False, 1 << X | 1 << M, 1 << ZA, 0)
    pointers = {"x": F32, "first": BF16, "u_out": F32, "x_out": F32, "table": F32, **NOISE}
    ptx = compiled(stage_kernel, pointers, constants(spec, True), arch).asm["ptx"]
    between = ptx[ptx.rindex("ld.global.v4") : ptx.index("st.global")]
    assert "bar.sync" in between


class FakeUtils:
    """The driver's loader without a GPU: accepts any binary, and gives no module that would have to be unloaded."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, *arguments: Any) -> tuple[None, int, int, int, int]:
        return None, 1, 0, 0, 1024


class FakeDriver:
    """Compiles for sm_90 and notes launches, so that Triton's own launch path runs without a GPU."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.utils = FakeUtils()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        # (grid x, y, z, stream, function, packed metadata, launch metadata, two hooks, the kernel's arguments …)
        return lambda *arguments: self.launches.append((arguments[0], metadata, arguments[9:]))


@pytest.fixture
def fake() -> Iterator[FakeDriver]:
    if version() < (3, 4):
        pytest.skip("the stand-in for a driver is made for Triton 3.4 and later")
    made, before = FakeDriver(), dict(vars(driver))
    stage_kernel.device_caches.clear()
    backend._compiled.clear()
    driver.set_active(made)
    yield made
    vars(driver).clear()
    vars(driver).update(before)
    stage_kernel.device_caches.clear()
    backend._compiled.clear()


def specialisations() -> int:
    return sum(len(cache[0]) for cache in stage_kernel.device_caches.values())


def test_a_launch_passes_the_buffers_and_does_not_depend_on_the_row(fake: FakeDriver) -> None:
    case = random_case(0, spec=DPM3, state=torch.float32, network=torch.float32, shape=(2, 2048))
    buf = case.buf
    buf.u_out, case.coeffs.rows = buf.x, None
    for k in range(20):  # 1 and 16 are the values that Triton would specialise on
        backend.stage(DPM3, k, case.coeffs, buf)
    assert specialisations() == 1 and len(fake.launches) == 20
    for k, (grid, metadata, arguments) in enumerate(fake.launches):
        assert metadata.enable_fp_fusion is False
        assert grid == 2 * 2048 // 1024  # nothing differs between samples: the batch is one long sample
        given = dict(zip(stage_kernel.arg_names, arguments, strict=True))
        assert given["k"] == k and given["n"] == given["total"] == 4096
        assert (
            given["x"] is buf.x and given["first"] is buf.first and given["h1"] is buf.h[0] and given["h2"] is buf.h[1]
        )
        assert given["u_out"] is buf.u_out and given["net_in"] is buf.net_in and given["table"] is case.coeffs.table
        unused = (
            "u",
            "second",
            "h3",
            "h4",
            "h5",
            "h6",
            "za",
            "zb",
            "zc",
            "x_out",
            "draws",
            "seeds",
            "index",
            "rows",
            "lo",
        )
        assert all(given[name] is None for name in unused)
        assert not any(isinstance(value, float) for value in arguments)  # no coefficient by value


def test_other_dtypes_sizes_and_alignments_get_kernels_of_their_own(fake: FakeDriver) -> None:
    def run(length: int, skip: int = 0, network: torch.dtype = torch.float32) -> None:
        case = random_case(0, spec=DPM3, state=torch.float32, network=network, shape=(1, length + skip))
        case.coeffs.rows, case.buf.u_out = None, torch.empty(1, length)
        case.buf.net_in = torch.empty(1, length, dtype=torch.float32)
        case.buf.h = tuple(None if h is None else h.to(network)[:, skip:] for h in case.buf.h)
        assert case.buf.x is not None and case.buf.first is not None
        case.buf.x, case.buf.first = case.buf.x[:, skip:], case.buf.first[:, skip:]
        for _ in range(2):
            backend.stage(DPM3, 3, case.coeffs, case.buf)

    for found, arguments in enumerate(((2048,), (2047,), (2048, 1), (2048, 0, torch.bfloat16), (64,)), start=1):
        run(*arguments)
        assert specialisations() == found, arguments
    run(4096)
    assert specialisations() == 5


def test_noise_needs_a_grid_over_samples(fake: FakeDriver) -> None:
    case = random_case(0, spec=SDE, state=torch.float32, network=torch.float32, shape=(3, 1500))
    case.coeffs.rows, case.buf.z, case.buf.u_out = None, (None, None, None), torch.empty(3, 1500)
    backend.stage(SDE, 1, case.coeffs, case.buf)
    grid, _, arguments = fake.launches[-1]
    given = dict(zip(stage_kernel.arg_names, arguments, strict=True))
    assert grid == 3 * 2 and given["tiles"] == 2 and given["n"] == 1500 and given["SPLIT"]
    assert given["seeds"] is case.coeffs.seeds and given["draws"] is case.coeffs.draws


def test_every_kernel_compiles() -> None:
    """With this Triton. For others: python tests/helpers/triton_ahead.py FOLDER ..., where each folder holds one."""
    assert compile_all((90,)) == 32


def test_says_why_it_cannot_run() -> None:
    ok, why = backend.supports(torch.device("cpu"), torch.float32, torch.float32)
    assert not ok and "CUDA or ROCm" in why
    if not torch.cuda.is_available():
        assert backend.available() == (False, "PyTorch sees no CUDA or ROCm device")
