"""The device of an engine, for threads that have chosen another, and streams that differ."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch


class Place:
    """Where the states live. On a CUDA device ticks may run in any thread, whose current device is the first one until
    it chooses; events, pinned memory and graphs go to the current device and its stream."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def here(self) -> AbstractContextManager[Any]:
        """The device is the current one."""
        return torch.cuda.device(self.device) if self.cuda else contextlib.nullcontext()

    def mark(self) -> torch.cuda.Event | None:
        """The moment when all is done that this thread asked of the device so far; None where that is now."""
        if not self.cuda:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: torch.cuda.Event | None) -> None:
        """What this thread asks of the device from now on comes after that moment. The host does not wait."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
