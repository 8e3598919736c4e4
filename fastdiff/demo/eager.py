"""DPM-Solver-3 as the formulas read, one PyTorch operation after another: the baseline that the demo times against."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def ddpm_log_alpha() -> NDArray[np.float64]:
    """log alpha at the 1000 indices of DDPM's schedule (linear betas, 1e-4 to 0.02), (1000,)."""
    return 0.5 * np.log1p(-np.linspace(1e-4, 0.02, 1000)).cumsum()


def logsnr_times(steps: int, t_start: float = 999.0, t_end: float = 0.0) -> NDArray[np.float64]:
    """``steps`` + 1 falling times with equal steps of lambda = log(alpha / sigma) between them."""
    index, log_alpha = np.arange(1000.0), ddpm_log_alpha()
    lam = log_alpha - 0.5 * np.log(-np.expm1(2.0 * log_alpha))
    first, last = np.interp([t_start, t_end], index, lam)
    times = np.interp(np.linspace(first, last, steps + 1), lam[::-1], index[::-1])
    times[0], times[-1] = t_start, t_end
    return times


@torch.no_grad()
def dpm3(
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    steps: int = 10,
    times: NDArray[np.float64] | None = None,
    lower_order_final: bool = True,
) -> Tensor:
    """Multistep DPM-Solver of order 3 (Lu et al. 2022, arXiv 2206.00927, in multistep form), noise prediction.

    Args:
        model: eps = model(x, t), with t of shape (B,) in the dtype of x.
        x: the noise at the first time, (B, ...), floating point.
        steps: number of steps, one evaluation of the network each.
        times: ``steps`` + 1 falling indices of DDPM's schedule, fractions allowed; default: equal steps of logSNR.
        lower_order_final: below 10 steps, take the last two steps with orders 2 and 1.
    """
    times = logsnr_times(steps) if times is None else times
    log_alpha = np.interp(times, np.arange(1000.0), ddpm_log_alpha())
    log_sigma = 0.5 * np.log(-np.expm1(2.0 * log_alpha))
    log_alphas, log_sigmas, lambdas = log_alpha.tolist(), log_sigma.tolist(), (log_alpha - log_sigma).tolist()
    history: list[Tensor] = []
    for i in range(steps):
        history = [model(x, torch.full(x.shape[:1], times[i], dtype=x.dtype, device=x.device)), *history[:2]]
        order = min(3, i + 1)
        if lower_order_final and steps < 10:
            order = min(order, steps - i)
        h = lambdas[i + 1] - lambdas[i]
        sigma = math.exp(log_sigmas[i + 1])
        phi_1 = math.expm1(h)
        phi_2 = phi_1 / h - 1.0
        phi_3 = phi_2 / h - 0.5
        x = math.exp(log_alphas[i + 1] - log_alphas[i]) * x - sigma * phi_1 * history[0]
        if order == 2:
            r0 = (lambdas[i] - lambdas[i - 1]) / h
            D1 = (history[0] - history[1]) / r0
            x = x - sigma * phi_2 * D1
        if order == 3:
            r0 = (lambdas[i] - lambdas[i - 1]) / h
            r1 = (lambdas[i - 1] - lambdas[i - 2]) / h
            D1_0 = (history[0] - history[1]) / r0
            D1_1 = (history[1] - history[2]) / r1
            D1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)
            D2 = 2.0 * (D1_0 - D1_1) / (r0 + r1)
            x = x - sigma * phi_2 * D1 - sigma * phi_3 * D2
    return x
