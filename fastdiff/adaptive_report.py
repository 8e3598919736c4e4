"""What a run of an adaptive method reports: while it goes, and at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastdiff.corrections import CorrectX0
from fastdiff.report import span
from fastdiff.schedule_base import Point
from fastdiff.solvers.embedded import Embedded


class Info(NamedTuple):
    """What `return_info=True` adds.

    Attributes:
        nfe: how often the model was called (a call on both halves of classifier-free guidance counts once).
        evaluations: (B,) how many of the calls each sample needed; with control="batch" all of them.
        accepted, rejected: (B,) int64 numbers of steps.
        times: for each sample, the schedule times from start to end, one more than its accepted steps (and one more
            again where a last step leads to the predicted x0).
    """

    nfe: int
    evaluations: torch.Tensor
    accepted: torch.Tensor
    rejected: torch.Tensor
    times: tuple[tuple[float, ...], ...]

    def __repr__(self) -> str:
        steps = f"{span(self.accepted)} accepted and {span(self.rejected)} rejected steps"
        return f"Info({len(self.accepted)} samples, {steps} each, nfe={self.nfe})"


@dataclass
class Hooks:
    """What a run reports, every accepted step; and the user's correction of every evaluation's x0."""

    callback: Callable[[int, float, torch.Tensor, torch.Tensor], None] | None = None
    trajectory: list[tuple[float, torch.Tensor, torch.Tensor]] | None = None
    progress: Callable[[float], None] | None = None
    finite: bool = False
    correct_x0: CorrectX0 | None = None


def fraction(method: Embedded, p: Point) -> float:
    """How far p is on the way, by log-SNR."""

    def bounded(lam: float) -> float:
        return min(max(lam, -20.0), 20.0)

    a, b = bounded(method.start.lam), bounded(method.stop.lam)
    return 1.0 if a == b else (bounded(p.lam) - a) / (b - a)


@contextlib.contextmanager
def progress_bar(method: Embedded, hooks: Hooks) -> Iterator[None]:
    """A tqdm bar that counts percent of the way to the end, in log-SNR."""
    from tqdm.auto import tqdm

    # Neither the count nor its rate: percent a second of a way that is not walked evenly say nothing.
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, desc=method.method, bar_format=form) as bar:

        def report(part: float) -> None:
            bar.update(round(100 * part) - bar.n)

        hooks.progress = report
        yield
