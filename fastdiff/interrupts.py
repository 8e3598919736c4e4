"""Ctrl-C while the command line still loads the package: one line, as later, instead of a traceback.

Importing torch takes a second or more, before `fastdiff.cli` can catch anything. Imported first by the package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType


def is_command(argument: str) -> bool:
    """Whether the process was started as `fastdiff` or `python -m fastdiff`: the name is "-m" while that is loaded."""
    return argument == "-m" or Path(argument).stem == "fastdiff"


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of a command: an interrupt is told in one line, all else as usual."""
    if issubclass(kind, KeyboardInterrupt):
        print("fastdiff: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv and is_command(sys.argv[0]):
    sys.excepthook = one_line
