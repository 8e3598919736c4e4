"""Schedules as the configs of diffusers' schedulers describe them. Read by their keys: diffusers is not imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastdiff.names import unknown
from fastdiff.schedules.base import Array, NoiseSchedule
from fastdiff.schedules.configs import CHOICES, PREDICTIONS, settings
from fastdiff.schedules.continuous import flow, preconditioned
from fastdiff.schedules.discrete import Discrete, cosine, ddpm, discrete, scaled_linear


class Described(NamedTuple):
    """What a scheduler's config says about its network."""

    schedule: NoiseSchedule
    prediction: str


def is_scheduler(value: Any) -> bool:
    """Whether this is a scheduler of diffusers, or has its interface: a config and set_timesteps."""
    return hasattr(value, "set_timesteps") and isinstance(getattr(value, "config", None), Mapping)


def training(config: Mapping[str, Any]) -> Discrete:
    """The schedule of a config's betas, its signal-to-noise ratio divided by `snr_shift_scale`, and with a terminal
    alpha of 0 where `rescale_betas_zero_snr` says so.

    Raises:
        ValueError: another `beta_schedule`.
    """
    trained, kind = config.get("trained_betas"), config["beta_schedule"]
    zero = bool(config.get("rescale_betas_zero_snr", False))
    shift = float(config.get("snr_shift_scale", 1.0))
    if shift != 1.0:
        a = training({**config, "snr_shift_scale": 1.0, "rescale_betas_zero_snr": False}).alphas_cumprod
        return discrete(alphas_cumprod=a / (shift + (1.0 - shift) * a), zero_terminal_snr=zero)
    if trained is not None:
        return discrete(trained, zero_terminal_snr=zero)
    count = int(config["num_train_timesteps"])
    low, high = float(config.get("beta_start", 0.0)), float(config.get("beta_end", 0.0))
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
    raise ValueError(unknown("beta_schedule", kind, CHOICES["beta_schedule"]))


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
    prediction = PREDICTIONS[config.get("prediction_type", "epsilon")]
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
