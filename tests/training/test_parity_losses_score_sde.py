"""Losses against numbers of the published code (yang-song/score_sde_pytorch, cb1f359, 2022).

How they were made: `losses.get_sde_loss_fn`, `get_smld_loss_fn` and `get_ddpm_loss_fn` ran in float64
(torch.set_default_dtype) with torch.rand, torch.randn_like and torch.randint replaced by functions that return what
leads to TIMES, NOISE and LABELS below; N = 1000, eps = 1e-5, the SDEs' default parameters. The network is `network`,
given the label that the published `get_model_fn` and `get_score_fn` pass: 999·t for VP and sub-VP, sigma for VE, the
index for DDPM, and SMLD's label, which counts from the largest sigma.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import schedules
from fastdiff.losses import ddpm_loss, sde_loss, smld_loss

N = 1000
ELEMENTS = torch.arange(18, dtype=torch.float64).reshape(3, 2, 3, 1)
X0, NOISE = torch.sin(1.0 + 3.0 * ELEMENTS), 1.5 * torch.cos(2.0 + 5.0 * ELEMENTS)
TIMES, LABELS = np.array([0.013, 0.4, 0.97]), np.array([0, 411, 999])

# SDE, loss, reduce_mean, likelihood_weighting, value.
PUBLISHED = [
    ("vp", "sde", True, True, 99.92623442358007),
    ("vp", "sde", True, False, 2.0913341437062773),
    ("vp", "sde", False, True, 299.7787032707402),
    ("vp", "sde", False, False, 6.274002431118832),
    ("subvp", "sde", True, True, 175.34206980654767),
    ("subvp", "sde", True, False, 1.8646193129915345),
    ("subvp", "sde", False, True, 526.026209419643),
    ("subvp", "sde", False, False, 5.593857938974604),
    ("ve", "sde", True, True, 5192.2392199824),
    ("ve", "sde", True, False, 304.80929006137967),
    ("ve", "sde", False, True, 15576.717659947195),
    ("ve", "sde", False, False, 914.427870184139),
    ("ve", "smld", True, False, 478.4330623192371),
    ("ve", "smld", False, False, 1435.299186957711),
    ("vp", "ddpm", True, False, 2.1032936845097723),
    ("vp", "ddpm", False, False, 6.309881053529317),
]


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3.0 * x) + 0.1 * torch.cos(t).reshape(-1, 1, 1, 1) * x.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize(("sde", "loss", "reduce_mean", "weighting", "want"), PUBLISHED)
def test_equals_the_published_numbers(sde: str, loss: str, reduce_mean: bool, weighting: bool, want: float) -> None:
    if loss == "ddpm":
        table = schedules.discrete(betas=np.linspace(0.1 / N, 20.0 / N, N))
        got = ddpm_loss(network, X0, table, reduce_mean=reduce_mean, t=LABELS, noise=NOISE)
    elif loss == "smld":
        # Our index 0 is the smallest sigma; the published labels count from the largest.
        levels = schedules.smld(0.01, 50.0, N)
        got = smld_loss(network, X0, levels, reduce_mean=reduce_mean, t=N - 1 - LABELS, noise=NOISE)
    else:
        schedule = {
            "vp": schedules.vp_linear(time_scale=999.0),
            "subvp": schedules.subvp(time_scale=999.0),
            "ve": schedules.ve(0.01, 50.0),
        }[sde]
        got = sde_loss(
            network,
            X0,
            schedule,
            likelihood_weighting=weighting,
            reduce_mean=reduce_mean,
            prediction="score" if sde == "ve" else "eps",
            t=0.01 * 5000.0**TIMES if sde == "ve" else TIMES,
            noise=NOISE,
        )
    # Rounding: the published 1 - alphas_cumprod keeps 1e-16 of 1, where sigma² is 1e-4: 1e-12, and ours is exact.
    assert got.item() == pytest.approx(want, rel=1e-11)
