"""Networks of the sizes that people run, with random weights: for the time of whole loops only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.demo.unet import UNet, time_embedding


class Block(nn.Module):
    """A transformer block modulated by the embedding of the time (adaLN; Peebles and Xie 2023, arXiv 2212.09748)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (B, tokens, width), c: (B, width)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(c))[:, None].chunk(6, dim=-1)
        h = torch.addcmul(shift_1, self.norm_1(x), 1 + scale_1)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate_1 * self.out(h)
        return x + gate_2 * self.mlp(torch.addcmul(shift_2, self.norm_2(x), 1 + scale_2))


class DiT(nn.Module):
    """A diffusion transformer on latents; the default is DiT-B/2 at 32x32x4, about 130 million parameters.

    Args:
        size, channels: latents are (channels, size, size).
        patch: side of a token's patch.
        width, depth, heads: of the transformer.
    """

    def __init__(
        self, size: int = 32, channels: int = 4, patch: int = 2, width: int = 768, depth: int = 12, heads: int = 12
    ) -> None:
        super().__init__()
        self.sample_shape = (channels, size, size)
        self.patch, self.width = patch, width
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, patch * patch * channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """eps of x (B, channels, size, size) at times t (B,)."""
        grid = x.shape[-1] // self.patch
        h = self.embed(x).flatten(2).transpose(1, 2) + self.position
        c = self.time(time_embedding(t, 256).to(x.dtype))
        for block in self.blocks:
            h = block(h, c)
        h = self.head(self.norm(h)).unflatten(1, (grid, grid)).unflatten(-1, (x.shape[1], self.patch, self.patch))
        return h.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


class ActionTransformer(nn.Module):
    """A robot policy's head: the velocity of a chunk of actions, (B, chunk, actions), as flow matching has it.

    Args:
        chunk, actions: length of a chunk, numbers in an action.
        width, depth, heads: of the transformer.
    """

    prediction = "flow"
    schedule = "flow"

    def __init__(self, chunk: int = 50, actions: int = 32, width: int = 256, depth: int = 6, heads: int = 8) -> None:
        super().__init__()
        self.sample_shape = (chunk, actions)
        self.embed = nn.Linear(actions, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, chunk, width))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, actions)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity eps − x0 of x (B, chunk, actions) at times t (B,) in (0, 1]."""
        h = self.embed(x) + self.position
        c = self.time(time_embedding(1000.0 * t, 256).to(x.dtype))
        for block in self.blocks:
            h = block(h, c)
        out: Tensor = self.head(h)
        return out


def cifar_unet() -> UNet:
    """A U-Net of the shape of DDPM's for CIFAR-10, 3x32x32; 38 million parameters, as the time also scales features."""
    return awake(UNet(32, 3, 128, (1, 2, 2, 2), 2, (16,)))


def awake(model: UNet) -> UNet:
    """The model with its zeroed convolutions drawn anew: an output of zeros would be no fair load."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
