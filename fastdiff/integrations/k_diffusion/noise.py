"""k-diffusion's noise sampler, on the kernels of this library: in place of `k_diffusion.sampling`'s class of that name.

    noise_sampler = BrownianTreeNoiseSampler(x, sigma_min, sigma_max, seed=0)
    k_diffusion.sampling.sample_dpmpp_2m_sde(model, x, sigmas, noise_sampler=noise_sampler)

The same promise: the same seed gives the same path at any number of steps. The numbers are those of this library's
random-number contract, and not torchsde's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastdiff import ops
from fastdiff.ops.brownian import Path
from fastdiff.run.arguments import STATE_DTYPES, resolve_seeds
from fastdiff.run.noise import increment_


def identity(sigma: torch.Tensor) -> torch.Tensor:
    """sigma itself: the time of k-diffusion's path."""
    return sigma


class BrownianTreeNoiseSampler:
    """Called as (sigma, sigma_next), it gives (W(T(sigma_next)) - W(T(sigma))) / sqrt|T(sigma_next) - T(sigma)|, T
    being `transform`: standard normals of x's shape, dtype and device. W is one Brownian path a sample, evaluated as a
    virtual tree (`fastdiff.ops.brownian`) that keeps nothing in memory.

    Args:
        x: (B, ...) floating point: the shape, dtype and device of the noise.
        sigma_min, sigma_max: the range of sigma, 0 < sigma_min < sigma_max.
        seed: an int: sample b of x is sample b of that seed; or B ints: each sample has its own. None: from torch's
            generator.
        transform: a monotone function of a float64 tensor of sigmas. The path of a seed is the same for every range of
            sigmas with the default, sigma itself; any other transform is asked within the range only, to which the path
            then belongs.
        cpu: has no effect, since the numbers are the same on every device.

    Raises:
        TypeError, ValueError: bad arguments, with what is expected.
    """

    def __init__(
        self,
        x: torch.Tensor,
        sigma_min: float | torch.Tensor,
        sigma_max: float | torch.Tensor,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] = identity,
        cpu: bool = False,
    ) -> None:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a torch.Tensor of shape (B, ...), got {type(x).__name__}")
        x = ops.admitted("x", x)
        if not x.dtype.is_floating_point or x.ndim < 1 or x.numel() == 0:
            raise ValueError(
                f"x has dtype {x.dtype} and shape {tuple(x.shape)}: expected floating point, (B, ...) with at least "
                "one element"
            )
        self.low, self.high = _number("sigma_min", sigma_min), _number("sigma_max", sigma_max)
        if not 0.0 < self.low < self.high:
            raise ValueError(
                f"sigma_min={self.low:g}, sigma_max={self.high:g}: expected 0 < sigma_min < sigma_max, such as "
                "sigmas[sigmas > 0].min() and sigmas.max()"
            )
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()))
        self.shape, self.dtype, self.device, self.transform = x.shape, x.dtype, x.device, transform
        self.seeds, self.index = resolve_seeds(seed, 0, len(x), x.device)
        self.path = Path(self._gained)

    def __call__(self, sigma: float | torch.Tensor, sigma_next: float | torch.Tensor) -> torch.Tensor:
        """The noise of a step, x's shape and dtype.

        Raises:
            ValueError: a sigma outside of the range, or two that the tree does not tell apart.
        """
        start, end = self._lam("sigma", sigma), self._lam("sigma_next", sigma_next)
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        whole = out if self.dtype in STATE_DTYPES else out.float()
        increment_(whole, self.path, start, end, self.seeds, self.index)
        return out.copy_(whole)

    def _lam(self, name: str, value: float | torch.Tensor) -> float:
        """lambda = -log sigma."""
        sigma = _number(name, value)
        # Sigmas go through float32 in most programs.
        if not self.low * (1.0 - 1e-5) <= sigma <= self.high * (1.0 + 1e-5):
            raise ValueError(
                f"{name}={sigma:g} is outside of the sampler's range, {self.low:g} to {self.high:g}: give it as "
                "sigma_min or sigma_max"
            )
        return -math.log(min(max(sigma, self.low), self.high))

    def _gained(self, low: float, high: float) -> float:
        return abs(self._time(low) - self._time(high))

    def _time(self, lam: float) -> float:
        sigma = math.exp(-lam)
        if self.transform is identity:
            return sigma
        inside = torch.tensor(min(max(sigma, self.low), self.high), dtype=torch.float64)
        return float(self.transform(inside))


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name}={value!r}: expected a number or a tensor with one element") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}={number}: expected a finite number")
    return number
