"""The 1,797 handwritten digits of scikit-learn (the test set of UCI's optical recognition data), 8x8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def load_digits() -> tuple[Tensor, Tensor]:
    """The digits and their labels: images (1797, 1, 8, 8) float32 in [-1, 1], labels (1797,) int64 in 0 to 9.

    Raises:
        ImportError: scikit-learn, which holds the data, is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "training needs the digits that come with scikit-learn, which is not installed; "
            "expected it after: pip install scikit-learn (sampling and the demo work without it)"
        ) from error
    digits = load()
    images = torch.from_numpy(digits.images).to(torch.float32).div(8.0).sub(1.0)
    return images[:, None].contiguous(), torch.from_numpy(digits.target).to(torch.int64)


def split(count: int, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of a fixed random split, (training, held out)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = round(count * held_out)
    return order[held:], order[:held]
