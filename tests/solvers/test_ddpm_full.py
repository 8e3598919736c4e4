"""DDPM in full: variances of every kind, from the subsequence's own betas; networks that give their variance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import BACKENDS, wavy

import fastdiff
from fastdiff.plan import ZA
from fastdiff.solvers import step_variances

X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(4, 3, 2)
BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def chain(plan: fastdiff.Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta, beta-tilde and its clipped form for each step, newest time first, from alpha-bar alone."""
    index = np.array([int(t) for t in plan.times[:-1]])
    assert plan.times[-1] == -1
    bar, before = BAR[index], np.append(BAR[index[1:]], 1.0)
    beta = 1 - bar / before
    tilde = beta * (1 - before) / (1 - bar)
    clipped = tilde.copy()
    clipped[-1] = tilde[-2] if len(index) > 1 else beta[-1]
    return beta, tilde, clipped


@pytest.mark.parametrize(
    ("steps", "spacing"), [(1000, "leading"), (None, "ddim25"), (None, "10,15,20"), (2, "trailing"), (1, "leading")]
)
def test_variances_are_the_subsequences(steps, spacing) -> None:
    plans = {v: fastdiff.plan("ddpm", steps, spacing=spacing, variance=v) for v in ("small", "large", "learned_range")}
    beta, tilde, clipped = chain(plans["small"])
    noise = {v: np.array([s.next_u[ZA] for s in p.stages]) for v, p in plans.items()}
    # 1 - bar/before in float64 keeps 1e-12 of a beta of 1e-4.
    np.testing.assert_allclose(noise["small"][:-1] ** 2, tilde[:-1], rtol=1e-10)
    np.testing.assert_allclose(noise["large"][:-1] ** 2, beta[:-1], rtol=1e-10)
    assert all(values[-1] == 0 for values in noise.values())
    assert [len([d for d in s.draws if d >= 0]) for s in plans["small"].stages] == [1] * (len(beta) - 1) + [0]
    # What the mean form of guidance multiplies: no noise in the last step, yet a variance where the paper's code has
    # one.
    np.testing.assert_allclose(step_variances(plans["small"]), [*tilde[:-1], 0.0], rtol=1e-10)
    np.testing.assert_allclose(step_variances(plans["large"]), [*beta[:-1], clipped[-1]], rtol=1e-10)
    for v, low, high in zip((-1.0, 1.0, 0.3), (clipped, beta, None), (clipped, beta, None), strict=True):
        got = np.array([2 * (s.learned_variance[0] + s.learned_variance[1] * v) for s in plans["learned_range"].stages])
        want = np.log(low) if low is not None else 0.65 * np.log(beta) + 0.35 * np.log(clipped)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
        assert high is low


