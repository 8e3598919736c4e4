"""What goes wrong while a folder is written or checked: nothing is left that stands in the way of the right call."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.generation import verify
from fastdiff.generation.workers import this_worker

SHAPE = (3, 6, 5)


def model(x: torch.Tensor, t: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.3 * x)


def make(folder: Any, n: int = 20, network: Any = model, **more: Any) -> bool:
    given = {"shape": (4, *SHAPE), "schedule": "ddpm", "method": "ddim", "steps": 2, "shard": 8, "progress": False}
    return fastdiff.generate(network, n, folder, **{**given, **more})


def mark(folder: Path, **change: Any) -> None:
    """Other content of the second shard's mark."""
    path = folder / "shards" / "00001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def images_of_two_sizes() -> Callable[[torch.Tensor], torch.Tensor]:
    heights = iter(range(4, 40))
    return lambda x: torch.zeros(len(x), next(heights), 4, 3, dtype=torch.uint8)


FIRST: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"guidance": 2.0}, ValueError, "missing cond, uncond"),
    ({"network": lambda x, t: x * torch.nan}, FloatingPointError, "sample 0 has NaN"),
    ({"format": "png", "decode": lambda x: x}, TypeError, "decode returned torch.float32"),
    ({"correct_x0": lambda *a: 3}, ValueError, "correct_x0 returned int"),
]


@pytest.mark.parametrize(("options", "kind", "message"), FIRST, ids=["guidance", "nan", "decode", "correct_x0"])
def test_a_call_that_fails_with_its_first_batch_leaves_no_folder(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Its manifest would refuse the call that is right."""
    with pytest.raises(kind, match=message):
        make(tmp_path / "made", **options)
    assert not (tmp_path / "made").exists()
    assert make(tmp_path / "made") and not verify(tmp_path / "made").problems


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"worker": (0,)}, TypeError, r"worker=\(0,\): expected \(number, count\), such as worker=\(0, 8\)"),
    ({"worker": 3}, TypeError, r"worker=3: expected \(number, count\)"),
    ({"worker": "0/2"}, TypeError, r"worker='0/2': expected \(number, count\)"),
    ({"worker": (0, 1, 2)}, TypeError, r"worker=\(0, 1, 2\): expected \(number, count\)"),
    ({"decode": 3}, TypeError, "decode=3: expected a function of samples"),
    ({"progress": 3}, TypeError, "progress=3: expected True or False"),
    ({"folder": 3}, TypeError, "out=3: expected a folder, such as 'samples'"),
    ({"network": torch.nn.Identity}, TypeError, r"model is the class Identity; expected one of it: Identity\(...\)"),
    ({"network": fastdiff.Sampler("ddim", 2, schedule="ddpm")}, TypeError, "model is a Sampler; expected the network"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=[str(o)[:30] for o, _, _ in BAD])
def test_bad_arguments_say_what_is_right(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make(**{"folder": tmp_path / "made", **options})
    assert not (tmp_path / "made").exists()


def test_an_array_of_slurm_with_a_step_of_0() -> None:
    array = {f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", "3"), ("COUNT", "8"), ("STEP", "0"))}
    with pytest.raises(ValueError, match=r"SLURM_ARRAY_TASK_STEP=0: expected an array without gaps"):
        this_worker(array)


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    sizes = r"decode made torch.uint8 \(4, 4, 3\) and torch.uint8 \(5, 4, 3\) by samples 4 to 7"
    with pytest.raises(ValueError, match=sizes):
        make(tmp_path / "one", format="png", decode=images_of_two_sizes())


def test_images_of_several_sizes_by_several_workers_are_no_archive(tmp_path: Path) -> None:
    def decoded(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def decode(x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), size, 4, 3, dtype=torch.uint8)

        return decode

    assert not make(tmp_path, format="npz", decode=decoded(4), worker=(0, 2))
    with pytest.raises(ValueError, match=r"the shards hold .*: expected 20 images of one size"):
        make(tmp_path, format="npz", decode=decoded(5), worker=(1, 2))
    assert not (tmp_path / "samples.npz").exists()


MARKS = [{"files": [1]}, {"files": 3}, {"files": {}}, {"files": {"../x.npy": "0"}}, {"files": {"/x.npy": "0"}}]


@pytest.mark.parametrize("change", MARKS, ids=str)
def test_a_damaged_mark_is_told_of_and_its_shard_made_again(tmp_path: Path, change: dict[str, Any]) -> None:
    make(tmp_path, format="npz")
    mark(tmp_path, **change)
    (problem,) = verify(tmp_path).problems
    assert problem.startswith("samples 8 to 15: ") and "00001.json is damaged" in problem
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match=r"00001.json is damaged.*delete it and run the generation again"):
        make(tmp_path, format="npz")
    (tmp_path / "shards" / "00001.json").unlink()
    assert make(tmp_path, format="npz") and not verify(tmp_path).problems
    assert len(np.load(tmp_path / "samples.npz")["arr_0"]) == 20


@pytest.mark.parametrize("content", ["{", '{"files": 3}', "[]"])
def test_a_damaged_index_is_one_of_the_problems(tmp_path: Path, content: str) -> None:
    make(tmp_path)
    (tmp_path / "index.json").write_text(content)
    assert list(verify(tmp_path).problems) == ["index.json is damaged; delete index.json and run again"]


@pytest.mark.parametrize("change", [{"n": -3}, {"shard": 0}])
def test_a_damaged_manifest_is_told_of(tmp_path: Path, change: dict[str, int]) -> None:
    make(tmp_path)
    told = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**told, **change}))
    with pytest.raises(ValueError, match=r"manifest.json is damaged \(n="):
        verify(tmp_path)


def test_a_file_of_a_shard_that_is_not_finished_is_no_stranger(tmp_path: Path) -> None:
    """A kill between a shard's file and its mark leaves it."""
    make(tmp_path)
    (tmp_path / "shards" / "00001.json").unlink()
    assert list(verify(tmp_path).problems) == ["samples 8 to 15 are missing: run the generation again, it goes on"]


def test_a_directory_of_many_samples_is_not_listed_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 listings of 50,000 files would take longer than the samples."""
    listed, real = list[str](), os.scandir

    def scandir(path: Any = ".") -> Any:
        listed.append(os.path.basename(os.fspath(path)))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    make(tmp_path, format="png")
    assert listed.count("images") <= 3


def test_the_bar_ends_with_what_all_workers_have_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if not (tmp_path / "shards" / "00001.json").exists():
            assert not make(tmp_path, worker=(1, 2))
        return model(x, t)

    assert make(tmp_path, network=network, worker=(0, 2), progress=True)
    assert "20/20" in capsys.readouterr().err.splitlines()[-1]


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    make(tmp_path, format="png")
    (tmp_path / "shards" / "00001.json").unlink()
    left = [tmp_path / "images" / ".0000009.png.x1.partial", tmp_path / "shards" / ".00001.json.x2.partial"]
    other = tmp_path / "images" / ".0000001.png.x3.partial"
    for path in (*left, other):
        path.write_bytes(b"")
    make(tmp_path, format="png")
    # The other's shard is not made again: it may be another worker's, at this moment.
    assert [path.exists() for path in (*left, other)] == [False, False, True]
