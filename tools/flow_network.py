"""Trains the demo's U-Net as a flow network on the digits: ``python tools/flow_network.py --out DIR``, for studies.

The straight path x = (1 − s)·x0 + s·eps with the target eps − x0 (Lipman et al. 2023, arXiv 2210.02747, eq. 23,
its ends exchanged), by the loop of ``fastdiff.demo.train``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdiff import schedules
from fastdiff.demo.data import load_digits
from fastdiff.demo.training import Trainer, command_line, drop_labels, parse, run, stratified, write
from fastdiff.demo.unet import UNet

STEPS, BATCH = 1500, 64


class FlowNetwork(nn.Module):
    """eps − x0 at x (B, 1, 8, 8); the U-Net is given 999 s."""

    prediction = "flow"
    schedule = schedules.flow(time_scale=999.0)

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet()
        self.sample_shape, self.null_class = self.unet.sample_shape, self.unet.null_class

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.unet(x, t, y)


def objective(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    y = drop_labels(labels, int(model.null_class), generator)  # type: ignore[arg-type]
    s = stratified(len(images), generator)
    eps = torch.randn(images.shape, generator=generator)
    own = s.reshape(-1, 1, 1, 1)
    found = model((1.0 - own) * images + own * eps, 999.0 * s, y)
    return (found - (eps - images)).square().mean()


def load(path: Path) -> FlowNetwork:
    """The network of a file that this script wrote, in evaluation mode."""
    network = FlowNetwork()
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def main() -> None:
    options = parse(command_line("tools.flow_network", __doc__, STEPS), None)
    torch.manual_seed(options.seed)
    images, labels = load_digits()
    trainer = Trainer(FlowNetwork(), images, labels, options.steps, options.seed, objective, BATCH, "flow")
    if run(trainer, options.out / "flow-checkpoint.safetensors", options.resume) is not None:
        write(options.out / "flow.safetensors", trainer.average, {"steps": str(options.steps)})


if __name__ == "__main__":
    main()
