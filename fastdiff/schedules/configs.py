"""The configs of diffusers' scheduler classes: their keys, what a missing one means, and what each may say.

Read by their keys: diffusers is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastdiff.names import short, unknown

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
"""What `prediction_type` is called here."""

_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_LATENT = {**_BETAS, "beta_start": 0.00085, "beta_end": 0.012}
_CURVES = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_CLIPS = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_FLOWS = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
_LINSPACE = {"timestep_spacing": "linspace"}
_DPM = {
    **_BETAS,
    **_CLIPS,
    **_CURVES,
    **_FLOWS,
    **_LINSPACE,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "use_lu_lambdas": False,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
    "rescale_betas_zero_snr": False,
}
_DDIM = {
    **_BETAS,
    **_CLIPS,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
}
_DDPM = {k: v for k, v in _DDIM.items() if k != "set_alpha_to_one"} | {"variance_type": "fixed_small"}
_DISTILLED = {
    **_DDIM,
    **_LATENT,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
_VIDEO = {
    **{k: v for k, v in _DDIM.items() if k not in ("thresholding", "dynamic_thresholding_ratio")},
    **_LATENT,
    "beta_schedule": "scaled_linear",
    "snr_shift_scale": 3.0,
}
_KDPM = {**_LATENT, **_CURVES, **_LINSPACE}
_MATCH = {
    **_CURVES,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    "time_shift_type": "exponential",
}
_EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDIMInverseScheduler": {k: v for k, v in _DDIM.items() if k not in _CLIPS},
    "UnCLIPScheduler": {
        "num_train_timesteps": 1000,
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
        "beta_schedule": "squaredcos_cap_v2",
    },
    "PNDMScheduler": {
        **_BETAS,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
    },
    "LMSDiscreteScheduler": {**_BETAS, **_CURVES, **_LINSPACE},
    "EulerDiscreteScheduler": {
        **_BETAS,
        **_CURVES,
        **_LINSPACE,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_BETAS, **_LINSPACE, "rescale_betas_zero_snr": False},
    "HeunDiscreteScheduler": {**_KDPM, "clip_sample": False, "clip_sample_range": 1.0},
    "KDPM2DiscreteScheduler": _KDPM,
    "KDPM2AncestralDiscreteScheduler": _KDPM,
    "DPMSolverSDEScheduler": {**_KDPM, "noise_sampler_seed": None},
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverMultistepInverseScheduler": {
        k: v
        for k, v in _DPM.items()
        if k
        not in (
            "use_lu_lambdas",
            "final_sigmas_type",
            "rescale_betas_zero_snr",
            "use_dynamic_shifting",
            "time_shift_type",
        )
    },
    "DPMSolverSinglestepScheduler": {
        k: False if k == "lower_order_final" else v
        for k, v in _DPM.items()
        if k not in ("euler_at_final", "use_lu_lambdas", "timestep_spacing", "steps_offset", "rescale_betas_zero_snr")
    },
    "DEISMultistepScheduler": {
        **_BETAS,
        **_CLIPS,
        **_CURVES,
        **_FLOWS,
        **_LINSPACE,
        "solver_order": 2,
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
    },
    "UniPCMultistepScheduler": {
        **_BETAS,
        **_CLIPS,
        **_CURVES,
        **_FLOWS,
        **_LINSPACE,
        "solver_order": 2,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": (),
        "solver_p": None,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "SASolverScheduler": {
        **_BETAS,
        **_CLIPS,
        **_CURVES,
        **_LINSPACE,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "predictor_order": 2,
        "corrector_order": 2,
        "tau_func": None,
        "algorithm_type": "data_prediction",
        "lower_order_final": True,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "IPNDMScheduler": {"num_train_timesteps": 1000, "trained_betas": None},
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "FlowMatchEulerDiscreteScheduler": {**_MATCH, "stochastic_sampling": False},
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "FlowMatchLCMScheduler": {**_MATCH, "scale_factors": None, "upscale_mode": "bicubic"},
    "CogVideoXDDIMScheduler": _VIDEO,
    "CogVideoXDPMScheduler": _VIDEO,
    "CosineDPMSolverMultistepScheduler": {
        **_EDM,
        "sigma_min": 0.3,
        "sigma_max": 500.0,
        "sigma_data": 1.0,
        "sigma_schedule": "exponential",
        "prediction_type": "v_prediction",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
    },
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {
        **_EDM,
        **_CLIPS,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
    },
}
"""Every scheduler of diffusers for continuous diffusion that is known here, with the keys of its config and what a
missing one means (diffusers 0.30 to 0.42)."""

LATER = frozenset(
    (
        "final_sigmas_type",
        "flow_shift",
        "invert_sigmas",
        "shift_terminal",
        "sigma_max",
        "sigma_min",
        "stochastic_sampling",
        "time_shift_type",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_karras_sigmas",
    )
)
"""Keys that classes were given after diffusers 0.30, so that a config of an older version lacks them."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp"),
    "prediction_type": tuple(PREDICTIONS),
    "variance_type": (
        None,
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
        "learned",
        "learned_range",
    ),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "timestep_type": ("discrete", "continuous"),
    "interpolation_type": ("linear", "log_linear"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "sigma_schedule": ("karras", "exponential"),
    "time_shift_type": ("exponential", "linear"),
    "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
}
"""What keys of names may say. A class takes some of them for others, as diffusers does."""

