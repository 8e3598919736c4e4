"""The CPU extension built with the address and undefined-behaviour sanitizers, and its tests on that build.

python tools/sanitize.py [arguments for pytest]

Linux with GCC. The build lies in build/sanitize; the package's own extension is left as it is.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
TESTS = [
    f"tests/{name}.py" for name in ("ops/test_cpu_op", "ops/test_cpu_memory", "run/test_launches", "run/test_again")
]
# A process of their own, without the sanitizers' build.
APART = "not small_stack and not impossible_level"


def build(cmake: str) -> None:
    """Configure and build the extension in `BUILD`."""
    import pybind11

    flags = [
        "-DFASTDIFF_SANITIZE=ON",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DPYBIND11_FINDPYTHON=ON",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={BUILD}",
    ]
    subprocess.run([cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *flags], check=True)
    subprocess.run([cmake, "--build", str(BUILD)], check=True)


def load(path: Path) -> None:
    """Let `fastdiff._cpu` be the module at `path`."""
    loader = importlib.machinery.ExtensionFileLoader("fastdiff._cpu", str(path))
    spec = importlib.util.spec_from_loader("fastdiff._cpu", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["fastdiff._cpu"] = module


def test(arguments: list[str]) -> int:
    """Run the tests in this process, which was started with the sanitizers' library."""
    import pytest

    # Reports of the sanitizers go past Python, so its output alone is captured.
    (path,) = BUILD.glob("_cpu.*.so")
    load(path)
    os.chdir(ROOT)
    return int(pytest.main(["-q", "--capture=sys", "-p", "no:cacheprovider", "-k", APART, *TESTS, *arguments]))


def main(arguments: list[str]) -> int:
    if os.environ.get("FASTDIFF_SANITIZED"):
        return test(arguments)
    beside = Path(sys.executable).with_name("cmake")
    build(str(beside) if beside.exists() else "cmake")
    compiler = os.environ.get("CXX", "c++")
    # The C++ library as well: the sanitizer looks for what throws exceptions when the process begins.
    asked = [[compiler, f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    found = [subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip() for line in asked]
    environment = {
        **os.environ,
        "FASTDIFF_SANITIZED": "1",
        "LD_PRELOAD": " ".join(found),
        # What Python and torch keep until the end is no leak of ours.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run([sys.executable, __file__, *arguments], env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
