"""Noise schedules, and the time grids on them."""

from fastdiff.schedules.base import NoiseSchedule, Point
from fastdiff.schedules.continuous import (
    VE,
    FlowToData,
    SubVP,
    VPLinear,
    dynamic_shift,
    edm,
    flow,
    flow_to_data,
    preconditioned,
    subvp,
    ve,
    vp_cosine,
    vp_linear,
)
from fastdiff.schedules.discrete import Discrete, cosine, ddpm, discrete, scaled_linear
from fastdiff.schedules.gits import gits_times
from fastdiff.schedules.registry import SCHEDULES, resolve
from fastdiff.schedules.smld import SMLD, smld

__all__ = [
    "SCHEDULES",
    "SMLD",
    "VE",
    "Discrete",
    "FlowToData",
    "NoiseSchedule",
    "Point",
    "SubVP",
    "VPLinear",
    "cosine",
    "ddpm",
    "discrete",
    "dynamic_shift",
    "edm",
    "flow",
    "flow_to_data",
    "gits_times",
    "preconditioned",
    "resolve",
    "scaled_linear",
    "smld",
    "subvp",
    "ve",
    "vp_cosine",
    "vp_linear",
]
