"""Run clang-format, with the arguments given, on every C, C++ and CUDA file under csrc/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".h", ".hpp", ".c", ".cpp", ".cu", ".cuh"}


def main() -> int:
    tool = shutil.which("clang-format", path=str(Path(sys.executable).parent)) or shutil.which("clang-format")
    if tool is None:
        sys.exit("clang-format is not installed; `make lint` installs the pinned one")
    files = sorted(str(path) for path in (ROOT / "csrc").rglob("*") if path.suffix in SUFFIXES)
    return subprocess.run([tool, *sys.argv[1:], *files], check=False).returncode if files else 0


if __name__ == "__main__":
    sys.exit(main())
