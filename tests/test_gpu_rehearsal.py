"""tests/test_gpu.py and `python -m benchmarks --gpu` executed with the CPU in the GPU's place: see cuda_on_cpu.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[1]

SANITIZER = """#!{python}
import os, subprocess, sys
code = "from helpers import cuda_on_cpu; cuda_on_cpu.install()\\n" + sys.argv[-1]
sys.exit(subprocess.run([sys.executable, "-c", code]).returncode)
"""

BENCHMARKS = """
import sys
from helpers import cuda_on_cpu
cuda_on_cpu.install()
import torch
from benchmarks import __main__, gpu, gpu_loops, networks, timing
for name in gpu.SIZES:
    gpu.SIZES[name] = (2, 3, 8, 8)
tiny = {
    "digits": lambda: networks.awake(networks.UNet(8, 1, 32, (1,), 1, ())),
    "action chunk": lambda: networks.ActionTransformer(5, 4, 32, 1, 4),
    "CIFAR U-Net": lambda: networks.awake(networks.UNet(8, 1, 32, (1,), 1, ())),
    "DiT-B/2": lambda: networks.DiT(8, 4, 2, 32, 1, 2),
}
given = gpu_loops.subjects()
assert set(given) == set(tiny)
gpu_loops.subjects = lambda: {name: (make, given[name][1], (1,)) for name, make in tiny.items()}
timing.MOST = 1
interleaved = timing.interleaved
def briefly(works, rounds, *args, **kwargs):
    return interleaved(works, 1, *args, **{**kwargs, "most": 1, "least": 1})
timing.interleaved = briefly
sys.argv = ["benchmarks", "--gpu", "--out", sys.argv[1]]
sys.exit(__main__.main())
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", **environment}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_the_tests_for_a_gpu(tmp_path: Path) -> None:
    """All of them; of the parametrised ones, some. The numbers that they compare are the CPU's."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(SANITIZER.format(python=sys.executable))
    sanitizer.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PATH", "")])
    options = [
        "-q",
        "-W",
        "default",
        "-p",
        "helpers.cuda_on_cpu",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "no:benchmark",
        "-rs",
    ]
    done = run("-m", "pytest", *options, "tests/test_gpu.py", PATH=path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout, done.stdout[-3000:]


@pytest.mark.slow
def test_the_benchmarks_for_a_gpu(tmp_path: Path) -> None:
    done = run("-c", BENCHMARKS, str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    data = json.loads((tmp_path / "cuda.json").read_text())
    assert data["failed"] == [] and data["notes"] == []
    assert {row["network"] for row in data["loops"]} == {"digits", "action chunk", "CIFAR U-Net", "DiT-B/2"}
    assert all(row["graph_equals_eager"] for row in data["loops"])
    assert all(set(row["differences"]) == {"cuda", "triton"} for row in data["stages"])
    assert all(row["size"] in done.stdout for row in (*data["stages"], *data["noise"]))
    assert (tmp_path / "cuda.png").exists()
