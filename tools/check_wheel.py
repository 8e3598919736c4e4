"""Check what a wheel of fastdiff holds, and what its extension modules link.

    python tools/check_wheel.py [--require cpu,cuda] WHEEL...

Exits with a list of everything that is wrong. ELF files are read with pyelftools; in Mach-O and PE files the names of
libraries stand as plain text, and any mention counts.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import stat
import struct
import sys
import zipfile
from pathlib import PurePosixPath

EXTENSIONS = (".so", ".pyd", ".dylib")

NEEDED_FILES = (
    "fastdiff/__init__.py",
    "fastdiff/__main__.py",
    "fastdiff/_version.py",
    "fastdiff/cli.py",
    "fastdiff/py.typed",
    "fastdiff/_triton/stage.py",
)

ALLOWED_TOPS = re.compile(r"fastdiff|fastdiff_sampler\.libs|fastdiff_sampler-[^/]*\.(dist-info|data)")

# torch: a wheel is not tied to a torch release. cudart and the driver: the module loads where there is neither.
FORBIDDEN = re.compile(r"^(lib)?(torch|c10|cudart|cuda|nvcuda|nvrtc|cublas|curand)([-_.\d].*|_.*)?$", re.IGNORECASE)
_LIBRARY_NAME = re.compile(rb"[\w.+-]{3,}\.(?:dylib|dll)", re.IGNORECASE)

MAX_WEIGHTS = 4 * 2**20
"""Bytes that the demo's weights may take."""


def linked(data: bytes) -> tuple[list[str], list[str]]:
    """The libraries that a compiled module links, and its run-time search paths (ELF only)."""
    if data[:4] != b"\x7fELF":
        return sorted({name.decode() for name in _LIBRARY_NAME.findall(data)}), []
    from elftools.elf.elffile import ELFFile

    names: list[str] = []
    paths: list[str] = []
    for segment in ELFFile(io.BytesIO(data)).iter_segments("PT_DYNAMIC"):
        for tag in segment.iter_tags():
            if tag.entry.d_tag == "DT_NEEDED":
                names.append(tag.needed)
            elif tag.entry.d_tag == "DT_RPATH":
                paths += tag.rpath.split(":")
            elif tag.entry.d_tag == "DT_RUNPATH":
                paths += tag.runpath.split(":")
    return names, paths


def forbidden(library: str) -> bool:
    """Whether the wheel must not link this library.

    >>> [name for name in ("libtorch_cpu.so", "libcudart.so.13", "libgomp.so.1", "c10.dll") if forbidden(name)]
    ['libtorch_cpu.so', 'libcudart.so.13', 'c10.dll']
    """
    return FORBIDDEN.match(PurePosixPath(library).name) is not None


def _weights(name: str, data: bytes) -> list[str]:
    if len(data) > MAX_WEIGHTS:
        return [f"{name} has {len(data)} bytes; the limit is {MAX_WEIGHTS}"]
    try:
        (length,) = struct.unpack("<Q", data[:8])
        json.loads(data[8 : 8 + length])
    except (struct.error, ValueError) as error:
        return [f"{name} is not a safetensors file: {error}"]
    return []


def problems(wheel: str, require: tuple[str, ...] = ()) -> list[str]:
    """Everything that is wrong with a wheel, a line each; `require` names back ends that must be compiled into it."""
    found: list[str] = []
    with zipfile.ZipFile(wheel) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        found += [
            f"{info.filename} is a symbolic link"
            for info in archive.infolist()
            if stat.S_ISLNK(info.external_attr >> 16)
        ]
        tops = {PurePosixPath(name).parts[0] for name in names}
        found += [f"installs a top-level {top!r}" for top in sorted(tops) if not ALLOWED_TOPS.fullmatch(top)]
        found += [f"lacks {name}" for name in NEEDED_FILES if name not in names]
        found += [f"holds {name}" for name in names if "__pycache__" in name or name.endswith((".cu", ".cpp", ".h"))]
        if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
            found.append("lacks the licence")

        weights = [name for name in names if name.startswith("fastdiff/demo/") and name.endswith(".safetensors")]
        if not weights:
            found.append("lacks the demo's weights, fastdiff/demo/*.safetensors")
        for name in weights:
            found += _weights(name, archive.read(name))

        modules = [name for name in names if name.endswith(EXTENSIONS)]
        for name in modules:
            libraries, paths = linked(archive.read(name))
            found += [f"{name} links {library}" for library in libraries if forbidden(library)]
            found += [f"{name} has the search path {path}" for path in paths if path and not path.startswith("$ORIGIN")]
        for backend in require:
            if not any(name.startswith(f"fastdiff/_{backend}.") for name in modules):
                found.append(f"lacks the compiled back end {backend!r}, fastdiff/_{backend}.*")
        tags = next(name for name in names if name.endswith(".dist-info/WHEEL"))
        if modules and b"Root-Is-Purelib: true" in archive.read(tags):
            found.append("is tagged as pure Python and holds compiled modules")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", metavar="WHEEL")
    parser.add_argument("--require", default="", help="back ends that must be compiled in, with commas: cpu,cuda")
    options = parser.parse_args()
    require = tuple(name for name in options.require.split(",") if name)
    failed = False
    for wheel in options.wheels:
        found = problems(wheel, require)
        failed = failed or bool(found)
        print(f"{wheel}: {'ok' if not found else 'not fit to publish'}")
        for line in found:
            print(f"  {line}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
