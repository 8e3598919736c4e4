"""Fewer evaluations: the plans that were fitted to the digits network beside the best settings of the methods.

``python -m fastdiff.demo.fewer`` measures both on 2,000 digits of each of three seeds, and writes ``fewer.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.demo import WEIGHTS, load_model, pictures
from fastdiff.demo.fit import STEPS, T_END, load_plan
from fastdiff.demo.quality import measure
from fastdiff.files import write_whole

MEASURED = (3, 4, 5, 8, 10)
SEEDS = (1, 2, 3)
PER_CLASS, BATCH = 200, 500
FILE = WEIGHTS / "fewer.json"

Network = Callable[..., torch.Tensor]


def best_setting(steps: int) -> fastdiff.Plan:
    """Of those in docs/fitting.md's table, the one with the least Frechet distance on this network."""
    quadratic: dict[str, Any] = {"spacing": "time_quadratic", "t_end": T_END}
    if steps <= 3 or steps >= 10:
        return fastdiff.plan("dpm3", steps, spacing="logsnr", t_end=T_END)
    if steps == 4:
        return fastdiff.plan("dpm2", steps, lower_order_final=False, **quadratic)
    return fastdiff.plan("unipc", steps, order=2, variant="bh2", **quadratic)


def plans() -> list[tuple[str, int, fastdiff.Plan]]:
    """(name, evaluations, plan): at each number the best setting, and the fitted plan where there is one."""
    found = []
    for steps in MEASURED:
        best = best_setting(steps)
        found.append((best.method, steps, best))
        if steps in STEPS:
            found.append(("fitted", steps, load_plan(steps)))
    return found


def lines(path: Path | str = FILE) -> list[str]:
    """The figures of the file as a table: Frechet distances of the seeds, and the least accuracy."""
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    out = [f"evaluations  plan     Frechet distance, seeds {', '.join(map(str, found['seeds']))}   accuracy, at least"]
    for row in found["rows"]:
        distances = "  ".join(f"{f:.3f}" for f in row["frechet"])
        out.append(f"{row['steps']:>11}  {row['name']:<8} {distances:<28}{min(row['accuracy']):>18.1%}")
    return out


def sheet(model: Network, path: Path, seed: int, device: torch.device) -> None:
    """The same noise at 3 to 10 evaluations, without and with a fitted plan, to a picture."""
    y = torch.arange(10, device=device)
    x = fastdiff.randn((10, 1, 8, 8), seed=seed, prior=True, device=device)
    shown = plans()
    images = [fastdiff.sample(model, x, plan=plan, model_kwargs={"y": y})[:, 0] for _, _, plan in shown]
    names = [f"{name}, {steps} evaluations" for name, steps, _ in shown]
    columns = [f"asked: {digit}" for digit in range(10)]
    title = "The same noise and labels at few evaluations"
    picture = pictures.sheet(torch.stack(images).cpu().numpy(), names, columns, title, scale=6)
    picture.save(path, optimize=True)


def measured(per_class: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Frechet distance and accuracy of every plan, for each seed."""
    model, labels = load_model(), torch.arange(10).repeat_interleave(per_class)
    found = []
    for name, steps, plan in plans():
        own: dict[str, Any] = {"name": name, "steps": steps, "frechet": [], "accuracy": []}
        for seed in seeds:
            parts = [
                fastdiff.sample(
                    model,
                    shape=(len(y), 1, 8, 8),
                    plan=plan,
                    seed=seed,
                    first_sample=first,
                    model_kwargs={"y": y},
                )
                for first, y in zip(range(0, len(labels), BATCH), labels.split(BATCH), strict=True)
            ]
            quality = measure(torch.cat(parts), labels)
            own["frechet"].append(round(quality.frechet, 4))
            own["accuracy"].append(round(quality.accuracy, 4))
        print(own, flush=True)
        found.append(own)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastdiff.demo.fewer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help=f"digits of each class ({PER_CLASS})")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    found = {
        "made_by": f"python -m fastdiff.demo.fewer --per-class {options.per_class}",
        "seeds": options.seeds,
        "rows": measured(options.per_class, options.seeds),
    }
    write_whole(options.out, (json.dumps(found, indent=1) + "\n").encode())
    print("\n".join(lines(options.out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
