"""noise="brownian": one path for every grid, back end and batch, and what cannot have one is refused."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import BACKENDS

import fastdiff
from fastdiff.ops.brownian import signal
from fastdiff.plan import ZA, Plan
from fastdiff.schedules import resolve

SHAPE = (3, 2, 5, 3)


def soft(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Some x0 that depends on x."""
    return 0.5 * torch.tanh(x)


def run(method: str = "dpmpp2m_sde", steps: int | None = 6, **options: Any) -> torch.Tensor:
    options = {"schedule": "flow", "prediction": "x0", "noise": "brownian", "shape": SHAPE, "seed": 5, **options}
    return fastdiff.sample(soft, method=method, steps=steps, **options)


def gained(times: list[float]) -> list[float]:
    lam = [resolve("flow").at(t).lam for t in times]
    return [signal(a, b) for a, b in itertools.pairwise(lam)]


def path_of(times: list[float], **options: Any) -> torch.Tensor:
    """W at the last time less W at the first, from the noise that each step of a sampler added."""

    def nothing(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    given = {"seed": 5, "prediction": "x0", "noise": "brownian", "dtype": torch.float64, **options}
    sampler = fastdiff.Sampler(
        "ddim", schedule="flow", spacing=times, eta=1.0, **{k: given.pop(k) for k in ("prediction", "dtype")},
        backend=given.pop("backend", None),
    )  # fmt: skip
    _, trajectory = sampler(nothing, shape=SHAPE, return_trajectory=True, **given)
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for k, (stage, width) in enumerate(zip(sampler.plan.stages, gained(times), strict=True)):
        kept = stage.next_u[0] * trajectory.x[k]
        total += (trajectory.x[k + 1] - kept) / stage.next_u[ZA] * math.sqrt(width)
    return total


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_path_at_any_number_of_steps(backend: str) -> None:
    """What the steps add up to between two times is the same, whatever lies between."""
    one = path_of([0.9, 0.1], backend=backend)
    uneven = [0.9, 0.77, 0.3, 0.2987, 0.1]
    for times in (uneven, [*np.linspace(0.9, 0.1, 41 if backend == "cpu" else 3)]):
        # Weights and normals are float32: each step's noise to 1e-5, times a std of at most 1.
        torch.testing.assert_close(path_of(times, backend=backend), one, rtol=0, atol=1e-5)
    assert (path_of([0.9, 0.1], seed=6, backend=backend) - one).abs().max() > 0.1
    # The parts from other ends: the run may start and end anywhere on the path.
    parts = path_of([0.9, 0.5], backend=backend) + path_of([0.5, 0.2, 0.1], backend=backend)
    torch.testing.assert_close(parts, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"method": "ddpm", "schedule": "ddpm"}, {"dtype": torch.float64}], ids=str)
def test_all_back_ends_give_the_same_sample(options: dict[str, Any]) -> None:
    a, *others = (run(**options, backend=name) for name in BACKENDS)
    for b in others:
        # Six steps, each with noise to 1e-5 (ops/brownian.py: float32 normals and weights), of a std of at most 1.
        torch.testing.assert_close(a, b, rtol=0, atol=6e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_do_not_depend_on_their_batch(backend: str) -> None:
    whole = run(steps=2, backend=backend)
    parts = [run(steps=2, backend=backend, shape=(n, *SHAPE[1:]), first_sample=at) for n, at in ((1, 0), (2, 1))]
    assert torch.equal(torch.cat(parts), whole)
    seeds = [11, -4, 2**63]
    own = run(steps=2, backend=backend, seed=seeds)
    for b, seed in enumerate(seeds):
        assert torch.equal(run(steps=2, backend=backend, seed=[seed], shape=(1, *SHAPE[1:])), own[b : b + 1])


def test_an_own_loop_and_guided_rows_have_the_same_path() -> None:
    sampler = fastdiff.Sampler("dpmpp2m_sde", 6, schedule="flow", prediction="x0")
    state = sampler.begin(shape=SHAPE, seed=5, noise="brownian")
    while not state.done:
        state = sampler.step(state, soft(state.input, state.time))
    assert torch.equal(state.x, run())

    def conditional(x: torch.Tensor, t: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return soft(x, t) + shift.reshape(-1, 1, 1, 1)

    # Rescaled guidance writes a row for each sample, with its draws.
    asked = {"cond": {"shift": torch.full((3,), 0.2)}, "uncond": {"shift": torch.zeros(3)}}
    asked["guidance"] = fastdiff.guidance.Rescale(2.0, 0.5)
    results = [
        fastdiff.Sampler("dpmpp2m_sde", 4, schedule="flow", prediction="x0", backend=name)(
            conditional, shape=SHAPE, noise="brownian", **asked
        )
        for name in BACKENDS
    ]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=0, atol=1e-4)


def test_strong_convergence() -> None:
    """Between n and 2n steps the same samples differ less and less, at order 1 of additive noise; independent noise
    gives other samples. Data N(0, 0.5²), whose x0 is known."""

    def sampled(steps: int, noise: str | None) -> torch.Tensor:
        def x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            s = float(t[0])
            return x * 0.25 / (0.25 + s * s)

        sampler = fastdiff.Sampler("dpmpp2m_sde", steps, schedule="edm", prediction="x0", dtype=torch.float64)
        return sampler(x0, shape=(1, 2000), seed=1, noise=noise)

    counts = (16, 32, 64, 128)
    found = [sampled(n, "brownian") for n in (*counts, 256)]
    errors = [float((a - b).square().mean().sqrt()) for a, b in itertools.pairwise(found)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < 0.02 and min(orders) > 0.9, (errors, orders)
    # The law is right too: the standard error of a variance of 0.25 from 2000 samples is 0.008.
    assert float(found[-1].var()) == pytest.approx(0.25, abs=0.03)
    apart = float((sampled(64, None) - sampled(128, None)).square().mean().sqrt())
    assert apart > 0.5, "independent noise: two samples of standard deviation 0.5, apart from x_T"


def test_a_deterministic_method_draws_nothing_from_it() -> None:
    assert torch.equal(run("dpmpp2m"), run("dpmpp2m", noise=None))


def test_1000_steps_are_resolved() -> None:
    # The shortest steps of lambda: 0.001 and 0.003.
    for schedule, spacing in (("edm", "linspace"), ("cosine", "linspace")):
        plan = fastdiff.plan("ddim", 1000, schedule, spacing, eta=1.0)
        fastdiff.Sampler(plan=plan, prediction="x0").begin(shape=(1, 1), noise="brownian")


REFUSED = [
    ({"method": "ode", "steps": None}, r"noise='brownian' does not go with method 'ode': it solves an ODE"),
    ({"method": "pc", "schedule": "vp_linear"}, r"noise='brownian': method 'pc' with these options draws noise that "),
    ({"method": "heun", "schedule": "edm", "s_churn": 4.0}, r"method 'heun' with these options draws noise that "),
    ({"noise": "brown"}, r"unknown noise 'brown'; did you mean 'brownian'\?"),
    ({"method": "ddim", "eta": 1.0, "steps": None, "spacing": [0.51, 0.50999, 0.1]}, r"path is resolved to steps of 2"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_plan_without_a_schedule_is_refused() -> None:
    plan = dataclasses.replace(fastdiff.plan("dpmpp2m_sde", 3), schedule={})
    assert isinstance(plan, Plan) and plan.spanned
    with pytest.raises(ValueError, match=r"noise='brownian' needs the plan's schedule"):
        fastdiff.sample(soft, plan=plan, prediction="x0", shape=SHAPE, noise="brownian")
