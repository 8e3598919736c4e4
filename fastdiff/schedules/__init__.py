"""Noise schedules, and the time grids on them."""

from fastdiff.schedules.base import NoiseSchedule, Point
from fastdiff.schedules.continuous import (
    VE,
    FlowToData,
    SubVP,
    VPLinear,
    edm,
    flow,
    flow_to_data,
    subvp,
    ve,
    vp_cosine,
    vp_linear,
)
from fastdiff.schedules.discrete import Discrete, cosine, ddpm, discrete, scaled_linear
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
    "edm",
    "flow",
    "flow_to_data",
    "resolve",
    "scaled_linear",
    "smld",
    "subvp",
    "ve",
    "vp_cosine",
    "vp_linear",
]
