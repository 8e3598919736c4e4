"""Many requests in one batch: what `fastdiff.Engine` and `fastdiff.Request` give and raise."""

from fastdiff.engine.engine import Engine as Engine
from fastdiff.engine.floor import Stats
from fastdiff.engine.request import Closed, Preview, Progress, QueueFull
from fastdiff.engine.request import Request as Request

__all__ = ["Closed", "Preview", "Progress", "QueueFull", "Stats"]
