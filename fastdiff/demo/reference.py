"""Measures 1000-step DDPM with the demo's network, for comparison: ``python -m fastdiff.demo.reference``."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from tqdm import tqdm

import fastdiff
from fastdiff.demo import WEIGHTS, load_model
from fastdiff.demo.quality import measure
from fastdiff.files import write_whole

STEPS = 1000
BATCH = 250


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastdiff.demo.reference", description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with the weights, and for the file")
    parser.add_argument("--per-class", type=int, default=200, help="digits of each class (200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.per_class < 1:
        parser.error(f"got --per-class {options.per_class}, expected at least 1, such as --per-class 200")

    model = load_model(options.weights, options.device)
    labels = torch.arange(10, device=options.device).repeat_interleave(options.per_class)
    start, parts = time.perf_counter(), []
    for first in tqdm(range(0, len(labels), BATCH), desc=f"ddpm, {STEPS} steps"):
        y = labels[first : first + BATCH]
        parts.append(
            fastdiff.sample(
                model,
                shape=(len(y), *model.sample_shape),
                steps=STEPS,
                method="ddpm",
                schedule="ddpm",
                seed=options.seed,
                first_sample=first,
                model_kwargs={"y": y},
                device=options.device,
            )
        )
    quality = measure(torch.cat(parts), labels, options.weights)
    figures = {
        "method": "ddpm",
        "steps": STEPS,
        "count": quality.count,
        "seed": options.seed,
        "frechet": round(quality.frechet, 4),
        "accuracy": round(quality.accuracy, 4),
        "made_by": f"python -m fastdiff.demo.reference --per-class {options.per_class} --seed {options.seed}",
        "network": "unet.safetensors, float32, its labels given, no guidance",
        "unet_sha256": hashlib.sha256((options.weights / "unet.safetensors").read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start),
    }
    text = json.dumps(figures, indent=2) + "\n"
    write_whole(options.weights / "ddpm1000.json", text.encode())
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
