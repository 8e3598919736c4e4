"""What looks right and is not: refused with the call that is right, or said once."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from helpers.models import simple as still
from helpers.models import wavy

import fastdiff
from fastdiff import losses, names, schedules
from fastdiff.analytic import Gamma

X = torch.linspace(-2, 2, 2 * 3).reshape(2, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"schedule": schedules.vp_linear(0.1, 400.0)}, r"x grows by a factor above e\^\d+ .*t_start"),
        ({"guidance_scale": 1e300, "cond": {}, "uncond": {}}, "a coefficient of this run is 1e.300"),
        ({"guidance": lambda t: 1e300, "cond": {}, "uncond": {}}, "a coefficient of this run is 1e.300"),
        ({"guidance": lambda t: math.nan, "cond": {}, "uncond": {}}, "guidance scale at t=999 is nan"),
        ({"method": "ode", "guidance": lambda t: 1e300, "cond": {}, "uncond": {}}, "a coefficient of this run"),
        ({"schedule": schedules.ddpm(time_scale=1e39)}, "the network's time of this run is"),
        ({"method": "ode", "schedule": schedules.ddpm(time_scale=1e39)}, "the network's time of this run is"),
        ({"clip": (-1e300, 1e300)}, "bounds beyond what torch.float32 holds"),
        ({"clip": fastdiff.Dynamic(0.9, 1e60)}, "bounds beyond what torch.float32 holds"),
        ({"clip": fastdiff.Dynamic(0.9, 1e-60)}, "bounds beyond what torch.float32 holds"),
        ({"x": torch.full((2, 3), 1e60, dtype=torch.float64)}, r"x has values up to 1e\+60, which torch.float32"),
        ({"x": None, "shape": (2, 3), "schedule": schedules.ve(0.01, 1e60)}, "the prior's standard deviation"),
        ({"x": None, "shape": (2, 3), "noise": lambda d, like: like / 0}, r"noise\(-1, like\) returned NaN or Inf"),
    ],
)
def test_numbers_that_the_dtype_cannot_hold(arguments, words) -> None:
    given = {"x": X, "schedule": "ddpm", "steps": 10, **arguments}
    if given.get("method") == "ode":
        del given["steps"]
    with pytest.raises(ValueError, match=words):
        fastdiff.sample(wavy, given.pop("x"), **given)


def test_what_float64_holds_runs_there() -> None:
    got = fastdiff.sample(
        still, torch.full((2, 3), 1e60, dtype=torch.float64), schedule="ddpm", steps=2, dtype=torch.float64
    )
    assert got.isfinite().all()


@pytest.mark.parametrize("scale", [math.nan, math.inf, 10**400])
def test_a_scale_that_is_no_number_is_refused_where_a_loop_begins(scale) -> None:
    sampler = fastdiff.Sampler("dpm3", 4, schedule="ddpm")
    with pytest.raises(ValueError, match=r"guidance_scale=.*expected a finite number"):
        sampler.begin(X, guidance_scale=scale)


def test_losses_and_likelihoods_refuse_times_beyond_the_networks_dtype() -> None:
    far = schedules.ddpm(time_scale=1e39)
    with pytest.raises(ValueError, match="the network's time of this run"):
        losses.ddpm_loss(wavy, X, far, t=999)
    with pytest.raises(ValueError, match="the network's time of this run"):
        fastdiff.analytic.estimate_gamma(wavy, X, far, samples_per_time=2, times=3, progress=False)
    with pytest.raises(ValueError, match=r"x has values up to 1e\+60"):
        fastdiff.log_likelihood(wavy, torch.full((2, 3), 1e60, dtype=torch.float64), schedule="ddpm")


def test_check_finite_sees_all_that_enters_a_step() -> None:
    nan = torch.full_like(X, math.nan)
    with pytest.raises(FloatingPointError, match=r"the network returned NaN or Inf at step 0 .* sample 0 of 2"):
        fastdiff.sample(lambda x, t: nan, X, schedule="ddpm", check_finite=True)
    # Finite in the output's dtype, and not in the state's.
    with pytest.raises(FloatingPointError, match="the network returned"):
        fastdiff.sample(lambda x, t: x.double() * 1e300, X, schedule="ddpm", check_finite=True)
    with pytest.raises(FloatingPointError, match="classifier_grad returned NaN"):
        fastdiff.sample(wavy, X, schedule="ddpm", check_finite=True, classifier_grad=lambda x, t: nan)
    with pytest.raises(FloatingPointError, match=r"noise\(0, like\) returned NaN"):
        fastdiff.sample(wavy, X, method="ddpm", schedule="ddpm", check_finite=True, noise=lambda d, like: nan)
    with pytest.raises(FloatingPointError, match="sample 1 of 3"):
        bad = torch.tensor([0.0, math.nan, 0.0])
        fastdiff.sample(lambda x, t: bad, torch.zeros(3), schedule="ddpm", check_finite=True)


@pytest.mark.parametrize(
    "method", [m for m, about in fastdiff.methods().items() if not about["adaptive"] and not about["guided"]]
)
def test_two_times_that_are_almost_equal(method) -> None:
    """One time in float32, which is all that a network sees: solvers would divide rounding by rounding."""
    for times in ([80.0, 20.0, 15.0, 10.000000000000002, 10.0], [80.0, 20.0, 20.0 * (1 - 2.0**-24), 1.0]):
        with pytest.raises(ValueError, match=r"own times repeat, within float32's rounding, the time \d+"):
            fastdiff.sample(wavy, X * 80, schedule="edm", method=method, spacing=times)
    apart = [80.0, 20.0, 20.0 * (1 - 2.0**-20), 1.0]
    got = fastdiff.sample(lambda x, t: 0 * x, X, schedule="edm", prediction="x0", method=method, spacing=apart)
    assert got.isfinite().all()


NOISY = [
    ("ddpm", {}),
    ("ddpm", {"variance": "large"}),
    ("ddim", {"eta": 0.5}),
    ("dpmpp2m_sde", {}),
    ("pc", {}),
    ("pc", {"corrector": "none"}),
    ("pc", {"corrector": "none", "predictor": "euler_maruyama"}),
    ("analytic_ddpm", {"gamma": "lower"}),
    ("analytic_ddim", {"gamma": "lower", "eta": 1.0}),
]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("method", "options"), NOISY)
def test_no_method_that_draws_noise_is_inverted(method, options, steps) -> None:
    """In one step to sigma = 0 none of them draws any, so that the table downwards does not tell."""
    for schedule in ("ddpm", "vp_linear", schedules.ve(0.01, 10.0)):
        sampler = fastdiff.Sampler(method, steps, schedule=schedule, **options)
        with pytest.raises(ValueError, match=f"method '{method}' with these options draws noise"):
            sampler.invert(wavy, X)
        with pytest.raises(ValueError, match="draws noise"):
            fastdiff.plan(method, steps, schedule, invert=True, **options)


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "euler_maruyama"])
def test_the_probability_flow_of_pc_goes_both_ways(predictor) -> None:
    """A first-order method: twice the steps, about half of the error, for the exact score of N(0, 0.5²)."""
    schedule, errors = schedules.vp_linear(), []

    def score(x, t):
        alpha, sigma = (
            torch.from_numpy(f(t.double().numpy())).reshape(-1, 1) for f in (schedule.alpha, schedule.sigma)
        )
        return -x / (alpha**2 * 0.25 + sigma**2)

    for steps in (200, 400):
        sampler = fastdiff.Sampler(
            "pc",
            steps,
            schedule=schedule,
            prediction="score",
            predictor=predictor,
            corrector="none",
            probability_flow=True,
            dtype=torch.float64,
        )
        latent = sampler.invert(score, X.double())
        # To the noise the map is a factor, sqrt of the variances' ratio.
        low, high = (schedule.at(t) for t in (schedule.t_floor, 1.0))
        ratio = math.sqrt((high.alpha**2 * 0.25 + high.sigma**2) / (low.alpha**2 * 0.25 + low.sigma**2))
        errors.append(float((latent / X.double() - ratio).abs().max()))
    assert 0.4 < errors[1] / errors[0] < 0.6 and errors[1] < 0.2


def test_a_gamma_file_is_read_at_every_call(tmp_path) -> None:
    path = tmp_path / "gamma.json"

    def sample() -> torch.Tensor:
        return fastdiff.sample(
            wavy, X, method="analytic_ddpm", steps=5, schedule="ddpm", gamma=str(path), data_range=None
        )

    results = []
    for value in (0.2, 0.8):
        Gamma(tuple(range(1000)), (value,) * 1000).save(path)
        results.append(sample())
        held = fastdiff.Sampler("analytic_ddpm", 5, schedule="ddpm", gamma=Gamma.load(path), data_range=None)
        assert torch.equal(held(wavy, X), results[-1])
    assert not torch.equal(*results)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sample()


@pytest.mark.parametrize("method", ["FlowMatchEulerDiscreteScheduler", "flow_match_euler_discrete", "ddim"])
def test_names_that_say_what_the_network_is(method) -> None:
    about = {} if "low" in method else {"prediction": "flow"}
    method = "FlowMatchEulerDiscrete" if "_" in method else method
    with pytest.raises(ValueError, match=r"no schedule was named: schedule='flow', or fastdiff.schedules.flow\(shift"):
        fastdiff.sample(wavy, X, method=method, **about)
    got = fastdiff.sample(wavy, X, method=method, schedule="flow", **about)
    assert torch.equal(got, fastdiff.sample(wavy, X, method="ddim", schedule="flow", prediction="flow"))
    if about:
        return
    for wrong in ({"schedule": "ddpm"}, {"schedule": "flow", "prediction": "eps"}):
        with pytest.raises(ValueError, match="says that the network is one of flow matching; got schedule="):
            fastdiff.sample(wavy, X, method=method, **wrong)


def test_a_flow_network_without_a_schedule_is_refused_everywhere() -> None:
    def model(x, t):
        return wavy(x, t)

    model.prediction = "flow"
    for call in (
        lambda: fastdiff.sample(model, X),
        lambda: fastdiff.Sampler("ddim")(model, X),
        lambda: fastdiff.Sampler("ddim", prediction="flow"),
        lambda: fastdiff.log_likelihood(model, X),
        lambda: fastdiff.analytic.estimate_gamma(model, X, progress=False),
    ):
        with pytest.raises(ValueError, match="no schedule was named"):
            call()


def test_a_default_schedule_is_announced_once(monkeypatch) -> None:
    monkeypatch.setattr(names, "ANNOUNCED", set())

    def model(x, t):
        return wavy(x, t)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdiff.sample(model, X, schedule="ddpm")
        stating = lambda x, t: wavy(x, t)  # noqa: E731
        stating.schedule = "ddpm"
        fastdiff.sample(stating, X)
    with pytest.warns(UserWarning, match="no schedule was named, and the model states none: 'ddpm' is taken") as found:
        fastdiff.sample(model, X)
        fastdiff.Sampler("ddim")(model, X)
        fastdiff.Sampler("ddim").begin(X)
    assert len(found) == 1 and found[0].filename == __file__


def test_a_network_in_training_mode_is_said_once(monkeypatch) -> None:
    monkeypatch.setattr(names, "ANNOUNCED", set())

    class Net(torch.nn.Module):
        def forward(self, x, t):
            return x * 0.5

    with pytest.warns(UserWarning, match=r"the model, Net, is in training mode.*model.eval\(\)") as found:
        fastdiff.sample(Net(), X, schedule="ddpm")
        fastdiff.sample(Net(), X, schedule="ddpm")
    assert len(found) == 1
    monkeypatch.setattr(names, "ANNOUNCED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdiff.sample(Net().eval(), X, schedule="ddpm")


@pytest.mark.parametrize(
    ("schedule", "times", "words"),
    [
        ("ddpm", [14.6, 7.0, 2.0, 0.5, 0.0], r"look like sigmas, and those of ddpm.* are indices .*inverse_lambda"),
        ("scaled_linear", [14.6, 9.1, 2.2, 0.03], "look like sigmas"),
        ("vp_linear", [14.6, 7.0, 2.0, 0.5, 0.0], "begin at 14.6, and those of vp_linear.* are t up to 1; of sigmas"),
        ("flow", [999.0, 500.0, 0.0], "begin at 999, and those of flow.* are t up to 1"),
        ("edm", [999.0, 500.0, 0.0], "begin at 999, and those of edm.* are sigmas up to 80"),
    ],
)
def test_times_of_another_axis(schedule, times, words) -> None:
    with pytest.raises(ValueError, match=words):
        fastdiff.plan("dpmpp2m", None, schedule, times)


def test_the_call_that_the_error_gives_is_right() -> None:
    schedule, sigmas = schedules.scaled_linear(), [14.6, 7.0, 2.0, 0.5, 0.0]
    with pytest.raises(ValueError) as error:
        fastdiff.plan("ddim", None, schedule, sigmas)
    call = str(error.value).split("spacing=")[1].split(", or")[0]
    times = eval(call, {"schedule": schedule, "sigmas": sigmas, "math": math})
    plan = fastdiff.plan("ddim", None, schedule, times)
    levels = [s.sigma / s.alpha for s in plan.stages]
    np.testing.assert_allclose(levels, sigmas[:-1], rtol=1e-9)
    assert plan.times[-1] == -1.0


def test_ends_rounded_to_float32_are_ends() -> None:
    """As karras' sigmas come from k-diffusion, in float32: the first is above sigma_max by 1e-8 of it."""
    edm, above = schedules.edm(0.03, 14.6146), float(np.float32(14.6146))
    assert above > 14.6146
    plan = fastdiff.plan("dpmpp2m", None, edm, [above, 5.0, 0.0])
    assert plan.times[0] == 14.6146
    assert fastdiff.plan("ddim", 4, edm, t_start=above).times[0] == 14.6146
    cosine = schedules.vp_cosine()
    last = float(np.nextafter(np.float32(0.9946), np.float32(2)))
    assert cosine.alpha(last) == cosine.alpha(0.9946)
    assert losses.q_sample(X, last, cosine).isfinite().all()
    fastdiff.sample(wavy, X, method="ode", schedule=cosine, t_start=last)
    for beyond in (0.9947, 0.9946 * (1 + 1e-6)):
        with pytest.raises(ValueError, match="outside the range"):
            cosine.check(beyond)


