"""Adaptive methods: against scipy, closed forms and the published DPM-Solver-12/23; counts, control, directions."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers.analytic import gaussian, gaussian_ode, mixture_ode, point
from helpers.models import BACKENDS, MIXTURE, Field, X, simple
from scipy.integrate import solve_ivp

import fastdiff
from fastdiff import schedules
from fastdiff.solvers.ode import DORMAND_PRINCE

ADAPTIVE = [m for m, entry in fastdiff.methods().items() if entry["adaptive"]]
TIGHT = {"method": "ode", "rtol": 1e-10, "atol": 1e-11, "dtype": torch.float64}


def truth(schedule, x: torch.Tensor, t_end: float) -> np.ndarray:
    s = schedules.resolve(schedule)
    return mixture_ode(MIXTURE, x.numpy(), (s.alpha(s.t_max), s.sigma(s.t_max)), (s.alpha(t_end), s.sigma(t_end)))


def test_the_tableau_is_of_order_five_with_a_fourth_order_companion() -> None:
    """The quadrature and the first tree conditions of Hairer, Norsett and Wanner, II.1, in rounding."""
    c, b, lower = np.array(DORMAND_PRINCE.nodes), np.array(DORMAND_PRINCE.result), np.array(DORMAND_PRINCE.lower)
    a = np.zeros((7, 7))
    for j, row in enumerate(DORMAND_PRINCE.weights):
        a[j + 1, : len(row)] = row
    np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
    for k in range(1, 6):
        np.testing.assert_allclose(b @ c ** (k - 1), 1 / k, atol=1e-14)
    for weights, order in ((b, 5), (lower, 4)):
        np.testing.assert_allclose(weights @ (a @ c), 1 / 6, atol=1e-14)
        np.testing.assert_allclose(weights @ (a @ c**2), 1 / 12, atol=1e-14)
        np.testing.assert_allclose(weights @ (a @ (a @ c)), 1 / 24, atol=1e-14)
        np.testing.assert_allclose(weights @ c ** (order - 1), 1 / order, atol=1e-14)
    np.testing.assert_allclose(b @ (a @ c**3), 1 / 20, atol=1e-14)
    np.testing.assert_allclose(DORMAND_PRINCE.error, b - lower, atol=0)


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize("form", ["velocity", "noise"])
@pytest.mark.parametrize("schedule", ["vp_linear", "ddpm", "subvp", "ve", "cosine", "vp_cosine"])
def test_ode_agrees_with_scipy(schedule: str, form: str, control: str) -> None:
    s = schedules.resolve(schedule)
    x = X * s.prior_std()
    got = fastdiff.sample(Field(MIXTURE, s), x, schedule=s, form=form, control=control, **TIGHT)
    # A tolerance of 1e-10 a step, over about a hundred steps; scipy's own error is 1e-12.
    np.testing.assert_allclose(got.numpy(), truth(s, x, s.t_min), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["vp", "subvp", "ve"])
def test_ode_agrees_with_the_score_sde_drift_in_time(kind: str) -> None:
    """dx/dt = f(x, t) - g(t)²·score/2 (Song et al. 2021, eq. 13), f and g of App. C, by scipy's RK45 in t."""
    b0, b1, low, high, eps = 0.1, 20.0, 0.01, 50.0, 1e-3
    s = {"vp": schedules.vp_linear(), "subvp": schedules.subvp(), "ve": schedules.ve(low, high)}[kind]

    def drift(t: float, flat: np.ndarray) -> np.ndarray:
        x = flat.reshape(X.shape)
        if kind == "ve":
            sigma = low * (high / low) ** t
            return (-0.5 * 2 * sigma**2 * np.log(high / low) * MIXTURE.predict("score", x, 1.0, sigma)).ravel()
        beta, integral = b0 + t * (b1 - b0), b0 * t + 0.5 * t**2 * (b1 - b0)
        alpha = np.exp(-0.5 * integral)
        square, sigma = beta, np.sqrt(1 - alpha**2)
        if kind == "subvp":
            square, sigma = beta * (1 - np.exp(-2 * integral)), 1 - alpha**2
        return (-0.5 * beta * x - 0.5 * square * MIXTURE.predict("score", x, alpha, sigma)).ravel()

    x = X * s.prior_std()
    want = (
        solve_ivp(drift, (1.0, eps), x.numpy().ravel(), method="RK45", rtol=1e-11, atol=1e-11).y[:, -1].reshape(X.shape)
    )
    t_end = low * (high / low) ** eps if kind == "ve" else eps
    got = fastdiff.sample(Field(MIXTURE, s, "score"), x, schedule=s, prediction="score", t_end=t_end, **TIGHT)
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-8)


