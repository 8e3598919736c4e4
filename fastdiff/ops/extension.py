"""The compiled modules, of this package's own sources and no others."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from fastdiff.ops.buffers import Coeffs, Kinds
from fastdiff.ops.layout import INTERFACE

CODES: dict[Any, int] = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
"""The modules' numbers of dtypes."""


def extension(name: str) -> Any:
    """The module `fastdiff.<name>`. ImportError where it is missing, or was built from other sources: it would read a
    table and a launch otherwise than they are written here."""
    module = importlib.import_module(f"fastdiff.{name}")
    if getattr(module, "INTERFACE", 0) != INTERFACE:
        raise ImportError(
            f"fastdiff/{name} was built from other sources than this package's: python setup.py build_ext --inplace"
        )
    return module


def packed(module: Any, coeffs: Coeffs, batch: int, n: int, kinds: Kinds, device: int = 0) -> bytes:
    """What the stages of a run share, for a compiled module: `n` elements in a sample, on the device of that number."""
    c = coeffs
    network, history, given = (CODES[kind] for kind in kinds)
    made: bytes = module.pack(
        batch, n, CODES[c.table.dtype], network, history, given, c.table, c.draws, c.rows, c.seeds, c.index, c.lo,
        c.hi, c.scale, device,
    )  # fmt: skip
    return made
