"""`tune`: the table of settings, and the settings themselves."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.fitting import SMALL, Torch

import fastdiff
from fastdiff.fitting.candidates import candidates
from fastdiff.fitting.teacher import teacher_times

TUNED = {k: v for k, v in SMALL.items() if k not in ("validation", "budget")}


def test_the_table_is_sorted_and_true() -> None:
    table = fastdiff.tune(Torch(), 5, **TUNED)
    means = [s.errors.mean for s in table[:12]]
    assert means == sorted(means) and len(table) > 12
    best = table[0]
    x = fastdiff.randn((48, 3), seed=0, prior=True, dtype=torch.float64)
    run = {"steps": 5, "method": best.method, "spacing": best.spacing, "t_end": 0.0, **best.options}
    found = fastdiff.sample(Torch(), x, dtype=torch.float64, **run)
    truth = fastdiff.sample(Torch(), x, dtype=torch.float64, method="ode", rtol=1e-8, atol=1e-8)
    gap = (found - truth).square().mean(1).sqrt()
    # The teacher's own error stands between the two.
    assert float(gap.mean()) == pytest.approx(best.errors.mean, abs=3 * table.teacher_error)


def test_it_prints_and_plots(tmp_path) -> None:
    table = fastdiff.tune(Torch(), 5, **TUNED)
    text = str(table)
    assert f"{len(table)} settings of 5 evaluations" in text and "dpm2, time_quadratic" in text
    assert "... and" not in text or len(table) > 20
    table.plot(tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["ddpm", "vp_linear", "flow", "edm", "ve"])
def test_every_candidate_has_the_evaluations_and_ends(name: str) -> None:
    s = fastdiff.schedules.resolve(name)
    made = candidates(s, s.t_max, s.t_min, 5)
    assert len(made) > 10
    assert all(c.plan.nfe == 5 and not c.plan.stochastic for c in made)
    assert all(c.plan.times[0] == s.t_max and c.plan.times[-1] == s.t_min for c in made)
    assert len({(c.plan.times, c.plan.stages) for c in made}) == len(made)


def test_two_evaluations_a_step_count_as_two() -> None:
    s = fastdiff.schedules.ddpm()
    assert {c.plan.steps for c in candidates(s, s.t_max, s.t_min, 6, ["heun"])} == {3}


@pytest.mark.parametrize("name", ["ddpm", "cosine", "vp_linear", "subvp", "flow", "edm", "ve"])
@pytest.mark.parametrize("steps", [20, 160])
def test_the_teachers_grid(name: str, steps: int) -> None:
    s = fastdiff.schedules.resolve(name)
    times = teacher_times(s, s.t_max, s.t_min, steps)
    assert len(times) == steps + 1 and times[0] == s.t_max and times[-1] == s.t_min
    assert all(a > b for a, b in itertools.pairwise(times))
