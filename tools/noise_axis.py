"""Which time a Brownian path of noise should run in: how far n and 2n steps on the same paths are apart, by clock.

    python tools/noise_axis.py

The data are a mixture of Gaussians, whose x0 is known; the state is float64. Prints, for n in STEPS, the root mean
square and the median of the difference. The table in docs/solvers.md is of this program.
"""

from __future__ import annotations

import itertools
import math
import sys
import zlib
from collections.abc import Callable
from pathlib import Path as File

import numpy as np
import torch

sys.path.insert(0, str(File(__file__).resolve().parents[1]))
import fastdiff
from fastdiff.ops.brownian import Clock, Path, signal
from fastdiff.schedules import resolve

SAMPLES = 4096
MEANS, WEIGHTS = torch.tensor([-1.0, 0.2, 1.0]).double(), torch.tensor([0.5, 0.2, 0.3]).double()
STDS = (0.7, 0.1)
"""Of the mixture's parts: data that are nearly Gaussian, of standard deviation 1.1, and three peaks."""
CLOCKS: dict[str, Clock | None] = {
    "snr/(1 + snr)": signal,
    "snr": lambda a, b: math.exp(2.0 * b) - math.exp(2.0 * a),
    "lambda": lambda a, b: b - a,
    "log(1 + snr)": lambda a, b: math.log1p(math.exp(2.0 * b)) - math.log1p(math.exp(2.0 * a)),
    "sigma/alpha": lambda a, b: math.exp(-a) - math.exp(-b),
    "independent": None,
}
Options = dict[str, object]
RUNS: tuple[tuple[str, Options], ...] = (
    ("dpmpp2m_sde", {"schedule": "edm", "spacing": "karras"}),
    ("dpmpp2m_sde", {"schedule": "vp_linear", "spacing": "logsnr"}),
    ("ddim", {"schedule": "edm", "spacing": "karras", "eta": 1.0}),
)
STEPS = (4, 8, 16, 32, 64)


def network(schedule: str, std: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """E(x0 | x) of the mixture."""
    times = resolve(schedule)

    def x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        at = times.at(float(t[0]))
        variance = (at.alpha * std) ** 2 + at.sigma**2
        apart = x[..., None] - at.alpha * MEANS
        share = torch.softmax(WEIGHTS.log() - 0.5 * apart**2 / variance, -1)
        return (share * (MEANS + at.alpha * std**2 / variance * apart)).sum(-1)

    return x0


def sampled(
    method: str, options: Options, steps: int, clock: Clock | None, std: float, normals: dict[object, torch.Tensor]
) -> torch.Tensor:
    """(SAMPLES, 1) samples; `normals` are those of the path's nodes that were needed so far."""
    given = {"prediction": "x0", "dtype": torch.float64, "backend": "reference", **options}
    sampler = fastdiff.Sampler(method, steps, **given)  # type: ignore[arg-type]
    plan, schedule = sampler.plan, str(options["schedule"])
    path = None if clock is None else Path(clock)
    spans = {n: s.span(d) for s in plan.stages for d, n in enumerate(s.draws) if n >= 0}

    def normal(key: object) -> torch.Tensor:
        if key not in normals:
            rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
            normals[key] = torch.from_numpy(rng.standard_normal((SAMPLES, 1)))
        return normals[key]

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        if draw < 0:
            return normal("prior")
        if path is None:
            return normal((steps, draw))
        pairs = zip(*path.increment(*(resolve(schedule).at(t).lam for t in spans[draw])), strict=True)
        return sum((float(w) * normal(int(node)) for node, w in pairs), torch.zeros_like(like))

    return sampler(network(schedule, std), shape=(SAMPLES, 1), noise=noise)


def main() -> None:
    for std, (method, options) in itertools.product(STDS, RUNS):
        print(f"{method}, {options}, std {std}, steps {STEPS}")
        for name, clock in CLOCKS.items():
            normals: dict[object, torch.Tensor] = {}
            found = [sampled(method, options, n, clock, std, normals) for n in (*STEPS, 2 * STEPS[-1])]
            apart = [(a - b).abs() for a, b in itertools.pairwise(found)]
            rms = " ".join(f"{float(d.square().mean().sqrt()):.4f}" for d in apart)
            print(f"  {name:14} {rms}  median", *(f"{float(d.median()):.1e}" for d in apart), flush=True)


if __name__ == "__main__":
    main()
