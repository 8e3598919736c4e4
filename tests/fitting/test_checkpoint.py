"""A fit that is killed goes on to the same result, and its file is safe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.fitting import SMALL, Torch
from safetensors.torch import save_file

import fastdiff
from fastdiff.fitting import checkpoint
from fastdiff.run.weights import fingerprint

POLISHED = {**SMALL, "shape": (16, 3), "budget": 12, "polish": True, "polish_rounds": 2}


@pytest.fixture(scope="module")
def whole() -> tuple[fastdiff.Plan, int]:
    model = Torch()
    return fastdiff.fit(model, 3, **POLISHED), model.calls


@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.7, 0.85, 0.99])
def test_killed_anywhere_it_ends_the_same(
    whole: tuple[fastdiff.Plan, int], part: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, calls = whole
    # Saved at every step: a kill leaves whatever the last save wrote.
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    path = str(tmp_path / "fit.safetensors")
    model = Torch()
    model.stop = int(part * calls)
    with pytest.raises(KeyboardInterrupt):
        fastdiff.fit(model, 3, **POLISHED, checkpoint=path)
    assert Path(path).exists()
    again = Torch()
    found = fastdiff.fit(again, 3, **POLISHED, checkpoint=path)
    assert (found.stages, found.times) == (plan.stages, plan.times)
    assert found.origin["errors"] == plan.origin["errors"]
    # Nothing is saved before the first batch of the teacher.
    assert again.calls < calls or part == 0.05
    assert again.calls <= calls
    assert not Path(path).exists()


def test_a_file_of_another_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    path = str(tmp_path / "fit.safetensors")
    model = Torch()
    model.stop = 80
    with pytest.raises(KeyboardInterrupt):
        fastdiff.fit(model, 3, **SMALL, checkpoint=path)
    with pytest.raises(ValueError, match=r"holds a fit with other arguments: steps=3 \(now 4\)"):
        fastdiff.fit(Torch(), 4, **SMALL, checkpoint=path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a fit's checkpoint"):
        fastdiff.fit(Torch(), 3, **SMALL, checkpoint=path)


def test_a_file_needs_its_ending_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file ending in \.safetensors"):
        fastdiff.fit(Torch(), 3, **SMALL, checkpoint="fit.pt")
    with pytest.raises(ValueError, match="there is no folder"):
        fastdiff.fit(Torch(), 3, **SMALL, checkpoint=str(tmp_path / "none" / "fit.safetensors"))


def test_weights_have_a_fingerprint() -> None:
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint(one) == fingerprint(one) != fingerprint(two)
    assert fingerprint(lambda x, t: x) == ""
