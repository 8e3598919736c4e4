"""The variational losses against the published program's numbers, closed forms for Gaussian data, and many digits."""

from __future__ import annotations

import math
import warnings
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp, mpf

import fastdiff
from fastdiff.losses import ddpm_loss, hybrid_loss, variational_bound, vlb_loss
from fastdiff.solvers import step_variances
from fastdiff.training.chain import Chain
from fastdiff.training.decoder import check_scaled, decoder_log_prob

# Numbers of openai/guided-diffusion (gaussian_diffusion.py's training_losses and calc_bpd_loop, respace.py), in float64
# with its tables' rounding to float32 taken out: betas of get_named_beta_schedule(schedule, 1000), 8-bit data X0, the
# networks below, the noise draw(0), or draw(0), draw(1), … from the noisiest step of calc_bpd_loop. Each number is the
# sum of i·(value of sample i), and of the terms, over the steps too. Its normal distribution is the tanh one.
X0 = (2 * torch.tensor([[0, 37], [128, 255], [200, 64]], dtype=torch.float64) / 255 - 1).reshape(3, 2, 1)

# (schedule, spacing, prediction, variance, times, rescaled, the number): LossType KL and RESCALED_KL.
KL = [
    ("ddpm", None, "eps", "small", (0, 333, 998), False, 2.5219816067344505),
    ("ddpm", None, "eps", "large", (0, 333, 998), False, 2.5219759140181957),
    ("ddpm", "50", "eps", "learned_range", (0, 326, 979), True, 119.76526688833297),
    ("cosine", "ddim25", "x0", "learned", (0, 320, 920), True, 6378.629361758356),
    ("cosine", "10,15,20", "previous", "small", (0, 453, 982), False, 23.809009132451862),
    ("ddpm", None, "x0", "learned_range", (0, 333, 998), False, 22.605837388441767),
]
# (schedule, prediction, the number): MSE with a fixed variance.
MSE = [
    ("ddpm", "eps", 1.7647481185909777),
    ("ddpm", "x0", 2.1195790583634806),
    ("ddpm", "previous", 0.15503228453760384),
]
# (schedule, spacing, prediction, variance, times, vlb_weight, the number): MSE (weight 1/N) and RESCALED_MSE (0.001).
HYBRID = [
    ("ddpm", "50", "eps", "learned_range", (0, 326, 979), 1 / 50, 4.191851935760725),
    ("ddpm", "50", "eps", "learned_range", (0, 326, 979), 1e-3, 1.9163118648823976),
    ("ddpm", None, "eps", "learned_range", (0, 333, 998), 1e-3, 4.078411944275692),
    ("cosine", None, "x0", "learned", (0, 333, 998), 1e-3, 155.86415385338572),
    ("cosine", "10,15,20", "previous", "learned_range", (0, 453, 982), 1e-3, 1.7062450846704338),
]
# (schedule, spacing, prediction, variance, clip_denoised, (total, prior, vb, xstart_mse, mse)): calc_bpd_loop.
BOUND = [
    (
        *("ddpm", "50", "eps", "small", True),
        (211.22805314879605, 7.595756600594076e-05, 211.22797719123002, 225.91747489342748, 55.60819566149604),
    ),
    (
        *("ddpm", "10,15,20", "eps", "learned_range", True),
        (189.1794724639298, 7.59575660059408e-05, 189.1793965063638, 244.30766115927884, 34.487626902891854),
    ),
    (
        *("cosine", "ddim25", "x0", "large", False),
        (216.76654734439657, 0.006973355918685647, 216.75957398847788, 49.28947370452089, 514.3511385017745),
    ),
    (
        *("ddpm", "50", "previous", "learned", False),
        (7293.08434133712, 7.595756600594076e-05, 7293.084265379554, 144037.57815987928, 325.9509653977721),
    ),
]
# The published differences of means and log-variances cancel: on all elements of 510 runs they agree to 3e-10 relative
# (a term of 1e-6 of the mean), those listed to 1e-11. The prior's term loses 1e-16 of 1 to the same, whatever its size.
TOLERANCE, CANCELLED = 1e-10, 1e-15


def draw(number: int, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.cos(1.0 + number + 3 * np.arange(like.numel())).reshape(tuple(like.shape)))


