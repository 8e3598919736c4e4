"""More families of diffusers' pipelines for images, unmodified, with their own scheduler and with ours: random weights.

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
from helpers.pipelines import agree, both, rand, texts, vae, weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

MATCH = "FlowMatchEulerDiscreteScheduler"
Made = tuple[Any, dict[str, Any]]


def pixart() -> Made:
    net = weights(
        diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=4,
            num_attention_heads=2,
            caption_channels=8,
            in_channels=4,
            cross_attention_dim=8,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        )
    )
    pipe = diffusers.PixArtAlphaPipeline(
        transformer=net, vae=vae(), scheduler=diffusers.DPMSolverMultistepScheduler(), tokenizer=None, text_encoder=None
    )
    return pipe, texts(
        prompt=None,
        negative_prompt=None,
        prompt_attention_mask=torch.ones(1, 5),
        negative_prompt_attention_mask=torch.ones(1, 5),
        guidance_scale=5.0,
        height=16,
        width=16,
        use_resolution_binning=False,
    )


def sana() -> Made:
    net = weights(
        diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=8,
        )
    )
    dc = weights(
        diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=[1, 1],
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        )
    )
    pipe = diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=dc,
        transformer=net,
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        ),
    )
    return pipe, texts(
        prompt=None,
        negative_prompt=None,
        prompt_attention_mask=torch.ones(1, 5),
        negative_prompt_attention_mask=torch.ones(1, 5),
        guidance_scale=5.0,
        height=32,
        width=32,
        use_resolution_binning=False,
    )


def qwen() -> Made:
    net = weights(
        diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        )
    )
    v = weights(
        diffusers.AutoencoderKLQwenImage(
            base_dim=6,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=of_diffusers.scheduler(
            MATCH,
            use_dynamic_shifting=True,
            shift_terminal=0.02,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
        ),
        vae=v,
        text_encoder=None,
        tokenizer=None,
        transformer=net,
    )
    m = torch.ones(1, 5, dtype=torch.int64)
    return pipe, texts(prompt_embeds_mask=m, negative_prompt_embeds_mask=m, true_cfg_scale=3.0, height=32, width=32)


def aura() -> Made:
    net = weights(
        diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=8,
            out_channels=4,
            pos_embed_max_size=64,
        )
    )
    pipe = diffusers.AuraFlowPipeline(
        scheduler=of_diffusers.scheduler(MATCH, shift=1.73),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=net,
    )
    m = torch.ones(1, 5)
    return pipe, texts(
        prompt_attention_mask=m, negative_prompt_attention_mask=m, guidance_scale=3.0, height=16, width=16
    )


def lumina2() -> Made:
    net = weights(
        diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            ffn_dim_multiplier=None,
            norm_eps=1e-5,
            scaling_factor=1.0,
            axes_dim_rope=[4, 2, 2],
            cap_feat_dim=8,
        )
    )
    pipe = diffusers.Lumina2Pipeline(
        scheduler=of_diffusers.scheduler(MATCH, shift=6.0),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=net,
    )
    m = torch.ones(1, 5, dtype=torch.bool)
    return pipe, texts(
        prompt_attention_mask=m, negative_prompt_attention_mask=m, guidance_scale=3.0, height=32, width=32
    )


def chroma() -> Made:
    net = weights(
        diffusers.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=[4, 4, 8],
            approximator_hidden_dim=8,
            approximator_layers=1,
            approximator_num_channels=16,
        )
    )
    pipe = diffusers.ChromaPipeline(
        scheduler=of_diffusers.scheduler(MATCH, use_beta_sigmas=True),
        vae=vae(1),
        text_encoder=None,
        tokenizer=None,
        transformer=net,
    )
    m = torch.ones(1, 5)
    return pipe, texts(
        prompt_attention_mask=m, negative_prompt_attention_mask=m, guidance_scale=3.0, height=16, width=16
    )


def hunyuandit() -> Made:
    net = weights(
        diffusers.HunyuanDiT2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=8,
            cross_attention_dim_t5=8,
            pooled_projection_dim=4,
            hidden_size=24,
            activation_fn="gelu-approximate",
            text_len=5,
            text_len_t5=5,
        )
    )
    pipe = diffusers.HunyuanDiTPipeline(
        transformer=net,
        vae=vae(),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.03,
            prediction_type="v_prediction",
            steps_offset=1,
            clip_sample=False,
        ),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    m = torch.ones(1, 5)
    return pipe, texts(
        prompt_embeds_2=rand(1, 5, 8),
        prompt_attention_mask=m,
        prompt_attention_mask_2=m,
        negative_prompt_embeds_2=rand(1, 5, 8, seed=3),
        negative_prompt_attention_mask=m,
        negative_prompt_attention_mask_2=m,
        guidance_scale=3.0,
        height=16,
        width=16,
        use_resolution_binning=False,
        target_size=(16, 16),
    )


def kandinsky22() -> Made:
    net = weights(
        diffusers.UNet2DConditionModel(
            in_channels=4,
            out_channels=8,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(32, 32),
            layers_per_block=1,
            encoder_hid_dim=8,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=8,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
            class_embed_type=None,
        )
    )
    movq = weights(
        diffusers.VQModel(
            block_out_channels=[32, 32],
            down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            in_channels=3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            norm_type="spatial",
            num_vq_embeddings=12,
            out_channels=3,
            up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
            vq_embed_dim=4,
        )
    )
    pipe = diffusers.KandinskyV22Pipeline(
        unet=net,
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="learned_range"
        ),
        movq=movq,
    )
    return pipe, {
        "image_embeds": rand(1, 8),
        "negative_image_embeds": rand(1, 8, seed=2),
        "guidance_scale": 4.0,
        "height": 64,
        "width": 64,
        "output_type": "latent",
        "num_inference_steps": 4,
    }


def zimage() -> Made:
    net = weights(
        diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=16,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            norm_eps=1e-5,
            qk_norm=True,
            cap_feat_dim=8,
            rope_theta=256.0,
            t_scale=1000.0,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        )
    )
    pipe = diffusers.ZImagePipeline(
        scheduler=of_diffusers.scheduler(MATCH, shift=3.0),
        vae=vae(16),
        text_encoder=None,
        tokenizer=None,
        transformer=net,
    )
    return pipe, texts(
        prompt=None,
        prompt_embeds=[rand(5, 8)],
        negative_prompt_embeds=[rand(5, 8, seed=2)],
        guidance_scale=3.0,
        height=16,
        width=16,
    )


FAMILIES: list[tuple[Callable[[], Made], tuple[int, int]]] = [
    (pixart, (0, 31)),
    (sana, (0, 34)),
    (qwen, (0, 42)),
    (aura, (0, 36)),
    (lumina2, (0, 36)),
    (chroma, (0, 36)),
    (hunyuandit, (0, 34)),
    (kandinsky22, (0, 34)),
    (zimage, (0, 42)),
]
"""Each with the first release whose networks are made as here."""


@pytest.mark.parametrize(("make", "since"), FAMILIES, ids=[make.__name__ for make, _ in FAMILIES])
def test_a_pipeline_makes_the_same_with_ours(make: Callable[[], Made], since: tuple[int, int]) -> None:
    if of_diffusers.release() < since:
        pytest.skip(f"diffusers {diffusers.__version__} makes the networks of {make.__name__} otherwise")
    pipe, call = make()
    agree(both(pipe, call))
