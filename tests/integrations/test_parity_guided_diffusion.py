"""Numbers of openai/guided-diffusion (gaussian_diffusion.py, respace.py) on one fixed problem.

Made in float64 on MIXTURE's exact model from x_T = Z, with `betas = linspace(1e-4, 0.02, 1000)`, `SpacedDiffusion`
with `space_timesteps(1000, spacing)`, and `randn_like` replaced by `draw(0)`, `draw(1)`, … of each step in turn. The
published code rounds its tables and the conditioned mean to float32; both roundings were taken out. Each number is the
sum of i·result_i, i = 1 … 6. On all elements both agree to 1e-14 relative, and to 5e-13 where x_T is encoded with
clipping.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.analytic import mixture
from helpers.models import BACKENDS, Exact

import fastdiff

MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
Z = torch.tensor([[0.5, -1.1], [1.0, 0.3], [-2.7, 2.2]], dtype=torch.float64)
EPS = Exact(MIXTURE)

# (variance, spacing, clip_denoised, whether cond_fn is given): p_sample_loop.
DDPM = [
    ("small", "50", False, False, 0.5648029344427028),
    ("small", "10,15,20", False, True, 6.8751102587113895),
    ("small", "10,15,20", True, False, 0.7412546318404911),
    ("large", "50", False, False, 0.8027618749515351),
    ("large", "10,15,20", False, True, 9.598925583358279),
    ("large", "ddim25", False, False, 1.1904442746709818),
    ("learned_range", "50", False, False, 0.120742774328078),
    ("learned_range", "10,15,20", False, False, 1.6868802781770993),
    ("learned_range", "10,15,20", True, True, 8.941472184851015),
    ("learned_range", "ddim25", False, False, 0.7356302223806758),
    ("learned", "10,15,20", False, False, 1.653844363759811),
    ("learned", "10,15,20", False, True, 9.622498481595963),
    ("learned", "10,15,20", True, True, 9.610906854933251),
]
# (eta, spacing, clip_denoised, whether cond_fn is given): ddim_sample_loop.
DDIM = [
    (0.0, "ddim25", False, False, -1.7634046236108794),
    (0.0, "ddim25", True, False, 1.4396535838213569),
    (0.0, "ddim25", False, True, 24.28993573440804),
    (0.0, "10,15,20", True, False, 1.4950378390827628),
    (0.5, "ddim25", True, False, -0.7680695963416037),
    (0.5, "10,15,20", False, False, -2.0453712947213556),
    (0.5, "10,15,20", False, True, 21.934874785424828),
    (1.0, "10,15,20", False, False, 0.7412546318404907),
    (1.0, "10,15,20", False, True, 9.509440258836015),
]
# (eta, spacing, clip_denoised, whether denoised_fn is given): ddim_sample_loop with cond_fn, which shifts x0 last.
AFTER = [
    (0.0, "ddim25", True, False, 18.287607358426577),
    (0.5, "10,15,20", True, False, 17.608092042780335),
    (1.0, "10,15,20", True, True, 11.040486108571976),
    (0.0, "10,15,20", False, True, 20.919597984614363),
]
# (spacing, clip_denoised): ddim_reverse_sample at t = 0 … N − 2, from x = Z.
REVERSE = [
    ("ddim25", False, 10.145089030434285),
    ("ddim25", True, -144.85901142657582),
    ("10,15,20", False, 10.277817425062867),
]
# p_sample_loop with learned_range, "ddim25", clip_denoised, cond_fn and this denoised_fn.
DENOISED = 11.848066036595377
# Both sum the same few terms in another order: 1e-16 times what the encoding amplifies, 1e3 with clipping.
TOLERANCE = 1e-11


def draw(number: int, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.cos(1.0 + number + 3 * np.arange(like.numel())).reshape(tuple(like.shape)))


def gradient(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.7 * (1.3 - x) * (1 + t[0] / 1000)


def with_range(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([EPS(x, t), torch.sin(3 * x + 0.01 * t[0])], 1)


def with_log_variance(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([EPS(x, t), -3 + 0.5 * torch.sin(3 * x + 0.01 * t[0])], 1)


MODELS = {"small": EPS, "large": EPS, "learned_range": with_range, "learned": with_log_variance}


def numbers(x: torch.Tensor) -> float:
    return float((x.flatten() * torch.arange(1.0, 7.0, dtype=torch.float64)).sum())


def shared(spacing: str, clip: bool, guided: bool, backend: str) -> dict[str, object]:
    return {
        "spacing": spacing,
        "clip": (-1, 1) if clip else None,
        "classifier_grad": gradient if guided else None,
        "noise": draw,
        "dtype": torch.float64,
        "backend": backend,
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("variance", "spacing", "clip", "guided", "expected"), DDPM)
def test_p_sample_loop(variance, spacing, clip, guided, expected, backend) -> None:
    common = shared(spacing, clip, guided, backend)
    got = fastdiff.sample(MODELS[variance], Z, method="ddpm", variance=variance, **common)
    assert numbers(got) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("eta", "spacing", "clip", "guided", "expected"), DDIM)
def test_ddim_sample_loop(eta, spacing, clip, guided, expected, backend) -> None:
    got = fastdiff.sample(EPS, Z, method="ddim", eta=eta, **shared(spacing, clip, guided, backend))
    assert numbers(got) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("eta", "spacing", "clip", "denoised", "expected"), AFTER)
def test_ddim_sample_loop_guided_after_the_clip(eta, spacing, clip, denoised, expected, backend) -> None:
    common = shared(spacing, clip, True, backend)
    correct = {"correct_x0": lambda x0, t: 0.9 * x0 + 0.05} if denoised else {}
    got = fastdiff.sample(EPS, Z, method="ddim", eta=eta, classifier_form="score_after_clip", **correct, **common)
    assert numbers(got) == pytest.approx(expected, rel=TOLERANCE)
    # Guidance before the clip, the default, is another sample.
    assert numbers(fastdiff.sample(EPS, Z, method="ddim", eta=eta, **correct, **common)) != pytest.approx(expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "options"), [("pf_euler", {}), ("ddpm", {"classifier_form": "score"})])
def test_guidance_after_a_clip_that_is_not_there(method, options, backend) -> None:
    """Without a clip the two forms are one, in noise and in data space."""
    common = {"method": method, **shared("10,15,20", False, True, backend)}
    got = fastdiff.sample(EPS, Z, **{**common, "classifier_form": "score_after_clip"})
    assert numbers(got) == pytest.approx(numbers(fastdiff.sample(EPS, Z, **common, **options)), rel=TOLERANCE)


@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m", "unipc", "heun"])
def test_guidance_after_the_clip_needs_one_evaluation_a_step(method) -> None:
    with pytest.raises(ValueError, match=f"score_after_clip.*such as ddim, not '{method}'.*classifier_form='score'"):
        fastdiff.sample(EPS, Z, method=method, steps=4, classifier_grad=gradient, classifier_form="score_after_clip")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("spacing", "clip", "expected"), REVERSE)
def test_ddim_reverse_sample(spacing, clip, expected, backend) -> None:
    bounds = (-1, 1) if clip else None
    sampler = fastdiff.Sampler("ddim", spacing=spacing, dtype=torch.float64, clip=bounds, backend=backend)
    assert numbers(sampler.invert(EPS, Z)) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_denoised_fn(backend) -> None:
    got = fastdiff.sample(
        with_range,
        Z,
        method="ddpm",
        variance="learned_range",
        correct_x0=lambda x0, t: 0.9 * x0 + 0.05 * torch.sin(x0),
        **shared("ddim25", True, True, backend),
    )
    assert numbers(got) == pytest.approx(DENOISED, rel=TOLERANCE)


def test_guidance_after_the_clip_at_zero_terminal_snr() -> None:
    schedule = fastdiff.schedules.discrete(alphas_cumprod=np.linspace(0.99, 0.0, 100))
    with pytest.raises(ValueError, match="classifier_form='score_after_clip' needs alpha > 0: start at an earlier"):
        fastdiff.sample(
            EPS,
            Z,
            method="ddim",
            steps=4,
            spacing="trailing",
            schedule=schedule,
            prediction="v",
            classifier_grad=gradient,
            classifier_form="score_after_clip",
        )
