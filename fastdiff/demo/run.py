"""``fastdiff demo``: samples handwritten digits with a trained network, and prints how fast and how good they are."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.demo import WEIGHTS, load_model, pictures
from fastdiff.demo.eager import dpm3
from fastdiff.demo.fewer import lines, sheet
from fastdiff.demo.quality import Quality, measure
from fastdiff.files import save_image
from fastdiff.run.arguments import resolve_device
from fastdiff.solvers.method_names import MethodName

METHOD: MethodName = "dpm3"
STEPS = 10
# Below index 8 (sigma = 0.04) the digits no longer change visibly: the ten steps are spent above it.
GRID: dict[str, Any] = {"schedule": "ddpm", "spacing": "logsnr", "t_end": 8.0}
PER_CLASS = 10
QUALITY_PER_CLASS = 200
REPEATS = 7

Network = Callable[..., Tensor]


class Stopwatch:
    """A network that counts its calls and the seconds spent in them (synchronous devices only)."""

    def __init__(self, model: Network) -> None:
        self.model, self.seconds, self.calls = model, 0.0, 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        start = time.perf_counter()
        out = self.model(x, t, y)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return out


def ours(model: Network, x: Tensor, labels: Tensor) -> Tensor:
    return fastdiff.sample(model, x, method=METHOD, steps=STEPS, model_kwargs={"y": labels}, **GRID)


def eager(model: Network, x: Tensor, labels: Tensor) -> Tensor:
    times = np.array(fastdiff.plan(METHOD, STEPS, **GRID).times)
    return dpm3(lambda u, t: model(u, t, labels), x, STEPS, times)


def timings(
    model: Network, x: Tensor, labels: Tensor, loops: dict[str, Callable[[Network, Tensor, Tensor], Tensor]]
) -> dict[str, tuple[float, float]]:
    """Median seconds of each loop, whole and without the network's own; the loops take turns.

    The network's calls are measured one by one on the CPU only; elsewhere the second figure is NaN.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for repeat in range(REPEATS + 1):
        for name, loop in loops.items():
            network = Stopwatch(model)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            start = time.perf_counter()
            loop(model if x.is_cuda else network, x, labels)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            seconds = time.perf_counter() - start
            if repeat:
                found[name].append((seconds, float("nan") if x.is_cuda else seconds - network.seconds))
    return {name: (median(a for a, _ in rows), median(b for _, b in rows)) for name, rows in found.items()}


def generate(
    model: Network, labels: Tensor, seed: int, progress: bool = False, batch: int = 500, **options: Any
) -> Tensor:
    """One digit for each label, sampled in batches: (B, 1, 8, 8) for labels (B,); ``options`` go to fastdiff.sample."""
    parts = [
        fastdiff.sample(
            model,
            shape=(len(part), 1, 8, 8),
            seed=seed,
            first_sample=start,
            model_kwargs={"y": part},
            device=labels.device,
            progress=progress,
            **options,
        )
        for start, part in zip(range(0, len(labels), batch), labels.split(batch), strict=True)
    ]
    return torch.cat(parts)


def report(times: dict[str, tuple[float, float]], difference: float, count: int, device: torch.device) -> None:
    """Prints the seconds of both loops, and the speed of one against the other."""
    (fast, fast_own), (slow, slow_own) = times["fastdiff"], times["eager"]
    print(f"{METHOD}, {STEPS} steps, NFE {STEPS}: {count} digits on {device}, median of {REPEATS} runs in turns")
    print("                       fastdiff      eager    speed")
    print(f"whole loop           {1e3 * fast:7.1f} ms {1e3 * slow:7.1f} ms {slow / fast:7.2f}x")
    if not math.isnan(fast_own):
        print(f"without the network  {1e3 * fast_own:7.2f} ms {1e3 * slow_own:7.2f} ms {slow_own / fast_own:7.2f}x")
    print(f"largest difference between the two results: {difference:.1e}")


def main(
    out_dir: Path | str = "fastdiff-demo",
    seed: int = 0,
    device: torch.device | str | None = None,
    weights: Path | str = WEIGHTS,
) -> Quality:
    """Writes ``digits.png``, ``trajectory.png`` and, with the shipped weights, ``fewer.png`` (few evaluations, without
    and with a fitted plan) to ``out_dir``, and prints times and quality, which is returned.

    Args:
        out_dir: folder for the pictures, made if missing.
        seed: seed of the noise.
        device: where to sample; default: the GPU if there is one, else the CPU.
        weights: folder with the weights, as written by ``python -m fastdiff.demo.train``.
    """
    out = Path(out_dir)
    device = resolve_device(device or ("cuda" if torch.cuda.is_available() else "cpu"), None, None)
    try:
        torch.zeros(1, device=device).cpu()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(f"device={str(device)!r}: torch cannot compute there ({reason}); use device='cpu'") from None
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(weights, device)
    labels = torch.arange(10, device=device).repeat_interleave(PER_CLASS)
    noise = fastdiff.randn((len(labels), 1, 8, 8), seed=seed, device=device)

    images, path = fastdiff.sample(
        model, noise, method=METHOD, steps=STEPS, model_kwargs={"y": labels}, return_trajectory=True, **GRID
    )
    title = f"{METHOD}, {STEPS} steps"
    save_image(pictures.digits(images.reshape(10, PER_CLASS, 8, 8).cpu().numpy(), title), out / "digits.png")
    columns = torch.stack([state[::PER_CLASS, 0] for state in path.x], dim=1)
    save_image(pictures.trajectory(columns.cpu().numpy(), path.times.tolist(), title), out / "trajectory.png")

    difference = (images - eager(model, noise, labels)).abs().max().item()
    times = timings(model, noise, labels, {"fastdiff": ours, "eager": eager})
    count = 10 * QUALITY_PER_CLASS
    many = torch.arange(10, device=device).repeat_interleave(QUALITY_PER_CLASS)
    quality = measure(generate(model, many, seed + 1, method=METHOD, steps=STEPS, **GRID), many, weights)
    report(times, difference, len(labels), device)
    print(f"\nquality of {count} digits   Frechet distance   accuracy")
    print(f"{METHOD}, {STEPS:>4} steps      {quality.frechet:16.3f}   {quality.accuracy:8.1%}")
    stored = Path(weights) / "ddpm1000.json"
    if stored.exists():
        ddpm = json.loads(stored.read_text(encoding="utf-8"))
        print(f"ddpm, 1000 steps      {ddpm['frechet']:16.3f}   {ddpm['accuracy']:8.1%}   ({ddpm['made_by']})")
    else:
        print(f"ddpm, 1000 steps      not measured yet: python -m fastdiff.demo.reference --weights {weights}")
    if Path(weights) == WEIGHTS:
        # Fitted plans belong to the network that they were fitted to.
        print("\nfew evaluations, 2,000 digits of each seed (measured by python -m fastdiff.demo.fewer)")
        print("\n".join(lines()))
        sheet(model, out / "fewer.png", seed, device)
    print("(with 2,000 digits the distance varies by 15 to 20% from seed to seed)")
    print(f"\n{out / 'digits.png'}\n{out / 'trajectory.png'}")
    if Path(weights) == WEIGHTS:
        print(out / "fewer.png")
    return quality
