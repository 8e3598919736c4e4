"""How far `fastdiff.sample` with no method named is from the best setting: ``python tools/defaults.py --networks DIR``.

Cases: the exact network of a Gaussian mixture of dimension 16 on four schedules, the digits network that ships with the
package, and small networks of the demo's kind in DIR: ``vp``, ``subvp`` and ``ve.safetensors`` of
``python -m fastdiff.demo.train_sde``, ``flow.safetensors`` of ``python tools/flow_network.py``. For 5 to 10 steps, from
t_max to t_min, the median distance of settings to the converged ODE as multiples of the best of all that `tune` lists.
Writes benchmarks/results/defaults.json and the table of docs/solvers.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fitting import record
from flow_network import load as load_flow
from torch import Tensor

import fastdiff
from fastdiff.demo import load_model
from fastdiff.demo.train_sde import load as load_sde
from fastdiff.fitting.candidates import candidates
from fastdiff.fitting.teacher import teacher_times
from fastdiff.schedules import NoiseSchedule

DIM, COMPONENTS = 16, 4
STEPS = (5, 6, 7, 8, 9, 10)
FIRST_LOOK, FINALISTS, TEACHER = 8, 12, 160
"""Starts on which all settings are scored, settings that are scored on all starts, and steps of the truth."""
SAMPLES = {"mixture": 256, "network": 64}
METHODS = (None, "dpm3", "dpm2", "dpmpp2m", "unipc")
ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "defaults.json", ROOT / "docs" / "solvers.md"


class Mixture:
    """The exact network of a Gaussian mixture, float64, on any schedule."""

    dtype = torch.float64
    sample_shape = (DIM,)

    def __init__(self, schedule: str) -> None:
        draw = np.random.default_rng(1)
        self.schedule: NoiseSchedule = fastdiff.schedules.resolve(schedule)
        self.prediction = "flow" if schedule == "flow" else "eps"
        self.means = torch.from_numpy(0.5 * draw.normal(size=(COMPONENTS, DIM)))
        self.stds = torch.from_numpy(draw.uniform(0.2, 0.5, size=COMPONENTS))
        weights = torch.from_numpy(draw.uniform(0.5, 1.5, size=COMPONENTS))
        self.weights = weights / weights.sum()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        p = self.schedule.at(float(t[0]))
        variance = (p.alpha * self.stds) ** 2 + p.sigma**2
        squares = x.square().sum(1, keepdim=True) - 2 * p.alpha * x @ self.means.T
        squares = squares + p.alpha**2 * self.means.square().sum(1)
        part = (self.weights.log() - 0.5 * DIM * variance.log() - 0.5 * squares / variance).softmax(1)
        eps = p.sigma * ((part / variance).sum(1, keepdim=True) * x - p.alpha * (part / variance) @ self.means)
        if self.prediction == "eps":
            return eps
        gain = part * p.alpha * self.stds**2 / variance
        x0 = part @ self.means + gain.sum(1, keepdim=True) * x - p.alpha * gain @ self.means
        return eps - x0


def cases(folder: Path | None) -> dict[str, Callable[[], Any]]:
    """Networks by name, with a schedule and a prediction each."""
    found: dict[str, Callable[[], Any]] = {}
    for title, name in (("VP (ddpm)", "ddpm"), ("sub-VP", "subvp"), ("VE", "ve"), ("flow", "flow")):
        found[f"mixture, {title}"] = lambda name=name: Mixture(name)
    found["digits, VP (ddpm)"] = load_model
    if folder is not None:
        for title, name in (("VP", "vp"), ("sub-VP", "subvp"), ("VE", "ve")):
            found[f"digits, {title}"] = lambda name=name: load_sde(folder / f"{name}.safetensors", name)
        found["digits, flow"] = lambda: load_flow(folder / "flow.safetensors")
    return found


def study(title: str, model: Any) -> dict[str, Any]:
    """Of one network: for each number of steps the best setting, its error, and the errors of the defaults."""
    exact = title.startswith("mixture")
    count, dtype = SAMPLES["mixture" if exact else "network"], torch.float64 if exact else torch.float32
    schedule = fastdiff.schedules.resolve(model.schedule)
    x = fastdiff.randn((count, *model.sample_shape), seed=5, prior=True, dtype=dtype) * schedule.prior_std()
    y = torch.arange(count) % 10

    def error(plan: fastdiff.Plan, rows: int = count) -> float:
        run: dict[str, Any] = {} if exact else {"model_kwargs": {"y": y[:rows]}}
        found = fastdiff.sample(model, x[:rows], plan=plan, dtype=dtype, prediction=model.prediction, **run)
        return float((found - truth[:rows]).flatten(1).square().mean(1).sqrt().median())

    times = teacher_times(schedule, schedule.t_max, schedule.t_min, TEACHER)
    truth = torch.zeros_like(x)
    truth_plan = fastdiff.plan("unipc", schedule=schedule, spacing=times)
    run: dict[str, Any] = {} if exact else {"model_kwargs": {"y": y}}
    truth = fastdiff.sample(model, x, plan=truth_plan, dtype=dtype, prediction=model.prediction, **run)
    found: dict[str, Any] = {"schedule": schedule.factory, "starts": count, "best": [], "setting": [], "errors": {}}
    for steps in STEPS:
        every = candidates(schedule, schedule.t_max, schedule.t_min, steps)
        every.sort(key=lambda c: error(c.plan, FIRST_LOOK))
        best, label = min((error(c.plan), c.label) for c in every[:FINALISTS])
        found["best"].append(best)
        found["setting"].append(label)
        for method in METHODS:
            try:
                plan = fastdiff.plan(method, steps, schedule)
            except ValueError:
                continue  # a noise-prediction method where alpha = 0
            name = plan.method if method else "none named"
            if not method:
                found.setdefault("chosen", []).append(plan.method)
            found["errors"].setdefault(name, []).append(error(plan))
        print(title, steps, f"{best:.3g}", {k: round(v[-1] / best, 2) for k, v in found["errors"].items()}, flush=True)
    return found


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: multiples of the best setting's error at each number of steps."""
    names = ["none named", *(m for m in METHODS if m)]
    rows = []
    for title, found in results.items():
        cells = []
        for name in names:
            errors = found["errors"].get(name)
            ratios = [] if errors is None else [e / b for e, b in zip(errors, found["best"], strict=True)]
            cells.append(", ".join(f"{r:.2g}" for r in ratios) or "–")
        chosen = ", ".join(f"`{m}`" for m in dict.fromkeys(found["chosen"]))
        rows.append([title, chosen, *cells])
    return ["case", "chosen", *(n if n == "none named" else f"`{n}`" for n in names)], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=Path, default=None, help="folder of the small networks")
    parser.add_argument("--cases", nargs="*", default=None, help="names of cases; default: all; none: print alone")
    options = parser.parse_args()
    known = cases(options.networks)
    for title in known if options.cases is None else options.cases:
        found = study(title, known[title]())
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[title] = found
        order = [name for name in cases(Path()) if name in results]
        RESULTS.write_text(json.dumps({name: results[name] for name in order}, indent=1) + "\n")
    record("defaults", *table(json.loads(RESULTS.read_text())), PAGE)


if __name__ == "__main__":
    main()
