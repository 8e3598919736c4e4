"""How well a sampler reconstructs data that it encoded: x0 -> x_T -> x0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastdiff.run.report import span
from fastdiff.sampler import Sampler


class Reconstruction(NamedTuple):
    """What `reconstruct` gives.

    Attributes:
        noise: (B, ...) x_T, where the sampler starts.
        x: (B, ...) the data, decoded from `noise`.
        mean_error, max_error: (B,) mean and largest absolute difference between data and `x`, sample by sample.
    """

    noise: torch.Tensor
    x: torch.Tensor
    mean_error: torch.Tensor
    max_error: torch.Tensor

    def __repr__(self) -> str:
        return (
            f"Reconstruction({len(self.x)} samples, x {tuple(self.x.shape)}, {self.x.dtype}, mean_error "
            f"{span(self.mean_error)}, max_error {span(self.max_error)})"
        )


def reconstruct(sampler: Sampler, model: Callable[..., Any], x: torch.Tensor, **arguments: Any) -> Reconstruction:
    """Encode the data `x` (B, ...) with `sampler.invert`, decode them with `sampler`, and compare.

    Args:
        sampler: of a deterministic method.
        model: as in `fastdiff.sample`.
        x: (B, ...) data, floating point.
        **arguments: of both runs: guidance, model_kwargs, device.

    Raises:
        ValueError, TypeError: as `Sampler.invert`.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sampler must be a fastdiff.Sampler, such as fastdiff.Sampler('dpm2', 50), got {type(sampler).__name__}"
        )
    noise = sampler.invert(model, x, **arguments)
    back = sampler(model, noise, **arguments)
    error = (back - x.to(back)).abs().flatten(1)
    return Reconstruction(noise, back, error.mean(1), error.amax(1))
