"""What a run reports, in one line."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff.inversion import reconstruct


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


def test_repr_of_a_reconstruction_is_one_line() -> None:
    x = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    got = reconstruct(fastdiff.Sampler("ddim", 5), lambda x, t: 0.1 * x, x)
    low, high = (f"{float(f(got.max_error)):.5g}" for f in (torch.min, torch.max))
    assert repr(got).startswith("Reconstruction(2 samples, x (2, 3, 4), torch.float32, mean_error ")
    assert repr(got).endswith(f", max_error {low} to {high})" if low != high else f", max_error {low})")
    assert "\n" not in repr(got) and len(repr(got)) < 150
    assert repr(got._replace(mean_error=torch.tensor([0.25, 0.5]))).split("mean_error ")[1].startswith("0.25 to 0.5,")
