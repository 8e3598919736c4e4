"""A picture of a plan: its schedule and its coefficients. Needs matplotlib: `pip install "fastdiff-sampler[plot]"`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.files import save_figure
from fastdiff.plan.stage import NREG, REGISTERS


def draw(plan: Any, path: str | Path) -> None:
    """Draw a plan: alpha, sigma and lambda at every stage, and the coefficient of every register in u' and x'."""
    figure = new_figure(figsize=(10, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    stages = np.arange(len(plan.stages))
    alpha = np.array([s.alpha for s in plan.stages])
    sigma = np.array([s.sigma for s in plan.stages])
    top.plot(stages, alpha, "o-", ms=3, color="tab:blue", label="alpha")
    top.plot(stages, sigma, "o-", ms=3, color="tab:orange", label="sigma")
    top.set_ylabel("alpha, sigma")
    right = top.twinx()
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    right.plot(stages[np.isfinite(lam)], lam[np.isfinite(lam)], "s--", ms=3, color="tab:green", label="lambda")
    right.set_ylabel("lambda")
    # Above the axes, where no curve can be.
    handles = [*top.get_lines(), *right.get_lines()]
    top.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8, frameon=False)
    title = f"{plan.method}, {plan.steps} steps, {plan.nfe} evaluations, {plan.space} space"
    top.set_title(title, loc="left", fontsize=11)

    next_u = np.array([s.next_u for s in plan.stages])
    next_x = np.array([s.next_x for s in plan.stages])
    apart = (next_u != next_x).any(axis=1)
    # The cycle has ten colours and x the first: noise must not look like x.
    colours = [f"C{j}" if j < 10 else ("black", "0.45", "0.7")[j - 10] for j in range(NREG)]
    for j in range(NREG):
        if next_u[:, j].any():
            bottom.plot(stages, next_u[:, j], "o-", ms=4, color=colours[j], label=f"u': {REGISTERS[j]}")
        if (next_x[apart, j] != 0).any():
            bottom.plot(stages[apart], next_x[apart, j], "x:", ms=5, color=colours[j], label=f"x': {REGISTERS[j]}")
    bottom.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    if max(np.abs(next_u).max(), np.abs(next_x).max()) > 10.0:
        bottom.set_yscale("symlog", linthresh=1.0)
        bottom.set_ylabel("coefficient (linear within ±1)")
    else:
        bottom.set_ylabel("coefficient")
    bottom.set_xlabel("stage")
    bottom.set_xlim(-0.5, len(stages) - 0.5)
    # Stages are whole numbers, also where there are few.
    bottom.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    bottom.legend(ncols=1, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    save_figure(figure, path)


def new_figure(**options: Any) -> Any:
    """A `matplotlib.figure.Figure`, without a window; ImportError with the remedy where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "fastdiff-sampler[plot]"') from None
    return Figure(**options)
