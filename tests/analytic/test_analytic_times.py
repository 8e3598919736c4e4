"""The optimal trajectory of Analytic-DPM (Bao et al. 2022, section 4): brute force, golden sequences, errors."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import schedules
from fastdiff.analytic import Gamma, optimal_times
from fastdiff.analytic.times import step_costs

SMALL = 11


def mixture(schedule: schedules.NoiseSchedule, times: np.ndarray) -> np.ndarray:
    """Gamma of data whose coordinates are independent Gaussians, half of variance 1/4, half of 1/500."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    return np.mean([sigma**2 / (alpha**2 * variance + sigma**2) for variance in (0.25, 0.002)], axis=0)


def cost(schedule: schedules.NoiseSchedule, gamma: Gamma, path: tuple[int, ...]) -> float:
    """The sum of log(optimal variance / (beta_{t|s} / alpha_{t|s})) over the steps of a variance-preserving chain."""
    total = 0.0
    for s, t in itertools.pairwise(path):
        (cum_s, cum_t), value = np.asarray(schedule.alpha(np.array([s, t], dtype=float))) ** 2, gamma.values[t]
        ratio = cum_t / cum_s
        # Theorem 1 at lambda² = beta-tilde: the variance of x_s given x_t and x0, and x0's own through its mean.
        posterior = (1 - cum_s) / (1 - cum_t) * (1 - ratio)
        of_x0 = math.sqrt(cum_s) * (1 - ratio) / (1 - cum_t)
        variance = posterior + of_x0**2 * (1 - cum_t) / cum_t * (1 - value)
        total += math.log(variance / ((1 - ratio) / ratio))
    return total


@pytest.mark.parametrize("steps", range(1, SMALL + 1))
@pytest.mark.parametrize("seed", [0, 1])
def test_least_cost_of_all_subsequences(seed: int, steps: int) -> None:
    schedule = schedules.ddpm(SMALL, 0.002, 0.4)
    values = np.random.default_rng(seed).uniform(0.1, 1.0, SMALL)
    gamma = Gamma(tuple(range(SMALL)), tuple(values), schedule.fingerprint())
    times = optimal_times(gamma, steps, schedule)
    assert len(times) == steps + 1 and times[0] == SMALL - 1 and times[-1] == schedule.t_clean
    if steps == 1:
        return
    inner = itertools.combinations(range(1, SMALL - 1), steps - 2)
    least = min(cost(schedule, gamma, (0, *middle, SMALL - 1)) for middle in inner)
    found = tuple(int(t) for t in reversed(times[:-1]))
    # At most 10 logarithms of sizes to 10, each from about 10 roundings: 10·100·2^-52 = 2e-13.
    assert cost(schedule, gamma, found) == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("name", ["ddpm", "cosine", "vp_linear", "ve", "edm", "flow"])
def test_all_times_and_any_schedule(name: str) -> None:
    schedule = schedules.resolve(name)
    low, high = schedule.t_floor, min(schedule.t_max, 80.0)
    known = np.unique(np.round(np.linspace(low, high, 30))) if schedule.discrete else np.geomspace(low, high, 30)
    known[-1] = min(known[-1], high)
    known = known[np.isfinite(np.asarray(schedule.lam(known)))]
    gamma = Gamma(tuple(known), tuple(mixture(schedule, known)), schedule.fingerprint())
    assert optimal_times(gamma, known.size, schedule) == [*known[::-1].tolist(), schedule.t_clean]
    times = optimal_times(gamma, 6, schedule)
    assert len(times) == 7 and set(times[:-1]) <= set(known.tolist()) and (np.diff(times) < 0).all()
    assert times[0] == known[-1] and times[-2] == known[0]


def test_gaussian_data_have_no_preference() -> None:
    """Every chain of a Gaussian is exact, so all sequences cost the same: J(s, t) = J(s, u) + J(u, t)."""
    schedule = schedules.resolve("ddpm")
    times = np.arange(0.0, 1000.0, 37.0)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    found = step_costs(sigma**2 / (alpha**2 * 0.3 + sigma**2), np.asarray(schedule.lam(times)))
    for s, u, t in itertools.combinations(range(times.size), 3):
        # 1 - Gamma and exp(2·lambda differences) are right to some 1e-15; 1 - Gamma falls to 1e-5, so 1e-10.
        assert found[t, s] == pytest.approx(found[u, s] + found[t, u], abs=1e-9)


@pytest.mark.parametrize(
    ("above", "expected"),
    [(None, [0, 1, 2, 3, 4, 6, 9, 49]), (47, [0, 1, 2, 3, 5, 8, 43, 49])],
)
def test_golden_trajectories(above: int | None, expected: list[int]) -> None:
    # Made with the authors' program (baofff/Analytic-DPM, core/inference/utils.py, steps type "dp_seg", its steps - 1)
    # with N = 50, K = 8 and this Gamma; in the second, Gamma = 1.01 at index 47 sets off its even spacing of the end.
    betas = np.linspace(1e-4, 0.02, 50) * 20
    schedule = schedules.discrete(betas=betas)
    values = mixture(schedule, np.arange(50.0))
    if above is not None:
        values[above] = 1.01
    gamma = Gamma(tuple(range(50)), tuple(values), schedule.fingerprint())
    assert optimal_times(gamma, 8, schedule) == [*map(float, reversed(expected)), -1.0]


def test_golden_trajectory_of_the_demo() -> None:
    # The same program on the demo's estimate, N = 1000, K = 10: Gamma above 1 at the noisy end.
    path = Path(fastdiff.__file__).parent / "demo" / "gamma.json"
    expected = [999, 860, 721, 583, 444, 305, 101, 29, 6, 0, -1]
    assert optimal_times(path, 10) == expected


@pytest.mark.parametrize("method", ["analytic_ddpm", "analytic_ddim"])
def test_as_spacing(method: str) -> None:
    schedule = schedules.resolve("ddpm")
    known = np.arange(1000.0)
    gamma = Gamma(tuple(known), tuple(mixture(schedule, known)), schedule.fingerprint())
    seen: list[float] = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        return 0.1 * x

    times = optimal_times(gamma, 7)
    fastdiff.sample(model, shape=(2, 3), method=method, gamma=gamma, spacing=times, device="cpu")
    assert seen == times[:-1]


def test_errors() -> None:
    schedule = schedules.resolve("ddpm")
    gamma = Gamma((0.0, 500.0, 999.0), (0.1, 0.8, 0.99), schedule.fingerprint())
    for steps in (0, -1, 4):
        with pytest.raises(ValueError, match=rf"steps={steps}: expected 1 to 3, the number of times"):
            optimal_times(gamma, steps)
    for wrong in (2.0, True, "2"):
        with pytest.raises(TypeError, match="expected a whole number, such as steps=25"):
            optimal_times(gamma, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this Gamma was estimated with the schedule of fingerprint"):
        optimal_times(gamma, 2, "cosine")
    with pytest.raises(TypeError, match=r"optimal_times\(estimate_gamma\(model, data\), steps=25\)"):
        optimal_times(0.5, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Gamma is 1\.2 at position 1 of 3 times"):
        optimal_times(Gamma((0.0, 500.0, 999.0), (0.1, 1.2, 0.99)), 2)
