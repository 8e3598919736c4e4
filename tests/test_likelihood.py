"""Log-likelihood against the closed forms of Gaussian mixtures; the trace estimator's mean and variance; errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff import ops, schedules
from fastdiff.likelihood import LogLikelihood, drawn, log_likelihood

WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)
MEANS = torch.tensor([[-0.8, 0.5], [0.9, -0.3]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.45], dtype=torch.float64)
X = torch.tensor([[0.3, -0.1], [1.5, -0.7], [-1.1, 0.4], [-0.2, 1.3]], dtype=torch.float64)


def density(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """log p_t of the mixture, (B,); alpha and sigma (B,)."""
    variance = (alpha[:, None] * STDS) ** 2 + sigma[:, None] ** 2
    square = ((x[:, None] - alpha[:, None, None] * MEANS) ** 2).sum(-1)
    return torch.logsumexp(
        WEIGHTS.log() - 0.5 * x.shape[1] * torch.log(2 * math.pi * variance) - 0.5 * square / variance, 1
    )


class Score:
    """The perfect network: the score by autograd of the density, differentiable once more."""

    dtype = torch.float64

    def __init__(self, schedule, prediction: str = "eps") -> None:
        self.noise, self.kind, self.calls = schedules.resolve(schedule), prediction, 0

    def level(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        times = t.double().numpy()
        return torch.from_numpy(self.noise.alpha(times)), torch.from_numpy(self.noise.sigma(times))

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        alpha, sigma = self.level(t)
        (score,) = torch.autograd.grad(density(x, alpha, sigma).sum(), x, create_graph=True)
        a, s = alpha[:, None], sigma[:, None]
        eps = -s * score
        x0 = (x - s * eps) / a
        return {"eps": eps, "score": score, "x0": x0, "v": a * eps - s * x0, "flow": eps - x0}[self.kind]

    def log_prob(self, x: torch.Tensor, t: float) -> torch.Tensor:
        return density(x, *self.level(torch.full((len(x),), t, dtype=torch.float64)))


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize(
    ("schedule", "prediction"), [("vp_linear", "eps"), ("subvp", "score"), ("ddpm", "v"), ("ve", "eps"), ("edm", "x0")]
)
def test_equals_the_closed_form_of_a_mixture(schedule: str, prediction: str, control: str) -> None:
    """With the mixture's own density at the noise as the prior, all that is left is the solver's error."""
    model = Score(schedule, prediction)
    s = model.noise
    got = log_likelihood(
        model, X, schedule=s, prediction=prediction, trace="exact", rtol=1e-7, atol=1e-8, control=control,
        prior=lambda z: model.log_prob(z, s.t_max), dtype=torch.float64,
    )  # fmt: skip
    low = s.t_floor if s.sigma(s.t_min) == 0 else s.t_min
    # 1e-7 a step, over about thirty.
    torch.testing.assert_close(got.log_prob, model.log_prob(X, low), rtol=0, atol=5e-6)
    assert isinstance(got, LogLikelihood) and got.nfe == model.calls and got.latent.shape == X.shape


def test_the_default_prior_is_that_of_the_schedule() -> None:
    """sigma_max so large that the mixture is lost in the noise: log N(z, sigma²) is off by 1e-5 of means and z."""
    s = schedules.ve(0.01, 1e6)
    got = log_likelihood(Score(s), X, schedule=s, trace="exact", rtol=1e-7, atol=1e-8, dtype=torch.float64)
    torch.testing.assert_close(got.log_prob, Score(s).log_prob(X, 0.01), rtol=0, atol=1e-5)
    bits = -got.log_prob / (2 * math.log(2))
    torch.testing.assert_close(got.bits_per_dim, bits)
    wide = log_likelihood(
        Score(s), X, schedule=s, trace="exact", rtol=1e-7, atol=1e-8, dtype=torch.float64, bin_width=2 / 256
    )
    torch.testing.assert_close(wide.bits_per_dim, bits + 7.0)


def test_between_two_times_of_your_own() -> None:
    model = Score("vp_linear")
    got = log_likelihood(
        model, X, schedule="vp_linear", t_start=0.1, t_end=0.6, trace="exact", rtol=1e-8, atol=1e-9,
        dtype=torch.float64, prior=lambda z: model.log_prob(z, 0.6),
    )  # fmt: skip
    torch.testing.assert_close(got.log_prob, model.log_prob(X, 0.1), rtol=0, atol=1e-6)


def test_hutchinson_is_unbiased() -> None:
    """One sample many times over, with a probe each: the mean lies within five standard errors of the exact value."""
    model, n = Score("vp_linear"), 2000
    common = {
        "schedule": "vp_linear",
        "t_start": 0.05,
        "t_end": 0.8,
        "rtol": 1e-5,
        "atol": 1e-6,
        "dtype": torch.float64,
    }
    exact = log_likelihood(model, X[:1], trace="exact", **common).log_prob
    for probe in ("rademacher", "gaussian"):
        values = log_likelihood(model, X[:1].repeat(n, 1), probe=probe, seed=5, **common).log_prob
        error = float(values.std()) / math.sqrt(n)
        assert error > 0 and abs(float(values.mean() - exact)) < 5 * error
    # The mean of k probes has a k-th of the variance; a ratio of variances of 2000 normal values is good to 6% at one
    # sigma.
    several = log_likelihood(model, X[:1].repeat(n, 1), probe="gaussian", probes=4, seed=9, **common).log_prob
    assert 4 / 1.5 < float(values.var() / several.var()) < 4 * 1.5


def test_probes_come_from_the_built_in_noise() -> None:
    module = ops.load("reference")
    seeds, index = torch.full((3,), 7), torch.arange(3, dtype=torch.int32)
    x = torch.empty(3, 1000)
    (signs,), normal = drawn(module, x, seeds, index, "rademacher", 1), drawn(module, x, seeds, index, "gaussian", 2)
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and torch.equal(signs, torch.where(normal[0] >= 0, 1.0, -1.0))
    assert not torch.equal(normal[0], normal[1])
    # 3000 fair signs: five standard deviations.
    assert abs(float(signs.mean())) < 5 / math.sqrt(3000)


# score_sde's get_likelihood_fn(sde, lambda v: (v + 1) / 2, hutchinson_type, rtol=atol=1e-12, eps=1e-3) in float64 on X
# with one of these probes: (schedule, prediction, t_start, probe, bits per dimension).
SIGNS = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
NORMALS = torch.tensor([[0.3, -1.2], [1.7, 0.4], [-0.6, 0.9], [0.1, -1.5]], dtype=torch.float64)
VE, LOW = schedules.ve(0.01, 50.0), 0.01 * 5e3**1e-3
PUBLISHED = [
    ("vp_linear", "eps", 1e-3, SIGNS, [9.174369150967657, 8.411820247942243, 7.814972206226876, 10.88254241017451]),
    ("vp_linear", "eps", 1e-3, NORMALS, [8.120818983409604, 7.926497377035463, 8.338788275859638, 10.1590539923883]),
    ("subvp", "eps", 1e-3, SIGNS, [9.174741143198382, 8.411927610344248, 7.814521904373543, 10.88658438421805]),
    ("subvp", "eps", 1e-3, NORMALS, [8.12080087313649, 7.926379058895625, 8.338757631322364, 10.161675107365298]),
    (VE, "score", LOW, SIGNS, [9.173906647401902, 8.415180569290499, 7.811682352078904, 10.8847756737496]),
    (VE, "score", LOW, NORMALS, [9.446711173395599, 4.966658300105548, 10.677795607322006, 9.427458463293176]),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "prediction", "t_start", "probe", "expected"), PUBLISHED)
def test_your_own_probe_gives_the_published_number(schedule, prediction, t_start, probe, expected) -> None:
    model = Score(schedule, prediction)
    given = {"schedule": model.noise, "prediction": prediction, "t_start": t_start, "dtype": torch.float64}
    got = log_likelihood(model, X, probe=probe, rtol=1e-10, atol=1e-10, bin_width=2 / 256, **given).bits_per_dim
    # The published program applies the probe to the linear part of the drift too, -beta/2·|probe|² for -beta/2·d, whose
    # integral is log alpha. The same for signs.
    ends = [model.noise.log_alpha(t) for t in (t_start, model.noise.t_max)]
    published = got - (ends[1] - ends[0]) * (probe.square().mean(1) - 1) / math.log(2)
    # 1e-10 a step, over about a hundred.
    torch.testing.assert_close(published, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)


def test_several_probes_of_your_own_are_averaged() -> None:
    given = {"schedule": "vp_linear", "t_start": 0.1, "t_end": 0.6, "rtol": 1e-9, "atol": 1e-9, "dtype": torch.float64}
    one, other = (log_likelihood(Score("vp_linear"), X, probe=p, **given).log_prob for p in (SIGNS, NORMALS))
    both = log_likelihood(Score("vp_linear"), X, probe=torch.stack([SIGNS, NORMALS]), **given).log_prob
    # The three runs choose their steps apart: 1e-9 a step, over about fifty.
    torch.testing.assert_close(both, 0.5 * (one + other), rtol=0, atol=1e-7)
    # The unit vectors, times sqrt(2): the mean of their squares is the trace.
    units = math.sqrt(2) * torch.eye(2, dtype=torch.float64)[:, None].expand(2, 4, 2)
    exact = log_likelihood(Score("vp_linear"), X, trace="exact", **given).log_prob
    got = log_likelihood(Score("vp_linear"), X, probe=units, probes=2, **given).log_prob
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-12)


def test_the_state_is_float32_whatever_x_is_as_in_sample() -> None:
    given = {"schedule": "vp_linear", "trace": "exact", "rtol": 1e-5, "atol": 1e-5}
    narrow, wide = (log_likelihood(lambda x, t: 0.1 * x, x, **given) for x in (X.float(), X))
    assert wide.latent.dtype == torch.float32 and torch.equal(wide.log_prob, narrow.log_prob)


def test_float32_holds_tolerances_down_to_the_bound() -> None:
    """At the bound the error is still that of the tolerance; see the errors below for what lies under it."""
    model = Score("vp_linear")

    def single(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x.double(), t.double()).float()

    given = {"schedule": "vp_linear", "trace": "exact", "rtol": 5e-7, "atol": 5e-7}
    got = log_likelihood(single, X, prior=lambda z: model.log_prob(z.double(), 1.0), **given)
    # As in float64 above: 5e-7 a step, over about twenty.
    torch.testing.assert_close(got.log_prob, model.log_prob(X, model.noise.t_floor), rtol=0, atol=1e-5)


def test_repr_is_one_line() -> None:
    got = log_likelihood(lambda x, t: 0.1 * x, X.repeat(500, 1), schedule="vp_linear")
    assert repr(got).startswith("LogLikelihood(2000 samples of shape (2,), log_prob -") and len(repr(got)) < 150
    assert f"nfe={got.nfe}" in repr(got) and f"{float(got.bits_per_dim.max()):.5g}" in repr(got)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    common = {"schedule": "vp_linear", "seed": 2, "control": "sample", "dtype": torch.float64}
    whole = log_likelihood(Score("vp_linear"), X, **common).log_prob
    parts = [log_likelihood(Score("vp_linear"), X[i : i + 1], first_sample=i, **common).log_prob for i in range(4)]
    # The network's own sums may depend on the batch by a rounding.
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-9, atol=1e-9)


def test_modules_in_float32_and_grad_modes() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, t, scale=1.0):
            return torch.tanh(self.layer(x)) * scale

    net, x = Net().requires_grad_(False), torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
    got = log_likelihood(
        net, x, trace="exact", rtol=1e-4, atol=1e-4, t_end=500.0, model_kwargs={"scale": 0.5}, progress=True
    )
    assert got.log_prob.dtype == torch.float64 and not got.log_prob.requires_grad and torch.isfinite(got.log_prob).all()
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            again = log_likelihood(
                net, x, trace="exact", rtol=1e-4, atol=1e-4, t_end=500.0, model_kwargs={"scale": 0.5}
            )
        np.testing.assert_array_equal(again.log_prob.numpy(), got.log_prob.numpy())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"trace": "exactly"}, ValueError, "unknown trace 'exactly'; did you mean 'exact'"),
        ({"probe": "normal"}, ValueError, "unknown probe 'normal'.*rademacher, gaussian"),
        ({"probe": X.numpy()}, ValueError, "(?s)unknown probe array.*rademacher, gaussian"),
        ({"probe": X[:3]}, ValueError, r"probe has shape \(3, 2\); expected \(4, 2\) as x, or \(probes, \*x.shape\)"),
        ({"probe": X, "probes": 2}, ValueError, r"probes=2 does not go with a probe of shape \(4, 2\), which holds 1"),
        ({"probe": X.long()}, TypeError, "probe has dtype torch.int64; expected floating point"),
        ({"probe": X / 0}, ValueError, "probe has NaN or Inf"),
        ({"probe": X, "trace": "exact"}, ValueError, "trace='exact' uses no probes"),
        ({"rtol": 1e-7, "atol": 1e-7}, ValueError, r"rtol=1e-07 and atol=1e-07 .* float32.*dtype=torch.float64"),
        ({"probes": 0}, ValueError, "probes=0: expected an integer of at least 1"),
        ({"bin_width": 0.0}, ValueError, "bin_width=0.0: expected a positive number"),
        ({"prediction": "noise"}, ValueError, "unknown prediction 'noise'"),
        ({"t_start": 900.0, "t_end": 10.0}, ValueError, "t_start=900 is the data's time, and must lie below t_end=10"),
        ({"x": X[0]}, ValueError, r"x has shape \(2,\); expected \(B, ...\)"),
        ({"x": X.long()}, TypeError, "expected floating point"),
        ({"model": lambda x, t: x.detach()}, ValueError, "does not depend on its input through autograd"),
        ({"prior": lambda z: z}, ValueError, r"prior\(x\) returned shape \(4, 2\), expected \(4,\)"),
        ({"dtype": torch.float16}, ValueError, "expected torch.float32 or torch.float64"),
        ({"max_nfe": 5}, RuntimeError, "reached max_nfe=5"),
    ],
)  # fmt: skip
def test_errors(arguments, error, words) -> None:
    given = {"model": lambda x, t: 0.1 * x, "x": X, **arguments}
    with pytest.raises(error, match=words):
        log_likelihood(given.pop("model"), given.pop("x"), **given)
