"""What a run reports, in one line."""

from __future__ import annotations

import pytest
import torch

import fastdiff


@pytest.mark.parametrize("method", ["dpm3", "ode"])
def test_repr_of_a_trajectory_is_one_line(method: str) -> None:
    steps = 7 if method == "dpm3" else None
    _, run = fastdiff.sample(
        lambda x, t: 0.1 * x, shape=(2, 3, 8, 8), steps=steps, method=method, return_trajectory=True
    )
    n = len(run.x0)
    assert n == steps or method == "ode"
    first, last = f"{float(run.times[0]):g}", f"{float(run.times[-1]):g}"
    assert repr(run) == (
        f"Trajectory({n} predictions, times {first} to {last}, x {tuple(run.x.shape)}, x0 ({n}, 2, 3, 8, 8), "
        "torch.float32)"
    )
    times, x, x0 = run
    assert isinstance(run, tuple) and torch.equal(x, run.x) and x0 is run.x0 and times is run.times


def test_repr_of_an_adaptive_runs_info_is_one_line() -> None:
    _, info = fastdiff.sample(lambda x, t: 0.1 * x, shape=(3, 4), method="ode", return_info=True)
    accepted, rejected = int(info.accepted[0]), int(info.rejected[0])
    assert repr(info) == f"Info(3 samples, {accepted} accepted and {rejected} rejected steps each, nfe={info.nfe})"
    mixed = info._replace(accepted=torch.tensor([4, 9, 5]))
    assert repr(mixed).startswith(f"Info(3 samples, 4 to 9 accepted and {rejected} rejected steps each")
