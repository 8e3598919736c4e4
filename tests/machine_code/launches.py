"""The project's CUDA kernels, run by `machine.Machine` on CPU tensors: a back end for `stage_cases.check`."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import accesses
import floats
import numpy as np
import sass
import torch
from machine import BASE, Machine, Memory

from fastdiff.ops import cuda
from fastdiff.ops.rank import rank

assert accesses.operation is floats.operation  # both are imported for what they register

CODES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


class Space:
    """Tensors' storages, copied into the machine's memory and back."""

    def __init__(self, size: int = 1 << 22, skew: int = 0) -> None:
        self.memory, self.skew = Memory(size), skew
        self.placed: dict[int, tuple[int, np.ndarray]] = {}

    def address(self, tensor: torch.Tensor | None, skewed: bool = True) -> int:
        """Where the tensor's first element lies; 0 for None."""
        if tensor is None:
            return 0
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.placed:
            content = np.frombuffer((ctypes.c_uint8 * storage.nbytes()).from_address(key), np.uint8)
            self.placed[key] = self.memory.place(content, self.skew if skewed else 0), content
        return self.placed[key][0] + tensor.data_ptr() - key

    def take_back(self) -> None:
        """Copies everything into the tensors."""
        for address, content in self.placed.values():
            start = address - BASE
            content[:] = self.memory.bytes[start : start + len(content)]


class Kernels:
    """The kernels for one architecture in the extension module, disassembled where they are asked for.

    Attributes:
        used: names of those that were run.
    """

    def __init__(self, binary: str, arch: str, folder: Path) -> None:
        self.arch = arch
        self.cubins = {name: c for c in sass.cubins(binary, arch, folder) for name in sass.kernels(c)}
        self.used: set[str] = set()

    def name(self, fragment: str) -> str:
        """The one kernel whose mangled name contains `fragment`."""
        found = [name for name in self.cubins if fragment in name]
        assert len(found) == 1, f"{fragment} names {len(found)} kernels of {self.arch}"
        return found[0]

    @functools.cached_property
    def _listings(self) -> dict[Path, dict[str, str]]:
        return {}

    @functools.cache  # noqa: B019 - lives as long as the tests
    def loaded(self, name: str) -> tuple[list[sass.Instruction], dict[int, np.ndarray], int, int]:
        """(instructions, constant banks, place of the arguments, bytes of shared memory)."""
        cubin = self.cubins[name]
        if cubin not in self._listings:
            self._listings[cubin] = sass.listings(cubin)
        return sass.parse(self._listings[cubin][name]), sass.constants(cubin, name), *sass.arguments_at(cubin, name)

    def machine(
        self, fragment: str, grid: tuple[int, int], threads: int, arguments: bytes, space: Space, **options: Any
    ) -> Machine:
        """Ready to run the kernel named."""
        name = self.name(fragment)
        self.used.add(name)
        code, banks, at, shared = self.loaded(name)
        return Machine(code, grid, threads, arguments, at, space.memory, banks, shared, **options)


class Backend:
    """`ops.cuda` with launches executed by the machine.

    Args:
        kernels: of one architecture.
        skew: bytes by which every tensor but the coefficients is moved from a multiple of 256.
        order: as `Machine` takes it.
        rows: blocks along y, instead of as many as there are samples.

    Attributes:
        ran: beginnings of the names of the stage kernels that were run, without their namespace.
        machine: of the last launch; `traced`: the thread whose instructions it shall note.
    """

    def __init__(
        self, kernels: Kernels, skew: int = 0, order: np.random.Generator | None = None, rows: int | None = None
    ) -> None:
        self.kernels, self.skew, self.order, self.rows = kernels, skew, order, rows
        self.ran: list[str] = []
        self.machine: Machine | None = None
        self.traced: int | None = None

    def stage(self, spec: Any, k: int, coeffs: Any, buf: Any) -> None:
        space = Space(skew=self.skew)

        def launch(*given: Any) -> None:
            names: list[Any] = []
            for i, value in enumerate(given):
                plain = i in (18, 19, 20, 21, 22, 23, 24, 25)  # the coefficients
                if isinstance(value, torch.Tensor):
                    names.append(space.address(value, not plain))
                elif i in (12, 13):  # the history and the noise
                    names.append(tuple(space.address(t) for t in value))
                else:
                    names.append(value)
            launched = ext.stage_launch(*names)
            if launched is None:
                return
            fragment, grid_x, grid_y, threads, arguments = launched
            self.ran.append(fragment)
            self.machine = self.kernels.machine(
                fragment, (grid_x, self.rows or grid_y), threads, arguments, space, order=self.order
            )
            self.machine.traced = self.traced
            self.machine.run()

        ext = cuda._ext
        with mock.patch.object(cuda, "_ext", SimpleNamespace(stage=launch)), no_stream():
            cuda.stage(spec, k, coeffs, buf)
        space.take_back()

    def normal_(self, out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
        space = Space(skew=self.skew)
        batch, n = out.shape[0], out[0].numel()
        groups, grid_x, grid_y, threads = cuda._ext.launch_geometry(batch, n)
        address = space.address(out)
        arguments = struct.pack(
            "<Qi4xqqQQIIq", address, CODES[out.dtype], batch, n, space.address(seeds, False),
            space.address(index, False), draw, stream, groups,
        )  # fmt: skip
        wide = n % 4 == 0 and address % 16 == 0
        fragment = f"normal_kernelI{'f' if out.dtype == torch.float32 else 'd'}Lb{int(wide)}E"
        self.kernels.machine(fragment, (grid_x, grid_y), threads, arguments, space, order=self.order).run()
        space.take_back()

    def quantile_(self, out: torch.Tensor, x: torch.Tensor, q: float, elements: int) -> None:
        """As `ops.cuda.quantile_`, with so many elements for each block, so that several can share a small sample."""
        space = Space(skew=self.skew)
        batch, n = x.shape
        double = x.dtype == torch.float64
        blocks, bits = -(-n // elements), 63 if double else 31
        workspace = torch.zeros(batch * (40 + 8 * 2048) if blocks > 1 else 1, dtype=torch.uint8)
        state = space.address(workspace, False)
        low, weight = rank(q, n)
        given = struct.pack("<QQi4xqqqd", space.address(out), space.address(x), CODES[x.dtype], batch, n, low, weight)
        for left in range(bits, 0, -11 if blocks > 1 else -bits):
            width = min(left, 11)
            digit = struct.pack("<ii??2x", left - width, width, left == bits, left == width)
            arguments = given + struct.pack("<I4xq", blocks, elements) + digit + b"\0" * 4
            arguments += struct.pack("<QQ", state, state + 40 * batch)
            fragment = f"quantile_kernelI{'d' if double else 'f'}E"
            self.kernels.machine(fragment, (batch * blocks, 1), 256, arguments, space, order=self.order).run()
        space.take_back()


@contextmanager
def no_stream() -> Iterator[None]:
    with mock.patch.object(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, create=True):
        yield
