"""The polish: what it holds in memory, and its optimizers. What it reaches is in test_fit.py."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.fitting import SMALL, Torch
from helpers.live import Live
from torch import nn

import fastdiff

WIDE, DEPTH, ROWS = 256, 4, 16


class Deep(nn.Module):
    """A residual network whose activations are large beside its state, as those of real networks are."""

    sample_shape = (8,)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [9, *[WIDE] * DEPTH, 8]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
        self.layers = nn.Sequential(*layers[:-1])
        self.requires_grad_(False).eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.7 * x + 0.3 * self.layers(torch.cat([x, t[:, None] / 1000.0], 1))


def activations() -> int:
    """Bytes alive after one call of the network with gradients."""
    x, t = torch.randn(ROWS, 8).requires_grad_(), torch.full((ROWS,), 500.0)
    with Live() as live:
        out = Deep()(x, t)
        found = live.now
        del out
    return found


@pytest.mark.filterwarnings("ignore:the teacher's own error")
def test_memory_is_that_of_one_call() -> None:
    live, one, entered = Live(), activations(), []

    def watch(phase: str, done: int, expected: int, loss: float | None) -> None:
        if phase == "polish" and not entered:
            # Teacher's trajectories and the search are no part of it.
            entered.append(live.__enter__())

    given: dict[str, Any] = {
        "shape": (ROWS, 8),
        "trajectories": ROWS,
        "validation": 8,
        "teacher": 24,
        "methods": ["dpm2"],
        "budget": 8,
        "schedule": "ddpm",
    }
    try:
        fastdiff.fit(Deep(), 8, **given, polish=True, polish_rounds=1, callback=watch)
    finally:
        live.__exit__(None, None, None)
    # Eight calls hold eight times as much without recomputation. The states and model values of eight stages, 17 times
    # 8 numbers, are a small part of one call's four layers of 256.
    assert 0.5 * one < live.peak < 3.0 * one


def test_adam_lowers_the_loss_too() -> None:
    seen: list[float] = []

    def watch(phase: str, done: int, expected: int, loss: float | None) -> None:
        if phase == "polish" and loss is not None:
            seen.append(loss)

    plan = fastdiff.fit(Torch(), 4, **SMALL, polish=True, polish_rounds=2, optimizer="adam", callback=watch)
    assert min(seen) < 0.9 * seen[0]
    errors = plan.origin["errors"]
    assert errors["after"]["mean"] < errors["before"]["mean"]