def mean(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.9 * x + 0.1 * torch.sin(3 * x) + 0.0002 * t.reshape(-1, 1, 1)


def with_range(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([mean(x, t), torch.sin(3 * x + 0.01 * t.reshape(-1, 1, 1))], 1)


def with_log_variance(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([mean(x, t), -5 + torch.sin(3 * x + 0.01 * t.reshape(-1, 1, 1))], 1)


MODELS = {"small": mean, "large": mean, "learned_range": with_range, "learned": with_log_variance}


def number(values: torch.Tensor) -> float:
    return float((values * torch.arange(1.0, len(values) + 1, dtype=torch.float64)).sum())


@pytest.mark.parametrize(("schedule", "spacing", "prediction", "variance", "t", "rescale", "expected"), KL)
def test_kl_and_rescaled_kl(schedule, spacing, prediction, variance, t, rescale, expected) -> None:
    given = {"spacing": spacing, "prediction": prediction, "variance": variance, "rescale": rescale, "cdf": "tanh"}
    got = vlb_loss(MODELS[variance], X0, schedule, t=t, noise=draw(0, X0), reduction="none", **given)
    assert number(got) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("schedule", "prediction", "expected"), MSE)
def test_mse(schedule, prediction, expected) -> None:
    given = {"t": (0, 333, 998), "noise": draw(0, X0), "prediction": prediction}
    assert number(ddpm_loss(mean, X0, schedule, reduction="none", **given)) == pytest.approx(expected, rel=TOLERANCE)
    # Half the sum of a sample's 2 elements is their mean.
    half_sum = ddpm_loss(mean, X0, schedule, reduction="none", reduce_mean=False, **given)
    assert number(half_sum) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("schedule", "spacing", "prediction", "variance", "t", "weight", "expected"), HYBRID)
def test_mse_with_a_learned_variance(schedule, spacing, prediction, variance, t, weight, expected) -> None:
    given = {"spacing": spacing, "prediction": prediction, "variance": variance, "vlb_weight": weight, "cdf": "tanh"}
    got = hybrid_loss(MODELS[variance], X0, schedule, t=t, noise=draw(0, X0), reduction="none", **given)
    assert number(got) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("schedule", "spacing", "prediction", "variance", "clip", "expected"), BOUND)
def test_calc_bpd_loop(schedule, spacing, prediction, variance, clip, expected) -> None:
    given = {"spacing": spacing, "prediction": prediction, "variance": variance, "cdf": "tanh", "noise": draw}
    got = variational_bound(MODELS[variance], X0, schedule, clip=(-1.0, 1.0) if clip else None, **given)
    values = (got.total, got.prior, got.terms.sum(1), got.x0_mse.sum(1), got.eps_mse.sum(1))
    assert [number(v) for v in values] == pytest.approx(expected, rel=TOLERANCE, abs=CANCELLED)
    assert got.terms.shape == got.x0_mse.shape == (3, len(got.times)) and got.times[0] > got.times[-1] == 0


# Numbers of baofff/Analytic-DPM's nelbo_ms_eps_ddpm and nelbo_naive_ddpm (core/inference/ll/elbo.py) in float64, in
# nats and summed as above: 18 of 50 steps, X0, the network `mean` and draw(0), draw(1), … from the noisiest step. Its
# last variance is always beta-tilde of the two cleanest times of the full chain.
BETAS = np.linspace(0.002, 0.4, 50)
GAMMA = {float(t): g for t, g in enumerate([*np.linspace(0.05, 0.98, 50)[:46], *[1.02] * 4])}
NELBO = [
    ({"variance": "analytic", "gamma": GAMMA}, True, 63.457002432130935),
    ({"variance": "small"}, True, 195.00907166744915),
    ({"variance": "small"}, False, 195.15721056371174),
    ({"variance": "large"}, True, 62.99014438257213),
    ({"variance": "large"}, False, 63.13814351123139),
]


