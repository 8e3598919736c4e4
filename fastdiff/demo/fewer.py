"""Fewer evaluations: the plans that were fitted to the digits network beside the best settings of the methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import fastdiff
from fastdiff.demo import pictures
from fastdiff.demo.fit import STEPS, T_END, load_plan
from fastdiff.demo.quality import measure

MEASURED = (3, 5)

Network = Callable[..., torch.Tensor]
Generate = Callable[[fastdiff.Plan], torch.Tensor]


def best_setting(steps: int) -> fastdiff.Plan:
    """Of those that `fastdiff.tune` lists on this network, the one of docs/fitting.md's table."""
    return fastdiff.plan("dpm2", steps, spacing="time_quadratic", t_end=T_END, lower_order_final=False)


def rows(generate: Generate, labels: torch.Tensor) -> list[tuple[str, int, float, float]]:
    """(name, evaluations, Frechet distance, accuracy) of the digits that `generate` makes with a plan."""
    found = []
    for steps in MEASURED:
        for name, plan in (("dpm2, best grid", best_setting(steps)), ("fitted", load_plan(steps))):
            quality = measure(generate(plan), labels)
            found.append((name, steps, quality.frechet, quality.accuracy))
    return found


def sheet(model: Network, path: Path, seed: int, device: torch.device) -> None:
    """The same noise at 3 to 8 evaluations, without and with a fitted plan, to a picture."""
    y = torch.arange(10, device=device)
    x = fastdiff.randn((10, 1, 8, 8), seed=seed, prior=True, device=device)
    shown: list[tuple[str, fastdiff.Plan]] = []
    for steps in STEPS:
        shown += [(f"dpm2, {steps} evaluations", best_setting(steps)), (f"fitted, {steps}", load_plan(steps))]
    shown.append(("dpm3, 10", fastdiff.plan("dpm3", 10, spacing="logsnr", t_end=T_END)))
    images = [fastdiff.sample(model, x, plan=plan, model_kwargs={"y": y})[:, 0] for _, plan in shown]
    columns = [f"asked: {digit}" for digit in range(10)]
    title = "The same noise and labels at few evaluations"
    picture = pictures.sheet(torch.stack(images).cpu().numpy(), [name for name, _ in shown], columns, title, scale=6)
    picture.save(path, optimize=True)
