"""A compact class-conditional U-Net that predicts the noise of a DDPM (Ho et al. 2020, appendix B, made small)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the time, (B,) -> (B, width): cosines, then sines, of frequencies from 1 down to 1/10000.

    Computed in float32, or in float64 for float64 times: neighbouring times differ by less than bfloat16 resolves.
    """
    dtype = torch.promote_types(t.dtype, torch.float32)
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=dtype, device=t.device) * (-math.log(10_000.0) / half))
    angles = t.to(dtype)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Zero weights: every residual branch, and the network's output, start at nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shift and scale by the embedding of time and class."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm_out = norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = F.silu(torch.addcmul(shift, self.norm_out(h), scale + 1))
        return self.skip(x) + self.conv_out(self.dropout(h))


class Attention(nn.Module):
    """Self-attention between all pixels, with heads of at most 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // math.gcd(channels, 32)
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(2, 3).reshape(batch, channels, height, width))


class Level(nn.Module):
    """One residual block, with attention behind it where asked for."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, attend: bool, dropout: float) -> None:
        super().__init__()
        self.residual = ResidualBlock(channels_in, channels_out, embedding, dropout)
        self.attention = Attention(channels_out) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.residual(x, embedding))


class UNet(nn.Module):
    """Noise prediction eps(x, t, y) on the discrete schedule of DDPM (1000 linear betas, 1e-4 to 0.02).

    Args:
        image_size: height and width of the images; divisible by 2 ** (len(mults) - 1).
        image_channels: channels of the images.
        channels: width of the first level.
        mults: width of each level as a multiple of ``channels``; each level halves the resolution of the one before.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention: resolutions at which the pixels attend to each other.
        classes: number of classes; label ``classes`` is the null class, which stands for "no label".
        dropout: dropout inside the residual blocks, active in training only.

    The default is the demo's network (1x8x8). ``UNet(32, 3, 128, (1, 2, 2, 2), 2, (16,))`` has the size of DDPM's
    CIFAR-10 network, about 36 million parameters.
    """

    prediction = "eps"
    schedule = "ddpm"

    def __init__(
        self,
        image_size: int = 8,
        image_channels: int = 1,
        channels: int = 32,
        mults: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (4,),
        classes: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        coarsest = 2 ** (len(mults) - 1)
        if image_size % coarsest:
            raise ValueError(
                f"image_size={image_size} cannot be halved {len(mults) - 1} times, as mults={tuple(mults)} asks; "
                f"expected a multiple of {coarsest}, such as UNet(image_size={coarsest * -(-image_size // coarsest)})"
            )
        self.sample_shape = (image_channels, image_size, image_size)
        self.null_class = classes
        self.channels = channels
        embedding = 4 * channels
        self.embed_time = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.embed_class = nn.Embedding(classes + 1, embedding)
        self.conv_in = nn.Conv2d(image_channels, channels, 3, padding=1)

        self.down = nn.ModuleList()
        size, width, skips = image_size, channels, [channels]
        for i, mult in enumerate(mults):
            if i > 0:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                size //= 2
                skips.append(width)
            for _ in range(blocks):
                self.down.append(Level(width, mult * channels, embedding, size in attention, dropout))
                width = mult * channels
                skips.append(width)

        self.middle = nn.ModuleList(
            [Level(width, width, embedding, True, dropout), Level(width, width, embedding, False, dropout)]
        )

        self.up = nn.ModuleList()
        for i, mult in reversed(list(enumerate(mults))):
            for _ in range(blocks + 1):
                self.up.append(Level(width + skips.pop(), mult * channels, embedding, size in attention, dropout))
                width = mult * channels
            if i > 0:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
                size *= 2
        self.norm_out = norm(width)
        self.conv_out = zeroed(nn.Conv2d(width, image_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The noise in x.

        Args:
            x: images, (B, image_channels, image_size, image_size), in the dtype of the weights; data in [-1, 1].
            t: times, (B,), integer or floating: the index 0 to 999 of the schedule, fractions allowed.
            y: labels, (B,) int64, 0 to ``classes``; None is the null class for all.

        Returns:
            eps, in the shape and dtype of x.
        """
        if y is None:
            y = torch.full((x.shape[0],), self.null_class, dtype=torch.int64, device=x.device)
        embedding = self.embed_time(time_embedding(t, self.channels).to(x.dtype)) + self.embed_class(y)
        embedding = F.silu(embedding)
        h = self.conv_in(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, Level) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.up:
            if isinstance(layer, Level):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))
