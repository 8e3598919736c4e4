"""Files: written whole or not at all, pictures with and without an ending, and damaged ones that say so."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff import demo, plot
from fastdiff.demo import training
from fastdiff.demo.training import Trainer
from fastdiff.files import save_image, write_whole
from fastdiff.solvers.gamma import Gamma


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_error_of_a_missing_folder_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'.*missing.a\.json'"):
        write_whole(tmp_path / "missing" / "a.json", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="links and devices of Unix")
def test_links_are_followed_and_devices_stay_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_whole(link, b"content")
    assert link.is_symlink() and target.read_bytes() == b"content"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", b"through")
    assert os.read(reader, 100) == b"through" and not (tmp_path / "pipe").is_file()
    os.close(reader)


def test_pictures_without_an_ending_are_png_where_they_are_said_to_be(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fastdiff.plan("ddim", 3).plot(tmp_path / "a")
    plot.image_grid(np.zeros((1, 1, 2, 2), dtype=np.float32), tmp_path / "b")
    plot.convergence({"x": ([1, 2], [1.0, 0.5])}, tmp_path / "c.svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c.svg"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in "ab")
    assert b"<svg" in (tmp_path / "c.svg").read_bytes()
    with pytest.raises(ValueError, match=r"unknown ending of a picture's file, '\.xyz'"):
        save_image(Image.new("L", (1, 1)), tmp_path / "d.xyz")


GAMMA = Gamma((0.0, 1.5, 7.0), (0.1, 1 / 3, 1.02), "ab" * 32, 12)


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return damage


DAMAGED_GAMMAS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "is not a Gamma"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[:40]), "is not a Gamma"),
    "bytes": (lambda p: p.write_bytes(b"\xff\xfe{}"), "is not a Gamma"),
    "nested": (lambda p: p.write_text("[" * 100_000), "is not a Gamma"),
    "list": (lambda p: p.write_text("[]"), "is not a Gamma"),
    "no meta": (edited(lambda d: d.pop("meta")), "no 'meta'"),
    "meta": (edited(lambda d: d.update(meta=[1])), "its metadata must be strings by name"),
    "numbers in meta": (edited(lambda d: d["meta"].update(count=12)), "its metadata must be strings by name"),
    "format": (edited(lambda d: d["meta"].update(format="x")), "its format is 'x'"),
    "no times": (edited(lambda d: d.pop("times")), "it has no 'times'"),
    "matrix": (edited(lambda d: d.update(values=[[0.1, 0.2, 0.3]])), "'values' must be a list of numbers"),
    "text": (edited(lambda d: d.update(values=["0.1", "0.2", "0.3"])), "'values' must be a list of numbers"),
    "scalar": (edited(lambda d: d.update(values=0.1)), "'values' must be a list of numbers"),
    "huge": (edited(lambda d: d.update(values=[10**400, 1, 1])), "is not a Gamma"),
    "nan": (edited(lambda d: d.update(values=[float("nan"), 1, 1])), "'values' must be a list of finite numbers"),
    "short": (edited(lambda d: d["values"].pop()), "is damaged: Gamma got times"),
    "negative": (edited(lambda d: d.update(values=[-1.0, 1, 1])), "is damaged: Gamma at time 0"),
    "no count": (edited(lambda d: d["meta"].pop("count")), "its 'count' is ''; expected a whole number"),
    "count": (edited(lambda d: d["meta"].update(count="-3")), "its 'count' is '-3'; expected a whole number"),
    "digits": (edited(lambda d: d["meta"].update(count="9" * 5000)), "expected a whole number"),
}


@pytest.mark.parametrize("kind", DAMAGED_GAMMAS)
def test_a_damaged_gamma_is_one_error_with_its_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "g.json"
    GAMMA.save(path)
    damage, reason = DAMAGED_GAMMAS[kind]
    damage(path)
    with pytest.raises(ValueError, match=rf"g\.json (?s:.*){reason}"):
        Gamma.load(path)


def test_every_cut_and_flip_of_a_safetensors_gamma_is_an_error_or_the_same_kind(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    GAMMA.save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"g\.safetensors is"):
            Gamma.load(path)
    path.write_bytes(whole + b"\0" * 8)
    with pytest.raises(ValueError, match="it has 8 bytes too many"):
        Gamma.load(path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            Gamma.load(path)
        except ValueError as error:
            assert "g.safetensors is" in str(error)


def trainer() -> Trainer:
    model = torch.nn.Linear(3, 2)
    images = torch.linspace(-1, 1, 12).reshape(4, 3)

    def loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return model(x).square().mean()

    return Trainer(model, images, torch.zeros(4), steps=4, seed=0, loss=loss, batch=2)


DAMAGED_CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any], dict[str, str]], object], str]] = {
    "no step": (lambda t, m: m.pop("step"), "its step is '', of 4"),
    "step": (lambda t, m: m.update(step="two"), "its step is 'two', of 4"),
    "late": (lambda t, m: m.update(step="5"), "its step is '5', of 4"),
    "scaler": (lambda t, m: m.update(scaler="[]"), "the scaler's state is not one"),
    "no scaler": (lambda t, m: m.pop("scaler"), "the scaler's state is not one"),
    "weight": (lambda t, m: t.pop("model.weight"), "model.weight is missing"),
    # Copied into a parameter it would be spread over it.
    "shape": (lambda t, m: t.update({"average.weight": torch.ones(3)}), r"average.weight is of shape \(3,\)"),
    "nan": (lambda t, m: t.update({"model.bias": torch.full((2,), torch.nan)}), "model.bias is .*not finite"),
    "moment": (lambda t, m: t.pop("exp_avg_sq.bias"), "exp_avg_sq.bias is missing"),
    "moment's shape": (lambda t, m: t.update({"exp_avg.bias": torch.ones(1)}), r"exp_avg.bias is of shape \(1,\)"),
}


@pytest.mark.parametrize("kind", DAMAGED_CHECKPOINTS)
def test_a_damaged_checkpoint_is_one_error_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    first = trainer()
    first.train_step()
    first.save(path)
    tensors, meta = training.read(path)
    damage, reason = DAMAGED_CHECKPOINTS[kind]
    damage(tensors, meta)
    training.write(path, tensors, meta)
    second = trainer()
    before = [p.clone() for p in second.model.parameters()]
    with pytest.raises(ValueError, match=rf"checkpoint\.safetensors is damaged: {reason}"):
        second.load(path)
    assert second.step == 0 and all(map(torch.equal, before, second.model.parameters()))


def test_a_cut_checkpoint_is_an_error_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    trainer().save(path)
    whole = path.read_bytes()
    for length in (0, 7, 8, 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors is no safetensors file, or is damaged"):
            trainer().load(path)
    path.write_bytes(whole)
    again = trainer()
    again.load(path)
    assert again.step == 0


@pytest.mark.parametrize("length", [0, 8, 100, 20_000])
def test_cut_weights_are_an_error_with_their_file(tmp_path: Path, length: int) -> None:
    whole = (demo.WEIGHTS / "classifier.safetensors").read_bytes()
    (tmp_path / "classifier.safetensors").write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"classifier\.safetensors holds no weights of Classifier, or is damaged"):
        demo.load_classifier(tmp_path)
