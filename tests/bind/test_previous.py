"""Networks that predict the mean of the next, cleaner state: DDPM's own target before it was rewritten for eps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.analytic import mixture
from helpers.models import BACKENDS, Exact, exact

import fastdiff
from fastdiff import losses
from fastdiff.plan import ZA

MIXTURE = mixture([0.4, 0.6], [[-1.2, 0.4], [0.8, -0.6]], [0.25, 0.4])
X = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(8, 2)
BETAS = np.linspace(1e-4, 0.02, 1000)
BAR = np.cumprod(1 - BETAS)


class Previous:
    """E[x_t | x_s] for the mixture, from alpha-bar and Ho et al. 2020, eq. 7, on the subsequence `times`."""

    def __init__(self, times: tuple[float, ...], shift: float = 0.0) -> None:
        index = [round(t) for t in times[:-1]]
        assert times[-1] == -1
        self.before = dict(zip(index, [*BAR[index[1:]], 1.0], strict=True))
        self.shift = shift

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        now, before = BAR[round(float(t[0]))], self.before[round(float(t[0]))]
        eps = exact(MIXTURE, "eps", x, np.sqrt(now), np.sqrt(1 - now)) + self.shift
        x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
        beta = 1 - now / before
        return (np.sqrt(before) * beta * x0 + np.sqrt(1 - beta) * (1 - before) * x) / (1 - now)


def plan_of(spacing: str, steps: int | None, variance: str = "small") -> fastdiff.Plan:
    return fastdiff.plan("ddpm", steps, spacing=spacing, variance=variance)


CHAINS = [
    *itertools.product([None], ["ddim25", "10,15,20"], [None, (-1.0, 1.0), "dynamic"], BACKENDS),
    *itertools.product([1000], ["leading"], [None, (-1.0, 1.0)], BACKENDS[-1:]),
]


@pytest.mark.parametrize(("steps", "spacing", "clip", "backend"), CHAINS)
def test_samples_as_with_eps(steps, spacing, clip, backend) -> None:
    plan = plan_of(spacing, steps)
    common = {"plan": plan, "clip": clip, "dtype": torch.float64, "backend": backend}
    want = fastdiff.Sampler(prediction="eps", **common)(Exact(MIXTURE), X, seed=4)
    got = fastdiff.Sampler(prediction="previous", **common)(Previous(plan.times), X, seed=4)
    # x0 comes back from the mean by a division by c_0, and is multiplied by c_0 again in the step: a rounding of x,
    # some 1e-16, a step, which the contracting chain does not enlarge. The full chain's 1000 add up to below 1e-12.
    # A clip comes between the two: the roundings of (mean − c_x·x)/c_0 are multiplied by c_0 afterwards all the same.
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    if clip is not None:
        free = fastdiff.Sampler(**{**common, "clip": None}, prediction="eps")(Exact(MIXTURE), X, seed=4)
        assert float((want - free).abs().max()) > 0.01


def test_without_a_clip_the_step_is_the_networks_mean_plus_noise() -> None:
    """Algorithm 2 of Ho et al. by hand, with a network that is no distribution's posterior mean."""
    plan = plan_of("ddim25", None, "large")
    rng = torch.Generator().manual_seed(3)
    draws = [torch.randn(X.shape, generator=rng, dtype=torch.float64) for _ in range(plan.draws)]

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.9 * torch.sin(x) + 1e-4 * float(t[0])

    x = X
    for k, (t, stage) in enumerate(zip(plan.times[:-1], plan.stages, strict=True)):
        x = model(x, torch.full((8,), t)) + (stage.next_u[ZA] * draws[k] if k < plan.draws else 0.0)
    sampler = fastdiff.Sampler(plan=plan, prediction="previous", dtype=torch.float64)
    got = sampler(model, X, noise=lambda draw, like: draws[draw])
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


