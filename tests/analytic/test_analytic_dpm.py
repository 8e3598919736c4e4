"""Analytic-DPM (Bao et al. 2022): exact variances for Gaussians and a mixture, bounds, clipping, the estimate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.utils.data import DataLoader, TensorDataset, default_collate

import fastdiff
from fastdiff import schedules
from fastdiff.analytic import Gamma, estimate_gamma
from fastdiff.plan import Plan, Stage
from fastdiff.sampler import kept_plan

X, M, ZA = 0, 2, 10
STD = 0.5
SCHEDULES = ("ddpm", "cosine", "vp_linear", "subvp", "ve", "edm", "flow")
METHODS = [("analytic_ddpm", {}), ("analytic_ddim", {}), ("analytic_ddim", {"eta": 0.6})]


def exact_gamma(schedule: schedules.NoiseSchedule, times: np.ndarray, std: float = STD) -> Gamma:
    """For N(0, std²): eps = sigma·x/total with total = Var x, so Gamma = sigma²/total."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    return Gamma(tuple(times), tuple(sigma**2 / ((alpha * std) ** 2 + sigma**2)), schedule.fingerprint())


def grid(schedule: schedules.NoiseSchedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Uneven times of a run to the clean end, and those where Gamma must be known, increasing."""
    low = schedule.t_floor
    start = min(schedule.t_max, 80.0)
    if schedule.discrete:
        times = np.round(start * np.linspace(1.0, 0.0, steps, endpoint=steps > 1) ** 1.3)
    else:
        times = np.exp(np.linspace(math.log(start), math.log(3.0 * low), steps)) if steps > 1 else np.array([start])
    known = times[::-1]
    if schedule.alpha(start) == 0.0:
        # Without signal Gamma is 1, and the variance of x0 that of the noisiest time with signal: at alpha = 2e-4 it is
        # short of the data's by 1e-8, and 1 - Gamma = 1e-8 is rounded by 1e-8 of itself.
        known = np.append(known[:-1], start - 2e-4)
    return np.append(times, schedule.t_clean), known


def moments(stage: Stage, std: float = STD) -> tuple[float, float]:
    """Coefficient of x in the mean of a stage with the perfect network for N(0, std²), and the variance it adds."""
    total = (stage.alpha * std) ** 2 + stage.sigma**2
    return stage.next_x[X] + stage.next_x[M] * stage.alpha * std**2 / total, stage.next_x[ZA] ** 2


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_variance_is_that_of_the_gaussian_chain(name: str, steps: int) -> None:
    schedule = schedules.resolve(name)
    times, known = grid(schedule, steps)
    plan = fastdiff.plan(
        "analytic_ddpm", schedule=schedule, spacing=times, gamma=exact_gamma(schedule, known), data_range=None
    )
    for s in plan.stages[:-1]:
        # x_s = ratio·x_t + independent noise: the variance of x_t given x_s is v_t - (ratio·v_t)²/v_s.
        t = schedule.at(s.t_next)
        v_s, v_t = ((p.alpha * STD) ** 2 + p.sigma**2 for p in (s, t))
        exact = v_t - (s.alpha / t.alpha * v_t) ** 2 / v_s
        assert moments(s)[1] == pytest.approx(exact, rel=1e-8 if s.alpha > 0 else 3e-8)
    assert plan.stages[-1].next_x[ZA] == 0.0


@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
@pytest.mark.parametrize("steps", [2, 9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_marginals_of_gaussian_data_are_exact(name: str, steps: int, method: str, options: dict) -> None:
    schedule = schedules.resolve(name)
    times, known = grid(schedule, steps)
    gamma = exact_gamma(schedule, known)
    plan = fastdiff.plan(method, schedule=schedule, spacing=times, gamma=gamma, data_range=None, **options)
    variance = (plan.stages[0].alpha * STD) ** 2 + plan.stages[0].sigma ** 2
    for s in plan.stages[:-1]:
        slope, added = moments(s)
        variance = slope**2 * variance + added
        t = schedule.at(s.t_next)
        assert variance == pytest.approx((t.alpha * STD) ** 2 + t.sigma**2, rel=1e-8 if name != "flow" else 3e-8)


def test_variance_is_that_of_a_mixture() -> None:
    """E Var(x_t | x_s) = E x_t² - E (E[x_t | x_s])², on a grid; the trapezoid rule is exact to rounding there."""
    schedule = schedules.vp_linear()
    s, t = schedule.at(0.45), schedule.at(0.3)
    weights, means, stds = np.array([0.3, 0.7]), np.array([-0.9, 0.5]), np.array([0.2, 0.15])

    def density(y: np.ndarray, alpha: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        v = (alpha * stds) ** 2 + sigma**2
        z = y[:, None] - alpha * means
        p = weights * np.exp(-0.5 * z**2 / v) / np.sqrt(2.0 * np.pi * v)
        return p.sum(1), (p * z / v).sum(1)

    y = np.linspace(-9.0, 9.0, 1801)
    h = y[1] - y[0]
    p_s, slope = density(y, s.alpha, s.sigma)
    gamma = float((s.sigma**2 * slope**2 / p_s).sum() * h)
    p_t, _ = density(y, t.alpha, t.sigma)
    ratio = s.alpha / t.alpha
    fresh = s.sigma**2 - (ratio * t.sigma) ** 2
    joint = p_t * np.exp(-0.5 * (y[:, None] - ratio * y) ** 2 / fresh) / np.sqrt(2.0 * np.pi * fresh)
    exact = (p_t * y**2).sum() * h - ((joint @ y * h) ** 2 / p_s).sum() * h

    plan = fastdiff.plan(
        "analytic_ddpm", schedule=schedule, spacing=[0.45, 0.3, 0.0], gamma={0.3: 0.5, 0.45: gamma}, data_range=None
    )
    assert plan.stages[0].next_x[ZA] ** 2 == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(("method", "eta"), [("analytic_ddpm", 1.0), ("analytic_ddim", 0.0), ("analytic_ddim", 0.6)])
def test_variance_as_the_paper_writes_it(method: str, eta: float) -> None:
    """Eq. 6 on a subsequence, in the paper's own symbols, with Gamma that no Gaussian has; x0's variance at most 1."""
    schedule = schedules.ddpm()
    values = np.random.default_rng(0).uniform(0.0, 1.1, 1000)
    own = {} if method == "analytic_ddpm" else {"eta": eta}
    plan = fastdiff.plan(method, 20, schedule, gamma=dict(enumerate(values)), clip_steps=0, **own)
    bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    for s in plan.stages[:-1]:
        n, previous = int(s.t), int(s.t_next)
        alpha = bar[n] / bar[previous]
        lam2 = eta**2 * (1.0 - bar[previous]) / (1.0 - bar[n]) * (1.0 - alpha)
        outside = (math.sqrt((1.0 - bar[n]) / alpha) - math.sqrt(1.0 - bar[previous] - lam2)) ** 2
        ratio = (1.0 - bar[n]) / bar[n]
        inside = min(max(1.0 - values[n], 0.0), 1.0 / ratio)
        assert s.next_x[ZA] ** 2 == pytest.approx(lam2 + outside * inside, rel=1e-9, abs=1e-15)


def test_bounds() -> None:
    schedule = schedules.ddpm()
    lower, upper, large, small = (
        np.array([s.next_x[ZA] for s in fastdiff.plan(m, 12, schedule, "linspace", **o).stages])
        for m, o in (
            ("analytic_ddpm", {"gamma": "lower", "clip_steps": 0}),
            ("analytic_ddpm", {"gamma": "upper", "data_range": None}),
            ("ddpm", {"variance": "large"}),
            ("ddpm", {}),
        )
    )
    # Without a range the bounds are beta-tilde and beta/alpha of the subsequence.
    stages = fastdiff.plan("ddpm", 12, schedule, "linspace").stages
    alpha = np.array([s.alpha / schedule.alpha(s.t_next) for s in stages])
    assert lower == pytest.approx(small, rel=1e-12) and upper == pytest.approx(large / alpha, rel=1e-12)
    bounded = np.array([s.next_x[ZA] for s in fastdiff.plan("analytic_ddpm", 12, schedule, clip_steps=0).stages])
    assert (bounded <= upper).all() and (bounded[:-1] > lower[:-1]).all() and (bounded < upper).any()
    assert not fastdiff.plan("analytic_ddim", 12, gamma="lower").stochastic
    # Data of two points at the ends of the range, far apart, reach Theorem 2's bound where they cannot be told apart.
    first = fastdiff.plan("analytic_ddpm", 12, "flow").stages[0]
    t = schedules.flow().at(first.t_next)
    assert first.next_x[ZA] ** 2 == pytest.approx(t.alpha**2 + t.sigma**2, rel=1e-12)
    with pytest.raises(ValueError, match=r"gamma='upper' has no bound at t=1.*data_range=\(lo, hi\)"):
        fastdiff.plan("analytic_ddpm", 12, "flow", data_range=None)


def test_clipping_of_the_last_variances() -> None:
    def stds(**options: object) -> np.ndarray:
        return np.array([s.next_x[ZA] for s in fastdiff.plan("analytic_ddpm", 10, **options).stages])

    free = stds(clip_steps=0)
    # The mean of |std·z| is std·sqrt(2/pi): 2 of 255 levels in [-1, 1].
    limit = 2.0 * 2.0 / 255.0 * math.sqrt(math.pi / 2.0)
    assert free[-2] > limit and free[-1] == 0.0
    assert stds().tolist() == [*free[:-2], pytest.approx(limit, rel=1e-15), 0.0]
    assert stds(clip_steps=2, clip_pixels=1.0)[-3:-1] == pytest.approx([limit / 2, limit / 2], rel=1e-15)
    assert stds(clip_steps=100)[:-1].max() <= limit
    assert stds(data_range=(0.0, 1.0))[-2] == pytest.approx(limit / 2, rel=1e-15)
    for steps in (1, 2):
        assert fastdiff.plan("analytic_ddpm", steps).steps == steps


class Perfect:
    """The perfect network for N(0, STD²) in float64; counts its calls and is interrupted at one of them."""

    def __init__(self, schedule: schedules.NoiseSchedule, prediction: str = "eps", stop: int = -1) -> None:
        self.schedule, self.prediction, self.stop, self.calls = schedule, prediction, stop, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        a, s = (f(float(t[0])) for f in (self.schedule.alpha, self.schedule.sigma))
        total = (a * STD) ** 2 + s**2
        eps, x0 = s * x / total, a * STD**2 * x / total
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s, "flow": eps - x0}[self.prediction]


def gaussian_data(count: int, size: int) -> torch.Tensor:
    return STD * torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["ddpm", "edm"])
def test_estimate_within_its_monte_carlo_error(name: str) -> None:
    schedule, size, count = schedules.resolve(name), 64, 500
    found = {
        control: estimate_gamma(
            Perfect(schedule),
            gaussian_data(count, size),
            schedule,
            times=40,
            samples_per_time=count,
            control_variate=control,
            progress=False,
        )
        for control in (False, True)
    }
    times = np.array(found[True].times)
    exact = np.array(exact_gamma(schedule, times).values)
    n = size * count
    # eps and the noise are bivariate normal with variances G, 1 and covariance G: Var eps² = 2 G², and
    # Var(eps² - G²·noise²) = 2 G² (1 - G²). Five standard errors; estimating c = G² adds at most 5·2·2/n.
    plain = np.abs(np.array(found[False].values) - exact)
    assert (plain < 5.0 * exact * np.sqrt(2.0 / n)).all()
    controlled = np.abs(np.array(found[True].values) - exact)
    assert (controlled < 5.0 * exact * np.sqrt(2.0 * (1.0 - exact**2) / n) + 20.0 / n).all()

    p = fastdiff.plan("analytic_ddpm", schedule=schedule, spacing=times[::-5], gamma=found[False], data_range=None)
    for s in p.stages:
        t = schedule.at(s.t_next)
        v_s, v_t = ((q.alpha * STD) ** 2 + q.sigma**2 for q in (s, t))
        c = t.alpha - s.alpha / t.alpha * (t.sigma / s.sigma) ** 2 * s.alpha
        g = s.sigma**2 / v_s
        error = (c * s.sigma / s.alpha) ** 2 * 5.0 * g * math.sqrt(2.0 / n)
        assert abs(s.next_x[ZA] ** 2 - (v_t - (s.alpha / t.alpha * v_t) ** 2 / v_s)) < error + 1e-12


@pytest.mark.parametrize("prediction", ["x0", "v", "score", "flow"])
def test_gamma_does_not_depend_on_the_prediction(prediction: str) -> None:
    schedule, data = schedules.ddpm(), gaussian_data(20, 8)
    want, got = (
        estimate_gamma(Perfect(schedule, p), data, schedule, prediction=p, times=9, samples_per_time=20, progress=False)
        for p in ("eps", prediction)
    )
    # The largest coefficient of a conversion is alpha/sigma = 100 at index 0, sigma/alpha = 157 at 999: 1e-12 is left.
    assert got.times == want.times and got.values == pytest.approx(want.values, rel=1e-10)


@pytest.mark.parametrize("stop", [1, 4, 9, 10, 18, 21])
@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_interrupted_estimate_is_the_same_bit_for_bit(tmp_path: Path, ending: str, stop: int) -> None:
    schedule, path = schedules.ddpm(), tmp_path / f"gamma.{ending}"
    arguments = {"times": 9, "samples_per_time": 20, "batch_size": 8, "seed": 5, "progress": False}
    want = estimate_gamma(Perfect(schedule), gaussian_data(15, 6), schedule, **arguments)
    first = Perfect(schedule, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        estimate_gamma(first, gaussian_data(15, 6), schedule, path=path, **arguments)
    with pytest.raises(ValueError, match=rf"unfinished estimate \({(stop - 1) // 9 * 8} of 20 samples\)"):
        Gamma.load(path)
    with pytest.raises(ValueError, match=r"other arguments: seed=5 \(now 6\)"):
        estimate_gamma(first, gaussian_data(15, 6), schedule, path=path, **{**arguments, "seed": 6})
    second = Perfect(schedule)
    assert estimate_gamma(second, gaussian_data(15, 6), schedule, path=path, **arguments) == want
    # 27 evaluations: three batches (8, 8, 4) at nine times. None that was finished is done again.
    assert first.calls - 1 + second.calls == 27
    assert Gamma.load(path) == want
    third = Perfect(schedule)
    assert estimate_gamma(third, gaussian_data(15, 6), schedule, path=path, **arguments) == want and third.calls == 0


def test_files(tmp_path: Path) -> None:
    gamma = Gamma((0.0, 1.5, 7.0), (0.1, 1 / 3, 1.02), "ab" * 32, 12)
    for name in ("g.json", "g.safetensors"):
        gamma.save(tmp_path / name)
        assert Gamma.load(tmp_path / name) == gamma and hash(Gamma.load(tmp_path / name)) == hash(gamma)
    other = load_file(tmp_path / "g.safetensors")
    assert other["values"].tolist() == list(gamma.values) and other["times"].tolist() == list(gamma.times)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.json", "g.safetensors"]
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "other.safetensors").write_bytes(b"short")
    for name in ("other.json", "other.safetensors"):
        with pytest.raises(ValueError, match=r"is not a Gamma: expected a file that Gamma.save"):
            Gamma.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected one ending in .json or .safetensors"):
        gamma.save(tmp_path / "g.pt")
    missing = r"no file '.*none.json'; expected .*estimate_gamma\(model, data, path='.*none.json'\)"
    with pytest.raises(FileNotFoundError, match=missing):
        Gamma.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match=missing):
        fastdiff.sample(eps_of, shape=(1, 2), method="analytic_ddpm", gamma=str(tmp_path / "none.json"))


def test_interpolation_in_lambda() -> None:
    schedule = schedules.vp_linear()
    gamma = Gamma.of({0.2: 0.3, 0.4: 0.9, 0.9: 0.99}, schedule)
    s = schedule.at(0.3)
    part = (s.lam - schedule.lam(0.4)) / (schedule.lam(0.2) - schedule.lam(0.4))
    want = (s.sigma / s.alpha) ** 2 * (1.0 - (0.9 + part * (0.3 - 0.9)))
    assert gamma.x0_variance(schedule, s) == pytest.approx(want, rel=1e-12)
    # lambda(0.9) = -4.06 is pure noise; 0.4 is not.
    assert gamma.x0_variance(schedule, schedule.at(1.0)) == gamma.x0_variance(schedule, schedule.at(0.9))
    for known, t in ((gamma, 0.1), (Gamma.of({0.2: 0.3, 0.4: 0.9}), 0.5)):
        with pytest.raises(
            ValueError, match=rf"evaluates the network at t={t}.*known from t=0.2.*estimate it there too"
        ):
            known.x0_variance(schedule, schedule.at(t))


def test_another_schedule_is_an_error_that_names_both() -> None:
    mine, other = schedules.ddpm(), schedules.cosine()
    gamma = exact_gamma(mine, np.arange(1000.0))
    with pytest.raises(ValueError, match=rf"(?s){mine.fingerprint()}.*{other.fingerprint()}.*estimate_gamma"):
        fastdiff.plan("analytic_ddpm", 5, other, gamma=gamma)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": "uper"}, "unknown gamma of method 'analytic_ddpm': 'uper'; did you mean 'upper'"),
        ({"gamma": 3}, "gamma=3: .* expects what fastdiff.analytic.estimate_gamma returns"),
        ({"gamma": {0: -1.0}}, "Gamma at time 0 is -1.0; expected a finite mean square"),
        ({"gamma": {}}, "expected one value for each"),
        ({"data_range": (1, -1)}, r"data_range=\(1, -1\): .* expects \(lo, hi\) with lo < hi, or None"),
        ({"data_range": 1.0}, r"data_range=1.0: .* expects \(lo, hi\)"),
        ({"clip_steps": -1}, "clip_steps=-1: .* expects a whole number, at least 0"),
        ({"clip_steps": 1.0}, "clip_steps=1.0: .* expects a whole number"),
        ({"clip_pixels": -1.0}, r"clip_pixels=-1.0: .* accepts \[0, inf\]"),
        ({"eta": 0.5}, "unknown option of method 'analytic_ddpm': 'eta'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        fastdiff.plan("analytic_ddpm", 5, **options)


def test_bad_values_of_gamma() -> None:
    with pytest.raises(ValueError, match=r"got times \(2,\) and values \(1,\)"):
        Gamma((0.0, 1.0), (0.5,))
    with pytest.raises(ValueError, match="strictly increasing"):
        Gamma((1.0, 1.0), (0.5, 0.5))


def eps_of(x: torch.Tensor, t: torch.Tensor, **kwargs: object) -> torch.Tensor:
    return x


def labelled(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Every sample is its own label: at index 0, with sigma = 0.01, x tells which it is."""
    assert x.shape[0] == y.shape[0] and float((x - y[:, None]).abs().max()) < 0.1 + 1e-4 * 300
    return x - y[:, None]


def test_labels_follow_their_data() -> None:
    y = torch.arange(300.0)
    x0 = y[:, None].expand(300, 3).contiguous()
    pairs = [(x0[i], {"y": y[i]}) for i in range(300)]
    arguments = {"times": [0], "samples_per_time": 300, "batch_size": 32, "progress": False}
    tensor = estimate_gamma(labelled, (x0, {"y": y}), **arguments)
    assert estimate_gamma(labelled, pairs, **arguments) == tensor
    # A loader has its own order; the run repeats it where more samples are asked for.
    loader = DataLoader(pairs, batch_size=64)
    more = {**arguments, "samples_per_time": 700}
    assert estimate_gamma(labelled, loader, **more).count == 700
    assert estimate_gamma(eps_of, TensorDataset(x0), **arguments) == estimate_gamma(eps_of, x0, **arguments)


def test_a_loader_of_pairs_with_labels_needs_a_collate_fn() -> None:
    """The one of docs/analytic.md."""
    page = (Path(__file__).parents[2] / "docs" / "analytic.md").read_text(encoding="utf-8")
    code = page[page.index("def with_labels") : page.index("loader = DataLoader(")]
    names: dict[str, Any] = {"default_collate": default_collate}
    exec(code, names)
    x0 = torch.arange(300.0)[:, None].expand(300, 3).contiguous()
    data = [(x0[i], i) for i in range(300)]
    arguments = {"times": [0], "samples_per_time": 300, "batch_size": 300, "progress": False}
    loader = DataLoader(data, batch_size=300, collate_fn=names["with_labels"])
    got = estimate_gamma(labelled, loader, **arguments)
    assert got == estimate_gamma(labelled, iter([(x0, {"y": torch.arange(300)})]), **arguments) and got.count == 300


def once() -> Iterator[torch.Tensor]:
    yield torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (torch.zeros(4, 2, dtype=torch.int64), {}, TypeError, r"dtype torch.int64; expected floating point"),
        (torch.zeros(4), {}, ValueError, r"shape \(4,\); expected \(batch, ...\)"),
        (torch.full((4, 2), math.nan), {}, ValueError, "NaN or Inf in samples 0 to 3"),
        (DataLoader([(torch.zeros(2), 1)]), {}, TypeError, r"gave \(Tensor, Tensor\); expected x0, or \(x0, kwargs\)"),
        (
            (torch.zeros(4, 2), {"y": torch.zeros(3)}),
            {},
            ValueError,
            r"'y' is \(3,\); expected .* each of the 4 samples",
        ),
        ([], {}, ValueError, "the data set is empty"),
        (once(), {"samples_per_time": 9}, ValueError, "ended after 4 of samples_per_time=9.*samples_per_time=4"),
        (7, {}, TypeError, "data got int; expected a tensor"),
        ([torch.zeros(4, 2), torch.zeros(4, 3)][:1] * 4, {"samples_per_time": 0}, ValueError, "samples_per_time=0"),
        (torch.zeros(4, 2), {"batch_size": 0}, ValueError, "batch_size=0: expected a whole number"),
        (torch.zeros(4, 2), {"times": [2000]}, ValueError, "2000.0 is outside the range"),
        (torch.zeros(4, 2), {"times": [-1, 5]}, ValueError, "times has -1, where sigma = 0"),
        (torch.zeros(4, 2), {"times": 0}, ValueError, "times=0: expected a number of times"),
        (torch.zeros(4, 2), {"prediction": "epsilon"}, ValueError, "unknown prediction 'epsilon'; did you mean 'eps'"),
        (torch.zeros(4, 2), {"path": "gamma.pt"}, ValueError, "expected one ending in .json or .safetensors"),
        (torch.zeros(4, 2), {"seed": 1.5}, TypeError, "seed=1.5: expected an integer"),
    ],
)
def test_bad_arguments(data: object, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        estimate_gamma(eps_of, data, **{"times": 3, "samples_per_time": 4, "progress": False, **options})


def test_bad_models() -> None:
    arguments = {"times": 3, "samples_per_time": 4, "progress": False}
    with pytest.raises(ValueError, match="NaN or Inf at t=0 for samples 0 to 3"):
        estimate_gamma(lambda x, t: x * math.nan, torch.zeros(4, 2), **arguments)
    with pytest.raises(TypeError, match="model must be callable"):
        estimate_gamma(3, torch.zeros(4, 2), **arguments)  # type: ignore[arg-type]
    shapes = [torch.zeros(4, 2), torch.zeros(4, 3)]
    with pytest.raises(ValueError, match=r"samples of shape \(2,\) and of \(3,\)"):
        estimate_gamma(eps_of, iter(shapes), **{**arguments, "samples_per_time": 8})


def test_sampling_with_gamma(tmp_path: Path) -> None:
    schedule = schedules.ddpm()
    gamma = exact_gamma(schedule, np.arange(1000.0))
    gamma.save(tmp_path / "gamma.json")
    results = [
        fastdiff.sample(
            Perfect(schedule),
            shape=(4, 6),
            steps=6,
            method="analytic_ddpm",
            gamma=g,
            schedule=schedule,
            dtype=torch.float64,
        )
        for g in (gamma, str(tmp_path / "gamma.json"), dict(zip(gamma.times, gamma.values, strict=True)))
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    hits = kept_plan.cache_info().hits
    sampler = fastdiff.Sampler("analytic_ddpm", 6, schedule=schedule, gamma=Gamma.load(tmp_path / "gamma.json"))
    assert kept_plan.cache_info().hits == hits + 1
    plan = sampler.plan
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["options"]["gamma"]["fingerprint"] == gamma.fingerprint()


def test_the_samples_have_the_variance_of_gaussian_data() -> None:
    """Ten steps are exact for N(0, STD²), where plain DDPM and DDIM are not."""
    schedule = schedules.ddpm()
    options = {"gamma": exact_gamma(schedule, np.arange(1000.0)), "data_range": None}
    count, size = 400, 64
    x = fastdiff.sample(
        Perfect(schedule),
        shape=(count, size),
        steps=10,
        method="analytic_ddim",
        schedule=schedule,
        dtype=torch.float64,
        **options,
    )
    # The last step gives E[x0 | x] at index 0: its variance is short of STD² by 4e-4; five standard errors.
    assert float(x.square().mean()) == pytest.approx(STD**2, rel=4.1e-4 + 5.0 * math.sqrt(2.0 / (count * size)))
    assert float(x.mean()) == pytest.approx(0.0, abs=5.0 * STD / math.sqrt(count * size))


def test_a_missing_folder_is_an_error_before_any_work(tmp_path: Path) -> None:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network was called")

    with pytest.raises(ValueError, match=r"there is no folder .*nowhere'; make it first"):
        estimate_gamma(model, torch.zeros(2, 1, 2, 2), "ddpm", path=tmp_path / "nowhere" / "gamma.json")
