"""The error of fitted plans against that of every method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastdiff.fitting.table import Table
from fastdiff.plan import Plan
from fastdiff.plot import convergence

SHOWN = 8
"""Methods in the picture: those with the least error anywhere."""


def against_methods(tables: Sequence[Table], plans: Sequence[Plan], path: str | Path, title: str = "") -> None:
    """Draw the median distance to the teacher against network evaluations: the fitted plans, from their origins, and
    the best setting of each method, from the same place and from tables of `tune`.

    Raises:
        ValueError: a plan that `fit` did not make, or neither tables nor plans.
    """
    found: dict[str, dict[int, float]] = {}
    for table in tables:
        for score in table:
            own = found.setdefault(score.method, {})
            own[table.steps] = min(score.errors.median, own.get(table.steps, float("inf")))
    for plan in plans:
        for method, median in plan.origin.get("methods", {}).items():
            found.setdefault(method, {}).setdefault(plan.nfe, median)
    best = sorted(found, key=lambda name: min(found[name].values()))[:SHOWN]
    fitted: dict[int, float] = {}
    for plan in plans:
        if plan.origin.get("kind") != "fit" or "errors" not in plan.origin:
            raise ValueError(f"a plan of {plan.method!r} has no errors in its origin; expected one of fastdiff.fit")
        fitted[plan.nfe] = plan.origin["errors"]["after"]["median"]
    curves = {"fitted": fitted} if fitted else {}
    curves.update({name: found[name] for name in best})
    convergence(
        {name: (sorted(own), [own[n] for n in sorted(own)]) for name, own in curves.items()},
        path,
        ylabel="median distance to the teacher",
        title=title,
    )
