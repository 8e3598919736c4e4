"""Langevin steps from norms: by hand, batches, guidance, graphs, and nothing that waits for the host."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.analytic import Array, mixture
from helpers.graph_stand_in import FakeCapture, Net
from helpers.models import BACKENDS, MIXTURE, Exact, X, wavy
from helpers.run_plan import network, run

import fastdiff
from fastdiff import ops
from fastdiff.plan import Plan
from fastdiff.run import graph
from fastdiff.schedules import resolve
from fastdiff.solvers import plan


def drawn(draw: int, like: torch.Tensor) -> torch.Tensor:
    return fastdiff.randn(tuple(like.shape), seed=11, draw=draw).to(like)


def by_hand(name: str, steps: int, snr: float, corrections: int, sample: bool) -> Array:
    """Song et al. 2021, Algorithms 2 to 5 as `pc` runs them, for VE and a discrete VP schedule; the mean at the end."""
    schedule = resolve(name)
    times = plan("pc", steps, schedule).times
    x, draw = X.numpy() * schedule.prior_std(times[0]), itertools.count()
    for i, (s, t) in enumerate(itertools.pairwise(times)):
        alpha, sigma, after, low = schedule.alpha(s), schedule.sigma(s), schedule.alpha(t), schedule.sigma(t)
        for _ in range(corrections):
            z = drawn(next(draw), X).numpy()
            g = MIXTURE.predict("score", x, alpha, sigma)
            n_z, n_g = np.linalg.norm(z, axis=1), np.linalg.norm(g, axis=1)
            quotient = (n_z / n_g)[:, None] if sample else n_z.mean() / n_g.mean()
            step = 2.0 * (alpha / after) ** 2 * (snr * quotient) ** 2
            x = x + step * g + np.sqrt(2.0 * step) * z
        g = MIXTURE.predict("score", x, alpha, sigma)
        ratio = alpha / after
        variance = sigma**2 - (ratio * low) ** 2
        x = (2.0 - ratio) * x + variance * g
        if i + 1 < steps:
            x = x + math.sqrt(variance) * drawn(next(draw), X).numpy()
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prediction", ["score", "eps"])
@pytest.mark.parametrize("norm", ["batch", "sample"])
@pytest.mark.parametrize("name", ["ve", "ddpm"])
@pytest.mark.parametrize(("steps", "corrections"), [(1, 1), (2, 2), (8, 1)])
def test_langevin_from_norms_by_hand(
    name: str, norm: str, steps: int, corrections: int, prediction: str, backend: str
) -> None:
    options = {"norm": norm, "n_corrector": corrections, "snr": 0.2, "prediction": prediction, "dtype": torch.float64}
    sampler = fastdiff.Sampler("pc", steps, schedule=name, backend=backend, **options)
    model, x = Exact(MIXTURE, name, prediction), X * sampler.plan.prior_std
    got = sampler(model, x, noise=drawn)
    want = by_hand(name, steps, 0.2, corrections, norm == "sample")
    # float64 round-off, amplified by the score's 1/sigma of at most 100.
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)
    assert len(model.seen) == sampler.plan.nfe == steps * (1 + corrections)
    # The same draws from the kernel; the CPU's normals are within 1e-6 of NumPy's.
    np.testing.assert_allclose(sampler(model, x, seed=11).numpy(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 1), (1025,), (3, 65, 65)])
def test_norms_of_samples_do_not_depend_on_the_batch(shape: tuple[int, ...], backend: str) -> None:
    """Bit for bit, in any split; the batch's mean depends on it."""
    results = {}
    for norm in ("sample", "batch"):
        sampler = fastdiff.Sampler("pc", 3, schedule="ve", norm=norm, backend=backend)
        parts = [sampler(wavy, shape=(n, *shape), seed=3, first_sample=i) for i, n in ((0, 1), (1, 2), (3, 5))]
        results[norm] = torch.cat(parts), sampler(wavy, shape=(8, *shape), seed=3)
    assert torch.equal(*results["sample"]) and torch.isfinite(results["sample"][0]).all()
    assert not torch.equal(*results["batch"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_own_noise_that_equals_the_built_in_gives_the_same(norm: str, backend: str) -> None:
    sampler = fastdiff.Sampler("pc", 4, norm=norm, n_corrector=2, backend=backend)
    seeds, index = torch.full((4,), 11), torch.arange(4, dtype=torch.int32)

    def own(draw: int, like: torch.Tensor) -> torch.Tensor:
        ops.load(backend).normal_(like, seeds, index, draw, 0)
        return like

    assert torch.equal(sampler(wavy, X.float(), noise=own), sampler(wavy, X.float(), seed=11))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["batch", "sample"])
@pytest.mark.parametrize("clip", [None, (-0.6, 0.8)])
@pytest.mark.parametrize("guided", [False, True])
def test_guidance_and_clipping_enter_the_norms(guided: bool, clip: tuple | None, norm: str, backend: str) -> None:
    other = mixture([1.0], [[0.2, -0.1, 0.3]], [0.6])
    p = plan("pc", 5, norm=norm)
    model, extra = Exact(MIXTURE), {}
    if guided:
        one, two = Exact(MIXTURE), Exact(other)
        extra = {"guidance_scale": 2.5, "cond": {"y": torch.ones(4)}, "uncond": {"y": torch.zeros(4)}}

        def model(x, t, y):
            keep = y.reshape(-1, 1) > 0
            return torch.where(keep, one(x, t), two(x, t))

    got = fastdiff.sample(
        model, X, method="pc", steps=5, norm=norm, clip=clip, noise=drawn, dtype=torch.float64, backend=backend, **extra
    )
    want = run(
        p,
        network(MIXTURE, "eps"),
        X.numpy(),
        noise=lambda draw, like: drawn(draw, X).numpy(),
        guidance=(2.5, network(other, "eps")) if guided else None,
        clip=clip,
    )
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)