def test_the_error_falls_with_the_tolerance() -> None:
    want, errors, counts = truth("vp_linear", X, 1e-3), [], []
    for tolerance in (1e-4, 1e-6, 1e-8):
        got, info = fastdiff.sample(
            Field(MIXTURE, "vp_linear"),
            X,
            method="ode",
            schedule="vp_linear",
            rtol=tolerance,
            atol=tolerance,
            dtype=torch.float64,
            return_info=True,
        )
        errors.append(np.abs(got.numpy() - want).max())
        counts.append(info.nfe)
    # The local error is controlled, of order h^5, and the accepted solution is the better one: global error ~
    # tolerance.
    assert errors[0] < 1e-2 and errors[1] < errors[0] / 20 and errors[2] < errors[1] / 20
    # A hundredth of the tolerance takes 100^(1/5) = 2.5 times the steps, asymptotically.
    assert counts[0] < counts[1] < 3.5 * counts[0] and counts[1] < counts[2] < 3.5 * counts[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("schedule", ["ddpm", "vp_linear", "subvp", "ve", "edm"])
def test_point_mass_is_exact(schedule: str, method: str, backend: str) -> None:
    mean, s = np.array([0.7, -1.3, 0.2]), schedules.resolve(schedule)
    start = torch.from_numpy(gaussian_ode(mean, 0.0, X.numpy(), s.alpha(s.t_max), s.sigma(s.t_max)))
    options = {"schedule": s, "dtype": torch.float64, "backend": backend}
    # No error, so dpm_adaptive takes a step of h = 10 in lambda on VP, which multiplies a round-off by e^h = 2e4.
    if long := method == "dpm_adaptive" and s.kind == "vp":
        with pytest.warns(UserWarning, match=r"took one step of \S+ in lambda, from t=\S+ to t=.*give h_max=2, or"):
            got = fastdiff.sample(Field(point(mean), s), start, method=method, **options)
    else:
        got = fastdiff.sample(Field(point(mean), s), start, method=method, **options)
    want = gaussian_ode(mean, 0.0, X.numpy(), s.alpha(s.t_min), s.sigma(s.t_min))
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=2e-8 if long else 2e-10)


@pytest.mark.parametrize("prediction", ["flow", "v", "x0"])
@pytest.mark.parametrize("schedule", [schedules.flow(), schedules.flow(3.0), schedules.ddpm(zero_terminal_snr=True)])
def test_starts_without_signal(schedule, prediction: str) -> None:
    """alpha = 0 at the start: the closed form of a Gaussian, x = sigma·z there and mean + std·z at the data."""
    mean, std = np.array([0.7, -1.3, 0.2]), 0.4
    got = fastdiff.sample(
        Field(gaussian(mean, std), schedule, prediction), X, schedule=schedule, prediction=prediction, **TIGHT
    )
    want = gaussian_ode(mean, std, X.numpy(), schedule.alpha(schedule.t_min), schedule.sigma(schedule.t_min))
    # From x0 the flow ends by a step of first order at the floor's sigma: its error is std·z·(sigma/std)²/2.
    last = (
        0.51 * schedule.sigma(schedule.t_floor) ** 2 / std * 2.0
        if prediction == "x0" and schedule.kind == "flow"
        else 0.0
    )
    assert schedule.alpha(schedule.t_max) == 0 and np.abs(got.numpy() - want).max() < 1e-8 + last


def test_starts_without_signal_that_cannot_be() -> None:
    snr = schedules.ddpm(zero_terminal_snr=True)
    with pytest.raises(
        ValueError, match=r"alpha=0, sigma=1.*zero terminal SNR the network must predict 'v', 'x0' or 'flow'"
    ):
        fastdiff.sample(simple, X, method="ode", schedule=snr)
    with pytest.raises(ValueError, match=r"form='noise' divides by alpha, which is 0 at t=999"):
        fastdiff.sample(simple, X, method="ode", schedule=snr, prediction="v", form="noise")
    with pytest.raises(
        ValueError, match=r"cannot start at t=1, where alpha = 0.*earlier t_start, such as 0.999, or method='ode'"
    ):
        fastdiff.sample(simple, X, method="dpm_adaptive", schedule="flow", prediction="flow")
    got = fastdiff.sample(simple, X, method="dpm_adaptive", schedule="flow", prediction="flow", t_start=0.999)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("form", ["velocity", "noise"])
