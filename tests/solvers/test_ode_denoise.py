"""The last step of method "ode": score_sde's denoising, one reverse-diffusion step of 1/N without its noise.

Song et al. 2021 (arXiv 2011.13456), eq. 46 and App. E, and C for sub-VP. Of Gaussian data the score is linear, and the
step an affine map.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.analytic import gaussian
from helpers.models import X

import fastdiff
from fastdiff import schedules
from fastdiff.solvers.score_sde import published_denoising

MEAN, STD = np.array([0.4, -0.9, 0.1]), 0.6
DATA = gaussian(MEAN.tolist(), STD)
B0, B1, LOW, HIGH = 0.1, 20.0, 0.01, 50.0
SCHEDULES = {"vp": schedules.vp_linear(B0, B1), "subvp": schedules.subvp(B0, B1), "ve": schedules.ve(LOW, HIGH)}


class Network:
    dtype = torch.float64

    def __init__(self, schedule: schedules.NoiseSchedule, prediction: str) -> None:
        self.noise, self.prediction, self.calls = schedule, prediction, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        parts = [(x, t[0])] if (t == t[0]).all() else list(zip(x.split(1), t, strict=True))
        rows = [
            DATA.predict(self.prediction, v.numpy(), self.noise.alpha(float(s)), self.noise.sigma(float(s)))
            for v, s in parts
        ]
        return torch.from_numpy(np.concatenate(rows))


def published(kind: str, time: float, n: int) -> tuple[float, float]:
    """(keep, weight of the score) at the SDE's time, from the paper's tables of n values on [0, 1]."""
    i = math.floor(time * (n - 1))
    if kind == "ve":
        sigma = np.geomspace(LOW, HIGH, n)
        return 1.0, sigma[i] ** 2 - (sigma[i - 1] ** 2 if i else 0.0)
    if kind == "vp":
        beta = np.linspace(B0 / n, B1 / n, n)[i]
        return 2.0 - math.sqrt(1.0 - beta), beta
    beta = (B0 + time * (B1 - B0)) / n
    return 1.0 + 0.5 * beta, beta * (1.0 - math.exp(-2.0 * B0 * time - (B1 - B0) * time**2))


@pytest.mark.parametrize(
    ("form", "prediction", "control"),
    [("velocity", "score", "batch"), ("noise", "eps", "batch"), ("velocity", "eps", "sample")],
)
@pytest.mark.parametrize(("time", "n"), [(1e-3, 1000), (0.0334, 1000), (0.37, 30)])
@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_the_published_step_is_affine_for_gaussian_data(
    form: str, prediction: str, control: str, kind: str, time: float, n: int
) -> None:
    s = SCHEDULES[kind]
    t_end = LOW * (HIGH / LOW) ** time if kind == "ve" else time
    common: dict[str, Any] = {
        "method": "ode",
        "schedule": s,
        "prediction": prediction,
        "t_end": t_end,
        "form": form,
        "control": control,
        "rtol": 0.05,
        "atol": 0.05,
        "dtype": torch.float64,
    }
    x = X * s.prior_std()
    network = Network(s, prediction)
    plain = fastdiff.sample(network, x, **common).numpy()
    before, network.calls = network.calls, 0
    got = fastdiff.sample(network, x, denoise_to_zero="score_sde", sde_steps=n, **common).numpy()
    assert network.calls == before
    alpha, sigma = s.alpha(t_end), s.sigma(t_end)
    keep, weight = published(kind, time, n)
    score = -(plain - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
    # Neighbours of VE's table, round-off of 1e-15 each, are 0.9% apart: 2e-13 of its weight. The rest is round-off of
    # x, the score's division by sigma too, since the weight is below sigma.
    np.testing.assert_allclose(got, keep * plain + weight * score, rtol=1e-12, atol=1e-12)
    x0 = fastdiff.sample(network, x, denoise_to_zero=True, **common).numpy()
    assert np.abs(got - x0).max() > 1e-7


def test_a_time_of_the_ve_table_takes_its_own_entry() -> None:
    s, sigma = SCHEDULES["ve"], np.geomspace(LOW, HIGH, 101)
    got = [published_denoising(s, s.at(float(v)), 101).score for v in sigma]
    np.testing.assert_allclose(got, np.diff(sigma**2, prepend=0.0), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"denoise_to_zero": "score_sdee"},
            ValueError,
            "unknown denoise_to_zero of method 'ode': 'score_sdee'; did you mean 'score_sde'",
        ),
        ({"denoise_to_zero": 1}, TypeError, "denoise_to_zero=1: method 'ode' expects False, True, 'score_sde'"),
        ({"schedule": "ddpm"}, ValueError, "'score_sde' is for ve, vp_linear and subvp, and the schedule is ddpm"),
        ({"schedule": "edm"}, ValueError, "for ve, vp_linear and subvp, and the schedule is edm.*denoise_to_zero=True"),
        ({"t_start": 0.1, "t_end": 0.9}, ValueError, "denoise_to_zero='score_sde' goes from noise to data"),
        ({"sde_steps": 10, "t_end": 0.7}, ValueError, r"sde_steps=10: beta/N = 1.34 at t=0.7.*\(sde_steps=1000\)"),
        ({"sde_steps": 10.5}, TypeError, "sde_steps=10.5: method 'ode' expects an integer"),
        ({"sde_steps": 0}, ValueError, "sde_steps=0: method 'ode' accepts"),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments = {"schedule": "vp_linear", "denoise_to_zero": "score_sde", **arguments}
    with pytest.raises(error, match=words):
        fastdiff.sample(lambda x, t: x, X, method="ode", **arguments)


def test_both_kinds_of_truth_value_and_the_way_back() -> None:
    network = Network(SCHEDULES["vp"], "eps")
    common: dict[str, Any] = {"schedule": "vp_linear", "dtype": torch.float64}
    a, b = (fastdiff.Sampler("ode", denoise_to_zero=v, **common)(network, X) for v in (True, np.bool_(True)))
    assert torch.equal(a, b)
    back = fastdiff.Sampler("ode", denoise_to_zero="score_sde", **common).inverse
    assert torch.equal(back(network, X), fastdiff.Sampler("ode", **common).inverse(network, X))
