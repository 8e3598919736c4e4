"""Generation: exactly n samples, the same bytes by any number of workers and after any kill, and every format."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fastdiff
from fastdiff import guidance
from fastdiff.generation import verify
from fastdiff.generation.workers import this_worker

SHAPE = (3, 6, 5)


class Network(torch.nn.Module):
    """Its output depends on each sample alone, and on nothing of its neighbours."""

    sample_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        shift = 0.0 if y is None else 0.05 * y[:, None, None, None]
        return torch.tanh(self.scale * x + shift)


MODEL = Network().eval()
OPTIONS: dict[str, Any] = {
    "schedule": "ddpm",
    "method": "ddpm",
    "steps": 4,
    "batch": 8,
    "seed": 5,
    "progress": False,
    "model_kwargs": lambda i: {"y": i % 10},
}


def make(folder: Path, n: int = 45, worker: tuple[int, int] = (0, 1), **more: Any) -> bool:
    return fastdiff.generate(MODEL, n, folder, worker=worker, **{"shard": 16, **OPTIONS, **more})


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def direct(first: int, count: int) -> torch.Tensor:
    """Samples of one seed by `sample` alone."""
    y = torch.arange(first, first + count) % 10
    return fastdiff.sample(
        MODEL,
        shape=(count, *SHAPE),
        seed=5,
        first_sample=first,
        schedule="ddpm",
        method="ddpm",
        steps=4,
        model_kwargs={"y": y},
    )


def test_each_sample_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    assert make(tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [len(load_file(f)["samples"]) for f in files] == [16, 16, 13]
    whole = torch.cat([load_file(f)["samples"] for f in files])
    # Another batch than the run's 8: this network's rows do not depend on it. 1e-6: one rounding of tanh's vector code.
    torch.testing.assert_close(whole, direct(0, 45), rtol=0, atol=2e-6)
    checked = verify(tmp_path)
    assert (checked.n, checked.found, list(checked.problems)) == (45, 45, [])


def test_guidance_takes_its_conditions_by_number(tmp_path: Path) -> None:
    def halves(i: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": i % 10}

    plain = {name: value for name, value in OPTIONS.items() if name != "model_kwargs"}
    # With guidance 1 the unconditional half has weight 0.
    assert fastdiff.generate(
        MODEL, 45, tmp_path, cond=halves, uncond=lambda i: {"y": 0 * i}, guidance=1.0, shard=64, **plain
    )
    whole = load_file(tmp_path / "samples-00000.safetensors")["samples"]
    torch.testing.assert_close(whole, direct(0, 45), rtol=0, atol=2e-6)


@pytest.mark.parametrize("format", ["safetensors", "npz", "png", "webdataset"])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, format: str) -> None:
    assert make(tmp_path / "1", format=format)
    once = content(tmp_path / "1")
    for workers in (2, 4, 7):
        folder = tmp_path / str(workers)
        # Fewer shards than workers, too; the last to finish joins them.
        order = random.Random(workers).sample(range(workers), workers)
        ends = [make(folder, format=format, worker=(w, workers)) for w in order]
        assert ends[-1]
        assert content(folder) == once
        assert not verify(folder).problems


def test_another_number_of_workers_goes_on(tmp_path: Path) -> None:
    assert make(tmp_path / "once")
    assert not make(tmp_path / "twice", worker=(1, 2))
    assert make(tmp_path / "twice", worker=(0, 1))
    assert content(tmp_path / "twice") == content(tmp_path / "once")


def test_finished_shards_are_not_made_again(tmp_path: Path) -> None:
    calls = 0

    class Counting(Network):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return super().forward(x, t, y)

    model = Counting().eval()
    run = {**OPTIONS, "shard": 16}
    assert fastdiff.generate(model, 45, tmp_path, **run)
    assert calls == 4 * 6  # 4 steps of 6 batches
    assert fastdiff.generate(model, 45, tmp_path, **run)
    assert calls == 4 * 6
    (tmp_path / "shards" / "00001.json").unlink()
    assert fastdiff.generate(model, 45, tmp_path, **run)
    assert calls == 4 * 8


def test_formats_hold_the_same_images(tmp_path: Path) -> None:
    for format in ("safetensors", "npz", "png", "webdataset"):
        assert make(tmp_path / format, format=format)
    samples = torch.cat([load_file(f)["samples"] for f in sorted((tmp_path / "safetensors").glob("*.safetensors"))])
    # guided-diffusion's image_sample.py: ((sample + 1) * 127.5).clamp(0, 255).to(uint8), channels last.
    images = ((samples + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with np.load(tmp_path / "npz" / "samples.npz", allow_pickle=False) as archive:
        assert list(archive) == ["arr_0"]
        np.testing.assert_array_equal(archive["arr_0"], images)
    files = sorted((tmp_path / "png" / "images").glob("*.png"))
    assert [f.name for f in files] == [f"{i:07d}.png" for i in range(45)]
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), images)
    members = {}
    for tar in sorted((tmp_path / "webdataset").glob("*.tar")):
        with tarfile.open(tar) as archive:
            for entry in archive:
                stream = archive.extractfile(entry)
                assert stream is not None
                members[entry.name] = stream.read()
    assert len(members) == 90
    assert json.loads(members["0000044.json"]) == {"index": 44, "seed": 5}
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(members["0000044.png"]))), images[44])


def test_a_decoder_makes_images_of_latents(tmp_path: Path) -> None:
    def decode(x: torch.Tensor) -> np.ndarray:
        assert len(x) == 8, "a decoder sees whole batches"
        return np.full((len(x), 2, 2, 1), 7, np.uint8)

    assert make(tmp_path, n=10, format="npz", decode=decode)
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive["arr_0"].shape == (10, 2, 2, 1)


def test_a_network_without_a_stated_shape(tmp_path: Path) -> None:
    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.1 * x

    assert fastdiff.generate(
        network, 5, tmp_path, shape=(4, 7), schedule="ddpm", steps=2, method="ddim", progress=False
    )
    whole = load_file(tmp_path / "samples-00000.safetensors")["samples"]
    assert whole.shape == (5, 7)


# The process below runs this file's `make`; it is killed at random moments, and run again until it is done.
WORKER = """
import sys, pathlib, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import test_generate
test_generate.make(pathlib.Path(sys.argv[2]), n=int(sys.argv[3]), worker=(int(sys.argv[4]), 3), format="png")
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    n, kills = 240, 2
    assert make(tmp_path / "once", n=n, format="png")
    rng = random.Random(0)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(folder), str(n)]

    def start(worker: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, str(worker)], env={**os.environ, "OMP_NUM_THREADS": "1"})

    running = [start(w) for w in range(3)]
    marks = folder / "shards"
    for _ in range(kills):
        # After the next shard is done, at some moment of the following.
        done = len(list(marks.glob("*.json"))) if marks.is_dir() else 0
        limit = time.monotonic() + 60
        while time.monotonic() < limit and (not marks.is_dir() or len(list(marks.glob("*.json"))) == done < 15):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        w = rng.randrange(3)
        running[w].send_signal(signal.SIGKILL)
        running[w].wait()
        running[w] = start(w)
    for process in running:
        assert process.wait(120) == 0
    assert content(folder) == content(tmp_path / "once")
    assert not verify(folder).problems


