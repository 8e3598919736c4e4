"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_whole(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it: whoever reads the file finds the old content or
    the new one, also after a full disk or a kill. OSError, which names `path`, where it cannot be written."""
    # Of a link the file that it leads to is written.
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            # A device or a pipe has no content to keep, and must stay what it is.
            target.write_bytes(content)
            return
        handle, partial = tempfile.mkstemp(prefix=f".{target.name[:50]}.", suffix=".partial", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