def test_q_sample_takes_a_seed() -> None:
    """The noise is a function of the seed and the sample: the one that a run with this seed would start from."""
    x0 = torch.zeros(4, 3, 5)
    got = losses.q_sample(x0, 400, seed=7)
    noise = fastdiff.randn(x0.shape, seed=7, prior=True)
    sigma = schedules.ddpm().sigma(400.0)
    torch.testing.assert_close(got, sigma * noise, rtol=1e-6, atol=0)
    assert torch.equal(got[2:], losses.q_sample(x0[2:], 400, seed=7, first_sample=2))
    assert torch.equal(got, losses.q_sample(x0, 400, seed=7)) and not torch.equal(got, losses.q_sample(x0, 400, seed=8))
    assert losses.q_sample(x0.half(), 400, seed=7).dtype == torch.float16


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, **more: losses.ddpm_loss(wavy, x, "ddpm", **more),
        lambda x, **more: losses.ddpm_loss(wavy, x, "ddpm", prediction="previous", **more),
        lambda x, **more: losses.sde_loss(wavy, x, "vp_linear", **more),
        lambda x, **more: losses.smld_loss(wavy, x, "smld", **more),
        lambda x, **more: losses.vlb_loss(wavy, x, "ddpm", **more),
        lambda x, **more: losses.hybrid_loss(lambda x, t: torch.cat([wavy(x, t), 0 * x], dim=1), x, "ddpm", **more),
    ],
)
def test_losses_take_a_seed(loss) -> None:
    """Times and noise are functions of the seed and the sample: a batch may be split anywhere."""
    x0 = torch.linspace(-1, 1, 6 * 4).reshape(6, 4)
    whole = loss(x0, seed=3, reduction="none")
    assert torch.equal(whole, loss(x0, seed=3, reduction="none"))
    parts = [loss(x0[i : i + 3], seed=3, first_sample=i, reduction="none") for i in (0, 3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-7)
    own = loss(x0, seed=[5, 6, 7, 8, 9, 10], reduction="none")
    assert torch.equal(own[1:2], loss(x0[1:2], seed=6, reduction="none")) and not torch.equal(own, whole)
    with pytest.raises(ValueError, match="seed and generator are two sources"):
        loss(x0, seed=3, generator=torch.Generator())
    with pytest.raises(ValueError, match="first_sample counts the samples of a seed"):
        loss(x0, first_sample=3)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        loss(x0, generator=3)


def test_previous_is_trained_on_the_chain_that_is_sampled() -> None:
    """The right network of a respaced chain has no loss; the full chain's has one there."""
    x0, spacing = torch.zeros(64, 2), "20"
    chain = fastdiff.plan("ddpm", None, "ddpm", spacing)
    means = {s.model_time: s.next_u[0] for s in chain.stages}

    def model(x, t):
        return x * torch.tensor([means[float(v)] for v in t]).reshape(-1, 1)

    calls = {"prediction": "previous", "spacing": spacing, "reduction": "none"}
    got = losses.ddpm_loss(model, x0, "ddpm", seed=1, **calls)
    assert float(got.max()) < 1e-12
    assert float(losses.ddpm_loss(model, x0, "ddpm", t=999, seed=1, prediction="previous")) > 1e-3
    with pytest.raises(ValueError, match="not a time of this chain of 20 steps"):
        losses.ddpm_loss(model, x0, "ddpm", t=1, **calls)
    # Other predictions: the chain decides the times.
    seen = []
    losses.ddpm_loss(lambda x, t: seen.extend(t.tolist()) or x, x0, "ddpm", spacing=spacing, seed=2)
    assert set(seen) <= set(means) and len(set(seen)) > 5


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"seed": b"1"}, TypeError, "seed=b'1': expected an integer"),
        ({"seed": "1"}, TypeError, "seed='1': expected an integer"),
        ({"seed": np.array(1.5)}, TypeError, "seed=1.5: expected an integer"),
        ({"x": None, "shape": (2**40, 2)}, ValueError, r"expected a batch below 2\*\*31"),
        ({"x": None, "shape": (2, 2**40)}, ValueError, r"at most 2\*\*34 elements in a sample"),
        ({"steps": 10**6}, ValueError, "expected at most 100000"),
        ({"steps": 10**400}, ValueError, "steps got 1000.*expected at most 100000"),
        ({"method": "pc", "n_corrector": 2**64}, ValueError, "at most 100000 corrections a step"),
        ({"method": "pc", "n_corrector": 3000, "steps": 100}, ValueError, "more than 200000 rows"),
        ({"method": "ddim", "eta": 10**400}, ValueError, "eta=1000.*expects a finite number"),
        ({"t_start": 10**400}, ValueError, "t_start got 1000"),
        ({"clip": (-1, 10**400)}, ValueError, "clip="),
        ({"model_kwargs": 3}, TypeError, "model_kwargs must be a dict"),
        ({"progess": True}, ValueError, "unknown argument of sample: 'progess'; did you mean 'progress'"),
    ],
)
def test_obscure_arguments(arguments, error, words) -> None:
    given = {"x": X, "schedule": "ddpm", **arguments}
    with pytest.raises(error, match=words):
        fastdiff.sample(wavy, given.pop("x"), **given)


