"""Families of diffusers' pipelines for videos, unmodified, with their own scheduler and with ours: random weights.

Each scheduler has what the published repositories have in its config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from helpers import of_diffusers  # noqa: E402
from helpers.pipelines import agree, both, rand, texts, weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

MATCH = "FlowMatchEulerDiscreteScheduler"
Made = tuple[Any, dict[str, Any]]


def ltx() -> Made:
    net = weights(
        diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            patch_size=1,
            patch_size_t=1,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=8,
        )
    )
    v = weights(
        diffusers.AutoencoderKLLTXVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        )
    )
    pipe = diffusers.LTXPipeline(
        scheduler=of_diffusers.scheduler(
            MATCH,
            use_dynamic_shifting=True,
            shift_terminal=0.1,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
        ),
        vae=v,
        text_encoder=None,
        tokenizer=None,
        transformer=net,
    )
    return pipe, texts(
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        negative_prompt_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        guidance_scale=3.0,
        height=32,
        width=32,
        num_frames=9,
    )


def cogvideox() -> Made:
    net = weights(
        diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=8,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=5,
        )
    )
    v = weights(
        diffusers.AutoencoderKLCogVideoX(
            in_channels=3,
            out_channels=3,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
    )
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=v,
        transformer=net,
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            snr_shift_scale=1.0,
        ),
    )
    return pipe, texts(guidance_scale=4.0, height=16, width=16, num_frames=9)


def svd() -> Made:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    net = weights(
        diffusers.UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=8,
            in_channels=8,
            out_channels=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=8,
            num_attention_heads=2,
            projection_class_embeddings_input_dim=24,
            addition_time_embed_dim=8,
        )
    )
    v = weights(
        diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=[32, 32],
            in_channels=3,
            out_channels=3,
            down_block_types=["DownEncoderBlock2D"] * 2,
            latent_channels=4,
            layers_per_block=1,
        )
    )
    e = weights(
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=8,
                projection_dim=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                intermediate_size=16,
                patch_size=16,
            )
        )
    )
    sch = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        trained_betas=None,
        use_karras_sigmas=True,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=v, image_encoder=e, unet=net, scheduler=sch, feature_extractor=CLIPImageProcessor(crop_size=32, size=32)
    )
    return pipe, {
        "image": torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "num_frames": 2,
        "height": 32,
        "width": 32,
        "output_type": "latent",
        "num_inference_steps": 4,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": 2.5,
    }


def hunyuanvideo() -> Made:
    net = weights(
        diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=8,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        )
    )
    v = weights(
        diffusers.AutoencoderKLHunyuanVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            act_fn="silu",
            norm_num_groups=4,
            scaling_factor=0.476986,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
            mid_block_add_attention=True,
        )
    )
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=net,
        vae=v,
        scheduler=of_diffusers.scheduler(MATCH, shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    return pipe, texts(
        negative_prompt_embeds=None,
        prompt_attention_mask=torch.ones(1, 5),
        pooled_prompt_embeds=rand(1, 8),
        guidance_scale=3.0,
        height=16,
        width=16,
        num_frames=5,
    )


FAMILIES: list[tuple[Callable[[], Made], tuple[int, int]]] = [
    (ltx, (0, 36)),
    (cogvideox, (0, 34)),
    (svd, (0, 34)),
    (hunyuanvideo, (0, 34)),
]
"""Each with the first release whose networks are made as here."""


@pytest.mark.parametrize(("make", "since"), FAMILIES, ids=[make.__name__ for make, _ in FAMILIES])
def test_a_pipeline_makes_the_same_with_ours(make: Callable[[], Made], since: tuple[int, int]) -> None:
    if of_diffusers.release() < since:
        pytest.skip(f"diffusers {diffusers.__version__} makes the networks of {make.__name__} otherwise")
    pipe, call = make()
    agree(both(pipe, call))
