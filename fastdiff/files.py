"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_IMAGES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
}
"""Pillow's names of formats."""


def write_whole(path: str | Path, content: bytes | Callable[[IO[bytes]], None]) -> None:
    """Write `content`, or what it writes when it is called with the file, to `path` through a temporary file beside it:
    whoever reads the file finds the old content or the new one, also after a full disk or a kill. OSError, which names
    `path`, where it cannot be written."""
    # Of a link the file that it leads to is written.
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path={path!r}: expected a file's name, such as 'plan.json'")
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            # A device or a pipe has no content to keep, and must stay what it is.
            with target.open("wb") as file:
                _write(file, content)
            return
        handle, partial = tempfile.mkstemp(prefix=f".{target.name[:50]}.", suffix=".partial", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                _write(file, content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes a file that its owner alone can read.
            os.chmod(partial, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
    except OSError as error:
        # Its own names are those of the temporary file.
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write(file: IO[bytes], content: bytes | Callable[[IO[bytes]], None]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content)


def save_figure(figure: Any, path: str | Path, dpi: int = 150) -> None:
    """Write a figure of matplotlib to exactly `path`, whole or not at all; its ending chooses the format, PNG where it
    has none. ValueError for an unknown ending."""
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:].lower() or "png", dpi=dpi)
    write_whole(path, content.getvalue())


def save_image(image: Any, path: str | Path, **options: Any) -> None:
    """The same for an image of Pillow; `options` go to its `save`."""
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in _IMAGES:
        raise ValueError(
            f"unknown ending of a picture's file, {suffix!r} in {str(path)!r}: give one of {', '.join(_IMAGES)}"
        )
    content = io.BytesIO()
    image.save(content, format=_IMAGES.get(suffix, "PNG"), **options)
    write_whole(path, content.getvalue())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