def test_a_seed_without_a_dimension_is_one_seed() -> None:
    want = fastdiff.sample(wavy, shape=(2, 3), seed=5, schedule="ddpm")
    for seed in (np.array(5), torch.tensor(5), np.int64(5)):
        assert torch.equal(fastdiff.sample(wavy, shape=(2, 3), seed=seed, schedule="ddpm"), want)


@pytest.mark.parametrize("method", ["dpm3", "ddpm", "ode"])
def test_another_default_device_changes_nothing(method) -> None:
    want = fastdiff.sample(wavy, shape=(2, 3), method=method, schedule="ddpm", seed=[1, 2])
    torch.set_default_device("meta")
    try:
        got = fastdiff.sample(wavy, shape=(2, 3), method=method, schedule="ddpm", seed=[1, 2], device="cpu")
    finally:
        torch.set_default_device(None)
    assert torch.equal(got, want)


def test_a_zero_snr_table_of_diffusers_loads() -> None:
    """Its last entry, 2^-24, stands for 0, and may be above the one before."""
    exact = schedules.cosine(zero_terminal_snr=True)
    table = exact.alphas_cumprod
    table[-2:] = 1e-9, 2.0**-24
    loaded = schedules.discrete(alphas_cumprod=table)
    assert loaded.zero_terminal and loaded.alpha(999.0) == 0.0
    assert fastdiff.sample(wavy, X, method="ddim", schedule=loaded, prediction="v").isfinite().all()
    table[-2:] = 1e-6, 2.0**-24
    assert schedules.discrete(alphas_cumprod=table).alphas_cumprod[-1] == pytest.approx(2.0**-24)
    table[-2:] = 1e-9, 2.0**-23
    with pytest.raises(ValueError, match="alphas_cumprod must strictly decrease"):
        schedules.discrete(alphas_cumprod=table)


