"""What the host says of every slot of a tick: its row, its seed and bounds, and where the network's input comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastdiff.engine.table import IDLE, Slate, shared


class Seats:
    """One memory for all of it, which goes to the device in one copy, without waiting.

    Args:
        slots: of a tick.
        widest: the most rows of the network's input.
        dtype: of the state.

    Attributes:
        seeds: (slots,) int64. index: (slots,) int32, of the sample.
        rows: (slots,) int32: the table's row of the next evaluation, which a tick advances by `steps`, (slots,) int32: 1,
            or 0 for a slot that nobody uses.
        source: (widest,) int64: the slot of each row of the network's input.
        partner: (slots,) int64: of each slot, the row of its unconditional half.
        bounds: (3, slots) in the state's dtype: lo, hi and scale of x0.
    """

    def __init__(self, slots: int, widest: int, dtype: torch.dtype, device: torch.device) -> None:
        # In this order each part lies at a multiple of its dtype's size.
        kinds = [torch.int64] * 3 + [dtype] + [torch.int32] * 3
        counts = [slots, widest, slots, 3 * slots, slots, slots, slots]
        sizes = [count * kind.itemsize for count, kind in zip(counts, kinds, strict=True)]

        def parts(memory: torch.Tensor) -> list[torch.Tensor]:
            return [part.view(kind) for part, kind in zip(memory.split(sizes), kinds, strict=True)]

        self.there = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        self.here = self.there if shared(device) else torch.zeros_like(self.there, device="cpu")
        self.seeds, self.source, self.partner, bounds, self.rows, self.index, self.steps = parts(self.there)
        self.bounds = bounds.view(3, slots)
        self._seeds, self._source, self._partner, own, self._rows, self._index, self._steps = (
            part.numpy() for part in parts(self.here)
        )
        self._bounds = own.reshape(3, slots)
        self._row = Slate(self.rows)

    def tell(
        self,
        rows: Sequence[int],
        keys: Sequence[tuple[int, int, float, float]],
        source: Sequence[int],
        partner: Sequence[int],
    ) -> None:
        """Who has the first slots: the row, the key (seed, index, lo, hi) and the partner of each; and `source`, as
        far as requests need it. The other slots are nobody's, and read a row too, which must be there."""
        n = len(rows)
        if keys:
            self._seeds[:n], self._index[:n], self._bounds[0, :n], self._bounds[1, :n] = zip(*keys, strict=True)
        self._bounds[2, :n] = 1.0
        self._rows[:n], self._steps[:n], self._partner[:n] = rows, 1, partner
        self._rows[n:], self._steps[n:] = IDLE, 0
        self._source[: len(source)] = source
        self._partner[n:] = self._source[len(source) :] = 0
        self._send()

    def go_to(self, slot: int, row: int) -> None:
        """One slot's next evaluation is not at the row after its last."""
        self._row.write(slot, torch.tensor([row], dtype=torch.int32))

    def _send(self) -> None:
        if self.here is not self.there:
            self.there.copy_(self.here.pin_memory(), non_blocking=True)