def test_zero_terminal_snr() -> None:
    """The first step starts at alpha = 0, where eps says nothing of x0; the mean does."""
    schedule = fastdiff.schedules.ddpm(zero_terminal_snr=True)
    common = {"method": "ddpm", "steps": 5, "spacing": "trailing", "schedule": schedule, "dtype": torch.float64}
    plan = fastdiff.plan("ddpm", 5, schedule=schedule, spacing="trailing")
    after = dict(zip(plan.times, plan.times[1:], strict=False))
    assert schedule.alpha(plan.times[0]) == 0

    def previous(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s, later = schedule.at(float(t[0])), schedule.at(after[float(t[0])])
        x0, ratio = exact(MIXTURE, "x0", x, s.alpha, s.sigma), s.alpha / later.alpha
        fresh = s.sigma**2 - (ratio * later.sigma) ** 2
        return (ratio * later.sigma**2 * x + later.alpha * fresh * x0) / s.sigma**2

    want = fastdiff.sample(Exact(MIXTURE, schedule, "x0"), X, prediction="x0", **common)
    got = fastdiff.sample(previous, X, prediction="previous", **common)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_guidance_and_a_classifier_as_with_eps() -> None:
    plan = plan_of("ddim25", None)
    both = {"plan": plan, "dtype": torch.float64}
    eps = fastdiff.Sampler(prediction="eps", **both)
    previous = fastdiff.Sampler(prediction="previous", **both)

    def conditioned(of):
        return lambda x, t, y: torch.cat([of(c)(x[i : i + 1], t[i : i + 1]) for i, c in enumerate(y.tolist())])

    def exact_eps(shift: float):
        return lambda x, t: Exact(MIXTURE)(x, t) + shift

    guidance = {"guidance_scale": 2.0, "cond": {"y": torch.full((8,), 0.3)}, "uncond": {"y": torch.zeros(8)}}
    want = eps(conditioned(exact_eps), X, seed=2, **guidance)
    got = previous(conditioned(lambda c: Previous(plan.times, c)), X, seed=2, **guidance)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-11)

    def gradient(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 1.0 - x

    want = eps(Exact(MIXTURE), X, seed=2, classifier_grad=gradient)
    got = previous(Previous(plan.times), X, seed=2, classifier_grad=gradient)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="use classifier_form='mean'"):
        previous(Previous(plan.times), X, classifier_grad=gradient, classifier_form="score")


def test_the_predicted_x0_and_its_correction() -> None:
    plan = plan_of("ddim25", None)
    seen: dict[str, list[torch.Tensor]] = {"eps": [], "previous": []}
    ends = {}
    for kind, model in (("eps", Exact(MIXTURE)), ("previous", Previous(plan.times))):

        def correct(x0: torch.Tensor, t: torch.Tensor, kind: str = kind) -> torch.Tensor:
            seen[kind].append(x0.clone())
            return 0.9 * x0

        sampler = fastdiff.Sampler(plan=plan, prediction=kind, dtype=torch.float64)
        ends[kind] = sampler(model, X, seed=1, correct_x0=correct)
    assert len(seen["previous"]) == 25
    # Here x0 itself is compared, not times c_0: at the first steps of 25, c_0 and alpha are about 1e-2.
    torch.testing.assert_close(torch.stack(seen["previous"]), torch.stack(seen["eps"]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ends["previous"], ends["eps"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["ddim", "dpm3", "dpmpp2m", "analytic_ddpm", "ode", "dpm_adaptive"])
def test_other_methods_refuse(method) -> None:
    options = {"gamma": "upper"} if method.startswith("analytic") else {}
    with pytest.raises(ValueError, match=f"'previous' with method '{method}'.*method='ddpm'"):
        fastdiff.Sampler(method, prediction="previous", **options)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    model.prediction = "previous"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"'previous' with method '{method}'.*method='ddpm'"):
        fastdiff.sample(model, X, method=method, **options)
    assert fastdiff.sample(model, X, method="ddpm", steps=2).shape == X.shape


def test_losses_and_misspellings() -> None:
    for loss, schedule in ((losses.sde_loss, "vp_linear"), (losses.smld_loss, "smld")):
        with pytest.raises(ValueError, match="'previous' is the mean of a step of a DDPM chain, which only ddpm_loss"):
            loss(lambda x, t: x, X, schedule, prediction="previous")
    with pytest.raises(ValueError, match="did you mean 'previous'"):
        fastdiff.Sampler("ddpm", prediction="previos")