def test_a_probability_flow_without_a_predictor_is_langevin_alone() -> None:
    calls = {"method": "pc", "schedule": "vp_linear", "predictor": "none", "prediction": "score", "steps": 4}
    want = fastdiff.sample(wavy, X, **calls)
    assert torch.equal(fastdiff.sample(wavy, X, probability_flow=True, **calls), want)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("final_sigmas_type", "final='clean'"),
        ("use_lu_lambdas", "spacing='exponential'"),
        ("use_beta_sigmas", r"spacing=\[...\]"),
        ("solver_order", "'dpmpp3m'"),
        ("s_churn", "heun"),
    ],
)
def test_options_of_others_have_a_hint(name, words) -> None:
    with pytest.raises(ValueError, match=words):
        fastdiff.sample(wavy, X, method="dpmpp2m", schedule="ddpm", **{name: 1})


def test_optimal_times_of_a_dict() -> None:
    values = {float(t): 0.1 + 0.8 * t / 999 for t in range(0, 1000, 37)}
    want = fastdiff.analytic.optimal_times(Gamma.of(values), 5, "ddpm")
    assert fastdiff.analytic.optimal_times(values, 5, "ddpm") == want


def test_a_sample_without_a_spread_is_rescaled_by_nothing() -> None:
    """0/0 for one element in a sample."""
    y = {"y": torch.zeros(2)}
    form = fastdiff.guidance.Rescale(2.0, 0.7)
    got = fastdiff.sample(
        lambda x, t, y: wavy(x, t), torch.ones(2, 1), schedule="ddpm", guidance=form, cond=y, uncond=y
    )
    assert got.isfinite().all()