OWN_CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "SASolverScheduler": {"algorithm_type": ("data_prediction", "noise_prediction")},
    "DEISMultistepScheduler": {"algorithm_type": ("deis", "dpmsolver", "dpmsolver++")},
    "UnCLIPScheduler": {
        "beta_schedule": ("squaredcos_cap_v2",),
        "variance_type": ("fixed_small_log", "learned_range"),
        "prediction_type": ("epsilon", "sample"),
    },
}

TOKENS = "it samples tokens, and here is continuous diffusion alone"
ABSENT: dict[str, str] = {
    "AmusedScheduler": TOKENS,
    "BlockRefinementScheduler": TOKENS,
    "CMStochasticIterativeScheduler": "a consistency model gives the sample itself, behind scalings of its own",
    "ConsistencyDecoderScheduler": "its two steps are a decoder's",
    "DDPMWuerstchenScheduler": "its times are those of a log-SNR of its own, which its pipelines read",
    "DiscreteDDIMScheduler": TOKENS,
    "EntropyBoundScheduler": TOKENS,
    "FlowMapEulerDiscreteScheduler": "its network is given two times: fastdiff.sample(model, method='mean_flow', "
    "two_times=True)",
    "HeliosDMDScheduler": "its runs go through stages of several sizes",
    "HeliosScheduler": "its runs go through stages of several sizes",
    "LTXEulerAncestralRFScheduler": "its lists of sigmas count the end: fastdiff.sample(model, "
    "method='euler_ancestral', prediction='flow')",
    "MiniMaxH3Scheduler": "its times grow towards the data, and its number of steps counts the end",
    "PiflowScheduler": "its network gives a policy for many small steps",
    "RFD4ProteinaScheduler": "it moves proteins by steps of its own",
    "RePaintScheduler": "its steps are given an image and a mask, and go back",
    "SCMScheduler": "its times are angles of TrigFlow",
    "ScoreSdeVeScheduler": "its corrector calls the network again: fastdiff.sample(model, method='pc', schedule='ve')",
    "VQDiffusionScheduler": TOKENS,
}
"""Scheduler classes of diffusers that are not here, and why."""


UNUSED = ("tensor_format", "timestep_values", "timesteps")
"""Keys of diffusers before 0.4, which change nothing since."""


def settings(scheduler: Any, name: str | None = None) -> tuple[str, dict[str, Any]]:
    """The class and the whole config of a scheduler, or of its config: keys that it lacks have the class's defaults.

    Keys of other classes, which diffusers keeps in configs, and those that begin with "_" are left out.

    Raises:
        TypeError: neither a scheduler nor a config.
        ValueError: a class, a key or a value that is not known here; a config of several classes that does not say its
            own.
    """
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise TypeError(
            f"expected a scheduler of diffusers or its config, a mapping; got {type(scheduler).__name__}: "
            "from_config(pipe.scheduler.config)"
        )
    found = name or getattr(scheduler, "replaces", None) or config.get("_class_name")
    if not isinstance(found, str) and not isinstance(scheduler, Mapping):
        found = type(scheduler).__name__
    if not isinstance(found, str):
        found = _class_of(config)
    if found in ABSENT:
        raise ValueError(f"{found} of diffusers is not here: {ABSENT[found]}; keep diffusers' own")
    if found not in DEFAULTS:
        raise ValueError(unknown("scheduler class of diffusers", found, DEFAULTS))
    defaults = DEFAULTS[found]
    known = {"fastdiff", *UNUSED, *(key for keys in DEFAULTS.values() for key in keys)}
    strange = [k for k, v in config.items() if not k.startswith("_") and k not in known and v not in (None, False)]
    if strange:
        raise ValueError(
            f"config key {strange[0]!r} = {short(config[strange[0]])} of {found} is not known here, so that what it "
            "changes would be lost: remove it from the config if it changes nothing"
        )
    made = {key: config.get(key, default) for key, default in defaults.items()}
    own = OWN_CHOICES.get(found, {})
    for key, value in made.items():
        valid = own.get(key) or CHOICES.get(key)
        if valid is not None and value not in valid:
            raise ValueError(f"{unknown(key, str(value), [str(v) for v in valid])}; this is a config of {found}")
    return found, made


def _class_of(config: Mapping[str, Any]) -> str:
    """The class whose config has exactly these keys, or had them in an older version."""
    keys = {k for k in config if not k.startswith("_")}
    classes = {name: set(defaults) for name, defaults in DEFAULTS.items() if "Parallel" not in name}
    fits = [name for name, own in classes.items() if own == keys]
    fits = fits or [name for name, own in classes.items() if keys <= own and own - keys <= LATER]
    if len(fits) != 1:
        which = " or ".join(fits) if fits else "none that is known here"
        raise ValueError(
            f"this config does not say its class ('_class_name'), and its keys are those of {which}: give the "
            "scheduler itself, from_config(pipe.scheduler)"
        )
    return fits[0]
