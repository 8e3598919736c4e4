"""Draws docs/images/solvers/*.png: each family's error against the number of network evaluations.

    python tools/solver_errors.py

The exact network of a Gaussian mixture of dimension 16 on Stable Diffusion's schedule (flow matching for the methods on
the velocity), median over 256 samples of the distance to the converged ODE. About a minute on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.analytic import Mixture  # noqa: E402
from helpers.run_plan import network, run  # noqa: E402

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
    dist = problem()
    z = np.random.default_rng(3).standard_normal((256, DIMENSION))
    for name, (schedule, methods) in FAMILIES.items():
        figure, axes = pyplot.subplots(figsize=(4.6, 3.2), dpi=90)
        for label, method, options in methods:
            found = curve(dist, schedule, z, method, options)
            axes.loglog(*zip(*found, strict=True), marker="o", markersize=3, linewidth=1, label=label)
            print(name, label, " ".join(f"{n}:{e:.2g}" for n, e in found))
        axes.set_xlabel("network evaluations")
        axes.set_ylabel("median error")
        axes.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(FOLDER / f"{name}.png", metadata={"Software": None})
        pyplot.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