HALVES: dict[str, Any] = {"model_kwargs": None, "cond": lambda i: {"y": i % 10}, "uncond": lambda i: {"y": 0 * i}}


def forms(scale: float, weight: float) -> dict[str, Any]:
    """Functions and networks that are made anew in every process, as names of its memory are."""

    class Weak(Network):
        pass

    weak = Weak().eval()
    torch.nn.init.constant_(weak.scale, weight)
    return {
        "number": guidance.ClassifierFree(lambda t: scale + 0.001 * t),
        "classifier": guidance.ClassifierScore(lambda x, t: x * scale),
        "another network": guidance.Autoguidance(scale, weak),
    }


@pytest.mark.parametrize("name", ["number", "classifier", "another network"])
def test_guidance_with_functions_is_known_again(tmp_path: Path, name: str) -> None:
    """By the values that a function of time has in the plan, and by a network's weights."""
    given: dict[str, Any] = {"number": HALVES, "classifier": dict.fromkeys(HALVES), "another network": {}}[name]
    for _ in range(2):
        assert make(tmp_path, n=16, **{**given, "guidance": forms(1.5, 0.2)[name]})
    if name != "classifier":
        with pytest.raises(ValueError, match="run="):
            make(tmp_path, n=16, **{**given, "guidance": forms(1.6, 0.25)[name]})


def test_conditions_that_another_device_rounds_otherwise(tmp_path: Path) -> None:
    def embedded(error: float) -> Any:
        return lambda i: {"y": (i % 10 + error).to(torch.float32)}

    assert make(tmp_path, model_kwargs=embedded(0.0))
    assert make(tmp_path, model_kwargs=embedded(1e-5))


def _damage_file(folder: Path) -> str:
    file = folder / "samples-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    return r"samples 16 to 31: samples-00001.safetensors is damaged; delete .*00001.json and run again"


def _lose_file(folder: Path) -> str:
    (folder / "samples-00002.safetensors").unlink()
    return r"samples 32 to 44: samples-00002.safetensors is missing"


