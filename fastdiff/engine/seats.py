"""What the host says of the slots of a tick: rows, seeds and bounds, and where the network's input comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastdiff.engine.table import IDLE, shared

Key = tuple[int, int, float, float]
"""A request's seed, its sample's index, and the bounds of its x0."""


class Seats:
    """One memory for all of it, which goes to the device in one copy, without waiting.

    Args:
        slots: of a tick.
        widest: the most rows of the network's input.
        dtype: of the state.

    Attributes:
        seeds: (slots,) int64. index: (slots,) int32, of the sample.
        rows: (slots,) int32: the table's row of the next evaluation, which a tick advances by `steps`. steps: (slots,)
            int32: 1, or 0 for a slot that nobody uses.
        source: (widest,) int64: the slot of each row of the network's input.
        partner: (slots,) int64: of each slot, the row of its unconditional half, or its own where it has none.
        lo, hi, scale: (slots,) in the state's dtype: bounds of x0, and the factor after clamping.
    """

    def __init__(self, slots: int, widest: int, dtype: torch.dtype, device: torch.device) -> None:
        # In this order each part lies at a multiple of its dtype's size.
        kinds = [torch.int64] * 3 + [dtype] * 3 + [torch.int32] * 3
        sizes = [(widest if k == 1 else slots) * kind.itemsize for k, kind in enumerate(kinds)]

        def parts(memory: torch.Tensor) -> list[torch.Tensor]:
            return [part.view(kind) for part, kind in zip(memory.split(sizes), kinds, strict=True)]

        self.there = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        # The same on the host, always.
        self.here = self.there if shared(device) else torch.zeros_like(self.there, device="cpu")
        self.seeds, self.source, self.partner, self.lo, self.hi, self.scale, self.rows, self.index, self.steps = parts(
            self.there
        )
        said = [part.numpy() for part in parts(self.here)]
        self._seeds, self._source, self._partner, self._lo, self._hi, scale, self._rows, self._index, self._steps = said
        scale[:] = 1.0
        self._all = np.arange(max(slots, widest))
        self._linked: tuple[int, list[int]] = 0, []

    def clear(self) -> None:
        """What was said last may not be whole."""
        self._linked = -1, []

    def take(self, slot: int, row: int, key: Key) -> None:
        """A slot is a request's from now on, whose next evaluation is at `row`; the device knows after `send`."""
        self._rows[slot] = row
        self._seeds[slot], self._index[slot], self._lo[slot], self._hi[slot] = key

    def link(self, count: int, guided: Sequence[int]) -> None:
        """The first `count` slots are in use, and those of `guided` have an unconditional half, in this order after all
        slots; the device knows after `send`."""
        if (count, guided) == self._linked:
            return
        ends = count + len(guided)
        self._rows[count:], self._steps[:count], self._steps[count:] = IDLE, 1, 0
        # What nobody uses is read too, and must be there.
        self._source[:count], self._source[ends:] = self._all[:count], 0
        self._partner[:count], self._partner[count:] = self._all[:count], 0
        if guided:
            self._source[count:ends], self._partner[guided] = guided, self._all[count:ends]
        self._linked = count, list(guided)

    def advanced(self) -> None:
        """A tick was made: the device's rows are the next ones."""
        if self.here is not self.there:
            self._rows += self._steps

    def go_to(self, slot: int, row: int) -> None:
        """One slot's next evaluation is not at the row after its last."""
        self._rows[slot] = row
        self.send()

    def send(self) -> None:
        """Tell the device."""
        if self.here is not self.there:
            self.there.copy_(self.here.pin_memory(), non_blocking=True)
