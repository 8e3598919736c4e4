"""The user's corrections of x0 and x_t, the two forms of classifier guidance, and the hooks' agreement with them."""

from __future__ import annotations

import pytest
import torch
from helpers.analytic import gaussian, mixture
from helpers.methods import LOOPED
from helpers.models import BACKENDS, Exact, Pooled, wavy

import fastdiff
from fastdiff.prediction import score_shift
from fastdiff.solvers import step_variances

DIST = mixture([0.3, 0.7], [[-1.2, 0.4, 0.1], [0.8, -0.6, 1.0]], [0.25, 0.4])
X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
METHODS = LOOPED
UNCORRECTED = [m for m in METHODS if m not in ("unipc", "pc", "sa_solver")]


def bent(x0: torch.Tensor, t: float) -> torch.Tensor:
    return 0.8 * x0 + 0.1 * torch.sin(x0 + 0.001 * t)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clip", [None, (-0.5, 0.7), "dynamic"])
@pytest.mark.parametrize("method", METHODS)
def test_correct_x0_is_a_network_that_predicts_the_corrected_x0(method, clip, backend) -> None:
    """A network that gives x0 and bends it itself must lead to the same sample, in every space."""
    eps, schedule = Exact(DIST), fastdiff.schedules.ddpm()

    def predicts(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.alpha(float(t[0])), schedule.sigma(float(t[0]))
        return bent((x - sigma * eps(x, t)) / alpha, float(t[0]))

    common = {"method": method, "steps": 6, "clip": clip, "dtype": torch.float64, "backend": backend, "seed": 4}
    got = fastdiff.sample(eps, X, correct_x0=bent, **common)
    want = fastdiff.sample(predicts, X, prediction="x0", **common)
    # The same in another order; round-off over 1/alpha_T = 160.
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got, fastdiff.sample(eps, X, **common), atol=1e-3) or method == "pc"


