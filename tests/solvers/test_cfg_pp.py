"""The methods that are CFG++, against ComfyUI's definitions written out, with two calls of the network a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.graph_stand_in import FakeCapture, stand_in
from helpers.models import BACKENDS, wavy

import fastdiff
from fastdiff.guidance import CFGPlusPlus, Interval
from fastdiff.schedules import resolve
from fastdiff.solvers import GUIDED

X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(4, 3, 2)
A, B = (torch.linspace(a, b, 24, dtype=torch.float64).reshape(4, 3, 2) for a, b in ((0.1, 1.2), (-1, 1)))
HALVES = {"cond": {"y": A}, "uncond": {"y": B}}
DDPM = resolve("ddpm")
TIMES = [900.0, 700.0, 400.0, 200.0, 60.0, 0.0]
SCALE = 1.3

Step = Callable[..., torch.Tensor]


def conditional(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return wavy(x + y, t)


def draw(n: int, like: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, like.numel(), dtype=like.dtype).reshape(like.shape).cos() * (1 + n)


class Peer:
    """ComfyUI's loops in y = x/alpha at levels sigma/alpha; its network gives the guided and the unconditional x0."""

    def __init__(self, last: float) -> None:
        times = [*TIMES[:-1], last]
        self.sigmas = [float(DDPM.sigma(t) / DDPM.alpha(t)) for t in times]
        if last == TIMES[-1]:
            self.sigmas[-1] = 0.0
        self.drawn = 0

    def denoise(self, y: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        lam = -math.log(sigma)
        p = DDPM.at(float(DDPM.inverse_lambda(lam)))
        t = torch.full((4,), p.model_time, dtype=torch.float64)
        cond, uncond = (y - sigma * conditional(p.alpha * y, t, c) for c in (A, B))
        return uncond + SCALE * (cond - uncond), uncond

    def noise(self, y: torch.Tensor, up: float) -> torch.Tensor:
        if up == 0:
            return y
        self.drawn += 1
        return y + up * draw(self.drawn - 1, y)

    def steps(self, eta: float) -> Iterator[tuple[int, float, float, float, float]]:
        for i, (s, t) in enumerate(pairwise(self.sigmas)):
            up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
            yield i, s, t, math.sqrt(t**2 - up**2), up

    def euler(self, y: torch.Tensor, eta: float = 0.0) -> torch.Tensor:
        for _, s, _, down, up in self.steps(eta):
            guided, uncond = self.denoise(y, s)
            y = self.noise(guided + down * (y - uncond) / s, up)
        return y

    def dpmpp_2m(self, y: torch.Tensor) -> torch.Tensor:
        old = None
        for i, s, t, _, _ in self.steps(0.0):
            guided, uncond = self.denoise(y, s)
            mix = -t / s * uncond
            if old is not None and t > 0:
                h = math.log(s / t)
                r = math.log(self.sigmas[i - 1] / s) / h
                mix = mix - math.expm1(-h) / (2 * r) * (guided - old)
            y, old = guided + mix + t / s * y, uncond
        return y

    def dpmpp_2s(self, y: torch.Tensor, eta: float = 1.0, late: bool = False) -> torch.Tensor:
        """`late`: as in ComfyUI, the shift of the whole step takes the unconditional x0 of the second evaluation."""
        for _, s, _, down, up in self.steps(eta):
            guided, uncond = self.denoise(y, s)
            if down == 0:
                y = guided
            else:
                h = math.log(s / down)
                moved = y + guided - uncond
                middle = math.exp(-h / 2) * moved - math.expm1(-h / 2) * guided
                second, other = self.denoise(middle, math.sqrt(s * down))
                moved = y + guided - other if late else moved
                y = math.exp(-h) * moved - math.expm1(-h) * second
            y = self.noise(y, up)
        return y

    def res(self, y: torch.Tensor, eta: float = 0.0) -> torch.Tensor:
        old, last = None, 0.0
        for i, s, _, down, up in self.steps(eta):
            guided, uncond = self.denoise(y, s)
            if down == 0 or old is None:
                y = guided + down * (y - uncond) / s
            else:
                h = math.log(s / down)
                c2 = math.log(last / self.sigmas[i - 1]) / h
                one = math.expm1(-h) / -h
                two = (one - 1) / -h
                y = math.exp(-h) * (y + guided - uncond) + h * ((one - two / c2) * uncond + two / c2 * old)
            y, old, last = self.noise(y, up), uncond, down
        return y

    def gradient_estimation(self, y: torch.Tensor) -> torch.Tensor:
        old = None
        for _, s, t, _, _ in self.steps(0.0):
            guided, uncond = self.denoise(y, s)
            d = (y - uncond) / s
            y = guided + t * d
            if old is not None and t > 0:
                y = y + (d - old) * (t - s)
            old = d
        return y


PEERS: dict[str, Callable[[Peer, torch.Tensor], torch.Tensor]] = {
    "euler_cfg_pp": Peer.euler,
    "euler_ancestral_cfg_pp": lambda p, y: p.euler(y, 1.0),
    "dpmpp_2m_cfg_pp": Peer.dpmpp_2m,
    "dpmpp_2s_ancestral_cfg_pp": Peer.dpmpp_2s,
    "res_multistep_cfg_pp": Peer.res,
    "res_multistep_ancestral_cfg_pp": lambda p, y: p.res(y, 1.0),
    "gradient_estimation_cfg_pp": Peer.gradient_estimation,
}


def test_every_method_has_its_peer() -> None:
    assert set(PEERS) == set(GUIDED)
    assert all(fastdiff.methods()[name]["paper"].startswith("Chung et al. 2024") for name in PEERS)


def test_why_2s_is_not_comfyuis() -> None:
    """Its shift mixes two evaluations: without any guidance (equal halves) it is not 0, and the sampler does not come
    to the solution of the ODE, however many steps it takes. With one evaluation's x0 it does, at second order."""

    class Gaussian(Peer):
        """Data of variance 1: x0 = y/(1 + sigma²), guided or not."""

        def denoise(self, y: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
            return y / (1 + sigma**2), y / (1 + sigma**2)

    errors: dict[bool, list[float]] = {True: [], False: []}
    for late, found in errors.items():
        for n in (20, 40, 80):
            peer = Gaussian(1.0)
            peer.sigmas = [10.0 * 0.01 ** (k / n) for k in range(n + 1)]
            # dy/dsigma = sigma·y/(1 + sigma²).
            want = X * math.sqrt((1 + peer.sigmas[-1] ** 2) / (1 + peer.sigmas[0] ** 2))
            found.append(float((peer.dpmpp_2s(X, 0.0, late) - want).abs().max() / want.abs().max()))
    ours, theirs = errors[False], errors[True]
    assert ours[2] < ours[1] / 3.5 < ours[0] / 12 and ours[2] < 1e-3
    assert theirs[2] > theirs[0] > 0.15


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("method", PEERS)
def test_comfyui(method: str, clean: bool, backend: str) -> None:
    last = -1.0 if clean else 20.0
    spacing = [*TIMES[:-1], last]
    peer = Peer(0.0 if clean else last)
    start, end = DDPM.at(spacing[0]), DDPM.at(last)
    want = PEERS[method](peer, X / start.alpha) * end.alpha
    got = fastdiff.sample(
        conditional, X, method=method, spacing=spacing, schedule="ddpm", guidance=SCALE, noise=draw,
        dtype=torch.float64, backend=backend, **HALVES,
    )  # fmt: skip
    # Rounding, times 1/alpha_T = 90 over 5 steps; the middle of a 2S step is at a float32 model time: 2^-24 of 1000,
    # of which a network of slope 1/1000 sees 6e-8, times 90.
    tolerance = 1e-5 if "2s" in method else 1e-9
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
@pytest.mark.parametrize("method", PEERS)
def test_what_the_network_predicts_does_not_matter(method: str, prediction: str) -> None:
    def other(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.from_numpy(f(t.double().numpy())).reshape(-1, 1, 1) for f in (DDPM.alpha, DDPM.sigma))
        eps = conditional(x, t, y)
        x0 = (x - sigma * eps) / alpha
        return {"x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]

    options: dict[str, Any] = {"method": method, "spacing": TIMES, "schedule": "ddpm", "dtype": torch.float64, **HALVES}
    one = fastdiff.sample(conditional, X, guidance=SCALE, seed=3, **options)
    two = fastdiff.sample(other, X, guidance=SCALE, seed=3, prediction=prediction, **options)
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", PEERS)
def test_equal_halves_are_no_guidance(method: str) -> None:
    """Where both halves agree each method is the one without CFG++."""
    base = {"euler": "ddim", "dpmpp_2m": "dpmpp2m"}.get(method.removesuffix("_cfg_pp"), method.removesuffix("_cfg_pp"))
    options: dict[str, Any] = {"spacing": TIMES, "schedule": "ddpm", "dtype": torch.float64, "seed": 4}
    own = {"lower_order_final": False} if base == "dpmpp2m" else {"gamma": 2.0} if base == "gradient_estimation" else {}
    want = fastdiff.sample(conditional, X, model_kwargs={"y": A}, method=base, **own, **options)
    same = {"cond": {"y": A}, "uncond": {"y": A}}
    got = fastdiff.sample(conditional, X, method=method, guidance=0.6, **same, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_euler_is_ddim_with_the_form() -> None:
    options: dict[str, Any] = {"spacing": TIMES, "schedule": "ddpm", "dtype": torch.float64, "seed": 4, **HALVES}
    for method, plain in (("euler_cfg_pp", {"eta": 0.0}), ("euler_ancestral_cfg_pp", {"eta": 1.0})):
        one = fastdiff.sample(conditional, X, method=method, guidance=CFGPlusPlus(0.6), **options)
        two = fastdiff.sample(conditional, X, method="ddim", guidance=CFGPlusPlus(0.6), **plain, **options)
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", PEERS)
def test_the_reported_x0_is_the_guided_one(method: str) -> None:
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []
    fastdiff.sample(
        conditional, X, method=method, spacing=TIMES, schedule="ddpm", guidance=lambda t: SCALE, dtype=torch.float64,
        callback=lambda k, t, x, x0: seen.append((t, x, x0)), **HALVES,
    )  # fmt: skip
    for t, x, x0 in seen:
        p = DDPM.at(t)
        given = torch.full((4,), p.model_time)
        cond, uncond = conditional(x, given, A), conditional(x, given, B)
        want = (x - p.sigma * (uncond + SCALE * (cond - uncond))) / p.alpha
        torch.testing.assert_close(x0, want, rtol=1e-9, atol=1e-9)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    yield from stand_in(monkeypatch)


class Net(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return conditional(x, t, y)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_graphs_saved_plans_and_the_callers_own_loop(prediction: Any, fake: type[FakeCapture], tmp_path: Any) -> None:
    net = Net()
    for method in PEERS:
        plan = fastdiff.plan(method, 4, "ddpm")
        plan.save(tmp_path / "plan.json")
        options: dict[str, Any] = {"prediction": prediction, "dtype": torch.float64}
        again = fastdiff.Sampler(plan=fastdiff.Plan.load(tmp_path / "plan.json"), graph=False, **options)
        eager = again(net, X, guidance=0.6, **HALVES)
        assert torch.equal(fastdiff.Sampler(plan=plan, graph=True, **options)(net, X, guidance=0.6, **HALVES), eager)
        state = again.begin(X, guidance=0.6)
        while not state.done:
            again.step(state, conditional(state.input, state.time, torch.cat([A, B])))
        assert torch.equal(state.x, eager)
    # dpmpp_2m and res_multistep have one structure.
    assert fake.captures == len(PEERS) - 1


def never(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the network was called")


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, r"is CFG\+\+: give its scale, guidance=0.6.*got no guidance"),
    ({"guidance": Interval(2.0, 0.1, 1.0), **HALVES}, r"is CFG\+\+: give its scale.*got guidance=Interval"),
    ({"classifier_grad": lambda x, t: x}, r"is CFG\+\+: give its scale.*got guidance=ClassifierScore"),
    ({"guidance": 0.6}, "needs guidance, cond and uncond together"),
    ({"guidance": [0.6] * 4, **HALVES}, "takes one scale for all samples, got 4: use method='ddim'"),
    ({"guidance": 0.6, "clip": (-1, 1), **HALVES}, r"clip does not go with a method that is CFG\+\+"),
    ({"guidance": 0.6, "correct_x0": lambda x0, t: x0, **HALVES}, r"correct_x0 does not go with a method that is CFG"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_errors(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fastdiff.sample(never, X, method="dpmpp_2m_cfg_pp", **arguments)


def test_errors_of_starts() -> None:
    with pytest.raises(ValueError, match="'gradient_estimation_cfg_pp' cannot start at t=1, where alpha = 0"):
        fastdiff.plan("gradient_estimation_cfg_pp", 4, "flow")
    with pytest.raises(ValueError, match="draws noise"):
        fastdiff.plan("euler_ancestral_cfg_pp", 4, "ddpm", invert=True)
