"""One run as its engine needs it, made from what the caller gave."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fastdiff import ops
from fastdiff.bind import Binding, in_range
from fastdiff.names import warn
from fastdiff.ops import Backend, Coeffs
from fastdiff.ops.philox import PRIOR
from fastdiff.plan import Frames, Stage
from fastdiff.run.arguments import (
    cast_x,
    check_callables,
    check_frames,
    check_x,
    is_path,
    prior_noise,
    resolve_device,
    resolve_seeds,
)
from fastdiff.run.evaluate import Evaluator, Hooks
from fastdiff.run.history import Noise
from fastdiff.run.loop import Run, State
from fastdiff.run.network import Network
from fastdiff.run.report import Info, Trajectory
from fastdiff.run.threshold import Dynamic, set_bounds
from fastdiff.schedules import Point

Bounds = Dynamic | tuple[float, float] | None


@dataclass(slots=True)
class Start:
    """Where a run begins.

    Attributes:
        x: (B, ...) contiguous, in the state's dtype, on its device.
        seeds, index: (B,) int64 and (B,) int32, on the device.
        noise: the user's own, or None.
        path: whether draws are increments of one Brownian path.
    """

    backend: Backend
    x: torch.Tensor
    seeds: torch.Tensor
    index: torch.Tensor
    noise: Noise | None
    path: bool = False


@dataclass(slots=True)
class Job:
    """One run: where it begins, the network, how its outputs become model values, and what it reports.

    Attributes:
        network_dtype: of the network's input.
        bounds: of the predicted x0.
        graph: "auto", True or False.
        out: where the result goes, or None.
        frames: at which steps they are, or None where all advance together.
        note: told of a graph that was replayed, or None.
        again: told of a run in the host's memory that may be made again from what it was prepared with, or None.
    """

    start: Start
    network: Network
    network_dtype: torch.dtype
    binding: Binding
    bounds: Bounds
    hooks: Hooks
    graph: bool | str = False
    progress: bool = False
    out: torch.Tensor | None = None
    frames: Frames | None = None
    note: Callable[[Any, Run], None] | None = None
    again: Callable[[State], None] | None = None

    def evaluator(self, coeffs: Coeffs, direct: bool) -> Evaluator:
        """What this run does with the network's outputs; `coeffs` gets the bounds. `direct`: the network is given
        memory of the state itself."""
        start = self.start
        threshold = set_bounds(self.bounds, coeffs, start.x, start.backend)
        return Evaluator(self.network, start.backend, self.binding, self.hooks, threshold, start.x.dtype, direct)

    @property
    def observed(self) -> bool:
        """Whether the predicted x0 is asked for at every evaluation."""
        return self.hooks.watches or self.hooks.correct_x0 is not None or isinstance(self.bounds, Dynamic)


class Engine(Protocol):
    """What a `Sampler` holds: a plan with its loop, or an adaptive method with its driver."""

    name: str
    """The method's."""

    @property
    def first(self) -> Stage | Point:
        """Where a run starts."""

    @property
    def prior_std(self) -> float:
        """Of x there, when it is drawn from the prior."""

    def check(self, arguments: Mapping[str, Any], has_x: bool) -> None:
        """Raise for arguments of a run that do not go with it."""

    def run(self, job: Job) -> tuple[torch.Tensor, Trajectory | None, Info | None]:
        """Sample."""


def warns_of_start(first: Stage | Point) -> bool:
    """Whether pure noise there is unlike what a network expects."""
    return first.alpha > first.sigma


def begin(
    engine: Engine,
    x: torch.Tensor | None,
    size: tuple[int, ...],
    arguments: Mapping[str, Any],
    dtype: torch.dtype,
    backend: str | None,
    model_device: torch.device | None,
    network_dtype: torch.dtype | None,
) -> Start:
    """The back end, x at the start, and every sample's seed and index."""
    noise, path = arguments["noise"], is_path(arguments["noise"])
    check_callables(noise, None)
    check_frames(arguments["frames"], arguments, x is not None)
    noise = None if path else noise
    if x is not None:
        x = check_x(x)
    where = resolve_device(arguments["device"], x, model_device)
    seeds, index = resolve_seeds(arguments["seed"], arguments["first_sample"], size[0], where)
    module = ops.select(backend, where, dtype, network_dtype or dtype, math.prod(size))
    if x is not None:
        return Start(module, cast_x(x, where, dtype), seeds, index, noise, path)
    start = torch.empty(size, dtype=dtype, device=where)
    draw_start(engine, module, start, seeds, index, noise)
    return Start(module, start, seeds, index, noise, path)


def draw_start(
    engine: Engine,
    backend: Backend,
    x: torch.Tensor,
    seeds: torch.Tensor,
    index: torch.Tensor,
    noise: Noise | None = None,
) -> None:
    """Fill x with a draw of the prior, as large as it is where a run of `engine` starts."""
    first = engine.first
    if warns_of_start(first):
        warn(
            f"x is pure noise, drawn at t={first.t:g}, where alpha={first.alpha:.3g}, sigma={first.sigma:.3g}: a "
            "network expects little noise there, and the result will be no sample; start at a noisier time, or "
            "pass x (times of discrete schedules are indices, not sigmas)"
        )
    if noise is not None:
        x.copy_(prior_noise(noise, x))
    else:
        backend.normal_(x, seeds, index, 0, PRIOR)
    std = engine.prior_std
    if std != 1.0:
        if std > torch.finfo(x.dtype).max:
            # A compiler sees no branch on an array's values.
            in_range(np.array(std), x.dtype, "the prior's standard deviation")
        x *= std


def sampling_mode() -> contextlib.AbstractContextManager[None]:
    """No gradients, and ordinary tensors even in a caller's inference mode, whose tensors have no version counter."""
    # A compiler cannot ask which mode it is.
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return _ordinary()
    return _WithoutGradients()


@contextlib.contextmanager
def _ordinary() -> Iterator[None]:
    # In this order: leaving inference mode switches gradients on.
    with torch.inference_mode(False), torch.no_grad():
        yield


class _WithoutGradients:
    """As torch.no_grad, which takes longer to make and to enter than a small stage."""

    __slots__ = ("before",)

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *exception: object) -> None:
        torch._C._set_grad_enabled(self.before)
