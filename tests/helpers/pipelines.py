"""Tiny networks with random weights for diffusers' pipelines, and a pipeline's result with its scheduler and with ours.

Imported by tests that have found diffusers.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import torch

from fastdiff.integrations.diffusers import Scheduler, accelerate

# float32 tables of 1000 products, 6e-8 each and random: 2e-6; some network calls and a guidance scale of 5 on top.
TOLERANCE = 1e-4


def weights(module: Any) -> Any:
    """The module with the weights of one seed, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.15)
    return module.eval()


def rand(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def vae(latents: int = 4) -> Any:
    return weights(
        diffusers.AutoencoderKL(
            block_out_channels=[4, 8],
            norm_num_groups=2,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=latents,
            scaling_factor=1.0,
            shift_factor=0.0,
            use_quant_conv=latents == 4,
            use_post_quant_conv=latents == 4,
        )
    )


def both(pipe: Any, call: dict[str, Any], scheduler: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline makes with its own scheduler, and with ours."""
    if scheduler is not None:
        pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    made = []
    for ours in (False, True):
        if ours:
            assert accelerate(pipe, noise="diffusers") is pipe
            assert type(pipe.scheduler) is Scheduler
        result = pipe(**call, generator=torch.Generator().manual_seed(3))
        made.append(torch.as_tensor(result[0] if isinstance(result, tuple) else next(iter(result.values()))))
    return made[0], made[1]


def agree(pair: tuple[torch.Tensor, torch.Tensor], tolerance: float = TOLERANCE) -> None:
    want, got = pair
    assert got.dtype == want.dtype and bool(torch.isfinite(got).all())
    assert float((got - want).abs().max()) <= tolerance * float(want.abs().max())


def texts(**more: Any) -> dict[str, Any]:
    """Arguments of a call with embedded prompts."""
    return {
        "prompt_embeds": rand(1, 5, 8),
        "negative_prompt_embeds": rand(1, 5, 8, seed=2),
        "guidance_scale": 5.0,
        "output_type": "latent",
        "num_inference_steps": 4,
        **more,
    }
