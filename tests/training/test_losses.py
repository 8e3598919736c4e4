"""The training losses against NumPy by hand, closed forms for Gaussian data, and analytic gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp, mpf

from fastdiff import schedules
from fastdiff.losses import ddpm_loss, flow_loss, q_sample, sde_loss, smld_loss, vlb_loss

PREDICTIONS = ("eps", "x0", "v", "score", "flow")
SDES = {"vp": schedules.vp_linear(), "cosine": schedules.vp_cosine(), "subvp": schedules.subvp(), "ve": schedules.ve()}


def by_hand(kind: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, sigma and g² of each SDE at public times, as the papers give them."""
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t * t
    if kind == "vp":
        return np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral)), beta
    if kind == "subvp":
        return np.exp(-integral / 2), 1 - np.exp(-integral), beta * (1 - np.exp(-2 * integral))
    if kind == "cosine":
        angle, rate = math.pi / 2 * (t + 0.008) / 1.008, math.pi / 2 / 1.008
        alpha = np.cos(angle) / math.cos(math.pi / 2 * 0.008 / 1.008)
        return alpha, np.sqrt(1 - alpha**2), 2 * rate * np.tan(angle)
    return np.ones_like(t), t, 2 * t * t * math.log(50 / 0.01)


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A network that is neither linear nor right."""
    return torch.sin(0.7 * x) + 0.01 * t.reshape(-1, *[1] * (x.ndim - 1))


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, count, 2, 3, generator=generator, dtype=torch.float64)
    return x0, noise


def target(prediction: str, x0: np.ndarray, eps: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return {
        "eps": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "score": -eps / sigma,
        "flow": eps - x0,
    }[prediction]


def score_of(prediction: str, out: np.ndarray, x: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The score that an output stands for, solved from x = alpha x0 + sigma eps."""
    if prediction == "score":
        return out
    if prediction == "eps":
        return -out / sigma
    if prediction == "x0":
        return (alpha * out - x) / sigma**2
    # v = alpha eps − sigma x0, or flow = eps − x0: two linear equations for x0 and eps.
    a, b = (alpha, -sigma) if prediction == "v" else (np.ones_like(alpha), -np.ones_like(alpha))
    eps = (b * x - alpha * out) / (b * sigma - alpha * a)
    return -eps / sigma


def column(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 1, 1)


# The SDEs' coefficients.


def exact_log_alpha(kind: str, t: Any) -> Any:
    if kind in ("vp", "subvp"):
        return -(mpf("0.1") * t + mpf("9.95") * t * t) / 2
    if kind == "cosine":
        s = mpf("0.008")
        return mpmath.log(mpmath.cos(mp.pi / 2 * (t + s) / (1 + s)) / mpmath.cos(mp.pi / 2 * s / (1 + s)))
    if kind == "flow":
        return mpmath.log((1 - t) / (1 + 2 * t))
    return mpf(0)


def exact_variance(kind: str, t: Any) -> Any:
    alpha2 = mpmath.exp(2 * exact_log_alpha(kind, t))
    if kind in ("vp", "cosine"):
        return 1 - alpha2
    if kind == "subvp":
        return (1 - alpha2) ** 2
    if kind == "flow":
        return (3 * t / (1 + 2 * t)) ** 2
    if kind == "edm":
        return t * t
    return (mpf("0.01") * mpf(5000) ** t) ** 2


ALL = {**SDES, "flow": schedules.flow(3.0), "edm": schedules.edm()}


@pytest.mark.parametrize("kind", ALL)
def test_drift_and_diffusion_against_derivatives_in_many_digits(kind: str) -> None:
    """f = d log alpha / dt and g² = d sigma²/dt − 2 f sigma², with t the SDE's own time (for VE not the public one)."""
    schedule = ALL[kind]
    with mp.workdps(40):
        for t in (1e-3, 0.02, 0.3, 0.77, 0.99):
            f = mpmath.diff(lambda u: exact_log_alpha(kind, u), mpf(t))
            g2 = mpmath.diff(lambda u: exact_variance(kind, u), mpf(t)) - 2 * f * exact_variance(kind, mpf(t))
            public = float(mpf("0.01") * mpf(5000) ** mpf(t)) if kind == "ve" else t
            # A few float64 roundings each, 1.1e-16; at t = 0.99 those of the argument of 1/(1 − t) and of the cosine's
            # tangent count about 100 times.
            assert schedule.drift(public) == pytest.approx(float(f), rel=5e-14, abs=0.0)
            assert schedule.diffusion(public) ** 2 == pytest.approx(float(g2), rel=5e-14)


