"""Forms whose weights follow from the outputs, second networks, and scales for each sample: the papers' formulas in
plain PyTorch, with a call of the network for each output."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.graph_stand_in import FakeCapture, stand_in
from helpers.models import BACKENDS, wavy

import fastdiff
from fastdiff.fitting.polish import Polish
from fastdiff.guidance import (
    AdaptiveProjected,
    Autoguidance,
    CFGPlusPlus,
    CFGZeroStar,
    ClassifierFree,
    Interval,
    PerpNeg,
    Place,
    Rescale,
)
from fastdiff.run.network import Network
from fastdiff.schedules import resolve

X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(4, 3, 2)
A, B, C = (torch.linspace(a, b, 24, dtype=torch.float64).reshape(4, 3, 2) for a, b in ((0.1, 1.2), (-1, 1), (2, -0.5)))
HALVES = {"cond": {"y": A}, "uncond": {"y": B}}
DDPM = resolve("ddpm")


def conditional(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return wavy(x + y, t)


def column(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1, 1)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return column((a * b).flatten(1).sum(1))


def levels(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = t.double().numpy()
    return column(torch.from_numpy(DDPM.alpha(numbers))), column(torch.from_numpy(DDPM.sigma(numbers)))


def to_x0(kind: str, out: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    if kind == "eps":
        return (x - sigma * out) / alpha
    if kind == "v":
        return (alpha * x - sigma * out) / (alpha**2 + sigma**2)
    return out if kind == "x0" else (x - sigma * out) / (alpha + sigma)


def projected(cond: torch.Tensor, d: torch.Tensor, scale: Any, eta: float, r: float) -> torch.Tensor:
    """Algorithm 1 of Sadat et al. 2024 after the momentum, on x0."""
    d = d * torch.minimum(torch.ones(()), r / dot(d, d).sqrt())
    unit = cond / dot(cond, cond).sqrt()
    parallel = dot(d, unit) * unit
    return cond + (scale - 1) * (d - parallel + eta * parallel)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("method", "clip", "prediction"),
    [
        *(("ddim", clip, p) for clip in (None, (-0.5, 0.5), "dynamic") for p in ("eps", "x0", "v", "flow")),
        *((m, None, "eps") for m in ("dpm3", "heun", "ddpm")),
    ],
)
def test_adaptive_projected(method: str, prediction: str, clip: Any, backend: str) -> None:
    scale, eta, r = 4.0, 0.25, 3.0

    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, s = levels(t)
        cond, uncond = (to_x0(prediction, conditional(x, t, y), x, a, s) for y in (A, B))
        return projected(cond, cond - uncond, scale, eta, r)

    options = {"method": method, "steps": 5, "dtype": torch.float64, "backend": backend, "seed": 2, "clip": clip}
    # The schedule's times are the model's, float32: 2^-24 of 1000 otherwise.
    options |= {"schedule": "ddpm", "spacing": [900.0, 700.0, 400.0, 200.0, 100.0, 20.0]}
    form = AdaptiveProjected(scale, eta, r)
    got = fastdiff.sample(conditional, X, guidance=form, prediction=prediction, **HALVES, **options)
    # The same numbers in another order: rounding, amplified by 1/alpha_T = 90 over 5 steps.
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, prediction="x0", **options), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_momentum_is_a_running_mean_of_x0_differences(backend: str) -> None:
    """Algorithm 1 with reverse momentum: beta < 0, over the steps of ddim."""
    scale, beta, r, times = 5.0, -0.5, 2.0, [900.0, 600.0, 300.0, 100.0]
    x, mean = X, torch.zeros_like(X)
    for t, following in zip(times, [*times[1:], 20.0], strict=True):
        a, s = levels(torch.full((4,), t))
        given = torch.full((4,), t, dtype=torch.float64)
        cond, uncond = (to_x0("eps", conditional(x, given, y), x, a, s) for y in (A, B))
        mean = cond - uncond + beta * mean
        x0 = projected(cond, mean, scale, 0.0, r)
        p = DDPM.at(following)
        x = p.alpha * x0 + p.sigma * (x - a * x0) / s
    form = AdaptiveProjected(scale, 0.0, r, beta)
    options = {"method": "ddim", "schedule": "ddpm", "spacing": [*times, 20.0], "dtype": torch.float64}
    sampler = fastdiff.Sampler(backend=backend, **options)
    for _ in range(2):
        # The second run begins without a mean.
        got = sampler(conditional, X, guidance=form, **HALVES)
        torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_projected_guidance_with_all_of_it_is_plain_guidance() -> None:
    options = {"method": "dpmpp2m", "steps": 6, "dtype": torch.float64, **HALVES}
    whole = fastdiff.sample(conditional, X, guidance=AdaptiveProjected(3.0, eta=1.0), **options)
    torch.testing.assert_close(whole, fastdiff.sample(conditional, X, guidance=3.0, **options), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "zero"), [("ddim", 1), ("dpmpp2m", 2), ("heun", 1), ("ode", 0)])
def test_cfg_zero_star(method: str, zero: int, backend: str) -> None:
    """Algorithm 1 of Fan et al. 2025: no velocity in the first steps, then the optimised scale."""
    scale, first = 4.0, {1: 2, 2: 2}.get(zero, 0) if method == "heun" else zero
    calls = []

    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(t)
        if len(calls) <= first:
            return torch.zeros_like(x)
        cond, uncond = conditional(x, t, A), conditional(x, t, B)
        return scale * cond + (1 - scale) * dot(cond, uncond) / dot(uncond, uncond) * uncond

    options = {"method": method, "dtype": torch.float64, "backend": backend, "schedule": "flow", "prediction": "flow"}
    options |= {"rtol": 1e-4, "atol": 1e-4} if method == "ode" else {"steps": 5}
    options |= {"t_start": 0.95} if method == "heun" else {}
    got = fastdiff.sample(conditional, X, guidance=CFGZeroStar(scale, zero), **HALVES, **options)
    # Rounding over 5 steps, or over those of the adaptive method.
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ddim", "unipc", "heun", "ode"])
def test_perp_neg(method: str, backend: str) -> None:
    """Armandpour et al. 2023, eq. 8, with one negative prompt."""
    scale, weight = 3.0, 1.5

    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cond, uncond, negative = (conditional(x, t, y) for y in (A, B, C))
        p, n = cond - uncond, negative - uncond
        return uncond + scale * (p - weight * (n - dot(n, p) / dot(p, p) * p))

    options: dict[str, Any] = {"method": method, "dtype": torch.float64, "backend": backend}
    options |= {"rtol": 1e-4, "atol": 1e-4} if method == "ode" else {"steps": 5}
    got = fastdiff.sample(conditional, X, guidance=PerpNeg(scale, {"y": C}, weight), **HALVES, **options)
    # Rounding, amplified by 1/alpha_T = 160.
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-8, atol=1e-8)


def test_perp_neg_of_one_negative_for_all_samples_and_of_a_parallel_one() -> None:
    options = {"method": "ddim", "steps": 4, "dtype": torch.float64, **HALVES}
    one = PerpNeg(3.0, {"y": C[:1]})
    each = PerpNeg(3.0, {"y": C[:1].expand(4, 3, 2)})
    assert torch.equal(*(fastdiff.sample(conditional, X, guidance=form, **options) for form in (one, each)))
    # A negative prompt that is the positive one has no perpendicular part.
    same = fastdiff.sample(conditional, X, guidance=PerpNeg(3.0, {"y": A}), **options)
    torch.testing.assert_close(same, fastdiff.sample(conditional, X, guidance=3.0, **options), rtol=1e-9, atol=1e-9)


def weaker(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | float = 0.0) -> torch.Tensor:
    t.mul_(1.0)  # Some networks scale their times in place.
    return 0.8 * wavy(1.1 * x + y, t)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ddim", "dpm3", "heun", "ode"])
def test_autoguidance(method: str, backend: str) -> None:
    """Karras et al. 2024, eq. 3, with conditions of both networks."""

    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        low = weaker(x, t, A)
        return low + 2.5 * (conditional(x, t, A) - low)

    options: dict[str, Any] = {"method": method, "dtype": torch.float64, "backend": backend, "seed": 1}
    options |= {"rtol": 1e-4, "atol": 1e-4} if method == "ode" else {"steps": 5}
    got = fastdiff.sample(conditional, X, guidance=Autoguidance(2.5, weaker), model_kwargs={"y": A}, **options)
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-8, atol=1e-8)


def test_autoguidance_of_gaussians_is_that_of_their_scores() -> None:
    """Two Gaussian laws: the guided score is that of a third, whose ODE is solved in closed form."""
    scale, good, bad, width = 2.0, 1.0, 4.0, 3.0

    def network(variance: float) -> Callable[..., torch.Tensor]:
        # eps = sigma·x/(variance + sigma²) at x = x0 + sigma·z.
        return lambda x, t: column(t) * x / (variance + column(t) ** 2)

    options = {"method": "ode", "schedule": fastdiff.schedules.edm(0.01, width), "dtype": torch.float64, "t_end": 0.01}
    got = fastdiff.sample(network(good), X, guidance=Autoguidance(scale, network(bad)), rtol=1e-9, atol=1e-9, **options)

    def log_growth(variance: float) -> float:
        # dx/dsigma = sigma·x/(variance + sigma²).
        return 0.5 * math.log((variance + 0.01**2) / (variance + width**2))

    # The tolerance of the solver, a few steps of it.
    want = X * math.exp(scale * log_growth(good) + (1 - scale) * log_growth(bad))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


SCALES = [1.5, 3.0, 0.0, 7.5]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "make",
    [
        ClassifierFree,
        lambda s: Interval(s, 0.3, 4.0),
        Rescale,
        AdaptiveProjected,
        CFGPlusPlus,
        lambda s: Autoguidance(s, weaker),
        lambda s: PerpNeg(s, {"y": C[:1]}),
    ],
    ids=["plain", "interval", "rescale", "apg", "cfg_pp", "auto", "perp_neg"],
)
def test_a_scale_for_each_sample_is_that_scale_alone(make: Callable[..., Any], backend: str) -> None:
    options: dict[str, Any] = {
        "method": "ddim",
        "steps": 5,
        "dtype": torch.float64,
        "backend": backend,
        "clip": (-1.5, 1.5),
    }

    def run(scale: Any, rows: slice) -> torch.Tensor:
        form = make(scale)
        if isinstance(form, Autoguidance):
            given = {"model_kwargs": {"y": A[rows]}}
        else:
            given = {"cond": {"y": A[rows]}, "uncond": {"y": B[rows]}}
        return fastdiff.sample(conditional, X[rows], guidance=form, first_sample=rows.start, **given, **options)

    together = run(torch.tensor(SCALES), slice(0, 4))
    alone = torch.cat([run(s, slice(i, i + 1)) for i, s in enumerate(SCALES)])
    # Weights rounded once more in the row of a sample.
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    for word in (SCALES, np.array(SCALES), lambda t: torch.tensor(SCALES)):
        assert torch.equal(run(word, slice(0, 4)), together)


@pytest.mark.parametrize("control", ["batch", "sample"])
def test_a_scale_of_time_for_each_sample_with_adaptive_steps(control: str) -> None:
    base = torch.tensor(SCALES, dtype=torch.float64)

    def mixed(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cond, uncond = conditional(x, t, A), conditional(x, t, B)
        return uncond + column(base + t.double() / 500.0) * (cond - uncond)

    options = {"method": "ode", "control": control, "rtol": 1e-5, "atol": 1e-5, "dtype": torch.float64}
    options |= {"schedule": fastdiff.schedules.edm(0.1, 20.0), "t_end": 0.1}
    got = fastdiff.sample(conditional, X, guidance=lambda t: base + t / 500.0, **HALVES, **options)
    # Model times are float32 in the network and float64 in the rows: 2^-24 of 20, and the steps' own tolerance.
    torch.testing.assert_close(got, fastdiff.sample(mixed, X, **options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "form", [AdaptiveProjected(4.0, momentum=-0.5), CFGZeroStar(4.0), PerpNeg(3.0, {"y": C[:1].float()})], ids=repr
)
def test_sums_do_not_depend_on_the_batch(form: Any) -> None:
    flow = {"schedule": "flow", "prediction": "flow"} if isinstance(form, CFGZeroStar) else {}

    def part(rows: slice) -> torch.Tensor:
        y = {"cond": {"y": A[rows].float()}, "uncond": {"y": B[rows].float()}}
        options = {"method": "dpmpp2m", "steps": 4, "first_sample": rows.start, **flow}
        return fastdiff.sample(conditional, X[rows].float(), guidance=form, **y, **options)

    assert torch.equal(part(slice(0, 4)), torch.cat([part(slice(0, 1)), part(slice(1, 4))]))


@pytest.mark.parametrize("form", [AdaptiveProjected(3.0), PerpNeg(3.0, {"y": C})], ids=["apg", "perp_neg"])
def test_a_learned_variance_is_that_of_the_network(form: Any) -> None:
    """The sums are those of the prediction's half of the channels."""

    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([conditional(x, t, y), 0.3 * torch.tanh(y)], 1)

    options = {"method": "ddpm", "steps": 4, "dtype": torch.float64, "seed": 5, **HALVES}
    learned = fastdiff.sample(network, X, guidance=form, variance="learned", **options)
    # log variance = v: the same as a network without one, and noise of that size.
    assert torch.isfinite(learned).all()

    def quiet(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([conditional(x, t, y), torch.full_like(y, -200.0)], 1)

    still = fastdiff.sample(quiet, X, guidance=form, variance="learned", **options)
    plain = fastdiff.sample(conditional, X, guidance=form, noise=lambda draw, like: torch.zeros_like(like), **options)
    torch.testing.assert_close(still, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network_dtype", [torch.float32, torch.bfloat16])
def test_the_callers_own_loop(network_dtype: torch.dtype) -> None:
    sampler = fastdiff.Sampler("dpmpp2m", 4)
    both, three = torch.cat([A, B]).float(), torch.cat([A, B, C]).float()

    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return conditional(x.float(), t, y.float()).to(network_dtype)

    halves = {"cond": {"y": A.float()}, "uncond": {"y": B.float()}}
    for form, y, repeats in (
        (AdaptiveProjected(3.0, momentum=-0.5), both, 1),
        (PerpNeg(3.0, {"y": C.float()}), three, 3),
    ):
        state = sampler.begin(X.float(), guidance=form, network_dtype=network_dtype)
        while not state.done:
            assert len(state.input) * repeats == len(y)
            out = network(torch.cat([state.input] * repeats), torch.cat([state.time] * repeats), y)
            with pytest.raises(ValueError, match="expected"):
                sampler.step(state, out[1:])
            sampler.step(state, out)

        class Net(torch.nn.Module):
            dtype = network_dtype

            def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return network(x, t, y)

        assert torch.equal(state.x, sampler(Net(), X.float(), guidance=form, **halves))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    yield from stand_in(monkeypatch)


class Net(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return conditional(x, t, y)


def test_graphs(fake: type[FakeCapture]) -> None:
    """One graph for other scales, also of samples; none for other host values or another second network."""
    net, one, other = Net(), Net(), Net()
    captures = []
    y = {"y": A}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (AdaptiveProjected(2.0, momentum=-0.5), HALVES),
        (AdaptiveProjected(3.0, momentum=-0.5), HALVES),
        (AdaptiveProjected(3.0, momentum=-0.25), HALVES),
        (SCALES, HALVES),
        (torch.tensor(SCALES).flip(0), HALVES),
        (PerpNeg(2.0, {"y": C}), HALVES),
        (PerpNeg(4.0, {"y": -C}, 0.5), HALVES),
        (Autoguidance(2.0, one), {"model_kwargs": y}),
        (Autoguidance(3.0, one), {"model_kwargs": y}),
        (Autoguidance(3.0, other), {"model_kwargs": y}),
    ]
    for form, given in cases:
        ours, eager = (
            fastdiff.Sampler("dpmpp2m", 4, graph=graph, dtype=torch.float64)(net, X, guidance=form, **given)
            for graph in (True, False)
        )
        assert torch.equal(ours, eager)
        captures.append(fake.captures)
    assert captures == [1, 1, 2, 3, 3, 4, 4, 5, 5, 6]


def test_a_tensor_of_scales_that_changes_is_read_again(fake: type[FakeCapture]) -> None:
    net, scales = Net(), torch.tensor(SCALES)
    sampler = fastdiff.Sampler("ddim", 4, graph=True, dtype=torch.float64)
    first = [sampler(net, X, guidance=scales, **HALVES) for _ in range(3)][-1]
    scales.add_(1.0)
    assert not torch.equal(sampler(net, X, guidance=scales, **HALVES), first)


def never(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the network was called")


BAD = [
    ({"guidance": [1.0, 2.0], **HALVES}, "the guidance scale has 2 numbers, and the batch has 4 samples"),
    ({"guidance": [1.0, 2.0], "method": "ode", **HALVES}, "the guidance scale has 2 numbers, and the batch has 4"),
    ({"guidance": [], **HALVES}, r"guidance=\[\]: expected a finite number"),
    ({"guidance": [1.0, math.nan], **HALVES}, r"guidance=\[1.0, nan\]: expected a finite number"),
    ({"guidance": lambda t: torch.ones(2, 2), **HALVES}, r"guidance scale at t=.* has shape \(2, 2\)"),
    (
        {"guidance": PerpNeg([1.0] * 4, {"y": C}, lambda t: [1.0, 2.0]), **HALVES},
        "the guidance gives numbers for 2 and 4 samples",
    ),
    ({"guidance": CFGZeroStar(2.0), **HALVES}, r"CFG-Zero\* is for networks of flow matching.*got prediction='eps'"),
    (
        {"guidance": CFGZeroStar(2.0), "method": "ode", "schedule": "flow", "prediction": "flow", **HALVES},
        r"CFG-Zero\* leaves out the first zero_steps=1 steps, and method 'ode' chooses",
    ),
    (
        {"guidance": AdaptiveProjected(2.0, momentum=-0.5), "method": "ode", **HALVES},
        "momentum=-0.5 keeps a mean over the evaluations of a run, of which method 'ode' rejects some",
    ),
    ({"guidance": Autoguidance(2.0, weaker), **HALVES}, "Autoguidance calls both networks with the same conditions"),
    ({"guidance": PerpNeg(2.0, {"y": C})}, "needs guidance, cond and uncond together: got guidance"),
    (
        {"guidance": PerpNeg(2.0, {"z": C}), **HALVES},
        r"cond and negative must have the same structure; got keys \['y'\]",
    ),
    ({"guidance": PerpNeg(2.0, {"y": C[:2]}), **HALVES}, r"negative\['y'\] has shape .*expected the batch, 4"),
    ({"guidance": PerpNeg(2.0, {"y": C[:, :1]}), **HALVES}, "cond and negative differ in shape"),
    ({"guidance": PerpNeg(2.0, {"y": 3}), **HALVES}, "cond and negative may differ in the values of tensors only"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_errors(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fastdiff.sample(never, X, **{"method": "ddim", **arguments})


def test_an_output_that_x0_does_not_depend_on() -> None:
    clean = dataclasses.replace(fastdiff.plan("ddim", 2, "flow").stages[0], alpha=1.0, sigma=0.0)
    with pytest.raises(ValueError, match="there x0 does not depend on the network's prediction='eps'"):
        AdaptiveProjected(2.0).numbers(Place(clean, "data", "eps"))


def test_a_nan_is_named_with_its_half() -> None:
    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where(y == C.max(), torch.nan, x)

    with pytest.raises(FloatingPointError, match="for sample 0 of 4, in the negative half"):
        fastdiff.sample(network, X, guidance=PerpNeg(2.0, {"y": C}), check_finite=True, method="ddim", **HALVES)
    bad = Autoguidance(2.0, lambda x, t: x * torch.nan)
    with pytest.raises(FloatingPointError, match="in the weaker network's half"):
        fastdiff.sample(lambda x, t: x, X, guidance=bad, check_finite=True, method="ddim")


MADE_BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: AdaptiveProjected(2.0, eta=math.inf), ValueError, "guidance eta=inf: expected a finite number"),
    (lambda: AdaptiveProjected(2.0, norm_threshold=0), ValueError, "norm_threshold=0: expected a number above 0"),
    (lambda: AdaptiveProjected(2.0, momentum=-1.0), ValueError, "momentum=-1.0: expected a number above -1"),
    (lambda: AdaptiveProjected(2.0, momentum=True), ValueError, "momentum=True: expected"),
    (lambda: AdaptiveProjected("x"), ValueError, "guidance='x': expected a finite number"),
    (lambda: CFGZeroStar(2.0, 0.5), ValueError, "zero_steps=0.5: expected a whole number from 0"),
    (lambda: Autoguidance(2.0, 3), TypeError, r"must be callable as network\(x, t, \*\*kwargs\), got int"),
    (lambda: PerpNeg(2.0, "ugly"), TypeError, "negative must be a dict of keyword arguments.*got str"),
    (lambda: PerpNeg(2.0, {}, "x"), ValueError, "PerpNeg's weight='x': expected a finite number"),
]


@pytest.mark.parametrize(("make", "kind", "words"), MADE_BAD)
def test_errors_where_a_form_is_made(make: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


@pytest.mark.parametrize("form", [Autoguidance(2.0, weaker), PerpNeg(2.0, {"y": C})], ids=["auto", "perp_neg"])
def test_a_plan_is_not_fitted_with_further_outputs(form: Any) -> None:
    with pytest.raises(ValueError, match=r"has outputs beyond the two halves: fit with guidance=7\.5"):
        fastdiff.fit(conditional, 3, shape=(4, 3, 2), guidance=form, **HALVES)


@pytest.mark.parametrize("scale", [4.0, SCALES])
def test_a_polish_sees_the_same_model_value(scale: Any) -> None:
    """A fit's polish has the step in PyTorch, for gradients."""
    stage = fastdiff.plan("dpm2", 4, "ddpm").stages[1]
    problem: Any = SimpleNamespace(
        guidance=AdaptiveProjected(scale, 0.25, 3.0), clip=None, space="noise", prediction="eps", model=conditional,
        dtype=torch.float64,
    )  # fmt: skip
    x = X.clone().requires_grad_(True)
    polish = Polish(problem, None, 1, "lbfgs")
    polish.network_dtype = torch.float64
    network = Network(conditional, 4, cond=HALVES["cond"], uncond=HALVES["uncond"])
    times = (torch.tensor(v, dtype=torch.float64) for v in (stage.t, stage.model_time))
    got = polish._value(network, stage, x, *times)
    t = torch.full((4,), stage.model_time, dtype=torch.float64)
    a, s = (torch.tensor(v, dtype=torch.float64) for v in (stage.alpha, stage.sigma))
    cond, uncond = (to_x0("eps", conditional(X, t, y), X, a, s) for y in (A, B))
    each = column(torch.tensor(scale)) if isinstance(scale, list) else scale
    want = (X - stage.alpha * projected(cond, cond - uncond, each, 0.25, 3.0)) / stage.sigma
    # Rounding of values of order 10.
    torch.testing.assert_close(got.detach(), want, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(got.sum(), x)
    assert slope.isfinite().all() and slope.abs().max() > 0


def test_a_polish_needs_evaluations_by_themselves() -> None:
    problem: Any = SimpleNamespace(guidance=AdaptiveProjected(2.0, momentum=-0.5), clip=None)
    with pytest.raises(ValueError, match="this guidance has a momentum over several: fit without polish"):
        Polish(problem, None, 1, "lbfgs")


@pytest.mark.parametrize(
    "form", [Rescale(2.0), PerpNeg(2.0, {"y": C}), [1.0, 2.0, 3.0, 4.0]], ids=["sums", "three", "each"]
)
def test_what_a_rollout_does_not_replay(form: Any) -> None:
    with pytest.raises(ValueError, match=r"gives each sample weights of its own, .*give one number, guidance=4\.5"):
        fastdiff.Sampler("ddpm", 3).rollout(never, X.float(), guidance=form, **HALVES)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (AdaptiveProjected(2.0), "guidance AdaptiveProjected takes sums over each whole sample"),
        ([1.0, 2.0, 3.0, 4.0], "a guidance scale for each sample does not go with frames"),
    ],
    ids=["sums", "each"],
)
def test_what_does_not_go_with_frames(form: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fastdiff.sample(never, X, method="ddim", steps=3, guidance=form, frames=fastdiff.Frames(1, "pyramid"), **HALVES)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ([1.0], "a request is one sample, and its guidance has a list of scales: give one number"),
        (PerpNeg(2.0, {"y": C[:1]}), "PerpNeg has outputs beyond the two halves, which an Engine does not batch"),
        (Autoguidance(2.0, weaker), "Autoguidance has outputs beyond the two halves"),
    ],
    ids=["each", "three", "weak"],
)
def test_what_does_not_go_with_an_engine(form: Any, words: str) -> None:
    engine = fastdiff.Engine(never, slots=2, shape=(3, 2), schedule="ddpm")
    with pytest.raises(ValueError, match=words):
        engine.submit(method="ddim", steps=3, guidance=form, cond={"y": A[:1]}, uncond={"y": B[:1]})


class Slotted:
    """A callable that cannot be weakly referenced."""

    __slots__ = ()

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return weaker(x, t, y)


def test_a_second_network_that_a_graph_could_outlive(fake: type[FakeCapture]) -> None:
    sampler = fastdiff.Sampler("ddim", 3, graph=True, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="a Slotted cannot be weakly referenced, so its graph could outlive it"):
        sampler(Net(), X, guidance=Autoguidance(2.0, Slotted()), model_kwargs={"y": A})


@pytest.mark.parametrize("form", [AdaptiveProjected(3.0, 0.2, 1.5), CFGPlusPlus(0.6)], ids=["apg", "cfg_pp"])
def test_an_engine_gives_the_bits_of_a_run_alone(form: Any) -> None:
    """Forms with sums run their stages by themselves in an engine, as do the methods of CFG++."""
    net = Net()
    method = "dpmpp_2m_cfg_pp" if isinstance(form, CFGPlusPlus) else "dpmpp2m"
    engine = fastdiff.Engine(net, slots=2, shape=(3, 2), schedule="ddpm")
    request = engine.submit(
        method=method, steps=4, guidance=form, seed=5, cond={"y": A[:1].float()}, uncond={"y": B[:1].float()}
    )
    engine.run()
    want = fastdiff.sample(
        net, shape=(1, 3, 2), method=method, steps=4, guidance=form, seed=[5], schedule="ddpm",
        cond={"y": A[:1].float()}, uncond={"y": B[:1].float()},
    )  # fmt: skip
    assert torch.equal(request.result(), want[0])
