"""The recipes of docs/pytorch.md for networks of denoising-diffusion-pytorch, against samplers written from its
formulas."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pages import ROOT, blocks

import fastdiff

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's blocks leave."""
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(ROOT / "docs" / "pytorch.md"):
        exec(compile(block, "pytorch.md", "exec", dont_inherit=True), names)
    return names


def test_the_policy_is_euler_written_by_hand(page: dict[str, Any]) -> None:
    x = fastdiff.randn((1, 16, 7), prior=True)
    for k in range(10):
        x = x + page["policy"](x, torch.full((1,), k / 10)) / 10
    assert torch.allclose(page["actions"], x, rtol=0, atol=1e-5)


def test_the_sigmoid_schedule_is_its_formula(page: dict[str, Any]) -> None:
    # gamma(t) = (v_end − sigmoid(start + t (end − start))) / (v_end − v_start) at t = k/N, times clipped at 0.001.
    t = np.arange(1, 1000) / 1000
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    gamma = (sigmoid(3) - sigmoid(6 * t - 3)) / (sigmoid(3) - sigmoid(-3))
    alpha = fastdiff.schedules.discrete(betas=page["betas"]).alpha(np.arange(999.0))
    assert np.allclose(alpha**2, gamma, rtol=1e-9)


def test_ddim_with_the_clipped_log_snr(page: dict[str, Any]) -> None:
    # v = alpha·eps − sigma·x0 with alpha² = sigmoid(log_snr): x0 = alpha·x − sigma·v, clipped, and eps from it.
    def at(k: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        low, high = np.arctan(np.exp(-7.5)), np.arctan(np.exp(7.5))
        log_snr = torch.tensor(-2 * np.log(np.tan(low + k / 999 * (high - low))))
        return log_snr, torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    times = fastdiff.plan("ddim", 20, schedule=page["schedule"], spacing="linspace").times
    x = fastdiff.randn(tuple(X.shape), prior=True).double()
    for k, following in itertools.pairwise(times):
        log_snr, alpha, sigma = at(k)
        v = page["unet_of_log_snr"](x.float(), log_snr.float().expand(2)).double()
        x0 = (alpha * x - sigma * v).clamp(-1, 1)
        eps = (x - alpha * x0) / sigma
        if following < 0:
            x = x0
        else:
            _, alpha, sigma = at(following)
            x = alpha * x0 + sigma * eps
    # Float32 against float64, over 20 steps.
    assert torch.allclose(page["x_of_log_snr"].double(), x, rtol=0, atol=2e-5)


def test_guidance_is_cond_scale(page: dict[str, Any]) -> None:
    def scaled(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        null = page["classes_unet"](x, t, page["classes"], cond_drop_prob=1.0)
        return null + 3.0 * (page["classes_unet"](x, t, page["classes"], cond_drop_prob=0.0) - null)

    want = fastdiff.sample(scaled, shape=tuple(X.shape), steps=10, schedule="ddpm")
    assert torch.allclose(page["x"], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("steps", "kept"), [(20, True), (20, False), (17, True)])
def test_sampling_timesteps(page: dict[str, Any], steps: int, kept: bool) -> None:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12) on their whole times, with noise; the eps of the step is made
    from the clipped x0 (`kept`), or is the network's."""
    times = torch.linspace(-1, 999, steps + 1).int().tolist()[::-1]
    gamma = np.append(np.cumprod(1.0 - page["betas"]), 1.0)
    noise = [torch.randn(X.shape, generator=torch.Generator().manual_seed(k)) for k in range(steps)]

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) + 1e-4 * t.reshape(-1, 1, 1, 1)

    want = X.double()
    for i, (k, following) in enumerate(itertools.pairwise(times)):
        a, b = gamma[k], gamma[following]
        eps = network(want.float(), torch.full((2,), float(k))).double()
        x0 = ((want - np.sqrt(1 - a) * eps) / np.sqrt(a)).clamp(-1, 1)
        eps = (want - np.sqrt(a) * x0) / np.sqrt(1 - a) if kept else eps
        if following < 0:
            want = x0
            break
        std = 0.5 * np.sqrt((1 - a / b) * (1 - b) / (1 - a))
        want = np.sqrt(b) * x0 + np.sqrt(1 - b - std**2) * eps + std * noise[i].double()
    given: dict[str, Any] = {"spacing": times} if 1000 % steps else {"steps": steps, "spacing": "trailing"}
    made = fastdiff.sample(
        network,
        X,
        method="ddim",
        eta=0.5,
        schedule=fastdiff.schedules.discrete(betas=page["betas"]),
        clip=(-1, 1),
        use_clipped_model_output=kept,
        noise=lambda draw, like: noise[draw].to(like),
        **given,
    )
    # Float32 against float64; the noisiest eps is divided by alpha, about 1e-2 there.
    assert torch.allclose(made.double(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "method"), [("DDIMScheduler", "ddim"), ("DDPMScheduler", "ddpm")])
def test_a_diffusion_policy(name: str, method: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(10)
    observed = torch.tensor([0.2, -0.4]).reshape(2, 1, 1)

    def policy(x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) + observation + 1e-3 * t.reshape(-1, 1, 1)

    def noise(t: int) -> torch.Generator:
        return torch.Generator().manual_seed(t)

    start = torch.randn(2, 16, 7, generator=noise(1000))
    want, drawn = start, []
    for t in scheduler.timesteps:
        want = scheduler.step(policy(want, t.expand(2), observed), t, want, generator=noise(int(t))).prev_sample
        drawn.append(torch.randn(2, 16, 7, generator=noise(int(t))))
    made = fastdiff.sample(
        policy,
        start,
        method=method,
        steps=10,
        spacing="leading",
        schedule=scheduler,
        clip=(-1, 1),
        model_kwargs={"observation": observed},
        noise=lambda draw, like: drawn[draw],
        **({"use_clipped_model_output": False} if method == "ddim" else {}),
    )
    assert torch.allclose(made, want, rtol=0, atol=1e-5)
