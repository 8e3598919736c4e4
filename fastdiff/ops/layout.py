"""The layout of a table row, and `StageSpec`: the structure that kernels are specialised on. No torch.

Values may change without a new specialisation, structure may not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fastdiff.plan import H1, MAX_DRAWS, MAX_HISTORY, NREG, SECOND, ZA, U, X

# Columns of a table row; csrc/stage.h and triton_kernels/stage.py use the same order, and a test compares them.
W1, W2, CU, CG, PU, PG, QU, QX, IN_SCALE, NEXT_U, NEXT_X = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9 + NREG
S0, S1, QG = NEXT_X + NREG, NEXT_X + NREG + 1, NEXT_X + NREG + 2
# How a sample's history lies where each has a row; the back end `cpu` alone reads it. DEPTH 0: as everywhere, h1 first.
# d: its last d values take turns in the first d places, m goes to place KEEP, and h_j is j places before. -1: m is not
# kept.
KEEP, DEPTH = QG + 1, QG + 2
WIDTH = 40

INTERFACE = 1
"""Of the compiled modules; csrc/bindings.h has the same number."""

HISTORY = ((1 << MAX_HISTORY) - 1) << H1
"""The bits of h1 … h6 in a mask."""
_BITS = 1 << np.arange(NREG)

# How m is made: not at all, m = g, m = cu·u + cg·g, through the clipped x0, or that and qg·g, past the clip.
NONE, RAW, LINEAR, CLIP, BLEND = 0, 1, 2, 3, 4


class StageSpec(NamedTuple):
    """The structure of one stage: which streams are read and written. Hashable; kernels are specialised on it.

    Attributes:
        convert: NONE, RAW, LINEAR, CLIP or BLEND.
        guided: whether g = w1·first + w2·second (else g = first).
        m_reads_u: whether m needs u (cu, pu or qu is not zero).
        u_mask, x_mask: bit j is set where next_u[j] (next_x[j]) is not zero, j indexing `plan.REGISTERS`. 0: not
            computed.
        copies: how often the network's next input is written: 0, 1, or 2 (both halves of a guidance batch).
        learned: 0; or 1 where the network gives twice the channels, the prediction and then v: the register za is
            multiplied by e and `second` by e², e = exp(S0 + S1·v), element by element. 2 where `second` has twice the
            channels too (the unconditional output).
        path: 0 where a draw is one normal. Else each is an increment of a Brownian path (ops/brownian.py), a sum of at
            most so many, and `Coeffs.draws` holds the sums.
    """

    convert: int
    guided: bool
    m_reads_u: bool
    u_mask: int
    x_mask: int
    copies: int
    learned: int = 0
    path: int = 0

    @property
    def clips(self) -> bool:
        """Whether bounds of x0 are read."""
        return self.convert in (CLIP, BLEND)

    @property
    def mask(self) -> int:
        """Registers read by either output."""
        return self.u_mask | self.x_mask

    @property
    def reads_v(self) -> bool:
        """Whether v, which the learned variance is made of, is read."""
        return self.learned > 0 and bool(self.mask >> SECOND & 3)

    @property
    def reads_x(self) -> bool:
        return bool(self.mask >> X & 1)

    @property
    def reads_u(self) -> bool:
        return self.m_reads_u or bool(self.mask >> U & 1)

    @property
    def history(self) -> int:
        """How many history entries must be given (h1 … h_history)."""
        return ((self.mask & HISTORY) >> H1).bit_length()

    def reads_h(self, i: int) -> bool:
        """Whether h_{i+1} is read."""
        return bool(self.mask >> (H1 + i) & 1)

    def reads_z(self, i: int) -> bool:
        """Whether draw i (0: za, 1: zb, 2: zc) is used."""
        return bool(self.mask >> (ZA + i) & 1)

    @property
    def noises(self) -> int:
        return sum(self.reads_z(i) for i in range(MAX_DRAWS))


def mask_of(coefficients: Iterable[float]) -> int:
    """Bit j is set where coefficient j is not zero."""
    mask = 0
    for j, c in enumerate(coefficients.tolist() if isinstance(coefficients, np.ndarray) else coefficients):
        if c:
            mask |= 1 << j
    return mask


def masks_of(rows: np.ndarray) -> list[list[int]]:
    """Of table rows (n, WIDTH): `mask_of` next_u and next_x."""
    masks: list[list[int]] = ((rows[:, NEXT_U : NEXT_X + NREG].reshape(-1, 2, NREG) != 0.0) @ _BITS).tolist()
    return masks
