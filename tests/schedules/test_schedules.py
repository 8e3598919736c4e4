"""Noise schedules against 50-digit formulas, quadrature and ODE solutions; round trips; content; errors."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import warnings
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from mpmath import mpf
from scipy import integrate

from fastdiff import schedules as S
from fastdiff.names import unknown

EPS = 2.0**-52
ALL: dict[str, S.NoiseSchedule] = {
    **{name: make() for name, make in S.SCHEDULES.items()},
    "zero_snr": S.scaled_linear(zero_terminal_snr=True),
    "flow3": S.flow(3.0, time_scale=1000.0),
    "subvp_other": S.subvp(0.2, 12.0),
    "vp_constant": S.vp_linear(2.0, 2.0, time_scale=999.0),
    "short": S.ddpm(7, 0.05, 0.5),
}
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())


def times(s: S.NoiseSchedule) -> np.ndarray:
    """Both ends, the middle, and points that crowd towards each end."""
    span = s.t_max - s.t_clean
    near = np.geomspace(1e-9, 0.5, 40)
    middle = np.linspace(s.t_clean, s.t_max, 101)
    return np.unique(
        np.clip(np.concatenate([middle, s.t_clean + span * near, s.t_max - span * near]), s.t_clean, s.t_max)
    )


def discrete_truth(betas: list[mpf], t: float) -> tuple[mpf, mpf]:
    logs = [mpf(0)]
    for beta in betas:
        logs.append(logs[-1] + mpmath.log(1 - beta) / 2)
    i = min(math.floor(t) + 1, len(betas) - 1)
    w = mpf(t) + 1 - i
    log_alpha = (1 - w) * logs[i] + w * logs[i + 1]
    return mpmath.exp(log_alpha), mpmath.sqrt(1 - mpmath.exp(2 * log_alpha))


def linear_alpha(t: mpf, b0: float, b1: float) -> mpf:
    return mpmath.exp(-(mpf(b0) * t + (mpf(b1) - mpf(b0)) * t**2 / 2) / 2)


def cosine_truth(t: mpf) -> tuple[mpf, mpf]:
    s = mpf(0.008)
    alpha = mpmath.cos(mpmath.pi / 2 * (t + s) / (1 + s)) / mpmath.cos(mpmath.pi / 2 * s / (1 + s))
    return alpha, mpmath.sqrt(1 - alpha**2)


def vp(alpha: mpf) -> tuple[mpf, mpf]:
    return alpha, mpmath.sqrt(1 - alpha**2)


TRUTHS: dict[str, Callable[[mpf], tuple[mpf, mpf]]] = {
    "vp_linear": lambda t: vp(linear_alpha(t, 0.1, 20.0)),
    "vp_constant": lambda t: vp(linear_alpha(t, 2.0, 2.0)),
    "subvp": lambda t: (linear_alpha(t, 0.1, 20.0), 1 - linear_alpha(t, 0.1, 20.0) ** 2),
    "vp_cosine": cosine_truth,
    "ve": lambda t: (mpf(1), t),
    "edm": lambda t: (mpf(1), t),
    "flow": lambda t: (1 - t, t),
    "flow3": lambda t: (1 - 3 * t / (1 + 2 * t), 3 * t / (1 + 2 * t)),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_continuous_values(name: str) -> None:
    schedule = ALL[name]
    with mpmath.workdps(50):
        for t in times(schedule).tolist():
            alpha, sigma = TRUTHS[name](mpf(t))
            point = schedule.at(t)
            # A few roundings; the cosine's alpha loses 1/alpha = 119 of them at t_max, as alpha is 1 minus the rest.
            assert abs(point.alpha - alpha) <= 1e-13 * alpha
            assert abs(point.sigma - sigma) <= 1e-14 * sigma
            if 0 < sigma and 0 < alpha:
                lam = mpmath.log(alpha / sigma)
                assert abs(point.lam - lam) <= 1e-13 * (1 + abs(lam))


def test_discrete_values() -> None:
    with mpmath.workdps(50):
        step = (mpf(0.02) - mpf(1e-4)) / 999
        linear = [mpf(1e-4) + i * step for i in range(1000)]
        root0, root1 = mpmath.sqrt(mpf(0.00085)), mpmath.sqrt(mpf(0.012))
        scaled = [(root0 + i * (root1 - root0) / 999) ** 2 for i in range(1000)]
        s = mpf(0.008)
        f = [mpmath.cos((mpf(i) / 1000 + s) / (1 + s) * mpmath.pi / 2) ** 2 for i in range(1001)]
        cosine = [min(1 - f[i + 1] / f[i], mpf(0.999)) for i in range(1000)]
        for name, betas in (("ddpm", linear), ("scaled_linear", scaled), ("cosine", cosine)):
            schedule = S.resolve(name)
            for t in (-1.0, -1.0 + 1e-9, -0.3, 0.0, 0.5, 1.0, 437.25, 998.0, 998.75, 999.0):
                alpha, sigma = discrete_truth(betas, t)
                point = schedule.at(t)
                # log alpha is a sum of up to 1000 terms: 1000 EPS |log alpha| <= 2.2e-12 for the cosine's 9.9.
                assert abs(point.alpha - alpha) <= 2.5e-12 * alpha
                # log alpha at -1 + d is d log_alphas[0], with the relative error of beta_0.
                assert abs(point.sigma - sigma) <= 1e-12 * sigma


def test_vp_linear_is_the_integral_of_beta() -> None:
    schedule = S.vp_linear(0.3, 15.0)
    for t in (1e-3, 0.2, 0.7, 1.0):
        integral, _ = integrate.quad(lambda s: 0.3 + s * 14.7, 0.0, t, epsabs=0.0, epsrel=1e-13)
        assert schedule.log_alpha(t) == pytest.approx(-0.5 * integral, rel=1e-12)


def test_subvp_variance_solves_its_sde() -> None:
    """d var/dt = -beta var + g^2 with g^2 = beta (1 - exp(-2 int beta)) (Song et al. 2021, eq. 15 and App. B)."""
    schedule = S.subvp(0.2, 12.0)

    def rhs(t: float, y: np.ndarray) -> list[float]:
        beta, integral = 0.2 + 11.8 * t, 0.2 * t + 5.9 * t * t
        return [-beta * y[0] + beta * (1.0 - math.exp(-2.0 * integral))]

    grid = np.linspace(0.0, 1.0, 11)
    solution = integrate.solve_ivp(rhs, (0.0, 1.0), [0.0], t_eval=grid, rtol=1e-11, atol=1e-14, method="DOP853")
    np.testing.assert_allclose(schedule.sigma(grid) ** 2, solution.y[0], rtol=1e-8, atol=1e-12)


@every
def test_round_trip_from_times(schedule: S.NoiseSchedule) -> None:
    t = times(schedule)
    back = schedule.inverse_lambda(schedule.lam(t))
    assert np.max(np.abs(back - t)) <= 1e-10 * (schedule.t_max - schedule.t_clean)
    for end in (schedule.t_max, schedule.t_clean):
        assert schedule.inverse_lambda(schedule.lam(end)) == pytest.approx(end, rel=1e-12, abs=1e-12)


@every
def test_round_trip_from_lambdas(schedule: S.NoiseSchedule) -> None:
    # A time is known to half a unit in the last place, so lambda to |dlam/dt| EPS |t|. That stays below 1e-10 for all
    # finite ranges; where lambda is -inf at t_max it is EPS t / (t_max - t), which bounds the range: flow at -12
    # has t_max - t = 6e-6 / shift; zero_snr at -12 has t_max - t = 1e-3 of an index.
    low = max(schedule.lam(schedule.t_max), -12.0)
    lam = np.linspace(low, schedule.lam(schedule.t_floor), 2001)
    back = schedule.lam(schedule.inverse_lambda(lam))
    assert np.max(np.abs(back - lam)) <= 1e-10
    # Towards the clean end, sigma keeps its relative accuracy where time is counted from a clean time of 0.
    if schedule.t_clean == 0.0 and schedule.kind != "flow":
        lam = np.linspace(schedule.lam(schedule.t_floor), 30.0, 101)
        assert np.max(np.abs(schedule.lam(schedule.inverse_lambda(lam)) - lam)) <= 1e-10


@every
def test_ends(schedule: S.NoiseSchedule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean = schedule.at(schedule.t_clean)
        start = schedule.at(schedule.t_max)
        assert schedule.inverse_lambda(math.inf) == schedule.t_clean
    assert (clean.alpha, clean.sigma, clean.lam) == (1.0, 0.0, math.inf)
    assert math.copysign(1.0, clean.sigma) == 1.0
    assert schedule.t_clean <= schedule.t_min <= schedule.t_floor < schedule.t_max
    assert schedule.at(schedule.t_floor).sigma > 0.0
    if start.alpha == 0.0:
        assert start.sigma == 1.0 and start.lam == -math.inf
        assert schedule.inverse_lambda(-math.inf) == schedule.t_max
    else:
        with pytest.raises(ValueError, match="is not reached by"):
            # VE and EDM reach every lambda.
            schedule.inverse_lambda(math.nan if schedule.kind in ("ve", "edm") else start.lam - 1e-6)


@every
def test_monotone_and_consistent(schedule: S.NoiseSchedule) -> None:
    t = times(schedule)
    lam, alpha, sigma = schedule.lam(t), schedule.alpha(t), schedule.sigma(t)
    # Some of the times are neighbouring floats, and sigma saturates at 1.
    assert np.all(np.diff(lam) <= 0.0) and np.all(np.diff(sigma) >= 0.0)
    assert np.all(np.diff(schedule.lam(np.linspace(schedule.t_clean, schedule.t_max, 101))) < 0.0)
    if schedule.kind == "vp":
        np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=4 * EPS)
    points = [schedule.at(v) for v in t.tolist()]
    assert [(p.alpha, p.sigma, p.lam) for p in points] == list(zip(alpha, sigma, lam, strict=True))
    assert [p.model_time for p in points] == schedule.model_time(t).tolist()
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(np.exp(schedule.log_alpha(t)), alpha, rtol=1e-14)
    assert isinstance(schedule.sigma(float(t[3])), float)
    assert schedule.lam(t.reshape(1, -1)).shape == (1, t.size)


def test_model_times_and_priors() -> None:
    assert S.ddpm().model_time(437.0) == 437.0
    assert S.vp_linear(time_scale=999.0).model_time(0.5) == 499.5
    assert S.edm().model_time(3.5) == 3.5
    flow = S.flow(3.0, time_scale=1000.0)
    # The shift acts once: at t = 0.5 sigma is 3/4, and the network is given 750.
    assert (flow.at(0.5).sigma, flow.at(0.5).model_time) == (0.75, 750.0)
    assert [S.resolve(n).prior_std() for n in ("ddpm", "vp", "subvp", "flow")] == [1.0] * 4
    assert (S.ve().prior_std(), S.edm().prior_std(), S.edm().prior_std(2.0), flow.prior_std(0.5)) == (
        50.0,
        80.0,
        2.0,
        0.75,
    )


def test_default_ends() -> None:
    ends = {n: (s.t_max, s.t_min, s.t_clean, s.kind, s.discrete, s.num_train) for n, s in ALL.items()}
    for name in ("ddpm", "scaled_linear", "cosine", "zero_snr"):
        assert ends[name] == (999.0, 0.0, -1.0, "vp", True, 1000)
    assert ends["vp_linear"] == (1.0, 1e-3, 0.0, "vp", False, None)
    assert ends["vp_cosine"] == (0.9946, 1e-3, 0.0, "vp", False, None)
    assert ends["subvp"] == (1.0, 1e-3, 0.0, "subvp", False, None)
    assert ends["ve"] == (50.0, 0.01, 0.0, "ve", False, None)
    assert ends["edm"] == (80.0, 0.0, 0.0, "edm", False, None)
    assert ends["flow"] == (1.0, 0.0, 0.0, "flow", False, None)


def test_zero_terminal_snr() -> None:
    """Lin et al. 2023, Algorithm 1, written on alphas: subtract the last, rescale to keep the first."""
    plain, zero = S.scaled_linear(), S.scaled_linear(zero_terminal_snr=True)
    alpha = np.sqrt(plain.alphas_cumprod)
    expected = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    np.testing.assert_allclose(zero.alpha(np.arange(1000.0)), expected, rtol=1e-12)
    assert zero.alpha(999.0) == 0.0 and zero.betas[-1] == 1.0
    # alpha is linear on the last interval.
    assert zero.alpha(998.25) == pytest.approx(0.75 * zero.alpha(998.0), rel=1e-12)
    assert np.isfinite(zero.lam(np.nextafter(999.0, 0.0)))
    assert S.discrete(alphas_cumprod=zero.alphas_cumprod).zero_terminal


def test_discrete_tables() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    schedule = S.discrete(betas=betas)
    assert schedule == S.ddpm() and hash(schedule) == hash(S.ddpm())
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-11)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1.0 - betas), rtol=1e-12)
    np.testing.assert_allclose(
        S.discrete(alphas_cumprod=np.cumprod(1.0 - betas)).lam(499.5), schedule.lam(499.5), rtol=1e-10
    )
    one = S.discrete(betas=[0.3])
    assert (one.t_max, one.t_min, one.num_train) == (0.0, 0.0, 1)
    assert one.at(0.0).alpha == pytest.approx(math.sqrt(0.7), rel=1e-15)


@every
def test_content(schedule: S.NoiseSchedule) -> None:
    again = S.NoiseSchedule.from_dict(json.loads(json.dumps(schedule.to_dict(), allow_nan=False)))
    assert again == schedule and hash(again) == hash(schedule) and repr(again) == repr(schedule)
    assert again.fingerprint() == schedule.fingerprint() and len(again.fingerprint()) == 64
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    told = json.dumps(schedule.told, default=dict)
    assert json.loads(told) == schedule.to_dict() and schedule.told == schedule.told and schedule.told is schedule.told
    assert S.NoiseSchedule.from_dict(schedule.told) is schedule and not hasattr(schedule.told, "__setitem__")
    assert repr(pickle.loads(pickle.dumps(schedule)).told) == repr(schedule.told)
    scaled = dataclasses.replace(schedule, time_scale=12.5)
    assert scaled.told["time_scale"] == 12.5
    assert scaled != schedule and scaled.fingerprint() != schedule.fingerprint() and "12.5" in repr(scaled)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.time_scale = 2.0  # type: ignore[misc]


def test_fingerprints_differ() -> None:
    assert len({s.fingerprint() for s in ALL.values()}) == len(ALL)
    assert S.vp_linear() != S.subvp() and S.ve(0.1, 9.0) != S.edm(0.1, 9.0)


def test_resolve() -> None:
    assert S.resolve("sd") == S.scaled_linear() and S.resolve("vp") == S.vp_linear()
    schedule = S.flow(2.0)
    assert S.resolve(schedule) is schedule
    with pytest.raises(ValueError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        S.resolve("cosin")
    with pytest.raises(ValueError, match="schedule got int"):
        S.resolve(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: S.discrete(), "both or neither of betas and alphas_cumprod"),
        (lambda: S.discrete(betas=[0.1], alphas_cumprod=[0.9]), "both or neither"),
        (lambda: S.discrete(betas=[[0.1, 0.2]]), r"betas got shape \(1, 2\); expected one dimension"),
        (lambda: S.discrete(betas=[]), r"betas got shape \(0,\)"),
        (lambda: S.discrete(betas=[0.1, 0.0]), r"betas must lie in \(0, 1\).*got 0.0"),
        (lambda: S.discrete(betas=[1.0, 0.1]), r"betas must lie in \(0, 1\).*got 1.0"),
        (lambda: S.discrete(betas=[0.1, math.nan]), "betas must be finite; got nan"),
        (lambda: S.discrete(betas=[1.0]), "alpha > 0"),
        (lambda: S.discrete(alphas_cumprod=[0.5, 0.9]), "must strictly decrease with time; got 0.5 at 0 and 0.9 at 1"),
        (lambda: S.discrete(alphas_cumprod=[1.0, 0.9]), r"alphas_cumprod must lie in \(0, 1\).*got 1.0"),
        (lambda: S.discrete(betas=[0.1], zero_terminal_snr=True), "at least 2 training times"),
        (lambda: S.ddpm(0), "num_train got 0"),
        (lambda: S.vp_linear(-1.0), "beta_min got -1.0; expected a finite number > 0"),
        (lambda: S.vp_linear(2.0, 1.0), "expected beta_min <= beta_max"),
        (lambda: S.ve(1.0, 1.0), "expected sigma_min < sigma_max"),
        (lambda: S.flow(0.0), "shift got 0.0"),
        (lambda: S.edm(time_scale=math.inf), "time_scale got inf"),
        (lambda: S.ddpm().at(999.5), r"time 999.5 is outside the range of ddpm\(.*-1.0 \(clean\) <= t <= 999.0"),
        (lambda: S.vp_linear().sigma(np.array([0.5, -0.1])), "time -0.1 is outside the range"),
        (lambda: S.flow().lam(math.nan), "time nan is outside"),
        (lambda: S.edm().check(81.0), "time 81.0 is outside"),
        (lambda: S.NoiseSchedule.from_dict({"type": "Flo"}), "unknown schedule type 'Flo'; did you mean 'Flow'"),
        (lambda: S.NoiseSchedule.from_dict({"type": "Flow", "shif": 1}), "unknown field of Flow 'shif'"),
        (lambda: S.NoiseSchedule.from_dict({"type": "VE"}), "VE lacks the fields sigma_min, sigma_max"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_sigma_above_the_largest_is_allowed_for_churn() -> None:
    assert S.edm().at(100.0).sigma == 100.0


def test_unknown() -> None:
    assert (
        unknown("spacing", "karas", ["karras", "x"])
        == "unknown spacing 'karas'; did you mean 'karras'? Valid: karras, x"
    )
    assert unknown("spacing", 7, ["karras"]) == "unknown spacing 7. Valid: karras"


@every
def test_points_are_at_of_each_time_to_the_last_bit(schedule: S.NoiseSchedule) -> None:
    times = np.linspace(min(schedule.t_max, 900.0), schedule.t_min, 37)
    times = np.append(times, schedule.t_clean) if schedule.t_clean < schedule.t_min else times
    for some in (times, times[:1], times[::-1], times[3:8]):
        assert [tuple(p) for p in schedule.points(some)] == [tuple(schedule.at(float(t))) for t in some]
    with pytest.raises(ValueError, match="outside the range"):
        schedule.points([schedule.t_clean - 1.0])
