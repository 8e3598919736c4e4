"""Solvers: papers turned into rows, one file a family, and the registry of their names."""

from fastdiff.solvers.base import HISTORY, ROW, Draw, Exponential, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import step_variances
from fastdiff.solvers.registry import (
    ABSENT,
    ALIASES,
    GRID_OPTIONS,
    GUIDED,
    METHODS,
    adaptive,
    chosen,
    find,
    implied,
    methods,
    own_times,
    plan,
    register,
    settled,
    warn_of_unit_times,
)

__all__ = [
    "ABSENT",
    "ALIASES",
    "GRID_OPTIONS",
    "GUIDED",
    "HISTORY",
    "METHODS",
    "ROW",
    "Draw",
    "Exponential",
    "Method",
    "Option",
    "Recorder",
    "Request",
    "Row",
    "adaptive",
    "chosen",
    "find",
    "implied",
    "methods",
    "own_times",
    "plan",
    "register",
    "settled",
    "step_variances",
    "warn_of_unit_times",
]
