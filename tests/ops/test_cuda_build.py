"""The CUDA extension where no GPU is needed: what the compiler made of it, how it imports, and how it would launch."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff.ops import cuda
from fastdiff.ops.layout import StageSpec

_spec = importlib.util.find_spec("fastdiff._cuda")
if _spec is None or _spec.origin is None:
    pytest.skip("fastdiff._cuda is not built: there was no nvcc, or FASTDIFF_CUDA=0", allow_module_level=True)
BINARY = _spec.origin

from fastdiff import _cuda  # noqa: E402

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# Beginnings of the names of stage_kernel: state; dtypes of network and history; shape, history entries, aux, v, noise.
HOT = {
    "fLi2ELi2ELi0ELi2ELb0ELb0ELb0E": "float32, two history entries",
    "fLi1ELi2ELi0ELi1ELb1ELb0ELb1E": "bfloat16, guided, one history entry, noise",
    "fLi0ELi2ELi1ELi3ELb0ELb0ELb0E": "float16, two outputs, three history entries",
    "fLi1ELi4ELi3ELi6ELb1ELb0ELb1E": "bfloat16, frames, noise",
    "dLi3ELi4ELi2ELi6ELb1ELb0ELb0E": "float64, one combination",
    "dLi4ELi4ELi2ELi6ELb1ELb1ELb0E": "float64, any stage",
}


def _cuobjdump() -> str:
    """Triton's wheel carries the tool; a toolkit has it on PATH."""
    triton = importlib.util.find_spec("triton")
    places = list(triton.submodule_search_locations or ()) if triton else []
    for place in places:
        found = Path(place, "backends", "nvidia", "bin", "cuobjdump")
        if found.exists():
            return str(found)
    found_on_path = shutil.which("cuobjdump")
    if found_on_path is None:
        pytest.skip("cuobjdump was found neither in the triton package nor on PATH")
    return found_on_path


@functools.cache
def _dump(*options: str) -> str:
    run = subprocess.run([_cuobjdump(), *options, BINARY], capture_output=True, text=True, timeout=120)
    if run.returncode:
        pytest.skip(f"cuobjdump cannot read this binary: {run.stderr.strip()[:200]}")
    return run.stdout


def test_carries_code_for_every_architecture() -> None:
    cubins, ptx = _dump("--list-elf"), _dump("--list-ptx")
    units = 6  # networks of three dtypes, float64, normals, quantiles
    for arch in ARCHITECTURES:
        assert len(re.findall(rf"\.{arch}\.cubin", cubins)) == units, f"no {arch} code in\n{cubins}"
    # PTX of the newest serves later GPUs, that of the oldest the families between.
    assert len(re.findall(r"\.sm_80\.ptx", ptx)) == units and len(re.findall(r"\.sm_120\.ptx", ptx)) == units


