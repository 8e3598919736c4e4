"""k-diffusion's and ComfyUI's functions: their recorded results, signatures, callbacks, noise, and odd lists."""

from __future__ import annotations

import inspect
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.analytic import mixture

import fastdiff
import fastdiff.integrations.k_diffusion as sampling

RECORD = json.loads((Path(__file__).parents[1] / "peers" / "peers.json").read_text(encoding="utf-8"))["functions"]
MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
Z = torch.tensor([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]], dtype=torch.float64)
LEVELS = np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), 10) ** 7
LISTS = {
    "to 0": torch.tensor([*LEVELS, 0.0], dtype=torch.float64),
    "to 0.002": torch.tensor(LEVELS),
    "one step": torch.tensor([80.0, 0.0], dtype=torch.float64),
}
# Roundings at levels of 80, over ten steps; k-diffusion's lms integrates to 1e-13 of that, and error control amplifies
# roundings through the widths of its steps.
TOLERANCE = 1e-11
# Theirs is at fault, or ends elsewhere (docs/from-k-diffusion.md); (function, argument) and the least difference.
DIFFERENT = {"ipndm_v": 1e-2, "deis": 1e-2, "er_sde": 5e-4}
FUNCTIONS = {name: getattr(sampling, name) for name in sampling.__all__ if name.startswith("sample_")}


