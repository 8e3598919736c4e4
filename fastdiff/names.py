"""Messages for names that are not known, and warnings at the user's own line."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Iterable

PACKAGE = os.path.dirname(__file__) + os.sep

SYNONYMS = {
    "epsilon": "eps",
    "noise": "eps",
    "noise_prediction": "eps",
    "sample": "x0",
    "x_start": "x0",
    "start_x": "x0",
    "data_prediction": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
    "previous_x": "previous",
    "linear": "ddpm",
    "squaredcos_cap_v2": "cosine",
}
"""What diffusers, dpm-solver and guided-diffusion call predictions and beta schedules, in lower case. In messages
only."""

ELSEWHERE = {
    "algorithm_type": "the method's name: 'dpm2' (dpmsolver), 'dpmpp2m' (dpmsolver++), 'dpmpp2m_sde'",
    "beta_schedule": "schedule='ddpm', 'scaled_linear' or 'cosine'",
    "clip_denoised": "clip=(-1, 1)",
    "clip_sample": "clip=(-1, 1)",
    "clip_sigma_idx": "clip_steps=1 of analytic_ddpm and analytic_ddim",
    "cond_fn": "classifier_grad=(x, t) -> grad of log p(y | x)",
    "correcting_x0_fn": "correct_x0=(x0, t) -> x0",
    "correcting_xt_fn": "correct_xt=(x, t, step) -> x",
    "denoised_fn": "correct_x0=lambda x0, t: denoised_fn(x0)",
    "extra_args": "model_kwargs={...}",
    "flow_shift": "schedule=fastdiff.schedules.flow(shift)",
    "generator": "seed=0, or one seed per sample",
    "n_steps": "n_corrector=1 of pc",
    "noise_sampler": "noise=(draw, like) -> tensor",
    "num_inference_steps": "steps=10",
    "prediction_type": "prediction='eps', 'x0', 'v' or 'flow'",
    "rescale_betas_zero_snr": "fastdiff.schedules.discrete(betas, zero_terminal_snr=True)",
    "return_intermediate": "return_trajectory=True",
    "set_alpha_to_one": "final='clean' (True) or 't_min' (False)",
    "shift": "schedule=fastdiff.schedules.flow(shift)",
    "sigma_max": "t_start of ve and edm schedules, or schedule=fastdiff.schedules.ve(sigma_min, sigma_max)",
    "sigma_min": "t_end of ve and edm schedules, or schedule=fastdiff.schedules.ve(sigma_min, sigma_max)",
    "sigmas": "spacing=[...]: the times themselves, which are sigmas for ve, edm, and flow without a shift",
    "skip_type": "spacing='time_uniform', 'logsnr' or 'time_quadratic'",
    "solver_order": "the method's name: 'dpmpp2m', 'dpmpp3m'",
    "strength": "t_start=..., and x=fastdiff.losses.q_sample(image, t_start, schedule)",
    "thresholding": "clip='dynamic'",
    "timestep_respacing": "spacing='ddim25', '10,15,20' and the like",
    "timestep_spacing": "spacing='leading', 'linspace' or 'trailing'",
    "timesteps": "spacing=[...]: the times themselves, and where they end",
    "use_exponential_sigmas": "spacing='exponential'",
    "use_karras_sigmas": "spacing='karras'",
}
"""What diffusers, k-diffusion, guided-diffusion and dpm-solver call an argument of `sample`. In messages only."""

CONDITIONING = ("encoder_hidden_states", "class_labels", "y", "added_cond_kwargs", "pooled_projections")
"""What networks are commonly conditioned on: arguments of the model, not of `sample`."""


def unknown(kind: str, got: object, valid: Iterable[str], guess: bool = True, also: Iterable[str] = ()) -> str:
    """The message of an error about a name: what was got, the nearest valid name (with `guess`; those of `also` too),
    and all valid names.

    >>> unknown("spacing", "karas", ["karras", "logsnr"])
    "unknown spacing 'karas'; did you mean 'karras'? Valid: karras, logsnr"
    """
    names = list(valid)
    folded = {name.lower(): name for name in (*names, *also)}
    near = difflib.get_close_matches(got.lower(), folded, n=1) if guess and isinstance(got, str) else []
    synonym = SYNONYMS.get(got.lower()) if isinstance(got, str) else None
    nearest = synonym if synonym in names else folded[near[0]] if near else None
    hint = f"; did you mean '{nearest}'?" if nearest else "."
    listed = ", ".join(names) if names else "none"
    return f"unknown {kind} {got!r}{hint} Valid: {listed}"


def unknown_option(method: str, got: str, valid: Iterable[str]) -> str:
    """The message about an option that a method does not take; for another library's name, what it is called here.

    >>> unknown_option("ddim", "use_karras_sigmas", ["eta"])
    "unknown option of method 'ddim': 'use_karras_sigmas'. Valid: eta. Here that is spacing='karras'"
    """
    # A name that is known to be another library's is no misspelling.
    message = unknown(f"option of method {method!r}:", got, valid, guess=got not in ELSEWHERE)
    if got in ELSEWHERE:
        return f"{message}. Here that is {ELSEWHERE[got]}"
    if got in CONDITIONING:
        return f"{message}. What the model is given goes in model_kwargs={{{got!r}: ...}}"
    return message


def warn(message: str) -> None:
    """A UserWarning at the line, outside this package, that called into it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
