"""Trains the classifier of noisy digits in mixed precision: ``python -m fastdiff.demo.train_classifier --out DIR``.

Digits at all times of DDPM's schedule (Dhariwal and Nichol 2021, arXiv 2105.05233, section 4), 80% of them, moved and
turned a little; the other 20% measure the accuracy at several noise levels. torch.amp: float16 with a GradScaler on
CUDA, bfloat16 on the CPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.demo.data import load_digits, split
from fastdiff.demo.noisy_classifier import NoisyClassifier, load_noisy_classifier
from fastdiff.demo.train import augmented
from fastdiff.demo.training import Trainer, command_line, parse, run, stratified, write
from fastdiff.losses import q_sample
from fastdiff.schedules import resolve

STEPS = 2000
TIMES = (0, 100, 200, 300, 400, 600, 800)


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """-log p(y | x_t, t) at times from all of DDPM's schedule."""
    moved = augmented(images.cpu(), generator).to(images.device)
    t = (stratified(len(images), generator) * 1000).floor().clamp(max=999.0)
    x = q_sample(moved, t, "ddpm", generator=generator)
    return F.cross_entropy(model(x, t.to(images.device)).float(), labels, label_smoothing=0.02)


@torch.no_grad()
def accuracies(classifier: nn.Module, images: Tensor, labels: Tensor, repeats: int = 10) -> dict[int, float]:
    """The part of the labels found at each of `TIMES`, each digit with ``repeats`` draws of the noise."""
    generator = torch.Generator().manual_seed(0)
    x0, y = images.repeat(repeats, 1, 1, 1), labels.repeat(repeats)
    found = {}
    for time in TIMES:
        x = q_sample(x0, time, "ddpm", generator=generator)
        logits = classifier(x, torch.full((len(x),), float(time), device=x.device))
        found[time] = (logits.argmax(1) == y).double().mean().item()
    return found


def train(out: Path, steps: int, seed: int, resume: bool, device: str = "cpu", mixed: bool = True) -> bool:
    """Trains and writes ``noisy_classifier.safetensors``; False if it was interrupted before the end."""
    torch.manual_seed(seed)
    images, labels = load_digits()
    training, held_out = split(len(images))
    model = NoisyClassifier().to(device)
    trainer = Trainer(
        model, images[training], labels[training], steps, seed, cross_entropy, label="classifier", mixed=mixed
    )
    if run(trainer, out / "noisy_classifier-checkpoint.safetensors", resume) is None:
        return False
    path = out / "noisy_classifier.safetensors"
    settings = {key: value for key, value in trainer.settings.items() if key != "label"}
    write(path, trainer.average, settings)
    schedule, found = resolve("ddpm"), accuracies(load_noisy_classifier(path), images[held_out], labels[held_out])
    write(path, trainer.average, {**settings, **{f"accuracy_{t}": f"{value:.4f}" for t, value in found.items()}})
    print("time   sigma   accuracy on held-out digits")
    for time, value in found.items():
        print(f"{time:4d}   {schedule.sigma(float(time)):.3f}   {value:.1%}")
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = command_line("fastdiff.demo.train_classifier", __doc__, STEPS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-amp", action="store_true", help="train in float32 instead of mixed precision")
    options = parse(parser, arguments)
    done = train(options.out, options.steps, options.seed, options.resume, options.device, not options.no_amp)
    return 0 if done else 130


if __name__ == "__main__":
    raise SystemExit(main())
