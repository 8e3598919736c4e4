"""Names in the menus of ComfyUI and of the web UI, one by one: samplers, schedulers, and both in one name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.schedules.grids import SPACINGS, grid, spacing_key
from fastdiff.schedules.peers import MENU

COMFYUI = {
    "euler": "ddim",
    "euler_ancestral": "euler_ancestral",
    "heun": "heun",
    "heunpp2": "heunpp2",
    "exp_heun_2_x0": "exp_heun",
    "exp_heun_2_x0_sde": "exp_heun_2_x0_sde",
    "dpm_2": "dpm_2",
    "dpm_2_ancestral": "dpm_2_ancestral",
    "lms": "lms",
    "dpm_fast": "dpm3s",
    "dpm_adaptive": "dpm_adaptive",
    "dpmpp_2s_ancestral": "dpmpp_2s_ancestral",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m": "dpmpp2m",
    "dpmpp_2m_sde": "dpmpp2m_sde",
    "dpmpp_2m_sde_gpu": "dpmpp2m_sde",
    "dpmpp_2m_sde_heun": "dpmpp2m_sde",
    "dpmpp_2m_sde_heun_gpu": "dpmpp2m_sde",
    "dpmpp_3m_sde": "dpmpp3m_sde",
    "dpmpp_3m_sde_gpu": "dpmpp3m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "ipndm": "ipndm",
    "ipndm_v": "lms",
    "deis": "deis",
    "res_multistep": "res_multistep",
    "res_multistep_ancestral": "res_multistep_ancestral",
    "gradient_estimation": "gradient_estimation",
    "er_sde": "er_sde",
    "seeds_2": "seeds_2",
    "seeds_3": "seeds_3",
    "sa_solver": "sa_solver",
    "sa_solver_pece": "sa_solver_pece",
    "ddim": "ddim",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
}
CFG_PP = ("euler", "euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m", "res_multistep", "res_multistep_ancestral")
CFG_PP += ("gradient_estimation",)
SCHEDULERS = ("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic")
SCHEDULERS += ("kl_optimal",)
WEB_UI: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M": ("dpmpp2m", {}),
    "DPM++ SDE": ("dpmpp_sde", {}),
    "DPM++ 2M SDE": ("dpmpp2m_sde", {"solver_type": "midpoint"}),
    "DPM++ 2M SDE Heun": ("dpmpp2m_sde", {"solver_type": "heun"}),
    "DPM++ 2S a": ("dpmpp_2s_ancestral", {}),
    "DPM++ 3M SDE": ("dpmpp3m_sde", {}),
    "Euler a": ("euler_ancestral", {}),
    "Euler": ("ddim", {}),
    "LMS": ("lms", {}),
    "Heun": ("heun", {}),
    "DPM2 a": ("dpm_2_ancestral", {}),
    "DPM fast": ("dpm3s", {}),
    "DPM adaptive": ("dpm_adaptive", {}),
    "Restart": ("restart", {}),
    "DDIM": ("ddim", {}),
    "PLMS": ("pndm", {}),
    "UniPC": ("unipc", {}),
    "LCM": ("lcm", {}),
}
BOTH = {
    "DPM++ 2M Karras": ("dpmpp2m", "karras"),
    "DPM++ SDE Karras": ("dpmpp_sde", "karras"),
    "DPM++ 2M SDE Karras": ("dpmpp2m_sde", "karras"),
    "DPM++ 2M SDE Exponential": ("dpmpp2m_sde", "exponential"),
    "DPM++ 2M SDE Heun Karras": ("dpmpp2m_sde", "karras"),
    "DPM++ 2M SDE Heun Exponential": ("dpmpp2m_sde", "exponential"),
    "DPM++ 2S a Karras": ("dpmpp_2s_ancestral", "karras"),
    "DPM++ 3M SDE Karras": ("dpmpp3m_sde", "karras"),
    "DPM++ 3M SDE Exponential": ("dpmpp3m_sde", "exponential"),
    "LMS Karras": ("lms", "karras"),
    "DPM2 Karras": ("dpm_2", "karras"),
    "DPM2 a Karras": ("dpm_2_ancestral", "karras"),
    "dpmpp_2m_polyexponential": ("dpmpp2m", "polyexponential"),
    "Euler SGM Uniform": ("ddim", "sgm_uniform"),
}
TYPES = {
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "polyexponential",
    "SGM Uniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": "align_your_steps",
    "Align Your Steps 11": "align_your_steps",
    "Align Your Steps 32": "align_your_steps_32",
    "Align Your Steps GITS": "align_your_steps_gits",
    "Uniform": "normal",
    "DDIM": "ddim_uniform",
    "Turbo": "trailing",
    "ays": "ays_sd15",
    "Simple": "simple",
    "Normal": "normal",
    "Beta": "beta",
}
# The web UI's own grid of each sampler, where its menu of schedule types says "Automatic".
AUTOMATIC = {
    "DPM++ 2M": ("dpmpp2m", "karras"),
    "DPM++ SDE": ("dpmpp_sde", "karras"),
    "DPM++ 2M SDE": ("dpmpp2m_sde", "exponential"),
    "DPM++ 2M SDE Heun": ("dpmpp2m_sde", "exponential"),
    "DPM++ 2S a": ("dpmpp_2s_ancestral", "karras"),
    "DPM++ 3M SDE": ("dpmpp3m_sde", "exponential"),
    "Euler a": ("euler_ancestral", "normal"),
    "Euler": ("ddim", "normal"),
    "LMS": ("lms", "normal"),
    "Heun": ("heun", "normal"),
    "DPM2": ("dpm_2", "karras"),
    "DPM2 a": ("dpm_2_ancestral", "karras"),
    "Restart": ("restart", "karras"),
    "DDIM": ("ddim", "ddim_uniform"),
    "PLMS": ("pndm", "ddim_uniform"),
    "UniPC": ("unipc", "ddim_uniform"),
    "DDIM CFG++": ("euler_cfg_pp", "ddim_uniform"),
    "DPM fast": ("dpm3s", None),
    "LCM": ("lcm", None),
    "DPM++ 2M Karras": ("dpmpp2m", "karras"),
    "DPM++ 2M SDE Heun Karras": ("dpmpp2m_sde", "karras"),
    "DPM++ 3M SDE Exponential": ("dpmpp3m_sde", "exponential"),
}


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


def labelled(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x + y[:, None])


def sampled(name: str, **options: Any) -> tuple[str, torch.Tensor]:
    steps = {} if fastdiff.solvers.find(name).adaptive else {"steps": 4}
    made = fastdiff.sample(network, shape=(1, 4), method=name, schedule="sd", seed=3, **steps, **options)
    return fastdiff.Sampler(name, **steps).method, made


@pytest.mark.parametrize(("name", "method"), COMFYUI.items())
def test_samplers_of_comfyui(name: str, method: str) -> None:
    found, x = sampled(name)
    assert found == method and bool(torch.isfinite(x).all())


@pytest.mark.parametrize("name", CFG_PP)
def test_samplers_of_comfyui_that_run_with_guidance(name: str) -> None:
    given = {"cond": {"y": torch.ones(1)}, "uncond": {"y": torch.zeros(1)}, "guidance": 2.0}
    x = fastdiff.sample(labelled, shape=(1, 4), method=f"{name}_cfg_pp", schedule="sd", steps=4, **given)
    assert fastdiff.solvers.find(f"{name}_cfg_pp").name == f"{name}_cfg_pp" and bool(torch.isfinite(x).all())


def test_all_of_them() -> None:
    assert len(COMFYUI) + len(CFG_PP) == 44
    # The web UI's menu has one of them.
    assert fastdiff.solvers.find("DDIM CFG++").name == "euler_cfg_pp"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_comfyui(name: str) -> None:
    _, x = sampled("dpmpp_2m", spacing=name)
    assert name in SPACINGS and bool(torch.isfinite(x).all())


@pytest.mark.parametrize(("name", "want"), WEB_UI.items())
def test_samplers_of_the_web_ui(name: str, want: tuple[str, dict[str, Any]]) -> None:
    found, x = sampled(name)
    assert found == want[0] and bool(torch.isfinite(x).all())
    if want[1]:
        assert fastdiff.plan(name, 4).options.items() >= want[1].items()


@pytest.mark.parametrize(("name", "want"), BOTH.items())
def test_a_spacing_in_the_name(name: str, want: tuple[str, str]) -> None:
    found, x = sampled(name)
    options = {"solver_type": "heun"} if "Heun" in name else {}
    assert found == want[0]
    assert torch.equal(x, sampled(want[0], spacing=want[1], **options)[1])
    # Said twice it is the same; another one is a contradiction.
    assert torch.equal(x, sampled(name, spacing=want[1])[1])
    with pytest.raises(ValueError, match=f"names the spacing '{want[1]}', and spacing='simple' another: method='"):
        fastdiff.sample(network, shape=(1, 4), method=name, steps=4, spacing="simple")


@pytest.mark.parametrize(("name", "spacing"), TYPES.items())
def test_schedule_types_of_the_web_ui(name: str, spacing: str) -> None:
    schedule = fastdiff.schedules.scaled_linear()
    assert spacing_key(name) == spacing
    assert (grid(name, schedule, 10) == grid(spacing, schedule, 10)).all()
    assert fastdiff.plan("euler", 10, schedule, name).times == fastdiff.plan("euler", 10, schedule, spacing).times


@pytest.mark.parametrize(("name", "want"), AUTOMATIC.items())
def test_the_automatic_grid_of_the_web_ui(name: str, want: tuple[str, str | None]) -> None:
    made = fastdiff.plan(name, 8, "sd", "Automatic")
    assert made.method == want[0] and made.times == fastdiff.plan(want[0], 8, "sd", want[1]).times
    assert fastdiff.Sampler(name, 8, schedule="sd", spacing="automatic").plan.times == made.times


def test_automatic_is_of_the_web_uis_own_samplers() -> None:
    x = fastdiff.sample(network, shape=(1, 4), method="DPM adaptive", spacing="Automatic", schedule="sd", seed=3)
    assert torch.equal(x, sampled("dpm_adaptive")[1])
    with pytest.raises(ValueError, match="method 'dpm3' is none of these names: ddim, "):
        fastdiff.plan("dpm3", 4, "sd", "Automatic")
    with pytest.raises(ValueError, match="which a method says that is named as there"):
        fastdiff.sample(network, shape=(1, 4), steps=4, spacing="Automatic")


def test_the_menus_lists_have_noise_to_their_end() -> None:
    """Levels of the web UI: as many as steps along the list, in log sigma, then 0."""
    schedule = fastdiff.schedules.scaled_linear()
    for name, listed in MENU.items():
        times = grid(name, schedule, len(listed))
        levels = np.exp(-schedule.lam(times[:-1]))
        # The first is the schedule's own, 14.6146 for 14.615.
        np.testing.assert_allclose(levels, listed, rtol=1e-4)
        assert times[-1] == schedule.t_clean
    half = np.exp(-schedule.lam(grid("Align Your Steps", schedule, 6)[:-1]))
    np.testing.assert_allclose(half, MENU["align_your_steps"][::2], rtol=1e-4)
    last = grid("Align Your Steps", schedule, 10, final="t_min")[-1]
    assert abs(np.exp(-schedule.lam(last)) - 0.029) < 1e-12


def test_options_of_names() -> None:
    assert fastdiff.plan("uni_pc", 4).options["variant"] == "bh1"
    assert fastdiff.plan("uni_pc_bh2", 4).options["variant"] == "bh2"
    assert fastdiff.Sampler("uni_pc", 4).plan.options["variant"] == "bh1"
    assert fastdiff.plan("uni_pc", 4, variant="vary_coeff").options["variant"] == "vary_coeff"


@pytest.mark.parametrize("name", ["DPM++ 9M Karras", "karras", "_karras"])
def test_what_is_no_method_with_a_spacing(name: str) -> None:
    with pytest.raises(ValueError, match="unknown method"):
        fastdiff.plan(name, 4)
