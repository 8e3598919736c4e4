"""diffusers' pipelines with our plans: `Scheduler`, `accelerate`. Needs diffusers 0.30 or newer."""

from __future__ import annotations

try:
    import diffusers as diffusers
except ImportError:
    raise ImportError(
        "fastdiff.integrations.diffusers needs diffusers, version 0.30 or newer: pip install diffusers transformers"
    ) from None

# isort: split
from fastdiff.integrations.diffusers.pipelines import accelerate
from fastdiff.integrations.diffusers.scheduler import Scheduler

__all__ = ["Scheduler", "accelerate"]
