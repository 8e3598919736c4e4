"""Unmodified pipelines of diffusers with our scheduler, against their own: tiny networks with random weights.

Both make their tables for themselves, theirs in float32; the networks compute in float32, so that results agree to what
rounding becomes in a few steps.
"""

from __future__ import annotations

import functools
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
from helpers import of_diffusers  # noqa: E402
from helpers.pipelines import agree, both, rand, texts, vae, weights  # noqa: E402

from fastdiff.integrations.diffusers import Scheduler, accelerate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD = {**LATENT, "steps_offset": 1}
IMAGE = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)


@functools.cache
def unet(xl: bool = False, channels: int = 4) -> Any:
    more = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 8 * 6 + 16,
            "use_linear_projection": True,
        }
        if xl
        else {}
    )
    return weights(
        diffusers.UNet2DConditionModel(
            block_out_channels=(4, 8),
            layers_per_block=1,
            sample_size=8,
            norm_num_groups=2,
            in_channels=channels,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            **more,
        )
    )


def stable(kind: str, scheduler: Any, **more: Any) -> Any:
    return getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **{"unet": unet(), **more},
    )


@functools.cache
def pixels() -> Any:
    return weights(
        diffusers.UNet2DModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(4, 8),
            norm_num_groups=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
        )
    )


def test_ddpm_pipeline() -> None:
    pipe = diffusers.DDPMPipeline(pixels(), diffusers.DDPMScheduler(num_train_timesteps=20))
    agree(both(pipe, {"num_inference_steps": 5, "output_type": "np"}))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_pipeline(eta: float) -> None:
    pipe = diffusers.DDIMPipeline(pixels(), diffusers.DDIMScheduler())
    agree(both(pipe, {"num_inference_steps": 5, "output_type": "np", "eta": eta}))


# What Stable Diffusion's pipeline accepts: every class of VP schedules, with the options that its repositories have.
CLASSES: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False}),
    ("DDPMScheduler", {**SD, "clip_sample": False}),
    ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {**LATENT, "use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {**LATENT, "timestep_spacing": "trailing"}),
    ("HeunDiscreteScheduler", dict(LATENT)),
    ("DPMSolverMultistepScheduler", {**LATENT, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "sde-dpmsolver++", "timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", {**SD, "solver_order": 3, "thresholding": True, "sample_max_value": 2.0}),
    ("DPMSolverSinglestepScheduler", {**LATENT, "lower_order_final": True}),
    ("UniPCMultistepScheduler", dict(SD)),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True}),
    ("LMSDiscreteScheduler", dict(LATENT)),
    ("KDPM2DiscreteScheduler", {**LATENT, "use_karras_sigmas": True}),
    ("KDPM2AncestralDiscreteScheduler", dict(LATENT)),
    ("DEISMultistepScheduler", dict(SD)),
    ("SASolverScheduler", dict(LATENT)),
    ("LCMScheduler", {}),
    ("TCDScheduler", {}),
]


@pytest.mark.parametrize(("name", "config"), [c for c in CLASSES if c[0] in Scheduler._compatibles])
def test_stable_diffusion(name: str, config: dict[str, Any]) -> None:
    agree(both(stable("StableDiffusionPipeline", of_diffusers.scheduler(name, **config)), texts(height=16, width=16)))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "leading"}),
        ("UniPCMultistepScheduler", SD),
        ("HeunDiscreteScheduler", LATENT),
        ("DDIMScheduler", {**SD, "clip_sample": False}),
    ],
)
def test_image_to_image(name: str, config: dict[str, Any], strength: float) -> None:
    pipe = stable("StableDiffusionImg2ImgPipeline", of_diffusers.scheduler(name, **config))
    agree(both(pipe, texts(image=IMAGE, strength=strength)))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_inpainting(name: str, strength: float) -> None:
    pipe = stable("StableDiffusionInpaintPipeline", of_diffusers.scheduler(name, **LATENT))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1.0
    agree(both(pipe, texts(image=IMAGE, mask_image=mask, height=16, width=16, strength=strength)))


def test_controlnet() -> None:
    net = weights(
        diffusers.ControlNetModel(
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            conditioning_embedding_out_channels=(2, 4),
        )
    )
    pipe = stable("StableDiffusionControlNetPipeline", diffusers.DPMSolverMultistepScheduler(**LATENT), controlnet=net)
    # Its image is as large as the result: one level of the network's conditioning embedding is 2 times smaller.
    agree(both(pipe, texts(image=IMAGE, height=16, width=16)))


def test_ip_adapter() -> None:
    base = diffusers.UNet2DConditionModel.from_config(unet().config)
    net = weights(base)
    layers: dict[str, torch.Tensor] = {}
    number = 1
    for name in net.attn_processors:
        if "attn2" in name:
            block = int(name.split(".")[1]) if name.startswith(("down", "up")) else 1
            size = tuple(net.config.block_out_channels)[block] if name.startswith("down") else 8
            layers[f"{number}.to_k_ip.weight"] = rand(size, 8, seed=number)
            layers[f"{number}.to_v_ip.weight"] = rand(size, 8, seed=number + 100)
            number += 2
    projection = {
        "proj.weight": rand(4 * 8, 6),
        "proj.bias": torch.zeros(4 * 8),
        "norm.weight": torch.ones(8),
        "norm.bias": torch.zeros(8),
    }
    net._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    pipe = stable("StableDiffusionPipeline", diffusers.EulerDiscreteScheduler(**LATENT), unet=net, image_encoder=None)
    # The negative half comes first, as encode_image has it.
    agree(both(pipe, texts(height=16, width=16, ip_adapter_image_embeds=[rand(2, 1, 6)])))