def test_no_kernel_spills() -> None:
    parts = re.split(r"arch = (sm_\d+)", _dump("-res-usage"))[1:]
    usage = [
        (arch, *found)
        for arch, text in zip(parts[::2], parts[1::2], strict=True)
        for found in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    ]
    kernels = {name for _, name, *_ in usage}
    stages = {name for name in kernels if "stage_kernel" in name}
    # And two kernels of normals and one of quantiles, for each of two dtypes.
    assert len(stages) == 169 and len(kernels) == 175, kernels
    assert len(usage) == len(kernels) * len(ARCHITECTURES)
    for arch, name, registers, stack, local in usage:
        assert (stack, local) == ("0", "0"), f"{name} keeps {stack} bytes of stack and {local} of local memory"
        # Of 65536 registers, at least two blocks of 256 threads are resident; three where u' is the only combination,
        # of up to three streams beside the state's. From ALL on it is four blocks of 128, less one in float64, less one
        # where any stage is taken, and less one on Blackwell.
        most = 128
        if re.search(r"kernelIfLi\dELi\dELi0E(Li[0-2]ELb0ELb0|Li[01]ELb1ELb0|Li0ELb0ELb1)", name):
            most = 80
        elif re.search(r"stage_kernelI.Li\dELi4E", name):
            blocks = 4 - ("kernelId" in name) - ("Li4ELi4E" in name) - (arch in ("sm_100", "sm_120"))
            most = {4: 128, 3: 168}.get(blocks, 255)
        assert int(registers) <= most, f"{name} takes {registers} registers on {arch}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_wide_loads_and_stores(arch: str) -> None:
    functions = re.split(r"\n\s*Function : ", _dump("-sass", "-arch", arch))[1:]
    code = {text.split("\n", 1)[0].strip(): text for text in functions}
    for key, what in HOT.items():
        text = next(body for name, body in code.items() if f"stage_kernelI{key}" in name)
        # No load is from local memory, and all streams move 16 bytes at once (8 of a 16-bit dtype).
        assert len(re.findall(r"LDG\.E\.(128|64) ", text)) >= 6, what
        assert len(re.findall(r"STG\.E\.(128|64) ", text)) >= 3, what
        assert not re.search(r"LDG\.E\.U16|STG\.E\.U16", text), what
        assert not re.search(r"\b(LDL|STL)\b", text), what
    normal = next(body for name, body in code.items() if "normal_kernelIfLb1E" in name)
    assert "STG.E.128" in normal


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loads_are_issued_before_the_first_use(arch: str) -> None:
    # The streams' loads come before the first floating-point arithmetic, so that they wait for memory together.
    functions = re.split(r"\n\s*Function : ", _dump("-sass", "-arch", arch))[1:]
    text = next(body for body in functions if "stage_kernelIfLi2ELi2ELi0ELi2ELb0ELb0ELb0E" in body.split("\n", 1)[0])
    before = re.split(r"\b(?:FFMA|FMUL)\b", text, maxsplit=1)[0]
    # x, out and two history entries, two groups of each.
    assert len(re.findall(r"LDG\.E\.128 ", before)) >= 8


def test_links_the_runtime_statically() -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not on PATH")
    needed = subprocess.run([readelf, "-d", BINARY], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"NEEDED.*(libcudart|libcuda|libtorch|libc10)", needed), needed


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_without_a_driver_it_says_so() -> None:
    code = "from fastdiff.ops import cuda; ok, why = cuda.available(); assert not ok; print(why)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("no CUDA driver or device: ") and "built with CUDA runtime" in run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_a_failed_launch_raises() -> None:
    # Never reaches a kernel: the error is the runtime's.
    nothing = (None,) * 3
    spec = StageSpec(0, False, False, 1, 0, 0)
    with pytest.raises(RuntimeError, match=r"CUDA error in stage.*\(cudaError"):
        # x, u_out, table: addresses that no kernel gets to read.
        given = [1 if i in (8, 14, 18) else None for i in range(8, 26)]
        given[4], given[5] = (), nothing
        _cuda.stage(spec, 0, 1, 4, 2, 2, 2, 2, *given, 0, 0, None, 0, 0)
    with pytest.raises(RuntimeError, match=r"CUDA error in normal.*\(cudaError"):
        _cuda.normal(0, 2, 1, 4, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("n", (1, 4, 7, 64, 1025, 196_608, 2**31 + 5, 2**34))
@pytest.mark.parametrize("batch", (1, 7, 65_535, 65_536, 1_000_000))
def test_launch_geometry_covers_every_element_once(batch: int, n: int) -> None:
    groups, grid_x, grid_y, threads = _cuda.launch_geometry(batch, n)
    assert groups == -(-n // 4)
    assert threads in (32, 64, 128, 256)
    # Enough threads, and no block without work.
    assert (grid_x - 1) * threads < groups <= grid_x * threads
    # CUDA's limits.
    assert 1 <= grid_x < 2**31 and grid_y == min(batch, 65_535)


def test_refuses_what_it_cannot_run() -> None:
    ok, why = cuda.supports(torch.device("cpu"), torch.float32, torch.float32)
    assert not ok and "on an NVIDIA GPU" in why
