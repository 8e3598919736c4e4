"""Image to image: noise a picture up to a time in the middle, and sample from there with another label.

    python examples/img2img.py

It turns the package's handwritten ones into sevens and writes img2img.png: a row for each strength.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fastdiff
from fastdiff.demo import load_model
from fastdiff.demo.pictures import sheet
from fastdiff.losses import q_sample

STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)


def main(count: int = 10, path: str | Path = "img2img.png") -> torch.Tensor:
    """Change `count` digits with each strength; returns them, (strengths, count, 1, 8, 8)."""
    model = load_model()
    ones, sevens = torch.full((count,), 1), torch.full((count,), 7)
    # Pictures to begin with. Yours come from files, as (B, C, H, W) in [-1, 1].
    pictures = fastdiff.sample(model, shape=(count, 1, 8, 8), steps=10, schedule="ddpm", model_kwargs={"y": ones})
    rows = [pictures]
    for strength in STRENGTHS:
        # That much of the way to noise. Times of a discrete schedule are its indices, 0 to 999.
        start = round(999 * strength)
        noisy = q_sample(pictures, torch.full((count,), start), "ddpm", seed=1)
        rows.append(
            fastdiff.sample(
                model, noisy, steps=10, t_start=start, schedule="ddpm", model_kwargs={"y": sevens}, clip=(-1, 1)
            )
        )
    sheet(torch.stack(rows)[:, :, 0].numpy(), ["picture", *map(str, STRENGTHS)], title="from 1 to 7").save(path)
    return torch.stack(rows[1:])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