@pytest.mark.parametrize(("options", "clip", "expected"), NELBO)
def test_nelbo_of_analytic_dpm(options, clip, expected) -> None:
    schedule = fastdiff.schedules.discrete(betas=BETAS)
    times = [float(round(k * 49 / 17)) for k in reversed(range(18))]
    decoder_variance = step_variances(fastdiff.plan("ddpm", schedule=schedule, spacing=[1.0, 0.0, -1.0]))[0]
    given = {"cdf": "tanh", "noise": draw, "clip": (-1.0, 1.0) if clip else None, "decoder_variance": decoder_variance}
    got = variational_bound(mean, X0, schedule, spacing=[*times, -1.0], **given, **options)
    # Of 2 elements, in nats.
    assert number(2 * math.log(2) * got.total) == pytest.approx(expected, rel=TOLERANCE)


def test_lower_bound_of_gamma_is_the_small_variance() -> None:
    small, lower = (
        variational_bound(mean, X0, spacing="10", **v)
        for v in ({"variance": "small"}, {"variance": "analytic", "gamma": "lower"})
    )
    np.testing.assert_allclose(lower.terms.numpy(), small.terms.numpy(), rtol=1e-12, atol=1e-15)


def test_repr_of_a_bound_is_one_line() -> None:
    got = variational_bound(mean, X0, spacing="50")
    assert repr(got).startswith("VariationalBound(3 samples, 50 steps, total ") and len(repr(got)) < 150
    assert f"{float(got.total.max()):.5g} bits per dimension" in repr(got)


# The decoder.


def exact_log_prob(x0: float, mu: float, std: float, bins: int) -> float:
    half = mpf(1) / (bins - 1)
    low = mpf("-inf") if x0 == -1 else (mpf(x0) - half - mpf(mu)) / mpf(std)
    high = mpf("inf") if x0 == 1 else (mpf(x0) + half - mpf(mu)) / mpf(std)
    if low > 0:
        low, high = -high, -low
    return float(mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))


