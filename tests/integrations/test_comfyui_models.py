"""The functions on ComfyUI's models, against what ComfyUI's own give there: noise-prediction and flow matching, lists
that end at 0 and above, CFG++."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers import comfyui
from helpers.pages import ROOT

import fastdiff.integrations.k_diffusion as sampling
from fastdiff.integrations.k_diffusion.comfyui import is_flow, sampling_of

RECORD = json.loads((ROOT / "tests" / "peers" / "comfyui.json").read_text(encoding="utf-8"))
KINDS = {"eps": comfyui.EPS, "flow": comfyui.CONST}
# float64 of two programs, at levels up to 14.6 and over 1/alpha = 3e4 at the start of a flow.
TOLERANCE = 1e-9
# Theirs is at fault (docs/parity.md), in the third order that needs three steps, or sums 200 points: the least and the
# largest difference.
DIFFERENT = {
    "ipndm_v": (1e-4, 0.2),
    "deis": (1e-5, 0.2),
    "dpmpp_2s_ancestral_cfg_pp": (1e-3, 2.0),
    "er_sde": (1e-9, 2e-3),
    # Its first step from sigma = 1 goes through 0.9999.
    "dpmpp_2s_ancestral": (0.0, 1e-4),
}


def model_of(kind: str, cfg: float = 2.0) -> comfyui.Model:
    return comfyui.Model(KINDS[kind](RECORD["shares"][kind]), comfyui.ALPHA[kind], cfg)


def called(name: str, kind: str, sigmas: torch.Tensor, cfg: float = 2.0, **given: Any) -> torch.Tensor:
    extra = {"model_options": {}}
    x = comfyui.START * float(sigmas[0])
    made: torch.Tensor = getattr(sampling, f"sample_{name}")(
        model_of(kind, cfg), x, sigmas, extra_args=extra, disable=True, **given
    )
    # The caller's own dictionary is left as it was.
    assert extra == {"model_options": {}}
    return made


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda c: f"{c['sampler']}-{c['model']}-{c['list']}")
def test_recorded_results(case: dict[str, Any]) -> None:
    name, kind = case["sampler"], case["model"]
    more = {"noise_sampler": comfyui.noise} if takes_noise(name) else {}
    ours = called(name, kind, comfyui.LISTS[kind][case["list"]], **more)
    error = np.abs(np.array(case["x"]) - ours.numpy()).max()
    low, high = DIFFERENT.get(name, (0.0, TOLERANCE))
    # Two steps are of the first and second order.
    assert (0.0 if case["list"] == "short" else low) <= error <= high


def takes_noise(name: str) -> bool:
    return "noise_sampler" in getattr(sampling, f"sample_{name}").__signature__.parameters


def test_every_sampler_of_the_record_is_here() -> None:
    assert len({c["sampler"] for c in RECORD["cases"]}) >= 35
    assert all(hasattr(sampling, f"sample_{c['sampler']}") for c in RECORD["cases"])


@pytest.mark.parametrize(
    "name", ["euler_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "gradient_estimation_cfg_pp"]
)
def test_cfg_pp_at_scale_one_is_guided_too(name: str) -> None:
    """The optimisation that leaves out the unconditional half is switched off, and the hooks of others are kept."""
    heard: list[float] = []

    def other(told: dict[str, Any]) -> torch.Tensor:
        heard.append(float((told["denoised"] - told["uncond_denoised"]).abs().max()))
        return told["denoised"]

    sigmas = comfyui.LISTS["eps"]["to 0"]
    extra = {"model_options": {"sampler_post_cfg_function": [other]}}
    function = getattr(sampling, f"sample_{name}")
    x = function(model_of("eps", 1.0), comfyui.START * 14.6, sigmas, extra_args=extra, disable=True)
    assert len(heard) == 7 and min(heard) > 0.0 and len(extra["model_options"]["sampler_post_cfg_function"]) == 1
    # With both x0 the same it is the method without CFG++.
    plain = getattr(sampling, f"sample_{name.removesuffix('_cfg_pp')}")
    alike = lambda x, sigma, model_options, **_: told(x, sigma, model_options)  # noqa: E731
    one, two = (
        f(alike, comfyui.START * 14.6, sigmas, extra_args={"model_options": {}}, disable=True)
        for f in (function, plain)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-9)
    assert not torch.allclose(x, one, atol=1e-3)


def told(x: torch.Tensor, sigma: torch.Tensor, model_options: Any) -> torch.Tensor:
    """A model whose halves agree."""
    made = torch.from_numpy(comfyui.CONDITIONAL.x0(x.numpy(), 1.0, float(sigma[0])))
    for hook in model_options.get("sampler_post_cfg_function", []):
        made = hook({"denoised": made, "uncond_denoised": made, "uncond": None})
    return made


def test_cfg_pp_with_another_model_says_what_it_needs() -> None:
    def model(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        return 0.5 * x

    with pytest.raises(RuntimeError, match=r"needs the unconditional x0.*method='euler_cfg_pp', guidance=0.6"):
        sampling.sample_euler_cfg_pp(model, comfyui.START, comfyui.LISTS["eps"]["to 0"], disable=True)


def test_the_noise_scale_of_a_model() -> None:
    """Of models with another noise level than 1; the noise of churn is not theirs."""
    sigmas = comfyui.LISTS["flow"]["part"]
    model = model_of("flow")
    model.inner_model.model_sampling.noise_scale = 0.5
    for name, scales in (("euler_ancestral", True), ("dpmpp_2m_sde", True), ("sa_solver", True), ("euler", False)):
        function = getattr(sampling, f"sample_{name}")
        given = {"noise_sampler": comfyui.noise} if scales else {}
        told = {"extra_args": {"model_options": {}}, "disable": True}
        got = function(model, comfyui.START, sigmas, **told, **given)
        want = function(
            model_of("flow"), comfyui.START, sigmas, **told, **given, **({"s_noise": 0.5} if scales else {})
        )
        assert torch.equal(got, want) and bool(torch.isfinite(got).all())


def test_a_list_that_is_none_is_refused_on_their_models_too() -> None:
    for sigmas in ([1.0, 0.5, 0.0], torch.ones(2, 2)):
        with pytest.raises(TypeError, match="expected a tensor of one dimension"):
            sampling.sample_dpmpp_2m_sde(model_of("flow"), comfyui.START, sigmas, disable=True)
    with pytest.raises(TypeError, match="s_noise='a'"):
        sampling.sample_euler_ancestral(model_of("flow"), comfyui.START, comfyui.LISTS["flow"]["part"], s_noise="a")


def test_only_a_model_of_comfyui_has_a_sampling() -> None:
    assert sampling_of(lambda x, sigma: x) is None and not is_flow(None) and not is_flow(comfyui.EPS())
    assert is_flow(sampling_of(model_of("flow")))
    # Lists for models of k-diffusion end as k-diffusion's do.
    sigmas = comfyui.LISTS["eps"]["to 0"]
    bare = lambda x, sigma: torch.from_numpy(comfyui.CONDITIONAL.x0(x.numpy(), 1.0, float(sigma[0])))  # noqa: E731
    ended = called("lms", "eps", sigmas, cfg=1.0)
    assert not torch.allclose(sampling.sample_lms(bare, comfyui.START * 14.6, sigmas, disable=True), ended, atol=1e-4)


def test_seeded_noise_is_drawn_as_often_as_there() -> None:
    """ComfyUI draws exp_heun_2_x0_sde's second noise of a step too, whose weight is 0."""
    sigmas, seen = comfyui.LISTS["eps"]["part"], []
    generator = torch.Generator().manual_seed(8)
    steps = len(sigmas) - 1
    want = [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2 * steps)][::2]

    def counted(start: Any, end: Any) -> torch.Tensor:
        seen.append(float(start))
        return want[len(seen) - 1]

    told = {"extra_args": {"model_options": {}, "seed": 7}, "disable": True}
    one = sampling.sample_exp_heun_2_x0_sde(model_of("eps"), comfyui.START, sigmas, **told)
    two = sampling.sample_exp_heun_2_x0_sde(model_of("eps"), comfyui.START, sigmas, **told, noise_sampler=counted)
    assert torch.equal(one, two) and len(seen) == steps


@pytest.mark.parametrize("method", ["grpo", "pc"])
def test_noise_that_is_no_step_of_a_path_is_refused(method: str) -> None:
    model, sigmas = model_of("eps"), comfyui.LISTS["eps"]["to 0"]
    told = {"extra_args": {"model_options": {}}, "disable": True}
    with pytest.raises(ValueError, match=rf"method '{method}' draws noise between sigma=.*brownian=False"):
        sampling.run(method, model, comfyui.START * 14.6, sigmas, {}, brownian=True, **told)
    x = sampling.run(method, model, comfyui.START * 14.6, sigmas, {}, **told)
    assert bool(torch.isfinite(x).all())
