"""Writes tests/solvers/k_diffusion_noise.json: results of k-diffusion's samplers that draw noise, on one fixed problem.

python tools/record_k_diffusion.py PATH/k_diffusion/sampling.py   # of a clone of crowsonkb/k-diffusion

In float64, on the exact denoiser of a mixture, ten steps of Karras's sigmas (0.002 to 80, rho = 7) and 0. Noise is a
function of its number: call i draws cos(1 + i + 3·k) at element k; of samplers that ask for the noise of an inner node
and then of the whole step, the second is the sum of both parts with the shares of the squared signal-to-noise ratio.
The file may be loaded without k-diffusion's other requirements.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "tests" / "solvers" / "k_diffusion_noise.json"
Z = np.array([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]])
CASES = [
    ("euler_ancestral", "sample_euler_ancestral", {}),
    ("euler_ancestral", "sample_euler_ancestral", {"eta": 0.6, "s_noise": 1.01}),
    ("dpm_2_ancestral", "sample_dpm_2_ancestral", {}),
    ("dpm_2_ancestral", "sample_dpm_2_ancestral", {"eta": 0.6, "s_noise": 1.01}),
    ("dpmpp_2s_ancestral", "sample_dpmpp_2s_ancestral", {}),
    ("dpmpp_2s_ancestral", "sample_dpmpp_2s_ancestral", {"eta": 0.6, "s_noise": 1.01}),
    ("dpmpp_sde", "sample_dpmpp_sde", {}),
    ("dpmpp_sde", "sample_dpmpp_sde", {"eta": 0.6, "s_noise": 1.01, "r": 0.3}),
    ("dpmpp2m_sde", "sample_dpmpp_2m_sde", {"solver_type": "midpoint"}),
    ("dpmpp2m_sde", "sample_dpmpp_2m_sde", {"eta": 0.6, "solver_type": "heun"}),
    ("dpmpp3m_sde", "sample_dpmpp_3m_sde", {}),
    ("dpmpp3m_sde", "sample_dpmpp_3m_sde", {"eta": 0.6, "s_noise": 1.01}),
]


def loaded(path: Path) -> Any:
    """k_diffusion.sampling alone; of its package it needs one function."""
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = [str(path.parent)]
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Noise:
    """The noise of a call, by its number; parts of a step that hold each other are one path."""

    def __init__(self, sde: bool) -> None:
        self.sde, self.count, self.inner = sde, 0, ()  # type: ignore[var-annotated]

    def fresh(self) -> torch.Tensor:
        self.count += 1
        return torch.from_numpy(np.cos(float(self.count) + 3 * np.arange(Z.size)).reshape(Z.shape))

    def __call__(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        if not self.sde:
            return self.fresh()
        snr = [float(s) ** -2 for s in (start, end)]
        if self.inner:
            middle, first = self.inner
            share = (middle - snr[0]) / (snr[1] - snr[0])
            self.inner = ()
            return share**0.5 * first + (1.0 - share) ** 0.5 * self.fresh()
        self.inner = snr[1], self.fresh()
        return self.inner[1]


def main() -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from helpers.analytic import mixture

    sampling = loaded(Path(sys.argv[1]))
    dist = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
    nodes = np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), 10) ** 7
    sigmas = torch.tensor([*nodes, 0.0], dtype=torch.float64)

    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(dist.x0(x.numpy(), 1.0, float(sigma[0])))

    made = []
    for method, name, options in CASES:
        given = {**options, "noise_sampler": Noise(method == "dpmpp_sde"), "disable": True}
        x = getattr(sampling, name)(denoiser, 80.0 * torch.from_numpy(Z), sigmas, **given)
        made.append({"method": method, "sampler": name, "options": options, "result": x.tolist()})
    TARGET.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
