"""The demo: a small network trained on handwritten digits, its weights, and the figures of quality measured with it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from fastdiff.demo.classifier import Classifier
from fastdiff.demo.unet import UNet

__all__ = ["WEIGHTS", "Classifier", "UNet", "load_classifier", "load_model"]

WEIGHTS = Path(__file__).parent

Network = TypeVar("Network", bound=torch.nn.Module)


def load_model(
    folder: Path | str = WEIGHTS, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> UNet:
    """The trained U-Net, in evaluation mode: eps = model(x, t, y), see ``UNet.forward``.

    Args:
        folder: where ``unet.safetensors`` lies; by default the weights in the package.
        device: where the network will run.
        dtype: dtype of its weights, inputs and output.
    """
    return _load(UNet(), Path(folder) / "unet.safetensors").to(device, dtype)


def load_classifier(folder: Path | str = WEIGHTS, device: torch.device | str = "cpu") -> Classifier:
    """The trained classifier of the digits, float32, in evaluation mode; the arguments are those of ``load_model``."""
    return _load(Classifier(), Path(folder) / "classifier.safetensors").to(device)


def _load(network: Network, path: Path) -> Network:
    if not path.exists():
        raise FileNotFoundError(
            f"got no weights at {path}; expected a folder written by: python -m fastdiff.demo.train --out {path.parent}"
        )
    try:
        network.load_state_dict(load(path.read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} holds no weights of {type(network).__name__}, or is damaged: {first:.200}") from None
    return network.eval().requires_grad_(False)