@pytest.mark.parametrize("bins", [256, 17, 2])
@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 20.0])
@pytest.mark.parametrize("mu", [-1.4, -0.5, 0.0, 0.123, 0.9999])
def test_decoder_in_many_digits(bins: int, std: float, mu: float) -> None:
    """Also deep in the tails, where a difference of probabilities is 0 in floating point."""
    values = [-1.0, 1.0] if bins == 2 else [-1.0, -1.0 + 2 / (bins - 1), 2 * (bins // 2) / (bins - 1) - 1, 1.0]
    # Below the mean both probabilities are small, and known to all of these digits.
    with mp.workdps(50):
        want = [exact_log_prob(v, mu, std, bins) for v in values]
    x0 = torch.tensor(values, dtype=torch.float64)
    full = torch.full_like(x0, mu), torch.full_like(x0, math.log(std))
    got = decoder_log_prob(x0, *full, bins, "exact")
    # A difference of logarithms of size L loses 1e-16·L of the bin's width in units of std, at least 4e-4 here; offsets
    # from the mean lose 1e-16 of 1, which far tails multiply by (2.4/std)².
    slack = 1e-16 * (2.5 / std) ** 2 * 4 + 1e-12
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=slack)


@pytest.mark.parametrize("std", [1e-2, 1e-6, 1e-9])
def test_the_decoders_gradient_far_from_the_mean(std: float) -> None:
    """d log p/d mu = −(phi(b) − phi(a))/(Phi(b) − Phi(a))/std, a and b the bin's ends; b goes down to −1e9."""
    x0, mu = torch.tensor([0.25, -1.0], dtype=torch.float64), torch.tensor([1.25, 1.25], dtype=torch.float64)
    mu.requires_grad_(True)
    decoder_log_prob(x0, mu, torch.full_like(x0, math.log(std)), 256, "exact").sum().backward()
    assert mu.grad is not None
    with mp.workdps(40):
        for value, got in zip(x0.tolist(), mu.grad.tolist(), strict=True):
            b = (mpf(value) + mpf(1) / 255 - mpf(1.25)) / mpf(std)
            a = b - mpf(2) / 255 / mpf(std)
            # Below both ends, phi(a) and Phi(a) are beyond every digit of phi(b) and Phi(b): by exp(−1e2) at least.
            assert a**2 - b**2 > 150
            ratio = mpmath.npdf(b) / mpmath.ncdf(b)
            # log(std) is rounded to 20·1e-16, and torch's own gradient to x²/2·1e-16 where x is above −1e4.
            assert got == pytest.approx(float(-ratio / std), rel=1e-8)


def test_decoder_sums_to_one() -> None:
    """Over all values of an element, for both distributions; the tanh one is close to the exact one."""
    x0 = torch.linspace(-1, 1, 256, dtype=torch.float64)
    full = torch.full_like(x0, 0.3), torch.full_like(x0, math.log(0.05))
    exact, tanh = (decoder_log_prob(x0, *full, 256, cdf).exp() for cdf in ("exact", "tanh"))
    assert exact.sum().item() == pytest.approx(1.0, rel=1e-13)
    assert tanh.sum().item() == pytest.approx(1.0, abs=256e-12)  # its bound, once for each value
    assert 1e-6 < (exact - tanh).abs().max() < 4e-4


def test_decoder_has_finite_gradients_everywhere() -> None:
    x0 = torch.tensor([-1.0, -0.2, 0.4, 1.0], dtype=torch.float64)
    for mu in (-0.2, 0.0, 50.0, -1e4):
        for log_std in (-12.0, 0.0, 40.0):
            leaves = [torch.full_like(x0, v).requires_grad_(True) for v in (mu, log_std)]
            value = decoder_log_prob(x0, *leaves, 256, "exact")
            value.sum().backward()
            assert torch.isfinite(value).all() and all(torch.isfinite(leaf.grad).all() for leaf in leaves)


# Gaussian data: the bound is the likelihood.

STD = 0.3
BINS = 4097


def gaussian_data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Data N(0, STD²) in BINS values, and −log2 of each sample's probability, for each of its 2 elements."""
    generator = torch.Generator().manual_seed(5)
    x = STD * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    x0 = (torch.round(0.5 * (x.clamp(-1, 1) + 1) * (BINS - 1)) * 2 / (BINS - 1)) - 1
    inside = torch.special.ndtr((x0 + 1 / (BINS - 1)) / STD) - torch.special.ndtr((x0 - 1 / (BINS - 1)) / STD)
    return x0, -inside.log2().mean(1)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(("schedule", "chain"), [("ddpm", {"spacing": "20"}), ("vp_linear", {"steps": 20})])
def test_bound_is_the_likelihood_of_gaussian_data(schedule: str, chain: dict[str, Any], prediction: str) -> None:
    """Where the data are normal, so is every p(x_{t−1} | x_t): with its own variance the bound is tight."""
    known = fastdiff.schedules.resolve(schedule)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = known.alpha(float(t[0])), known.sigma(float(t[0]))
        total = (alpha * STD) ** 2 + sigma**2
        eps, x0 = sigma / total * x, alpha * STD**2 / total * x
        g = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]
        # The posterior's variance, and what x0 still varies by: of_x0² times its variance.
        k = int(np.flatnonzero(steps.times == float(t[0]))[0])
        left = (STD * sigma) ** 2 / total
        posterior = math.exp(steps.log_posterior[k]) if k < len(steps) - 1 else 0.0
        return torch.cat([g, torch.full_like(x, math.log(posterior + steps.of_x0[k] ** 2 * left))], 1)

    steps = Chain(known, **chain)
    x0, truth = gaussian_data(4000)
    given: dict[str, Any] = {"prediction": prediction, "clip": None, "bins": BINS, **chain}
    gap = variational_bound(model, x0, known, variance="learned", **given).total - truth
    # Five standard errors; and what the bins' width, 1/20 of the last sigma, takes: (1/20)²/24 nats an element.
    error = gap.std().item() / math.sqrt(len(gap))
    assert error < 0.02 and abs(gap.mean().item()) < 5 * error + 2e-4
    # Analytic-DPM's optimal variance, from Gamma = E|eps|²/d alone, is the same one.
    mean_only: Any = lambda x, t: model(x, t).chunk(2, 1)[0]  # noqa: E731
    gamma = {t: s**2 / ((a * STD) ** 2 + s**2) for t, a, s in zip(steps.times, steps.alpha, steps.sigma, strict=True)}
    optimal = variational_bound(mean_only, x0, known, variance="analytic", gamma=gamma, **given)
    np.testing.assert_allclose(optimal.total.numpy(), (gap + truth).numpy(), rtol=1e-8)
    # A fixed variance is worse by what the closed form says: 0.5·(r − 1 − log r), r the ratio of the variances.
    small = variational_bound(mean_only, x0, known, variance="small", **given)
    assert (small.total - truth).mean().item() > 0.05


