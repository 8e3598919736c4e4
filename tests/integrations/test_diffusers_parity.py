"""The table of docs/from-diffusers.md against diffusers' own schedulers, where that is installed (it is not needed).

Their tables are float32; here they are made in float64, so that formulas are compared and not roundings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import of_diffusers
from helpers.double import in_float64

import fastdiff

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

START = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = [
    torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1 + i)) for i in range(20)
]
STEPS = 16

# Rounding of 16 steps, each of a few ulp, of a state that starts at x/alpha = 157 x.
TOLERANCE = 157 * STEPS * 4 * 2.2e-16


def network(x: torch.Tensor, t: Any) -> torch.Tensor:
    return torch.tanh(x) * (0.5 + torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1) / 1000)


NAMES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "KDPM2DiscreteScheduler",
    "IPNDMScheduler",
)
IN_SIGMA = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete")


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        in_float64(getattr(diffusers, name), NOISE, monkeypatch)


def theirs(name: str, step: dict[str, Any], model: Any = network, **config: Any) -> tuple[Any, torch.Tensor]:
    scheduler = of_diffusers.scheduler(name, **config)
    scheduler.set_timesteps(STEPS)
    x = START
    scaled = name.removesuffix("Scheduler") in IN_SIGMA
    if scaled:
        # x/alpha, from the same x.
        x = x * (1 + float(scheduler.sigmas[0]) ** 2) ** 0.5
    for t in scheduler.timesteps:
        out = model(scheduler.scale_model_input(x, t) if scaled else x, t)
        x = scheduler.step(out, t, x, **step, return_dict=False)[0]
    return scheduler, x


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got - want).abs().max() <= TOLERANCE * want.abs().max()


DPM, SINGLE, UNIPC = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"
DEIS = "DEISMultistepScheduler"
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
CASES = [
    ("DDIMScheduler", {"clip_sample": False}, {}),
    ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1}, {}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, {"prediction": "v"}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}, {"prediction": "x0"}),
    ("DDIMScheduler", {"clip_sample": True}, {"clip": (-1, 1), "use_clipped_model_output": False}),
    ("DDIMScheduler", {"clip_sample": True}, {"clip": (-1, 1)}),
    ("DDPMScheduler", {"clip_sample": False}, {}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, {"variance": "large"}),
    (DPM, {}, {}),
    (DPM, {"timestep_spacing": "leading"}, {}),
    (DPM, {"solver_type": "heun"}, {"solver_type": "taylor"}),
    (DPM, {"solver_order": 3}, {"method": "dpmpp3m", "solver_type": "dpmsolver"}),
    (DPM, {"algorithm_type": "dpmsolver", **SIGMA_MIN}, {"method": "dpm2"}),
    (DPM, {"thresholding": True, "sample_max_value": 1e9}, {"clip": "dynamic"}),
    (DPM, {"algorithm_type": "sde-dpmsolver++"}, {"method": "dpmpp2m_sde"}),
    (SINGLE, {}, {}),
    (UNIPC, {}, {"order": 2}),
    (UNIPC, {"solver_order": 3}, {}),
    (UNIPC, {"solver_type": "bh1", **SIGMA_MIN}, {"order": 2, "variant": "bh1"}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    ("LMSDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    (DEIS, {}, {"order": 2, "form": "logrho"}),
    (DEIS, {"solver_order": 3}, {"form": "logrho"}),
    (DEIS, {"solver_order": 1}, {"order": 1}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, {}),
    ("PNDMScheduler", {"skip_prk_steps": False, "set_alpha_to_one": True}, {"skip_prk_steps": False}),
]


@pytest.mark.parametrize(("name", "config", "ours"), CASES)
def test_own_times_give_the_same_numbers(name: str, config: dict[str, Any], ours: dict[str, Any]) -> None:
    step = {"use_clipped_model_output": ours.get("use_clipped_model_output", True)} if "DDIM" in name else {}
    scheduler, want = theirs(name, step, **config)
    # DEIS always ends at the least sigma of the table.
    end = 0.0 if "final_sigmas_type" in config or name == DEIS else -1.0
    # Heun's list has each time twice, one a call of the network; PNDM's has the middles of its Runge-Kutta steps.
    grid = scheduler._timesteps[::-1] if "PNDM" in name else scheduler.timesteps
    times = [*dict.fromkeys(grid.tolist()), end]
    schedule = fastdiff.schedules.discrete(alphas_cumprod=scheduler.alphas_cumprod)
    got = fastdiff.sample(
        network,
        START,
        **{"method": name, **ours},
        schedule=schedule,
        spacing=times,
        dtype=torch.float64,
        noise=lambda draw, like: NOISE[draw],
    )
    close(got, want)


def timeless(x: torch.Tensor, t: Any) -> torch.Tensor:
    return torch.tanh(x)


def test_the_midpoint_in_log_sigma() -> None:
    # It interpolates the network's time at the middle between the table's sigmas, and we log alpha: a network that is
    # not told the time sees the same.
    scheduler, want = theirs("KDPM2DiscreteScheduler", {}, timeless, timestep_spacing="trailing")
    times = [*scheduler.timesteps[[0, *range(2, 2 * STEPS, 2)]].tolist(), -1.0]
    schedule = fastdiff.schedules.discrete(alphas_cumprod=scheduler.alphas_cumprod)
    got = fastdiff.sample(
        timeless, START, method="KDPM2Discrete", schedule=schedule, spacing=times, dtype=torch.float64
    )
    close(got, want)


def test_ipndm_on_given_levels() -> None:
    # Its own levels begin at alpha = 0, where it divides by 1e-8. It takes the network's output for v.
    sigma = np.linspace(0.999, 0.02, STEPS + 1)
    _, want = theirs("IPNDMScheduler", {}, timeless, trained_betas=sigma.tolist())
    schedule = fastdiff.schedules.discrete(alphas_cumprod=1.0 - sigma[::-1] ** 2)
    times = list(range(STEPS, -1, -1))
    got = fastdiff.sample(
        timeless, START, method="IPNDM", schedule=schedule, spacing=times, prediction="v", dtype=torch.float64
    )
    close(got, want)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_of_flow_matching(shift: float) -> None:
    scheduler, want = theirs("FlowMatchHeunDiscreteScheduler", {}, shift=shift)
    times = [*dict.fromkeys((scheduler.timesteps / 1000).tolist()), 0.0]
    got = fastdiff.sample(
        network,
        START,
        method="FlowMatchHeunDiscreteScheduler",
        schedule=fastdiff.schedules.flow(time_scale=1000),
        spacing=times,
        prediction="flow",
        dtype=torch.float64,
    )
    close(got, want)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift: float) -> None:
    scheduler, want = theirs("FlowMatchEulerDiscreteScheduler", {}, shift=shift)
    got = fastdiff.sample(
        network,
        START,
        method="FlowMatchEulerDiscreteScheduler",
        schedule=fastdiff.schedules.flow(time_scale=1000),
        prediction="flow",
        spacing=scheduler.sigmas.tolist(),
        dtype=torch.float64,
    )
    close(got, want)


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_karras_apart_from_the_rounding_of_the_networks_time(spacing: str) -> None:
    _, want = theirs(DPM, {}, **{f"use_{spacing}_sigmas": True})
    whole = torch.round if spacing == "karras" else torch.floor
    got = fastdiff.sample(
        lambda x, t: network(x, whole(t)), START, method=DPM, steps=STEPS, spacing=spacing, dtype=torch.float64
    )
    close(got, want)