@pytest.mark.parametrize("schedule", ["vp_linear", "ddpm", "ve"])
def test_reversal_reconstructs(schedule: str, form: str) -> None:
    s = schedules.resolve(schedule)
    data = X * 0.5
    sampler = fastdiff.Sampler(schedule=s, form=form, **TIGHT)
    noise = sampler.invert(Field(MIXTURE, s), data)
    back = sampler(Field(MIXTURE, s), noise)
    # The map contracts towards noise, so the errors of 1e-10 grow on the way back by at most the ratio of scales.
    assert float((back - data).abs().max()) < 1e-7
    again = fastdiff.sample(Field(MIXTURE, s), data, schedule=s, form=form, t_start=s.t_min, t_end=s.t_max, **TIGHT)
    assert torch.equal(again, noise)
    with pytest.raises(ValueError, match="runs from data to noise: pass x"):
        fastdiff.sample(Field(MIXTURE, s), shape=(1, 3), schedule=s, t_start=s.t_min, t_end=s.t_max, **TIGHT)


def expected_calls(method: str, order: int, accepted: int, rejected: int) -> int:
    # ode: the first value, one for the first step, six a trial. dpm: every step's first value once, the others every
    # trial.
    return 2 + 6 * (accepted + rejected) if method == "ode" else accepted + (order - 1) * (accepted + rejected)


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize(("method", "order"), [("ode", 5), ("dpm_adaptive", 2), ("dpm_adaptive", 3)])
def test_evaluations_are_counted_and_never_repeated(method: str, order: int, control: str) -> None:
    model = Field(MIXTURE, "vp_linear")
    options = {"rtol": 1e-6, "atol": 1e-6} if method == "ode" else {"order": order}
    _, info = fastdiff.sample(
        model, X, method=method, schedule="vp_linear", control=control, dtype=torch.float64, return_info=True, **options
    )
    assert isinstance(info, fastdiff.Info) and info.nfe == len(model.calls) and int(info.rejected.sum()) > 0
    for b in range(4):
        accepted, rejected = int(info.accepted[b]), int(info.rejected[b])
        assert int(info.evaluations[b]) == expected_calls(method, order, accepted, rejected)
        assert len(info.times[b]) == accepted + 1 and info.times[b][0] == 1.0
        assert list(info.times[b]) == sorted(info.times[b], reverse=True) and abs(info.times[b][-1] - 1e-3) <= 1e-5
    if control == "batch":
        # A rejected step does not evaluate its first value again.
        assert len(set(model.calls)) == info.nfe and set(info.evaluations.tolist()) == {info.nfe}
    else:
        assert len(set(info.times)) == 4 and int(info.evaluations.max()) <= info.nfe


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ode", {"rtol": 1e-4, "atol": 1e-4}),
        ("dpm_adaptive", {}),
        ("dpm_adaptive", {"algorithm_type": "dpmsolver++", "clip": (-2.0, 2.0)}),
    ],
)
def test_with_control_by_sample_a_sample_does_not_depend_on_its_batch(method, options, dtype, backend) -> None:
    common = {
        "method": method,
        "control": "sample",
        "dtype": dtype,
        "backend": backend,
        "denoise_to_zero": True,
        "seed": 3,
        **options,
    }
    whole, info = fastdiff.sample(simple, shape=(5, 3, 7), return_info=True, **common)
    parts = [
        fastdiff.sample(simple, shape=(n, 3, 7), first_sample=i, return_info=True, **common)
        for i, n in ((0, 1), (1, 3), (4, 1))
    ]
    assert torch.equal(whole, torch.cat([x for x, _ in parts]))
    assert info.times == sum((part.times for _, part in parts), ()) and len(set(info.times)) > 1
    for name in ("evaluations", "accepted", "rejected"):
        assert torch.equal(getattr(info, name), torch.cat([getattr(part, name) for _, part in parts]))


def test_a_step_over_a_jump_is_rejected_until_it_fits() -> None:
    """A drift that turns at t = 0.5: the solution is known on both sides."""

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.where(t.reshape(-1, 1) > 0.5, torch.ones_like(x), -torch.ones_like(x))

    got, info = fastdiff.sample(
        model,
        X,
        method="ode",
        schedule="flow",
        prediction="flow",
        rtol=1e-8,
        atol=1e-8,
        dtype=torch.float64,
        return_info=True,
    )
    # dx/dt = ±1 over two equal halves: back at the start. Only the step over the jump errs, by at most twice its
    # width, and it is the smallest: it must shrink until its error fits.
    smallest = min(a - b for a, b in zip(info.times[0], info.times[0][1:], strict=False))
    assert int(info.rejected[0]) >= 5 and smallest < 1e-5
    assert float((got - X).abs().max()) <= 2 * smallest


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_last_step_is_the_predicted_x0(method: str, control: str) -> None:
    s = schedules.vp_linear()
    common = {"method": method, "schedule": s, "dtype": torch.float64, "control": control, "return_info": True}
    plain, before = fastdiff.sample(Field(MIXTURE, s), X, t_end=0.1, **common)
    clean, after = fastdiff.sample(Field(MIXTURE, s), X, t_end=0.1, denoise_to_zero=True, **common)
    want = MIXTURE.x0(plain.numpy(), s.alpha(0.1), s.sigma(0.1))
    np.testing.assert_allclose(clean.numpy(), want, rtol=1e-12, atol=1e-12)
    # The last evaluation of an accepted ode step is at its end already.
    extra = 0 if method == "ode" else 1
    assert torch.equal(after.evaluations, before.evaluations + extra)
    assert all(b == (*a, 0.0) for a, b in zip(before.times, after.times, strict=True))


