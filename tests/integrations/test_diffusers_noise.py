"""Samplers with noise and those of distilled networks against diffusers' own schedulers, where that is installed.

Both are given the same noise. Their tables are float32; here they are made in float64, so that formulas are compared
and not roundings. Where they look the network's time up in another way, the network does not depend on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import of_diffusers
from helpers.double import in_float64

import fastdiff
from fastdiff.solvers import ROW

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

START = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = [
    torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1 + i)) for i in range(40)
]
STEPS = 12
# Rounding of the steps, each of a few ulp, of a state that starts at x/alpha = 157 x; of differences of exponentials
# in SASolver's coefficients, 1e4 times that.
TOLERANCE = 157 * STEPS * 4 * 2.2e-16


def made(name: str, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Any:
    """The scheduler in float64, whose noise is NOISE in order."""
    in_float64(of_diffusers.named(name), NOISE, monkeypatch)
    return of_diffusers.scheduler(name, **config)


def timed(x: torch.Tensor, t: Any) -> torch.Tensor:
    return torch.tanh(x) * (0.5 + torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1) / 1000)


def timeless(x: torch.Tensor, t: Any) -> torch.Tensor:
    return torch.tanh(0.7 * x)


def theirs(
    scheduler: Any, network: Callable[..., torch.Tensor], scaled: bool = False, whole: bool = False, **step: Any
) -> torch.Tensor:
    x = START * (1 + float(scheduler.sigmas[0]) ** 2) ** 0.5 if scaled else START
    for t in scheduler.timesteps.tolist() if whole else scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t) if scaled else x, t)
        x = scheduler.step(out, t, x, **step, return_dict=False)[0]
    return x


def ours(scheduler: Any, network: Callable[..., torch.Tensor], times: list[float], **options: Any) -> torch.Tensor:
    schedule = fastdiff.schedules.discrete(alphas_cumprod=scheduler.alphas_cumprod)
    return fastdiff.sample(
        network,
        START,
        schedule=schedule,
        spacing=times,
        dtype=torch.float64,
        noise=lambda draw, like: NOISE[draw],
        **options,
    )


def close(got: torch.Tensor, want: torch.Tensor, times: float = 1.0) -> None:
    assert (got - want).abs().max() <= times * TOLERANCE * want.abs().max()


DPM = "DPMSolverMultistepScheduler"
END = {"final_sigmas_type": "sigma_min"}
MULTISTEP = [
    ({"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, {"method": "dpmpp1_sde"}),
    ({"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, {"method": "dpmpp2m_sde", "solver_type": "heun"}),
    ({"algorithm_type": "sde-dpmsolver", "solver_order": 1, **END}, {"method": "dpm1_sde"}),
    ({"algorithm_type": "sde-dpmsolver", **END}, {"method": "dpm2_sde"}),
    ({"algorithm_type": "sde-dpmsolver", "solver_type": "heun", **END}, {"method": "dpm2_sde", "solver_type": "heun"}),
]


@pytest.mark.parametrize(("config", "options"), MULTISTEP)
def test_multistep_sde(config: dict[str, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made(DPM, monkeypatch, **{"lower_order_final": False, **config})
    scheduler.set_timesteps(STEPS)
    end = 0.0 if "final_sigmas_type" in config else -1.0
    got = ours(scheduler, timed, [*scheduler.timesteps.tolist(), end], **options)
    close(got, theirs(scheduler, timed))


def test_their_third_order_has_a_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    if of_diffusers.release() < (0, 32):
        pytest.skip("the installed DPMSolverMultistepScheduler has no third order of sde-dpmsolver++")
    # The factor of D2 is 1/2 + (1 − e^(−H) − H)/H², of order H; theirs has −1/2, and tends to −1 (docs/parity.md).
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}
    scheduler = made(DPM, monkeypatch, lower_order_final=True, **config)
    scheduler.set_timesteps(STEPS)
    schedule = fastdiff.schedules.discrete(alphas_cumprod=scheduler.alphas_cumprod)
    times = [*scheduler.timesteps.tolist(), -1.0]
    options = {"solver_type": "dpmsolver", "lower_order_final": True}
    plan = fastdiff.plan("dpmpp3m_sde", schedule=schedule, spacing=times, **options)
    stages = list(plan.stages)
    lam = [schedule.lam(t) for t in times]
    for i in range(2, STEPS - 2):
        h, r0, r1 = (lam[i + 1] - lam[i], lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2])
        d2 = ((ROW["m"] - ROW["h1"]) / r0 - (ROW["h1"] - ROW["h2"]) / r1) * h * h / (r0 + r1)
        row = tuple((np.array(stages[i].next_u) - schedule.alpha(times[i + 1]) * d2).tolist())
        stages[i] = dataclasses.replace(stages[i], next_u=row, next_x=row)
    wrong = dataclasses.replace(plan, stages=tuple(stages))
    got = fastdiff.sample(timed, START, plan=wrong, dtype=torch.float64, noise=lambda draw, like: NOISE[draw])
    close(got, theirs(scheduler, timed))


@pytest.mark.parametrize("name", ["KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"])
def test_two_evaluations_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made(name, monkeypatch, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    shares: list[float] = []

    def path(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """The noise of an inner node, and then of the whole step, which holds it."""
        snr = [float(s) ** -2 for s in (start, end)]
        k = len(shares)
        shares.append(snr[1])
        if k % 2 == 0:
            return NOISE[k]
        share = (shares[k - 1] - snr[0]) / (snr[1] - snr[0])
        return share**0.5 * NOISE[k - 1] + (1.0 - share) ** 0.5 * NOISE[k]

    scheduler.noise_sampler = path
    want = theirs(scheduler, timeless, scaled=True)
    # Each step's first time; between them are the inner ones.
    times = scheduler.timesteps.tolist()[::2]
    close(ours(scheduler, timeless, [*times, -1.0], method=name), want)


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (2, 2), (3, 2)])
def test_sa_solver(predictor: int, corrector: int, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = {"predictor_order": predictor, "corrector_order": corrector}
    scheduler = made("SASolverScheduler", monkeypatch, **orders)
    scheduler.set_timesteps(STEPS)
    want = theirs(scheduler, timed)
    times = [*scheduler.timesteps.tolist(), 0.0]
    options = {"method": "SASolverScheduler", "simple_order_2": True, "tau_low": 200.0, "tau_high": 800.0, **orders}
    # They draw at every step, also where tau is 0.
    used = [k for k, t in enumerate(scheduler.timesteps.tolist()) if 200 <= t <= 800]
    schedule = fastdiff.schedules.discrete(alphas_cumprod=scheduler.alphas_cumprod)
    got = fastdiff.sample(
        timed,
        START,
        schedule=schedule,
        spacing=times,
        dtype=torch.float64,
        noise=lambda d, like: NOISE[used[d]],
        **options,
    )
    close(got, want, 1e4)


@pytest.mark.parametrize("original", [50, 100])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lcm(steps: int, original: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made("LCMScheduler", monkeypatch)
    scheduler.set_timesteps(steps, original_inference_steps=original)
    # Times as Python's integers: of torch's they make the boundary's factors in float32.
    want = theirs(scheduler, timed, whole=True)
    got = fastdiff.sample(
        timed,
        START,
        method="LCMScheduler",
        steps=steps,
        original_steps=original,
        timestep_scaling=10.0,
        schedule=fastdiff.schedules.discrete(alphas_cumprod=scheduler.alphas_cumprod),
        dtype=torch.float64,
        noise=lambda draw, like: NOISE[draw],
    )
    close(got, want)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made("TCDScheduler", monkeypatch)
    scheduler.set_timesteps(5)
    want = theirs(scheduler, timed, eta=gamma)
    got = fastdiff.sample(
        timed,
        START,
        method="TCDScheduler",
        steps=5,
        gamma=gamma,
        # Theirs ends at the first time, with the noise of that.
        final="t_min",
        schedule=fastdiff.schedules.discrete(alphas_cumprod=scheduler.alphas_cumprod),
        dtype=torch.float64,
        noise=lambda draw, like: NOISE[draw],
    )
    close(got, want)


def test_consistency(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made("CMStochasticIterativeScheduler", monkeypatch, clip_denoised=False)
    scheduler.set_timesteps(5)
    sigmas = scheduler.sigmas.tolist()
    x, config = START * sigmas[0], scheduler.config
    scheduler.is_scale_input_called = True
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        x = scheduler.step(timeless(x / (sigma**2 + config.sigma_data**2) ** 0.5, t), t, x, return_dict=False)[0]

    def f(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Their boundary condition, which belongs to the network here."""
        skip, out = scheduler.get_scalings_for_boundary_condition(t[0].double())
        return skip * x + out * timeless(x / (t[0].double() ** 2 + config.sigma_data**2) ** 0.5, t)

    got = fastdiff.sample(
        f,
        START * sigmas[0],
        method="CMStochasticIterativeScheduler",
        schedule=fastdiff.schedules.edm(sigma_min=0.002, sigma_max=80.0),
        prediction="x0",
        spacing=sigmas,
        dtype=torch.float64,
        noise=lambda draw, like: NOISE[draw],
    )
    # The network is given its time in float32.
    assert (got - x).abs().max() < 1e-6 * x.abs().max()


