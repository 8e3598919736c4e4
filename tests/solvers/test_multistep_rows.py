"""The rows of many steps at once: each as the step alone has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fastdiff.schedules import Point, resolve
from fastdiff.schedules.grids import grid
from fastdiff.solvers import dpm_multistep, dpm_sde, unipc
from fastdiff.solvers.base import HISTORY, ROW, Row, multistep_rows
from fastdiff.solvers.reverse import Reverse

VALUES = (ROW["m"], *HISTORY)


def third(space: str, nodes: Sequence[Point], t: Point) -> Row:
    return dpm_multistep.update(space, nodes, t, VALUES[: len(nodes)], "taylor")


def reverse(space: str, nodes: Sequence[Point], t: Point) -> Row:
    return dpm_sde.update(Reverse(space, nodes[0], t, 0.5), nodes, VALUES, "taylor")


def corrector(space: str, nodes: Sequence[Point], t: Point) -> Row:
    return unipc.update(space, "bh2", ROW["x"], nodes, HISTORY[: len(nodes)], t, ROW["m"])


@pytest.mark.parametrize("update", [third, reverse, corrector])
@pytest.mark.parametrize(
    ("schedule", "spacing", "space"),
    [("ddpm", "time_uniform", "noise"), ("flow", "linspace", "data"), ("edm", "karras", "data")],
)
def test_each_step_is_as_alone(update, schedule: str, spacing: str, space: str) -> None:  # type: ignore[no-untyped-def]
    # flow begins where alpha = 0 and ends where sigma = 0, edm ends there: infinite lambdas at both ends.
    of = resolve(schedule)
    points = of.points(grid(spacing, of, 12))
    orders = [1, 2, 3, 3, 2, 3, 1, 3, 3, 3, 2, 3]
    seen: list[int] = []

    def rows(at: np.ndarray, nodes: Sequence[Point], t: Point) -> Row:
        seen.extend(at.tolist())
        return update(space, nodes, t)

    made = multistep_rows(points, orders, rows)
    assert made.shape == (12, len(ROW["x"])) and sorted(seen) == list(range(12))
    for i, order in enumerate(orders):
        alone = update(space, points[i::-1][:order], points[i + 1])
        # Sums in the same order: a few units in the last place of the largest, as of exp and the small linear system.
        assert np.abs(made[i] - alone).max() <= 1e-14 * np.abs(alone).max()


def test_no_steps() -> None:
    assert multistep_rows(resolve("ddpm").points([9.0]), [], lambda at, nodes, t: ROW["x"]).shape == (0, len(ROW["x"]))
