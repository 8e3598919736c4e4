"""Trains the demo's network and classifier: ``python -m fastdiff.demo.train --out DIR``.

Noise prediction with the simple loss of DDPM (Ho et al. 2020, equation 14), labels dropped for classifier-free guidance
(Ho & Salimans 2022), and an exponential moving average of the weights, which is what is sampled from. Every step draws
its randomness from (seed, step) alone, so a run that was interrupted and resumed ends in the same weights.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff import schedules
from fastdiff.demo.classifier import Classifier
from fastdiff.demo.data import load_digits, split
from fastdiff.demo.unet import UNet

STEPS = 7000
BATCH = 128
LEARNING_RATE = 1e-3
WARM_UP = 200
LABEL_DROPOUT = 0.1
EMA_DECAY = 0.999


class Trainer:
    """The network, the average of its weights and the optimizer, after ``step`` of ``steps`` steps."""

    def __init__(self, model: UNet, images: Tensor, labels: Tensor, steps: int, seed: int, batch: int = BATCH) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.steps, self.seed, self.batch, self.step = steps, seed, batch, 0
        index, schedule = np.arange(1000.0), schedules.ddpm()
        self.alpha = torch.from_numpy(schedule.alpha(index)).float()
        self.sigma = torch.from_numpy(schedule.sigma(index)).float()
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        warm_up = min(1.0, (self.step + 1) / WARM_UP)
        return LEARNING_RATE * warm_up * 0.5 * (1.0 + math.cos(math.pi * self.step / self.steps))

    def train_step(self) -> Tensor:
        """One step of the optimizer; the loss, a tensor of one element."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        batch = self.batch
        chosen = torch.randint(len(self.images), (batch,), generator=generator)
        x0, y = self.images[chosen], self.labels[chosen]
        y = torch.where(torch.rand(batch, generator=generator) < LABEL_DROPOUT, self.model.null_class, y)
        # One time from each of `batch` equal slices: uniform for every sample, with less variance in the sum.
        slices = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (slices * len(self.alpha)).long().clamp(max=len(self.alpha) - 1)
        noise = torch.randn(x0.shape, generator=generator)
        x = self.alpha[t, None, None, None] * x0 + self.sigma[t, None, None, None] * noise

        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        loss = F.mse_loss(self.model(x, t, y), noise)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 9))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, 1.0 - decay)
        return loss.detach()

    def save(self, path: Path) -> None:
        """Writes everything needed to continue; the file is whole at every moment, even if this is interrupted."""
        tensors = {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            state = self.optimizer.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq", "step"):
                if key in state:
                    tensors[f"{key}.{name}"] = state[key]
        meta = {"step": str(self.step), "steps": str(self.steps), "seed": str(self.seed), "batch": str(self.batch)}
        write(path, tensors, meta)

    def load(self, path: Path) -> None:
        """Continues from a file written by ``save``.

        Raises:
            ValueError: the file belongs to a run with other settings.
        """
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        expected = {"steps": str(self.steps), "seed": str(self.seed), "batch": str(self.batch)}
        found = {key: meta.get(key, "nothing") for key in expected}
        if found != expected:
            got = ", ".join(f"{key}={value}" for key, value in found.items())
            wanted = ", ".join(f"{key}={value}" for key, value in expected.items())
            raise ValueError(
                f"{path} holds a run with {got}, but this one has {wanted}: pass the same --steps and --seed, "
                "or leave --resume out to start again"
            )
        tensors = load_file(path)
        self.step = int(meta["step"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                if f"step.{name}" in tensors:
                    self.optimizer.state[parameter] = {
                        key: tensors[f"{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
                    }


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Saves through a temporary file beside ``path``, so that no half-written file is ever found there."""
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata)
    os.replace(partial, path)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C into a flag to be read between steps; a second Ctrl-C stops at once."""
    stopped = False
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


def train_unet(out: Path, steps: int, seed: int, resume: bool) -> bool:
    """Trains the U-Net and writes ``unet.safetensors``; False if it was interrupted before the end."""
    torch.manual_seed(seed)
    images, labels = load_digits()
    trainer = Trainer(UNet(), images, labels, steps, seed)
    checkpoint = out / "checkpoint.safetensors"
    if resume and checkpoint.exists():
        trainer.load(checkpoint)
    trainer.model.train()
    smooth = float("nan")
    with interruptible() as stopped, tqdm(total=steps, initial=trainer.step, desc="U-Net", mininterval=1.0) as bar:
        while trainer.step < steps and not stopped():
            loss = trainer.train_step().item()
            smooth = loss if math.isnan(smooth) else smooth + 0.02 * (loss - smooth)
            bar.update()
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if trainer.step % 500 == 0:
                trainer.save(checkpoint)
    trainer.save(checkpoint)
    if trainer.step < steps:
        print(f"stopped at step {trainer.step} of {steps}; continue with --resume")
        return False
    metadata = {"steps": str(steps), "seed": str(seed), "batch": str(BATCH), "loss": f"{smooth:.4f}"}
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
    parser = argparse.ArgumentParser(prog="python -m fastdiff.demo.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("digits"), help="folder for weights and checkpoint (digits)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps of the U-Net ({STEPS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads for PyTorch (its own default)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"got --steps {options.steps}, expected at least 1, such as --steps {STEPS}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    train_classifier(options.out, options.seed)
    return 0 if train_unet(options.out, options.steps, options.seed, options.resume) else 130


if __name__ == "__main__":
    raise SystemExit(main())
