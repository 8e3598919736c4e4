"""Standard normals: `fastdiff.randn`, which is a function of seed and sample, against `torch.randn`."""

from __future__ import annotations

from typing import Any

import torch

import fastdiff
from benchmarks import timing
from benchmarks.fused import SIZES


def measure(size: str, rounds: int, device: str = "cpu", shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Seconds and rates (normals a second) of both, for a fresh float32 tensor; `shape` if `size` is not of SIZES."""
    shape = shape or SIZES[size]
    works = {
        "torch": lambda: torch.randn(shape, device=device),
        "fastdiff": lambda: fastdiff.randn(shape, seed=1, device=device),
    }
    clock = timing.seconds if device == "cpu" else timing.device_seconds
    found = timing.interleaved(works, rounds, measure=clock).median
    count = torch.Size(shape).numel()
    return {
        "size": size,
        "seconds": found,
        "normals_per_second": {name: count / s for name, s in found.items()},
        "ratio": found["torch"] / found["fastdiff"],
    }
