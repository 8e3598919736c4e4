"""Grids from trajectories: the search against all choices, and the error that the grid saves."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.analytic import mixture
from helpers.run_plan import network, run

from fastdiff import schedules as S
from fastdiff.plan import Plan
from fastdiff.schedules.gits import cheapest
from fastdiff.solvers import plan

MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
SCHEDULE = S.ddpm()


def fine(count: int = 60) -> tuple[SimpleNamespace, Plan]:
    """A trajectory, as `return_trajectory=True` gives it."""
    z = np.random.default_rng(0).standard_normal((64, 2))
    p = plan("dpm2", count, SCHEDULE, "time_quadratic")
    x, seen = [], []

    def watched(u: np.ndarray, stage: Any) -> np.ndarray:
        x.append(u)
        seen.append(MIXTURE.x0(u, stage.alpha, stage.sigma))
        return network(MIXTURE, "eps")(u, stage)

    x.append(run(p, watched, z))
    return SimpleNamespace(times=torch.tensor(p.times), x=torch.tensor(np.array(x)), x0=torch.tensor(np.array(seen))), p


TRACE, _ = fine()


@pytest.mark.parametrize("coeff", [0.8, 1.0, 1.3])
def test_the_search_finds_the_least_of_all_choices(coeff: float) -> None:
    cost = np.random.default_rng(1).uniform(size=(8, 8))
    cost[np.tril_indices(8)] = np.inf
    for steps in range(1, 8):
        every = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1)]
        total = [sum(coeff**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(p))) for p in every]
        assert tuple(cheapest(cost, steps, coeff)) == every[int(np.argmin(total))]


def test_times_are_of_the_trajectory_and_better_than_equal_ones() -> None:
    times = S.gits_times(TRACE, 6)
    assert len(times) == 7 and times[0] == 999.0 and times[-1] == float(TRACE.times[-1])
    assert set(times) <= set(TRACE.times.tolist())
    errors = []
    for spacing in (times, np.linspace(999.0, times[-1], 7)):
        p = plan("ddim", schedule=SCHEDULE, spacing=spacing)
        result = run(p, network(MIXTURE, "eps"), TRACE.x[0].numpy())
        errors.append(np.sqrt(np.mean((result - TRACE.x[-1].numpy()) ** 2)))
    assert errors[0] < 0.7 * errors[1]


BAD: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({}, {"steps": 0}, ValueError, r"steps=0: expected 1 to 60, the steps of the trajectory"),
    ({}, {"steps": 61}, ValueError, r"steps=61: expected 1 to 60"),
    ({}, {"steps": 2.0}, TypeError, r"steps=2.0: expected a whole number"),
    ({}, {"steps": 3, "coeff": 0.0}, ValueError, r"coeff=0.0: expected a number above 0"),
    ({"x0": None}, {"steps": 3}, TypeError, r"trajectory has no x0: expected what sample"),
    ({"x": TRACE.x[1:]}, {"steps": 3}, ValueError, r"expected \(n \+ 1,\)"),
    ({"x": TRACE.x * torch.nan}, {"steps": 3}, ValueError, r"trajectory.x got .*expected finite"),
    ({"times": TRACE.times.flip(0)}, {"steps": 3}, ValueError, r"trajectory.times do not decrease"),
]


@pytest.mark.parametrize(("changed", "arguments", "kind", "message"), BAD)
def test_errors(changed: dict[str, Any], arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        S.gits_times(SimpleNamespace(**{**vars(TRACE), **changed}), **arguments)
