"""What the training losses share: the forward process, their draws, checks of their arguments, targets and sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastdiff.bind import in_range
from fastdiff.names import one_of
from fastdiff.ops.philox import integers
from fastdiff.prediction import ALL_PREDICTIONS, target
from fastdiff.run.arguments import resolve_seeds
from fastdiff.run.network import Network, placement, stated
from fastdiff.run.noise import randn
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.values import floats, whole

Array = NDArray[np.float64]
Model = Callable[..., Any]
REDUCTIONS = ("mean", "none")
TIMES = 3
"""Philox stream of the times that a loss draws."""


def q_sample(
    x0: Tensor,
    t: Tensor | ArrayLike,
    schedule: str | NoiseSchedule = "ddpm",
    noise: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
) -> Tensor:
    """x_t = alpha(t) x_0 + sigma(t) eps (Ho et al. 2020, arXiv 2006.11239, eq. 4; Song et al. 2021, eq. 29).

    Args:
        x0: (B, ...) data, floating point.
        t: (B,) times of the schedule (see `NoiseSchedule`), or one for all; inside its range.
        schedule: a `NoiseSchedule` or its name.
        noise: (B, ...) standard normal eps; default: drawn with `generator`.
        generator: where the noise comes from; default: torch's own. A generator of another device than x0's is fine.
        seed, first_sample: instead of a generator, the built-in normals, as in `fastdiff.sample`: equal calls give
            equal results, whatever the batch and the device. They are those that `sample` with this seed would start
            from, and none that its steps draw.

    Returns:
        x_t in the shape, dtype and on the device of x0; differentiable in x0 and noise.

    Raises:
        TypeError, ValueError: x0 not floating point, times or noise of another shape, times outside the schedule.
    """
    check_data(x0)
    known = resolve(schedule)
    times = check_times(t, len(x0), known)
    eps = Source(generator, seed, first_sample).check().normal(x0, noise)
    return diffuse(full(x0), full(eps), known.alpha(times), known.sigma(times)).to(x0.dtype)


def full(x: Tensor) -> Tensor:
    """x in float32 where it is in half precision, in which alpha rounds to 1 and squares lose their sum."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def diffuse(x0: Tensor, eps: Tensor, alpha: Array, sigma: Array) -> Tensor:
    return column(alpha, x0) * x0 + column(sigma, x0) * eps


def evaluate(
    model: Model,
    x: Tensor,
    dtype: torch.dtype,
    model_time: Array,
    model_kwargs: Mapping[str, Any] | None,
    learned: bool = False,
) -> Tensor:
    """The network's output at x, (B, ...), twice the channels where `learned`; at least float32.

    The network is given x in the dtype of its parameters, as in sampling; where it has none, in `dtype`.
    """
    dtype_of_time = torch.float64 if x.dtype == torch.float64 else torch.float32
    clock = torch.from_numpy(in_range(model_time, dtype_of_time, "the network's time")).to(
        device=x.device, dtype=dtype_of_time
    )
    return full(Network(model, len(x), model_kwargs, learned=learned)(x.to(placement(model)[1] or dtype), clock))


def deviation(out: Tensor, x0: Tensor, eps: Tensor, alpha: Array, sigma: Array, prediction: str) -> Tensor:
    """Output minus target; ValueError for a score where sigma = 0."""
    try:
        p, q = target(prediction, alpha, sigma)
    except ZeroDivisionError:
        raise ValueError(
            "prediction='score' got a time t where sigma is 0 and no score exists; expected t >= 0"
        ) from None
    return out - _times(p, x0) - _times(q, eps)


def _times(factor: float | Array, x: Tensor) -> Tensor:
    """`factor` times x, without a product by 0 or 1."""
    if isinstance(factor, float):
        return factor * x if factor not in (0.0, 1.0) else x if factor else torch.zeros_like(x)
    return column(factor, x) * x


def as_stated(model: Any, name: str, given: Any, default: Any) -> Any:
    """A `schedule` or `prediction`: as given, else as the model states it, else the default."""
    if given is not None:
        return given
    noted = stated(model, name)
    return default if noted is None else noted


