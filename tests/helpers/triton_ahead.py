"""The Triton kernels compiled without a GPU, by any Triton from 3.2 on.

As a script, `python tests/helpers/triton_ahead.py FOLDER ...`: with the Triton of each folder, in a process of its own,
compiles the kernels for every architecture that it knows. A folder is made by `pip install --no-deps --target FOLDER
triton==3.2.0`. Without a folder: with the Triton that is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
F32, F64, BF16, F16 = "fp32", "fp64", "bf16", "fp16"
NOISE = {"draws": "i32", "seeds": "i64", "index": "i32"}
BOUNDS = {"lo": F32, "hi": F32, "scale": F32}
SIZES = ("n", "total")
INTEGERS = ("tiles", "k", "draw", "stream", "low", "weight_high", "weight_low")
FRAMES = ("inner", "frames")
"""Integers of a launch with frames."""
CONSTANTS = ("CONVERT", "GUIDED", "M_READS_U", "U_MASK", "X_MASK", "COPIES", "LEARNED", "PATH")

# Structures as in StageSpec, and their streams: every branch of the kernel is in one of them.
STAGES: dict[str, tuple[tuple[int, ...], dict[str, str]]] = {
    "opening": ((0, 0, 0, 1, 0, 1, 0, 0), {"x": F32, "net_in": F16}),
    "raw": ((1, 0, 0, 1 | 4 | 24, 0, 1, 0, 0), dict.fromkeys(("x", "first", "h1", "h2", "u_out", "net_in"), F32)),
    "noise": (
        (2, 0, 1, 1 | 4 | 8 | 1 << 10, 0, 1, 0, 0),
        {"x": F32, "first": BF16, "h1": F32, "u_out": F32, "m_out": F32, "net_in": BF16, **NOISE},
    ),
    "clip": (
        (3, 1, 1, 1 | 4 | 8, 0, 2, 0, 0),
        {"x": F32, "first": BF16, "second": BF16, "h1": F32, "u_out": F32, "m_out": F32, "net_in": BF16, **BOUNDS},
    ),
    "blend": (
        (4, 1, 1, 1 | 4, 5, 2, 0, 0),
        {"x": F32, "first": BF16, "second": BF16, "u_out": F32, "x_out": F32, "net_in": BF16, **BOUNDS},
    ),
    "learned": (
        (2, 0, 1, 1 | 4 | 1 << 10, 0, 1, 1, 0),
        {"x": F32, "first": BF16, "u_out": F32, "net_in": BF16, **NOISE},
    ),
    "everything": (
        (3, 1, 1, 0x1FFF, 0x1FFF, 2, 2, 0),
        {
            **dict.fromkeys(("x", "u", *(f"h{i}" for i in range(1, 7)), "u_out", "x_out", "m_out"), F32),
            **{"first": BF16, "second": BF16, "net_in": BF16, "rows": "i32", **NOISE, **BOUNDS},
        },
    ),
    "path": ((2, 0, 1, 1 | 4 | 1 << 10, 0, 1, 0, 1), {"x": F32, "first": BF16, "u_out": F32, "net_in": BF16, **NOISE}),
    "squares": (
        (2, 0, 1, 1 | 4 | 1 << 10, 0, 0, 0, 0),
        {"x": F32, "first": BF16, "u_out": F32, "squares": F32, **NOISE},
    ),
}
FRAMED: dict[str, tuple[tuple[int, ...], dict[str, str]]] = {
    "noise": (STAGES["noise"][0], {**STAGES["noise"][1], "rows": "i32"}),
    "clip": (STAGES["clip"][0], {**STAGES["clip"][1], "rows": "i32"}),
}
"""With a row for each frame; `compile_all` takes runs of a multiple of 4 elements, and others."""


def version() -> tuple[int, ...]:
    """Triton's, such as (3, 4)."""
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def architectures() -> tuple[int, ...]:
    """Those of 80, 90 and 100 that this Triton compiles for."""
    return (80, 90, 100) if version() >= (3, 3) else (80, 90)