def constant(v: float):
    return lambda x, t: torch.cat([wavy(x, t), torch.full_like(x, v)], 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ends_of_the_range_are_small_and_large(backend) -> None:
    common = {"method": "ddpm", "steps": 12, "dtype": torch.float64, "backend": backend, "seed": 3}
    for v, variance in ((-1.0, "small"), (1.0, "large")):
        got = fastdiff.sample(constant(v), X, variance="learned_range", **common)
        want = fastdiff.sample(wavy, X, variance=variance, **common)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_exact_variance_gives_the_exact_distribution(steps, backend) -> None:
    """For N(m, s²) the reverse kernel is Gaussian: with its variance the chain is exact on every subsequence.

    The run is linear in x_T and in every draw, so that mean and variance of its result follow from unit impulses.
    """
    m, s, schedule = 0.6, 0.5, fastdiff.schedules.ddpm()
    plan = fastdiff.plan("ddpm", steps, variance="learned", spacing="trailing")
    after = dict(zip(plan.times, plan.times[1:], strict=False))

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b = schedule.at(float(t[0])), schedule.at(after[float(t[0])])
        total = a.alpha**2 * s**2 + a.sigma**2
        x0 = m + a.alpha * s**2 / total * (x - a.alpha * m)
        # q(x_t | x_s) of Gaussian data, by conditioning the joint: var(x_t) - cov²/var(x_s).
        later = b.alpha**2 * s**2 + b.sigma**2
        cov = a.alpha * b.alpha * s**2 + a.alpha / b.alpha * b.sigma**2
        variance = max(later - cov**2 / total, 1e-300)
        return torch.cat([x0, torch.full_like(x, math.log(variance))], 1)

    first = schedule.at(plan.times[0])
    spread = math.hypot(first.alpha * s, first.sigma)
    draws = plan.draws
    # Sample b: the unit impulse in draw b, in x_T (b = draws), or nothing.
    start = torch.full((draws + 2, 1, 1), first.alpha * m, dtype=torch.float64)
    start[draws] += spread

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        z = torch.zeros_like(like)
        z[draw] = 1.0
        return z

    common = {"prediction": "x0", "dtype": torch.float64, "backend": backend, "noise": noise}
    got = fastdiff.sample(
        model, start, method="ddpm", steps=steps, spacing="trailing", variance="learned", **common
    ).flatten()
    # The run ends with the mean of x0 given x at the last time with noise: the variance of that mean, by total
    # variance.
    last = schedule.at(plan.times[-2])
    known = (last.alpha * s**2) ** 2 / (last.alpha**2 * s**2 + last.sigma**2)
    assert float(got[-1]) == pytest.approx(m, abs=1e-9)
    assert float(((got[:-1] - got[-1]) ** 2).sum()) == pytest.approx(known, rel=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variance", ["learned_range", "learned"])
def test_classifier_free_guidance_takes_the_conditional_variance(variance, backend) -> None:
    def model(x, t, y):
        return torch.cat([wavy(x + y, t), torch.sin(x - y) - 1], 1)

    def mixed(x, t):
        cond, uncond = model(x, t, 0.4), model(x, t, -0.3)
        return torch.cat([3.0 * cond[:, :3] - 2.0 * uncond[:, :3], cond[:, 3:]], 1)

    common = {"method": "ddpm", "variance": variance, "steps": 5, "dtype": torch.float64, "backend": backend}
    y, z = torch.full((4, 1, 1), 0.4, dtype=torch.float64), torch.full((4, 1, 1), -0.3, dtype=torch.float64)
    got = fastdiff.sample(model, X, guidance_scale=3.0, cond={"y": y}, uncond={"y": z}, clip=(-1, 1), **common)
    want = fastdiff.sample(mixed, X, clip=(-1, 1), **common)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", [torch.float32, torch.float16, torch.bfloat16])
def test_back_ends_agree(network) -> None:
    x = X.float().repeat(1, 1, 17)
    common = {"method": "ddpm", "variance": "learned_range", "steps": 8, "seed": 9, "clip": (-1, 1)}

    def model(x, t):
        return torch.cat([wavy(x.float(), t), torch.sin(2 * x.float())], 1).to(network)

    a, b = (fastdiff.sample(model, x, backend=name, **common) for name in ("reference", BACKENDS[-1]))
    # x0 stays in [-1, 1] and each step keeps errors: a few of float32's round-offs, where the networks see the same
    # input.
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 if network == torch.float32 else 2e-2)


def test_hooks_and_the_callers_own_loop() -> None:
    seen = []
    options = {"method": "ddpm", "variance": "learned_range", "steps": 6, "dtype": torch.float64}
    model = constant(0.2)
    got, trajectory = fastdiff.sample(
        model, X, return_trajectory=True, callback=lambda k, t, x, x0: seen.append(x0), check_finite=True, **options
    )
    assert all(torch.equal(a, b) for a, b in zip(trajectory.x0, seen, strict=True))
    point = fastdiff.schedules.ddpm().at(trajectory.times[0].item())
    torch.testing.assert_close(seen[0], (X - point.sigma * wavy(X, torch.tensor([point.t] * 4))) / point.alpha)
    sampler = fastdiff.Sampler(**options)
    state = sampler.begin(X)
    while not state.done:
        state = sampler.step(state, model(state.input, state.time))
    assert torch.equal(state.x, got)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    def model(x, t):
        return torch.cat([wavy(x, t), torch.cos(x)], 1)

    options = {"method": "ddpm", "variance": "learned_range", "steps": 5, "seed": 2}
    x = X.float()
    whole = fastdiff.sample(model, x, **options)
    parts = [fastdiff.sample(model, x[i : i + 1], first_sample=i, **options) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts))


def test_plans_with_variances_are_kept_and_checked() -> None:
    plan = fastdiff.plan("ddpm", 4, variance="learned_range")
    assert plan.learned_variance and fastdiff.Plan.from_json(plan.to_json()) == plan
    assert "^: za times exp(c0 + c1·v)" in str(plan) and not fastdiff.plan("ddpm", 4).learned_variance
    first, *rest = plan.stages
    for change, words in (
        ({"learned_variance": (1.0,)}, r"learned_variance got \(1.0,\), expected \(\) or two finite numbers"),
        ({"learned_variance": (1.0, math.nan)}, "two finite numbers"),
        ({"langevin_norm": "batch"}, "does not go with langevin_norm"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(plan, stages=(replace(first, **change), *rest))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: fastdiff.sample(wavy, X, method="ddpm", variance="learned"),
            r"expected \(4, 6, 2\): twice the channels",
        ),
        (lambda: fastdiff.sample(constant(0.0), X, method="ddpm"), "variance='learned_range' takes them"),
        (lambda: fastdiff.sample(wavy, X[:, 0, 0], method="ddpm", variance="learned"), r"needs channels.*\(4,\)"),
        (
            lambda: fastdiff.plan("ddpm", 4, variance="learnt"),
            "unknown variance of method 'ddpm': 'learnt'; did you mean",
        ),
        (lambda: fastdiff.plan("ddim", 4, variance="small"), "unknown option of method 'ddim': 'variance'"),
    ],
)
def test_errors(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()
