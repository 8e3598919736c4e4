"""`make gpu`: the extension modules, all tests in several processes, then the benchmarks, each in its time.

Exits with the reason where there is no CUDA device that torch can use. What fails or takes too long keeps nothing else
from running; the exit status is 1 if anything did. Needs no network, and installs nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 540.0
"""For the build, the tests and the benchmarks; of which the tests and the benchmarks take at most eight minutes."""
TEST_SECONDS, BENCH_SECONDS = 210.0, 240.0
WRITING = 20.0
"""Between the last measurement and the end: a part that has begun, tables, a picture."""


def check() -> None:
    try:
        import torch
    except ImportError as error:
        sys.exit(f"no GPU: {sys.executable} cannot import torch ({error}); for another Python: make gpu PYTHON=...")
    if not torch.cuda.is_available():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build without CUDA"
        sys.exit(f"no GPU: torch {torch.__version__} {build} and finds no CUDA device; `make test` needs none")
    major, minor = torch.cuda.get_device_capability()
    print(f"{torch.cuda.get_device_name()}, sm_{major}{minor}, torch {torch.__version__}, CUDA {torch.version.cuda}")


def test_command(cores: int) -> list[str]:
    """All tests: kernels are compiled and the rest computed on the CPU, so one process is not enough for the time."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "default", "tests"]
    if importlib.util.find_spec("xdist") is None:
        return command
    return [*command, "-n", str(max(1, min(12, cores - 2))), "--dist", "worksteal"]


def bench_command(out: Path, seconds: float) -> list[str]:
    return [sys.executable, "-m", "benchmarks", "--gpu", "--out", str(out), "--seconds", f"{seconds:.0f}"]


def build_command() -> list[str]:
    """The extension modules, beside the sources: the checkout is what is run."""
    return [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]


def call(name: str, command: list[str], seconds: float, **environment: str) -> bool:
    """Run a command; after `seconds` ask it to stop, as Ctrl-C does, and then make it. True if it succeeded."""
    start = time.perf_counter()
    # A session of its own, so that its workers end with it.
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True)
    late = ""
    for extra, ending in ((seconds, signal.SIGINT), (WRITING, signal.SIGKILL), (WRITING, None)):
        try:
            process.wait(extra)
            break
        except subprocess.TimeoutExpired:
            late = f", stopped after {seconds:.0f} s"
            if ending == signal.SIGINT:
                process.send_signal(ending)
            elif ending is not None:
                os.killpg(process.pid, ending)
        except KeyboardInterrupt:
            # Ctrl-C does not reach another session.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    good = process.returncode == 0 and not late
    took = time.perf_counter() - start
    print(f"{name}: {'passed' if good else 'FAILED'} in {took:.0f} s{late}, status {process.returncode}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder for the benchmarks' results"
    )
    out = parser.parse_args().out
    check()
    end = time.perf_counter() + SECONDS
    # Where one of them does not build, the other and what needs neither are still tried.
    built = call("build", build_command(), 200.0, FASTDIFF_CPU="1", FASTDIFF_CUDA="1")
    if not built:
        call("build of what can be built", build_command(), 200.0)
    tested = call("tests", test_command(os.cpu_count() or 1), TEST_SECONDS)
    left = end - time.perf_counter()
    seconds = max(WRITING, min(BENCH_SECONDS, left - 2 * WRITING))
    measured = call("benchmarks", bench_command(out, seconds), seconds + WRITING)
    return 0 if built and tested and measured else 1


if __name__ == "__main__":
    sys.exit(main())