def test_vlb_loss_estimates_the_bound() -> None:
    """The mean of rescaled terms at uniform times is the bound without the prior; the steps' terms agree one by one."""
    x0 = X0.repeat(500, 1, 1)
    whole = variational_bound(with_range, x0, variance="learned_range", spacing="10,15,20", clip=None)
    given: dict[str, Any] = {"variance": "learned_range", "spacing": "10,15,20"}
    generator = torch.Generator().manual_seed(3)
    each = vlb_loss(with_range, x0, rescale=True, reduction="none", generator=generator, **given)
    spread = each.std().item() / math.sqrt(len(each))
    assert each.mean().item() == pytest.approx((whole.total - whole.prior).mean().item(), abs=5 * spread)
    noise = fastdiff.randn(x0.shape, seed=0, draw=7, dtype=torch.float64)
    one = vlb_loss(with_range, x0, t=whole.times[7], noise=noise, reduction="none", **given)
    np.testing.assert_allclose(one.numpy(), whole.terms[:, 7].numpy(), rtol=1e-13)


def test_bound_does_not_depend_on_the_batch() -> None:
    whole = variational_bound(mean, X0, spacing="10", seed=4)
    parts = [variational_bound(mean, X0[i : i + 1], spacing="10", seed=4, first_sample=i) for i in range(3)]
    np.testing.assert_allclose(whole.total.numpy(), torch.cat([p.total for p in parts]).numpy(), rtol=1e-14)


# Gradients.


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.float64))
        self.log_variance = torch.nn.Parameter(torch.tensor(-0.4, dtype=torch.float64))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.mean * x, self.log_variance + 0 * x], 1)


@pytest.mark.parametrize("t", [0, 400])
def test_bound_of_hybrid_loss_trains_the_variance_alone(t: int) -> None:
    noise = draw(0, X0)
    gradients = {}
    for name, loss in (
        ("simple", lambda m: ddpm_loss(lambda x, t: m(x, t).chunk(2, 1)[0], X0, t=t, noise=noise)),
        ("bound", lambda m: vlb_loss(m, X0, variance="learned_range", t=t, noise=noise)),
        ("hybrid", lambda m: hybrid_loss(m, X0, vlb_weight=0.01, t=t, noise=noise)),
    ):
        model = Wide()
        loss(model).backward()
        gradients[name] = [p.grad for p in (model.mean, model.log_variance)]
    assert gradients["simple"][1] == 0
    torch.testing.assert_close(gradients["hybrid"][0], gradients["simple"][0], rtol=1e-13, atol=0.0)
    torch.testing.assert_close(gradients["hybrid"][1], 0.01 * 1000 * gradients["bound"][1], rtol=1e-13, atol=0.0)
    assert gradients["bound"][0] != 0


