"""Draws docs/images/solvers/*.png: each family's error against the number of network evaluations.

    python tools/solver_errors.py [family ...]

The exact network of a Gaussian mixture of dimension 16 on Stable Diffusion's schedule (flow matching for the methods on
the velocity), median over 256 samples of the distance to the converged ODE. For methods with noise the error is the
law's, exact and not sampled: the Wasserstein-2 distance on Gaussian data of 12 axes, relative to the data's size. About
two minutes on one core.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.analytic import Mixture  # noqa: E402
from helpers.run_plan import Stage, network, run  # noqa: E402

from fastdiff import schedules  # noqa: E402
from fastdiff.solvers import plan  # noqa: E402

FOLDER = ROOT / "docs" / "images" / "solvers"
EVALUATIONS = (5, 6, 8, 10, 12, 16, 20, 30, 40, 60)
DIMENSION = 16
REFERENCE = 2000
FAMILIES: dict[str, tuple[Any, list[tuple[str, str, dict[str, Any]]]]] = {
    "dpm": (
        schedules.scaled_linear(),
        [("ddim", "ddim", {}), ("dpm2", "dpm2", {}), ("dpm3", "dpm3", {}), ("dpmpp2m", "dpmpp2m", {})],
    ),
    "adams": (
        schedules.scaled_linear(),
        [
            ("ddim", "ddim", {}),
            ("lms", "lms", {}),
            ("ipndm", "ipndm", {}),
            ("pndm", "pndm", {}),
            ("gradient_estimation", "gradient_estimation", {}),
        ],
    ),
    "deis": (
        schedules.scaled_linear(),
        [
            ("ddim", "ddim", {}),
            ("deis (tab)", "deis", {}),
            ("deis, logrho", "deis", {"form": "logrho"}),
            ("deis, rhoab", "deis", {"form": "rhoab"}),
        ],
    ),
    "edm": (
        schedules.scaled_linear(),
        [
            ("edm_euler", "edm_euler", {}),
            ("heun", "heun", {}),
            ("dpm_2", "dpm_2", {}),
            ("heunpp2", "heunpp2", {}),
        ],
    ),
    "res": (
        schedules.scaled_linear(),
        [
            ("dpmpp2m", "dpmpp2m", {}),
            ("res_multistep", "res_multistep", {}),
            ("res_2s", "res_2s", {}),
            ("res_3s", "res_3s", {}),
            ("exp_heun", "exp_heun", {}),
        ],
    ),
    "flow": (
        schedules.flow(3.0),
        [
            ("euler (ddim)", "ddim", {"spacing": "uniform"}),
            ("dpmpp2m", "dpmpp2m", {}),
            ("unipc", "unipc", {}),
            ("velocity_heun", "velocity_heun", {}),
            ("midpoint", "midpoint", {}),
            ("rk4", "rk4", {}),
        ],
    ),
}

LAWS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "noise": [
        ("ddpm", "ddpm", {}),
        ("dpmpp2m_sde", "dpmpp2m_sde", {}),
        ("dpmpp3m_sde", "dpmpp3m_sde", {}),
        ("er_sde", "er_sde", {}),
        ("sa_solver, tau = 1", "sa_solver", {}),
        ("sa_solver, tau = 0.5", "sa_solver", {"tau": 0.5}),
    ],
    "noise2": [
        ("dpm_2_ancestral", "dpm_2_ancestral", {}),
        ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", {}),
        ("seeds_2, dpmpp_sde", "seeds_2", {}),
        ("seeds_3", "seeds_3", {}),
        ("exp_heun_2_x0_sde", "exp_heun_2_x0_sde", {}),
        ("sa_solver_pece, tau = 0.5", "sa_solver_pece", {"tau": 0.5}),
    ],
    "distilled": [
        ("lcm, consistency", "lcm", {}),
        ("tcd, gamma = 0.3", "tcd", {}),
        ("tcd, gamma = 0 (ddim)", "tcd", {"gamma": 0.0}),
        ("euler_ancestral", "euler_ancestral", {}),
    ],
}
AXES = np.geomspace(0.05, 1.5, 12)
INSIDE = 8
"""DDIM steps that the network of the distilled methods stands for."""


def shrunk(std: float, stage: Stage, distilled: bool) -> float:
    """x0 of N(0, std²) as a multiple of u: the exact network's, or what `INSIDE` DDIM steps to the clean end give."""
    r = stage.sigma / stage.alpha
    if not distilled:
        return std**2 / (std**2 + r**2) / stage.alpha
    # dy/dr = r/(std² + r²)·y by Euler's method, on Karras' levels.
    levels = np.linspace(r ** (1 / 7), 0.0, INSIDE + 1) ** 7
    return float(np.prod([1.0 + (b - a) * a / (std**2 + a**2) for a, b in pairwise(levels)])) / stage.alpha


