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
    figure.savefig(path, dpi=150)


def image_grid(images: Array, path: str | Path, *, columns: int | None = None, scale: int = 1) -> None:
    """Write images (B, C, H, W) in [-1, 1], C = 1 or 3, as one grid, enlarged `scale` times without blur.

    Raises:
        ValueError: another shape, NaN or Inf, `columns` or `scale` below 1.
        TypeError: images that are not floating point.
    """
    from PIL import Image

    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise ValueError(f"{name} got {value!r}; expected a whole number, at least 1")
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
    """One sample's way from noise to image: a row of x (steps + 1, B, C, H, W), and a row of the predicted x0 below it.

    Args:
        states: a `Trajectory`, or the `x` of one.
        predicted: its `x0`; default: the trajectory's own, and with `x` alone no second row.

    Raises:
        ValueError: `sample` is not in the batch, or as for `image_grid`.
    """
    if hasattr(states, "x0"):
        # By its fields, as a Trajectory's module needs torch and this one does not.
        states, predicted = states.x, states.x0 if predicted is None else predicted
    every = _host(states)
    if every.ndim != 5 or not 0 <= sample < every.shape[1]:
        raise ValueError(
            f"sample={sample!r} of states with shape {every.shape}; expected (steps + 1, B, C, H, W), sample below B"
        )
    x = every[:, sample]
    rows = [x]
    if predicted is not None:
        x0 = _host(predicted)[:, sample]
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
    """Error against network evaluations on logarithmic axes; `errors` maps a label to (evaluations, errors).

    Raises:
        ValueError: no label, lists of different lengths, or an error that is not above 0.
    """
    if not errors:
        raise ValueError("errors is empty; expected {label: (evaluations, errors)}")
    for label, (nfe, error) in errors.items():
        if len(nfe) != len(error) or not all(e > 0 for e in error):
            raise ValueError(
                f"{label!r} has {len(nfe)} evaluations and errors {list(error)}; expected as many errors, all above 0"
            )
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


def _host(values: Array) -> np.ndarray:
    """An array, or a tensor of any device and dtype."""
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        return np.asarray(tensor.double() if tensor.dtype.is_floating_point else tensor)
    return np.asarray(values)


def _pixels(images: Array) -> np.ndarray:
    data = _host(images)
    if data.dtype.kind != "f":
        raise TypeError(f"images have dtype {data.dtype}; expected floating point in [-1, 1]: images / 127.5 - 1")
    if not np.isfinite(data).all():
        raise ValueError(
            "images have NaN or Inf; expected numbers, in [-1, 1]: sample(..., check_finite=True) finds where"
        )
    if data.ndim != 4 or data.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {data.shape}; expected (B, C, H, W) with C = 1 or 3, in [-1, 1]")
    eight = np.clip(np.rint((data + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return np.broadcast_to(eight.transpose(0, 2, 3, 1), (*eight.shape[:1], *eight.shape[2:], 3))
