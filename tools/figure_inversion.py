"""Makes docs/images/inversion.png: digits, the noise that they are encoded to in 100 steps, and what it decodes to."""

from __future__ import annotations

from pathlib import Path

import torch

import fastdiff
from fastdiff.demo import load_model, pictures
from fastdiff.demo.data import load_digits
from fastdiff.inversion import reconstruct


def main() -> None:
    model = load_model()
    images, labels = load_digits()
    # One image of each class that is not its first.
    chosen = torch.stack([(labels == digit).nonzero()[5, 0] for digit in range(10)])
    x, y = images[chosen], labels[chosen]
    rows, sheet = ["digits"], [x]
    for method, spacing in (("ddim", "quadratic"), ("dpm2", "logsnr")):
        found = reconstruct(fastdiff.Sampler(method, 100, spacing=spacing), model, x, model_kwargs={"y": y})
        mean, most = float(found.mean_error.mean()), float(found.max_error.max())
        print(f"{method}: mean error {mean:.2g}, largest {most:.2g} (of a range of 2)")
        rows += [f"{method}: x_T", "decoded"]
        sheet += [found.noise / 2, found.x]
    title = "Encoded and decoded in 100 steps each"
    picture = pictures.sheet(torch.stack(sheet)[:, :, 0].numpy(), rows, [str(int(d)) for d in y], title, scale=6)
    picture.save(Path(__file__).parents[1] / "docs" / "images" / "inversion.png", optimize=True)


if __name__ == "__main__":
    main()