def law(name: str, method: str, options: dict[str, Any]) -> list[tuple[int, float]]:
    """(evaluations, Wasserstein-2 distance of the result's law to the data's, over the data's root mean square)."""
    schedule, distilled, found = schedules.scaled_linear(), name == "distilled", []
    each = 1 if name != "noise2" else 3 if method == "seeds_3" else 2
    wanted = (1, 2, 3, 4, 6, 8, 12, 16) if distilled else EVALUATIONS
    for steps in sorted({max(2, round(n / each)) if each > 1 else n for n in wanted}):
        p = plan(method, steps, schedule, "karras", **{"final": "clean", **options})
        first = schedule.at(p.times[0])
        distance = 0.0
        for std in AXES:

            def model(u: np.ndarray, stage: Stage, std: float = float(std)) -> np.ndarray:
                return shrunk(std, stage, distilled) * u

            unit = np.eye(1 + p.draws)
            x = np.hypot(first.alpha * std, first.sigma) * unit[0]
            result = run(p, model, x, "x0", noise=lambda draw, like, unit=unit: unit[1 + draw])
            distance += float(np.sqrt((result**2).sum()) - std) ** 2
        found.append((p.nfe, float(np.sqrt(distance / (AXES**2).sum()))))
    return [pair for pair in found if EVALUATIONS[0] <= pair[0] <= EVALUATIONS[-1] or distilled]


def problem() -> Mixture:
    random = np.random.default_rng(7)
    means = random.standard_normal((8, DIMENSION))
    return Mixture(np.full(8, 1 / 8), means, random.uniform(0.1, 0.4, 8))


def curve(dist: Mixture, schedule: Any, z: np.ndarray, method: str, options: dict[str, Any]) -> list[tuple[int, float]]:
    found = []
    prediction = "flow" if schedule.kind == "flow" else "eps"
    per_step = {"heun": 2, "dpm_2": 2, "heunpp2": 3, "res_2s": 2, "res_3s": 3, "exp_heun": 2}
    per_step |= {"velocity_heun": 2, "midpoint": 2, "rk4": 4}
    counts = sorted({max(1, round(n / per_step.get(method, 1))) for n in EVALUATIONS})
    truth: dict[float, np.ndarray] = {}
    for steps in counts:
        p = plan(method, steps, schedule, **options)
        end = p.times[-1]
        if end not in truth:
            fine = plan("dpmpp3m", REFERENCE, schedule, "time_uniform", t_end=None if end == schedule.t_clean else end)
            fine = plan("dpmpp3m", schedule=schedule, spacing=[*fine.times[:-1], end])
            truth[end] = run(fine, network(dist, prediction), z, prediction)
        x = run(p, network(dist, prediction), z, prediction)
        found.append((p.nfe, float(np.median(np.linalg.norm(x - truth[end], axis=1)))))
    return [pair for pair in found if pair[0] <= EVALUATIONS[-1]]


def main() -> int:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    FOLDER.mkdir(parents=True, exist_ok=True)
    only = sys.argv[1:]
    dist = problem()
    z = np.random.default_rng(3).standard_normal((256, DIMENSION))
    drawn: dict[str, tuple[str, dict[str, list[tuple[int, float]]]]] = {}
    for name, (schedule, methods) in FAMILIES.items():
        if not only or name in only:
            drawn[name] = "median error", {label: curve(dist, schedule, z, m, o) for label, m, o in methods}
    for name, methods in LAWS.items():
        if not only or name in only:
            drawn[name] = "error of the law", {label: law(name, m, o) for label, m, o in methods}
    for name, (error, curves) in drawn.items():
        figure, axes = pyplot.subplots(figsize=(4.6, 3.2), dpi=80)
        for label, found in curves.items():
            axes.loglog(*zip(*found, strict=True), marker="o", markersize=3, linewidth=1, label=label)
            print(name, label, " ".join(f"{n}:{e:.2g}" for n, e in found))
        axes.set_xlabel("network evaluations")
        axes.set_ylabel(error)
        ticks = (1, 2, 4, 8, 16) if name == "distilled" else (5, 10, 20, 40)
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, framealpha=0.6)
        figure.tight_layout()
        figure.savefig(FOLDER / f"{name}.png", metadata={"Software": None}, pil_kwargs={"optimize": True})
        pyplot.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
