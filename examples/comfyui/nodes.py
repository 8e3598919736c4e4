"""fastdiff's samplers and time grids as nodes of ComfyUI.

"fastdiff sampler" gives a SAMPLER and "fastdiff sigmas" SIGMAS, for ComfyUI's SamplerCustom; "fastdiff KSampler" is
both with the sampling itself. What ComfyUI has a name for does the same under that name, with the same options; the
other names are those of `fastdiff.methods()`. Flow matching models (Flux, SD3, Wan) are run with alpha = 1 - sigma
where that makes a difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

import fastdiff
from fastdiff.integrations import k_diffusion
from fastdiff.integrations.k_diffusion.comfyui import finite_start, is_flow, sampling_of

COMFYUI = [n for n in comfy.samplers.KSampler.SAMPLERS if n == "ddim" or hasattr(k_diffusion, f"sample_{n}")]
"""ComfyUI's samplers that are here; "ddim" is its euler, with noise of its own in what a mask keeps."""
OWN = {n: m for n, m in fastdiff.methods().items() if not (m["adaptive"] or m["guided"] or n.startswith("analytic"))}
METHODS = [*COMFYUI, *(n for n in OWN if n not in COMFYUI)]
SCHEDULERS = list(comfy.samplers.KSampler.SCHEDULERS)
GRIDS = ("polyexponential", "logsnr", "time_quadratic", "trailing", "beta57", "bong_tangent", "ays_sd15", "ays_sdxl")
SPACINGS = [*SCHEDULERS, *(name for name in GRIDS if name not in SCHEDULERS)]
WITHOUT_THE_LAST = getattr(comfy.samplers.KSampler, "DISCARD_PENULTIMATE_SIGMA_SAMPLERS", ())
CATEGORY = "sampling/custom_sampling/fastdiff"
Function = Callable[..., torch.Tensor]


def levels(model_sampling: Any, spacing: str, steps: int) -> torch.Tensor:
    """(steps + 1,) sigmas of a grid on the model's own noise levels."""
    if spacing in SCHEDULERS:
        made: torch.Tensor = comfy.samplers.calculate_sigmas(model_sampling, spacing, steps)
        return made
    flow = is_flow(model_sampling)
    if flow:
        # sigma = shift·t/(1 + (shift - 1)·t) at the middle; some models give their shift as its logarithm.
        half = float(model_sampling.percent_to_sigma(0.5))
        schedule: Any = fastdiff.schedules.flow(half / (1.0 - half))
    else:
        kept = 1.0 / (1.0 + model_sampling.sigmas.double() ** 2)
        schedule = fastdiff.schedules.discrete(alphas_cumprod=kept.tolist())
    points = [schedule.at(t) for t in fastdiff.plan("ddim", steps, schedule, spacing).times]
    return torch.tensor([p.sigma if flow else p.sigma / p.alpha for p in points])


def listed(model: Any, spacing: str, steps: int, denoise: float, without: bool = False) -> torch.Tensor:
    """The sigmas of the last `denoise` of the way; `without`: a step more, and then not its last level above 0, as
    ComfyUI has it for some samplers."""
    if denoise <= 0.0:
        return torch.empty(0)
    whole = steps if denoise > 0.9999 else int(steps / denoise)
    made = levels(model.get_model_object("model_sampling"), spacing, whole + without)
    if without:
        made = torch.cat([made[:-2], made[-1:]])
    return made[-(steps + 1) :]


def of_range(function: Function, counted: bool) -> Function:
    """k-diffusion's dpm_fast and dpm_adaptive, which take two levels, with a list of sigmas."""

    def sample(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any, disable: Any, **given: Any) -> Any:
        if len(sigmas) < 2:
            return x
        low = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
        steps = (len(sigmas) - 1,) if counted else ()
        told = {"extra_args": extra_args, "callback": callback, "disable": disable}
        if not low < sigmas[0]:
            # One step to 0: ComfyUI's gives back what it was given.
            return k_diffusion.sample_euler(model, x, sigmas, **told)
        return function(model, x, low, sigmas[0], *steps, **told, **given)

    return sample


