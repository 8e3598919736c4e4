"""Whole loops around the demo's trained network: ours against the formulas written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from benchmarks import timing
from fastdiff.demo import load_model
from fastdiff.demo.eager import dpm3

STEPS = 10


def measure(batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of ten steps of dpm3 by both loops, and of the network's calls alone; the difference of the results."""
    model = load_model()
    labels = torch.arange(batch) % 10
    x = torch.randn((batch, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    t = torch.full((batch,), 500.0)
    sampler = fastdiff.Sampler("dpm3", STEPS, schedule="ddpm", graph=False)
    times = fastdiff.plan("dpm3", STEPS, schedule="ddpm").times

    def ours() -> Tensor:
        result: Tensor = sampler(model, x, model_kwargs={"y": labels})
        return result

    def eager() -> Tensor:
        return dpm3(lambda u, s: model(u, s.to(u.dtype), labels), x, STEPS, np.asarray(times))

    def alone() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                model(x, t, labels)

    difference = (ours() - eager()).abs().max().item()
    found = timing.interleaved({"fastdiff": ours, "eager": eager, "network": alone}, rounds).median
    return {
        "network": "digits",
        "batch": batch,
        "method": "dpm3",
        "steps": STEPS,
        "seconds": found,
        "difference": difference,
    }
