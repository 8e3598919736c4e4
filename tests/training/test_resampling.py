"""Loss-aware times: the published program's numbers, unbiased weights, checkpoints, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiff.losses import LossSecondMoment


def seen(rounds: int, size: np.ndarray, **options: Any) -> LossSecondMoment:
    """Each time seen `rounds` times, with losses size·1, size·2, …"""
    made = LossSecondMoment(len(size), **options)
    for i in range(rounds):
        made.update(np.arange(len(size)), torch.from_numpy(size * (i + 1)))
    return made


def test_probabilities_by_hand() -> None:
    size = np.array([1.0, 4.0, 0.5])
    times = seen(3, size, history=2, uniform_prob=0.1)
    # The last two losses: size·2 and size·3; the root of their mean square is proportional to size.
    np.testing.assert_allclose(times.probabilities(), 0.9 * size / 5.5 + 0.1 / 3, rtol=1e-15)
    # One more of the first alone: 3 and 10.
    times.update([0], torch.tensor([10.0]))
    root = np.sqrt([(9 + 100) / 2, 16 * 6.5, 0.25 * 6.5])
    np.testing.assert_allclose(times.probabilities(), 0.9 * root / root.sum() + 0.1 / 3, rtol=1e-15)


def test_uniform_until_every_time_has_its_history() -> None:
    times = seen(9, np.array([1.0, 5.0]))
    times.update([0], torch.tensor([1.0]))
    assert times.probabilities().tolist() == [0.5, 0.5]
    times.update([1], torch.tensor([1.0]))
    assert times.probabilities()[1] > 0.8
    # Losses of 0 everywhere say nothing.
    assert seen(10, np.zeros(4)).probabilities().tolist() == [0.25] * 4


def test_weights_keep_the_mean() -> None:
    """E[weight·f(t)] is the plain mean of f; the weighted losses vary less than f at uniform times."""
    f = np.geomspace(1.0, 1000.0, 20)
    times = seen(10, f)
    t, weight = times.sample(200_000, torch.Generator().manual_seed(1))
    assert t.dtype == torch.int64 and weight.dtype == torch.float32
    weighted = weight.double() * torch.from_numpy(f)[t]
    error = weighted.std().item() / np.sqrt(len(weighted))
    assert weighted.mean().item() == pytest.approx(f.mean(), abs=5 * error)
    # p ~ f: what is left is the floor of 0.001 on each probability.
    assert weighted.std().item() < 0.02 * f.std()
    counts = np.bincount(t.numpy(), minlength=20) / len(t)
    np.testing.assert_allclose(counts, times.probabilities(), atol=5 * np.sqrt(0.25 / len(t)))


def test_a_generator_repeats() -> None:
    times = seen(10, np.arange(1.0, 9.0))
    a, b, c = (times.sample(50, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_state_survives_a_file(tmp_path: Path) -> None:
    times = seen(11, np.array([1.0, 2.0, 7.0]), history=4)
    save_file(times.state_dict(), tmp_path / "times.safetensors")
    times.update([0, 1, 2], torch.tensor([100.0, 1.0, 1.0]))
    other = LossSecondMoment(3, history=4)
    other.load_state_dict(load_file(tmp_path / "times.safetensors"))
    assert not np.array_equal(other.probabilities(), times.probabilities())
    # The ring goes on where it was.
    other.update([0, 1, 2], torch.tensor([100.0, 1.0, 1.0]))
    np.testing.assert_array_equal(other.probabilities(), times.probabilities())


WORKER = """
import sys, numpy as np, torch
from fastdiff.losses import LossSecondMoment
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method="file://" + folder + "/store", rank=rank, world_size=2)
times = LossSecondMoment(2, history=2)
for i in range(2):
    # The second process sees one time more.
    t, losses = ([0], [1.0 + i]) if rank == 0 else ([1, 1], [3.0, 4.0])
    times.update(t, torch.tensor(losses))
np.save(folder + f"/{rank}.npy", times.probabilities())
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without torch.distributed")
def test_processes_share_what_they_saw(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    first, second = (np.load(tmp_path / f"{rank}.npy") for rank in range(2))
    root = np.sqrt([(1 + 4) / 2, (9 + 16) / 2])
    np.testing.assert_allclose(first, 0.999 * root / root.sum() + 0.0005, rtol=1e-15)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LossSecondMoment(0), "num_times=0: expected an integer of at least 1"),
        (lambda: LossSecondMoment(5, history=0), "history=0: expected an integer of at least 1"),
        (lambda: LossSecondMoment(5, uniform_prob=1.5), "uniform_prob=1.5: expected a probability"),
        (lambda: LossSecondMoment(5).update([1, 2], torch.ones(3)), r"t has shape \(2,\) and losses \(3,\).*'none'"),
        (lambda: LossSecondMoment(5).update([5], torch.ones(1)), r"t got \[5\]; expected integers from 0 to 4"),
        (lambda: LossSecondMoment(5).update([0.5], torch.ones(1)), r"t got \[0.5\]; expected integers"),
        (
            lambda: LossSecondMoment(5).update([1, 3], torch.tensor([1.0, float("nan")])),
            "losses got nan at time 3",
        ),
        (
            lambda: LossSecondMoment(5).load_state_dict(LossSecondMoment(4).state_dict()),
            "the state is of num_times=4, history=10; expected 5 and 10",
        ),
    ],
)
def test_errors_say_what_is_wrong(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