def test_drift_and_diffusion_take_arrays_and_scalars_inside_the_range() -> None:
    times = np.array([0.0, 0.5, 1.0])
    schedule = schedules.subvp()
    assert schedule.drift(times).shape == schedule.diffusion(times).shape == (3,)
    assert isinstance(schedule.drift(0.5), float) and schedule.diffusion(0.0) == 0.0
    with pytest.raises(ValueError, match="outside the range"):
        schedule.diffusion(1.5)
    with pytest.raises(ValueError, match=r"chain of 1000 steps.*vp_linear"):
        schedules.ddpm().drift(3.0)


# The forward process.


def test_q_sample_by_hand() -> None:
    x0, noise = batch()
    t = np.array([0, 1, 500, 999])
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t]
    expected = column(np.sqrt(bar)) * x0.numpy() + column(np.sqrt(1 - bar)) * noise.numpy()
    # cumprod of 1,000 factors: up to 1,000 roundings.
    np.testing.assert_allclose(q_sample(x0, torch.from_numpy(t), "ddpm", noise).numpy(), expected, rtol=1e-12)
    one = q_sample(x0, 0.5, "vp_linear", noise)
    alpha, sigma, _ = by_hand("vp", np.array(0.5))
    np.testing.assert_allclose(one.numpy(), alpha * x0.numpy() + sigma * noise.numpy(), rtol=1e-13)
    assert q_sample(x0.float(), 3, "ddpm", noise.float()).dtype == torch.float32


def test_q_sample_draws_from_the_generator_and_carries_gradients() -> None:
    x0 = batch()[0].requires_grad_(True)
    a, b = (q_sample(x0, 300, "ddpm", generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, q_sample(x0, 300, "ddpm"))
    a.sum().backward()
    assert x0.grad is not None
    torch.testing.assert_close(x0.grad, torch.full_like(x0, schedules.ddpm().alpha(300.0)), rtol=1e-15, atol=0.0)


# Each loss by hand.


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_ddpm_loss_by_hand(prediction: str, kind: str) -> None:
    x0, noise = batch()
    t = np.array([0.0, 1.0, 500.0, 999.0])
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t.astype(int)]
    alpha, sigma = column(np.sqrt(bar)), column(np.sqrt(1 - bar))
    x = alpha * x0.numpy() + sigma * noise.numpy()
    out = np.sin(0.7 * x) + 0.01 * column(t)
    error = out - target(prediction, x0.numpy(), noise.numpy(), alpha, sigma)
    if prediction == "score":
        error = error * sigma
    each = (error**2 if kind == "l2" else np.abs(error)).mean(axis=(1, 2))
    given: dict[str, Any] = {"kind": kind, "prediction": prediction, "t": torch.from_numpy(t), "noise": noise}
    got = ddpm_loss(wavy, x0, "ddpm", **given, reduction="none")
    np.testing.assert_allclose(got.numpy(), each, rtol=1e-11)  # 1,000 roundings of the product, as above
    assert ddpm_loss(wavy, x0, "ddpm", **given).item() == pytest.approx(each.mean(), rel=1e-11)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("reduce_mean", [True, False])
def test_smld_loss_by_hand(prediction: str, reduce_mean: bool) -> None:
    x0, noise = batch()
    levels = np.array([20.0, 3.0, 0.5, 0.1])
    index = np.array([0, 3, 1, 1])
    sigma = column(levels[index])
    x = x0.numpy() + sigma * noise.numpy()
    score = score_of(prediction, np.sin(0.7 * x) + 0.01 * sigma, x, np.ones_like(sigma), sigma)
    square = (sigma * (score + noise.numpy() / sigma)) ** 2
    each = square.mean(axis=(1, 2)) if reduce_mean else 0.5 * square.sum(axis=(1, 2))
    got = smld_loss(wavy, x0, levels, prediction=prediction, reduce_mean=reduce_mean, t=index, noise=noise)
    # x0's way goes through sums of size 1/sigma² = 100: their roundings, relative to losses of order 1.
    assert got.item() == pytest.approx(each.mean(), rel=1e-12)