def column(values: Array, like: Tensor) -> Tensor:
    """(B,) float64 on the host -> (B, 1, ...) in the dtype and on the device of `like`."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like).reshape(-1, *[1] * (like.ndim - 1))


def per_sample(square: Tensor, reduce_mean: bool = True) -> Tensor:
    """(B,) the mean over each sample's elements, or half their sum."""
    flat = square.flatten(1)
    return flat.mean(1) if reduce_mean else 0.5 * flat.sum(1)


def reduce(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses


class Source(NamedTuple):
    """Where a loss's draws come from: a generator, torch's own where there is none, or the built-in normals of a seed,
    which depend on the sample alone.

    With a seed, the noise is the normals of the prior's stream, so that steps that follow with the same seed draw
    others; and times have a stream of their own.
    """

    generator: torch.Generator | None = None
    seed: Any = None
    first_sample: int = 0

    def check(self) -> Source:
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator, got {type(self.generator).__name__}: "
                "torch.Generator().manual_seed(0), or give seed=0"
            )
        if self.generator is not None and self.seed is not None:
            raise ValueError("seed and generator are two sources of the same draws: give one of them")
        if self.seed is None and whole("first_sample", self.first_sample, 0, 2**31 - 1, "0"):
            raise ValueError("first_sample counts the samples of a seed: give seed=0 too")
        return self

    def uniform(self, batch: int) -> Array:
        """(B,) in [0, 1): on the host, so that no step waits for a device, unless the generator is elsewhere."""
        if self.seed is not None:
            seeds, index = resolve_seeds(self.seed, self.first_sample, batch, torch.device("cpu"))
            words = [integers(1, s, i, 0, TIMES)[0] for s, i in zip(seeds.tolist(), index.tolist(), strict=True)]
            return np.array(words, dtype=np.float64) / 2.0**32
        where = torch.device("cpu") if self.generator is None else self.generator.device
        return torch.rand(batch, generator=self.generator, device=where, dtype=torch.float64).cpu().numpy()

    def normal(self, x0: Tensor, noise: Tensor | None) -> Tensor:
        """`noise`, checked, or a draw of x0's shape."""
        if noise is None and self.seed is not None:
            drawn = randn(
                tuple(x0.shape),
                seed=self.seed,
                first_sample=self.first_sample,
                prior=True,
                dtype=torch.float64 if x0.dtype == torch.float64 else torch.float32,
                device=x0.device,
            )
            return drawn.to(x0.dtype)
        return normal(x0, noise, self.generator)


def normal(x0: Tensor, noise: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
    """`noise`, checked, or a draw of x0's shape."""
    if noise is None:
        where = x0.device if generator is None else generator.device
        return torch.randn(x0.shape, generator=generator, device=where, dtype=x0.dtype).to(x0.device)
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a tensor of shape {tuple(x0.shape)}, got {type(noise).__name__}")
    got, want = (tuple(noise.shape), noise.dtype, noise.device), (tuple(x0.shape), x0.dtype, x0.device)
    if got != want:
        raise ValueError(f"noise has shape, dtype and device {got}; expected those of x0, {want}: torch.randn_like(x0)")
    return noise


def check_names(prediction: str, reduction: str) -> None:
    one_of("prediction", prediction, ALL_PREDICTIONS)
    one_of("reduction", reduction, REDUCTIONS)


def check_data(x0: Any) -> None:
    if not isinstance(x0, Tensor):
        raise TypeError(f"x0 must be a torch.Tensor of shape (B, ...), got {type(x0).__name__}")
    if not x0.dtype.is_floating_point:
        raise TypeError(f"x0 has dtype {x0.dtype}; expected floating point: pass x0.float(), scaled to about [-1, 1]")
    if x0.ndim < 2 or x0.numel() == 0:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; expected (B, ...) with at least one sample and one element")


def vector(name: str, values: Any, batch: int) -> Array:
    """(B,) float64 on the host, from one value for each sample or one for all."""
    array = floats(name, values, "a number for each sample, or one for all")
    if array.shape not in ((), (batch,)):
        raise ValueError(f"{name} has shape {array.shape}; expected one for each sample, ({batch},), or one for all")
    return np.broadcast_to(array, (batch,)).copy()


def check_times(t: Any, batch: int, schedule: NoiseSchedule) -> Array:
    times = schedule.within(vector("t", t, batch))
    schedule.check(times)
    return times