def _lose_mark(folder: Path) -> str:
    (folder / "shards" / "00000.json").unlink()
    return r"samples 0 to 15 are missing: run the generation again, it goes on"


def _lose_index(folder: Path) -> str:
    (folder / "index.json").unlink()
    return r"index.json is missing"


def _add_file(folder: Path) -> str:
    (folder / "more.safetensors").write_bytes(b"")
    return r"more.safetensors is no file of this generation"


def _shift_mark(folder: Path) -> str:
    mark = folder / "shards" / "00001.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "first": 0}))
    return r"00001.json says samples 0 to 32"


def _break_mark(folder: Path) -> str:
    (folder / "shards" / "00001.json").write_text("{")
    return r"00001.json is damaged .*: delete it and run the generation again"


def _exchange_shard(folder: Path) -> str:
    other = folder / "other"
    make(other, seed=6)
    for name in ("samples-00001.safetensors", "shards/00001.json"):
        (folder / name).write_bytes((other / name).read_bytes())
    shutil.rmtree(other)
    return r"samples 16 to 31: 00001.json is of another generation; delete .*00001.json and run again"


def _exchange_index(folder: Path) -> str:
    index = folder / "index.json"
    told = json.loads(index.read_text())
    told["files"]["samples-00001.safetensors"] = "0" * 64
    index.write_text(json.dumps(told))
    return r"index.json lists other files than the shards; delete index.json and run again"


HARMS = [
    _damage_file,
    _lose_file,
    _lose_mark,
    _lose_index,
    _add_file,
    _shift_mark,
    _break_mark,
    _exchange_shard,
    _exchange_index,
]


def test_a_shard_of_another_generation_is_not_taken(tmp_path: Path) -> None:
    assert make(tmp_path)
    _exchange_shard(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match=r"00001.json is of another generation: delete it, and run again"):
        make(tmp_path)
    (tmp_path / "shards" / "00001.json").unlink()
    assert make(tmp_path)
    assert not verify(tmp_path).problems


@pytest.mark.parametrize("harm", HARMS)
def test_verify_sees_what_is_wrong(tmp_path: Path, harm: Callable[[Path], str]) -> None:
    assert make(tmp_path)
    told = harm(tmp_path)
    problems = "\n".join(verify(tmp_path).problems)
    assert re.search(told, problems), problems


def test_verify_refuses_what_is_no_generation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no manifest\.json: give the folder"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="expected n, shard and samples"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 6}, r"seed=5 \(now 6\)"),
        ({"steps": 5}, "sampler="),
        ({"batch": 16}, r"batch=8 \(now 16\)"),
        ({"format": "npz"}, r"samples='safetensors' \(now 'npz'\)"),
        ({"n": 46}, r"n=45 \(now 46\)"),
        ({"check_finite": True}, "run="),
        ({"backend": "reference"}, r"backend=None \(now 'reference'\)"),
        ({"model_kwargs": lambda i: {"y": i % 5}}, "conditions="),
        ({"model_kwargs": lambda i: {"y": (i % 10).float()}}, "conditions="),
        ({"guidance": lambda t: 1.0 + 0.01 * t, **HALVES}, "conditions=.*run="),
    ],
)
def test_a_folder_of_another_generation_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    assert make(tmp_path)
    with pytest.raises(ValueError, match="holds another generation.*" + told):
        make(tmp_path, **change)


def test_an_adaptive_method_with_other_options_is_refused(tmp_path: Path) -> None:
    adaptive = {"method": "ode", "steps": None, "n": 8}
    for _ in range(2):
        assert make(tmp_path, **adaptive)
    with pytest.raises(ValueError, match=r"holds another generation.*sampler="):
        make(tmp_path, t_start=900.0, **adaptive)


def test_another_network_is_refused(tmp_path: Path) -> None:
    assert make(tmp_path)
    other = Network().eval()
    torch.nn.init.constant_(other.scale, 0.4)
    with pytest.raises(ValueError, match="network="):
        fastdiff.generate(other, 45, tmp_path, worker=(0, 1), **{"shard": 16, **OPTIONS})


