"""Makes the tables and pictures of docs/fitting.md: ``python tools/fitting.py [mixture digits guided trajectories]``.

The mixture takes minutes; the digits use the plans that ship with the demo, made by ``python -m fastdiff.demo.fit``.
Each part writes its table between its two comments in docs/fitting.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
PER_CLASS, TEACHER = 200, 40
# Number of modes, deviation of a component, norm of the means, whether deviations differ.
MIXTURES = (
    (2, 0.05, 1.0, False),
    (8, 0.05, 4.0, False),
    (4, 0.1, 3.0, True),
    (4, 0.2, 2.0, True),
    (3, 0.3, 3.0, True),
    (8, 0.5, 1.0, False),
)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "fitting.md"
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

    @classmethod
    def of(cls, count: int, std: float, norm: float, varied: bool) -> Mixture:
        """`count` means of that norm, and components of that deviation, or of 0.5 to 1.5 times it."""
        made, draw = cls(), np.random.default_rng(0)
        means = draw.normal(size=(count, DIM))
        made.means = torch.from_numpy(norm * means / np.linalg.norm(means, axis=1, keepdims=True))
        made.stds = torch.from_numpy(std * (draw.uniform(0.5, 1.5, count) if varied else np.ones(count)))
        weights = torch.from_numpy(draw.uniform(0.5, 1.5, count))
        made.weights = weights / weights.sum()
        return made

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        p = self.schedule.at(float(t[0].detach()))
        variance = (p.alpha * self.stds) ** 2 + p.sigma**2
        squares = x.square().sum(1, keepdim=True) - 2 * p.alpha * x @ self.means.T
        squares = squares + p.alpha**2 * self.means.square().sum(1)
        part = (self.weights.log() - 0.5 * DIM * variance.log() - 0.5 * squares / variance).softmax(1) / variance
        return p.sigma * (part.sum(1, keepdim=True) * x - p.alpha * part @ self.means)


def record(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], page: Path = PAGE) -> None:
    """Put a table where the page has the two comments of that name, and print it."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    lines.insert(1, "|---" * len(header) + "|")
    print("\n".join(lines))
    text = page.read_text(encoding="utf-8")
    before, start, rest = text.partition(f"<!-- {name}:start -->\n")
    _, end, after = rest.partition(f"<!-- {name}:end -->")
    if not start or not end:
        raise ValueError(f"{page} has no comments {name}:start and {name}:end")
    page.write_text(f"{before}{start}{chr(10).join(lines)}\n{end}{after}", encoding="utf-8")


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
    rows = []
    for steps in (3, 4, 5, 6, 8, 10):
        table = fastdiff.tune(model, steps, shape=(1024, DIM), **run)
        scored = []
        for score in table[:30]:
            rms, median = figures(distances(fastdiff.sample(model, x, plan=score.plan, **run), truth))
            scored.append((rms, median))
            curve = curves.setdefault(score.method, {})
            curve[steps] = min(median, curve.get(steps, float("inf")))
        begun = time.perf_counter()
        plan = fastdiff.fit(model, steps, shape=(1024, DIM), **run)
        seconds = time.perf_counter() - begun
        rms, median = figures(distances(fastdiff.sample(model, x, plan=plan, **run), truth))
        finer = fastdiff.fit(model, steps, shape=(1024, DIM), polish=True, **run)
        polished = figures(distances(fastdiff.sample(model, x, plan=finer, **run), truth))
        curves["fitted"][steps] = median
        best = f"{min(r for r, _ in scored):.1e} / {min(m for _, m in scored):.1e}"
        own = f"{polished[0]:.1e} / {polished[1]:.1e}"
        rows.append([f"{steps}", best, f"{rms:.1e} / {median:.1e}", own, f"{seconds:.0f}"])
        print(rows[-1], flush=True)
    record("mixture", ["evaluations", "best of all settings", "fitted", "polished", "seconds of the fit"], rows)
    shown = sorted(curves, key=lambda name: min(curves[name].values()))[:7]
    plot.convergence(
        {name: (sorted(curves[name]), [curves[name][n] for n in sorted(curves[name])]) for name in shown},
        out / "fitting_mixture.png",
        ylabel="median distance to the ODE's solution",
        title="Gaussian mixture of dimension 16, best setting of each method",
    )


def mixtures(out: Path) -> None:
    """Other mixtures: by what the fit divides the best setting's RMS and median."""
    run: dict[str, Any] = {"dtype": torch.float64}
    x = fastdiff.randn((2048, DIM), seed=12345, prior=True, **run)
    rows = []
    for count, std, norm, varied in MIXTURES:
        model = Mixture.of(count, std, norm, varied)
        truth = fastdiff.sample(model, x, method="unipc", steps=640, spacing="logsnr", **run)
        cells = []
        for steps in (3, 5, 10):
            every = fastdiff.tune(model, steps, shape=(1024, DIM), **run)[:30]
            scored = [figures(distances(fastdiff.sample(model, x, plan=c.plan, **run), truth)) for c in every]
            plan = fastdiff.fit(model, steps, shape=(1024, DIM), **run)
            rms, median = figures(distances(fastdiff.sample(model, x, plan=plan, **run), truth))
            cells.append(f"{min(r for r, _ in scored) / rms:.1f} / {min(m for _, m in scored) / median:.0f}")
        spread = f"{0.5 * std:g} to {1.5 * std:g}" if varied else f"{std:g}"
        rows.append([f"{count} modes, deviation {spread}, means of norm {norm:g}", *cells])
        print(rows[-1], flush=True)
    record("mixtures", ["mixture", "3 evaluations: RMS / median", "5", "10"], rows)


