"""Try an installed fastdiff, away from the source tree: import, back ends, noise, one sample, `fastdiff doctor`.

python -I tools/smoke.py [--require cpu,cuda]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

import fastdiff

TREE = Path(__file__).resolve().parent.parent


def point_mass(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The exact noise prediction where all data is 0.5, under the schedule "ddpm"; x is (B, 1, 4, 4), t is (B,)."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas_cumprod = torch.cumprod(1 - betas, 0)
    at = t.to(torch.float64).reshape(-1).clamp(0, 999)
    low = at.floor().long().clamp(max=998)
    log_alpha = 0.5 * torch.lerp(alphas_cumprod[low].log(), alphas_cumprod[low + 1].log(), at - low)
    alpha = log_alpha.exp().reshape(-1, 1, 1, 1)
    return ((x - 0.5 * alpha) / (1 - alpha**2).sqrt()).to(x.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", default="", help="back ends that must be available, with commas: cpu,cuda")
    require = [name for name in parser.parse_args().require.split(",") if name]

    home = Path(fastdiff.__file__).resolve()
    if TREE in home.parents and "site-packages" not in home.parts:
        sys.exit(f"this is the source tree's fastdiff, not an installed one: {home}")
    print(f"fastdiff {fastdiff.__version__} at {home.parent}, torch {torch.__version__}")

    status = fastdiff.backends()
    for name, (available, reason) in status.items():
        print(f"  {name}: {'available' if available else f'unavailable, because {reason}'}")
    missing = [f"{name} ({status[name][1]})" for name in require if not status[name][0]]
    if missing:
        sys.exit(f"required back ends are unavailable: {', '.join(missing)}")

    noise = fastdiff.randn((2, 1, 4, 4), seed=1, draw=0)
    samples = {}
    for name in (name for name in ("reference", "cpu") if status[name][0]):
        samples[name] = fastdiff.sample(point_mass, shape=(2, 1, 4, 4), steps=10, method="dpm3", backend=name)
        # The sampler ends at index 0, where sigma is 0.01: what is left of the prior has that size and no more.
        error = (samples[name] - 0.5).abs().max().item()
        if not error < 0.06:
            sys.exit(f"dpm3 in 10 steps on {name}: expected 0.5 everywhere, got an error of {error}")
    for name, sample in samples.items():
        # A rounding of 2^-22 at the start, where |x| < 8, grows by alpha_0 / alpha_999 = 160; a few of them each step.
        if not (sample - samples["reference"]).abs().max().item() < 1e-3:
            sys.exit(f"{name} differs from reference")
    if not torch.isfinite(noise).all():
        sys.exit("fastdiff.randn gave numbers that are not finite")

    sys.stdout.flush()
    subprocess.run([sys.executable, "-I", "-m", "fastdiff", "doctor"], check=True)
    print("smoke test passed")


if __name__ == "__main__":
    main()
