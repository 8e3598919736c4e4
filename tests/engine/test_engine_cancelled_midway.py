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


@pytest.mark.parametrize("previews", [False, True])
@pytest.mark.parametrize("at", [1, 3, 4])
def test_who_is_cancelled_and_has_not_said_so_yet_leaves_at_its_end(
    monkeypatch: pytest.MonkeyPatch, at: int, previews: bool
) -> None:
    """Another thread's `cancel` ends the future first and tells the engine afterwards, which ticks in between."""
    calls = 0

    def cancelling(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            first.cancel()
        return network(x, t)

    engine = fastdiff.Engine(cancelling, slots=2, parked=0, shape=(4,), schedule="ddpm", history=0)
    monkeypatch.setattr(engine, "recall", lambda request: None)
    first, second = engine.submit("ddim", 4, previews=previews), engine.submit("ddim", 9, seed=1)
    third = engine.submit("ddim", 2, seed=2)
    engine.run()
    assert first.cancelled() and first.progress.done <= 4
    for request in (second, third):
        given: dict[str, Any] = {"method": "ddim", "steps": request.nfe, "seed": request.seed, "schedule": "ddpm"}
        assert torch.equal(request.result(0), fastdiff.sample(network, shape=(1, 4), **given)[0])
    assert len(engine._floor.batch.table.free) == 1
