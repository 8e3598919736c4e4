"""Many requests in one batch: `Engine`."""

from fastdiff.engine.engine import Engine
from fastdiff.engine.floor import Stats
from fastdiff.engine.request import Closed, Preview, Progress, QueueFull, Request

__all__ = ["Closed", "Engine", "Preview", "Progress", "QueueFull", "Request", "Stats"]