def test_smld_loss_gives_the_network_of_a_schedule_its_label() -> None:
    x0, noise = batch()
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return torch.zeros_like(x)

    schedule = schedules.smld(0.01, 50.0, 11)
    index = np.array([0, 3, 10, 5])
    got = smld_loss(model, x0, schedule, t=index, noise=noise, reduction="none")
    assert torch.equal(seen[0], torch.from_numpy(schedule.model_time(index.astype(np.float64))))
    np.testing.assert_allclose(got.numpy(), noise.square().mean(dim=(1, 2)).numpy(), rtol=1e-13)


@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("likelihood", [False, True])
def test_sde_loss_by_hand(kind: str, prediction: str, likelihood: bool) -> None:
    x0, noise = batch()
    t = np.array([0.01, 1.0, 12.0, 50.0]) if kind == "ve" else np.array([0.05, 0.3, 0.6, 0.99])
    flat_alpha, flat_sigma, flat_g2 = by_hand(kind, t)
    alpha, sigma, g2 = column(flat_alpha), column(flat_sigma), column(flat_g2)
    x = alpha * x0.numpy() + sigma * noise.numpy()
    score = score_of(prediction, np.sin(0.7 * x) + 0.01 * column(t), x, alpha, sigma)
    square = (g2 if likelihood else sigma**2) * (score + noise.numpy() / sigma) ** 2
    given: dict[str, Any] = {"likelihood_weighting": likelihood, "prediction": prediction, "t": t, "noise": noise}
    mean = sde_loss(wavy, x0, SDES[kind], **given)
    half_sum = sde_loss(wavy, x0, SDES[kind], **given, reduce_mean=False, reduction="none")
    # The hand's way subtracts scores of up to 1/sigma² = 1e4 (VE, x0): 1e4 roundings of 1e-16 each.
    np.testing.assert_allclose(mean.item(), square.mean(axis=(1, 2)).mean(), rtol=1e-11)
    np.testing.assert_allclose(half_sum.numpy(), 0.5 * square.sum(axis=(1, 2)), rtol=1e-11)


def test_likelihood_weighting_of_ve_is_a_constant_factor() -> None:
    """g² = 2 log(sigma_max/sigma_min) sigma²: both weights train alike, whatever the times."""
    x0, noise = batch()
    schedule = schedules.ve(0.02, 7.0)
    losses = [
        sde_loss(wavy, x0, schedule, likelihood_weighting=w, noise=noise, generator=torch.Generator().manual_seed(2))
        for w in (True, False)
    ]
    assert (losses[0] / losses[1]).item() == pytest.approx(2 * math.log(350.0), rel=1e-13)


# Gaussian data: the smallest loss there is.


STD = 0.6


def floor(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The variance of eps given x_t for data N(0, STD²): what the exact network's squared error is on average."""
    return (alpha * STD) ** 2 / ((alpha * STD) ** 2 + sigma**2)


def perfect(
    levels: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], prediction: str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.from_numpy(v)[:, None] for v in levels(t.numpy()))
        variance = (alpha * STD) ** 2 + sigma**2
        eps, x0 = sigma / variance * x, alpha * STD**2 / variance * x
        return {
            "eps": eps,
            "x0": x0,
            "v": alpha * eps - sigma * x0,
            "score": -eps / sigma,
            "flow": eps - x0,
        }[prediction]

    return model


def within(each: torch.Tensor, value: np.ndarray, elements: int, weight: np.ndarray | float = 1.0) -> None:
    """The mean of losses against the mean over `value`, the floor at equally likely times, times their weights.

    An error is normal with variance c; its squares have variance 2c², and the mean of a sample's D squares 2c²/D. Times
    add the variance of weight·c. Five standard errors.
    """
    mean = np.mean(weight * value)
    variance = np.mean(2 * (weight * value) ** 2) / elements + np.var(weight * value)
    assert each.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / len(each)))


