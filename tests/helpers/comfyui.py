"""ComfyUI's interface of models and samplers, as far as samplers and nodes see it (0.27, July 2026)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from helpers.analytic import mixture

CONDITIONAL = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
UNCONDITIONAL = mixture([0.6, 0.4], [[-0.5, 0.9], [1.1, -0.2]], [0.5, 0.35])
START = torch.tensor([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]], dtype=torch.float64)
ALPHA = {"eps": lambda sigma: 1.0, "flow": lambda sigma: 1.0 - sigma}
SHARES = (1e-4, 0.2, 0.5, 0.8)


def _karras(count: int, low: float, high: float) -> np.ndarray:
    return np.linspace(high ** (1 / 7), low ** (1 / 7), count) ** 7


def _shifted(count: int) -> np.ndarray:
    t = np.linspace(1.0, 0.0, count + 1)[:-1]
    return 3.0 * t / (1.0 + 2.0 * t)


LISTS = {
    "eps": {
        "to 0": torch.tensor([*_karras(7, 0.03, 14.6), 0.0], dtype=torch.float64),
        "part": torch.tensor(_karras(7, 0.03, 14.6)[1:6]),
        "short": torch.tensor([14.6, 1.1, 0.0], dtype=torch.float64),
    },
    "flow": {
        "to 0": torch.tensor([*_shifted(7), 0.0], dtype=torch.float64),
        "part": torch.tensor(_shifted(7)[1:6]),
        "short": torch.tensor([1.0, 0.75, 0.0], dtype=torch.float64),
    },
}


def noise(start: Any, end: Any) -> torch.Tensor:
    """Of the two levels alone."""
    return torch.from_numpy(np.cos(37.0 * float(start) + 101.0 * float(end) + 3.0 * np.arange(6)).reshape(3, 2))


class CONST:
    """Flow matching, x = (1 - sigma)·x0 + sigma·eps."""

    def __init__(self, shares: dict[str, float] | None = None) -> None:
        self.shift = 3.0
        t = torch.arange(1, 1001) / 1000
        self.sigmas = self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def percent_to_sigma(self, share: float) -> float:
        t = 1.0 - share
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def noise_scaling(self, sigma: Any, noise: Any, latent: Any, max_denoise: bool = False) -> Any:
        return sigma * noise + (1.0 - sigma) * latent

    def inverse_noise_scaling(self, sigma: Any, latent: Any) -> Any:
        return latent / (1.0 - sigma)


class EPS:
    """Stable Diffusion's sigmas."""

    def __init__(self, shares: dict[str, float] | None = None) -> None:
        kept = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        self.sigmas, self.shares = torch.from_numpy(np.sqrt((1.0 - kept) / kept)).float(), shares

    def percent_to_sigma(self, share: float) -> float:
        if self.shares is not None:
            return self.shares[str(share)]
        logs, at = self.sigmas.double().log().numpy(), (1.0 - share) * 999.0
        return math.exp(np.interp(at, np.arange(1000), logs))

    def noise_scaling(self, sigma: Any, noise: Any, latent: Any, max_denoise: bool = False) -> Any:
        return noise * (torch.sqrt(1.0 + sigma**2) if max_denoise else sigma) + latent

    def inverse_noise_scaling(self, sigma: Any, latent: Any) -> Any:
        return latent


class Patcher:
    """A MODEL."""

    load_device = torch.device("cpu")

    def __init__(self, model_sampling: Any) -> None:
        self.model_sampling = model_sampling

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return self.model_sampling


class _Inner:
    """What samplers reach through `inner_model`: the guider, and in it the model itself."""

    def __init__(self, model_sampling: Any) -> None:
        self.model_sampling, self.model_patcher = model_sampling, Patcher(model_sampling)

    @property
    def inner_model(self) -> _Inner:
        return self


class Model:
    """What a sampler is given in the model's place: it gives the guided x0, and tells hooks of both."""

    def __init__(self, model_sampling: Any, alpha: Any, cfg: float = 2.0) -> None:
        self.inner_model, self.alpha, self.cfg, self.calls = _Inner(model_sampling), alpha, cfg, 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, *, model_options: Any, **_: Any) -> torch.Tensor:
        self.calls += 1
        level, flat = float(sigma[0]), x.double().flatten(1).numpy()
        cond, uncond = (
            torch.from_numpy(m.x0(flat, self.alpha(level), level)).to(x.dtype).reshape(x.shape)
            for m in (CONDITIONAL, UNCONDITIONAL)
        )
        if self.cfg == 1.0 and not model_options.get("disable_cfg1_optimization", False):
            uncond = cond
        denoised = uncond + self.cfg * (cond - uncond)
        for hook in model_options.get("sampler_post_cfg_function", []):
            told = {
                "denoised": denoised,
                "uncond_denoised": uncond,
                "cond_denoised": cond,
                "uncond": [],
                "sigma": sigma,
            }
            denoised = hook({**told, "model_options": model_options, "input": x, "cond_scale": self.cfg})
        return denoised