def compiled(
    kernel: Any, pointers: dict[str, str], constants: dict[str, Any], arch: int, warps: int = 4,
    aligned: Collection[str] | None = None,
) -> Any:  # fmt: skip
    """`kernel` for compute capability `arch`.

    Args:
        kernel: a function with triton.jit.
        pointers: the dtype behind each pointer that is given.
        constants: the values of its constants.
        arch, warps: compute capability, such as 90; warps of a program.
        aligned: pointers and sizes that are divisible by 16; None: all.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, given, divisible = {}, {}, []
    for i, name in enumerate(kernel.arg_names):
        if name in pointers or name in SIZES or name in INTEGERS or (name in FRAMES and constants["FRAMED"]):
            signature[name] = f"*{pointers[name]}" if name in pointers else "i32"
            if name not in (*INTEGERS, "frames") and (aligned is None or name in aligned):
                divisible.append(i)
        else:
            given[name] = constants.get(name)
    if version() >= (3, 3):
        source = ASTSource(
            kernel, {name: signature.get(name, "constexpr") for name in kernel.arg_names}, given,
            {(i,): [["tt.divisibility", 16]] for i in divisible},
        )  # fmt: skip
    else:
        from triton.backends.compiler import AttrsDescriptor

        properties = {"arg_properties": {"tt.divisibility": divisible}, "cls": "AttrsDescriptor"}
        source = ASTSource(kernel, signature, given, AttrsDescriptor.from_dict(properties))
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def stage_constants(
    spec: Any, split: bool, block: int = 1024, exchanges: bool = True, framed: int = 0
) -> dict[str, Any]:
    """The constants of the stage kernel for a StageSpec, as its launch gives them."""
    fixed = dict(zip(CONSTANTS, map(int, spec), strict=True))
    return {
        **fixed,
        "SPLIT": split,
        "WIDE": False,
        "EXCHANGES": exchanges,
        "FRAMED": framed,
        "BITS": False,
        "BLOCK": block,
    }


def compile_all(archs: Collection[int]) -> int:
    """Compiles every kernel in every form for these architectures; how many that were."""
    from fastdiff._triton.noise import fill_kernel
    from fastdiff._triton.quantile import quantile_kernel
    from fastdiff._triton.stage import stage_kernel

    count = 0
    for arch in archs:
        for state in (F32, F64):
            stages = [(*stage, 0) for stage in STAGES.values()]
            stages += [(*stage, framed) for stage in FRAMED.values() for framed in (1, 2)]
            for spec, streams, framed in stages:
                pointers = {name: state if dtype == F32 else dtype for name, dtype in streams.items()}
                split = "seeds" in streams or "lo" in streams
                fixed = stage_constants(spec, split, 1024 if state == F32 else 512, framed=framed)
                aligned = None if framed < 2 else tuple(pointers)
                compiled(stage_kernel, {**pointers, "table": state}, fixed, arch, aligned=aligned)
            for words in (False, True):
                target = {"out": "i32" if words else state, "seeds": "i64", "index": "i32"}
                compiled(fill_kernel, target, {"WORDS": words, "WIDE": False, "BLOCK": 1024}, arch)
            double = {"DOUBLE": state == F64, "WIDE": False, "BLOCK": 1024}
            compiled(quantile_kernel, {"out": state, "x": state}, double, arch)
            count += len(stages) + 3
    return count


def main(folders: list[str]) -> int:
    if folders:
        code = 0
        for folder in folders:
            path = os.pathsep.join([str(Path(folder).resolve()), str(ROOT)])
            with tempfile.TemporaryDirectory() as cache:
                environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": cache}
                code |= subprocess.run([sys.executable, __file__], env=environment, check=False).returncode
        return code
    import triton

    print(f"triton {triton.__version__}: {compile_all(architectures())} kernels compiled")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