def own(method: str, brownian: bool, options: dict[str, Any]) -> Function:
    """A method by fastdiff's name."""
    found, churned = fastdiff.solvers.find(method), "s_churn" in OWN[method]["options"]

    def sample(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any, disable: Any) -> Any:
        sampling, kind = sampling_of(model), "edm"
        # The flow's ODE is dx/dsigma = (x - x0)/sigma too, which a method in noise space can begin at sigma = 1.
        if is_flow(sampling) and (found.stochastic or found.space != "noise"):
            kind, sigmas = "flow", finite_start(sigmas, sampling)
        told = {"extra_args": extra_args, "callback": callback, "disable": disable}
        how = {"schedule": kind, "brownian": brownian, "churned": churned}
        return k_diffusion.run(method, model, x, sigmas, options, **told, **how)

    return sample


class FastdiffSampler:
    """A SAMPLER: a method of ComfyUI or of fastdiff with its options, as JSON."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        noise = {
            "default": "brownian",
            "tooltip": "of fastdiff's own methods; ComfyUI's have the noise they have there",
        }
        return {
            "required": {
                "method": (METHODS, {"default": "dpmpp_2m"}),
                "noise": (["independent", "brownian"], noise),
                "options": ("STRING", {"default": "{}", "tooltip": 'such as {"eta": 0.5}'}),
            }
        }

    def make(self, method: str, noise: str = "independent", options: str = "{}") -> tuple[Any]:
        given = json.loads(options)
        if not isinstance(given, dict):
            raise ValueError(f'options got {options!r}; expected a JSON object, such as {{"eta": 0.5}}')
        if method not in METHODS:
            raise ValueError(f"method got {method!r}; expected one of {', '.join(METHODS)}")
        if method not in COMFYUI:
            return (comfy.samplers.KSAMPLER(own(method, noise == "brownian", given)),)
        if method == "ddim":
            return (comfy.samplers.KSAMPLER(k_diffusion.sample_euler, given, {"random": True}),)
        function: Function = getattr(k_diffusion, f"sample_{method}")
        if method in ("dpm_fast", "dpm_adaptive"):
            function = of_range(function, method == "dpm_fast")
        return (comfy.samplers.KSAMPLER(function, given),)


class FastdiffSigmas:
    """SIGMAS of ComfyUI's or fastdiff's grids on the model's noise levels."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "spacing": (SPACINGS, {"default": "karras"}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def make(self, model: Any, spacing: str, steps: int, denoise: float = 1.0) -> tuple[torch.Tensor]:
        return (listed(model, spacing, steps, denoise),)


class FastdiffKSampler:
    """ComfyUI's KSampler with fastdiff's methods and grids."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        grid, sampler = FastdiffSigmas.INPUT_TYPES()["required"], FastdiffSampler.INPUT_TYPES()["required"]
        return {
            "required": {
                "model": grid["model"],
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                "steps": grid["steps"],
                "cfg": ("FLOAT", {"default": 7.5, "min": 0.0, "max": 100.0, "step": 0.1}),
                "method": sampler["method"],
                "spacing": grid["spacing"],
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": grid["denoise"],
            }
        }

    def sample(
        self,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        method: str,
        spacing: str,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        denoise: float = 1.0,
    ) -> tuple[dict[str, Any]]:
        (sampler,) = FastdiffSampler().make(method)
        sigmas = listed(model, spacing, steps, denoise, method in WITHOUT_THE_LAST)
        made = dict(latent_image)
        # Older versions of ComfyUI know neither of the two, and their latents have none.
        ratios = [made.pop("downscale_ratio_spacial", None), made.pop("downscale_ratio_temporal", None)]
        while ratios and ratios[-1] is None:
            ratios.pop()
        latent = comfy.sample.fix_empty_latent_channels(model, made["samples"], *ratios)
        noise = comfy.sample.prepare_noise(latent, seed, made.get("batch_index"))
        told = {
            "noise_mask": made.get("noise_mask"),
            "callback": latent_preview.prepare_callback(model, max(len(sigmas) - 1, 0)),
            "disable_pbar": not comfy.utils.PROGRESS_BAR_ENABLED,
            "seed": seed,
        }
        halves = (positive, negative, latent)
        made["samples"] = comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, *halves, **told)
        return (made,)


NODE_CLASS_MAPPINGS = {
    "FastdiffSampler": FastdiffSampler,
    "FastdiffSigmas": FastdiffSigmas,
    "FastdiffKSampler": FastdiffKSampler,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FastdiffSampler": "fastdiff sampler",
    "FastdiffSigmas": "fastdiff sigmas",
    "FastdiffKSampler": "fastdiff KSampler",
}