def test_classifier_gradient_enters_the_norms() -> None:
    """A gradient that adds what turns one Gaussian's score into another's gives the other's run."""
    other = mixture([1.0], [[0.2, -0.1, 0.3]], [0.6])
    schedule = resolve("ve")
    options = {"method": "pc", "steps": 4, "schedule": schedule, "prediction": "score", "dtype": torch.float64}
    base, goal = Exact(MIXTURE, schedule, "score"), Exact(other, schedule, "score")
    got = fastdiff.sample(base, X, classifier_grad=lambda x, t: goal(x, t) - base(x, t), noise=drawn, **options)
    want = fastdiff.sample(goal, X, noise=drawn, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_triton_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    code = (
        "import torch, fastdiff; from helpers.models import wavy\n"
        "kw = {'shape': (3, 2, 5), 'method': 'pc', 'steps': 2, 'seed': 4, 'dtype': torch.float64}\n"
        "for norm in ('batch', 'sample'):\n"
        "    a, b = (fastdiff.sample(wavy, backend=n, norm=norm, **kw) for n in ('triton', 'reference'))\n"
        # The normals of two back ends are within 1e-6, in a run whose steps are of size 1.
        "    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)\n"
    )
    paths = [str(Path(__file__).parents[1]), str(Path(fastdiff.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


HOST = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")


@pytest.mark.parametrize("corrector", ["langevin", "ald"])
@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_no_value_reaches_the_host(corrector: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"norm": norm} if corrector == "langevin" else {}
    sampler = fastdiff.Sampler("pc", 3, corrector=corrector, n_corrector=2, backend="reference", **options)

    def caught(self: torch.Tensor, *args: object) -> None:
        raise AssertionError("the loop reads a value on the host")

    def start() -> None:
        for name in HOST:
            monkeypatch.setattr(torch.Tensor, name, caught)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        # From the first evaluation on, which is where the loop begins.
        start()
        return torch.sin(x * 0.7)

    result = sampler(model, X.float(), guidance_scale=None)
    monkeypatch.undo()
    assert torch.isfinite(result).all()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    class Capture(FakeCapture):
        pass

    monkeypatch.setattr(graph, "CAPTURE", Capture)
    graph.clear_graphs()
    yield Capture
    graph.clear_graphs()


@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_one_graph_serves_every_value(fake, norm: str) -> None:
    torch.manual_seed(0)
    net, shape = Net(), (3, 2, 5, 5)
    seen = []
    for seed, snr, schedule in ((1, 0.16, "ddpm"), (2, 0.16, "ddpm"), (1, 0.3, "ddpm"), (1, 0.16, "cosine")):
        ours, eager = (
            fastdiff.Sampler("pc", 4, schedule=schedule, norm=norm, snr=snr, graph=g)(net, shape=shape, seed=seed)
            for g in (True, False)
        )
        assert torch.equal(ours, eager)
        seen.append(ours)
    assert fake.captures == 1 and all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_a_sampler_s_table_is_not_written() -> None:
    sampler = fastdiff.Sampler("pc", 4, norm="batch")
    first, other = (sampler(wavy, X.float(), seed=s) for s in (1, 2))
    assert torch.equal(sampler(wavy, X.float(), seed=1), first) and not torch.equal(first, other)


def test_plans_show_and_keep_their_norms() -> None:
    p = plan("pc", 3, norm="sample")
    assert "\n0~  " in str(p) and "‖za‖/‖m‖ of the sample)" in str(p)
    assert Plan.from_json(p.to_json()).stages[0].langevin_norm == "sample"
    old = plan("ddpm", 3)
    assert Plan.from_json(old.to_json().replace(',\n   "norms": ""', "")) == old
    assert '"norms"' not in old.to_json().replace(',\n   "norms": ""', "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"langevin_norm": "pixel"}, r"stage 0: langevin_norm got 'pixel', expected one of '', 'batch', 'sample'"),
        (
            {"next_x": (1.0,) + (0.0,) * 12},
            r"langevin_norm='batch' needs a next_u that reads m and za, and a next_x equal",
        ),
        ({"draws": (0, 1, -1)}, r"langevin_norm='batch' goes with one draw, za; got draws=\(0, 1, -1\)"),
    ],
)
def test_stages_with_norms_are_checked(change: dict, message: str) -> None:
    p = plan("pc", 3)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(p, stages=(dataclasses.replace(p.stages[0], **change), *p.stages[1:]))
