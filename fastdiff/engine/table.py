"""The device's table: the rows of all requests one after another, with their times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastdiff.ops.layout import WIDTH

IDLE = 0
"""The row of a slot that nobody uses: all zero."""


class Slate:
    """Memory on the device that the host writes, without waiting: through pinned memory, in the order of the stream, so
    that it may be written again while earlier launches still read what it held. On the CPU the host writes into it.

    Attributes:
        tensor: the memory.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.here = tensor.numpy() if shared(tensor.device) else None

    def write(self, first: int, values: torch.Tensor) -> None:
        """From place `first` on, in the memory's dtype."""
        end = first + values.shape[0]
        if self.here is not None:
            self.here[first:end] = values.numpy()
        else:
            self.tensor[first:end].copy_(values.pin_memory(), non_blocking=True)

    def move(self, places: Sequence[int], to: Sequence[int]) -> None:
        """What lies in some places to others, all at once."""
        if self.here is not None:
            self.here[to] = self.here[places]
        else:
            at = torch.tensor((places, to)).pin_memory().to(self.tensor.device, non_blocking=True)
            self.tensor.index_copy_(0, at[1], self.tensor.index_select(0, at[0]))


class Rows:
    """Memory for a number of rows, taken and given back in blocks. Nothing waits for the device.

    Args:
        capacity: rows, the idle one among them.
        dtype: of the state.
        clock_dtype: of the network's times.

    Attributes:
        values: (capacity, WIDTH) in `dtype`. draws: (capacity, 3) int32. clock: (capacity,) in `clock_dtype`.
    """

    def __init__(self, capacity: int, dtype: torch.dtype, clock_dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros((capacity, WIDTH), dtype=dtype, device=device)
        self.draws = torch.full((capacity, 3), -1, dtype=torch.int32, device=device)
        self.clock = torch.zeros(capacity, dtype=clock_dtype, device=device)
        self._values, self._draws, self._clock = (Slate(t) for t in (self.values, self.draws, self.clock))
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
        self._values.write(first, values)

    def place(self, first: int, block: Block) -> None:
        """A block's rows, from row `first` on."""
        self._values.write(first, block.values)
        self._draws.write(first, block.draws)
        self._clock.write(first, block.clock)


class Block(NamedTuple):
    """Rows on the host, in the dtypes of the table.

    Attributes:
        values, draws, clock: as of `Rows`.
    """

    values: torch.Tensor
    draws: torch.Tensor
    clock: torch.Tensor


def shared(device: torch.device) -> bool:
    """Whether the host may write into memory there."""
    return device.type == "cpu"
