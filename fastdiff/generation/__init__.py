"""Many samples by many processes: exactly n of them, in files, resumed after any stop."""

from __future__ import annotations

from fastdiff.generation.folder import Checked, verify
from fastdiff.generation.generate import generate

__all__ = ["Checked", "generate", "verify"]