def denoiser(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.from_numpy(MIXTURE.x0(x.double().numpy(), 1.0, float(sigma[0]))).to(x.dtype)


class Draws:
    """Noise by its number, and what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def __call__(self, start: Any, end: Any = 0.0) -> torch.Tensor:
        self.asked.append((float(start), float(end)) if torch.is_tensor(end) else (0.0, 0.0))
        return torch.from_numpy(np.cos(len(self.asked) + 3 * np.arange(6)).reshape(3, 2))


def called(name: str, sigmas: torch.Tensor, arguments: dict[str, Any], **more: Any) -> torch.Tensor:
    function, given = FUNCTIONS[f"sample_{name}"], dict(arguments)
    if "tau_interval" in given:
        high, low = given.pop("tau_interval")
        given["tau_func"] = lambda sigma: 1.0 if low <= float(sigma) <= high else 0.0
    if "noise_sampler" in inspect.signature(function).parameters:
        given.setdefault("noise_sampler", Draws())
    return function(denoiser, 80.0 * Z, sigmas, disable=True, **given, **more)


@pytest.mark.parametrize(
    "case",
    [c for c in RECORD if "sigmas" in c],
    ids=lambda c: f"{c['function']}-{c['sigmas']}-{c['arguments']}",
)
def test_recorded_results(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws()
    monkeypatch.setattr(torch, "randn_like", lambda like: draws(like, None))
    name, kind, arguments = case["function"], case["sigmas"], case["arguments"]
    sigmas = LISTS[kind]
    if name in ("uni_pc", "uni_pc_bh2") and kind == "to 0":
        # ComfyUI puts 0.001 there, in the caller's list.
        sigmas = torch.cat([sigmas[:-1], torch.tensor([0.001], dtype=torch.float64)])
    ours = called(name, sigmas, arguments)
    if kind == "one step" and (isinstance(case["x"], str) or name.startswith("uni_pc")):
        # They fail there, or give the start; a step to 0 is the predicted x0.
        assert isinstance(case["x"], str) or np.abs(np.array(case["x"]) - ours.numpy()).max() > 1.0
        torch.testing.assert_close(ours, denoiser(80.0 * Z, sigmas[:1]), rtol=0, atol=TOLERANCE)
        return
    error = np.abs(np.array(case["x"]) - ours.numpy()).max()
    wrong = name in DIFFERENT and kind != "one step" and arguments.get("max_order", 3) > 2
    assert error > DIFFERENT[name] if wrong else error < TOLERANCE


@pytest.mark.parametrize("case", [c for c in RECORD if "sigmas" not in c], ids=lambda c: str(c["arguments"]))
def test_ranges(case: dict[str, Any]) -> None:
    seen: list[dict[str, Any]] = []
    function = FUNCTIONS[f"sample_{case['function']}"]
    made = function(denoiser, 80.0 * Z, 0.002, 80.0, disable=True, callback=seen.append, **case["arguments"])
    if "info" in case:
        made, info = made
        assert info == case["info"] and len(seen) == info["n_accept"]
    else:
        # Steps of orders 3, 2 and 1, with a callback each.
        assert len(seen) == case["arguments"]["n"] // 3 + 1
    assert np.abs(np.array(case["x"]) - made.numpy()).max() < TOLERANCE
    assert [s["i"] for s in seen] == list(range(len(seen))) and float(seen[0]["sigma"]) == 80.0


def test_er_sde_with_the_published_sums() -> None:
    case = next(c for c in RECORD if c["function"] == "er_sde" and not c["arguments"] and c["sigmas"] == "to 0")
    given = {"order": 3, "integral": "published"}
    ours = sampling.run("er_sde", denoiser, 80.0 * Z, LISTS["to 0"], given, noise_sampler=Draws(), disable=True)
    assert np.abs(np.array(case["x"]) - ours.numpy()).max() < 1e-8


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures(name: str) -> None:
    given = inspect.signature(FUNCTIONS[name]).parameters
    names = list(given)
    if name in ("sample_dpm_fast", "sample_dpm_adaptive"):
        assert names[:4] == ["model", "x", "sigma_min", "sigma_max"]
    else:
        assert names[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
        assert all(p.default is None for p in list(given.values())[3:6])
    assert FUNCTIONS[name].__doc__ and all(p.annotation is not inspect.Parameter.empty for p in given.values())


def test_published_signatures() -> None:
    """k_diffusion/sampling.py (Crowson 2022)."""

    def own(name: str) -> dict[str, Any]:
        given = inspect.signature(FUNCTIONS[f"sample_{name}"]).parameters
        return {n: p.default for n, p in list(given.items())[6:]}

    for name in ("euler", "heun", "dpm_2"):
        assert own(name) == {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
    for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_3m_sde"):
        assert own(name) == {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None}
    assert own("dpmpp_sde") == {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None, "r": 0.5}
    assert own("dpmpp_2m_sde") == {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None, "solver_type": "midpoint"}
    assert own("lms") == {"order": 4} and own("dpmpp_2m") == {}


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_callback_with_churn(name: str) -> None:
    sigmas, seen = LISTS["to 0"], []
    given = {"s_churn": 20.0, "s_tmin": 0.05, "s_tmax": 50.0}
    torch.manual_seed(0)
    called(name, sigmas, given, callback=seen.append)
    assert [s["i"] for s in seen] == list(range(10))
    for i, s in enumerate(seen):
        factor = math.sqrt(2.0) if 0.05 <= float(sigmas[i]) <= 50.0 else 1.0
        assert float(s["sigma"]) == float(sigmas[i])
        assert float(s["sigma_hat"]) == pytest.approx(factor * float(sigmas[i]), rel=1e-15)
        torch.testing.assert_close(s["denoised"], denoiser(s["x"], s["sigma_hat"][None]), rtol=0, atol=0)
    # Of the same seed, the noise of a step does not depend on which steps are churned.
    x = seen[2]["x"]
    z = [torch.randn(3, 2, dtype=torch.float64) for _ in range(3)] if torch.manual_seed(0) else []
    want = called(name, sigmas[:3], {}) if float(sigmas[1]) > 50.0 else None
    if want is not None:
        level = float(seen[2]["sigma_hat"]) ** 2 - float(sigmas[2]) ** 2
        torch.testing.assert_close(x, want + math.sqrt(level) * z[2], rtol=0, atol=TOLERANCE)


def test_noise_is_asked_for_as_k_diffusion_asks() -> None:
    sigmas = LISTS["to 0"]
    draws = Draws()
    called("dpmpp_2m_sde", sigmas, {"noise_sampler": draws})
    assert draws.asked == [(float(a), float(b)) for a, b in pairwise(sigmas[:-1])]
    # Of a step with an evaluation within, once to there, and once over the whole step.
    draws = Draws()
    called("dpmpp_sde", sigmas, {"noise_sampler": draws})
    for i in range(9):
        s, t = float(sigmas[i]), float(sigmas[i + 1])
        np.testing.assert_allclose(draws.asked[2 * i : 2 * i + 2], [(s, math.sqrt(s * t)), (s, t)], rtol=1e-14)


def test_default_noise() -> None:
    sigmas = LISTS["to 0"]

    def twice(name: str, **extra: Any) -> tuple[torch.Tensor, ...]:
        function = FUNCTIONS[f"sample_{name}"]
        return tuple(function(denoiser, 80.0 * Z, sigmas, extra_args=extra, disable=True) for _ in range(2))

    for name in ("euler_ancestral", "dpmpp_2m_sde"):
        a, b = twice(name, seed=3)
        assert torch.equal(a, b)
        a, b = twice(name)
        assert not torch.equal(a, b)
    # Torch's generator, in the order of the steps.
    torch.manual_seed(5)
    kept = [torch.randn(3, 2, dtype=torch.float64) for _ in range(9)]
    want = called("euler_ancestral", sigmas, {"noise_sampler": lambda s, t: kept.pop(0)})
    torch.manual_seed(5)
    assert torch.equal(FUNCTIONS["sample_euler_ancestral"](denoiser, 80.0 * Z, sigmas, disable=True), want)
    # A Brownian path: twice the steps give nearly the same sample, with independent noise they do not.
    fine = torch.tensor([*(np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), 160) ** 7), 0.0])
    ends = [
        FUNCTIONS["sample_dpmpp_2m_sde"](denoiser, 80.0 * Z, s, {"seed": 1}, disable=True) for s in (fine, fine[::2])
    ]
    assert float((ends[0] - ends[1]).abs().max()) < 0.2


def test_lists() -> None:
    sigmas = LISTS["to 0"]
    want = called("dpmpp_2m", sigmas, {})
    # float32 lists, whose first level lies above 80 by rounding.
    rounded = sigmas.float()
    assert float((called("dpmpp_2m", rounded, {}) - want).abs().max()) < 80 * 2e-6
    # A repeated level is one, where k-diffusion divides by 0; the callback counts as the list does.
    seen: list[dict[str, Any]] = []
    doubled = torch.cat([sigmas[:4], sigmas[3:]])
    assert torch.equal(called("dpmpp_2m", doubled, {}, callback=seen.append), want)
    assert [s["i"] for s in seen] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    # Nothing to do.
    for few in (sigmas[:0], sigmas[:1]):
        assert torch.equal(called("euler", few, {}), 80.0 * Z)
    # Rising levels are the way back: Euler's steps of 2,000 levels lose 1% of a sample's spread.
    way = sampling.get_sigmas_karras(2000, 0.02, 20.0)[:-1].double()
    down = FUNCTIONS["sample_euler"](denoiser, 20.0 * Z, way, disable=True)
    up = FUNCTIONS["sample_euler"](denoiser, down, way.flip(0), disable=True)
    assert float((up / 20.0 - Z).abs().max()) < 0.02


def test_dtypes_and_extra_arguments() -> None:
    seen: list[tuple[torch.dtype, torch.dtype, tuple[int, ...], Any]] = []

    def model(x: torch.Tensor, sigma: torch.Tensor, *, scale: float) -> torch.Tensor:
        seen.append((x.dtype, sigma.dtype, tuple(sigma.shape), scale))
        return denoiser(x, sigma)

    for dtype in (torch.bfloat16, torch.float32):
        seen.clear()
        x = (80.0 * Z).to(dtype)
        made = FUNCTIONS["sample_heun"](model, x, LISTS["to 0"].float(), {"scale": 2.0}, disable=True)
        assert made.dtype == dtype and not made.requires_grad and x.equal((80.0 * Z).to(dtype))
        assert set(seen) == {(dtype, dtype, (3,), 2.0)} and len(seen) == 19


def test_plans_are_kept() -> None:
    from fastdiff.integrations.k_diffusion.plans import listed

    called("dpmpp_2m", LISTS["to 0"], {})
    before = listed.cache_info()
    called("dpmpp_2m", LISTS["to 0"].clone(), {})
    assert listed.cache_info().hits == before.hits + 1 and listed.cache_info().misses == before.misses


def test_a_model_that_writes_into_one_buffer() -> None:
    """As compiled networks that replay a CUDA graph do."""
    buffer, seen = torch.empty(3, 2, dtype=torch.float64), []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return buffer.copy_(denoiser(x, sigma))

    want = called("dpmpp_2m", LISTS["to 0"], {})
    for callback in (None, seen.append, None):
        made = FUNCTIONS["sample_dpmpp_2m"](model, 80.0 * Z, LISTS["to 0"], None, callback, True)
        assert torch.equal(made, want)
    assert [s["i"] for s in seen] == list(range(10))


def test_flow_matching() -> None:
    """x = (1 − sigma)·x0 + sigma·eps: as fastdiff.sample on the flow schedule."""
    sigmas = torch.linspace(1.0, 0.0, 9, dtype=torch.float64)

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = float(sigma[0])
        return torch.from_numpy(MIXTURE.x0(x.numpy(), 1.0 - s, s))

    ours = sampling.run("dpmpp2m", model, Z, sigmas, {}, schedule="flow", disable=True)
    given = {"schedule": "flow", "prediction": "x0", "spacing": sigmas.tolist(), "dtype": torch.float64}
    assert torch.equal(ours, fastdiff.sample(model, Z, method="dpmpp2m", **given))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("euler", {"sigmas": [3.0, 0.0]}, TypeError, r"sigmas got \[3.0, 0.0\]; expected a tensor of one dimension"),
        ("euler", {"sigmas": torch.ones(2, 2)}, TypeError, r"sigmas got \(2, 2\); expected a tensor of one dimension"),
        ("euler", {"sigmas": torch.tensor([3.0, -1.0])}, ValueError, "expected finite numbers from 0 up"),
        ("euler", {"sigmas": torch.tensor([3.0, 1.0, 2.0])}, ValueError, "sigmas neither fall nor rise"),
        ("euler", {"sigmas": torch.tensor([0.0, 1.0, 2.0])}, ValueError, r"begin with the lowest .*sigmas\[0\] = 0.03"),
        ("euler_ancestral", {"sigmas": torch.tensor([1.0, 2.0])}, ValueError, "draws noise"),
        ("euler", {"s_churn": -1.0}, ValueError, "s_churn"),
        ("lms", {"order": 7}, ValueError, "order"),
        ("er_sde", {"noise_scaler": lambda r: r}, ValueError, "noise_scaler got function; .* expected None or a name"),
        ("sa_solver", {"tau_func": lambda s: float(s)}, ValueError, "tau_func gave .*; expected one value in nei"),
        ("dpm_fast", {"sigma_min": 0.0}, ValueError, "sigma_min=0, sigma_max=80: expected 0 < sigma_min < sigma_max"),
        ("dpm_fast", {"eta": 0.5}, ValueError, r"eta=0.5: sample_dpm_fast is without noise here; .*sample_dpmpp_2s_"),
        ("dpm_adaptive", {"dcoeff": 0.1}, ValueError, "pcoeff=0, icoeff=1, dcoeff=0.1: expected 0, 1 and 0"),
    ],
)  # fmt: skip
def test_errors(name: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    ranged = {"sigma_min": 0.002, "sigma_max": 80.0, **({"n": 9} if name == "dpm_fast" else {})}
    given = ranged if name.startswith("dpm_") else {"sigmas": LISTS["to 0"]}
    with pytest.raises(error, match=message):
        FUNCTIONS[f"sample_{name}"](denoiser, 80.0 * Z, **{"disable": True, **given, **arguments})
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        FUNCTIONS[f"sample_{name}"](denoiser, 80.0 * Z, **given, steps=3)


def test_sigmas() -> None:
    """Levels by the published formulas, in float64, rounded once."""
    t = np.linspace(1.0, 1e-3, 5)
    power = np.linspace(1.0, 0.0, 5) ** 1.5
    want = {
        "karras": (np.linspace(14.6 ** (1 / 7), 0.03 ** (1 / 7), 5) ** 7, (5, 0.03, 14.6)),
        "exponential": (np.exp(np.linspace(np.log(14.6), np.log(0.03), 5)), (5, 0.03, 14.6)),
        "polyexponential": (np.exp(power * np.log(14.6 / 0.03) + np.log(0.03)), (5, 0.03, 14.6, 1.5)),
        "vp": (np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1.0), (5,)),
    }
    for name, (levels, arguments) in want.items():
        made = getattr(sampling, f"get_sigmas_{name}")(*arguments)
        assert made.dtype == torch.float32 and made.shape == (6,) and made[-1] == 0.0
        np.testing.assert_allclose(made[:-1].numpy(), levels, rtol=2e-7)
        one = getattr(sampling, f"get_sigmas_{name}")(1, *arguments[1:])
        assert one.tolist() == pytest.approx([levels[0], 0.0])
    with pytest.raises(ValueError, match="expected sigma_min < sigma_max"):
        sampling.get_sigmas_karras(5, 3.0, 2.0)
