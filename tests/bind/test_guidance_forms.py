"""The forms of guidance against the papers' formulas, written out in plain PyTorch with two calls of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from helpers.graph_stand_in import FakeCapture, stand_in
from helpers.methods import ADAPTIVE, LOOPED, TABLES
from helpers.models import BACKENDS, wavy

import fastdiff
from fastdiff.guidance import CFGPlusPlus, ClassifierFree, Guidance, Interval, Place, Rescale
from fastdiff.schedules import resolve

X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(4, 3, 2)
A, B = (
    torch.linspace(0.1, 1.2, 24, dtype=torch.float64).reshape(4, 3, 2),
    torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 3, 2),
)
HALVES = {"cond": {"y": A}, "uncond": {"y": B}}
DDPM = resolve("ddpm")
ONE_EVALUATION = ("ddim", "ddpm", "pf_euler", "analytic_ddim")


def conditional(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return wavy(x + y, t)


def column(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *[1] * (X.ndim - 1))


def level(t: torch.Tensor) -> torch.Tensor:
    """sigma/alpha at the model's times, (B, 1, 1)."""
    return column(torch.from_numpy(DDPM.sigma(t.double().numpy()) / DDPM.alpha(t.double().numpy())))


@pytest.mark.parametrize("method", [*LOOPED, *ADAPTIVE])
def test_a_number_is_plain_classifier_free_guidance(method: str) -> None:
    common = {"method": method, "dtype": torch.float64, "seed": 3, **HALVES} | (
        {"steps": 3} if method in TABLES else {}
    )
    first, *others = (
        fastdiff.sample(conditional, X, **word, **common)
        for word in (
            {"guidance": 2.5},
            {"guidance_scale": 2.5},
            {"guidance": ClassifierFree(2.5)},
            {"guidance": lambda t: 2.5},
            {"guidance": Rescale(2.5, 0.0)},
            {"guidance": Interval(2.5, 0.0, float("inf"))},
        )
    )
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [*LOOPED, *ADAPTIVE])
def test_interval(method: str, backend: str) -> None:
    """Kynkäänniemi et al. 2024, eq. 5: the guided output inside, the conditional one outside."""
    low, high, scale = 0.3, 4.0, 3.0

    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b = conditional(x, t, A), conditional(x, t, B)
        inside = (level(t) > low) & (level(t) <= high)
        return torch.where(inside, b + scale * (a - b), a)

    options = {"method": method, "dtype": torch.float64, "backend": backend, "seed": 2, "schedule": "ddpm"}
    options |= {"steps": 8} if method in TABLES else {"rtol": 1e-3, "atol": 1e-3}
    got = fastdiff.sample(conditional, X, guidance=Interval(scale, low, high), **HALVES, **options)
    # The same numbers in another order: round-off, amplified by 1/alpha_T = 160 over 8 steps.
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["dpm3", "unipc", "heun", "ddpm"])
def test_a_scale_that_is_a_function_of_time(method: str) -> None:
    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b = conditional(x, t, A), conditional(x, t, B)
        return b + column(1.0 + t.double() / 500.0) * (a - b)

    options = {"method": method, "dtype": torch.float64, "seed": 2, "steps": 6, "schedule": "ddpm"}
    got = fastdiff.sample(conditional, X, guidance=lambda t: 1.0 + t / 500.0, **HALVES, **options)
    # Model times are float32: 2^-24 of 1000, divided by 500, times outputs of order 1 and the steps' 1/alpha_T.
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [None, (-0.5, 0.5), "dynamic"])
@pytest.mark.parametrize("method", [*LOOPED, *ADAPTIVE])
def test_rescale(method: str, clip, backend: str) -> None:
    """Lin et al. 2023, eqs. 15 and 16, with torch's own standard deviations."""
    scale, phi = 4.0, 0.7

    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b = conditional(x, t, A), conditional(x, t, B)
        g = b + scale * (a - b)
        ratio = a.flatten(1).std(1) / g.flatten(1).std(1)
        return phi * column(ratio) * g + (1 - phi) * g

    options = {"method": method, "dtype": torch.float64, "backend": backend, "seed": 2, "clip": clip}
    options |= {"steps": 5} if method in TABLES else {"rtol": 1e-3, "atol": 1e-3}
    got = fastdiff.sample(conditional, X, guidance=Rescale(scale, phi), **HALVES, **options)
    # The same numbers in another order: round-off, amplified by 1/alpha_T = 160 over 5 steps.
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-8, atol=1e-8)


def test_rescale_of_a_learned_variance_leaves_the_variance() -> None:
    """The factor is that of the prediction's half of the channels, and multiplies it alone."""

    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([conditional(x, t, y), 0.3 * torch.tanh(y)], 1)

    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b = conditional(x, t, A), conditional(x, t, B)
        g = b + 3.0 * (a - b)
        ratio = a.flatten(1).std(1) / g.flatten(1).std(1)
        return torch.cat([column(ratio) * g, 0.3 * torch.tanh(A)], 1)

    options = {"method": "ddpm", "variance": "learned_range", "steps": 4, "dtype": torch.float64, "seed": 5}
    got = fastdiff.sample(network, X, guidance=Rescale(3.0, 1.0), **HALVES, **options)
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-9, atol=1e-9)