def test_exact_network_reaches_the_smallest_ddpm_loss() -> None:
    generator = torch.Generator().manual_seed(11)
    x0 = STD * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    def levels(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.sqrt(bar[t.astype(int)]), np.sqrt(1 - bar[t.astype(int)])

    each = ddpm_loss(perfect(levels, "eps"), x0, "ddpm", generator=generator, reduction="none")
    smallest = floor(np.sqrt(bar), np.sqrt(1 - bar))
    within(each, smallest, 4)
    # |e| of a normal error of variance c: mean sqrt(2c/π), variance c (1 − 2/π) ≤ 0.37; D = 4.
    absolute = ddpm_loss(perfect(levels, "eps"), x0, "ddpm", kind="l1", generator=generator)
    spread = math.sqrt((0.37 / 4 + np.var(np.sqrt(2 * smallest / math.pi))) / len(x0))
    assert absolute.item() == pytest.approx(np.sqrt(2 * smallest / math.pi).mean(), abs=5 * spread)


@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize("likelihood", [False, True])
def test_exact_network_reaches_the_smallest_sde_loss(kind: str, likelihood: bool) -> None:
    """Also a test of the times that are drawn: uniform in the SDE's own time, from eps to the last."""
    generator = torch.Generator().manual_seed(12)
    x0 = STD * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    eps = 0.05
    own = eps + ((0.9946 if kind == "cosine" else 1.0) - eps) * (np.arange(100_000) + 0.5) / 100_000
    alpha, sigma, g2 = by_hand(kind, 0.01 * 5000.0**own if kind == "ve" else own)
    model = perfect(lambda t: by_hand(kind, t)[:2], "eps")
    given: dict[str, Any] = {"likelihood_weighting": likelihood, "eps": eps, "generator": generator}
    each = sde_loss(model, x0, SDES[kind], **given, reduction="none")
    within(each, floor(alpha, sigma), 4, g2 / sigma**2 if likelihood else 1.0)


def test_exact_network_reaches_the_smallest_smld_loss() -> None:
    generator = torch.Generator().manual_seed(13)
    x0 = STD * torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    levels = np.geomspace(50.0, 0.01, 20)
    model = perfect(lambda t: (np.ones_like(t), t), "score")
    each = smld_loss(model, x0, levels, generator=generator, reduction="none")
    within(each, floor(np.ones(20), levels), 4)


@pytest.mark.parametrize("kind", SDES)
def test_all_predictions_of_the_exact_network_have_one_loss(kind: str) -> None:
    x0, noise = (v.reshape(4, 6) for v in batch())
    t = np.array([0.05, 0.3, 0.6, 0.99])
    values = [
        sde_loss(perfect(lambda t: by_hand(kind, t)[:2], p), x0, SDES[kind], prediction=p, t=t, noise=noise).item()
        for p in PREDICTIONS
    ]
    # Errors of x0 are multiplied by alpha/sigma, at most 20 here.
    assert values == pytest.approx([values[0]] * 5, rel=1e-12)


# Gradients.


@pytest.mark.parametrize("loss", ["ddpm", "sde", "smld"])
def test_gradient_of_a_linear_model(loss: str) -> None:
    """The model w·x: d/dw mean (w x − eps)² = 2 mean x (w x − eps)."""
    x0, noise = batch()
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    t = np.array([0, 1, 2, 3]) if loss == "smld" else np.array([0.1, 0.4, 0.7, 1.0])
    levels = np.array([0.1, 0.5, 2.0, 8.0])
    if loss == "smld":
        sigma = column(levels)
        value = smld_loss(lambda x, t: w * x, x0, levels, prediction="eps", t=t, noise=noise)
        x = x0.numpy() + sigma * noise.numpy()
    elif loss == "sde":
        value = sde_loss(lambda x, t: w * x, x0, "vp_linear", t=t, noise=noise)
        alpha, sigma, _ = by_hand("vp", t)
        x = column(alpha) * x0.numpy() + column(sigma) * noise.numpy()
    else:
        value = ddpm_loss(lambda x, t: w * x, x0, "ddpm", t=t, noise=noise)
        x = q_sample(x0, t, "ddpm", noise).numpy()
    value.backward()
    assert w.grad is not None
    assert w.grad.item() == pytest.approx(2 * np.mean(x * (0.3 * x - noise.numpy())), rel=1e-12)


def test_a_step_of_training_lowers_the_loss() -> None:
    torch.manual_seed(1)
    net = torch.nn.Linear(6, 6)
    x0, noise = (v.float().reshape(4, 6) for v in batch())
    given: dict[str, Any] = {"t": [10, 300, 600, 900], "noise": noise}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    before = ddpm_loss(lambda x, t: net(x), x0, "ddpm", **given)
    before.backward()
    optimizer.step()
    assert ddpm_loss(lambda x, t: net(x), x0, "ddpm", **given) < before


# The contract with the model.


def test_model_gets_model_times_and_keyword_arguments() -> None:
    x0, noise = (v.float() for v in batch())
    labels = torch.arange(4)

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.float32 and t.shape == (4,) and y is labels
        torch.testing.assert_close(t, torch.full((4,), 999 * 0.25), rtol=1e-7, atol=0.0)
        return torch.zeros_like(x, dtype=torch.bfloat16)

    schedule = schedules.vp_linear(time_scale=999.0)
    loss = sde_loss(model, x0, schedule, t=0.25, noise=noise, model_kwargs={"y": labels})
    # Sums are in float32, although the network ended in bfloat16 (as under autocast).
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(noise.square().mean().item(), rel=1e-6)


def test_losses_follow_what_the_model_states() -> None:
    """As `sample` does; also within DistributedDataParallel, which hides the attributes of its module."""

    class Stating(torch.nn.Module):
        schedule, prediction = "cosine", "v"

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return wavy(x, t)

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
            return self.module(*arguments)

    x0, noise = batch()
    for loss in (ddpm_loss, vlb_loss):
        want = loss(wavy, x0, "cosine", prediction="v", t=300, noise=noise)
        for model in (Stating(), Wrapper(Stating())):
            assert torch.equal(loss(model, x0, t=300, noise=noise), want)
            other = loss(model, x0, "ddpm", prediction="eps", t=300, noise=noise)
            assert torch.equal(other, loss(wavy, x0, t=300, noise=noise)) and not torch.equal(other, want)
    for model in (Stating(), Wrapper(Stating())):
        assert torch.equal(
            sde_loss(model, x0, "vp", t=0.3, noise=noise), sde_loss(wavy, x0, "vp", prediction="v", t=0.3, noise=noise)
        )
        assert torch.equal(
            smld_loss(model, x0, [1.0, 2.0], t=1, noise=noise),
            smld_loss(wavy, x0, [1.0, 2.0], prediction="v", t=1, noise=noise),
        )


def test_one_generator_is_one_result() -> None:
    x0 = batch()[0]
    for loss in (
        lambda g: ddpm_loss(wavy, x0, generator=g),
        lambda g: sde_loss(wavy, x0, "subvp", generator=g),
        lambda g: smld_loss(wavy, x0, [0.1, 1.0, 10.0], generator=g),
    ):
        a, b, c = (loss(torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2))
        assert a == b != c


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, n: ddpm_loss(wavy, x, kind="l3"), ValueError, "unknown kind 'l3'.*l2, l1"),
        (lambda x, n: ddpm_loss(wavy, x, prediction="epsilon"), ValueError, "unknown prediction 'epsilon'.*eps"),
        (lambda x, n: ddpm_loss(wavy, x, reduction="sum"), ValueError, "unknown reduction 'sum'"),
        (lambda x, n: ddpm_loss(wavy, x, prediction="score", t=-1), ValueError, "a time t where sigma is 0"),
        (lambda x, n: ddpm_loss(wavy, x, "vp_linear"), ValueError, r"no integer times.*sde_loss\(model"),
        (lambda x, n: sde_loss(wavy, x, "ddpm"), ValueError, r"ddpm_loss\(model"),
        (lambda x, n: sde_loss(wavy, x, "flow"), ValueError, r"a continuous VP, sub-VP or VE .*call flow_loss\(model"),
        (lambda x, n: ddpm_loss(wavy, x, "flow"), ValueError, r"no integer times.*call flow_loss\(model"),
        (
            lambda x, n: sde_loss(wavy, x, "edm"),
            ValueError,
            r"a loss of your own q_sample\(x0, t, schedule\) gives x_t",
        ),
        (lambda x, n: flow_loss(wavy, x, "ddpm"), ValueError, r"flow_loss got ddpm.*call ddpm_loss\(model"),
        (lambda x, n: flow_loss(wavy, x, "vp"), ValueError, r"flow_loss got vp_linear.*call sde_loss\(model"),
        (lambda x, n: flow_loss(wavy, x, t=1.5), ValueError, "time 1.5 is outside the range"),
        (
            lambda x, n: flow_loss(wavy, x, prediction="previous"),
            ValueError,
            "only ddpm_loss, vlb_loss and hybrid_loss",
        ),
        (lambda x, n: sde_loss(wavy, x, "vp", eps=0.0), ValueError, r"eps=0.0: expected a time between 0 and 1.0"),
        (lambda x, n: sde_loss(wavy, x, "vp", t=0.0), ValueError, "t got 0.0, where sigma is 0"),
        (lambda x, n: sde_loss(wavy, x, "vp", t=1.5), ValueError, "time 1.5 is outside the range"),
        (lambda x, n: sde_loss(wavy, x, "vp", t=[0.5, 0.6]), ValueError, r"t has shape \(2,\); expected .*\(4,\)"),
        (lambda x, n: smld_loss(wavy, x, [1.0, 0.0]), ValueError, "finite positive levels"),
        (lambda x, n: smld_loss(wavy, x, "ve"), ValueError, r"expected discrete levels.*sde_loss\(model"),
        (
            lambda x, n: smld_loss(wavy, x, [1.0, 2.0], t=2),
            ValueError,
            "expected integer indices of the levels, 0 to 1",
        ),
        (
            lambda x, n: ddpm_loss(wavy, x, first_sample=np.ones(2)),
            TypeError,
            "first_sample=array.*: expected an integer",
        ),
        (lambda x, n: ddpm_loss(wavy, x, noise=n[:2]), ValueError, r"noise has shape.*randn_like"),
        (lambda x, n: ddpm_loss(wavy, x, noise=n.float()), ValueError, "noise has shape, dtype and device"),
        (lambda x, n: ddpm_loss(wavy, x, noise=0.0), TypeError, "noise must be a tensor"),
        (lambda x, n: ddpm_loss(wavy, x.long()), TypeError, r"x0 has dtype torch.int64.*x0\.float\(\)"),
        (lambda x, n: ddpm_loss(wavy, x.numpy()), TypeError, "x0 must be a torch.Tensor"),
        (lambda x, n: q_sample(torch.zeros(0, 3), 3), ValueError, r"x0 has shape \(0, 3\)"),
        (lambda x, n: ddpm_loss(lambda x, t: x[:, :1], x), ValueError, "the model returned shape"),
    ],
)
def test_bad_arguments_say_what_would_be_right(call: Any, error: type[Exception], message: str) -> None:
    x0, noise = batch()
    with pytest.raises(error, match=message):
        call(x0, noise)


