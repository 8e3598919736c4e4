"""What a fit makes small, and the figures that it reports."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastdiff.fitting.ranks import total, world
from fastdiff.names import unknown

LOSSES = ("norm", "square", "l1")


def sample_rms(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,) float64: root mean square difference of each sample."""
    return (x - target).flatten(1).double().square().mean(1).sqrt()


def check_loss(loss: Any) -> Any:
    """The loss, or ValueError."""
    if not callable(loss) and loss not in LOSSES:
        raise ValueError(f"{unknown('loss', loss, LOSSES)}; or a function (x, target) -> (B,) losses of the samples")
    return loss


def of_samples(loss: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,): the loss of each sample, differentiable."""
    if callable(loss):
        found = loss(x, target)
        if not isinstance(found, torch.Tensor) or found.shape != (len(x),):
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f"loss(x, target) returned {got}; expected a tensor of one loss a sample, ({len(x)},)")
        return found.double()
    gap = (x - target).flatten(1).double()
    if loss == "l1":
        return gap.abs().mean(1)
    squared = gap.square().mean(1)
    # The root has no slope at 0.
    return squared if loss == "square" else squared.clamp(min=1e-24).sqrt()


def mean(values: torch.Tensor) -> float:
    """The mean of (B,) over all processes; inf where one is not finite."""
    both = total(torch.stack([values.double().sum(), torch.full_like(values[:1], len(values)).double().squeeze()]))
    found = float(both[0] / both[1])
    return found if found == found else float("inf")


class Errors(NamedTuple):
    """Of the samples' RMS distances to the teacher: median, root mean square and mean; `spread` is the standard error
    of the mean."""

    median: float
    rms: float
    mean: float
    spread: float


def errors(distances: torch.Tensor) -> Errors:
    """The figures of (B,) distances, over all processes."""
    every = distances.double()
    if world()[1] > 1:
        # Each process's own in a row of zeros, after their number: parts differ in size.
        rank, size = world()
        table = torch.zeros(
            (size, 1 + int(total(torch.tensor(len(every), device=every.device)))),
            dtype=torch.float64,
            device=every.device,
        )
        table[rank, 0], table[rank, 1 : 1 + len(every)] = len(every), every
        table = total(table)
        every = torch.cat([row[1 : 1 + int(row[0])] for row in table])
    spread = float(every.std() / len(every) ** 0.5) if len(every) > 1 else 0.0
    return Errors(float(every.quantile(0.5)), float(every.square().mean().sqrt()), float(every.mean()), spread)
