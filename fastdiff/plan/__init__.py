"""The plan: a sampler as a validated float64 table, and the phi functions that its coefficients are made of."""

from fastdiff.plan.frames import Frames
from fastdiff.plan.plan import SPACES, Plan
from fastdiff.plan.stage import (
    H1,
    IDENTITY,
    MAX_DRAWS,
    MAX_HISTORY,
    NO_DRAWS,
    NREG,
    REGISTERS,
    SECOND,
    ZA,
    M,
    Stage,
    U,
    X,
    register,
)

__all__ = [
    "H1",
    "IDENTITY",
    "MAX_DRAWS",
    "MAX_HISTORY",
    "NO_DRAWS",
    "NREG",
    "REGISTERS",
    "SECOND",
    "SPACES",
    "ZA",
    "Frames",
    "M",
    "Plan",
    "Stage",
    "U",
    "X",
    "register",
]
