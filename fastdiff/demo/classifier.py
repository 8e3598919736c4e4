"""A small convolutional classifier of the digits, whose penultimate layer gives the features for quality figures."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Images (B, 1, 8, 8) in [-1, 1] -> logits (B, 10); ``features`` gives the (B, 64) values before the last layer."""

    def __init__(self, width: int = 32, features: int = 64, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(1, width, 3, padding=1),
                nn.Conv2d(width, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                nn.Conv2d(2 * width, width, 3, padding=1),
            ]
        )
        self.hidden = nn.Linear(width * 4 * 4, features)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = F.silu(convolution(x))
        return F.silu(self.hidden(self.dropout(x.flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
