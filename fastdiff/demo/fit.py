"""Fits the demo's plans to the digits network: ``python -m fastdiff.demo.fit``, a minute or more each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.demo import WEIGHTS, load_model

PLANS = WEIGHTS / "plans"
STEPS = (3, 4, 5, 6, 8)
# Below index 8 (sigma = 0.04) the digits no longer change visibly.
T_END = 8.0
BATCH = 128


def labels(first: int, count: int) -> dict[str, Any]:
    """Conditions of the trajectories: every digit in turn."""
    return {"model_kwargs": {"y": torch.arange(first, first + count) % 10}}


def load_plan(steps: int, folder: Path | str = PLANS) -> fastdiff.Plan:
    """The plan of `steps` evaluations that was fitted to the digits network, its labels given, without guidance."""
    return fastdiff.Plan.load(Path(folder) / f"digits-{steps}.json")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastdiff.demo.fit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with the weights")
    parser.add_argument("--out", type=Path, default=PLANS, help="folder for the plans")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_model(options.weights)
    for steps in options.steps:
        plan = fastdiff.fit(
            model,
            steps,
            shape=(BATCH, *model.sample_shape),
            schedule="ddpm",
            t_end=T_END,
            conditions=labels,
            seed=options.seed,
            progress=True,
        )
        path = options.out / f"digits-{steps}.json"
        plan.save(path)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
