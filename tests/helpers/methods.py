"""Every registered method, for the generic tests: one that is registered enters them."""

from __future__ import annotations

from fastdiff.solvers import METHODS

TABLES = {name: m for name, m in METHODS.items() if not m.adaptive}
ADAPTIVE = {name: m for name, m in METHODS.items() if m.adaptive}
