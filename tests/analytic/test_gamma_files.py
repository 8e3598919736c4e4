"""Unfinished estimates whose file is damaged, and data given as a list of batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.analytic.gamma import estimate_gamma
from fastdiff.solvers.gamma import Gamma

ARGUMENTS: dict[str, Any] = {"times": [0, 500, 999], "samples_per_time": 8, "batch_size": 4, "progress": False}
DATA = torch.linspace(-1, 1, 24).reshape(8, 3)


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.9 * x


class Stops:
    """The model, interrupted at its fifth call: one batch of three times is done, and one time of the next."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 5:
            raise KeyboardInterrupt
        return model(x, t)


def unfinished(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        estimate_gamma(Stops(), DATA, path=path, **ARGUMENTS)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    # Each of these gave a wrong result, or an error from the middle of NumPy.
    "one sum for three": (lambda d: d.update(output=[1.0]), "it has 1 and 3 sums for 3 times"),
    "no sums": (lambda d: d.pop("noise"), "it has output, part_noise, part_output, times"),
    "more of a batch": (lambda d: d.update(part_output=[1.0] * 5, part_noise=[1.0] * 5), "of a batch it has 5 and 5"),
    "less of a batch": (lambda d: d.update(part_output=[]), "of a batch it has 0 and 1 sums"),
    "negative": (lambda d: d.update(output=[-1.0, 1.0, 1.0]), "its sums of squares"),
    "nothing done": (lambda d: d["meta"].update(first="0"), "its sums of squares are not those of so many samples"),
    "all done": (lambda d: d["meta"].update(first="8"), "8 of 8 samples are done"),
    "count": (lambda d: d["meta"].update(first="x"), "its 'first' is 'x'; expected a whole number"),
    "not finite": (lambda d: d.update(noise=[float("inf"), 1.0, 1.0]), "must be a list of finite numbers"),
    "other times": (lambda d: d.update(times=[0.0, 400.0, 999.0]), "its times are not those of its settings"),
    "settings": (lambda d: d["meta"].update(settings="[]"), "its settings are"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_unfinished_estimate_is_one_error_with_its_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "g.json"
    unfinished(path)
    data = json.loads(path.read_text())
    change, reason = DAMAGE[kind]
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"g\.json is (?s:.*){reason}"):
        estimate_gamma(model, DATA, path=path, **ARGUMENTS)


def test_what_is_whole_is_continued(tmp_path: Path) -> None:
    unfinished(tmp_path / "g.json")
    want = estimate_gamma(model, DATA, **ARGUMENTS)
    assert estimate_gamma(model, DATA, path=tmp_path / "g.json", **ARGUMENTS) == want
    assert Gamma.load(tmp_path / "g.json") == want


def test_a_list_of_batches_is_batches() -> None:
    seen: list[tuple[int, ...]] = []

    def watching(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return model(x, t)

    halves = [DATA[:4], DATA[4:]]
    want = estimate_gamma(model, iter(halves), **ARGUMENTS)
    for data in (halves, tuple(halves), [(x, {"y": torch.zeros(4)}) for x in halves], [[x] for x in halves]):
        assert estimate_gamma(watching, data, **ARGUMENTS) == want
        assert set(seen) == {(4, 3)}
    # Batches of different sizes, which no data set of samples could be.
    uneven = [DATA[:3], DATA[3:]]
    assert estimate_gamma(watching, uneven, **ARGUMENTS).count == 8
    # Gone through again where they end.
    assert estimate_gamma(model, halves, **{**ARGUMENTS, "samples_per_time": 12}).count == 12


def test_a_list_of_samples_of_one_dimension_is_a_data_set() -> None:
    assert estimate_gamma(model, list(DATA), **ARGUMENTS) == estimate_gamma(model, DATA, **ARGUMENTS)
