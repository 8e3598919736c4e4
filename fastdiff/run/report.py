"""What a run reports: its trajectory, how far it is, and the steps of an adaptive method."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastdiff.run.evaluate import Hooks


class Trajectory(NamedTuple):
    """What `return_trajectory=True` adds.

    Attributes:
        times: (steps + 1,) schedule times.
        x: (steps + 1, B, ...): the state at each time, the first being the start and the last the result. Where a step
            opens with noise (EDM's churn), the state between them is the one with that noise.
        x0: (steps, B, ...): x0 as predicted at each time but the last.
    """

    times: torch.Tensor
    x: torch.Tensor
    x0: torch.Tensor

    def __repr__(self) -> str:
        ends = " to ".join(f"{float(t):g}" for t in self.times[[0, -1]])
        return (
            f"Trajectory({len(self.x0)} predictions, times {ends}, x {tuple(self.x.shape)}, x0 {tuple(self.x0.shape)}, "
            f"{self.x.dtype})"
        )


class Info(NamedTuple):
    """What `return_info=True` adds, for adaptive methods.

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


def span(values: torch.Tensor) -> str:
    """The least and the greatest of a sample's figures, for a repr."""
    low, high = (float(v) for v in values.aminmax())
    return f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"


@contextlib.contextmanager
def progress_bar(hooks: Hooks, name: str, total: int, unit: str) -> Iterator[None]:
    """A tqdm bar that shows how far `hooks.progress` is told that the run is, of `total` units."""
    from tqdm.auto import tqdm

    # No count and no rate of percent: they say nothing where progress is uneven.
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}" if unit == "%" else None
    with tqdm(total=total, desc=name, unit=unit, bar_format=form) as bar:

        def reach(position: float) -> None:
            bar.update(round(position) - bar.n)

        hooks.progress = reach
        yield
