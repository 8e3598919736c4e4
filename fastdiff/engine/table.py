"""The device's table: the rows of all requests one after another, with what follows each row, and its time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fastdiff.ops.layout import WIDTH

IDLE = 0
"""The row of a slot that nobody uses: all zero, followed by itself."""


class Rows:
    """Memory for a number of rows, taken and given back in blocks.

    Nothing waits for the device: what is written goes through pinned memory, in the order of the stream, so that a
    block may be written again while earlier launches still read what it held.

    Args:
        capacity: rows, the idle one among them.
        dtype: of the state.
        clock_dtype: of the network's times.

    Attributes:
        values: (capacity, WIDTH) in `dtype`. draws: (capacity, 3) int32. clock: (capacity,) in `clock_dtype`.
        follow: (capacity,) int32: the row of the next evaluation, `IDLE` after the last.
    """

    def __init__(self, capacity: int, dtype: torch.dtype, clock_dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros((capacity, WIDTH), dtype=dtype, device=device)
        self.draws = torch.full((capacity, 3), -1, dtype=torch.int32, device=device)
        self.clock = torch.zeros(capacity, dtype=clock_dtype, device=device)
        self.follow = torch.full((capacity,), IDLE, dtype=torch.int32, device=device)
        self.capacity = capacity
        # (first, length), in the order of the rows.
        self.free: list[tuple[int, int]] = [(IDLE + 1, capacity - 1)]

    def take(self, count: int) -> int | None:
        """The first row of a free block of `count` rows, or None where no block is large enough now."""
        for i, (first, length) in enumerate(self.free):
            if length >= count:
                self.free[i : i + 1] = [(first + count, length - count)] if length > count else []
                return first
        return None

    def give(self, first: int, count: int) -> None:
        """Give a block back."""
        spans = sorted([*self.free, (first, count)])
        joined = spans[:1]
        for at, length in spans[1:]:
            before, width = joined[-1]
            if before + width == at:
                joined[-1] = (before, width + length)
            else:
                joined.append((at, length))
        self.free = joined

    def write(self, first: int, values: torch.Tensor) -> None:
        """Coefficients (n, WIDTH), from row `first` on."""
        put(self.values[first : first + len(values)], values)

    def place(self, first: int, block: Block) -> None:
        """A block's rows, from row `first` on."""
        end = first + len(block.values)
        follow = np.where(block.follow > 0, block.follow + np.int32(first), np.int32(IDLE))
        self.write(first, block.values)
        put(self.draws[first:end], block.draws)
        put(self.clock[first:end], block.clock)
        put(self.follow[first:end], torch.from_numpy(follow))


class Block(NamedTuple):
    """Rows on the host, in the dtypes of the table.

    Attributes:
        values, draws, clock: as of `Rows`.
        follow: as of `Rows`, counted from the block's first row, which follows none.
    """

    values: torch.Tensor
    draws: torch.Tensor
    clock: torch.Tensor
    follow: np.ndarray


def block(values: torch.Tensor, draws: np.ndarray, clock: torch.Tensor, order: np.ndarray) -> Block:
    """Coefficients, draws (int32) and times, and `order`, in which the rows evaluate."""
    follow = np.zeros(len(values), dtype=np.int32)
    follow[order[:-1]] = order[1:]
    return Block(values, torch.from_numpy(draws), clock, follow)


def put(to: torch.Tensor, source: torch.Tensor) -> None:
    """Write numbers from the host, without waiting for the device."""
    if to.device.type == "cuda":
        source = source.to(to.dtype).pin_memory()
    to.copy_(source, non_blocking=True)


def sent(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """Indices from the host, flat, without waiting for the device."""
    made = torch.from_numpy(numbers.ravel())
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made