PUBLISHED = {
    ("dpmsolver", 2, "dpmsolver"): (26, 17, [0.9741555340561581, -0.725530825988509, 0.5079318134865376]),
    ("dpmsolver", 3, "dpmsolver"): (10, 6, [0.9722004031977758, -0.7206774876128967, 0.5066316448920806]),
    ("dpmsolver++", 2, "dpmsolver"): (14, 6, [0.9586751259421644, -0.7085415375152138, 0.5028433907758629]),
    ("dpmsolver++", 3, "taylor"): (8, 4, [0.9672945291259532, -0.71736277292338, 0.5055215917642267]),
}
"""Accepted and rejected steps and the first sample of LuChengTHU/dpm-solver's `method="adaptive"` in float64, on
MIXTURE from X, linear VP from t = 1 to 1e-3, its defaults. Its one cast of the step to float32 was taken out, which
else makes 1e-8 of difference."""


@pytest.mark.parametrize("key", PUBLISHED)
def test_dpm_adaptive_equals_the_published_code(key) -> None:
    algorithm, order, form = key
    accepted, rejected, want = PUBLISHED[key]
    got, info = fastdiff.sample(
        Field(MIXTURE, "vp_linear"), X, method="dpm_adaptive", schedule="vp_linear", order=order,
        algorithm_type=algorithm, solver_type=form, dtype=torch.float64, return_info=True,
    )  # fmt: skip
    assert (int(info.accepted[0]), int(info.rejected[0])) == (accepted, rejected)
    np.testing.assert_allclose(got[0].numpy(), want, rtol=1e-11)


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("std", [0.1, 0.6, 1.5])
@pytest.mark.parametrize(
    ("schedule", "h_max"), [("edm", None), ("ve", None), ("subvp", None), ("sd", 2.0), ("vp_linear", 2.0)]
)
def test_dpm_adaptive_keeps_its_tolerance_on_a_gaussian(schedule: str, h_max, std: float, algorithm: str) -> None:
    """rtol is 0.05 of x in a step; without a bound of the step the result was off by 12 times the data's size (EDM)."""
    s, mean = schedules.resolve(schedule), np.array([0.3, 0.3, 0.3])
    field = Field(gaussian(mean, std), s)
    start = torch.from_numpy(gaussian_ode(mean, std, X.numpy(), s.alpha(s.t_max), s.sigma(s.t_max)))
    bound = {} if h_max is None else {"h_max": h_max}
    got, info = fastdiff.sample(
        field,
        start,
        method="dpm_adaptive",
        algorithm_type=algorithm,
        schedule=s,
        dtype=torch.float64,
        return_info=True,
        **bound,
    )
    want = gaussian_ode(mean, std, X.numpy(), s.alpha(s.t_min), s.sigma(s.t_min))
    assert np.abs(got.numpy() - want).max() < 0.05 * 3 * std + 0.0078
    levels = [s.lam(t) for t in info.times[0] if t > s.t_clean]
    assert np.diff(levels).max() <= 2 + 1e-9 and info.nfe < 50


@pytest.mark.parametrize(
    "options", [{"order": 2}, {"order": 3}, {"algorithm_type": "dpmsolver++"}, {"solver_type": "taylor"}]
)
def test_dpm_adaptive_converges_to_the_ode(options) -> None:
    errors = [
        np.abs(
            fastdiff.sample(
                Field(MIXTURE, "vp_linear"),
                X,
                method="dpm_adaptive",
                schedule="vp_linear",
                rtol=tol,
                atol=tol,
                dtype=torch.float64,
                **options,
            ).numpy()
            - truth("vp_linear", X, 1e-3)
        ).max()
        for tol in (1e-2, 1e-4)
    ]
    assert errors[0] < 0.1 and errors[1] < min(2e-3, errors[0] / 5)


@pytest.mark.parametrize("method", ["ode", "dpm_adaptive"])
def test_its_sampler_may_be_copied_and_pickled(method: str) -> None:
    sampler = fastdiff.Sampler(method, schedule="vp_linear", rtol=1e-2)
    want = sampler(lambda x, t: 0.3 * x, shape=(2, 3))
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert repr(other) == repr(sampler) and torch.equal(other(lambda x, t: 0.3 * x, shape=(2, 3)), want)
