"""Adaptive methods: against scipy, closed forms and the published DPM-Solver-12/23; counts, control, directions,
errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import Mixture, gaussian, gaussian_ode, mixture, mixture_ode, point
from models import wavy
from scipy.integrate import solve_ivp

import fastdiff
from fastdiff import ops, schedules
from fastdiff.solvers import find
from fastdiff.solvers.ode import ERROR, LOWER, NODES, WEIGHTS

BACKENDS = [name for name in ("reference", "cpu") if ops.load(name).available()[0]]
ADAPTIVE = [m for m, entry in fastdiff.methods().items() if entry["adaptive"]]
MIXTURE = mixture([0.4, 0.6], [[-0.8, 0.5, 0.1], [0.9, -0.3, 0.4]], [0.3, 0.45])
X = torch.tensor([[0.5, -1.1, 0.3], [2.0, 0.3, -0.7], [-1.7, -0.2, 0.9], [0.1, 1.4, -0.4]], dtype=torch.float64)
TIGHT = {"method": "ode", "rtol": 1e-10, "atol": 1e-11, "dtype": torch.float64}


class Field:
    """The perfect network in float64, each row at a time of its own; counts its calls and notes where they were."""

    dtype = torch.float64

    def __init__(self, dist: Mixture, schedule, prediction: str = "eps") -> None:
        self.dist, self.noise, self.kind = dist, schedules.resolve(schedule), prediction
        self.calls: list[tuple[bytes, bytes]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls.append((x.numpy().tobytes(), t.numpy().tobytes()))
        times = t.double().numpy()
        parts = [slice(None)] if (times == times[0]).all() else [slice(i, i + 1) for i in range(len(x))]
        out = [self.dist.predict(self.kind, x[p].double().numpy(), *self.level(float(times[p][0]))) for p in parts]
        return torch.from_numpy(np.concatenate(out)).to(x.dtype)

    def level(self, t: float) -> tuple[float, float]:
        if self.noise.kind == "flow":
            return 1.0 - t, t  # the model's time is sigma, whatever the shift
        return self.noise.alpha(t), self.noise.sigma(t)


def simple(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Exact operations alone: the same bits for every layout of the batch."""
    return x / (1.0 + x * x) * (1.0 + t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * 0.001)


def truth(schedule, x: torch.Tensor, t_end: float) -> np.ndarray:
    s = schedules.resolve(schedule)
    return mixture_ode(MIXTURE, x.numpy(), (s.alpha(s.t_max), s.sigma(s.t_max)), (s.alpha(t_end), s.sigma(t_end)))


