"""p(x0 | x_1), the last step of a chain to data in bins of [−1, 1] (Ho et al. 2020, arXiv 2006.11239, eq. 13)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.names import one_of, short, warn

CDFS = ("exact", "tanh")


def decoder_log_prob(x0: Tensor, mean: Tensor, log_std: Tensor, bins: int, cdf: str) -> Tensor:
    """log of the probability that a normal variable lies in x0's bin of [−1, 1] (Ho et al. 2020, eq. 13).

    The outermost bins reach to infinity.
    """
    half, scale = 1.0 / (bins - 1), torch.exp(-log_std)
    # Bins are 2·half apart. Values within half/2 of an end count as that end.
    lowest, highest = x0 < -1.0 + 0.25 * half, x0 > 1.0 - 0.25 * half
    if cdf == "tanh":
        below, above = (_tanh_cdf(scale * (x0 - mean + side)) for side in (-half, half))
        inside = torch.where(lowest, above, torch.where(highest, 1.0 - below, above - below))
        return inside.clamp(min=1e-12).log()
    # An inner bin is mirrored to the lower side of the mean, where probabilities keep their digits.
    middle = -(x0 - mean).abs()
    upper, lower = (_log_cdf(scale * (middle + side)) for side in (half, -half))
    # The bound keeps the gradient finite where the bin is too narrow for float64 to see it.
    inner = upper + torch.log(-torch.expm1(-(upper - lower).clamp(min=1e-300)))
    outer = _log_cdf(scale * (torch.where(lowest, x0 - mean, mean - x0) + half))
    return torch.where(lowest | highest, outer, inner)


def _log_cdf(x: Tensor) -> Tensor:
    """log of the normal distribution, float64.

    torch's gradient is exp(−x²/2 − log_ndtr(x)), whose exponent has no digits left from −1e8 down: from −1e4 on the
    asymptotic series, to x^−4.
    """
    far = x.clamp(max=-1e4)
    tail = -0.5 * far.square() - torch.log(-far) - 0.5 * math.log(2.0 * math.pi) - far.pow(-2)
    return torch.where(x < -1e4, tail, torch.special.log_ndtr(x.clamp(min=-1e4)))


def _tanh_cdf(x: Tensor) -> Tensor:
    """The normal distribution to about 3e-4 (Page 1977; in Ho et al.'s code)."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def check_bins(x0: Tensor, bins: int) -> None:
    """A warning for data outside the bins of [−1, 1], of which bits per dimension say little; ValueError for pixels.

    The outermost bins end half a bin beyond −1 and 1; the rest of the slack is for rounding and resampling.
    """
    limit = 1.0 + 1.0 / (bins - 1) + 1e-3
    low, high = _range(x0)
    _refuse_pixels(low, high)
    if low < -limit or high > limit:
        warn(
            f"x0 ranges from {low:g} to {high:g}: the {bins} bins lie in [-1, 1], the outermost reach to infinity, and "
            "the last step's term counts what lies beyond as if it were at the edge"
        )


def check_scaled(x0: Tensor) -> None:
    """ValueError for images that were left in 0..255, where a look at the data costs nothing: on the CPU.

    Latents, far beyond [−1, 1], are trained with these losses too (Peebles and Xie 2023, arXiv 2212.09748): the
    outermost bins reach to infinity, and the decoder's term is one of many. They are not all positive, as pixels are.
    """
    if x0.device.type == "cpu":
        _refuse_pixels(*_range(x0))


def _refuse_pixels(low: float, high: float) -> None:
    if low >= 0.0 and high > 2.0:
        raise ValueError(
            f"x0 ranges from {low:g} to {high:g}, as pixels do; expected data in about [-1, 1]: pass 2 * x / 255 - 1"
        )


def _range(x0: Tensor) -> tuple[float, float]:
    low, high = x0.detach().aminmax()
    return float(low), float(high)


def check_decoder(bins: int, cdf: str) -> None:
    # Narrower bins than float32 tells apart near 1 have no meaning.
    if isinstance(bins, bool) or not isinstance(bins, int) or not 2 <= bins <= 2**24:
        raise ValueError(
            f"bins={short(bins)}: expected the number of values of an element, from 2 to 2**24, such as 256"
        )
    one_of("cdf", cdf, CDFS)