def test_rescale_does_not_depend_on_the_batch() -> None:
    options = {"method": "dpmpp2m_sde", "steps": 4, "seed": 7, "guidance": Rescale(4.0)}
    x = X.float()

    def part(rows: slice) -> torch.Tensor:
        y = {"cond": {"y": A[rows].float()}, "uncond": {"y": B[rows].float()}}
        return fastdiff.sample(conditional, x[rows], first_sample=rows.start, **y, **options)

    whole = part(slice(0, 4))
    assert torch.equal(whole, torch.cat([part(slice(0, 1)), part(slice(1, 4))]))


def test_rescale_within_an_interval() -> None:
    a, b = (
        fastdiff.sample(conditional, X, guidance=g, method="ddim", steps=6, dtype=torch.float64, **HALVES)
        for g in (Rescale(Interval(4.0, 0.3, 4.0), 0.5), Interval(4.0, 0.3, 4.0))
    )
    assert not torch.equal(a, b)
    # Outside of the interval g is the conditional output, and its factor is 1.
    never = Rescale(Interval(4.0, 1e8, 2e8), 0.5)
    plain = fastdiff.sample(conditional, X, model_kwargs={"y": A}, method="ddim", steps=6, dtype=torch.float64)
    got = fastdiff.sample(conditional, X, guidance=never, method="ddim", steps=6, dtype=torch.float64, **HALVES)
    torch.testing.assert_close(got, plain, rtol=1e-12, atol=1e-12)


