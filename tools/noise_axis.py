"""Which time a Brownian path of noise should run in: strong errors between n and 2n steps, for three clocks.

    python tools/noise_axis.py

The data are a mixture of Gaussians, whose x0 is known; the state is float64. For each clock the same paths are run with
n and with 2n steps, and the root mean square of the difference is printed, beside that with independent noise. The
table in docs/solvers.md is of this program.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch

import fastdiff
from fastdiff.ops.brownian import Clock, Path, signal
from fastdiff.schedules import resolve

SAMPLES = 4096
MEANS, WEIGHTS, STD = torch.tensor([-1.0, 0.2, 1.0]).double(), torch.tensor([0.5, 0.2, 0.3]).double(), 0.1
CLOCKS: dict[str, Clock | None] = {
    "snr/(1 + snr)": signal,
    "snr": lambda a, b: math.exp(2.0 * b) - math.exp(2.0 * a),
    "lambda": lambda a, b: b - a,
    "log(1 + snr)": lambda a, b: math.log1p(math.exp(2.0 * b)) - math.log1p(math.exp(2.0 * a)),
    "sigma/alpha": lambda a, b: math.exp(-a) - math.exp(-b),
    "independent": None,
}
RUNS = (
    ("dpmpp2m_sde", {"schedule": "edm", "spacing": "karras"}),
    ("dpmpp2m_sde", {"schedule": "vp_linear", "spacing": "logsnr"}),
    ("ddim", {"schedule": "edm", "spacing": "karras", "eta": 1.0}),
    ("dpmpp2m_sde", {"schedule": "edm", "spacing": "karras", "eta": 0.5}),
)
STEPS = (8, 16, 32, 64, 128)


def network(schedule: object) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """E(x0 | x) of the mixture."""
    times = resolve(schedule)

    def x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        at = times.at(times.time_of_model(float(t[0])) if hasattr(times, "time_of_model") else float(t[0]))
        variance = (at.alpha * STD) ** 2 + at.sigma**2
        apart = x[..., None] - at.alpha * MEANS
        share = torch.softmax(WEIGHTS.log() - 0.5 * apart**2 / variance, -1)
        return (share * (MEANS + at.alpha * STD**2 / variance * apart)).sum(-1)

    return x0


def sampled(method: str, options: dict[str, object], steps: int, clock: Clock | None, normals: dict) -> torch.Tensor:
    sampler = fastdiff.Sampler(method, steps, prediction="x0", dtype=torch.float64, backend="reference", **options)
    plan, schedule = sampler.plan, resolve(options["schedule"])
    path = None if clock is None else Path(clock)

    def normal(key: object) -> torch.Tensor:
        if key not in normals:
            rng = np.random.default_rng(abs(hash((str(clock), key))))
            normals[key] = torch.from_numpy(rng.standard_normal((SAMPLES, 1)))
        return normals[key]

    spans = {n: s.span(d) for s in plan.stages for d, n in enumerate(s.draws) if n >= 0}

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        if draw < 0:
            return normal("prior")
        if path is None:
            return normal((steps, draw))
        pairs = zip(*path.increment(*(schedule.at(t).lam for t in spans[draw])), strict=True)
        return sum((float(w) * normal(int(node)) for node, w in pairs), torch.zeros(like.shape).double())

    return sampler(network(options["schedule"]), shape=(SAMPLES, 1), noise=noise)


def main() -> None:
    for method, options in RUNS:
        print(method, options, "steps", STEPS)
        for name, clock in CLOCKS.items():
            normals: dict = {}
            found = [sampled(method, options, n, clock, normals) for n in (*STEPS, 2 * STEPS[-1])]
            errors = [float((a - b).square().mean().sqrt()) for a, b in itertools.pairwise(found)]
            middle = [float((a - b).abs().median()) for a, b in itertools.pairwise(found)]
            print(f"  {name:14}", *(f"{e:.4f}" for e in errors), " median ", *(f"{e:.2e}" for e in middle), flush=True)


if __name__ == "__main__":
    main()
