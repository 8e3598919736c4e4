"""Frames at steps of their own: each is what it would be alone, and correlated ones are the closed form's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.graph_stand_in import FakeCapture, Net, stand_in

import fastdiff
from fastdiff import Frames
from fastdiff.ops import load
from fastdiff.run import graph
from fastdiff.solvers import GUIDED

SHAPE = (2, 3, 5, 2, 3)
"""(B, C, F, H, W): 6 elements of a frame lie together, no multiple of the 4 that share a block of the noise."""


def alone(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """A network that looks at each frame alone, whose time may be of the batch or of each frame."""
    t = t.reshape(len(x), 1, -1, *[1] * (x.ndim - 3))
    shift = 0.0 if y is None else y.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return torch.tanh(x * (1 + t.to(x.dtype) / 1000) + shift) * 0.9 + 0.1 * torch.cos(t.to(x.dtype)) * x


def same(method: str, matrix: Any, shape: tuple[int, ...] = SHAPE, model: Any = alone, **options: Any) -> None:
    """All frames, each at its own step, are bit for bit those of the run in which they advance together."""
    given = {"method": method, "steps": 5, "shape": shape, "seed": 3, "schedule": "ddpm", **options}
    want = fastdiff.sample(model, **given)
    frames = matrix if isinstance(matrix, Frames) else Frames(2, matrix)
    got = fastdiff.sample(model, frames=frames, **given)
    assert torch.equal(got, want), (method, float((got - want).abs().max()))


def paused(evaluations: int, frames: int, seed: int, most: int) -> np.ndarray:
    """A matrix in which frames wait at random, never longer than `most` evaluations once they have begun."""
    rng, rows = np.random.default_rng(seed), [np.zeros(frames, dtype=int)]
    idle = np.zeros(frames, dtype=int)
    while (rows[-1] < evaluations).any():
        left = rows[-1] < evaluations
        goes = left & ((rng.random(frames) < 0.6) | ((idle >= most) & (rows[-1] > 0)))
        if goes.any():
            idle = np.where(goes, 0, idle + 1)
            rows.append(rows[-1] + goes)
    return np.stack(rows)


METHODS = sorted(m for m, entry in fastdiff.methods().items() if not entry["adaptive"] and m != "pc")


@pytest.mark.parametrize("method", METHODS)
def test_each_frame_is_what_it_would_be_alone(method: str) -> None:
    """Whatever the others do: multistep, singlestep, with noise; in order, and with pauses."""
    own: dict[str, Any] = {"eta": 1.0} if method == "ddim" else {}
    nfe = fastdiff.plan(method, 5, schedule="ddpm", **own).nfe
    most = 1 if fastdiff.plan(method, 5, schedule="ddpm", **own).history < 3 else 0
    if method in GUIDED:
        own = {"guidance": 0.6, "cond": {"y": torch.ones(2)}, "uncond": {"y": torch.zeros(2)}}
    same(method, "pyramid", **own)
    same(method, Frames(2, "autoregressive", block=2), backend="reference", **own)
    # Of the six entries of the history, a frame that waited twice reads the third model value at most nine back.
    same(method, paused(nfe, SHAPE[2], seed=1, most=most), **own)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 3.0, "cond": {"y": torch.ones(2)}, "uncond": {"y": torch.zeros(2)}},
        {
            "guidance": fastdiff.guidance.Interval(3.0, 0.3, 2.0),
            "cond": {"y": torch.ones(2)},
            "uncond": {"y": torch.zeros(2)},
        },
        {"clip": (-0.5, 0.5)},
        {"dtype": torch.float64},
        {"prediction": "v"},
        {"classifier_grad": lambda x, t: torch.cos(x) * t.reshape(len(x), 1, -1, 1, 1) / 1000},
        {"correct_x0": lambda x0, t: x0.clamp(-0.7, 0.7)},
        {"model": lambda x, t: alone(x, t).bfloat16()},
        {"seed": [5, 8]},
    ],
    ids=["guidance", "interval", "clip", "float64", "v", "classifier", "correct_x0", "bfloat16", "seeds"],
)
def test_with_everything_that_a_run_takes(options: dict[str, Any]) -> None:
    same("dpmpp2m_sde", Frames(2, "pyramid", lag=2), **options)


@pytest.mark.parametrize(("shape", "axis"), [((2, 7, 4), 1), ((3, 6), 1), ((2, 2, 4, 1100), 2), ((1, 2, 3, 16, 72), 2)])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_runs_of_any_length(backend: str, shape: tuple[int, ...], axis: int) -> None:
    """A token alone, runs longer than a tile of the CPU kernel, multiples of the vector and others."""
    if not load(backend).available()[0]:
        pytest.skip("not built")

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.reshape(len(x), *[1] * (axis - 1), -1, *[1] * (x.ndim - axis - 1))
        return torch.sin(x + t / 500)

    same("dpmpp2m_sde", Frames(axis, "pyramid"), shape=shape, model=model, backend=backend)


def test_the_times_that_the_network_is_given() -> None:
    seen = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.clone())
        return 0.1 * x

    frames = Frames(2, "pyramid", lag=1, block=2, context=1)
    x = torch.randn(1, 1, 4, 1, 1)
    out = fastdiff.sample(model, x, method="ddim", steps=3, schedule="ddpm", frames=frames)
    a, b, c = (s.model_time for s in fastdiff.plan("ddim", 3, schedule="ddpm").stages)
    # The context is clean, at index 0, since −1 is no time of a network.
    assert [t.tolist() for t in seen] == [[[0, a, a, a]], [[0, b, b, a]], [[0, c, c, b]], [[0, 0, 0, c]]]
    assert torch.equal(out[:, :, 0], x[:, :, 0])
    seen.clear()
    fastdiff.sample(model, x, method="ddim", steps=3, schedule="flow", prediction="flow", frames=frames)
    assert [float(t[0, 0]) for t in seen] == [0.0] * 4
    seen.clear()
    named = Frames(2, "pyramid", context=1, clean_time=17.0)
    fastdiff.sample(model, x, method="ddim", steps=3, schedule="ddpm", frames=named)
    assert {float(t[0, 0]) for t in seen} == {17.0}


def test_inpainting_by_time() -> None:
    """A mask for each sample says which tokens are clean; they are kept, the others are as they would be alone."""
    mask = torch.tensor([[True, False, False, True], [False, False, True, False]])
    x, clean = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    own = mask.reshape(2, 1, 4, 1, 1)
    start = torch.where(own, clean, x)
    out = fastdiff.sample(alone, start, method="dpm3", steps=4, schedule="ddpm", frames=Frames(2, context=mask))
    want = fastdiff.sample(alone, x, method="dpm3", steps=4, schedule="ddpm")
    assert torch.equal(out, torch.where(own, clean, want))


def test_what_a_waiting_frame_gives_is_never_used() -> None:
    """Nor what a clean one gives: NaN there, as masked attention makes them, stays there."""

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        # The frame that moves is later than those that wait, but at the first evaluation of each.
        own, least = t.reshape(len(x), 1, -1, 1, 1), t.amin(1).reshape(-1, 1, 1, 1, 1)
        return torch.where((own == least) | (least == 999), alone(x, t), torch.nan)

    given = {"method": "dpmpp2m", "steps": 4, "shape": SHAPE, "schedule": "ddpm"}
    # Block after block, where a clean frame is given a time above those of the block.
    frames = Frames(2, "autoregressive", clean_time=1e4)
    for backend in ("reference", None):
        got = fastdiff.sample(model, frames=frames, backend=backend, **given)
        assert torch.equal(got, fastdiff.sample(alone, backend=backend, **given))


COVARIANCE = np.array([[1.0, 0.7, 0.3], [0.7, 1.5, 0.6], [0.3, 0.6, 0.8]])


def gaussian(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """eps − x0 of data N(0, COVARIANCE) over the frames of (B, 3), at alpha = 1 − t and sigma = t of each frame."""
    result = []
    for row, times in zip(x.numpy(), t.numpy(), strict=True):
        a, s = np.diag(1 - times), np.diag(times)
        posterior = COVARIANCE @ a @ np.linalg.solve(a @ COVARIANCE @ a + s @ s, row)
        eps = np.divide(row - (1 - times) * posterior, times, out=np.zeros(3), where=times > 0)
        result.append(eps - posterior)
    return torch.from_numpy(np.stack(result))


def matrix_of(steps: int, order: str, **more: Any) -> np.ndarray:
    """The linear map from noise to sample that a run is."""
    x = torch.eye(3, dtype=torch.float64)
    given = {"schedule": "flow", "prediction": "flow", "dtype": torch.float64, "backend": "reference"}
    out = fastdiff.sample(gaussian, x, method="dpmpp2m", steps=steps, frames=Frames(1, order, **more), **given)
    return out.numpy().T


def test_one_frame_after_another_is_the_conditional_law() -> None:
    """Each frame given those before it, N(mean, std²): the map from the noise is the Cholesky factor. Second order."""
    truth = np.linalg.cholesky(COVARIANCE)
    errors = [np.abs(matrix_of(n, "autoregressive") - truth).max() for n in (20, 40)]
    assert errors[1] < 2e-2 and errors[0] > 2.5 * errors[1], errors


@pytest.mark.parametrize("order", ["full_sequence", "pyramid"])
def test_frames_on_the_way_together_have_the_joint_law(order: str) -> None:
    errors = []
    for n in (40, 80):
        made = matrix_of(n, order, lag=n // 10)
        errors.append(np.abs(made @ made.T - COVARIANCE).max())
    assert errors[1] < 2e-2 and errors[0] > 2.5 * errors[1], errors


def test_frames_that_go_on_from_where_they_are() -> None:
    """A window of a rolling run: a method of one step begins and ends anywhere."""
    whole = np.array([[0, 0], [1, 0], [2, 1], [3, 2], [4, 3], [4, 4]])
    given = {"method": "ddpm", "steps": 4, "schedule": "ddpm", "seed": 1}
    x = torch.randn((*SHAPE[:2], 2, 2, 3))
    want = fastdiff.sample(alone, x, frames=Frames(2, whole), **given)
    half = fastdiff.sample(alone, x, frames=Frames(2, whole[:4]), **given)
    assert torch.equal(fastdiff.sample(alone, half, frames=Frames(2, whole[3:]), **given), want)


def test_a_loop_of_your_own() -> None:
    sampler, frames = fastdiff.Sampler("unipc", 4, schedule="ddpm"), Frames(2, "pyramid", lag=1.5)
    state = sampler.begin(shape=SHAPE, seed=2, frames=frames)
    count = 0
    while not state.done:
        assert state.time.shape == (2, 5)
        state = sampler.step(state, alone(state.input, state.time))
        count += 1
    assert count == len(frames.matrix(2, 5, 4)) - 1 == 10
    assert torch.equal(state.x, sampler(alone, shape=SHAPE, seed=2))


def test_what_hooks_see() -> None:
    frames, seen = Frames(2, "pyramid"), []

    def callback(stage: int, t: torch.Tensor, x: torch.Tensor, x0: torch.Tensor) -> None:
        seen.append((stage, t, x0))

    given = {"method": "ddim", "steps": 3, "shape": SHAPE, "schedule": "ddpm"}
    out, trajectory = fastdiff.sample(alone, frames=frames, callback=callback, return_trajectory=True, **given)
    together, plain = fastdiff.sample(alone, return_trajectory=True, **given)
    assert torch.equal(out, together) and trajectory.times.shape == (8, 2, 5) and len(trajectory.x) == 8
    for e in range(7):
        assert (
            seen[e][0] == e
            and torch.equal(seen[e][1], trajectory.times[e])
            and torch.equal(seen[e][2], trajectory.x0[e])
        )
        for f in range(5):
            n = min(max(e - f, 0), 3)
            assert trajectory.times[e, 0, f] == plain.times[n]
            assert torch.equal(trajectory.x[e, :, :, f], plain.x[n, :, :, f])
            # Of a clean frame, the predicted x0 is the frame.
            want = plain.x0[n] if n < 3 else plain.x[3]
            assert torch.equal(trajectory.x0[e, :, :, f], want[:, :, f])
    assert torch.equal(trajectory.times[-1], torch.full((2, 5), plain.times[-1].item(), dtype=torch.float64))


def test_a_nan_is_reported_with_its_evaluation() -> None:
    def broken(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.where(t.reshape(2, 1, -1, 1, 1) < 500, torch.nan, x)

    with pytest.raises(FloatingPointError, match=r"at evaluation 2 \(stage 2\) for sample 0"):
        fastdiff.sample(
            broken, method="ddim", steps=4, shape=SHAPE, schedule="ddpm", frames=Frames(2, "pyramid"), check_finite=True
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    yield from stand_in(monkeypatch)


def test_rows_lie_on_the_device(fake: type[FakeCapture]) -> None:
    """A captured run is replayed with another seed and with other rows of the same structure."""

    class PerFrame(Net):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return alone(x, t)

    net = PerFrame()
    late = np.array([[0, 0, 0], [1, 0, 0], [2, 1, 1], [2, 2, 2]])
    early = late[:, ::-1].copy()
    given = {"method": "ddim", "steps": 2, "eta": 1.0, "schedule": "ddpm", "shape": (2, 3, 3, 2, 2)}
    for count, (matrix, seed) in enumerate([(late, 0), (late, 1), (late, 1)]):
        got = fastdiff.sample(net, frames=Frames(2, matrix), graph=True, **given, seed=seed)
        assert torch.equal(got, fastdiff.sample(net, graph=False, **given, seed=seed)), count
    assert (fake.captures, fake.replays) == (1, 3)
    got = fastdiff.sample(net, frames=Frames(2, early), graph=True, **given, seed=4)
    assert torch.equal(got, fastdiff.sample(net, graph=False, **given, seed=4))
    graph.clear_graphs()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"frames": 2}, TypeError, "frames=2: expected a fastdiff.Frames"),
    ({"noise": lambda d, x: x}, ValueError, "noise=... draws whole samples"),
    ({"correct_xt": lambda x, t, s: x}, ValueError, "correct_xt is called after the steps of a whole sample"),
    ({"clip": "dynamic"}, ValueError, "clip='dynamic' takes a quantile of each whole sample"),
    ({"method": "ode", "steps": None}, ValueError, "frames needs a method with a plan"),
    ({"method": "pc"}, ValueError, "takes norms over each whole sample"),
    (
        {"guidance": fastdiff.guidance.Rescale(2.0), "cond": {"y": torch.ones(2)}, "uncond": {"y": torch.ones(2)}},
        ValueError,
        "guidance Rescale takes sums over each whole sample",
    ),
    ({"method": "mean_flow", "two_times": True}, ValueError, "with two_times=True gives the network two times"),
    ({"frames": Frames(9)}, ValueError, r"axis=9, but x has shape \(2, 3, 5, 2, 3\)"),
    ({"frames": Frames(2, context=2)}, ValueError, "some frames are no pure noise at the start: pass x"),
    (
        {"frames": Frames(1), "method": "ddpm", "variance": "learned_range"},
        ValueError,
        "a learned variance doubles the channels, axis 1",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_what_does_not_go_with_frames(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"frames": Frames(2), "method": "ddim", "steps": 4, "shape": SHAPE, "schedule": "ddpm", **options}
    if given["method"] == "pc":
        given["schedule"] = "ve"
    with pytest.raises(kind, match=message):
        fastdiff.sample(alone, **given)


def test_plans_that_cannot_be_taken_apart() -> None:
    x = torch.randn(SHAPE)
    n = fastdiff.plan("dpm3", 6, schedule="ddpm").nfe
    begun = np.full((n, 5), n)
    begun[:, 0] = np.arange(1, n + 1)
    with pytest.raises(ValueError, match="frame 0 of sample 0 begins at evaluation 1 of the plan, which reads a model"):
        fastdiff.sample(alone, x, method="dpm3", steps=6, schedule="ddpm", frames=Frames(2, begun))
    # Frame 0 waits after its third evaluation, while frame 1 makes seven.
    first = np.array([1, 2, 3, *[3] * 7, 4, 5, 6, 7, 8])
    other = np.array([0, 0, 0, *range(1, 8), 7, 7, 7, 7, 8])
    steps = np.stack([first, other, *[other] * 3], axis=1)
    steps = np.concatenate([np.zeros((1, 5), dtype=int), steps])
    with pytest.raises(
        ValueError, match=r"waits between evaluations .* reads lies 8 evaluations back: at most 6 are kept"
    ):
        fastdiff.sample(alone, x=None, shape=SHAPE, method="dpm3", steps=8, schedule="ddpm", frames=Frames(2, steps))
    with pytest.raises(ValueError, match="frame 0 of sample 0 ends at evaluation 1, inside a step of method 'heun'"):
        fastdiff.sample(
            alone, shape=SHAPE, method="heun", steps=3, schedule="ddpm", frames=Frames(2, np.array([[0] * 5, [1] * 5]))
        )
    plan = fastdiff.Plan(
        **{
            k: getattr(fastdiff.plan("ddim", 2, schedule="ddpm"), k)
            for k in ("method", "space", "order", "times", "stages")
        }
    )
    with pytest.raises(ValueError, match="the plan states no schedule"):
        fastdiff.sample(alone, shape=SHAPE, plan=plan, frames=Frames(2, "pyramid"))
