"""Schedules as the configs of diffusers' schedulers describe them. Read by their keys: diffusers is not imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastdiff.names import short, unknown
from fastdiff.schedules.base import Array, NoiseSchedule
from fastdiff.schedules.continuous import flow, preconditioned
from fastdiff.schedules.discrete import Discrete, cosine, ddpm, discrete, scaled_linear

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


class Described(NamedTuple):
    """What a scheduler's config says about its network."""

    schedule: NoiseSchedule
    prediction: str


def is_scheduler(value: Any) -> bool:
    """Whether this is a scheduler of diffusers, or has its interface: a config and set_timesteps."""
    return hasattr(value, "set_timesteps") and isinstance(getattr(value, "config", None), Mapping)


def settings(scheduler: Any, name: str | None = None) -> tuple[str, dict[str, Any]]:
    """The class and the whole config of a scheduler, or of its config: keys that it lacks have the class's defaults.

    Keys of other classes, which diffusers keeps in configs, and those that begin with "_" are left out.

    Raises:
        TypeError: neither a scheduler nor a config.
        ValueError: a class or a key that is not known here; a config of several classes that does not say its own.
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
    if found not in DEFAULTS:
        raise ValueError(unknown("scheduler class of diffusers", found, DEFAULTS))
    defaults = DEFAULTS[found]
    known = {"fastdiff", *(key for keys in DEFAULTS.values() for key in keys)}
    strange = [k for k, v in config.items() if not k.startswith("_") and k not in known and v not in (None, False)]
    if strange:
        raise ValueError(
            f"config key {strange[0]!r} = {short(config[strange[0]])} of {found} is not known here, so that what it "
            "changes would be lost: remove it from the config if it changes nothing"
        )
    return found, {key: config.get(key, default) for key, default in defaults.items()}


def _class_of(config: Mapping[str, Any]) -> str:
    """The class whose config has exactly these keys."""
    keys = {k for k in config if not k.startswith("_")}
    fits = [name for name, defaults in DEFAULTS.items() if set(defaults) == keys]
    kinds = [name for name in fits if "Parallel" not in name]
    if len(kinds) != 1:
        which = " or ".join(kinds) if kinds else "none that is known here"
        raise ValueError(
            f"this config does not say its class ('_class_name'), and its keys are those of {which}: give the "
            "scheduler itself, from_config(pipe.scheduler)"
        )
    return kinds[0]


def training(config: Mapping[str, Any]) -> Discrete:
    """The schedule of a config's betas, its signal-to-noise ratio divided by `snr_shift_scale`, and with a terminal
    alpha of 0 where `rescale_betas_zero_snr` says so.

    Raises:
        ValueError: another `beta_schedule`.
    """
    trained, kind = config["trained_betas"], config["beta_schedule"]
    zero = bool(config.get("rescale_betas_zero_snr", False))
    shift = float(config.get("snr_shift_scale", 1.0))
    if shift != 1.0:
        a = training({**config, "snr_shift_scale": 1.0, "rescale_betas_zero_snr": False}).alphas_cumprod
        return discrete(alphas_cumprod=a / (shift + (1.0 - shift) * a), zero_terminal_snr=zero)
    if trained is not None:
        return discrete(trained, zero_terminal_snr=zero)
    count, low, high = int(config["num_train_timesteps"]), float(config["beta_start"]), float(config["beta_end"])
    if kind == "linear":
        return ddpm(count, low, high, zero_terminal_snr=zero)
    if kind == "scaled_linear":
        return scaled_linear(count, low, high, zero_terminal_snr=zero)
    if kind == "squaredcos_cap_v2":
        return cosine(count, zero_terminal_snr=zero)
    if kind == "sigmoid":
        betas = low + (high - low) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, count)))
        return discrete(betas, zero_terminal_snr=zero)
    if kind == "exp":
        return discrete(np.full(count, min(-math.expm1(-12.0 / count), 0.999)), zero_terminal_snr=zero)
    valid = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp")
    raise ValueError(unknown("beta_schedule", kind, valid))


def alphas_cumprod(config: Mapping[str, Any], floor: bool) -> Array:
    """alpha² at the N training times, float64; `floor`: with the 2^-24 that most classes have for a terminal 0."""
    made = training(config)
    values = made.alphas_cumprod
    if floor and made.zero_terminal:
        values[-1] = 2.0**-24
    return values


def described(scheduler: Any) -> Described:
    """The noise schedule of a scheduler's network and what the network predicts.

    The times that the network is given are the scheduler's: indices, 1000 times sigma for flow, log(sigma)/4 for EDM.

    Raises:
        ValueError: classes and keys that are not known here; a shift that depends on the image (use_dynamic_shifting).
    """
    name, config = settings(scheduler)
    count = float(config.get("num_train_timesteps", 1000))
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ValueError(unknown("prediction_type", kind, PREDICTIONS))
    prediction = PREDICTIONS[kind]
    match = name.startswith("FlowMatch")
    if match or config.get("use_flow_sigmas"):
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                f"the shift of {name} depends on the image's size (use_dynamic_shifting=True): give the schedule of "
                f"yours, fastdiff.schedules.flow(math.exp(mu), time_scale={count:g})"
            )
        if config.get("invert_sigmas"):
            raise ValueError(
                "invert_sigmas=True: the network's time grows towards the data; give it as a function, "
                f"lambda x, t: -model(x, {count:g} - t), with schedule=fastdiff.schedules.flow(shift, "
                f"time_scale={count:g}), prediction='flow'"
            )
        shift = config["shift"] if match else config["flow_shift"]
        return Described(flow(float(shift), time_scale=count), "flow" if match else prediction)
    if name.startswith("Cosine"):
        raise ValueError(
            "the network of CosineDPMSolverMultistepScheduler is given 2/pi·atan(sigma): lambda x, t: model(x, "
            "(4 * t).exp().atan() * 2 / math.pi), with schedule=fastdiff.schedules.preconditioned(sigma_min, "
            f"sigma_max, sigma_data), prediction={'edm' if prediction == 'eps' else prediction!r}"
        )
    if name.startswith("EDM"):
        made = preconditioned(float(config["sigma_min"]), float(config["sigma_max"]), float(config["sigma_data"]))
        return Described(made, "edm" if prediction == "eps" else prediction)
    if name == "IPNDMScheduler":
        raise ValueError(
            "IPNDMScheduler's times have no schedule of betas: give schedule=fastdiff.schedules.vp_linear() or the one "
            "that the network was trained with"
        )
    if config.get("timestep_type") == "continuous" and prediction == "v":
        low, high = config["sigma_min"], config["sigma_max"]
        if low is not None and high is not None:
            return Described(preconditioned(float(low), float(high), 1.0), prediction)
    return Described(training(config), prediction)
