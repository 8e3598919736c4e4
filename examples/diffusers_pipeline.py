"""A pipeline of diffusers with our scheduler: `python examples/diffusers_pipeline.py`.

The networks are tiny and have random weights, so that it runs anywhere in seconds; with a real one the two lines that
matter are the same.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import DDPMPipeline, EulerDiscreteScheduler, UNet2DModel

import fastdiff
from fastdiff.integrations.diffusers import accelerate


def main() -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    ).eval()
    pipe = DDPMPipeline(unet, EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"))
    pipe.set_progress_bar_config(disable=True)

    accelerate(pipe, "DPMSolverMultistep")
    pictures = pipe(batch_size=2, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np")
    print("through the pipeline:", pictures.images.shape)

    x = fastdiff.sample(unet, shape=(2, 3, 8, 8), schedule=pipe.scheduler, method="dpmpp2m", steps=10, seed=0)
    print("without it:", tuple(x.shape))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
