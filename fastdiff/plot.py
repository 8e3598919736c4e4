"""Pictures of images, trajectories and convergence. Needs matplotlib: `pip install "fastdiff-sampler[plot]"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.files import save_figure, save_image
from fastdiff.plan.picture import new_figure

Array = Any


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
    larger = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    save_image(larger, path)


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
        # Known by its fields: the module of Trajectory needs torch, and this one does not.
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
    figure = new_figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    markers = "osD^vP*X<>"
    for i, (label, (nfe, error)) in enumerate(errors.items()):
        axes.loglog(nfe, error, marker=markers[i % len(markers)], ms=4, lw=1.2, label=label)
    axes.set_xlabel("network evaluations")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=11)
    axes.grid(True, which="both", color="0.92")
    axes.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


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
