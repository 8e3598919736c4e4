"""How far a fit is, in network evaluations: a bar with the time left, and the user's callback."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from fastdiff.fitting.ranks import world


class Progress:
    """Counts evaluations of one process.

    Args:
        expected: evaluations over all processes, at most.
        shown: whether to show the bar, on the first process.
        watch: the user's callback, or None.

    Attributes:
        done: evaluations so far; those of a checkpoint too, so that a fit that was killed tells what a whole one does.
    """

    def __init__(self, name: str, expected: int, shown: bool, watch: Any) -> None:
        if watch is not None and not callable(watch):
            raise TypeError(
                f"callback got {type(watch).__name__}; expected callback(phase, done, expected, loss), loss a float or "
                "None"
            )
        rank, size = world()
        self.expected, self.done, self.watch = expected // size, 0, watch
        self.bar = tqdm(total=self.expected, desc=name, unit="eval", unit_scale=True, disable=not shown or rank > 0)

    def add(self, phase: str, evaluations: int, loss: float | None = None) -> None:
        """So many more are done."""
        self.done += evaluations
        self.bar.set_description(phase, refresh=False)
        if loss is not None:
            self.bar.set_postfix_str(f"loss {loss:.2e}", refresh=False)
        self.bar.update(evaluations)
        if self.watch is not None:
            self.watch(phase, self.done, self.expected, loss)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if not self.bar.disable:
            self.bar.write(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()
