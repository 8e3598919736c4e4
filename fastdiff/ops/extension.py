"""The compiled modules, of this package's own sources and no others."""

from __future__ import annotations

import importlib
from typing import Any

from fastdiff.ops.layout import INTERFACE


def extension(name: str) -> Any:
    """The module `fastdiff.<name>`. ImportError where it is missing, or was built from other sources: it would read a
    table and a launch otherwise than they are written here."""
    module = importlib.import_module(f"fastdiff.{name}")
    if getattr(module, "INTERFACE", 0) != INTERFACE:
        raise ImportError(
            f"fastdiff/{name} was built from other sources than this package's: python setup.py build_ext --inplace"
        )
    return module