@pytest.mark.parametrize(
    ("schedule", "own_time", "sign"),
    [
        ("flow", lambda sigma: sigma, 1.0),
        (schedules.flow(3.0, time_scale=1000), lambda sigma: 1000 * sigma, 1.0),
        (schedules.flow_to_data(2.0), lambda sigma: 1 - sigma, -1.0),
    ],
)
def test_flow_matching_by_its_formula(schedule: Any, own_time: Any, sign: float) -> None:
    x0, eps = torch.randn(2, 5, 16, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    shift = getattr(schedule, "shift", 1.0)
    sigma = (shift * t / (1 + (shift - 1) * t)).reshape(-1, 1, 1)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(x, (1 - sigma) * x0 + sigma * eps, rtol=0, atol=1e-12)
        torch.testing.assert_close(time, own_time(sigma[:, 0, 0]), rtol=1e-12, atol=1e-12)
        return weight * x

    got = flow_loss(net, x0, schedule, t=t, noise=eps, reduction="none")
    want = (weight * ((1 - sigma) * x0 + sigma * eps) - sign * (eps - x0)).square().mean((1, 2))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(got.mean(), weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(want.mean(), weight)[0], rtol=1e-12, atol=0)


def test_the_least_loss_is_the_velocity_that_is_sampled() -> None:
    """Gaussian data: the best network is the one whose samples have the data's law."""
    mean, std = 0.3, 0.6
    z, eps = torch.randn(2, 20000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = mean + std * z
    t = 0.4  # of the schedule, the noise at 1: the network is given 0.6
    x = q_sample(x0, t, "flow_to_data", eps)
    design = torch.stack([x.flatten(), torch.ones_like(x).flatten()], 1)
    fitted = torch.linalg.lstsq(design, (x0 - eps).flatten()).solution.tolist()
    variance = (1 - t) ** 2 * std**2 + t**2
    slope = ((1 - t) * std**2 - t) / variance
    exact = [slope, mean - slope * (1 - t) * mean]
    # 40,000 numbers: the estimate's own deviation is below 0.01.
    assert np.abs(np.subtract(fitted, exact)).max() < 0.03
    losses = [
        float(flow_loss(lambda x, t, a=a, b=b: a * x + b, x0, "flow_to_data", t=t, noise=eps))
        for a, b in (
            fitted,
            (fitted[0] + 0.05, fitted[1]),
            (fitted[0] - 0.05, fitted[1]),
            (fitted[0], fitted[1] + 0.05),
        )
    ]
    assert losses[0] == min(losses)
