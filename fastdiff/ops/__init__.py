"""The fused stage: its layout, the random-number contract, and the back ends that run it."""

from fastdiff.ops.buffers import Buffers, Coeffs, Kinds, Launch
from fastdiff.ops.choice import select
from fastdiff.ops.door import address, admitted, returned, symbolic, tracing
from fastdiff.ops.library import Recorded
from fastdiff.ops.registry import BACKENDS, Backend, backends, load

__all__ = [
    "BACKENDS",
    "Backend",
    "Buffers",
    "Coeffs",
    "Kinds",
    "Launch",
    "Recorded",
    "address",
    "admitted",
    "backends",
    "load",
    "returned",
    "select",
    "symbolic",
    "tracing",
]
