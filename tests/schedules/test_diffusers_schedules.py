"""Schedulers of diffusers as schedules, read by their configs alone: diffusers need not be installed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import schedules
from fastdiff.schedules.configs import DEFAULTS, settings
from fastdiff.schedules.diffusers import alphas_cumprod, described, training


class Stand:
    """What has a config and set_timesteps, as diffusers' schedulers have."""

    def __init__(self, name: str, **config: Any) -> None:
        self.config = {"_class_name": name, **config}

    def set_timesteps(self, *_: Any) -> None: ...


def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.tanh(x)


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({}, schedules.ddpm()),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, schedules.scaled_linear()),
        ({"beta_schedule": "squaredcos_cap_v2"}, schedules.cosine()),
        ({"rescale_betas_zero_snr": True}, schedules.ddpm(zero_terminal_snr=True)),
        ({"trained_betas": [0.1, 0.2, 0.3]}, schedules.discrete([0.1, 0.2, 0.3])),
    ],
)
def test_betas(config: dict[str, Any], want: schedules.Discrete) -> None:
    found, prediction = described(Stand("DDIMScheduler", prediction_type="v_prediction", **config))
    assert prediction == "v" and isinstance(found, schedules.Discrete)
    np.testing.assert_allclose(found.alphas_cumprod, want.alphas_cumprod, rtol=1e-12)


def test_beta_schedules_that_only_diffusers_has() -> None:
    base = {**DEFAULTS["DDPMScheduler"], "num_train_timesteps": 10}
    # sigmoid(0) = 1/2 in the middle, and alpha-bar = exp(-12 t).
    assert math.isclose(
        training({**base, "beta_schedule": "sigmoid"}).betas[[4, 5]].mean(), (1e-4 + 0.02) / 2, rel_tol=1e-12
    )
    a = alphas_cumprod({**base, "beta_schedule": "exp"}, floor=False)
    np.testing.assert_allclose(a, np.exp(-1.2 * np.arange(1, 11)), rtol=1e-12)


def test_snr_shift() -> None:
    # SNR / 3: a/(1 - a) of CogVideoX is a third of the betas' own.
    found, _ = described(Stand("CogVideoXDDIMScheduler"))
    assert isinstance(found, schedules.Discrete)
    a, b = found.alphas_cumprod, schedules.scaled_linear().alphas_cumprod
    np.testing.assert_allclose(a / (1 - a), b / (1 - b) / 3, rtol=1e-9)


def test_zero_terminal_snr_ends_at_the_number_that_diffusers_has() -> None:
    config = {**DEFAULTS["EulerDiscreteScheduler"], "rescale_betas_zero_snr": True}
    assert alphas_cumprod(config, floor=True)[-1] == 2.0**-24 and alphas_cumprod(config, floor=False)[-1] == 0.0