def test_the_tableau_is_of_order_five_with_a_fourth_order_companion() -> None:
    """The quadrature and the first tree conditions of Hairer, Norsett and Wanner, II.1, in rounding."""
    c, b, lower = np.array(NODES), np.array([*WEIGHTS[-1], 0.0]), np.array(LOWER)
    a = np.zeros((7, 7))
    for j, row in enumerate(WEIGHTS):
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
    np.testing.assert_allclose(ERROR, b - lower, atol=0)


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
    got = fastdiff.sample(Field(point(mean), s), start, method=method, schedule=s, dtype=torch.float64, backend=backend)
    want = gaussian_ode(mean, 0.0, X.numpy(), s.alpha(s.t_min), s.sigma(s.t_min))
    # No error, so dpm_adaptive takes a step of h = 14 in lambda (sub-VP), which multiplies a round-off by e^h = 1e6.
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=2e-10 if method == "ode" else 2e-8)


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_predictions_agree(method: str, backend: str) -> None:
    results = [
        fastdiff.sample(Field(MIXTURE, "ddpm", p), X, prediction=p, method=method, dtype=torch.float64, backend=backend)
        for p in ("eps", "x0", "v", "score", "flow")
    ]
    for other in results[1:]:
        # One distribution told five ways: round-off, amplified by 1/alpha_T = 160 in the conversions.
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_guidance_equals_the_formula(method: str, control: str) -> None:
    a, b = torch.ones(4, 3, dtype=torch.float64), -0.3 * torch.ones(4, 3, dtype=torch.float64)

    def conditional(x, t, y):
        return simple(x + y, t)

    def mixed(x, t):
        return 2.5 * conditional(x, t, a) - 1.5 * conditional(x, t, b)

    common = {"method": method, "control": control, "dtype": torch.float64}
    for backend in BACKENDS:
        got = fastdiff.sample(
            conditional, X, guidance_scale=2.5, cond={"y": a}, uncond={"y": b}, backend=backend, **common
        )
        torch.testing.assert_close(got, fastdiff.sample(mixed, X, backend=backend, **common), rtol=1e-9, atol=1e-9)
    s = schedules.ddpm()

    def shifted(x, t):
        sigma = torch.from_numpy(s.sigma(t.double().numpy())).reshape(-1, 1)
        return simple(x, t) - sigma * 0.3 * torch.tanh(x)

    got = fastdiff.sample(simple, X, classifier_grad=lambda x, t: 0.3 * torch.tanh(x), **common)
    # The time reaches the model as float32 here, off by 2^-25 of it.
    torch.testing.assert_close(got, fastdiff.sample(shifted, X, **common), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_clipping_reaches_every_evaluation(method: str) -> None:
    for clip in ((-0.5, 0.5), "dynamic"):
        for control in ("batch", "sample"):
            results = [
                fastdiff.sample(
                    Field(MIXTURE, "ddpm"),
                    X,
                    method=method,
                    clip=clip,
                    control=control,
                    denoise_to_zero=True,
                    dtype=torch.float64,
                    backend=b,
                )
                for b in BACKENDS
            ]
            bound = 0.5 if clip != "dynamic" else 1.0
            assert float(results[0].abs().max()) <= bound + 1e-12
            for other in results[1:]:
                # Where all is clipped an ode step's error is round-off, and so is the next step's width: the times
                # differ, and the results by what the tolerance allows: atol + rtol·|x| = 2e-5.
                tolerance = 2e-5 if method == "ode" else 1e-9
                torch.testing.assert_close(other, results[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_networks_and_states_of_every_dtype(method: str) -> None:
    class Net(torch.nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))

        def forward(self, x, t):
            seen.append(x.dtype)
            return simple(x, t) * self.weight

    exact = fastdiff.sample(simple, X, method=method, rtol=1e-3, atol=1e-3, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        for backend in BACKENDS:
            seen: list[torch.dtype] = []
            got = fastdiff.sample(Net(dtype), X, method=method, rtol=1e-3, atol=1e-3, backend=backend)
            assert set(seen) == {dtype} and got.dtype == torch.float32
            # Both are within the tolerance of a step of the ODE's solution; bfloat16 outputs add their 2^-9.
            assert float((got.double() - exact).abs().max()) < (0.02 if dtype == torch.float32 else 0.3)


def test_hooks_and_outputs() -> None:
    seen, out = [], torch.empty(4, 3, dtype=torch.float64)
    got, path, info = fastdiff.sample(
        Field(MIXTURE, "vp_linear"), X, method="ode", schedule="vp_linear", dtype=torch.float64, return_trajectory=True,
        return_info=True, callback=lambda step, t, x, x0: seen.append((step, t, x, x0)), out=out, progress=True,
    )  # fmt: skip
    steps = int(info.accepted[0])
    assert got is out and path.x.shape == (steps + 1, 4, 3) and path.x0.shape == (steps, 4, 3)
    assert path.times.tolist() == list(info.times[0]) == [*(t for _, t, _, _ in seen), 1e-3]
    assert torch.equal(path.x[0], X) and torch.equal(path.x[-1], got) and [k for k, *_ in seen] == list(range(steps))
    s = schedules.vp_linear()
    for t, x, x0 in zip(path.times.tolist(), path.x, path.x0, strict=False):
        # x0 = (u − sigma·eps)/alpha cancels to 1/alpha_T = 150 round-offs.
        np.testing.assert_allclose(x0.numpy(), MIXTURE.x0(x.numpy(), s.alpha(t), s.sigma(t)), rtol=1e-10, atol=1e-10)
    assert torch.equal(fastdiff.sample(wavy, X, method="ode"), fastdiff.sample(wavy, X, method="rk45"))
    assert torch.equal(X, path.x[0])


@pytest.mark.parametrize("method", ADAPTIVE)
def test_habits_of_models(method: str) -> None:
    want = fastdiff.sample(wavy, X, method=method)
    buffer = torch.empty(4, 3)
    assert torch.equal(fastdiff.sample(lambda x, t: buffer.copy_(wavy(x, t)), X, method=method), want)
    same = fastdiff.sample(lambda x, t: x, X, method=method)
    assert torch.equal(same, fastdiff.sample(lambda x, t: x.clone(), X, method=method))
    with pytest.raises(RuntimeError, match="changed its input in place"):
        fastdiff.sample(lambda x, t: x.mul_(0.5), X, method=method)
    assert torch.equal(fastdiff.sample(lambda x, t: wavy(x, t.mul_(1.0)), X, method=method), want)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 10}, ValueError, r"steps=10 does not apply.*\(method='ode', rtol=1e-05, atol=1e-05\)"),
        ({"spacing": "logsnr"}, ValueError, "spacing='logsnr' does not apply"),
        ({"rtl": 1e-3}, ValueError, "unknown option of method 'ode': 'rtl'; did you mean 'rtol'"),
        ({"rtol": -1.0}, ValueError, "rtol=-1.0: method 'ode' accepts"),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "rtol=0 and atol=0: method 'ode' needs one of them above 0"),
        ({"control": "each"}, ValueError, "unknown control of method 'ode': 'each'.*Valid: batch, sample"),
        ({"t_start": 5.0, "t_end": 5.0}, ValueError, "the same time"),
        ({"t_start": 1200.0}, ValueError, "t_start: time 1200.0 is outside"),
        ({"t_start": 0.0, "t_end": 9.0, "denoise_to_zero": True}, ValueError, "goes from noise to data"),
        ({"graph": True}, RuntimeError, "graph=True: method 'ode' chooses each step from the error of the last"),
        ({"max_nfe": 20, "rtol": 1e-9}, RuntimeError, r"max_nfe=20: at t=.* rejected steps.*raise max_nfe"),
        ({"control": "sample", "return_trajectory": True}, ValueError, "control='sample' each sample has its own"),
        ({"correct_x0": lambda x0, t: x0}, ValueError, "do not go with adaptive methods"),
        ({"method": "dpm_adaptive", "t_start": 0.0, "t_end": 9.0}, ValueError, "method='ode' runs either way"),
        ({"method": "dpm_adaptive", "order": 4}, ValueError, "order=4: method 'dpm_adaptive' accepts 2, 3"),
        ({"method": "dpm_adaptive", "theta": 0.0}, ValueError, "theta=0: .*expects a number above"),
        ({"method": "dpm3", "return_info": True}, ValueError, r"adaptive methods.*\(10 network evaluations\)"),
    ],
)  # fmt: skip
def test_errors(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        fastdiff.sample(simple, X, **{"method": "ode", **arguments})


def test_tolerances_that_cannot_be_reached() -> None:
    with pytest.raises(
        RuntimeError, match=r"the step fell to .*below rounding.*loosen rtol and atol, use dtype=torch.float64"
    ):
        fastdiff.sample(lambda x, t: torch.randn_like(x), X, method="ode", rtol=1e-18, atol=1e-18)


@pytest.mark.parametrize("control", ["batch", "sample"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_values_that_are_not_finite(method: str, control: str) -> None:
    def model(x, t):
        out = simple(x, t)
        out[2] = torch.where(t[2] < 500, torch.full_like(out[2], float("nan")), out[2])
        return out

    with pytest.raises(
        FloatingPointError,
        match=r"error of the step from t=.* is NaN or Inf for " + ("sample 2" if control == "sample" else "the batch"),
    ):
        fastdiff.sample(model, X, method=method, control=control)
    with pytest.raises(FloatingPointError, match=r"returned NaN or Inf at step .* for sample 2 of 4"):
        fastdiff.sample(model, X, method=method, control=control, check_finite=True)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_there_is_no_plan(method: str) -> None:
    sampler = fastdiff.Sampler(method)
    assert isinstance(sampler, fastdiff.Sampler) and repr(sampler).startswith(f"Sampler({method!r}, rtol=")
    with pytest.raises(AttributeError, match=f"'{method}' is adaptive and has no plan"):
        _ = sampler.plan
    with pytest.raises(ValueError, match=f"'{method}' is adaptive and has no plan"):
        fastdiff.plan(method)
    with pytest.raises(ValueError, match="its loop cannot be the caller's"):
        sampler.begin(X)
    assert find(method).adaptive and fastdiff.methods()[method]["adaptive"]
    if method == "dpm_adaptive":
        with pytest.raises(ValueError, match="invert method='ode'"):
            sampler.invert(simple, X)
