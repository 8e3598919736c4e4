"""Those who wait for a slot, in their order."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from fastdiff.engine.run import Run


class Queue:
    """By priority, and then by age. Whoever is cancelled has left at once; its place in the heap is given up later, so
    that thousands who leave take no longer than thousands who came. Whoever calls it holds the engine's door.
    """

    def __init__(self) -> None:
        self.heap: list[tuple[tuple[int, int], Run]] = []
        self.inside: set[Run] = set()

    def __len__(self) -> int:
        return len(self.inside)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.inside)

    def push(self, run: Run) -> None:
        """Come."""
        heapq.heappush(self.heap, (run.order, run))
        self.inside.add(run)

    @property
    def first(self) -> Run | None:
        """Who comes next, if anybody waits."""
        while self.heap and self.heap[0][1] not in self.inside:
            heapq.heappop(self.heap)
        return self.heap[0][1] if self.heap else None

    def leave(self, run: Run) -> None:
        """Go, whoever it is, in the middle too. Nothing where it is not here."""
        self.inside.discard(run)
        if self.first is not None and len(self.heap) > 2 * len(self.inside):
            self.heap = [(one.order, one) for one in self.inside]
            heapq.heapify(self.heap)

    def leave_done(self) -> list[Run]:
        """Those go who are cancelled already, and have not said so yet."""
        gone = [run for run in self.inside if run.request.done()]
        for run in gone:
            self.leave(run)
        return gone

    def clear(self) -> None:
        """All go."""
        self.inside.clear()
        self.heap.clear()
