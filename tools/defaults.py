"""How far the defaults of `fastdiff.sample` are from the best setting: ``python tools/defaults.py``, some minutes.

Problems: the exact network of a Gaussian mixture of dimension 16 on four schedules, from t_max to t_min, against the
converged ODE. The table gives, for 5 to 10 steps, the median error of settings as multiples of the best of all that
`tune` lists.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.fitting.candidates import candidates
from fastdiff.fitting.teacher import teacher_times
from fastdiff.schedules import NoiseSchedule

DIM, COMPONENTS, SAMPLES = 16, 4, 256
SCHEDULES = {"VP (ddpm)": ("ddpm", "eps"), "sub-VP": ("subvp", "eps"), "VE": ("ve", "eps"), "flow": ("flow", "flow")}
STEPS = (5, 6, 7, 8, 9, 10)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm3, default": ("dpm3", {}),
    "dpm3, time_quadratic": ("dpm3", {"spacing": "time_quadratic"}),
    "dpm3, time_quadratic, full order": ("dpm3", {"spacing": "time_quadratic", "lower_order_final": False}),
    "dpm3, karras to t_min, full order": ("dpm3", {"spacing": "karras", "lower_order_final": False, "final": "t_min"}),
    "dpm3, logsnr, full order": ("dpm3", {"lower_order_final": False}),
    "dpm2, default": ("dpm2", {}),
    "dpm2, time_quadratic, full order": ("dpm2", {"spacing": "time_quadratic", "lower_order_final": False}),
    "dpmpp2m, default": ("dpmpp2m", {}),
    "dpmpp2m, logsnr": ("dpmpp2m", {"spacing": "logsnr"}),
    "dpmpp2m, time_quadratic": ("dpmpp2m", {"spacing": "time_quadratic"}),
    "unipc, default": ("unipc", {}),
    "unipc, time_quadratic": ("unipc", {"spacing": "time_quadratic"}),
    "unipc, logsnr": ("unipc", {"spacing": "logsnr"}),
}


class Mixture:
    """The exact network of a Gaussian mixture, float64, on any schedule."""

    dtype = torch.float64

    def __init__(self, schedule: NoiseSchedule, prediction: str) -> None:
        draw = np.random.default_rng(1)
        self.schedule, self.prediction = schedule, prediction
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


def error(model: Mixture, x: Tensor, truth: Tensor, plan: fastdiff.Plan) -> float:
    found = fastdiff.sample(model, x, plan=plan, dtype=torch.float64)
    return float((found - truth).square().mean(1).sqrt().median())


def row(name: str, values: Sequence[float]) -> str:
    return f"| {name} | " + " | ".join("–" if np.isnan(v) else f"{v:.2g}" for v in values) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.parse_args()
    for title, (name, prediction) in SCHEDULES.items():
        schedule = fastdiff.schedules.resolve(name)
        # Where sigma is 0 at the end, settings that end just before it and those that end there are two contests.
        end = schedule.t_min
        model = Mixture(schedule, prediction)
        x = fastdiff.randn((SAMPLES, DIM), seed=5, prior=True, dtype=torch.float64) * schedule.prior_std()
        times = teacher_times(schedule, schedule.t_max, end, 400)
        truth_plan = fastdiff.plan("unipc", schedule=schedule, spacing=times)
        truth = fastdiff.sample(model, x, plan=truth_plan, dtype=torch.float64)
        best, labels = [], []
        for steps in STEPS:
            every = [(error(model, x, truth, c.plan), c.label) for c in candidates(schedule, times[0], end, steps)]
            best.append(min(every)[0])
            labels.append(min(every)[1])
        print(f"\n{title}\n\n| setting | {' | '.join(map(str, STEPS))} |\n|---|{'---|' * len(STEPS)}")
        print(row("best, median error", best))
        for setting, (method, options) in SETTINGS.items():
            ratios = []
            for steps, least in zip(STEPS, best, strict=True):
                try:
                    ends = {} if options.get("spacing") is None else {"t_end": end}
                    plan = fastdiff.plan(method, steps, schedule, **{**ends, **options})
                    ratios.append(error(model, x, truth, plan) / least)
                except ValueError:
                    ratios.append(float("nan"))
            print(row(setting, ratios), flush=True)
        print("best: " + "; ".join(f"{n}: {label}" for n, label in zip(STEPS, labels, strict=True)), flush=True)


if __name__ == "__main__":
    main()
