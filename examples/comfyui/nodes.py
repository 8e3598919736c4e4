"""fastdiff's samplers and time grids as nodes of ComfyUI.

"fastdiff sampler" gives a SAMPLER and "fastdiff sigmas" SIGMAS, for ComfyUI's SamplerCustom; "fastdiff KSampler" is
both with the sampling itself. Flow matching models (Flux, SD3, Wan) are run on the flow schedule, with lambda =
log((1 - sigma)/sigma).
"""

from __future__ import annotations

import json
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch

import fastdiff
from fastdiff.integrations import k_diffusion

METHODS = [name for name, m in fastdiff.methods().items() if not m["adaptive"] and not name.startswith("analytic")]
GRIDS = [
    *("karras", "exponential", "polyexponential", "simple", "sgm_uniform", "normal", "ddim_uniform", "beta"),
    *("linear_quadratic", "kl_optimal", "logsnr", "time_quadratic", "trailing", "ays_sd15", "ays_sdxl"),
]
CATEGORY = "sampling/custom_sampling/fastdiff"


def is_flow(model_sampling: Any) -> bool:
    """Whether x = (1 - sigma) x0 + sigma eps."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def levels(model_sampling: Any, spacing: str, steps: int) -> torch.Tensor:
    """(steps + 1,) sigmas of a grid on the model's own noise levels."""
    if is_flow(model_sampling):
        schedule: Any = fastdiff.schedules.flow(float(getattr(model_sampling, "shift", 1.0)))
    else:
        kept = 1.0 / (1.0 + model_sampling.sigmas.double() ** 2)
        schedule = fastdiff.schedules.discrete(alphas_cumprod=kept.tolist())
    times = fastdiff.plan("ddim", steps, schedule, spacing).times
    points = [schedule.at(t) for t in times]
    return torch.tensor([p.sigma if is_flow(model_sampling) else p.sigma / p.alpha for p in points])


class FastdiffSampler:
    """A SAMPLER: a method of fastdiff with its options, as JSON."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "method": (METHODS, {"default": "dpmpp2m"}),
                "noise": (["independent", "brownian"], {"default": "brownian"}),
                "options": ("STRING", {"default": "{}", "tooltip": 'such as {"eta": 0.5}'}),
            }
        }

    def make(self, method: str, noise: str = "brownian", options: str = "{}") -> tuple[Any]:
        given = json.loads(options)
        if not isinstance(given, dict):
            raise ValueError(f'options got {options!r}; expected a JSON object, such as {{"eta": 0.5}}')
        how = {"brownian": noise == "brownian", "churned": "s_churn" in fastdiff.methods()[method]["options"]}

        def sample(
            model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None
        ) -> Any:
            kind = "flow" if is_flow(model.inner_model.inner_model.model_sampling) else "edm"
            told = {"extra_args": extra_args, "callback": callback, "disable": disable}
            return k_diffusion.run(method, model, x, sigmas, given, schedule=kind, **told, **how)

        return (comfy.samplers.KSAMPLER(sample),)


class FastdiffSigmas:
    """SIGMAS of any of fastdiff's grids on the model's noise levels."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "spacing": (GRIDS, {"default": "karras"}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def make(self, model: Any, spacing: str, steps: int, denoise: float = 1.0) -> tuple[torch.Tensor]:
        if denoise <= 0.0:
            return (torch.empty(0),)
        whole = levels(model.get_model_object("model_sampling"), spacing, int(steps / denoise))
        return (whole[-(steps + 1) :],)


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
        (sampler,), (sigmas,) = FastdiffSampler().make(method), FastdiffSigmas().make(model, spacing, steps, denoise)
        latent, mask = latent_image["samples"], latent_image.get("noise_mask")
        noise = comfy.sample.prepare_noise(latent, seed, latent_image.get("batch_index"))
        halves = (positive, negative, latent)
        made = comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, *halves, noise_mask=mask, seed=seed)
        return ({**latent_image, "samples": made},)


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