def trajectories(out: Path) -> None:
    """Error on fresh starts against the number of trajectories that a plan was fitted to."""
    model = Mixture()
    run: dict[str, Any] = {"dtype": torch.float64}
    x = fastdiff.randn((2048, DIM), seed=12345, prior=True, **run)
    truth = fastdiff.sample(model, x, method="unipc", steps=640, spacing="logsnr", **run)
    rows = []
    for count in (32, 64, 128, 256, 512, 1024, 2048):
        cells = []
        for steps in (3, 5, 10):
            given: dict[str, Any] = {"shape": (count, DIM), "trajectories": count, "methods": ["dpm2"], **run}
            plan = fastdiff.fit(model, steps, **given)
            rms, median = figures(distances(fastdiff.sample(model, x, plan=plan, **run), truth))
            cells.append(f"{rms:.1e} / {median:.1e}")
        rows.append([f"{count}", *cells])
        print(rows[-1], flush=True)
    record("trajectories", ["trajectories", "3 evaluations", "5", "10"], rows)


class Quality(NamedTuple):
    """Of one plan: Frechet distances of the seeds, worst accuracy, mean median distance to the teacher."""

    frechet: list[float]
    accuracy: float
    distance: float

    @property
    def seeds(self) -> str:
        return ", ".join(f"{f:.2f}" for f in self.frechet)


def quality(plan: fastdiff.Plan, model: Any, truths: dict[int, Tensor], asked: Tensor) -> Quality:
    found = {seed: generate(model, asked, seed, plan=plan) for seed in truths}
    measured = [measure(x, asked) for x in found.values()]
    gaps = [float(distances(x, truths[seed]).median()) for seed, x in found.items()]
    return Quality([q.frechet for q in measured], min(q.accuracy for q in measured), float(np.mean(gaps)))


def settings(steps: int) -> dict[str, Any]:
    """The best settings on the digits, of those that `tune` lists."""
    quadratic = {"spacing": "time_quadratic", "t_end": T_END}
    return {
        "`dpm2`, time_quadratic": fastdiff.plan("dpm2", steps, lower_order_final=False, **quadratic),
        "`unipc` of order 2, time_quadratic": fastdiff.plan("unipc", steps, order=2, variant="bh2", **quadratic),
        "`dpm3`, logsnr": fastdiff.plan("dpm3", steps, spacing="logsnr", t_end=T_END),
    }


def digits(out: Path) -> None:
    """Quality of 2,000 digits at 3 to 10 evaluations, and a sheet of them: the best setting beside the fitted plan."""
    digits_table(torch.arange(10).repeat_interleave(PER_CLASS))
    sheet(out)


def digits_table(
    asked: Tensor, seeds: Sequence[int] = SEEDS, steps: Sequence[int] = (*STEPS, 10), page: Path = PAGE
) -> None:
    model = load_model()
    teacher = fastdiff.plan("unipc", TEACHER, spacing="logsnr", t_end=T_END)
    truths = {seed: generate(model, asked, seed, plan=teacher) for seed in seeds}
    rows = []
    for n in steps:
        found = {name: quality(plan, model, truths, asked) for name, plan in settings(n).items()}
        sharp = min(found, key=lambda name: float(np.mean(found[name].frechet)))
        near = min(found, key=lambda name: found[name].distance)
        best = f"{found[sharp].seeds} ({sharp}) / {found[near].distance:.3f} ({near})"
        own = "– | –"
        if n in STEPS:
            q = quality(load_plan(n), model, truths, asked)
            own = f"**{q.seeds}** / {q.distance:.3f} | {q.accuracy:.1%}"
        rows.append([f"{n}", best, own])
        print(rows[-1], flush=True)
    truth = [measure(x, asked) for x in truths.values()]
    rows.append([f"{TEACHER} (the teacher)", ", ".join(f"{q.frechet:.2f}" for q in truth), "– | –"])
    record("digits", ["evaluations", "best setting: Frechet / distance", "fitted", "accuracy, at least"], rows, page)


def sheet(out: Path) -> None:
    """The same noise at 3, 5 and 10 evaluations."""
    model, y = load_model(), torch.arange(10)
    x = fastdiff.randn((10, 1, 8, 8), seed=3, prior=True)
    rows, images = [], []
    shown = [("dpm3", 3, settings(3)["`dpm3`, logsnr"]), ("dpm2", 3, settings(3)["`dpm2`, time_quadratic"])]
    shown += [("fitted", 3, load_plan(3)), ("dpm2", 5, settings(5)["`dpm2`, time_quadratic"])]
    shown += [("fitted", 5, load_plan(5)), ("dpm3", 10, settings(10)["`dpm3`, logsnr"])]
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
    rows = []
    for steps in (3, 4, 5):
        plan = fastdiff.fit(
            model, steps, shape=(128, 1, 8, 8), t_end=T_END, guidance=3.0, conditions=conditions, progress=True
        )
        own = distances(fastdiff.sample(model, x, plan=plan, **given), truth).median()
        before = plan.origin["errors"]["before"]["median"]
        rows.append([f"{steps}", f"{before:.3f} ({plan.origin['start']})", f"{float(own):.3f}"])
        print(rows[-1], flush=True)
    record("guided", ["evaluations", "best setting", "fitted"], rows)


PARTS: dict[str, Callable[[Path], None]] = {
    "mixture": mixture,
    "mixtures": mixtures,
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
