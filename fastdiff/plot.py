"""Pictures of plans, images, trajectories and convergence. Needs matplotlib: `pip install "fastdiff-sampler[plot]"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.plan import NREG, REGISTERS, Plan

Array = Any


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "fastdiff-sampler[plot]"') from None
    from matplotlib.figure import Figure

    del matplotlib
    return Figure


def plot_plan(plan: Plan, path: str | Path) -> None:
    """Draw a plan: alpha, sigma and lambda at every stage, and the coefficient of every register in u' and x'."""
    figure = _pyplot()(figsize=(10, 6.4), layout="constrained")
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
    top.legend(handles=[*top.get_lines(), *right.get_lines()], loc="best", fontsize=8, frameon=False)
    top.set_title(f"{plan.method}, {plan.steps} steps, {plan.nfe} evaluations, {plan.space} space", fontsize=11)

    next_u = np.array([s.next_u for s in plan.stages])
    next_x = np.array([s.next_x for s in plan.stages])
    apart = (next_u != next_x).any(axis=1)
    colours = [f"C{j % 10}" for j in range(NREG)]
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
    bottom.legend(ncols=1, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(path, dpi=150)


def image_grid(images: Array, path: str | Path, *, columns: int | None = None, scale: int = 1) -> None:
    """Write images (B, C, H, W) in [-1, 1], C = 1 or 3, as one grid, enlarged `scale` times without blur."""
    from PIL import Image

    pixels = _pixels(images)
    count, height, width = pixels.shape[:3]
    across = columns or int(np.ceil(np.sqrt(count)))
    down = -(-count // across)
    sheet = np.full((down * (height + 1) + 1, across * (width + 1) + 1, 3), 255, dtype=np.uint8)
    for i, image in enumerate(pixels):
        y, x = divmod(i, across)
        sheet[y * (height + 1) + 1 : (y + 1) * (height + 1), x * (width + 1) + 1 : (x + 1) * (width + 1)] = image
    picture = Image.fromarray(sheet)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)


def trajectory(
    states: Array, path: str | Path, *, predicted: Array | None = None, sample: int = 0, scale: int = 1
) -> None:
    """One sample's way from noise to image: a row of x (steps + 1, B, C, H, W), and a row of the predicted x0 below
    it."""
    x = np.asarray(states)[:, sample]
    rows = [x]
    if predicted is not None:
        x0 = np.asarray(predicted)[:, sample]
        # The result itself stands below the final state.
        rows.append(np.concatenate([x0, x[len(x0) :]]))
    image_grid(np.concatenate(rows), path, columns=len(x), scale=scale)


def convergence(
    errors: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | Path,
    *,
    ylabel: str = "error",
    title: str = "",
) -> None:
    """Error against network evaluations on logarithmic axes; `errors` maps a label to (evaluations, errors)."""
    figure = _pyplot()(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    markers = "osD^vP*X<>"
    for i, (label, (nfe, error)) in enumerate(errors.items()):
        axes.loglog(nfe, error, marker=markers[i % len(markers)], ms=4, lw=1.2, label=label)
    axes.set_xlabel("network evaluations")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=11)
    axes.grid(True, which="both", color="0.92")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def _pixels(images: Array) -> np.ndarray:
    data = np.asarray(images, dtype=np.float64)
    if data.ndim != 4 or data.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {data.shape}; expected (B, C, H, W) with C = 1 or 3, in [-1, 1]")
    eight = np.clip(np.rint((data + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return np.broadcast_to(eight.transpose(0, 2, 3, 1), (*eight.shape[:1], *eight.shape[2:], 3))