def test_stable_diffusion_xl_with_guidance_rescale() -> None:
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet(xl=True),
        scheduler=diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading"),
        add_watermarker=False,
    )
    pooled = {"pooled_prompt_embeds": rand(1, 16), "negative_pooled_prompt_embeds": rand(1, 16, seed=2)}
    agree(both(pipe, texts(height=16, width=16, guidance_rescale=0.7, **pooled)))


def sd3(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    net = weights(
        diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=8,
            pooled_projection_dim=8,
            pos_embed_max_size=8,
        )
    )
    none = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    pipe = diffusers.StableDiffusion3Pipeline(transformer=net, vae=vae(16), scheduler=scheduler, **none)
    pooled = {"pooled_prompt_embeds": rand(1, 8), "negative_pooled_prompt_embeds": rand(1, 8, seed=2)}
    return pipe, texts(height=16, width=16, **pooled)


def flux(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    net = weights(
        diffusers.FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=[4, 4, 8],
        )
    )
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(scheduler=scheduler, vae=vae(1), transformer=net, **none)
    call = texts(height=16, width=16, pooled_prompt_embeds=rand(1, 8))
    return pipe, {k: v for k, v in call.items() if k != "negative_prompt_embeds"}


def wan(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    net = weights(
        of_diffusers.named("WanTransformer3DModel")(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=8,
            freq_dim=8,
            ffn_dim=8,
            num_layers=1,
            rope_max_seq_len=16,
        )
    )
    video = weights(
        of_diffusers.named("AutoencoderKLWan")(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
    )
    pipe = of_diffusers.named("WanPipeline")(
        tokenizer=None, text_encoder=None, vae=video, scheduler=scheduler, transformer=net
    )
    return pipe, texts(height=16, width=16, num_frames=5)


MATCH = "FlowMatchEulerDiscreteScheduler"
DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}
WAN = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.parametrize(
    ("make", "name", "config"),
    [
        (sd3, MATCH, {"shift": 3.0}),
        (sd3, "DPMSolverMultistepScheduler", WAN),
        (flux, MATCH, DYNAMIC),
        (flux, MATCH, {**DYNAMIC, "shift_terminal": 0.1}),
        (wan, "UniPCMultistepScheduler", WAN),
        (wan, MATCH, {"shift": 3.0}),
    ],
)
def test_flow_matching(make: Callable[[Any], tuple[Any, dict[str, Any]]], name: str, config: dict[str, Any]) -> None:
    pipe, call = make(of_diffusers.scheduler(name, **config))
    agree(both(pipe, call))


def test_dit() -> None:
    net = weights(
        diffusers.DiTTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=4,
            attention_head_dim=4,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
    )
    pipe = diffusers.DiTPipeline(transformer=net, vae=vae(), scheduler=diffusers.DDIMScheduler())
    agree(both(pipe, {"class_labels": [1], "num_inference_steps": 4, "output_type": "np"}))


class Words:
    """A tokenizer whose every text is six words."""

    model_max_length = 6

    def __call__(self, text: Any, **_: Any) -> Any:
        ids = torch.arange(1, 7).repeat(len(text) if isinstance(text, list) else 1, 1)
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_kandinskys_prior_with_unclips_scheduler() -> None:
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, embedding_dim=8, num_layers=1, num_embeddings=6
    )
    small = {"hidden_size": 8, "projection_dim": 8, "intermediate_size": 16}
    small |= {"num_attention_heads": 2, "num_hidden_layers": 1}
    images = transformers.CLIPVisionConfig(**small, image_size=32, patch_size=16)
    words = transformers.CLIPTextConfig(
        **small, vocab_size=16, max_position_embeddings=8, bos_token_id=0, eos_token_id=6
    )
    pipe = diffusers.KandinskyV22PriorPipeline(
        prior=weights(prior),
        image_encoder=weights(transformers.CLIPVisionModelWithProjection(images)),
        text_encoder=weights(transformers.CLIPTextModelWithProjection(words)),
        tokenizer=Words(),
        scheduler=diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        image_processor=None,
    )
    # alpha-bar at the first time is 2.4e-9 there, a product of 1000 in float32, and 1 - alpha-bar of others cancels.
    agree(both(pipe, {"prompt": "x", "num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "pt"}), 1e-3)


def test_the_example_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    example = str(Path(__file__).resolve().parents[2] / "examples" / "diffusers_pipeline.py")
    monkeypatch.setattr("sys.argv", [example])
    runpy.run_path(example, run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "through the pipeline: (2, 8, 8, 3)",
        "without it: (2, 3, 8, 8)",
    ]


def test_a_saved_pipeline_loads_again(tmp_path: Any) -> None:
    pipe = diffusers.DDIMPipeline(pixels(), diffusers.DDIMScheduler(beta_schedule="scaled_linear"))
    accelerate(pipe)
    pipe.scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(str(tmp_path))
    assert again.replaces == "DDIMScheduler" and again.config.beta_schedule == "scaled_linear"
    # The class that it stands for reads the same folder, which has no key that it does not know.
    assert "fastdiff" not in again.config and "fastdiff" not in (tmp_path / "scheduler_config.json").read_text()
    with warnings.catch_warnings():
        theirs = diffusers.DDIMScheduler.from_pretrained(str(tmp_path))
    assert theirs.config.beta_schedule == "scaled_linear"
    assert diffusers.DDIMScheduler in again.compatibles
    assert diffusers.DDIMScheduler.from_config(again.config).config.beta_schedule == "scaled_linear"
