"""What programs do with k-diffusion's functions: keep tensors, write into them, seed, and meet errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import fastdiff.integrations.k_diffusion as sampling

SIGMAS = torch.tensor([10.0, 4.0, 1.0, 0.3, 0.0], dtype=torch.float64)
X = 10.0 * torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x0 of N(0, 0.36)."""
    return 0.36 * x / (0.36 + sigma.reshape(-1, 1, 1, 1) ** 2)


def euler(x: torch.Tensor, sigmas: torch.Tensor, noise: list[torch.Tensor], gammas: list[float]) -> torch.Tensor:
    """Algorithm 2 of Karras et al. (2022), arXiv 2206.00364, by Euler steps."""
    for i, gamma in enumerate(gammas):
        hat = sigmas[i] * (1.0 + gamma)
        x = x + (hat**2 - sigmas[i] ** 2).sqrt() * noise[i]
        x = x + (sigmas[i + 1] - hat) * (x - denoiser(x, hat[None])) / hat
    return x


def test_each_call_of_the_model_has_tensors_of_its_own() -> None:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        kept.append((x, x.clone()))
        return denoiser(x, sigma)

    want = sampling.sample_heun(denoiser, X, SIGMAS, disable=True)
    assert torch.equal(sampling.sample_heun(model, X, SIGMAS, disable=True), want)
    assert len(kept) == 7 and all(torch.equal(x, then) for x, then in kept)
    # Work in place on it is the model's own.
    inside = sampling.sample_heun(lambda x, s: x.mul_(denoiser(torch.ones_like(x), s)), X, SIGMAS, disable=True)
    torch.testing.assert_close(inside, want, rtol=1e-13, atol=0)


def test_what_a_callback_writes() -> None:
    def halved(told: dict[str, Any]) -> None:
        told["denoised"].mul_(0.5)

    # The slope of Euler's method is taken before, and x0 of DPM-Solver++ is read after the callback.
    plain, written = (sampling.sample_euler(denoiser, X, SIGMAS, None, c, True) for c in (None, halved))
    assert torch.equal(plain, written)
    half = sampling.sample_dpmpp_2m(lambda x, s: 0.5 * denoiser(x, s), X, SIGMAS, disable=True)
    assert torch.equal(sampling.sample_dpmpp_2m(denoiser, X, SIGMAS, None, halved, True), half)
    with pytest.raises(RuntimeError, match=r"the callback changed 'x' in place, which the step has already read: .*co"):
        sampling.sample_euler(denoiser, X, SIGMAS, None, lambda told: told["x"].mul_(0.5), True)


def test_churn_makes_a_step_of_a_level_that_is_given_twice() -> None:
    sigmas = torch.tensor([10.0, 4.0, 4.0, 4.0, 1.0, 0.3, 0.0], dtype=torch.float64)
    told: list[tuple[int, float]] = []
    torch.manual_seed(1)
    made = sampling.sample_euler(
        denoiser, X, sigmas, None, lambda d: told.append((d["i"], float(d["sigma"]))), True, s_churn=3.0, s_tmin=0.5
    )
    torch.manual_seed(1)
    noise = [torch.randn_like(X) for _ in range(6)]
    want = euler(X, sigmas, noise, [min(3.0 / 6, math.sqrt(2.0) - 1.0)] * 5 + [0.0])
    # Levels lie two roundings of float32 apart.
    assert float((made - want).abs().max()) < 2**-20 * float(want.abs().max())
    assert told == [(i, float(s)) for i, s in enumerate(sigmas[:-1])]
    # A clean end that is given twice is one step less, with the churn of the whole list.
    torch.manual_seed(1)
    made = sampling.sample_euler(denoiser, X, torch.cat([sigmas, sigmas[-1:]]), disable=True, s_churn=1.0, s_tmin=0.5)
    want = euler(X, sigmas, noise, [1.0 / 7] * 5 + [0.0])
    assert float((made - want).abs().max()) < 2**-20 * float(want.abs().max())


def test_x_and_sigmas_of_other_kinds() -> None:
    want = sampling.sample_dpmpp_2m(denoiser, X, SIGMAS, disable=True)
    asks = X.clone().requires_grad_()
    made = sampling.sample_dpmpp_2m(denoiser, asks, SIGMAS, disable=True)
    assert torch.equal(made, want) and not made.requires_grad
    whole = torch.tensor([10, 4, 1, 0])
    asked: list[tuple[torch.Tensor, ...]] = []

    def noise(*sigmas: torch.Tensor) -> torch.Tensor:
        asked.append(sigmas)
        # One for all channels, which k-diffusion spreads too.
        return torch.ones(3, 1, 1, 1, dtype=torch.float64)

    made = sampling.sample_dpmpp_sde(denoiser, X, whole, noise_sampler=noise, disable=True)
    assert float(asked[0][1]) == pytest.approx(math.sqrt(40.0), rel=1e-6)
    want = sampling.sample_dpmpp_sde(
        denoiser, X, whole.double(), noise_sampler=lambda s, t: torch.ones_like(X), disable=True
    )
    torch.testing.assert_close(made, want, rtol=1e-6, atol=1e-6)
    # The numbers of a torch seed are those of torch.randn_like, which follows x's memory.
    last = X.contiguous(memory_format=torch.channels_last)
    torch.manual_seed(2)
    kept = [torch.randn_like(last) for _ in range(3)]
    torch.manual_seed(2)
    made = sampling.sample_euler_ancestral(denoiser, last, SIGMAS, disable=True)
    want = sampling.sample_euler_ancestral(denoiser, X, SIGMAS, noise_sampler=lambda s, t: kept.pop(0), disable=True)
    assert torch.equal(made, want)