def test_networks_in_half_precision_and_float32() -> None:
    """Terms are formed in float32 at least: against float64 they keep 1e-4 of float32's digits at every time."""
    x0, noise = X0.float().repeat(4, 1, 1), draw(0, X0).float().repeat(4, 1, 1)
    t = torch.tensor([0, 1, 20, 100, 250, 400, 500, 600, 700, 800, 900, 999])
    half = vlb_loss(lambda x, t: mean(x, t).bfloat16(), x0, t=t, noise=noise, reduction="none")
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    single = vlb_loss(mean, x0, t=t, noise=noise, reduction="none")
    double = vlb_loss(mean, x0.double(), t=t, noise=noise.double(), reduction="none")
    # x0 is predicted from 1/alpha = 160 times float32's roundings, 6e-8, against errors of order 1.
    np.testing.assert_allclose(single.numpy(), double.numpy(), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_data_in_half_precision(dtype: torch.dtype) -> None:
    """x_t, targets and terms are in float32: a network that knows eps or v exactly has no loss, at every time."""
    t = torch.tensor([0, 5, 20, 100, 250, 500])
    x0, noise = X0[:2].repeat(3, 1, 1).to(dtype), draw(0, X0[:2].repeat(3, 1, 1)).to(dtype)
    schedule = fastdiff.schedules.ddpm()
    alpha, sigma = (torch.from_numpy(f(t.numpy())).reshape(-1, 1, 1).float() for f in (schedule.alpha, schedule.sigma))
    given: dict[str, Any] = {"t": t, "noise": noise, "reduction": "none"}

    def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.dtype == dtype and t.dtype == torch.float32
        return noise.float()

    terms = vlb_loss(exact, x0, variance="small", **given)
    # The last step is the decoder's own. Elsewhere x0 is known but for float32's rounding, times 1/std, at most 1e2.
    assert terms.dtype == torch.float32 and terms[1:].max() < (1e2 * 2.0**-22) ** 2
    v = alpha * noise.float() - sigma * x0.float()
    assert ddpm_loss(lambda x, t: v, x0, prediction="v", **given).max() < 2.0**-44
    flow = noise.float() - x0.float()
    assert ddpm_loss(lambda x, t: flow, x0, prediction="flow", **given).max() == 0


def test_a_network_in_half_precision_has_inputs_of_its_own_dtype() -> None:
    """As in sampling: the data stay as they are."""
    net = torch.nn.Conv1d(2, 4, 1).bfloat16()
    inputs: list[torch.dtype] = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            inputs.append(x.dtype)
            return self.net(x)

    hybrid_loss(Model(), X0.float(), generator=torch.Generator().manual_seed(0)).backward()
    assert net.weight.grad is not None and torch.isfinite(net.weight.grad).all()
    given: dict[str, Any] = {"spacing": "5", "variance": "learned_range"}
    found = variational_bound(Model(), X0.float(), **given)
    assert set(inputs) == {torch.bfloat16}
    # A function, whose dtype nothing tells, is given x in that of the data.
    assert torch.equal(found.total, variational_bound(lambda x, t: net(x.bfloat16()), X0.float(), **given).total)


def test_at_zero_terminal_snr_the_first_call_says_that_eps_will_not_do() -> None:
    """And not the first that happens to draw the noisiest time."""
    schedule = fastdiff.schedules.ddpm(zero_terminal_snr=True)
    for loss, model in ((vlb_loss, mean), (hybrid_loss, with_range)):
        for prediction in ("eps", "score"):
            with pytest.raises(ValueError, match="zero terminal SNR the network must predict"):
                loss(model, X0, schedule, prediction=prediction, generator=torch.Generator().manual_seed(0))
        assert torch.isfinite(loss(model, X0, schedule, prediction="eps", t=998))
        assert torch.isfinite(loss(model, X0, schedule, prediction="v", t=999))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_pixels_that_were_not_scaled_are_refused(dtype: torch.dtype) -> None:
    pixels = torch.tensor([[0, 37], [128, 255], [200, 64]], dtype=dtype).reshape(3, 2, 1)
    for call in (lambda x: vlb_loss(mean, x), lambda x: hybrid_loss(with_range, x)):
        with pytest.raises(ValueError, match=r"from 0 to 255, as pixels do; .* pass 2 \* x / 255 - 1"):
            call(pixels)
        assert torch.isfinite(call(2 * pixels / 255 - 1))
    with pytest.raises(ValueError, match=r"from 0 to 255, as pixels do; .* pass 2 \* x / 255 - 1"):
        variational_bound(mean, pixels, spacing="5")
    assert torch.isfinite(variational_bound(mean, 2 * pixels / 255 - 1, spacing="5").total).all()


def test_latents_have_losses_and_a_warning_where_bits_are_counted() -> None:
    """Of unit variance and beyond [−1, 1], as latent networks with a learned variance are trained."""
    latents = 3 * X0
    assert torch.isfinite(hybrid_loss(with_range, latents)) and torch.isfinite(vlb_loss(mean, latents))
    with pytest.warns(UserWarning, match=r"x0 ranges from -3 to 3: the 256 bins lie in \[-1, 1\]") as found:
        assert torch.isfinite(variational_bound(mean, latents, spacing="5").total).all()
    assert found[0].filename == __file__


@pytest.mark.parametrize(("bins", "limit"), [(256, 1 + 1 / 255), (2, 2.0), (2**16, 1.0)])
def test_data_may_pass_the_ends_by_half_a_bin(bins: int, limit: float) -> None:
    """And by 1e-3, for rounding: without a warning."""
    given: dict[str, Any] = {"spacing": "3", "bins": bins}
    for end in (-1.0, 1.0):
        edge = torch.tensor([[-0.1, end * (limit + 0.9e-3)]], dtype=torch.float64).reshape(1, 2, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.isfinite(variational_bound(mean, edge, **given).total).all()
        with pytest.warns(UserWarning, match=f"the {bins} bins"):
            variational_bound(mean, edge * (limit + 1.2e-3) / (limit + 0.9e-3), **given)


def test_losses_do_not_look_at_data_on_a_device() -> None:
    """Which would wait for it: "meta" tensors have no numbers to look at."""
    check_scaled(torch.full((2, 3), 255.0, device="meta"))


# Errors.


def wrong_noise(k: int, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vlb_loss(mean, X0, variance="big"), "unknown variance 'big'.*small, large"),
        (lambda: vlb_loss(mean, X0, cdf="erf"), "unknown cdf 'erf'.*exact, tanh"),
        (lambda: vlb_loss(mean, X0, bins=1), "bins=1: expected the number of values"),
        (lambda: vlb_loss(mean, X0, bins=10**400), r"bins=10{95}\.\.\.: expected the number of values"),
        (lambda: vlb_loss(mean, X0, prediction="noise"), "unknown prediction 'noise'.*eps"),
        (lambda: vlb_loss(mean, X0, reduction="sum"), "unknown reduction 'sum'"),
        (lambda: vlb_loss(mean, X0, "vp_linear"), r"no chain of its own.*steps=1000"),
        (lambda: vlb_loss(mean, X0, spacing="50", t=1), r"t got 1.0, which is not a time of this chain of 50 steps"),
        (lambda: vlb_loss(mean, X0, t=[1, 2]), r"t has shape \(2,\); expected one for each sample, \(3,\)"),
        (lambda: vlb_loss(mean, X0, variance="learned"), r"expected \(3, 4, 1\): twice the channels"),
        (lambda: vlb_loss(with_range, X0), r"returned shape \(3, 4, 1\), expected \(3, 2, 1\)"),
        (lambda: vlb_loss(mean, X0, spacing=[900.0, 500.0, 100.0]), r"the chain ends at t=100, where noise is left"),
        (lambda: hybrid_loss(mean, X0, variance="small"), r"variance='small'.*ddpm_loss\(model, x0, schedule\)"),
        (lambda: hybrid_loss(with_range, X0, vlb_weight="a"), "vlb_weight='a': expected a number of at least 0"),
        (lambda: hybrid_loss(with_range, X0, vlb_weight=-1.0), r"vlb_weight=-1.0: expected a number of at least 0"),
        (lambda: variational_bound(mean, X0, variance="analytic"), r"go together: .*estimate_gamma\(model, data\)"),
        (lambda: variational_bound(mean, X0, gamma="lower"), "variance='small' and gamma='lower', which go together"),
        (lambda: variational_bound(mean, X0, variance="big"), "unknown variance 'big'.*learned, analytic"),
        (lambda: variational_bound(mean, X0, variance="analytic", gamma="uper"), "'uper'; did you mean 'upper'"),
        (lambda: variational_bound(mean, X0, decoder_variance=0.0), "decoder_variance=0.0: expected a number above 0"),
        (lambda: variational_bound(mean, X0, clip=(1.0, -1.0)), r"clip=\(1.0, -1.0\): expected finite bounds"),
        (lambda: variational_bound(mean, X0, clip=1), r"clip=1: expected None.*bounds such as \(-1, 1\)"),
        (lambda: variational_bound(mean, X0, clip="dynamic"), r"clip='dynamic': expected the data's bounds"),
        (lambda: variational_bound(mean, X0, spacing="5", noise=wrong_noise), "noise has shape, dtype and device"),
    ],
)
def test_errors_say_what_is_wrong(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
