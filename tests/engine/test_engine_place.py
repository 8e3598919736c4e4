"""An engine on the second device, in threads whose current device is the first: with stand-ins for torch.cuda."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.engine.place import Place
from fastdiff.run import graph


class Played:
    """What is asked of torch.cuda, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def Event(self) -> Any:
        return SimpleNamespace(record=lambda stream: self.told.append(f"record on {stream.name}"))

    def current_stream(self, device: torch.device) -> Any:
        name = f"a stream of {device}"
        return SimpleNamespace(name=name, wait_event=lambda event: self.told.append(f"{name} waits"))

    def device(self, device: torch.device) -> Any:
        told = self.told

        class Chosen:
            def __enter__(self) -> None:
                told.append(f"{device} is current")

            def __exit__(self, *error: object) -> None:
                told.append("put back")

        return Chosen()


def test_events_are_of_the_engines_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Played()
    monkeypatch.setattr(torch, "cuda", cuda)
    place = Place(torch.device("cuda", 1))
    with place.here():
        place.wait(place.mark())
    told = ["cuda:1 is current", "record on a stream of cuda:1", "a stream of cuda:1 waits", "put back"]
    assert cuda.told == told


def test_elsewhere_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", None)
    place = Place(torch.device("cpu"))
    with place.here():
        assert place.mark() is None
        place.wait(None)


def test_a_tick_is_there_and_waits_for_what_was_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the request comes from another stream."""
    engine = fastdiff.Engine(lambda x, t: x, slots=1, shape=(2,), schedule="ddpm")
    told: list[str] = []
    played = Played()
    played.told = told
    place = SimpleNamespace(
        here=lambda: played.device(torch.device("cuda", 1)),
        mark=lambda: "submitted",
        wait=lambda event: told.append(f"waits until {event}"),
        cuda=True,
    )
    engine._place = engine._floor.place = place  # type: ignore[assignment]
    request = engine.submit("ddim", 1)
    with monkeypatch.context() as capturing:
        capturing.setattr(graph.CAPTURE, "under_way", staticmethod(lambda: True))
        with pytest.raises(RuntimeError, match=r"is being captured on this stream.*call it outside"):
            engine.step()
    assert not told
    engine.step()
    assert told == ["cuda:1 is current", "waits until submitted", "put back"]
    assert request.done()
