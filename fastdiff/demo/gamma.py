"""Estimates Gamma of the demo's network over the digits: ``python -m fastdiff.demo.gamma``.

With ``--compare`` it also measures the table of docs/analytic.md: Frechet distances of plain and analytic DDPM and
DDIM, from the same seeds and on the same times.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fastdiff
from fastdiff.analytic import Gamma, estimate_gamma
from fastdiff.demo import WEIGHTS, load_model
from fastdiff.demo.data import load_digits
from fastdiff.demo.quality import measure
from fastdiff.solvers.method_names import MethodName

SAMPLES = 256
BATCH = 250
ROWS: tuple[tuple[MethodName, dict[str, Any]], ...] = (
    ("ddpm", {"variance": "small"}),
    ("ddpm", {"variance": "large"}),
    ("analytic_ddpm", {"gamma": "upper"}),
    ("analytic_ddpm", {}),
    ("analytic_ddpm", {"clip_steps": 0}),
    ("ddim", {}),
    ("analytic_ddim", {}),
    ("analytic_ddim", {"clip_steps": 0}),
)


def estimate(folder: Path, samples: int, device: str) -> Gamma:
    """Gamma of the network in `folder`, at all 1000 times, with the digits' labels."""
    images, labels = load_digits()
    return estimate_gamma(
        load_model(folder, device), (images, {"y": labels}), samples_per_time=samples, path=folder / "gamma.json"
    )


def compare(folder: Path, gamma: Gamma, per_class: int, seed: int, spacing: str, device: str) -> None:
    """Prints a table in Markdown: Frechet distance and accuracy of every row at 10 and 25 steps."""
    model = load_model(folder, device)
    labels = torch.arange(10, device=device).repeat_interleave(per_class)
    print("| method | options | 10 steps | 25 steps |\n|---|---|---|---|")
    for method, options in tqdm(ROWS, desc="compare"):
        figures = []
        own = {"gamma": gamma, **options} if method.startswith("analytic") else options
        for steps in (10, 25):
            sampler = fastdiff.Sampler(method, steps, schedule=model.schedule, spacing=spacing, **own)
            parts = [
                sampler(
                    model,
                    shape=(len(y), *model.sample_shape),
                    seed=seed,
                    first_sample=first,
                    model_kwargs={"y": y},
                    device=device,
                )
                for first, y in zip(range(0, len(labels), BATCH), labels.split(BATCH), strict=True)
            ]
            quality = measure(torch.cat(parts), labels, folder)
            figures.append(f"{quality.frechet:.3f} ({100 * quality.accuracy:.1f}%)")
        shown = ", ".join(f"{k}={v!r}" for k, v in options.items()) or "-"
        tqdm.write(f"| {method} | {shown} | {' | '.join(figures)} |")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastdiff.demo.gamma", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with the weights, and for gamma.json")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"samples at each time ({SAMPLES})")
    parser.add_argument("--compare", action="store_true", help="measure with the estimate, and print a table")
    parser.add_argument("--per-class", type=int, default=200, help="digits of each class in the comparison (200)")
    parser.add_argument("--spacing", default="linspace", help="times of the comparison (linspace)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the comparison")
    parser.add_argument("--threads", type=int, help="threads for PyTorch (its own default)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    for name in ("samples", "per_class"):
        if getattr(options, name) < 1:
            parser.error(f"got --{name.replace('_', '-')} {getattr(options, name)}, expected at least 1")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    gamma = estimate(options.weights, options.samples, options.device)
    print(gamma)
    if options.compare:
        compare(options.weights, gamma, options.per_class, options.seed, options.spacing, options.device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
