"""Makes the tables and pictures of docs/fitting.md: ``python tools/fitting.py [mixture digits guided trajectories]``.

The mixture takes minutes; the digits use the plans that ship with the demo, made by ``python -m fastdiff.demo.fit``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff import plot
from fastdiff.demo import load_model, pictures
from fastdiff.demo.fit import STEPS, T_END, labels, load_plan
from fastdiff.demo.quality import measure
from fastdiff.demo.run import generate

SEEDS = (1, 2, 3)
DIM, COMPONENTS = 16, 4


class Mixture:
    """The exact network of a Gaussian mixture of dimension 16 on the linear DDPM schedule, float64."""

    sample_shape = (DIM,)
    dtype = torch.float64

    def __init__(self) -> None:
        draw = np.random.default_rng(1)
        self.schedule = fastdiff.schedules.ddpm()
        self.means = torch.from_numpy(0.5 * draw.normal(size=(COMPONENTS, DIM)))
        self.stds = torch.from_numpy(draw.uniform(0.2, 0.5, size=COMPONENTS))
        weights = torch.from_numpy(draw.uniform(0.5, 1.5, size=COMPONENTS))
        self.weights = weights / weights.sum()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        p = self.schedule.at(float(t[0].detach()))
        variance = (p.alpha * self.stds) ** 2 + p.sigma**2
        squares = x.square().sum(1, keepdim=True) - 2 * p.alpha * x @ self.means.T
        squares = squares + p.alpha**2 * self.means.square().sum(1)
        part = (self.weights.log() - 0.5 * DIM * variance.log() - 0.5 * squares / variance).softmax(1) / variance
        return p.sigma * (part.sum(1, keepdim=True) * x - p.alpha * part @ self.means)


def distances(x: Tensor, truth: Tensor) -> Tensor:
    return (x - truth).flatten(1).double().square().mean(1).sqrt()


def figures(values: Tensor) -> tuple[float, float]:
    """RMS and median."""
    return float(values.square().mean().sqrt()), float(values.median())


def mixture(out: Path) -> None:
    """RMS and median distance to the converged ODE on 2,048 fresh starts; a picture against every method."""
    model = Mixture()
    run: dict[str, Any] = {"dtype": torch.float64}
    x = fastdiff.randn((2048, DIM), seed=12345, prior=True, **run)
    truth = fastdiff.sample(model, x, method="unipc", steps=640, spacing="logsnr", **run)
    curves: dict[str, dict[int, float]] = {"fitted": {}}
    print("| evaluations | best of all settings, RMS / median | fitted | polished | seconds |\n|---|---|---|---|---|")
    for steps in (3, 4, 5, 6, 8, 10):
        table = fastdiff.tune(model, steps, shape=(1024, DIM), **run)
        scored = []
        for score in table[:30]:
            rms, median = figures(distances(fastdiff.sample(model, x, plan=score.plan, **run), truth))
            scored.append((rms, median))
            own = curves.setdefault(score.method, {})
            own[steps] = min(median, own.get(steps, float("inf")))
        begun = time.perf_counter()
        plan = fastdiff.fit(model, steps, shape=(1024, DIM), **run)
        seconds = time.perf_counter() - begun
        rms, median = figures(distances(fastdiff.sample(model, x, plan=plan, **run), truth))
        finer = fastdiff.fit(model, steps, shape=(1024, DIM), polish=True, **run)
        polished = figures(distances(fastdiff.sample(model, x, plan=finer, **run), truth))
        curves["fitted"][steps] = median
        print(
            f"| {steps} | {min(r for r, _ in scored):.1e} / {min(m for _, m in scored):.1e} | {rms:.1e} / {median:.1e} "
            f"| {polished[0]:.1e} / {polished[1]:.1e} | {seconds:.0f} |",
            flush=True,
        )
    best = sorted(curves, key=lambda name: min(curves[name].values()))[:7]
    plot.convergence(
        {name: (sorted(curves[name]), [curves[name][n] for n in sorted(curves[name])]) for name in best},
        out / "fitting_mixture.png",
        ylabel="median distance to the ODE's solution",
        title="Gaussian mixture of dimension 16, best setting of each method",
    )


def trajectories(out: Path) -> None:
    """Error on fresh starts against the number of trajectories that a plan was fitted to."""
    model = Mixture()
    run: dict[str, Any] = {"dtype": torch.float64}
    x = fastdiff.randn((2048, DIM), seed=12345, prior=True, **run)
    truth = fastdiff.sample(model, x, method="unipc", steps=640, spacing="logsnr", **run)
    print("| trajectories | 3 evaluations | 5 | 10 |\n|---|---|---|---|")
    for count in (32, 64, 128, 256, 512, 1024, 2048):
        cells = []
        for steps in (3, 5, 10):
            given: dict[str, Any] = {"shape": (count, DIM), "trajectories": count, "methods": ["dpm2"], **run}
            plan = fastdiff.fit(model, steps, **given)
            rms, median = figures(distances(fastdiff.sample(model, x, plan=plan, **run), truth))
            cells.append(f"{rms:.1e} / {median:.1e}")
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


def rows_of(plans: Sequence[tuple[str, int, Any]], model: Any, truths: dict[int, Tensor], asked: Tensor) -> None:
    print("| plan | evaluations | Frechet distance, three seeds | accuracy | median distance to the teacher |")
    print("|---|---|---|---|---|")
    for name, nfe, plan in plans:
        found = {seed: generate(model, asked, seed, plan=plan) for seed in SEEDS}
        quality = [measure(x, asked) for x in found.values()]
        gaps = [float(distances(x, truths[seed]).median()) for seed, x in found.items()]
        frechet = ", ".join(f"{q.frechet:.2f}" for q in quality)
        accuracy = min(q.accuracy for q in quality)
        print(f"| {name} | {nfe} | {frechet} | {accuracy:.1%} | {np.mean(gaps):.3f} |", flush=True)


def settings(steps: int) -> dict[str, Any]:
    """The best settings on the digits, of those that `tune` lists."""
    quadratic = {"spacing": "time_quadratic", "t_end": T_END}
    return {
        "dpm2, time_quadratic": fastdiff.plan("dpm2", steps, lower_order_final=False, **quadratic),
        "unipc of order 2, time_quadratic": fastdiff.plan("unipc", steps, order=2, variant="bh2", **quadratic),
        "dpm3, logsnr": fastdiff.plan("dpm3", steps, spacing="logsnr", t_end=T_END),
    }


def digits(out: Path) -> None:
    """Quality of 2,000 digits at 3 to 10 evaluations, and a sheet of them: the best setting beside the fitted plan."""
    model = load_model()
    asked = torch.arange(10).repeat_interleave(200)
    truth_plan = fastdiff.plan("unipc", 60, spacing="logsnr", t_end=T_END)
    truths = {seed: generate(model, asked, seed, plan=truth_plan) for seed in SEEDS}
    plans = [("fitted", n, load_plan(n)) for n in STEPS]
    plans += [(name, n, plan) for n in (*STEPS, 10) for name, plan in settings(n).items()]
    rows_of([*plans, ("teacher", 60, truth_plan)], model, truths, asked)
    sheet(out)


def sheet(out: Path) -> None:
    """The same noise at 3, 5 and 10 evaluations."""
    model, y = load_model(), torch.arange(10)
    x = fastdiff.randn((10, 1, 8, 8), seed=3, prior=True)
    rows, images = [], []
    shown = [("dpm3", 3, settings(3)["dpm3, logsnr"]), ("dpm2", 3, settings(3)["dpm2, time_quadratic"])]
    shown += [("fitted", 3, load_plan(3)), ("dpm2", 5, settings(5)["dpm2, time_quadratic"])]
    shown += [("fitted", 5, load_plan(5)), ("dpm3", 10, settings(10)["dpm3, logsnr"])]
    shown += [("teacher", 60, fastdiff.plan("unipc", 60, spacing="logsnr", t_end=T_END))]
    for name, nfe, plan in shown:
        rows.append(f"{name}, {nfe} evaluations")
        images.append(fastdiff.sample(model, x, plan=plan, model_kwargs={"y": y})[:, 0])
    title = "The same noise and labels: settings of methods beside fitted plans"
    columns = [f"asked: {digit}" for digit in range(10)]
    pictures.sheet(torch.stack(images).numpy(), rows, columns, title, scale=7).save(
        out / "fitting_digits.png", optimize=True
    )


def guided(out: Path) -> None:
    """The digits with guidance 3: median distance to the teacher of 1,000 fresh digits."""
    model = load_model()

    def conditions(first: int, count: int) -> dict[str, Any]:
        y = labels(first, count)["model_kwargs"]["y"]
        return {"cond": {"y": y}, "uncond": {"y": torch.full_like(y, model.null_class)}}

    given = {"guidance": 3.0, **conditions(0, 1000)}
    x = fastdiff.randn((1000, 1, 8, 8), seed=7, prior=True)
    truth = fastdiff.sample(model, x, method="unipc", steps=60, spacing="logsnr", t_end=T_END, **given)
    print("| evaluations | best setting | fitted |\n|---|---|---|")
    for steps in (3, 4, 5):
        plan = fastdiff.fit(
            model, steps, shape=(128, 1, 8, 8), t_end=T_END, guidance=3.0, conditions=conditions, progress=True
        )
        own = distances(fastdiff.sample(model, x, plan=plan, **given), truth).median()
        before = plan.origin["errors"]["before"]["median"]
        print(f"| {steps} | {before:.3f} ({plan.origin['start']}) | {float(own):.3f} |", flush=True)


PARTS: dict[str, Callable[[Path], None]] = {
    "mixture": mixture,
    "digits": digits,
    "sheet": sheet,
    "guided": guided,
    "trajectories": trajectories,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        PARTS[name](options.out)


if __name__ == "__main__":
    main()
