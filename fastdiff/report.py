"""What a run reports: its trajectory, how far it is, and the first value that is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastdiff.loop import Hooks
from fastdiff.plan import Plan


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


def span(values: torch.Tensor) -> str:
    """The least and the greatest of a sample's figures, for a repr."""
    low, high = (float(v) for v in values.aminmax())
    return f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"


@contextlib.contextmanager
def progress_bar(plan: Plan, hooks: Hooks) -> Iterator[None]:
    """A tqdm bar that counts steps."""
    from tqdm.auto import tqdm

    with tqdm(total=plan.steps, desc=plan.method, unit="step") as bar:

        def advance() -> None:
            bar.update()

        hooks.progress = advance
        yield


def require_finite(plan: Plan, batch: int, stage: int, out: torch.Tensor) -> None:
    """FloatingPointError where the network's output at a stage has NaN or Inf, with the step and the sample."""
    good = torch.isfinite(out).flatten(1).all(dim=1)
    if bool(good.all()):
        return
    first = int(torch.argmin(good.int()))
    s = plan.stages[stage]
    half = "" if len(good) == batch else f", in the {'un' if first >= batch else ''}conditional half"
    raise FloatingPointError(
        f"the network returned NaN or Inf at step {s.step} (stage {stage}, model time {s.model_time:g}) for sample "
        f"{first % batch} of {batch}{half}: check the network's dtype, its input scale and prediction=..."
    )
