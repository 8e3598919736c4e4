"""k-diffusion's calls on this library's tables: `python examples/k_diffusion.py`.

The denoiser is the exact one of points on a ring, so that it runs anywhere; with a network only `denoiser` changes, as
k-diffusion's wrappers (`K.external.CompVisDenoiser(network)`) make it.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

import fastdiff.integrations.k_diffusion as sampling

ANGLES = torch.arange(8) * (2 * math.pi / 8)
RING = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The expected point of the ring, given x = x0 + sigma·eps."""
    distances = (x[:, None] - RING).square().sum(-1)
    return torch.softmax(-0.5 * distances / sigma[:, None] ** 2, dim=1) @ RING


def told(state: dict[str, Any]) -> None:
    print(f"step {state['i']}: sigma {state['sigma']:.3f}, x0 of norm {state['denoised'].norm(dim=1).mean():.3f}")


def main() -> None:
    torch.manual_seed(0)
    sigmas = sampling.get_sigmas_karras(8, 0.03, 14.6)
    x = torch.randn(512, 2) * sigmas[0]
    samples = sampling.sample_dpmpp_2m(denoiser, x, sigmas, callback=told, disable=True)
    print("2M:          distance to the ring", float((samples.norm(dim=1) - 1).abs().mean()))
    samples = sampling.sample_dpmpp_2m_sde(denoiser, x, sigmas, extra_args={}, eta=0.5, disable=True)
    print("2M SDE:      distance to the ring", float((samples.norm(dim=1) - 1).abs().mean()))
    samples = sampling.sample_euler_ancestral(denoiser, x, sigmas, disable=True)
    print("Euler, anc.: distance to the ring", float((samples.norm(dim=1) - 1).abs().mean()))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
