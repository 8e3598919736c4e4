"""diffusers' schedulers in float64, with given noise, so that formulas are compared and not roundings."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch


class _Wide(types.ModuleType):
    """A module whose float32 is float64."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, float32=module.float64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


def in_float64(scheduler: type, noise: Iterable[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """For the time of a test: the module of this class makes its tables in float64, and draws `noise` in order."""
    module = sys.modules[scheduler.__module__]
    monkeypatch.setattr(module, "torch", _Wide(torch))
    if hasattr(module, "np"):
        monkeypatch.setattr(module, "np", _Wide(np))
    draws = iter(noise)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: next(draws))