def test_a_sample_that_is_not_finite_is_named(tmp_path: Path) -> None:
    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where(y[:, None] == 9, torch.nan, x)

    with pytest.raises(FloatingPointError, match="sample 9 has NaN or Inf"):
        fastdiff.generate(network, 12, tmp_path, shape=(4, 3), **{k: v for k, v in OPTIONS.items() if k != "batch"})
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"n": 0}, ValueError, "n=0: expected an integer from 1"),
        ({"seed": [1, 2]}, TypeError, "seed=.*expected an integer"),
        ({"format": "jpeg"}, ValueError, "format"),
        ({"noise": lambda draw, like: like}, TypeError, "generate takes no noise"),
        ({"cond": {"y": 1}}, TypeError, "expected a function of the samples' numbers"),
        (
            {"model_kwargs": lambda i: {"y": [1.0, 2.0][i]}},
            TypeError,
            r"model_kwargs failed \[TypeError: .*\]: it is called with the numbers of a whole batch, an int64 tensor",
        ),
        ({"model_kwargs": lambda i: i}, TypeError, "model_kwargs returned tensor.*expected a dict"),
        ({"shard": 0}, ValueError, "shard=0"),
        ({"batch": 0}, ValueError, "batch=0"),
        ({"worker": (3, 3)}, ValueError, "worker 3 of 3: expected a number from 0 to 2"),
        (
            {"decode": lambda x: x[:3]},
            ValueError,
            r"decode returned shape \(3, 3, 6, 5\): expected \(8, ...\), one for",
        ),
        ({"decode": lambda x: [1]}, TypeError, r"decode returned list: expected a tensor or array \(8, ...\)"),
        ({"format": "png", "decode": lambda x: x}, TypeError, "decode returned torch.float32: expected a uint8"),
        ({"format": "png", "decode": lambda x: x[:2].byte()}, ValueError, r"decode returned shape \(2, 3, 6, 5\)"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        make(tmp_path, **options)


def test_latents_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(4, 7\) are no images.*give decode="):
        fastdiff.generate(lambda x, t: x, 4, tmp_path, shape=(4, 7), format="png", schedule="ddpm", progress=False)


def test_an_unknown_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot tell the shape of a sample: give shape="):
        fastdiff.generate(lambda x, t: x, 4, tmp_path, schedule="ddpm", progress=False)


def slurm_array(task: int, count: int, **more: str) -> dict[str, str]:
    return {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count), **more}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, (9, 16, 1)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3"}, (2, 4, 0)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3"}, (3, 8, 3)),
        # --array=3-9:2
        (slurm_array(7, 4, SLURM_ARRAY_TASK_MIN="3", SLURM_ARRAY_TASK_STEP="2"), (2, 4, 0)),
        # Both divide the work where srun or torchrun starts several in each task of an array,
        (slurm_array(1, 2, SLURM_PROCID="3", SLURM_STEP_NUM_TASKS="4", SLURM_LOCALID="3"), (7, 8, 3)),
        (slurm_array(1, 2, RANK="0", WORLD_SIZE="4", LOCAL_RANK="0", SLURM_PROCID="0"), (4, 8, 0)),
        # and not where its script asked for tasks and starts none.
        (slurm_array(1, 2, SLURM_PROCID="0", SLURM_NTASKS="4"), (1, 2, 0)),
        # torchrun beside srun, which started it.
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (1, 2, 0)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3, 0)),
    ],
)
def test_launchers(environment: dict[str, str], expected: tuple[int, int, int]) -> None:
    assert this_worker(environment) == expected


def test_a_launcher_that_says_no_number() -> None:
    with pytest.raises(ValueError, match=r"RANK='x'.*expected whole numbers"):
        this_worker({"RANK": "x", "WORLD_SIZE": "2"})
    # --array=1,3,7: which of the three is the last?
    with pytest.raises(ValueError, match=r"SLURM_ARRAY_TASK_ID=7.*expected an array without gaps.*--worker 0/8"):
        this_worker(slurm_array(7, 3, SLURM_ARRAY_TASK_MIN="1"))


def test_two_processes_that_are_the_same_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One removes what the other has begun to write: that one ends with the reason, and its shard is made again."""
    real, left = os.fsync, [4]

    def fsync(handle: int) -> None:
        real(handle)
        left[0] -= 1
        if not left[0]:
            for partial in tmp_path.glob(".samples-*.partial"):
                partial.unlink()

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RuntimeError, match="two of them are the same worker; give each its own number"):
        make(tmp_path)
    assert make(tmp_path) and not verify(tmp_path).problems


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="the system has no flock")

    def flock(file: Any, how: int) -> None:
        raise OSError(38, "Function not implemented")

    assert make(tmp_path / "locked", format="npz")
    monkeypatch.setattr(fcntl, "flock", flock)
    assert not make(tmp_path / "free", format="npz", worker=(1, 2))
    assert make(tmp_path / "free", format="npz", worker=(0, 2))
    assert content(tmp_path / "free") == content(tmp_path / "locked")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file, nothing half written stays, and the same call goes on later."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if list(tmp_path.glob(".samples-00001*")):
            with open("/dev/full", "wb") as full:
                full.write(b"0")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"No space left on device.*samples-00001"):
            make(tmp_path)
    assert not list(tmp_path.rglob("*.partial")) and verify(tmp_path).found == 16
    assert make(tmp_path) and not verify(tmp_path).problems