def test_flow_shift_and_time_scale() -> None:
    assert described(Stand("FlowMatchEulerDiscreteScheduler", shift=3.0)) == (
        schedules.flow(3.0, time_scale=1000),
        "flow",
    )
    wan = Stand("UniPCMultistepScheduler", use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction")
    assert described(wan) == (schedules.flow(5.0, time_scale=1000), "flow")


def test_edm_is_the_network_without_its_preconditioning() -> None:
    found, prediction = described(Stand("EDMEulerScheduler", sigma_data=0.5))
    assert prediction == "edm" and found == schedules.preconditioned(0.002, 80.0, 0.5)
    svd = {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0, "prediction_type": "v_prediction"}
    assert described(Stand("EulerDiscreteScheduler", **svd)) == (schedules.preconditioned(0.002, 700.0, 1.0), "v")


def test_preconditioned_gives_edms_samples() -> None:
    """F of Karras et al. 2022, eq. 7 on one side, the same denoiser wrapped by hand on the other."""
    s_data = 0.5
    edm, own = schedules.edm(), schedules.preconditioned(sigma_data=s_data)

    def raw(y: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.tanh(y * (1.5 + 0.1 * noise.reshape(-1, 1)))

    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = sigma.reshape(-1, 1)
        root = (s**2 + s_data**2).sqrt()
        return s_data**2 / root**2 * x + s * s_data / root * raw(x / root, sigma.log() / 4)

    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Any] = {"method": "heun", "spacing": "karras", "steps": 6, "dtype": torch.float64}
    denoiser.dtype = raw.dtype = torch.float64  # type: ignore[attr-defined]
    want = fastdiff.sample(denoiser, 80.0 * x, schedule=edm, prediction="x0", **calls)
    start = 80.0 / math.hypot(80.0, s_data) * x
    got = s_data * fastdiff.sample(raw, start, schedule=own, prediction="edm", **calls)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    t = np.array([0.002, 0.5, 80.0])
    np.testing.assert_allclose(own.inverse_lambda(own.lam(t)), t, rtol=1e-12)
    # beta of the same SDE in its own time: g² = -2 d log alpha/dt.
    step = 1e-6
    slope = (own.log_alpha(0.5 + step) - own.log_alpha(0.5 - step)) / (2 * step)
    assert math.isclose(own.drift(0.5), slope, rel_tol=1e-6) and math.isclose(
        own.diffusion(0.5) ** 2, -2 * slope, rel_tol=1e-6
    )


def test_wherever_a_schedule_is_taken() -> None:
    stand = Stand("DDIMScheduler", prediction_type="v_prediction")
    x = torch.zeros(2, 3) + 0.1
    got = fastdiff.sample(net, x, schedule=stand, method="ddim", steps=4)
    assert torch.equal(got, fastdiff.sample(net, x, schedule="ddpm", prediction="v", method="ddim", steps=4))
    assert fastdiff.Sampler("ddim", 4, schedule=stand).prediction == "v"
    # What is said stands over what the config says.
    assert fastdiff.Sampler("ddim", 4, schedule=stand, prediction="x0").prediction == "x0"
    data = torch.full((2, 3), 0.1, dtype=torch.float64)
    told = {"model": net, "x": data, "trace": "exact", "rtol": 1e-3, "atol": 1e-3, "dtype": torch.float64}
    assert torch.equal(
        fastdiff.log_likelihood(schedule=stand, **told).log_prob,
        fastdiff.log_likelihood(schedule="ddpm", prediction="v", **told).log_prob,
    )
    fitted = fastdiff.fit(net, 2, shape=(4, 3), schedule=stand, trajectories=8, validation=8, budget=5)
    assert fitted.origin["network"]["prediction"] == "v"
    assert fastdiff.plan("ddim", 4, stand) == fastdiff.plan("ddim", 4)
    assert torch.equal(fastdiff.losses.q_sample(x, 5.0, stand, x), fastdiff.losses.q_sample(x, 5.0, "ddpm", x))


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "depends on the image's size"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "time grows towards the data"),
        ("IPNDMScheduler", {}, "no schedule of betas"),
        ("CosineDPMSolverMultistepScheduler", {}, "is given 2/pi·atan\\(sigma\\): lambda x, t: .*prediction='v'"),
        ("DDIMScheduler", {"prediction_type": "warp"}, "unknown prediction_type"),
        ("NopeScheduler", {}, "unknown scheduler class of diffusers"),
    ],
)
def test_what_no_schedule_says(name: str, config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fastdiff.Sampler("ddim", 4, schedule=Stand(name, **config))


def test_settings_of_a_mapping_and_of_an_object() -> None:
    assert settings({"_class_name": "TCDScheduler"})[1] == DEFAULTS["TCDScheduler"]
    assert settings(Stand("TCDScheduler", beta_end=0.5))[1]["beta_end"] == 0.5


def test_a_pipeline_is_no_model() -> None:
    class Pipe:
        unet, scheduler = net, Stand("DDIMScheduler")

        def __call__(self) -> None: ...

    with pytest.raises(TypeError, match=r"pass model\.unet, with schedule=pipe\.scheduler.*accelerate\(pipe\)"):
        fastdiff.sample(Pipe())  # type: ignore[call-overload]


def test_dtype_of_the_result() -> None:
    call: dict[str, Any] = {"method": "ddim", "steps": 3, "schedule": "ddpm"}
    x = torch.full((2, 4), 0.3)
    want = fastdiff.sample(net, x, **call)
    got = fastdiff.sample(net, x, output_dtype=torch.bfloat16, **call)
    assert got.dtype == torch.bfloat16 and torch.equal(got, want.bfloat16())
    narrow = torch.nn.Linear(4, 4, dtype=torch.bfloat16).eval()
    made = fastdiff.sample(lambda x, t: x, x, output_dtype=None, **call)
    assert made.dtype == torch.float32

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = narrow

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    assert fastdiff.sample(Net().eval(), x, output_dtype="network", **call).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="does not say its own"):
        fastdiff.sample(net, x, output_dtype="network", **call)
    with pytest.raises(ValueError, match="expected 'network' or one of"):
        fastdiff.sample(net, x, output_dtype=torch.int32, **call)
    with pytest.raises(ValueError, match="output_dtype does not go with a rollout"):
        fastdiff.Sampler("ddpm", 3, schedule="ddpm").rollout(net, x, output_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="the result is written into out"):
        fastdiff.sample(net, x, output_dtype=torch.bfloat16, out=torch.empty_like(x), **call)


@pytest.mark.parametrize("name", ["guidance_rescale", "latents", "callback_on_step_end", "generator"])
def test_words_of_pipelines_are_named_with_ours(name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"'{name}'. Here that is"):
        fastdiff.sample(net, torch.zeros(1, 2), schedule="ddpm", **{name: 1})  # type: ignore[call-overload]
