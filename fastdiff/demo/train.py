"""Trains the demo's network and classifier: ``python -m fastdiff.demo.train --out DIR``.

Noise prediction with the simple loss of DDPM (Ho et al. 2020, equation 14), labels dropped for classifier-free guidance
(Ho & Salimans 2022), and an exponential moving average of the weights, which is what is sampled from. Every step draws
its randomness from (seed, step) alone, so a run that was interrupted and resumed ends in the same weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff.demo.classifier import Classifier
from fastdiff.demo.data import load_digits, split
from fastdiff.demo.training import BATCH, Trainer, command_line, drop_labels, parse, run, stratified, write
from fastdiff.demo.unet import UNet
from fastdiff.losses import ddpm_loss

STEPS = 7000


def noise_prediction(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The simple loss at every integer time of DDPM's schedule."""
    y = drop_labels(labels, int(model.null_class), generator)  # type: ignore[arg-type]
    t = (stratified(len(images), generator) * 1000).long().clamp(max=999)
    return ddpm_loss(model, images, "ddpm", t=t, generator=generator, model_kwargs={"y": y})


def train_unet(out: Path, steps: int, seed: int, resume: bool) -> bool:
    """Trains the U-Net and writes ``unet.safetensors``; False if it was interrupted before the end."""
    torch.manual_seed(seed)
    images, labels = load_digits()
    trainer = Trainer(UNet(), images, labels, steps, seed, noise_prediction)
    loss = run(trainer, out / "checkpoint.safetensors", resume)
    if loss is None:
        return False
    metadata = {"steps": str(steps), "seed": str(seed), "batch": str(BATCH), "loss": f"{loss:.4f}"}
    write(out / "unet.safetensors", trainer.average, metadata)
    return True


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Small random rotations (sd 6 degrees), sizes (sd 5%), shifts (sd 0.35 pixels) and noise (sd 0.05)."""
    count = len(images)
    angle, size = torch.randn(2, count, generator=generator) * torch.tensor([[math.radians(6.0)], [0.05]])
    shift = torch.randn(count, 2, 1, generator=generator) * (0.35 * 2 / images.shape[-1])
    cos, sin = torch.cos(angle) * (1 + size), torch.sin(angle) * (1 + size)
    rotation = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    grid = F.affine_grid(torch.cat([rotation, shift], dim=2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1.0, grid, align_corners=False) - 1.0  # outside the image is background, -1
    return moved + 0.05 * torch.randn(images.shape, generator=generator)


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (classifier(images).argmax(1) == labels).double().mean().item()


def train_classifier(out: Path, seed: int, epochs: int = 60) -> None:
    """Trains the classifier on 80% of the digits; writes it, and the features' statistics over all of them."""
    torch.manual_seed(seed)
    images, labels = load_digits()
    training, held_out = split(len(images))
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    batches = len(training) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(epochs), desc="classifier"):
        for chosen in training[torch.randperm(len(training), generator=generator)][: 64 * batches].split(64):
            logits = classifier(augmented(images[chosen], generator))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    classifier.eval()
    held = accuracy(classifier, images[held_out], labels[held_out])
    everywhere = accuracy(classifier, images, labels)
    print(f"classifier: accuracy {held:.4f} on the {len(held_out)} held-out digits, {everywhere:.4f} on all")
    figures = {"held_out_accuracy": f"{held:.4f}", "accuracy": f"{everywhere:.4f}", "seed": str(seed)}
    write(out / "classifier.safetensors", dict(classifier.state_dict()), figures)

    with torch.no_grad():
        features = classifier.features(images).double()
    statistics = {"mean": features.mean(0), "covariance": features.T.cov()}
    write(out / "real_digits.safetensors", statistics, {"count": str(len(images)), **figures})


def main(arguments: list[str] | None = None) -> int:
    options = parse(command_line("fastdiff.demo.train", __doc__, STEPS), arguments)
    train_classifier(options.out, options.seed)
    return 0 if train_unet(options.out, options.steps, options.seed, options.resume) else 130


if __name__ == "__main__":
    raise SystemExit(main())