def converted(prediction: str, out: torch.Tensor, x: torch.Tensor, alpha: float, sigma: float):
    """x0 and eps that an output stands for, from the definitions."""
    if prediction == "eps":
        eps = out
    elif prediction == "v":
        eps = (sigma * x + alpha * out) / (alpha**2 + sigma**2)
    elif prediction == "score":
        eps = -sigma * out
    else:
        eps = (x - alpha * (out if prediction == "x0" else (x - sigma * out) / (alpha + sigma))) / sigma
    return (x - sigma * eps) / alpha, eps


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [None, (-0.5, 0.5)])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("method", ["ddim", "pf_euler"])
def test_cfg_plus_plus(method: str, prediction: str, clip, backend: str) -> None:
    """Chung et al. 2024, Algorithm 2: x0 from the guided output, renoised with the unconditional eps."""
    plan, lam, x = fastdiff.plan(method, 5, "ddpm"), 0.6, X
    for s in plan.stages:
        t = torch.full((4,), s.model_time)
        a, b = conditional(x, t, A), conditional(x, t, B)
        x0, _ = converted(prediction, b + lam * (a - b), x, s.alpha, s.sigma)
        if clip is not None:
            x0 = x0.clamp(*clip)
        _, eps = converted(prediction, b, x, s.alpha, s.sigma)
        point = DDPM.at(s.t_next)
        x = point.alpha * x0 + point.sigma * eps
    options = {"method": method, "steps": 5, "dtype": torch.float64, "backend": backend, "clip": clip}
    options |= {"prediction": prediction, "schedule": "ddpm"}
    got = fastdiff.sample(conditional, X, guidance=CFGPlusPlus(lam), **HALVES, **options)
    # At the first step x0 is 160 times an output, and rounding with it; 5 steps. A score is 1e4 eps at the last.
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ONE_EVALUATION)
def test_cfg_plus_plus_of_equal_halves_is_no_guidance(method: str) -> None:
    """Where both halves agree, x0 and eps are those of one network, and the step is the solver's own, noise too."""
    options = {"method": method, "steps": 6, "dtype": torch.float64, "seed": 4}
    same = {"cond": {"y": A}, "uncond": {"y": A}}
    got = fastdiff.sample(conditional, X, guidance=CFGPlusPlus(0.6), **same, **options)
    want = fastdiff.sample(conditional, X, model_kwargs={"y": A}, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_cfg_plus_plus_with_a_corrected_x0() -> None:
    """The correction acts on the guided x0; what is put back is the unconditional eps."""
    plan, lam, x = fastdiff.plan("ddim", 4, "ddpm"), 0.6, X
    for s in plan.stages:
        t = torch.full((4,), s.model_time)
        a, b = conditional(x, t, A), conditional(x, t, B)
        x0 = torch.tanh(converted("eps", b + lam * (a - b), x, s.alpha, s.sigma)[0])
        point = DDPM.at(s.t_next)
        x = point.alpha * x0 + point.sigma * b
    got = fastdiff.sample(
        conditional, X, guidance=CFGPlusPlus(lam), correct_x0=lambda x0, t: torch.tanh(x0), method="ddim", steps=4,
        dtype=torch.float64, **HALVES,
    )  # fmt: skip
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@dataclass(frozen=True)
class Towards(Guidance):
    """A form of a user's own: half of each, in the noisier half of the run twice the conditional one's share."""

    batched: ClassVar[bool] = True

    def weights(self, at: Place) -> tuple[float, float]:
        return (0.5, 0.5) if at.stage.sigma < at.stage.alpha else (2 / 3, 1 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_form_of_ones_own_is_one_class(backend: str) -> None:
    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        share = (2.0 - 0.5 * (level(t) < 1).double()) / 3
        return share * conditional(x, t, A) + (1 - share) * conditional(x, t, B)

    options = {"method": "unipc", "steps": 6, "dtype": torch.float64, "backend": backend}
    got = fastdiff.sample(conditional, X, guidance=Towards(), **HALVES, **options)
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guidance", [2.0, Interval(2.0, 0.3, 4.0), Rescale(2.0), CFGPlusPlus(0.6)], ids=repr)
def test_the_callers_own_loop(guidance) -> None:
    sampler = fastdiff.Sampler("ddim", 5, dtype=torch.float64)
    state = sampler.begin(X, guidance=guidance)
    both = torch.cat([A, B])
    while not state.done:
        assert state.input.shape == (8, 3, 2)
        sampler.step(state, conditional(state.input, state.time, both))
    assert torch.equal(state.x, sampler(conditional, X, guidance=guidance, **HALVES))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    yield from stand_in(monkeypatch)


class Net(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return conditional(x, t, y)


def test_a_graph_serves_other_scales_and_no_other_phi(fake: type[FakeCapture]) -> None:
    net = Net()
    captures = []
    for guidance in (Rescale(2.0), Rescale(3.0), Rescale(Interval(2.0, 0.3, 4.0)), Rescale(2.0, 0.2), 4.0):
        ours, eager = (
            fastdiff.Sampler("dpmpp2m", 4, graph=graph, dtype=torch.float64)(net, X, guidance=guidance, **HALVES)
            for graph in (True, False)
        )
        assert torch.equal(ours, eager)
        captures.append(fake.captures)
    assert captures == [1, 1, 1, 2, 3]


BAD = [
    ({"guidance": "high", **HALVES}, ValueError, "guidance='high': expected a finite number"),
    ({"guidance": float("nan"), **HALVES}, ValueError, "guidance=nan: expected a finite number"),
    ({"guidance": True, **HALVES}, ValueError, "guidance=True: expected a finite number"),
    ({"guidance": 2.0, "guidance_scale": 2.0, **HALVES}, ValueError, "are two words for one thing"),
    ({"guidance": Interval(2.0, 0.1, 1.0)}, ValueError, "needs guidance, cond and uncond together: got guidance"),
    ({"guidance": lambda t: float("inf"), **HALVES}, ValueError, r"guidance scale at t=.* is inf"),
    ({"guidance": lambda t: "x", **HALVES}, TypeError, r"guidance scale at t=.* is 'x'; expected a number"),
    (
        {"guidance": CFGPlusPlus(0.6), "method": "dpm3", **HALVES},
        ValueError,
        r"CFG\+\+ needs a method with one evaluation a step and no history, such as ddim, not 'dpm3'",
    ),
    (
        {"guidance": CFGPlusPlus(0.6), "method": "ode", **HALVES},
        ValueError,
        r"CFG\+\+ needs a method with one evaluation a step .* not an adaptive method",
    ),
    (
        {"guidance": CFGPlusPlus(0.6), "method": "ddpm", "variance": "learned_range", **HALVES},
        ValueError,
        r"CFG\+\+ goes neither with learned variances nor with Langevin steps",
    ),
    (
        {"guidance": CFGPlusPlus(0.6), "method": "pc", **HALVES},
        ValueError,
        r"CFG\+\+ goes neither with learned variances nor with Langevin steps",
    ),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), BAD)
def test_errors(arguments, kind, words) -> None:
    with pytest.raises(kind, match=words):
        fastdiff.sample(conditional, X, **{"method": "ddim", **arguments})


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Interval(2.0, 3.0, 1.0), ValueError, "expected 0 <= sigma_lo < sigma_hi"),
        (lambda: Interval(2.0, -1.0, 1.0), ValueError, "expected 0 <= sigma_lo < sigma_hi"),
        (lambda: Rescale(2.0, 1.5), ValueError, "phi=1.5: expected a number from 0 to 1"),
        (lambda: Rescale(2.0, True), ValueError, "phi=True: expected a number from 0 to 1"),
        (lambda: CFGPlusPlus(float("inf")), ValueError, r"guidance scale of CFG\+\+=inf: expected a finite number"),
        (lambda: fastdiff.guidance.ClassifierScore(3), TypeError, "must be callable as classifier_grad"),
    ],
)
def test_errors_where_a_form_is_made(make, kind, words) -> None:
    with pytest.raises(kind, match=words):
        make()