@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m", "ddpm", "heun"])
def test_correct_x0_sees_what_guidance_made(method) -> None:
    seen: list[tuple[torch.Tensor, float]] = []

    def keep(x0: torch.Tensor, t: float) -> torch.Tensor:
        seen.append((x0.clone(), t))
        return x0

    y = {"y": X}
    guided = {"guidance_scale": 2.0, "cond": y, "uncond": {"y": 0.5 * X}}
    common = {"method": method, "steps": 4, "dtype": torch.float64}

    def model(x, t, y):
        return wavy(x + y, t)

    result, trajectory = fastdiff.sample(model, X, correct_x0=keep, return_trajectory=True, **guided, **common)
    torch.testing.assert_close(result, fastdiff.sample(model, X, **guided, **common), rtol=1e-9, atol=1e-9)
    plan = fastdiff.plan(method, 4)
    assert [t for _, t in seen] == [s.t for s in plan.stages]
    begins = [k for k, s in enumerate(plan.stages) if k == 0 or plan.stages[k - 1].step != s.step]
    for k, x0 in zip(begins, trajectory.x0, strict=True):
        torch.testing.assert_close(seen[k][0], x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("network", [torch.float64, torch.float32])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("method", UNCORRECTED)
def test_correct_xt_between_steps(method, guided, network, backend) -> None:
    """One-step methods: a run of one step at a time, with the correction by hand in between, is the same."""
    plan = fastdiff.plan(method, 5)
    calls: list[tuple[float, int]] = []

    def correct(x: torch.Tensor, t: float, step: int) -> torch.Tensor:
        calls.append((t, step))
        return 0.9 * x + 0.01 * step

    def model(x: torch.Tensor, t: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return wavy(x, t).to(network)

    half = {"guidance_scale": 2.0, "cond": {"y": X}, "uncond": {"y": X}} if guided else {}
    common = {"dtype": torch.float64, "backend": backend, "seed": 3, **half}
    got, trajectory = fastdiff.sample(
        model, X, method=method, steps=5, correct_xt=correct, return_trajectory=True, **common
    )
    assert calls == [(t, i + 1) for i, t in enumerate(plan.times[1:])]
    assert torch.equal(trajectory.x[-1], got)
    plain = fastdiff.sample(model, X, method=method, steps=5, return_trajectory=True, **common)[1]
    torch.testing.assert_close(trajectory.x[1], 0.9 * plain.x[1] + 0.01, rtol=1e-12, atol=1e-12)
    if plan.history == 0 and not plan.stochastic and plan.nfe == plan.steps:
        x = X
        for i, (s, t) in enumerate(zip(plan.times, plan.times[1:], strict=False)):
            x = 0.9 * fastdiff.sample(model, x, method=method, spacing=(s, t), **common) + 0.01 * (i + 1)
        torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_a_correction_that_does_nothing_changes_no_bit() -> None:
    for method in UNCORRECTED:
        common = {"method": method, "steps": 5, "seed": 1}
        x = X.float()
        want = fastdiff.sample(wavy, x, **common)
        assert torch.equal(fastdiff.sample(wavy, x, correct_xt=lambda x, t, step: x, **common), want)


def test_corrections_are_asked_once_and_their_buffers_may_be_reused() -> None:
    for method in ("dpm3", "dpmpp3m", "ddim"):
        buffer, count = torch.empty_like(X), [0, 0]

        def x0(value, t, buffer=buffer, count=count):
            count[0] += 1
            return buffer.copy_(0.9 * value)

        def xt(value, t, step, buffer=buffer, count=count):
            count[1] += 1
            return buffer.copy_(1.1 * value)

        common = {"method": method, "steps": 6, "dtype": torch.float64}
        got = fastdiff.sample(Pooled(wavy, 2), X, correct_x0=x0, correct_xt=xt, **common)
        want = fastdiff.sample(
            wavy, X, correct_x0=lambda v, t: 0.9 * v, correct_xt=lambda v, t, step: 1.1 * v, **common
        )
        assert count == [6, 6] and torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_mean_form_shifts_the_mean_by_the_variance(variance, backend) -> None:
    """Dhariwal and Nichol 2021, Algorithm 1, written out beside a run without guidance."""
    grads = []

    def gradient(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        grads.append(0.3 * torch.cos(x + t[0] / 500))
        return grads[-1]

    plan = fastdiff.plan("ddpm", 6, variance=variance)
    common = {"method": "ddpm", "variance": variance, "dtype": torch.float64, "backend": backend, "seed": 5}
    _, trajectory = fastdiff.sample(wavy, X, steps=6, classifier_grad=gradient, return_trajectory=True, **common)
    assert len(grads) == 6
    variances = step_variances(plan)
    assert variances is not None
    for i, stage in enumerate(plan.stages):
        pair = (stage.t, stage.t_next)
        noise = fastdiff.randn(X.shape, seed=5, draw=i, dtype=torch.float64, backend=backend)
        step = fastdiff.sample(wavy, trajectory.x[i], spacing=pair, noise=lambda d, like, z=noise: z, **common)
        std = stage.next_u[10]
        value = std**2 if i < 5 else (0.0 if variance == "small" else beta_tilde(plan, i - 1))
        assert variances[i] == pytest.approx(value, rel=1e-9)
        torch.testing.assert_close(trajectory.x[i + 1], step + value * grads[i], rtol=1e-9, atol=1e-9)


def beta_tilde(plan: fastdiff.Plan, i: int) -> float:
    """Posterior variance of the step from stage i, from the betas of the subsequence."""
    s, t = plan.stages[i], plan.stages[i + 1]
    beta = 1 - (s.alpha / t.alpha) ** 2
    return beta * t.sigma**2 / s.sigma**2


def test_forms_agree_as_steps_get_short() -> None:
    """Both forms are discretisations of one guided SDE: with the same noise they approach each other, at first
    order."""
    dist = gaussian([0.0] * 3, 0.5)

    def gradient(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 0.4)

    def gap(steps: int) -> float:
        common = {"method": "ddpm", "steps": steps, "dtype": torch.float64, "classifier_grad": gradient}
        mean, score = (fastdiff.sample(Exact(dist), X, classifier_form=form, **common) for form in ("mean", "score"))
        return float((mean - score).abs().max())

    # A quarter of the steps: four times the gap.
    assert gap(50) / gap(200) == pytest.approx(4.0, rel=0.25)


def test_default_forms_and_choice() -> None:
    eps, gradient = Exact(DIST), lambda x, t: torch.ones_like(x)
    for method, default, other in (("ddpm", "mean", "score"), ("ddim", "score", None)):
        common = {"method": method, "steps": 5, "dtype": torch.float64, "classifier_grad": gradient}
        got = fastdiff.sample(eps, X, **common)
        assert torch.equal(got, fastdiff.sample(eps, X, classifier_form=default, **common))
        if other:
            assert not torch.equal(got, fastdiff.sample(eps, X, classifier_form=other, **common))


@pytest.mark.parametrize("form", ["mean", "score"])
def test_the_gradient_keeps_its_precision_beside_a_bfloat16_network(form) -> None:
    """A gradient that bfloat16 cannot hold: 1 + 2^-12. Its effect on the result is that of the exact one."""
    network = torch.nn.Linear(3, 3, bias=False).to(torch.bfloat16)
    network.weight.data.zero_()

    def run(value: float) -> torch.Tensor:
        return fastdiff.sample(
            lambda x, t: network(x.bfloat16()),
            X.float(),
            method="ddpm",
            steps=2,
            classifier_grad=lambda x, t: torch.full_like(x, value),
            classifier_form=form,
        ).double()

    change = run(1024 * (1 + 2.0**-12)) - run(1024.0)
    exact = (run(2048.0) - run(1024.0)) * 2.0**-12
    # Each result is rounded to float32 a few times, relative to values near the shift itself.
    torch.testing.assert_close(change, exact, rtol=0.02, atol=1e-6)


def test_score_form_is_the_score_shift() -> None:
    a, s = 0.6, 0.7
    assert score_shift("eps", a, s) == -s and score_shift("x0", a, s) == s**2 / a


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"correct_x0": 3}, TypeError, r"correct_x0 must be callable as correct_x0\(x0, t\), got int"),
        ({"correct_xt": "x"}, TypeError, r"correct_xt must be callable as correct_xt\(x, t, step\), got str"),
        (
            {"correct_x0": lambda x0, t: x0[:1]},
            ValueError,
            r"correct_x0 returned \(\(1, 3\), 'cpu'\); expected a tensor",
        ),
        ({"correct_x0": lambda x0, t: None}, ValueError, "correct_x0 returned NoneType"),
        (
            {"correct_x0": lambda x0: x0},
            TypeError,
            r"correct_x0 is called as correct_x0\(x0, t\), and the function given takes \(x0\): wrap it, "
            r"correct_x0=lambda x0, t: f\(x0\)$",
        ),
        ({"correct_x0": torch.nn.Identity()}, TypeError, r"takes \(input.*: wrap it, .*lambda x0, t: f\(x0\)$"),
        ({"correct_x0": lambda: X}, TypeError, r"takes \(\): wrap it, correct_x0=lambda x0, t: f\(\)$"),
        ({"correct_x0": lambda x0, t, s: X}, TypeError, r"wrap it, correct_x0=lambda x0, t: f\(x0, t, \.\.\.\)$"),
        (
            {"correct_xt": lambda x, t: x},
            TypeError,
            r"called as correct_xt\(x, t, step\), and the function given takes \(x, t\): wrap it, "
            r"correct_xt=lambda x, t, step: f\(x, t\)$",
        ),
        (
            {"correct_xt": lambda x, t, step: None},
            ValueError,
            "correct_xt returned NoneType; .*return its first argument",
        ),
        (
            {"correct_xt": lambda x, t, step: x, "method": "unipc"},
            ValueError,
            "does not go with this plan of method 'unipc'.* give split=True .*, or corrector=False",
        ),
        ({"classifier_form": "mean"}, ValueError, "classifier_form='mean' without a classifier: give classifier_grad"),
        (
            {"classifier_form": "men", "classifier_grad": wavy},
            ValueError,
            "unknown classifier_form 'men'; did you mean 'mean'",
        ),
        (
            {"classifier_form": "mean", "classifier_grad": wavy, "method": "dpm3"},
            ValueError,
            "method 'dpm3' does not state: use method='ddpm'",
        ),
    ],
)
def test_errors(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        fastdiff.sample(lambda x, t, **kwargs: x, X, **arguments)


def test_functions_that_fit_pass_and_those_without_a_signature() -> None:
    # torch.mul has no signature.
    for correct in (torch.mul, lambda *a: a[0], lambda x0, t, s=0: x0):
        assert fastdiff.sample(wavy, X, steps=2, correct_x0=correct).shape == X.shape


UNIPC = [
    (9, {"order": 3, "variant": "bh2"}, (0.7686199502628326, -0.6907296238006155)),
    (
        8,
        {"order": 2, "variant": "bh1", "prediction_type": "noise", "denoise_to_zero": True},
        (0.6872854898809062, -0.528673480352958),
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("steps", "options", "expected"), UNIPC)
def test_correct_xt_of_the_published_unipc(steps, options, expected, backend) -> None:
    """UniPC(correcting_xt_fn=f) of wl-zhao/UniPC in float64, f leaving x_T (step 0) alone: the first of three
    samples."""
    dist = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
    z = torch.tensor([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]], dtype=torch.float64)
    calls = []

    def correct(x: torch.Tensor, t: float, step: int) -> torch.Tensor:
        calls.append((t, step))
        return 0.95 * x + 0.02 * torch.sin(x + step)

    common = {"method": "unipc", "steps": steps, "split": True, "dtype": torch.float64, "backend": backend, **options}
    got, path = fastdiff.sample(Exact(dist), z, correct_xt=correct, return_trajectory=True, **common)
    # Rounding, over 1/alpha_T = 160.
    torch.testing.assert_close(got[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-11)
    times = fastdiff.plan("unipc", steps, **options).times
    assert calls == [(t, k + 1) for k, t in enumerate(times[1:])]
    assert len(path.x) == len(times) == len(path.x0) + 1


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("options", [{}, {"order": 6, "prediction_type": "noise"}, {"denoise_to_zero": True}])
def test_split_unipc_is_unipc(options, guided) -> None:
    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | float = 0.0) -> torch.Tensor:
        return wavy(x + y, t)

    half = {"guidance_scale": 2.0, "cond": {"y": X}, "uncond": {"y": 0.5 * X}} if guided else {}
    common = {"method": "unipc", "steps": 12, "dtype": torch.float64, "return_trajectory": True, **options, **half}
    one, path = fastdiff.sample(model, X, **common)
    two, other = fastdiff.sample(model, X, split=True, **common)
    same, third = fastdiff.sample(model, X, split=True, correct_xt=lambda x, t, step: x, **common)
    assert torch.equal(two, same) and torch.equal(other.x0, third.x0)
    # The state at each evaluation, and its x0, are the same where corrector and predictor are one stage.
    for a, b in ((one, two), (path.x, other.x), (path.x0, other.x0)):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    p = fastdiff.plan("unipc", 12, split=True, **options)
    assert p.nfe == fastdiff.plan("unipc", 12, **options).nfe and len(p.stages) == p.nfe + 11


def test_unipc_without_corrector_takes_corrections() -> None:
    calls = []
    fastdiff.sample(wavy, X, method="unipc", corrector=False, steps=4, correct_xt=lambda x, t, s: calls.append(s) or x)
    assert calls == [1, 2, 3, 4]


def test_unipc_without_corrector_has_nothing_to_split() -> None:
    with pytest.raises(ValueError, match=r"split=True parts the corrector .*, and corrector=False leaves none"):
        fastdiff.sample(wavy, X, method="unipc", corrector=False, split=True)


def test_corrections_are_refused_by_a_graph_by_name() -> None:
    from fastdiff.run import graph

    sampler = fastdiff.Sampler("ddim", 3)
    found = []

    def look(r, start, mode, out=None):
        found.append(graph.signature(r, start))
        return start.clone()

    device, graph.CAPTURE.DEVICE = graph.CAPTURE.DEVICE, "cpu"
    try:
        import fastdiff.run.planned as module

        execute, module.execute = module.execute, look
        sampler(wavy, X, correct_x0=lambda x0, t: x0, correct_xt=lambda x, t, step: x)
    finally:
        graph.CAPTURE.DEVICE, module.execute = device, execute
    assert found == [graph.Refusal("correct_x0, correct_xt runs on the host between the network's calls", asked=True)]
