"""Lists of sigmas by k-diffusion's functions: float32, or torch's default dtype, with 0 at the end; and its formulas of
a single step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastdiff.schedules import edm
from fastdiff.schedules.grids import grid
from fastdiff.values import number, whole


def append_zero(x: torch.Tensor) -> torch.Tensor:
    """(n,) to (n + 1,): 0 at the end."""
    return torch.cat([x, x.new_zeros([1])])


def to_d(x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """(B, ...): the ODE's slope (x − x0)/sigma, dx/dsigma; sigma () or (B,)."""
    slope: torch.Tensor = (x - denoised) / sigma.reshape(*sigma.shape, *[1] * (x.ndim - sigma.ndim))
    return slope


def get_ancestral_step(sigma_from: Any, sigma_to: Any, eta: float = 1.0) -> tuple[Any, Any]:
    """(sigma_down, sigma_up) of a step from one level to a lower one, numbers or tensors (): down to which level the
    ODE goes, and how much noise then leads to sigma_to, sigma_down² + sigma_up² = sigma_to². eta = 1 is the variance of
    the reverse step (Ho et al. 2020, arXiv 2006.11239, eq. 7)."""
    if not eta:
        return sigma_to, 0.0
    kept = 1.0 - (sigma_to / sigma_from) ** 2
    up = sigma_to * min(1.0, eta * kept**0.5)
    return (sigma_to**2 - up**2) ** 0.5, up


def _listed(times: np.ndarray, device: torch.device | str) -> torch.Tensor:
    # Computed in float64: the list is the exact one, rounded once.
    return torch.tensor(times, dtype=torch.get_default_dtype(), device=device)


def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(n + 1,): n levels of equal sigma^(1/rho), then 0 (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Raises:
        ValueError: n below 1, or levels that are not 0 < sigma_min < sigma_max.
    """
    return _listed(grid("karras", edm(sigma_min, sigma_max), n, rho=rho), device)


def get_sigmas_exponential(
    n: int, sigma_min: float, sigma_max: float, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(n + 1,): n levels of equal log sigma, then 0. Raises as `get_sigmas_karras`."""
    return _listed(grid("exponential", edm(sigma_min, sigma_max), n), device)


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(n + 1,): n levels whose log sigma falls as a power rho, then 0. Raises as `get_sigmas_karras`."""
    return _listed(grid("polyexponential", edm(sigma_min, sigma_max), n, rho=rho), device)


def get_sigmas_vp(
    n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """(n + 1,): sigma/alpha of the VP SDE at n equal times from 1 to eps_s, then 0 (Song et al. 2021, arXiv
    2011.13456)."""
    n = whole("n", n, 1, 2**31 - 1, "20")
    beta_d, beta_min = number("beta_d", beta_d, "19.9"), number("beta_min", beta_min, "0.1")
    t = np.linspace(1.0, number("eps_s", eps_s, "1e-3"), n)
    return _listed(np.append(np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t)), 0.0), device)
