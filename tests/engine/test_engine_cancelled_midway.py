"""Requests that are cancelled by another thread in the middle of a tick."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.engine import floor


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * 0.5 + 1e-3 * t.reshape(-1, 1)


def test_who_leaves_between_the_count_and_the_seats_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Residents are counted, those who wait enter, and the others are seated: a cancelled one is among them until the
    next tick."""
    made = floor.turns
    for trial in range(30):
        rng = random.Random(trial)
        engine = fastdiff.Engine(network, slots=2, parked=3, shape=(4,), schedule="ddpm")
        requests = [engine.submit(rng.choice(["ddim", "dpm3"]), rng.randint(2, 9), seed=i) for i in range(12)]

        def turns(here: Any, *more: Any, rng: random.Random = rng) -> Any:
            if here and rng.random() < 0.5:
                rng.choice(here).request.cancel()
            return made(here, *more)

        monkeypatch.setattr(floor, "turns", turns)
        engine.run()
        for i, request in enumerate(requests):
            if request.cancelled():
                continue
            given: dict[str, Any] = {"method": request.method, "steps": request.nfe, "seed": i, "schedule": "ddpm"}
            assert torch.equal(request.result(0), fastdiff.sample(network, shape=(1, 4), **given)[0])
        assert engine.idle
