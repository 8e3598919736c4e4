"""Names of other libraries: those that mean one of our methods, and messages for those that do not."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import names
from fastdiff.names import ELSEWHERE
from fastdiff.solvers import ABSENT, ALIASES, METHODS, find

NAMES = {
    "DDIMScheduler": "ddim",
    "DDIM": "ddim",
    "DDPMScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpmpp2m",
    "dpmsolvermultistep": "dpmpp2m",
    "DPMSolverSinglestepScheduler": "dpmpp2s",
    "UniPCMultistepScheduler": "unipc",
    "EulerDiscreteScheduler": "ddim",
    "FlowMatchEulerDiscreteScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "KDPM2AncestralDiscreteScheduler": "dpm_2_ancestral",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "SASolverScheduler": "sa_solver",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "CMStochasticIterativeScheduler": "consistency",
    "LTXEulerAncestralRFScheduler": "euler_ancestral",
    "FlowMatchLCMScheduler": "lcm",
    "FlowMapEulerDiscreteScheduler": "mean_flow",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2s_ancestral": "dpmpp_2s_ancestral",
    "dpmpp_3m_sde_gpu": "dpmpp3m_sde",
    "dpmpp_2m_sde_heun_gpu": "dpmpp2m_sde",
    "exp_heun_2_x0_sde": "exp_heun_2_x0_sde",
    "er_sde": "er_sde",
    "seeds_2": "seeds_2",
    "seeds_3": "seeds_3",
    "sa_solver_pece": "sa_solver_pece",
    "res_multistep_ancestral": "res_multistep_ancestral",
    "HeunDiscreteScheduler": "heun",
    "sample_euler": "ddim",
    "sample_euler_ancestral": "euler_ancestral",
    "sample_dpm_2_ancestral": "dpm_2_ancestral",
    "sample_heun": "heun",
    "sample_dpmpp_2m": "dpmpp2m",
    "sample_dpmpp_2m_sde": "dpmpp2m_sde",
    "sample_dpm_fast": "dpm3s",
    "sample_dpm_adaptive": "dpm_adaptive",
    "euler": "ddim",
    "heun": "heun",
    "dpmpp_2m": "dpmpp2m",
    "dpmpp_2m_sde_gpu": "dpmpp2m_sde",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "ddim": "ddim",
    "ddpm": "ddpm",
}


@pytest.mark.parametrize(("name", "method"), NAMES.items())
def test_names_of_diffusers_k_diffusion_and_comfyui(name: str, method: str) -> None:
    assert find(name).name == method


def test_no_name_means_two_things() -> None:
    methods = list(METHODS.values())
    aliases = [alias for m in methods for alias in m.aliases]
    assert len(set(aliases)) == len(aliases)
    assert not set(ABSENT) & (set(ALIASES) | set(METHODS))
    for name, nearest in ABSENT.items():
        assert find(nearest.split(",")[0]).name == nearest.split(",")[0], name


@pytest.mark.parametrize(("name", "nearest"), ABSENT.items())
def test_a_sampler_that_is_not_here_says_so(name: str, nearest: str) -> None:
    with pytest.raises(
        ValueError, match=f"'{name}' is a sampler of another library .* the nearest here: {re.escape(nearest)}"
    ):
        fastdiff.plan(name)


def euler(
    plan: fastdiff.Plan,
    eps: Callable[[np.ndarray, float], np.ndarray],
    x: np.ndarray,
    noise: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray:
    """Euler's method on dx/dk = eps in k-diffusion's variables, x/alpha and k = sigma/alpha; with `noise`, its
    ancestral form: down to sqrt(k'^2 - up^2), then `up` of noise, up^2 = k'^2 (k^2 - k'^2)/k^2."""
    schedule = fastdiff.schedules.ddpm()
    points = [schedule.at(t) for t in plan.times]
    y = x / points[0].alpha
    for i, (s, t) in enumerate(pairwise(points)):
        k, target = s.sigma / s.alpha, t.sigma / t.alpha
        up = 0.0 if noise is None else np.sqrt(target**2 * (k**2 - target**2) / k**2)
        y = y + eps(y * s.alpha, s.t) * (np.sqrt(target**2 - up**2) - k)
        if noise is not None and up:
            y = y + up * noise(i)
    return y


@pytest.mark.parametrize(("name", "ancestral"), [("euler", False), ("euler_ancestral", True)])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras"])
def test_euler_is_ddim_and_its_ancestral_form_ddpm(name: str, ancestral: bool, spacing: str) -> None:
    rng = np.random.default_rng(0)
    x, draws = rng.standard_normal((2, 5)), rng.standard_normal((12, 2, 5))

    def eps(x: np.ndarray, t: float) -> np.ndarray:
        return np.tanh(x) * (0.5 + t / 1000)

    got = fastdiff.sample(
        lambda x, t: torch.from_numpy(eps(x.numpy(), t.numpy()[:, None])),
        torch.from_numpy(x),
        method=name,
        spacing=spacing,
        steps=12,
        dtype=torch.float64,
        noise=lambda draw, like: torch.from_numpy(draws[draw]),
    )
    want = euler(fastdiff.plan(name, 12, spacing=spacing), eps, x, (lambda i: draws[i]) if ancestral else None)
    # x/alpha starts near 157 x; 12 steps lose an ulp or two each: 157 * 24 * 2.2e-16 = 8e-13.
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)


def test_euler_on_flow_follows_the_velocity() -> None:
    times = np.linspace(1.0, 0.0, 9)
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) + t[:, None]

    got = fastdiff.sample(
        velocity, x, method="euler", schedule="flow", prediction="flow", spacing=times, dtype=torch.float64
    )
    want = x
    for s, t in pairwise(times):
        want = want + (t - s) * velocity(want, torch.full((2,), s, dtype=torch.float64))
    # Eight steps of width 1/8 with slopes of at most 4: rounding grows by a factor of at most (1 + 3/8)^8 = 13.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14 * 13)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_options_of_other_libraries_say_what_they_are_called_here(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.* Here that is ") as error:
        fastdiff.sample(lambda x, t: x, shape=(1, 4), **{name: 1})
    assert ELSEWHERE[name] in str(error.value) and "did you mean" not in str(error.value)


