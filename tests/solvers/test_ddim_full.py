"""DDIM in full: eta, grids, the noise that belongs to a clipped x0, and its name as an ODE solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.analytic import gaussian, gaussian_ode
from helpers.models import BACKENDS, Exact, wavy

import fastdiff

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
GRIDS = ["uniform", "quadratic", "leading", "linspace", "trailing", "time_uniform", "logsnr", "karras", "10,15,20"]


def levels(t: float) -> tuple[float, float]:
    """alpha and sigma at an index, or at -1, where it is clean; from the betas alone."""
    bar = 1.0 if t < 0 else float(np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: int(t) + 1]))
    return math.sqrt(bar), math.sqrt(1 - bar)


@pytest.mark.parametrize("spacing", GRIDS)
def test_eta_1_is_ddpm(spacing) -> None:
    common = {"steps": None if "," in spacing else 9, "spacing": spacing, "dtype": torch.float64, "seed": 7}
    got = fastdiff.sample(wavy, X, method="ddim", eta=1.0, **common)
    torch.testing.assert_close(got, fastdiff.sample(wavy, X, method="ddpm", **common), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", GRIDS)
def test_pf_euler_is_ddim(spacing) -> None:
    """Eq. 15 is Euler's step in sigma/alpha of eq. 14; the paper says that it is DDIM with eta = 0."""
    common = {"steps": None if "," in spacing else 9, "spacing": spacing, "dtype": torch.float64}
    want = fastdiff.sample(wavy, X, method="ddim", **common)
    got = fastdiff.sample(wavy, X, method="pf_euler", **common)
    # In noise space x0 comes last: round-off over 1/alpha_T.
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    clipped = {"clip": (-0.4, 0.6), **common}
    want = fastdiff.sample(wavy, X, method="ddim", **clipped)
    torch.testing.assert_close(fastdiff.sample(wavy, X, method="pf_euler", **clipped), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("clip", [None, (-0.4, 0.6)])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "trailing"])
def test_the_papers_update_with_the_noise_of_either_x0(spacing, eta, clip, again, backend) -> None:
    """Eqs. 12 and 16 written out, with betas; the noise is computed again from the clipped x0, or stays."""
    plan = fastdiff.plan("ddim", 7, spacing=spacing, eta=eta)
    x = X
    for i, (s, t) in enumerate(zip(plan.times, plan.times[1:], strict=False)):
        (a, sigma), (b, later) = levels(s), levels(t)
        x0 = (x - sigma * wavy(x, torch.full((4,), s, dtype=torch.float64))) / a
        eps = (x - a * x0) / sigma
        x0 = x0 if clip is None else x0.clamp(*clip)
        eps = (x - a * x0) / sigma if again else eps
        std = eta * later / sigma * math.sqrt(1 - a**2 / b**2)
        x = b * x0 + math.sqrt(max(later**2 - std**2, 0.0)) * eps
        if std > 0:
            x = x + std * fastdiff.randn(X.shape, seed=1, draw=i, dtype=torch.float64, backend=backend)
    common = {"spacing": spacing, "clip": clip, "dtype": torch.float64, "backend": backend, "seed": 1}
    got = fastdiff.sample(wavy, X, method="ddim", steps=7, eta=eta, use_clipped_model_output=again, **common)
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow"])
def test_a_kept_eps_with_guidance_of_every_prediction(prediction, dynamic, backend) -> None:
    """One output, guided, gives x0, which is clipped, and eps, which is not."""
    schedule = fastdiff.schedules.ddpm()

    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return wavy(x, t) + y.reshape(-1, 1)

    labels = torch.tensor([0.1, -0.2, 0.3, 0.5], dtype=torch.float64)
    plan = fastdiff.plan("ddim", 5)
    x = X
    for s, t in zip(plan.times, plan.times[1:], strict=False):
        a, sigma = schedule.alpha(s), schedule.sigma(s)
        b, later = (1.0, 0.0) if t < 0 else (schedule.alpha(t), schedule.sigma(t))
        clock = torch.full((4,), s, dtype=torch.float64)
        g = 3.0 * network(x, clock, labels) - 2.0 * network(x, clock, -labels)
        x0 = {
            "eps": (x - sigma * g) / a,
            "x0": g,
            "v": a * x - sigma * g,
            "score": (x + sigma**2 * g) / a,
            "flow": (x - sigma * g) / (a + sigma),
        }[prediction]
        eps = (x - a * x0) / sigma
        if dynamic:
            bound = torch.quantile(x0.abs(), 0.995, dim=1, keepdim=True).clamp(min=1.0)
            x0 = torch.maximum(torch.minimum(x0, bound), -bound) / bound
        else:
            x0 = x0.clamp(-0.4, 0.6)
        x = b * x0 + later * eps
    got = fastdiff.sample(
        network,
        X,
        method="ddim",
        steps=5,
        schedule="ddpm",
        prediction=prediction,
        clip="dynamic" if dynamic else (-0.4, 0.6),
        use_clipped_model_output=False,
        cond={"y": labels},
        uncond={"y": -labels},
        guidance_scale=3.0,
        dtype=torch.float64,
        backend=backend,
    )
    # From x0 to eps and back: rounding over sigma_0 = 0.01, of values up to 157.
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("spacing", GRIDS)
def test_every_grid_and_prediction_goes_to_the_ode(spacing, prediction) -> None:
    """N(m, s²) on many steps of each grid, against the closed form: first order, an error of a few parts in 100 at
    400."""
    mean, std = np.array([0.7, -0.3, 0.1]), 0.5
    spacing = "100,150,150" if "," in spacing else spacing
    steps = None if "," in spacing else 400
    model = Exact(gaussian(mean, std), prediction=prediction)
    plan = fastdiff.plan("ddim", steps, spacing=spacing)
    alpha, sigma = plan.stages[0].alpha, plan.stages[0].sigma
    start = torch.from_numpy(gaussian_ode(mean, std, X.numpy(), alpha, sigma))
    options = {"spacing": spacing, "prediction": prediction, "schedule": "ddpm", "dtype": torch.float64}
    got = fastdiff.sample(model, start, method="ddim", steps=steps, **options)
    last = fastdiff.schedules.ddpm().at(plan.times[-1])
    np.testing.assert_allclose(got, gaussian_ode(mean, std, X.numpy(), last.alpha, last.sigma), atol=0.05)


def test_bad_eta() -> None:
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"eta={eta}: method 'ddim' accepts \[0, 1\]"):
            fastdiff.plan("ddim", 4, eta=eta)
    with pytest.raises(ValueError, match="unknown option of method 'pf_euler': 'eta'"):
        fastdiff.plan("pf_euler", 4, eta=0.5)
