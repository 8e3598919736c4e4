"""What `fastdiff.integrations.diffusers` takes of configs, and of arguments, and what it refuses and how it says so."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from helpers import of_diffusers  # noqa: E402
from helpers.scheduling import MATCH, WAN, X, ours, run  # noqa: E402

from fastdiff.integrations.diffusers import Scheduler, accelerate  # noqa: E402
from fastdiff.schedules.configs import DEFAULTS, LATER  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_config_of_an_older_version_has_the_defaults_of_what_it_lacks() -> None:
    new = ("use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "flow_shift", "use_dynamic_shifting")
    config = dict(diffusers.DPMSolverMultistepScheduler(solver_order=3).config)
    old = {k: v for k, v in config.items() if k not in (*new, "time_shift_type", "rescale_betas_zero_snr")}
    s = Scheduler.from_config({**old, "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.30.0"})
    assert torch.equal(run(s), run(ours("DPMSolverMultistepScheduler", solver_order=3)))


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("UniPCMultistepScheduler", ["sigma_min", "sigma_max", "shift_terminal"]),
        ("FlowMatchEulerDiscreteScheduler", ["stochastic_sampling", "time_shift_type", "use_karras_sigmas"]),
        ("EDMEulerScheduler", ["final_sigmas_type"]),
        ("EulerDiscreteScheduler", ["use_beta_sigmas", "use_exponential_sigmas"]),
    ],
)
def test_a_config_of_an_older_version_that_does_not_say_its_class(name: str, later: list[str]) -> None:
    config = {k: v for k, v in DEFAULTS[name].items() if k not in later}
    assert Scheduler.from_config(config).replaces == name
    del config["num_train_timesteps"]
    with pytest.raises(ValueError, match="keys are those of none"):
        Scheduler.from_config(config)


@pytest.mark.skipif(of_diffusers.release() > (0, 42), reason="newer than what was looked through")
def test_every_class_is_here_or_refused_by_its_name() -> None:
    classes = [n for n in dir(diffusers.schedulers) if n.endswith("Scheduler") and not n.startswith("Flax")]
    assert len(classes) > 30
    for name in set(classes) - set(Scheduler._compatibles):
        with pytest.raises(ValueError, match=f"{name} of diffusers is not here: .*; keep diffusers' own"):
            Scheduler.from_config({"_class_name": name})


def test_the_keys_of_every_class_are_those_of_the_installed_version() -> None:
    for name, defaults in DEFAULTS.items():
        theirs = getattr(diffusers, name, None)
        if theirs is not None:
            found = inspect.signature(theirs.__init__).parameters
            keys = {k: p.default for k, p in found.items() if k not in ("self", "kwargs")}
            assert set(keys) <= set(defaults) and set(defaults) - set(keys) <= LATER, name
            changed = {k: v for k, v in keys.items() if v != defaults[k] and (v or defaults[k])}
            assert not changed, (name, changed)


def test_a_config_without_a_class_is_known_by_its_keys_or_refused() -> None:
    assert Scheduler.from_config(diffusers.UniPCMultistepScheduler().config).replaces == "UniPCMultistepScheduler"
    with pytest.raises(ValueError, match="LCMScheduler or TCDScheduler: give the scheduler itself"):
        Scheduler.from_config(diffusers.LCMScheduler().config)
    with pytest.raises(ValueError, match="unknown scheduler class of diffusers 'NopeScheduler'"):
        Scheduler.from_config({"_class_name": "NopeScheduler"})
    with pytest.raises(TypeError, match="expected a scheduler of diffusers or its config"):
        Scheduler.from_config(3)
    with pytest.raises(TypeError, match="from_pretrained"):
        Scheduler.from_config("folder")


def test_keys_of_other_classes_are_ignored_and_unknown_ones_refused() -> None:
    config = dict(diffusers.EulerDiscreteScheduler().config)
    named = {**config, "_class_name": "EulerDiscreteScheduler", "skip_prk_steps": True, "clip_sample": False}
    assert Scheduler.from_config(named).config.skip_prk_steps
    with pytest.raises(ValueError, match="config key 'warp' = 2"):
        Scheduler.from_config({**named, "warp": 2})


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SDXL = {**SD, "interpolation_type": "linear", "skip_prk_steps": True, "steps_offset": 1, "sample_max_value": 1.0}
# Configs with keys of several classes, as repositories of these models have them.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Stable Diffusion 1.5": (
        "PNDMScheduler",
        {**SD, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False},
    ),
    "SDXL": ("EulerDiscreteScheduler", {**SDXL, "timestep_spacing": "leading", "set_alpha_to_one": False}),
    "SDXL Turbo": ("EulerAncestralDiscreteScheduler", {**SDXL, "timestep_spacing": "trailing"}),
    "LCM": (
        "LCMScheduler",
        {**SDXL, "original_inference_steps": 50, "timestep_scaling": 10.0, "use_karras_sigmas": False},
    ),
    "Playground 2.5": ("EDMDPMSolverMultistepScheduler", {"rho": 7.0, "sigma_data": 0.5, "thresholding": False}),
    "DeepFloyd IF": (
        "DDPMScheduler",
        {"beta_schedule": "squaredcos_cap_v2", "thresholding": True, "sample_max_value": 1.5}
        | {"dynamic_thresholding_ratio": 0.95, "variance_type": "learned_range"},
    ),
    "Shap-E": ("HeunDiscreteScheduler", {"beta_schedule": "exp", "prediction_type": "sample", "clip_sample": True}),
    "PixArt": ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -math.inf, "variance_type": "learned_range"}),
    "Stable Audio": ("CosineDPMSolverMultistepScheduler", {"sigma_max": 500, "sigma_min": 0.3, "rho": 7.0}),
    "latent diffusion of faces": ("DDIMScheduler", {**SD, "timesteps": 1000, "timestep_values": None}),
    "Mochi": (MATCH, {"invert_sigmas": True, "use_dynamic_shifting": False}),
    "Wan": ("UniPCMultistepScheduler", {**WAN, "flow_shift": 3.0, "disable_corrector": [], "solver_p": None}),
    "Latte": ("DDIMScheduler", {"beta_schedule": "linear", "variance_type": "learned_range", "clip_sample": False}),
    "Kandinsky's prior": ("UnCLIPScheduler", {"clip_sample_range": 5.0, "prediction_type": "sample"}),
}


@pytest.mark.parametrize(("name", "config"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_configs_load(name: str, config: dict[str, Any]) -> None:
    s = Scheduler.from_config({"_class_name": name, "_diffusers_version": "0.19.0", "trained_betas": None, **config})
    s.set_timesteps(5)
    assert s.replaces == name and len(s.timesteps) >= 5


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type='fixed_large_log'"),
    ("DDPMScheduler", {"variance_type": "learned"}, "variance_type='learned'"),
    ("DDIMScheduler", {"beta_schedule": "warp"}, "unknown beta_schedule 'warp'"),
    ("DDIMScheduler", {"prediction_type": "warp"}, "unknown prediction_type 'warp'"),
    ("DDIMScheduler", {"timestep_spacing": "warp"}, "unknown timestep_spacing 'warp'"),
    ("DDIMInverseScheduler", {"clip_sample": True}, "clip_sample=True"),
    ("DDIMInverseScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}, "timestep_spacing='linspace'"),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas=True and"),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order=4"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "warp"}, "unknown algorithm_type 'warp'"),
    ("DPMSolverMultistepScheduler", {"solver_type": "warp"}, "unknown solver_type 'warp'"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "use_karras_sigmas": True}, "use_flow_sigmas=True"),
    ("DPMSolverMultistepInverseScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas=True of"),
    ("DPMSolverSinglestepScheduler", {"solver_order": 4}, "solver_order=4"),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type='sde-dpmsolver'"),
    ("UniPCMultistepScheduler", {"solver_order": 9}, "solver_order=9"),
    ("UniPCMultistepScheduler", {"solver_type": "warp"}, "unknown solver_type 'warp'"),
    ("UniPCMultistepScheduler", {"solver_p": 1}, "solver_p"),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "use_beta_sigmas": True}, "use_flow_sigmas=True"),
    (MATCH, {"use_dynamic_shifting": True, "time_shift_type": "warp"}, "unknown time_shift_type 'warp'"),
    ("EDMEulerScheduler", {"sigma_schedule": "warp"}, "unknown sigma_schedule 'warp'"),
    ("FlowMatchLCMScheduler", {"scale_factors": [2.0]}, "scale_factors"),
    ("IPNDMScheduler", {"trained_betas": [0.9, 0.5, 0.1]}, "trained_betas of IPNDMScheduler are the levels"),
    ("CosineDPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order=3 of Cosine"),
    ("DEISMultistepScheduler", {"solver_order": 4}, "solver_order=4 of DEIS"),
    (
        "DPMSolverMultistepInverseScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        "algorithm_type='sde-dpmsolver\\+\\+'",
    ),
    (
        "DDIMInverseScheduler",
        {"clip_sample": False, "prediction_type": "sample"},
        "prediction_type='sample' of DDIMInv",
    ),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "flow_prediction' without use_flow_sigmas"),
    ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "trained_betas has 2 entries, and num_train_timesteps=1000"),
    ("FlowMatchLCMScheduler", {"invert_sigmas": True}, "invert_sigmas=True of FlowMatchLCMScheduler with noise"),
    (MATCH, {"invert_sigmas": True, "stochastic_sampling": True}, "invert_sigmas=True of FlowMatchEuler"),
    ("UnCLIPScheduler", {"variance_type": "fixed_large"}, "unknown variance_type 'fixed_large'"),
    ("SASolverScheduler", {"algorithm_type": "dpmsolver"}, "unknown algorithm_type 'dpmsolver'"),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "warp"}, "unknown final_sigmas_type 'warp'"),
    ("EDMDPMSolverMultistepScheduler", {"thresholding": True}, "thresholding=True"),
]


@pytest.mark.parametrize(("name", "config", "match"), REFUSED)
def test_what_is_not_here_is_refused_by_its_key(name: str, config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Scheduler.from_config({"_class_name": name, **config})


def test_arguments_that_do_not_fit() -> None:
    s = ours("DDIMScheduler")
    with pytest.raises(ValueError, match="no times are set"):
        s.step(X, 1, X)
    for call, match in (
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 1001}, "num_train_timesteps=1000"),
        ({"num_inference_steps": 5, "mu": 1.0}, "mu=...\\) is not an argument"),
        ({}, "needs num_inference_steps"),
        ({"timesteps": [1, 2, 3]}, "must descend"),
        ({"num_inference_steps": 5, "timesteps": [300, 200]}, "got 2 timesteps and num_inference_steps=5: give one"),
        ({"timesteps": "abc"}, "expected a list of finite numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            s.set_timesteps(**call)
    for call, match in (
        ({"num_inference_steps": "5"}, "num_inference_steps='5': expected an integer, such as 20"),
        ({"num_inference_steps": 5.5}, "num_inference_steps=5.5: expected an integer, such as 20"),
        ({"num_inference_steps": 5, "mu": "a"}, "mu='a': expected a number"),
        ({"num_inference_steps": 5, "strength": None}, "strength=None: expected a number"),
    ):
        with pytest.raises(TypeError, match=match):
            s.set_timesteps(**call)
    for wrong in ((None, X), (X, [1.0])):
        with pytest.raises(TypeError, match=r"(original_samples|noise) got (NoneType|list); expected a torch.Tensor"):
            s.add_noise(*wrong, torch.tensor([3]))
    karras = ours("HeunDiscreteScheduler", use_karras_sigmas=True)
    with pytest.raises(ValueError, match="use_karras_sigmas=True: both say"):
        karras.set_timesteps(timesteps=[900.0, 1.0])
    with pytest.raises(ValueError, match="got both steps and timesteps"):
        ours("HeunDiscreteScheduler").set_timesteps(2, timesteps=[900.0, 1.0])
    with pytest.raises(ValueError, match="needs use_flow_sigmas=True"):
        ours("UniPCMultistepScheduler").set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="needs mu"):
        ours(MATCH, use_dynamic_shifting=True).set_timesteps(4)
    with pytest.raises(ValueError, match="got 2 sigmas and num_inference_steps=4"):
        ours(MATCH).set_timesteps(4, sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="places between sigma_max and sigma_min"):
        ours("EDMEulerScheduler").set_timesteps(sigmas=[0.0, 1.0])
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    with pytest.raises(ValueError, match="timestep_type='continuous'"):
        ours("EulerDiscreteScheduler", **continuous).set_timesteps(timesteps=[900.0])
    s.set_timesteps(4)
    t = s.timesteps[0]
    with pytest.raises(TypeError, match="model_output must be a floating-point tensor"):
        s.step(3, t, X)
    with pytest.raises(ValueError, match="model_output has shape"):
        s.step(X[:1], t, X)
    with pytest.raises(ValueError, match="timestep is empty"):
        s.step(X, torch.empty(0), X)
    with pytest.raises(ValueError, match="s_churn"):
        s.step(X, t, X, s_churn=1.0)
    with pytest.raises(ValueError, match="got 3 generators for a batch of 2"):
        s.step(X, t, X, eta=1.0, generator=[torch.Generator()] * 3)
    with pytest.raises(TypeError, match="got int: torch"):
        s.step(X, t, X, eta=1.0, generator=3)
    heun = ours("HeunDiscreteScheduler")
    heun.set_timesteps(4)
    heun.set_begin_index(1)
    with pytest.raises(ValueError, match="in the midst of a step"):
        heun.step(X, heun.timesteps[1], X)
    learned = ours("DDPMScheduler", variance_type="learned_range")
    learned.set_timesteps(4)
    with pytest.raises(ValueError, match="twice the channels of sample"):
        learned.step(X, learned.timesteps[0], X)
    with pytest.raises(ValueError, match="no training table"):
        ours(MATCH).get_velocity(X, X, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="noise='warp'"):
        Scheduler.from_config(diffusers.DDIMScheduler(), noise="warp")
    dpm = ours("DPMSolverSinglestepScheduler", **WAN)
    for name in ("RePaintScheduler", "SCMScheduler", "VQDiffusionScheduler"):
        with pytest.raises(ValueError, match=f"{name} of diffusers is not here: it"):
            Scheduler.from_config({"_class_name": name})
    unclip = ours("UnCLIPScheduler")
    unclip.set_timesteps(4)
    with pytest.raises(ValueError, match="prev_timestep=5: the step at timesteps\\[0\\] leads to 666"):
        unclip.step(X, unclip.timesteps[0], X, prev_timestep=5)
    with pytest.raises(ValueError, match="prev_timestep=None: the step at timesteps\\[1\\] leads to 333"):
        unclip.step(X, unclip.timesteps[1], X)
    zero = ours("LCMScheduler", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr=True and a time at which alpha = 0"):
        zero.set_timesteps(4)
    with pytest.raises(ValueError, match="num_inference_steps=1 of IPNDMScheduler returns zeros"):
        ours("IPNDMScheduler").set_timesteps(1)
    assert dpm.order == 1


def test_accelerate_says_what_it_cannot_do() -> None:
    class Pipe:
        scheduler = diffusers.DDIMScheduler()

    class StableDiffusionLatentUpscalePipeline(Pipe): ...

    class CogVideoXPipeline(Pipe): ...

    assert type(accelerate(CogVideoXPipeline()).scheduler) is Scheduler
    pipe = accelerate(Pipe(), "UniPCMultistep", solver_order=3)
    assert pipe.scheduler.replaces == "UniPCMultistepScheduler" and pipe.scheduler.config.solver_order == 3
    with pytest.raises(TypeError, match="a pipeline of diffusers, with a scheduler; got int"):
        accelerate(3)
    with pytest.raises(ValueError, match="graph=True: the pipeline calls its network itself"):
        accelerate(Pipe(), graph=True)
    with pytest.raises(ValueError, match="unknown scheduler class of diffusers 'nope'"):
        accelerate(Pipe(), "nope")
    with pytest.raises(ValueError, match="does not work with another scheduler"):
        accelerate(StableDiffusionLatentUpscalePipeline())


def test_another_method_runs_the_same_network() -> None:
    class Pipe:
        def __init__(self, name: str, **config: Any) -> None:
            self.scheduler = of_diffusers.scheduler(name, **config)

    shifted = accelerate(Pipe(MATCH, shift=3.0), "UniPCMultistep").scheduler
    assert torch.equal(run(shifted), run(ours("UniPCMultistepScheduler", **WAN, flow_shift=3.0)))
    back = accelerate(Pipe("UniPCMultistepScheduler", **WAN, flow_shift=5.0), "FlowMatchEulerDiscrete").scheduler
    assert back.config.shift == 5.0 and torch.equal(run(back), run(ours(MATCH, shift=5.0)))
    # Names of another class's algorithms say nothing of the network.
    assert accelerate(Pipe("SASolverScheduler"), "DPMSolverMultistep").scheduler.config.algorithm_type == "dpmsolver++"
    assert accelerate(Pipe("DDIMScheduler"), "SASolver").scheduler.replaces == "SASolverScheduler"
    for name, config, method, match in (
        (MATCH, {}, "EulerDiscrete", "no key for a network of FlowMatchEuler"),
        ("DDIMScheduler", {}, "FlowMatchEulerDiscrete", "no key for a network of DDIMScheduler"),
        ("EDMEulerScheduler", {}, "DDIM", "no key for a network of EDMEulerScheduler"),
        (MATCH, {"invert_sigmas": True}, "UniPCMultistep", "no key for invert_sigmas=True"),
        (MATCH, {"use_dynamic_shifting": True}, "SASolver", "no key for use_dynamic_shifting=True"),
        ("CogVideoXDDIMScheduler", {}, "DDIM", r"no key for snr_shift_scale=3\.0"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            "UniPCMultistep",
            "no key for timestep_type='continuous'",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            accelerate(Pipe(name, **config), method)


def test_keys_of_the_first_versions_change_nothing() -> None:
    old = {"_class_name": "DDIMScheduler", "timesteps": 1000, "timestep_values": None, "tensor_format": "pt"}
    assert torch.equal(run(Scheduler.from_config(old)), run(ours("DDIMScheduler")))


def test_beta_sigmas_without_scipy_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        ours("EulerDiscreteScheduler", use_beta_sigmas=True)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("fastdiff.integrations.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="pip install diffusers"):
        importlib.import_module("fastdiff.integrations.diffusers")
