"""Machine code of NVIDIA GPUs (SASS) as instructions: the disassembler's text, parsed; and a cubin's constants."""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x([0-9a-f]{16}) \*/")
_SECOND = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
_OPERANDS = re.compile(r"[^,\[\](){}]*(?:[\[({][^\])}]*[\])}][^,\[\](){}]*)*")


@dataclass
class Instruction:
    """One instruction.

    Attributes:
        address: in bytes from the kernel's first instruction; `following`: of the next one.
        guard: the predicate that must hold, such as "P0" or "!UP2"; empty: always runs.
        name, parts: of "IMAD.WIDE.U32", "IMAD" and ("WIDE", "U32").
        operands: as the disassembler writes them, without the marks of the operand cache.
        stall, write, read, wait: the control word: cycles until the next instruction may issue; the scoreboards (7:
            none) that are held until the result is there, and until the operands were read; the mask of scoreboards to
            wait for first.
        run: what executes it, once it was decoded.
    """

    address: int
    following: int
    text: str
    guard: str
    name: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    stall: int
    write: int
    read: int
    wait: int
    run: Any = field(default=None, repr=False)


def tool(name: str) -> str | None:
    """Path of one of NVIDIA's tools: those that Triton brings, or on PATH."""
    triton = importlib.util.find_spec("triton")
    for place in (triton.submodule_search_locations or ()) if triton else ():
        found = Path(place, "backends", "nvidia", "bin", name)
        if found.exists():
            return str(found)
    return shutil.which(name)


def run_tool(name: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """What the tool prints."""
    found = tool(name)
    assert found is not None, f"{name} was not found"
    done = subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr[:500]
    return done.stdout


def cubins(binary: str | Path, arch: str, folder: Path) -> list[Path]:
    """The cubins for `arch` ("sm_90") inside a library, unpacked into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    run_tool("cuobjdump", "--gpu-architecture", arch, "--extract-elf", "all", Path(binary).resolve(), cwd=folder)
    return sorted(folder.glob(f"*{arch}*.cubin"))


def kernels(cubin: Path) -> list[str]:
    """Mangled names of a cubin's kernels."""
    return [name.removeprefix(".text.") for name in _sections(cubin.read_bytes()) if name.startswith(".text.")]


def listings(cubin: Path) -> dict[str, str]:
    """The disassembler's text of each kernel of a cubin."""
    found = {}
    for part in run_tool("cuobjdump", "--dump-sass", cubin).split("Function : ")[1:]:
        name, _, text = part.partition("\n")
        found[name.strip()] = text
    return found


def parse(text: str) -> list[Instruction]:
    """The instructions of one kernel, from its listing."""
    found = []
    pending: tuple[int, str] | None = None
    for line in text.splitlines():
        if first := _LINE.match(line):
            pending = int(first[1], 16), first[2]
        elif pending is not None and (second := _SECOND.match(line)):
            found.append(_instruction(*pending, int(second[1], 16)))
            pending = None
    return found


def _instruction(address: int, text: str, high: int) -> Instruction:
    guard, rest = "", text
    if text.startswith("@"):
        guard, rest = text[1:].split(None, 1)
    name, _, tail = rest.partition(" ")
    base, *parts = name.split(".")
    operands = tuple(o.strip().replace(".reuse", "") for o in _OPERANDS.findall(tail) if o.strip())
    return Instruction(
        address, address + 16, text, guard, base, tuple(parts), operands,
        stall=high >> 41 & 15, write=high >> 46 & 7, read=high >> 49 & 7, wait=high >> 52 & 63,
    )  # fmt: skip


def registers(cubin: Path) -> dict[str, int]:
    """How many registers a thread of each kernel takes."""
    text = run_tool("cuobjdump", "--dump-resource-usage", cubin)
    return {name: int(count) for name, count in re.findall(r"Function (\S+):\s+REG:(\d+)", text)}


def _sections(data: bytes) -> dict[str, tuple[int, int, int]]:
    """(offset, size, entry size) of an ELF file's sections."""
    table = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, names_at = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    names = headers[names_at][4]
    found = {}
    for header in headers:
        start = names + header[0]
        found[data[start : data.index(b"\0", start)].decode()] = (header[4], header[5], header[9])
    return found


def constants(cubin: Path, name: str) -> dict[int, np.ndarray]:
    """A kernel's constant banks other than 0, which holds its arguments: uint8 arrays, relocated to its own code."""
    data = cubin.read_bytes()
    sections, banks = _sections(data), {}
    for bank in (2, 3, 4):
        section = sections.get(f".nv.constant{bank}.{name}")
        if section is None:
            continue
        at, size, _ = section
        content = np.frombuffer(data[at : at + size], np.uint8).copy()
        for prefix in (".rel", ".rela"):
            at, size, entry = sections.get(f"{prefix}.nv.constant{bank}.{name}", (0, 0, 16))
            for place in range(at, at + size, entry):
                target = struct.unpack_from("<Q", data, place)[0]
                if entry == 24:  # The value is in the entry; else it is already in its place.
                    value = struct.unpack_from("<q", data, place + 16)[0]
                    content[target : target + 4] = np.frombuffer(struct.pack("<I", value), np.uint8)
        banks[bank] = content
    return banks


def arguments_at(cubin: Path, name: str) -> tuple[int, int]:
    """(offset of the kernel's arguments in constant bank 0, bytes of shared memory that it is given statically)."""
    data = cubin.read_bytes()
    sections = _sections(data)
    at, size, _ = sections[f".nv.info.{name}"]
    shared = sections.get(f".nv.shared.{name}", (0, 0, 0))[1]
    end = at + size
    while at < end:
        form, attribute, value = struct.unpack_from("<BBH", data, at)
        if form == 4 and attribute == 0x0A:  # EIATTR_PARAM_CBANK: a symbol, then offset and size of the arguments
            return struct.unpack_from("<H", data, at + 8)[0], shared
        at += 4 + (value if form == 4 else 0)
    raise ValueError(f"{name} does not say where its arguments lie")
