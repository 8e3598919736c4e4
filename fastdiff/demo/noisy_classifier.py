"""A classifier p(y | x_t, t) of noisy digits, and its gradient for classifier guidance (Dhariwal and Nichol 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdiff.demo.unet import Attention, ResidualBlock, norm, time_embedding

WEIGHTS = Path(__file__).parent / "noisy_classifier.safetensors"

Classify = Callable[[Tensor, Tensor], Tensor]


class NoisyClassifier(nn.Module):
    """Digits at any noise of DDPM's schedule -> logits: the downward half of the demo's U-Net and a linear head.

    Args:
        channels: width at 8x8; twice that at 4x4, where the pixels attend to each other.
        classes: number of classes.
        dropout: dropout inside the residual blocks, active in training only.
    """

    schedule = "ddpm"

    def __init__(self, channels: int = 32, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.channels = channels
        wide, embedding = 2 * channels, 4 * channels
        self.embed_time = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.conv_in = nn.Conv2d(1, channels, 3, padding=1)
        self.fine = ResidualBlock(channels, channels, embedding, dropout)
        self.down = nn.Conv2d(channels, wide, 3, stride=2, padding=1)
        self.coarse = ResidualBlock(wide, wide, embedding, dropout)
        self.attention = Attention(wide)
        self.norm_out = norm(wide)
        self.head = nn.Linear(wide * 4 * 4, classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, 10) for x (B, 1, 8, 8), in the dtype of the weights, at times t (B,) of DDPM, 0 to 999."""
        embedding = F.silu(self.embed_time(time_embedding(t, self.channels).to(x.dtype)))
        h = self.fine(self.conv_in(x), embedding)
        h = self.attention(self.coarse(self.down(h), embedding))
        return self.head(F.silu(self.norm_out(h)).flatten(1))


def load_noisy_classifier(path: Path | str = WEIGHTS, device: torch.device | str = "cpu") -> NoisyClassifier:
    """The trained classifier of noisy digits, float32, in evaluation mode; by default the weights in the package.

    Raises:
        FileNotFoundError: no file there.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"got no weights at {path}; expected a file written by: python -m fastdiff.demo.train_classifier --out "
            f"{Path(path).parent}"
        )
    classifier = NoisyClassifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval().requires_grad_(False).to(device)


def classifier_grad(classifier: Classify, y: Tensor, scale: float = 1.0) -> Classify:
    """``fastdiff.sample(..., classifier_grad=classifier_grad(classifier, y, scale))``: guidance towards the labels y.

    The callable (x, t) -> scale · grad_x log p(y | x, t) (Dhariwal and Nichol 2021, arXiv 2105.05233, Alg. 1, 2).
    Gradients are switched on inside, for x alone, also where it is called outside of sampling.

    Args:
        classifier: (x, t) -> logits (B, classes), t being the model times that the diffusion network is given.
        y: (B,) integer labels, one for each sample, on the device of the samples.
        scale: the strength s; 1 is Bayes' rule for an exact classifier, more is narrower.

    Raises:
        TypeError, ValueError: labels that are not (B,) integers, or logits that do not fit them.
    """
    if y.ndim != 1 or y.dtype.is_floating_point or y.dtype == torch.bool:
        raise TypeError(f"y has shape {tuple(y.shape)} and dtype {y.dtype}; expected one integer label a sample, (B,)")
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale!r}: expected a finite number, such as scale=1.0")

    def grad(x: Tensor, t: Tensor) -> Tensor:
        if len(x) != len(y):
            raise ValueError(f"got {len(x)} samples and {len(y)} labels; expected one label a sample")
        with torch.inference_mode(False), torch.enable_grad():
            # Copies: tensors made in a caller's inference mode cannot be saved for the backward pass.
            point, labels = x.detach().clone().requires_grad_(True), y.to(x.device, torch.int64, copy=True)
            logits = classifier(point, t.clone())
            if logits.ndim != 2 or len(logits) != len(y):
                raise ValueError(f"the classifier returned shape {tuple(logits.shape)}; expected ({len(y)}, classes)")
            chosen = F.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, dim=1)
            return scale * torch.autograd.grad(chosen.gather(1, labels[:, None]).sum(), point)[0]

    return grad
