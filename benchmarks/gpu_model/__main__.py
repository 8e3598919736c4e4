"""Predicts the fraction of a copy's bandwidth that each stage reaches: python -m benchmarks.gpu_model.

Writes benchmarks/results/model.json, the part of it that the package carries, and the table in docs/gpu-model.md. Needs
the extension fastdiff._cuda, Triton, and a C++ compiler; no GPU. The instructions are those of the machine code, as one
thread executes them in the interpreter of tests/machine_code.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fused import stage_bytes
from benchmarks.gpu_model.shipped import write
from benchmarks.gpu_model.stages import SHAPE, Stage, others, stages

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "machine_code")]

import sass  # noqa: E402
from launches import Backend, Kernels  # noqa: E402
from triton_launches import TritonBackend  # noqa: E402

UNCERTAINTY = 0.15
"""Of each fraction, and of 1: what a model of this kind has been off by where it could be compared."""


class Chip(NamedTuple):
    """A GPU.

    Attributes:
        code: architecture of the machine code that it runs.
        bandwidth: bytes a second that a large copy moves, read and written.
        multiprocessors, clock: how many, and cycles a second.
        threads: resident ones of a multiprocessor, at most.
        latency: cycles until a load from memory is there, under load.
        fma, double: cycles for which a warp's float32 multiply-add holds its pipe, and a float64 one.
    """

    code: str
    bandwidth: float
    multiprocessors: int
    clock: float
    threads: int
    latency: int
    fma: int
    double: int


CHIPS = {
    "H200": Chip("sm_90", 4.3e12, 132, 1.98e9, 2048, 600, 1, 2),
    "H100": Chip("sm_90", 3.0e12, 132, 1.98e9, 2048, 600, 1, 2),
    "A100": Chip("sm_80", 1.7e12, 108, 1.41e9, 2048, 500, 2, 4),
    "RTX 4090": Chip("sm_80", 0.92e12, 128, 2.52e9, 1536, 600, 1, 64),
}
ELEMENTS = math.prod(SHAPE)
PIPES = (
    "FMA", "ALU", "IMAD", "WIDE", "SPECIAL", "MEMORY", "UNIFORM", "CONSTANT", "CONTROL", "SHARED", "DOUBLE", "CONVERT",
)  # fmt: skip
NAMES = {
    "FMA": ("FFMA", "FMUL", "FADD", "HADD2", "HFMA2"),
    "SPECIAL": ("MUFU", "F2F", "F2I", "I2F"),
    "MEMORY": ("LDG", "STG"),
    "SHARED": ("LDS", "STS", "LDSM", "STSM"),
    "CONSTANT": ("LDC", "S2R", "CS2R"),
    "CONTROL": ("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "NOP", "BRX", "BRXU", "BAR", "WARPSYNC"),
    "DOUBLE": ("DFMA", "DADD", "DMUL", "DSETP"),
}


def pipe(instruction: sass.Instruction) -> str:
    """The part of the multiprocessor that executes it."""
    name = instruction.name
    if name in ("F2F", "F2I", "I2F") and "F64" in "".join(instruction.parts):
        return "CONVERT"
    for found, names in NAMES.items():
        if name in names:
            return found
    if name == "IMAD":
        return "WIDE" if "WIDE" in instruction.parts else "IMAD"
    return "UNIFORM" if name.startswith("U") or name in ("S2UR", "R2UR", "LDCU") else "ALU"


def line(instruction: sass.Instruction, on: bool, addresses: Any, thread: int, seen: set[int]) -> str:
    """An instruction as multiprocessor.cpp reads it."""
    where, kind, size = pipe(instruction), 0, 0
    if where in ("MEMORY", "SHARED"):
        each = next((n for part, n in (("128", 16), ("64", 8), ("U16", 2)) if part in instruction.parts), 4)
        size = 32 * each
    if instruction.name == "STG":
        kind = 3
    elif instruction.name == "LDG":
        at = int(addresses[thread])
        kind = 2 if at == int(addresses[thread + 1]) else 1
        if kind == 1 and on:
            size = 0 if at in seen else size
            seen.add(at)
    elif instruction.name == "BAR":
        kind = 4
    elif where == "SHARED":
        kind = 5
    numbers = (instruction.wait, instruction.stall, instruction.write, instruction.read)
    return " ".join(map(str, (*numbers, PIPES.index(where), kind, size, int(on))))


def predicted(model: Path, chip: Chip, lines: list[str], threads: int, registers: int) -> float:
    """Fraction of the copy's bandwidth."""
    warps = threads // 32
    granules = -(-registers // 8) * 8 * 32  # of a warp
    resident = min(65536 // (granules * warps), chip.threads // threads, 32)
    rate = chip.bandwidth / chip.multiprocessors / chip.clock
    arguments = (warps, resident, rate, chip.latency, 150, 12 * resident, chip.fma, chip.double)
    done = subprocess.run(
        [model, *map(str, arguments)], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[0]) / rate


def measure(
    model: Path, stage: Stage, backends: dict[str, Any], registers: Callable[[Any], int], threads: Callable[[Any], int]
) -> dict[str, Any]:
    """What one back end's code is predicted to do on every chip, in blocks of as many threads as a large batch has."""
    result: dict[str, Any] = {"fraction": {}}
    traces = {}
    for code in sorted({chip.code for chip in CHIPS.values()}):
        backend = backends[code]
        backend.traced = 37
        backend.stage(*stage)
        machine = backend.machine
        assert machine is not None
        seen: set[int] = set()
        lines = [line(i, on, addresses, 37, seen) for i, on, addresses in machine.trace]
        traces[code] = lines, threads(backend), registers(backend)
        result[f"instructions an element, {code}"] = round(len(lines) * machine.threads / ELEMENTS, 1)
        result[f"registers, {code}"] = registers(backend)
    for name, chip in CHIPS.items():
        result["fraction"][name] = round(min(1.0, predicted(model, chip, *traces[chip.code])), 2)
    return result


def threads_of(kernel: str) -> int:
    """Threads of a block of a CUDA stage kernel where the batch is large, as csrc/cuda/launch.h has them."""
    shape = re.search(r"^stage_kernelI.(?:Li\dE){2}Li(\d)E", kernel)
    assert shape is not None, kernel
    return 128 if int(shape[1]) >= 2 else 256


def main() -> None:
    spec = importlib.util.find_spec("fastdiff._cuda")
    if spec is None or spec.origin is None:
        raise SystemExit("fastdiff._cuda is not built: install where nvcc is on PATH, with FASTDIFF_CUDA=1")
    warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of infinities that are meant
    rows: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        subprocess.run(["c++", "-O2", HERE / "multiprocessor.cpp", "-o", model], check=True)
        codes = sorted({chip.code for chip in CHIPS.values()})
        kernels = {code: Kernels(spec.origin, code, Path(folder, code)) for code in codes}
        counts: dict[Path, dict[str, int]] = {}

        def of_kernel(backend: Backend) -> int:
            name = backend.kernels.name(backend.ran[-1])
            cubin = backend.kernels.cubins[name]
            if cubin not in counts:
                counts[cubin] = sass.registers(cubin)
            return counts[cubin][name]

        for name, stage, into in (*((*s, rows) for s in stages().items()), *((*s, apart) for s in others().items())):
            found: dict[str, Any] = {"stage": name, "bytes an element": stage_bytes(stage[0], stage[3]) / ELEMENTS}
            cuda = {code: Backend(kernels[code]) for code in codes}
            triton = {code: TritonBackend(int(code[3:])) for code in codes}
            found["cuda"] = measure(model, stage, cuda, of_kernel, lambda b: threads_of(b.ran[-1]))
            found["triton"] = measure(model, stage, triton, lambda b: b.registers, lambda b: 128)
            into.append(found)
            print(name, found["cuda"]["fraction"], found["triton"]["fraction"], flush=True)
    result = {
        "what": "a prediction by a model: no GPU has run these kernels",
        "uncertainty": UNCERTAINTY,
        "chips": {name: chip._asdict() for name, chip in CHIPS.items()},
        "stages": rows,
        "others": apart,
    }
    (ROOT / "benchmarks/results/model.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write(result)
    page = ROOT / "docs/gpu-model.md"
    text = page.read_text(encoding="utf-8")
    for mark, those in (("table", rows), ("others", apart)):
        inside = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        text = re.sub(inside, lambda m, those=those: m[1] + table(those) + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
    page.write_text(text, encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    lines = [f"| stage | bytes | instructions | registers | {' | '.join(CHIPS)} |", "|---|---|---|---" * 2 + "|"]
    for row in rows:
        ours, theirs = row["cuda"], row["triton"]

        def pair(key: str, ours: Any = ours, theirs: Any = theirs) -> str:
            return f"{ours[key]:g} / {theirs[key]:g}"

        cells = [row["stage"], f"{row['bytes an element']:g}", pair("instructions an element, sm_90")]
        cells.append(pair("registers, sm_90"))
        cells += [f"{ours['fraction'][chip]:.2f} / {theirs['fraction'][chip]:.2f}" for chip in CHIPS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