def test_what_the_fuzzer_found() -> None:
    one = schedules.discrete([0.5])
    with pytest.raises(ValueError, match="has one time with noise, t=0: a run upwards needs two"):
        fastdiff.Sampler("dpmpp3s", 1, schedule=one, spacing="linspace").invert(wavy, X)
    # A safety factor above 1 tries each rejected step again as it was.
    with pytest.raises(ValueError, match=r"theta=1.5: method 'dpm_adaptive' accepts \[0, 1\]"):
        fastdiff.sample(wavy, X, method="dpm_adaptive", theta=1.5, schedule="ddpm")


def test_a_device_without_values_is_refused_where_values_decide() -> None:
    for call in (
        lambda: fastdiff.sample(wavy, shape=(2, 3), method="ode", schedule="ddpm", device="meta"),
        lambda: fastdiff.log_likelihood(wavy, X, schedule="vp_linear", device="meta"),
        lambda: fastdiff.analytic.estimate_gamma(wavy, X, "ddpm", device="meta", progress=False),
    ):
        with pytest.raises(ValueError, match=r"device='meta' holds no values, and .* decides by them"):
            call()


@pytest.mark.parametrize("device", ["nope:0", 3, np.bool_(True), {"y": 1}])
def test_a_device_is_a_device(device) -> None:
    with pytest.raises((ValueError, TypeError), match="device="):
        fastdiff.sample(wavy, X, schedule="ddpm", device=device)


