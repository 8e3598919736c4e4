"""The import after torch, each in a process of its own: python -m benchmarks.imports [rounds] [other checkout ...].

Prints the least and the median processor time and wall time in seconds, and how many modules of the package were read.
Checkouts are measured in turns, so that other work on the machine meets all of them. Bytecode is written first.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import sys, time, torch
wall, cpu = time.perf_counter(), time.process_time()
import fastdiff
print(time.process_time() - cpu, time.perf_counter() - wall, sum(m.split(".")[0] == "fastdiff" for m in sys.modules))
"""


def measured(tree: Path) -> list[float]:
    """[processor time, wall time, modules] of one process."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tree, env=env, capture_output=True, text=True, check=True)
    return [float(value) for value in done.stdout.split()]


def main(rounds: int, trees: list[Path]) -> None:
    for tree in trees:
        measured(tree)
    found: dict[Path, list[list[float]]] = {tree: [] for tree in trees}
    for _ in range(rounds):
        for tree in trees:
            found[tree].append(measured(tree))
    for tree, runs in found.items():
        cpu, wall, modules = zip(*runs, strict=True)
        times = [f"{name} {min(t):.3f} {statistics.median(t):.3f}" for name, t in (("cpu", cpu), ("wall", wall))]
        print(f"{tree.name}: {', '.join(times)} s (least, median of {rounds}), {modules[0]:.0f} modules")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, [ROOT, *map(Path, sys.argv[2:])])
