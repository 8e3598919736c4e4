"""What ComfyUI's models say beside k-diffusion's: the noise process, and the unconditional x0 of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from fastdiff.guidance.cfg_pp import ShiftedCFGPlusPlus

AWAY = 1e-4
"""Of the way from noise to data: where flow matching's noisy end is put by samplers that need a finite lambda."""


def sampling_of(model: Any) -> Any:
    """The `model_sampling` of the model that ComfyUI gives to a sampler, or None for any other."""
    return getattr(getattr(getattr(model, "inner_model", None), "inner_model", None), "model_sampling", None)


def is_flow(sampling: Any) -> bool:
    """Whether x = (1 - sigma)·x0 + sigma·eps: ComfyUI's class CONST, from which those of flow matching inherit."""
    return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)


def finite_start(sigmas: torch.Tensor, sampling: Any) -> torch.Tensor:
    """The list with a first level of 1, where lambda is infinite, a little lower. What is no list is returned as it
    is, for `run` to refuse."""
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1 or len(sigmas) < 2 or float(sigmas[0]) < 1.0:
        return sigmas
    sigmas = sigmas.clone()
    sigmas[0] = float(sampling.percent_to_sigma(AWAY))
    return sigmas


@dataclass(frozen=True)
class Unconditional(ShiftedCFGPlusPlus):
    """CFG++ where the model gives the guided x0, and beside it the unconditional one of the same evaluation.

    Args:
        scale: 1: the first output is guided already.
        taken: gives the unconditional x0 of the last call, (B, ...).
    """

    taken: Callable[[], torch.Tensor] = field(compare=False, kw_only=True)

    batched: ClassVar[bool] = False

    @property
    def halves(self) -> tuple[str, ...]:
        return "guided", "unconditional"

    @property
    def weak(self) -> Callable[..., torch.Tensor]:
        return self._unconditional

    @property
    def key(self) -> Hashable:
        return "unconditional"

    def _unconditional(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.taken()


def listening(extra: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], torch.Tensor]]:
    """The model's arguments with a hook of ComfyUI's guidance among them, and what gives the unconditional x0 that it
    heard last. Guidance of scale 1 is then evaluated too.

    Raises, when asked:
        RuntimeError: nothing was heard: the model is none of ComfyUI's.
    """
    heard: list[torch.Tensor] = []

    def hook(told: dict[str, Any]) -> torch.Tensor:
        heard[:] = [told["uncond_denoised"]]
        denoised: torch.Tensor = told["denoised"]
        return denoised

    def taken() -> torch.Tensor:
        if not heard:
            raise RuntimeError(
                "a sampler of CFG++ needs the unconditional x0, and the model called no function of "
                "model_options['sampler_post_cfg_function']: expected a model of ComfyUI; with a network of your own: "
                "fastdiff.sample(model, method='euler_cfg_pp', guidance=0.6, cond=..., uncond=...)"
            )
        return heard.pop()

    options = dict(extra.get("model_options", {}))
    options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", []), hook]
    options["disable_cfg1_optimization"] = True
    return {**extra, "model_options": options}, taken
