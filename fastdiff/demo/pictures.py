"""The demo's pictures: arrays of small images in, Pillow images out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PAPER, TILE, INK = (244, 244, 241), (255, 255, 255), (27, 34, 64)
LABEL, FAINT = (60, 66, 92), (140, 144, 158)
MARGIN, GAP = 28, 7


def tile(image: NDArray[np.floating], scale: int) -> Image.Image:
    """One image (H, W), -1 (paper) to 1 (ink), clipped to that, each pixel as a square of ``scale`` pixels."""
    amount = ((np.clip(image, -1.0, 1.0) + 1.0) / 2.0)[..., None]
    colours = np.array(TILE) + amount * (np.array(INK) - np.array(TILE))
    small = Image.fromarray(np.round(colours).astype(np.uint8))
    return small.resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.NEAREST)


def sheet(
    images: NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    title: str = "",
    scale: int = 7,
) -> Image.Image:
    """A labelled sheet of images on a light background.

    Args:
        images: (R, C, H, W), any floating dtype, -1 (paper) to 1 (ink).
        rows: R labels, left of the rows.
        columns: C labels above the columns, or None.
        title: a line above everything.
        scale: size of an image's pixel in the picture.

    Raises:
        ValueError: the labels do not fit the images.
    """
    if images.ndim != 4 or len(rows) != images.shape[0] or (columns is not None and len(columns) != images.shape[1]):
        raise ValueError(
            f"got images {images.shape}, {len(rows)} row labels and "
            f"{'no' if columns is None else len(columns)} column labels; expected images (R, C, H, W) with a label for "
            "each row and column: sheet(images, rows=[...], columns=[...])"
        )
    count_rows, count_columns, height, width = images.shape
    step_x, step_y = width * scale + GAP, height * scale + GAP
    text, small = ImageFont.load_default(17), ImageFont.load_default(12)
    left = MARGIN + round(max(text.getlength(label) for label in rows)) + 14
    top = MARGIN + (34 if title else 0) + (22 if columns is not None else 0)
    size = (left + count_columns * step_x - GAP + MARGIN, top + count_rows * step_y - GAP + MARGIN)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((left, MARGIN - 6), title, LABEL, text)
    for column, label in enumerate(columns or ()):
        draw.text((left + column * step_x + width * scale / 2, top - 9), label, FAINT, small, anchor="ms")
    for row, label in enumerate(rows):
        draw.text((left - 14, top + row * step_y + height * scale / 2), label, LABEL, text, anchor="rm")
        for column in range(count_columns):
            picture.paste(tile(images[row, column], scale), (left + column * step_x, top + row * step_y))
    return picture


def digits(images: NDArray[np.floating], title: str = "") -> Image.Image:
    """The picture of the demo's samples: a row for each class, labelled with its digit.

    Args:
        images: (classes, samples, H, W), -1 to 1.
        title: a line above the digits.
    """
    return sheet(images, [str(row) for row in range(images.shape[0])], title=title)


def trajectory(images: NDArray[np.floating], times: Sequence[float], title: str = "") -> Image.Image:
    """The way from noise to image: a row for each class, a column for each time.

    Args:
        images: (classes, times, H, W), -1 to 1.
        times: the times of the columns, indices of the schedule.
        title: a line above the digits.
    """
    columns = [f"t = {time:.0f}" for time in times]
    return sheet(images, [str(row) for row in range(images.shape[0])], columns, title)