@pytest.mark.parametrize("order", [1, 2])
def test_edm_multistep(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "lower_order_final": False}
    scheduler = made("EDMDPMSolverMultistepScheduler", monkeypatch, **config)
    scheduler.set_timesteps(STEPS)
    x = START * float(scheduler.sigmas[0])
    for t in scheduler.timesteps:
        x = scheduler.step(timeless(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]

    def f(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Their preconditioning, which belongs to the network here. The sigma of the table, not its float32."""
        sigma = min(scheduler.sigmas[:-1], key=lambda s: abs(s - t[0]))
        return scheduler.precondition_outputs(x, timeless(scheduler.precondition_inputs(x, sigma), t), sigma)

    got = fastdiff.sample(
        f,
        START * float(scheduler.sigmas[0]),
        method="dpmpp1_sde" if order == 1 else "dpmpp2m_sde",
        schedule="edm",
        prediction="x0",
        spacing=scheduler.sigmas.tolist(),
        dtype=torch.float64,
        noise=lambda draw, like: NOISE[draw],
    )
    close(got, x)


def test_flow_ancestral(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made("LTXEulerAncestralRFScheduler", monkeypatch, eta=0.7, s_noise=1.01)
    sigmas = np.linspace(1.0, 0.0, 9)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    want = theirs(scheduler, timeless)
    got = fastdiff.sample(
        timeless,
        START,
        method="LTXEulerAncestralRFScheduler",
        schedule="flow",
        prediction="flow",
        spacing=sigmas.tolist(),
        eta=0.7,
        s_noise=1.01,
        dtype=torch.float64,
        noise=lambda draw, like: NOISE[draw],
    )
    # They add 1e-12 to a denominator.
    assert (got - want).abs().max() < 1e-10 * want.abs().max()


def test_flow_map(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made("FlowMapEulerDiscreteScheduler", monkeypatch)
    scheduler.set_timesteps(5)
    sigmas = scheduler.sigmas.double().tolist()

    def network(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (1.0 + t.reshape(-1, 1, 1, 1) - 0.3 * s.reshape(-1, 1, 1, 1))

    x = START
    for t, (now, after) in zip(scheduler.timesteps, pairwise(sigmas), strict=True):
        out = network(x, torch.tensor([now]).float(), torch.tensor([after]).float())
        x = scheduler.step(out, t, x, return_dict=False)[0]
    got = fastdiff.sample(
        network,
        START,
        method="FlowMapEulerDiscreteScheduler",
        two_times=True,
        schedule="flow",
        prediction="flow",
        spacing=sigmas,
        dtype=torch.float64,
    )
    assert (got - x).abs().max() < 1e-6 * x.abs().max()
