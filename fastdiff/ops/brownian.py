"""One Brownian path as sums of normals: an increment between any two times is a few draws of the contract, weighted.

The path is a virtual Brownian tree (Li et al. 2020, arXiv 2001.01328, Algorithms 3 and 4; Jelincic et al. 2024, arXiv
2405.06464): its value between two known ones is a bridge whose normal has a number of its own, so that nothing is kept.
All elements of a batch share the times. The way down the tree is therefore the host's, and the kernels add up

    z = sum over j of weight_j * normal(draw = node_j, stream = PATH),   the weights squared add up to 1.

The tree lies on the axis of lambda. Between two whole numbers there is a cell, independent of the others, whose
increment is node 0 of that cell; it is halved DEPTH times (nodes 1 to 2^DEPTH - 1), and each of the 2^DEPTH leaves has
one normal more, for the bridge to a time within it. The clock says how much variance the path gains between two
values of lambda. NumPy only: float64, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[float, float], float]
"""The variance that the path gains between two values of lambda, the lower one first: additive, not below 0."""

PATH = 2
"""Stream of the tree's normals."""
DEPTH = 12
"""Halvings of a cell: a leaf is 0.00024 of lambda wide. Steps of grids of 1000 are 0.001 and more, and not even half of
one lies within a leaf."""
REACH = 32
"""Cells lie between -REACH and REACH. alpha/sigma is then e^-32 to e^32, and all beyond counts as the end."""
TERMS = 64
"""The most normals that one increment may be made of."""
PATH_WIDTH = 1 + 2 * TERMS
"""int32 words of one draw in a table: the number of terms, then a node and the bits of a float32 weight for each."""

# Below half a unit in the last place of a float32 sum of order 1.
_NEGLIGIBLE = 2.0**-25


def signal(low: float, high: float) -> float:
    """The clock of `noise="brownian"`: alpha²/(alpha² + sigma²) gained between two values of lambda, 1 over all times.

    For data N(0, 1) the reverse SDE, with x/sqrt(alpha² + sigma²) = y and q this fraction, is d(y sqrt(q)) = dW(q), so
    that steps of any width add up to the same noise. At low signal-to-noise ratios q is that ratio, in which the noise
    adds up for an x0 that does not change. tools/noise_axis.py compares it with other clocks.
    """
    # (tanh(high) - tanh(low)) / 2, without cancellation.
    return math.sinh(high - low) / (2.0 * math.cosh(low) * math.cosh(high))


class Path:
    """Increments of the path under one clock."""

    def __init__(self, clock: Clock = signal) -> None:
        self.clock = clock
        self.points: dict[float, dict[int, float]] = {}

    def increment(self, start: float, end: float) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Nodes and weights of W(end) - W(start) over its standard deviation: a standard normal.

        Args:
            start, end: values of lambda, infinite where sigma or alpha is 0.

        Raises:
            ValueError: two times in one leaf, whose law the tree does not resolve; or too many terms.
        """
        a, b = (min(max(lam, -float(REACH)), float(REACH)) for lam in (start, end))
        low, high = min(a, b), max(a, b)
        width = self.clock(low, high) if low < high else 0.0
        total = {node: -weight for node, weight in self._within(low).items()}
        for cell in range(math.floor(low), math.floor(high)):
            node = _node(cell, 0)
            total[node] = total.get(node, 0.0) + math.sqrt(self.clock(float(cell), cell + 1.0))
        for node, weight in self._within(high).items():
            total[node] = total.get(node, 0.0) + weight
        unit = math.copysign(math.sqrt(width), b - a) if width else math.nan
        # Two times within one leaf would share its one normal, and their difference have another variance.
        if not abs(sum(weight**2 for weight in total.values()) / width - 1.0 if width else math.nan) < 1e-6:
            raise ValueError(
                f"brownian noise between lambda={start:.9g} and {end:.9g}: its path is resolved to steps of "
                f"2^-{DEPTH} = {2.0**-DEPTH:.3g} of lambda, between -{REACH} and {REACH}; use fewer steps, or leave "
                "noise out"
            )
        kept = sorted((node, weight / unit) for node, weight in total.items() if abs(weight / unit) > _NEGLIGIBLE)
        if len(kept) > TERMS:
            raise ValueError(
                f"brownian noise between lambda={start:g} and {end:g} would be a sum of {len(kept)} normals, and at "
                f"most {TERMS} are added up: use more steps"
            )
        nodes, weights = zip(*kept, strict=True)
        return np.array(nodes, dtype=np.uint32), np.array(weights, dtype=np.float32)

    def words(self, start: float, end: float) -> NDArray[np.int32]:
        """(PATH_WIDTH,) what the kernels read of `increment`."""
        nodes, weights = self.increment(start, end)
        row = np.zeros(PATH_WIDTH, dtype=np.int32)
        row[0] = len(nodes)
        row[1 : 1 + 2 * len(nodes) : 2] = nodes.view(np.int32)
        row[2 : 2 + 2 * len(nodes) : 2] = weights.view(np.int32)
        return row

    def _within(self, lam: float) -> dict[int, float]:
        """W(lam) less W at the start of lam's cell, as weights of nodes."""
        found = self.points.get(lam)
        if found is None:
            found = self.points[lam] = self._descended(lam)
        return found

    def _descended(self, lam: float) -> dict[int, float]:
        cell = math.floor(lam)
        low, high, heap = float(cell), cell + 1.0, 1
        if lam == low:
            return {}
        nodes, at_low, at_high = [_node(cell, 0)], [0.0], [math.sqrt(self.clock(low, high))]
        for level in range(DEPTH + 1):
            # The last of them is the bridge to lam itself.
            middle = lam if level == DEPTH else 0.5 * (low + high)
            before, after = self.clock(low, middle), self.clock(middle, high)
            whole = before + after
            # Where a clock stands still, so does the path.
            share, rest = (before / whole, after / whole) if whole else (0.0, 1.0)
            value = [rest * p + share * q for p, q in zip(at_low, at_high, strict=True)]
            value.append(math.sqrt(share * rest * whole))
            nodes.append(_node(cell, heap))
            if middle == lam:
                return dict(zip(nodes, value, strict=True))
            at_low, at_high = [*at_low, 0.0], [*at_high, 0.0]
            if lam < middle:
                high, at_high, heap = middle, value, 2 * heap
            else:
                low, at_low, heap = middle, value, 2 * heap + 1
        raise AssertionError("a leaf ends the way down")


def _node(cell: int, heap: int) -> int:
    return (cell + REACH << DEPTH + 1) + heap