def test_conditioning_goes_in_model_kwargs() -> None:
    with pytest.raises(ValueError, match=r"model_kwargs=\{'encoder_hidden_states': \.\.\.\}"):
        fastdiff.sample(lambda x, t: x, shape=(1, 4), encoder_hidden_states=torch.zeros(1, 3))


PREDICTIONS = [
    *(("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v"), ("flow_prediction", "flow")),  # diffusers
    *(("noise", "eps"), ("x_start", "x0")),  # dpm-solver's model_wrapper
    *(("EPSILON", "eps"), ("START_X", "x0"), ("PREVIOUS_X", "previous")),  # guided-diffusion
    *(("noise_prediction", "eps"), ("data_prediction", "x0")),  # UniPC's algorithm_type
]


@pytest.mark.parametrize(("prediction", "ours"), PREDICTIONS)
def test_predictions_of_other_libraries(prediction: str, ours: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{ours}'"):
        fastdiff.sample(lambda x, t: x, shape=(1, 4), prediction=prediction)


@pytest.mark.parametrize(("schedule", "ours"), [("linear", "ddpm"), ("squaredcos_cap_v2", "cosine")])
def test_beta_schedules_of_diffusers(schedule: str, ours: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{ours}'"):
        fastdiff.plan(schedule=schedule)


def test_a_scheduler_object_is_not_a_schedule() -> None:
    class Scheduler:
        alphas_cumprod = torch.linspace(0.9, 0.1, 5)

    with pytest.raises(ValueError, match=r"discrete\(alphas_cumprod=scheduler.alphas_cumprod\)"):
        fastdiff.plan(schedule=Scheduler())  # type: ignore[arg-type]
    assert fastdiff.schedules.discrete(alphas_cumprod=Scheduler.alphas_cumprod).num_train == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": torch.zeros(1, 4)}, r"noise must be callable as noise\(draw, like\).*got Tensor; a tensor to start"),
        ({"callback": 3}, r"callback must be callable as callback\(stage, time, x, x0\), got int"),
    ],
)
def test_functions_are_checked_before_the_run(arguments: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fastdiff.sample(lambda x, t: x, shape=(1, 4), **arguments)


def test_warnings_name_the_line_outside_the_package() -> None:
    """Also where the user's folder has a name that begins like the package's."""
    code = "def call(then):\n    then()\n"
    inside, beside = f"{names.PACKAGE}mine.py", f"{names.PACKAGE[:-1]}_mine/script.py"
    calls: list[Callable[[Any], None]] = []
    for path in (inside, beside):
        scope: dict[str, Any] = {}
        exec(compile(code, path, "exec"), scope)
        calls.append(scope["call"])
    warning = functools.partial(names.warn, "look here")
    with pytest.warns(UserWarning, match="look here") as found:
        calls[0](warning)
        calls[1](warning)
    assert [w.filename for w in found] == [__file__, beside]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("DPM++ 2M", "dpmpp2m"),
        ("DPM++ 2M SDE", "dpmpp2m_sde"),
        ("Euler a", "euler_ancestral"),
        ("Heun", "heun"),
        ("UniPC", "unipc"),
    ],
)
def test_names_as_user_interfaces_show_them(name: str, method: str) -> None:
    assert find(name).name == method


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eulr", "unknown method 'eulr'; did you mean 'euler'"),
        ("no_such_karras", "unknown method 'no_such_karras'. Valid"),
    ],
)
def test_messages_about_methods(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find(name)
