"""Trains the demo's network with a score SDE, and samples: ``python -m fastdiff.demo.train_sde --sde vp|subvp|ve``.

The continuous loss of Song et al. 2021 (arXiv 2011.13456, equation 7) on the same U-Net, data and loop as
``fastdiff.demo.train``; afterwards the matching sampler draws digits, whose quality is measured.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdiff import schedules
from fastdiff.demo import pictures
from fastdiff.demo.data import load_digits
from fastdiff.demo.quality import measure
from fastdiff.demo.run import generate
from fastdiff.demo.training import Loss, Trainer, command_line, drop_labels, parse, run, stratified, write
from fastdiff.demo.unet import UNet
from fastdiff.files import save_image
from fastdiff.losses import sde_loss
from fastdiff.schedules import NoiseSchedule

STEPS, BATCH = 3000, 64
PER_CLASS, QUALITY_PER_CLASS = 10, 200
DATA_STD = 0.85
"""Root mean square of the digits' pixels, which lie in [-1, 1]."""

SDES: dict[str, NoiseSchedule] = {
    "vp": schedules.vp_linear(time_scale=999.0),
    "subvp": schedules.subvp(time_scale=999.0),
    "ve": schedules.ve(sigma_min=0.01, sigma_max=10.0),
}
# Below these times the digits no longer change visibly (sigma = 0.03).
SAMPLERS: dict[str, dict[str, Any]] = {
    "vp": {"method": "dpm3", "steps": 20, "spacing": "logsnr", "t_end": 5e-3},
    "subvp": {"method": "dpmpp2m", "steps": 25, "spacing": "logsnr", "t_end": 0.03},
    "ve": {"method": "heun", "steps": 15, "spacing": "karras", "t_end": 0.03},
}


class SDENetwork(nn.Module):
    """The demo's U-Net as a noise predictor eps(x, t, y) for one of `SDES`, whose schedule it states.

    VP and sub-VP: the U-Net itself, which is given 999 t. VE: x reaches the size of sigma_max, so the U-Net gets x at
    unit variance and 999 times the SDE's own time, and adds to the best linear guess of the noise (the preconditioning
    of Karras et al. 2022, arXiv 2206.00364, Table 1, written for eps):

        eps = sigma x / (sigma² + s²) + s / sqrt(sigma² + s²) · U-Net(x / sqrt(sigma² + s²)),   s the data's deviation.
    """

    prediction = "eps"

    def __init__(self, sde: str, **options: Any) -> None:
        super().__init__()
        self.schedule = SDES[sde]
        self.unet = UNet(**options)
        self.sample_shape, self.null_class = self.unet.sample_shape, self.unet.null_class

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """eps for x (B, 1, 8, 8) at model times t (B,): 999 t for VP and sub-VP, sigma for VE; labels as in `UNet`."""
        if self.schedule.kind != "ve":
            return self.unet(x, t, y)
        low, high = self.schedule.t_min, self.schedule.t_max
        clock = 999.0 / math.log(high / low) * torch.log(t / low)
        sigma = t.to(x.dtype).reshape(-1, 1, 1, 1)
        size = torch.hypot(sigma, torch.full_like(sigma, DATA_STD))
        return sigma / size**2 * x + DATA_STD / size * self.unet(x / size, clock, y)


def load(path: Path | str, sde: str) -> SDENetwork:
    """The network that a run wrote, in evaluation mode.

    Raises:
        FileNotFoundError: no file there.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"got no weights at {path}; expected a file written by: python -m fastdiff.demo.train_sde --sde {sde}"
        )
    network = SDENetwork(sde)
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def objective(schedule: NoiseSchedule, likelihood_weighting: bool = False, eps: float = 1e-5) -> Loss:
    """`sde_loss` with stratified times, and labels dropped for classifier-free guidance."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        y = drop_labels(labels, int(model.null_class), generator)  # type: ignore[arg-type]
        t = eps + (1.0 - eps) * stratified(len(images), generator).double()
        if schedule.kind == "ve":
            t = (schedule.t_min * (schedule.t_max / schedule.t_min) ** t).clamp(max=schedule.t_max)
        return sde_loss(
            model,
            images,
            schedule,
            likelihood_weighting=likelihood_weighting,
            t=t,
            generator=generator,
            model_kwargs={"y": y},
        )

    return loss


def train(out: Path, sde: str, steps: int, seed: int, resume: bool, likelihood_weighting: bool = False) -> bool:
    """Trains and writes ``<sde>.safetensors``; False if it was interrupted before the end."""
    torch.manual_seed(seed)
    images, labels = load_digits()
    label = f"{sde}-likelihood" if likelihood_weighting else sde
    loss = objective(SDES[sde], likelihood_weighting)
    trainer = Trainer(SDENetwork(sde), images, labels, steps, seed, loss, BATCH, label)
    last = run(trainer, out / f"{sde}-checkpoint.safetensors", resume)
    if last is None:
        return False
    metadata = {"sde": label, "steps": str(steps), "seed": str(seed), "batch": str(BATCH), "loss": f"{last:.4f}"}
    write(out / f"{sde}.safetensors", trainer.average, metadata)
    return True


def sample(out: Path, sde: str, seed: int) -> None:
    """Samples from ``<sde>.safetensors``: writes ``train_<sde>.png`` and prints the quality of 2,000 digits."""
    network, options = load(out / f"{sde}.safetensors", sde), SAMPLERS[sde]
    few = torch.arange(10).repeat_interleave(PER_CLASS)
    images = generate(network, few, seed, **options)
    title = f"{SDES[sde].factory}: {options['method']}, {options['steps']} steps"
    sheet = pictures.digits(images.reshape(10, PER_CLASS, 8, 8).numpy(), title)
    save_image(sheet, out / f"train_{sde}.png", optimize=True)
    many = torch.arange(10).repeat_interleave(QUALITY_PER_CLASS)
    quality = measure(generate(network, many, seed + 1, **options), many)
    figures = {"sde": sde, **options, "frechet": round(quality.frechet, 3), "accuracy": quality.accuracy}
    print(json.dumps({**figures, "count": quality.count}))


def main(arguments: list[str] | None = None) -> int:
    parser = command_line("fastdiff.demo.train_sde", __doc__, STEPS)
    parser.add_argument("--sde", choices=sorted(SDES), required=True)
    parser.add_argument("--likelihood-weighting", action="store_true", help="weight the loss with g² instead of sigma²")
    options = parse(parser, arguments)
    if not train(options.out, options.sde, options.steps, options.seed, options.resume, options.likelihood_weighting):
        return 130
    sample(options.out, options.sde, options.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
