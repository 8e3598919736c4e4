"""Inversion: find the noise that leads to a picture, then decode it again, or with another label.

    python examples/inversion.py

It encodes digits of the package's network, says how well they come back, and writes inversion.png: the digits, their
noise, what comes back, and the same noise as threes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fastdiff
from fastdiff.demo import load_model
from fastdiff.demo.pictures import sheet
from fastdiff.inversion import reconstruct


def main(count: int = 10, steps: int = 40, path: str | Path = "inversion.png") -> float:
    """Encode and decode `count` digits; returns the largest error of a pixel, of values in [-1, 1]."""
    model = load_model()
    labels = torch.arange(count) % 10
    pictures = fastdiff.sample(model, shape=(count, 1, 8, 8), steps=20, schedule="ddpm", model_kwargs={"y": labels})
    # A deterministic method of any kind; guidance and labels must be the same both ways.
    sampler = fastdiff.Sampler("dpm3", steps, schedule="ddpm")
    found = reconstruct(sampler, model, pictures, model_kwargs={"y": labels})
    threes = sampler(model, found.noise, model_kwargs={"y": torch.full_like(labels, 3)})
    rows = torch.stack([pictures, 0.5 * found.noise, found.x, threes])
    sheet(rows[:, :, 0].numpy(), ["picture", "noise", "decoded", "as threes"]).save(path)
    error = float(found.max_error.max())
    print(f"{steps} steps each way: largest error of a pixel {error:.3f}, of a range of 2")
    return error


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
