"""A device whose memory the host cannot write into, played by the CPU: all that the host says goes over in copies."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.graph_stand_in import FakeCapture, stand_in

import fastdiff
from fastdiff.engine import seats, table

SHAPE = (2, 3, 3)
# With noise between two evaluations, an order of stages that is not the table's, a scaled input, and a stage by itself.
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("dpm3", {"guidance": 3.0}),
    ("unipc", {}),
    ("ddpm", {"clip": (-1.0, 1.0)}),
    ("heun", {"s_churn": 2.0, "s_tmax": 100.0}),
    ("restart", {}),
    ("pc", {}),
    ("dpmpp2m_sde", {"guidance": 2.0}),
]


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    yield from stand_in(monkeypatch)


def play(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (table, seats):
        monkeypatch.setattr(module, "shared", lambda device: False)
    # What is sent is what it was when it was asked for.
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)


def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    column = (-1, *[1] * (x.ndim - 1))
    return x / (1.0 + x * x) * (1.0 + t.to(x.dtype).reshape(column) * 0.001) + y.reshape(column) * 0.125


def labelled(label: float) -> dict[str, torch.Tensor]:
    return {"y": torch.tensor([label])}


@pytest.mark.parametrize(
    "own", [{"backend": "cpu"}, {"backend": "reference"}, {"graph": True}, {"dtype": torch.float64}]
)
def test_samples_are_the_same_bits(
    own: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capture: type[FakeCapture]
) -> None:
    """Requests take turns and are cancelled."""
    if "backend" in own and not fastdiff.backends()[own["backend"]][0]:
        pytest.skip(f"no back end {own['backend']!r}")
    play(monkeypatch)
    rng = random.Random(7)
    engine = fastdiff.Engine(network, slots=3, parked=4, shape=SHAPE, schedule="ddpm", uncond=labelled(0.0), **own)
    held = engine._floor.batch.seats
    found = []
    for i in range(42):
        name, given = ASKED[i % len(ASKED)]
        steps, seed = 2 + i % 4, 2**63 + 1 if i == 5 else i
        found.append((engine.submit(name, steps, seed=seed, cond=labelled(1.0), previews=i % 3 == 0, **given), steps))
        if rng.random() < 0.1:
            rng.choice(found)[0].cancel()
        for _ in range(rng.randrange(3)):
            engine.step()
            assert held.here is not held.there and torch.equal(held.here, held.there)
    engine.run()
    done = [(request, steps) for request, steps in found if not request.cancelled()]
    assert len(done) > 35
    same = {"schedule": "ddpm", "graph": False, "shape": (1, *SHAPE)} | {k: v for k, v in own.items() if k != "graph"}
    for request, steps in done:
        given = dict(ASKED)[request.method]
        alone = (
            {"model_kwargs": labelled(1.0)}
            if "guidance" not in given
            else {"cond": labelled(1.0), "uncond": labelled(0.0)}
        )
        x = fastdiff.sample(network, method=request.method, steps=steps, seed=request.seed, **same, **given, **alone)
        assert torch.equal(request.result(), x[0]), request


def test_other_guidance_goes_over_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """To and from two halves, while the other request goes on."""

    def made(shared: bool) -> list[torch.Tensor]:
        with monkeypatch.context() as played:
            if not shared:
                play(played)
            engine = fastdiff.Engine(network, slots=2, shape=SHAPE, schedule="ddpm", uncond=labelled(0.0))
            first, second = (engine.submit("dpm3", 6, cond=labelled(y), guidance=y or None) for y in (2.0, 0.0))
            for guidance in (None, 4.0, 1.5):
                engine.step()
                first.guidance, second.guidance = guidance, 3.0
            engine.run()
        return [first.result(), second.result()]

    assert all(map(torch.equal, made(shared=False), made(shared=True)))