@pytest.mark.parametrize("name", ["progress", "check_finite", "return_trajectory", "return_info"])
@pytest.mark.parametrize("value", [np.array([]), torch.zeros(2, 3), 1, "yes"])
def test_flags_are_true_or_false(name, value) -> None:
    with pytest.raises(TypeError, match=f"{name}=.*: expected True or False"):
        fastdiff.sample(wavy, X, schedule="ddpm", **{name: value})


def test_arguments_that_the_fuzzer_found_obscure() -> None:
    x0 = X.clamp(-1, 1)
    several = np.array([2.0, 1.0])
    for error, words, call in (
        (TypeError, "variance got", lambda: losses.variational_bound(wavy, x0, "ddpm", variance=several)),
        (TypeError, "rescale=", lambda: losses.vlb_loss(wavy, x0, "ddpm", rescale=torch.zeros(2))),
        (ValueError, "decoder_variance=", lambda: losses.variational_bound(wavy, x0, "ddpm", decoder_variance=10**400)),
        (ValueError, "expected at most 10000", lambda: fastdiff.log_likelihood(wavy, X, schedule="ddpm", probes=2**31)),
        (
            TypeError,
            "model_kwargs must be a dict",
            lambda: fastdiff.sample(wavy, X, schedule="ddpm", model_kwargs={1: 2}),
        ),
        (TypeError, "invert=", lambda: fastdiff.plan("ddim", 3, "ddpm", invert=several)),
        (TypeError, "t got", lambda: schedules.ddpm().alpha("x")),
        (ValueError, "num_train got", lambda: schedules.cosine(2**64)),
        (TypeError, "prior must be callable", lambda: fastdiff.log_likelihood(wavy, X, schedule="ddpm", prior=X)),
        (TypeError, "path=", lambda: fastdiff.plan("ddim", 3, "ddpm").save(3)),
        (
            ValueError,
            "network_dtype=",
            lambda: fastdiff.Sampler("ddim", 3, schedule="ddpm").begin(X, network_dtype=several),
        ),
    ):
        with pytest.raises(error, match=words):
            call()