def test_the_way_up_of_dpm_fast() -> None:
    """The exact flow of a Gaussian: x grows as sqrt(0.36 + sigma²)."""
    up = sampling.sample_dpm_fast(denoiser, X, 10.0, 0.1, 60, disable=True)
    want = X * math.sqrt((0.36 + 100.0) / (0.36 + 0.01))
    assert float((up - want).abs().max()) < 1e-3 * float(want.abs().max())


def test_the_times_that_a_callback_is_told() -> None:
    told: list[dict[str, Any]] = []
    sampling.sample_dpm_fast(denoiser, X, 0.1, 10.0, 7, None, told.append, True)
    sampling.sample_dpm_adaptive(denoiser, X, 0.1, 10.0, None, told.append, True)
    for one in told:
        assert set(one) == {"x", "i", "t", "t_up", "sigma", "sigma_hat", "denoised"}
        assert float(one["t"]) == float(one["t_up"]) == pytest.approx(-math.log(float(one["sigma"])))


def test_log_likelihood() -> None:
    """The state at sigma_min is N(0, 0.36 + sigma_min²); the ODE's divergence of a Gaussian needs no expectation."""
    x = 0.6 * torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    got, info = sampling.log_likelihood(denoiser, x, 0.03, 50.0, {}, atol=1e-7, rtol=1e-7)
    std = math.sqrt(0.36 + 0.03**2)
    want = torch.distributions.Normal(0.0, std).log_prob(x).flatten(1).sum(1)
    # N(0, 50²) stands for N(0, 50² + 0.36) at the end: 0.36/50²/2 for each of 18 elements, and a like part of z².
    assert got.dtype == x.dtype and float((got - want).abs().max()) < 18 * 0.36 / 2500 and info["fevals"] > 20
    counted: list[int] = []
    sampling.log_likelihood(lambda x, s, k: (counted.append(k), denoiser(x, s))[1], x.float(), 0.03, 50.0, {"k": 7})
    assert set(counted) == {7}


def test_formulas_of_a_step() -> None:
    for eta in (0.0, 0.5, 1.0):
        down, up = sampling.get_ancestral_step(3.0, 1.0, eta)
        assert down**2 + up**2 == pytest.approx(1.0) and up == pytest.approx(eta * math.sqrt(8.0 / 9.0))
    down, up = sampling.get_ancestral_step(torch.tensor(3.0), torch.tensor(0.0))
    assert float(down) == float(up) == 0.0
    sigma = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    slope = sampling.to_d(X, sigma, torch.zeros_like(X))
    assert torch.equal(slope, torch.stack([X[0], X[1] / 2, X[2] / 4]))
    assert torch.equal(sampling.to_d(X, sigma[1], X), torch.zeros_like(X))


def test_errors() -> None:
    def refused(error: type[Exception], match: str, name: str = "euler_ancestral", **given: Any) -> None:
        with pytest.raises(error, match=match):
            getattr(sampling, f"sample_{name}")(denoiser, X, **{"sigmas": SIGMAS, "disable": True, **given})

    refused(ValueError, "sigmas rise, and euler_ancestral .* draws noise.*: give eta=0", sigmas=SIGMAS[:-1].flip(0))
    refused(TypeError, r"sample_dpmpp_2m: got an unexpected .*'eta'; its arguments are model, x,", "dpmpp_2m", eta=1.0)
    refused(TypeError, r"extra_args got \[1\]; expected a dict of keyword arguments", extra_args=[1])
    shape = r"noise_sampler\(sigma, sigma_next\) gave {}; expected standard normals of x's shape, \(3, 2, 4, 4\)"
    refused(TypeError, shape.format("float"), noise_sampler=lambda s, t: 0.0)
    refused(TypeError, shape.format(r"\(5,\)"), noise_sampler=lambda s, t: torch.zeros(5))
    refused(ValueError, r"sigmas.sort\(descending=True\).values", "euler", sigmas=SIGMAS[[0, 2, 1]])
    with pytest.raises(ValueError, match=r"sigma_min=10, sigma_max=0.1: sample_dpm_adaptive runs from noise"):
        sampling.sample_dpm_adaptive(denoiser, X, 10.0, 0.1)
    with pytest.raises(AttributeError, match=r"unknown sampler 'sample_dpmpp2m'; did you mean 'sample_dpmpp_2m'\?"):
        getattr(sampling, "sample_dpmpp2m")  # noqa: B009
    with pytest.raises(AttributeError, match="has no attribute 'DPMSolver'"):
        getattr(sampling, "DPMSolver")  # noqa: B009
