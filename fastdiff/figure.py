"""Pictures: figures of matplotlib, which `pip install "fastdiff-sampler[plot]"` installs, and their files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from fastdiff.files import write_whole


def new_figure(**options: Any) -> Any:
    """A `matplotlib.figure.Figure`, without a window; ImportError with the remedy where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "fastdiff-sampler[plot]"') from None
    return Figure(**options)


def save_figure(figure: Any, path: str | Path, dpi: int = 150) -> None:
    """Write a figure of matplotlib to exactly `path`, whole or not at all; its ending chooses the format, PNG where it
    has none. ValueError for an unknown ending."""
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:].lower() or "png", dpi=dpi)
    write_whole(path, content.getvalue())


def save_image(image: Any, path: str | Path, **options: Any) -> None:
    """The same for an image of Pillow; `options` go to its `save`."""
    from PIL import Image

    suffix = Path(path).suffix.lower()
    formats = Image.registered_extensions()
    if suffix and suffix not in formats:
        raise ValueError(f"unknown ending of a picture's file, {suffix!r} in {str(path)!r}: give .png, .jpg or .webp")
    content = io.BytesIO()
    image.save(content, format=formats.get(suffix, "PNG"), **options)
    write_whole(path, content.getvalue())
