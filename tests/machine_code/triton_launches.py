"""The Triton kernels, compiled ahead and run by `machine.Machine` on CPU tensors: a back end for stage_cases.check."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sass
import torch
from helpers.triton_ahead import INTEGERS, compiled
from launches import Space
from machine import Machine

from fastdiff.ops import triton as backend

NAMES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
COEFFICIENTS = ("table", "draws", "seeds", "index", "rows", "lo", "hi", "scale")
"""Pointers that the kernel is not specialised on, as its decorator says."""

_loaded: dict[Any, Any] = {}


def load(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], arch: int, warps: int, aligned: Any) -> Any:
    """(instructions, constant banks, place of the arguments, bytes of shared memory, registers of a thread)."""
    key = (kernel.__name__, arch, warps, *pointers.items(), *constants.items(), *sorted(aligned))
    if key not in _loaded:
        made = compiled(kernel, pointers, constants, arch, warps, aligned)
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder, "kernel.cubin")
            cubin.write_bytes(made.asm["cubin"])
            (name,) = sass.kernels(cubin)
            code, banks = sass.parse(sass.listings(cubin)[name]), sass.constants(cubin, name)
            at, static = sass.arguments_at(cubin, name)
            registers = sass.registers(cubin)[name]
        # From sm_90 on, the first KiB of shared memory is the system's.
        _loaded[key] = code, banks, at, static + made.metadata.shared + 1024, registers
    return _loaded[key]


class TritonBackend:
    """`ops.triton` with launches executed by the machine.

    Args:
        arch: compute capability, such as 90.
        skew: bytes by which every tensor but the coefficients is moved from a multiple of 256.
        order: as `Machine` takes it.

    Attributes:
        machine: of the last launch; `traced`: the thread whose instructions it shall note.
        registers: of a thread, in the last launch.
    """

    def __init__(self, arch: int, skew: int = 0, order: np.random.Generator | None = None) -> None:
        self.arch, self.skew, self.order = arch, skew, order
        self.machine: Machine | None = None
        self.traced: int | None = None
        self.registers = 0

    def run(self, kernel: Any, values: dict[str, Any], grid: int, warps: int) -> None:
        space = Space(skew=self.skew)
        pointers, constants, aligned, packed = {}, {}, [], b""
        fixed = {
            name for name, parameter in zip(kernel.arg_names, kernel.params, strict=True) if parameter.is_constexpr
        }
        for name, value in values.items():
            if value is None or name in fixed:
                constants[name] = value
                continue
            if isinstance(value, torch.Tensor):
                pointers[name] = NAMES[value.dtype]
                number, form = space.address(value, name not in COEFFICIENTS), "<Q"
            else:
                number, form = value, "<i"
            if number % 16 == 0 and name not in COEFFICIENTS and name not in INTEGERS:
                aligned.append(name)
            packed += b"\0" * (-len(packed) % struct.calcsize(form)) + struct.pack(form, number)
        code, banks, at, shared, self.registers = load(kernel, pointers, constants, self.arch, warps, aligned)
        packed += b"\0" * (-len(packed) % 8 + 16)  # scratch memory, of which none is used
        self.machine = Machine(code, (grid, 1), 32 * warps, packed, at, space.memory, banks, shared, self.order)
        self.machine.traced = self.traced
        self.machine.run()
        space.take_back()

    def stage(self, spec: Any, k: int, coeffs: Any, buf: Any) -> None:
        from fastdiff._triton.noise import fill_kernel
        from fastdiff._triton.stage import stage_kernel

        def launch(_: Any, device: Any, grid: int, warps: int, streams: Any, rest: Any, aligned: bool) -> None:
            self.run(stage_kernel, dict(zip(stage_kernel.arg_names, (*streams, *rest), strict=True)), grid, warps)

        with (
            mock.patch.object(backend, "_launch", launch),
            mock.patch.object(backend, "_kernels", lambda: (stage_kernel, fill_kernel, False)),
            mock.patch.object(backend, "_on", lambda device: contextlib.nullcontext()),
        ):
            backend.stage(spec, k, coeffs, buf)

    def quantile_(self, out: torch.Tensor, x: torch.Tensor, q: float) -> None:
        from fastdiff._triton.quantile import quantile_kernel

        run = self.run

        class Kernel:
            def __getitem__(self, grid: tuple[int]) -> Any:
                def launch(*given: Any, num_warps: int, **options: Any) -> None:
                    run(quantile_kernel, dict(zip(quantile_kernel.arg_names, given, strict=True)), grid[0], num_warps)

                return launch

        with (
            mock.patch.object(backend, "_quantile_kernel", Kernel),
            mock.patch.object(backend, "_on", lambda device: contextlib.nullcontext()),
        ):
            backend.quantile_(out, x, q)
