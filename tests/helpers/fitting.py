"""Small fits for tests: a mixture in three dimensions whose network is known, in float64."""

from __future__ import annotations

from typing import Any

import torch

from fastdiff.schedules import NoiseSchedule, resolve
from helpers.models import MIXTURE

SMALL: dict[str, Any] = {
    "shape": (48, 3),
    "trajectories": 48,
    "validation": 48,
    "teacher": 64,
    "methods": ["dpm2"],
    "budget": 60,
    "dtype": torch.float64,
}


class Torch(torch.nn.Module):
    """The exact network of `MIXTURE` in torch, differentiable in x and in the time.

    Attributes:
        rows: samples evaluated so far.
        stop: raise KeyboardInterrupt after so many calls, or never.
    """

    dtype = torch.float64

    def __init__(self, schedule: str | NoiseSchedule = "ddpm", prediction: str = "eps") -> None:
        super().__init__()
        self.noise, self.kind = resolve(schedule), prediction
        self.means = torch.from_numpy(MIXTURE.means)
        self.stds, self.weights = torch.from_numpy(MIXTURE.stds), torch.from_numpy(MIXTURE.weights)
        self.rows, self.calls, self.stop = 0, 0, -1
        self.eval()

    def levels(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma, with a slope in t from central differences."""
        at, width = float(t.detach()), 1e-4 * self.noise.t_max
        low, high = max(at - width, self.noise.t_clean), min(at + width, self.noise.t_max)
        found = []
        for f in (self.noise.alpha, self.noise.sigma):
            found.append(f(at) + (f(high) - f(low)) / (high - low) * (t - t.detach()))
        return found[0], found[1]

    def forward(self, x: torch.Tensor, t: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        self.rows += len(x)
        if self.calls == self.stop:
            raise KeyboardInterrupt
        alpha, sigma = self.levels(t[0])
        wide = x.double() if shift is None else x.double() - alpha * shift.double()[:, None]
        variance = (alpha * self.stds) ** 2 + sigma**2
        offset = wide[:, None] - alpha * self.means
        log_p = self.weights.log() - 1.5 * variance.log() - 0.5 * offset.square().sum(-1) / variance
        p = log_p.softmax(1)
        eps = sigma * torch.einsum("nk,nkd->nd", p / variance, offset)
        # Without a division by alpha, which is 0 where flows start.
        x0 = p @ self.means + torch.einsum("nk,nkd->nd", p * alpha * self.stds**2 / variance, offset)
        made = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
        return made[self.kind].to(x.dtype)
