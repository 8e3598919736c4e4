"""Messages for names that are not known, and warnings at the user's own line."""

from __future__ import annotations

import difflib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

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
    "batch_size": "the first number of shape=(batch, ...)",
    "beta_schedule": "schedule='ddpm', 'scaled_linear' or 'cosine'",
    "betas": "schedule=fastdiff.schedules.discrete(betas)",
    "alphas_cumprod": "schedule=fastdiff.schedules.discrete(alphas_cumprod=...)",
    "callback_on_step_end": "callback=(stage, time, x, x0), or correct_xt=(x, t, step) -> x to change the state",
    "callback_on_step_end_tensor_inputs": "nothing: callback is given x and x0",
    "cfg": "guidance=7.5, with cond=... and uncond=...",
    "cfg_scale": "guidance=7.5, with cond=... and uncond=...",
    "class_labels": "model_kwargs={'class_labels': ...}, or cond and uncond for guidance",
    "clip_denoised": "clip=(-1, 1)",
    "clip_sample": "clip=(-1, 1)",
    "clip_sigma_idx": "clip_steps=1 of analytic_ddpm and analytic_ddim",
    "cond_fn": "classifier_grad=(x, t) -> grad of log p(y | x)",
    "cond_scale": "guidance=7.5, with cond=... and uncond=...",
    "correcting_x0_fn": "correct_x0=(x0, t) -> x0",
    "correcting_xt_fn": "correct_xt=(x, t, step) -> x",
    "denoised_fn": "correct_x0=lambda x0, t: denoised_fn(x0)",
    "disable": "progress=True, where disable=False",
    "disable_progress_bar": "progress=False, the default",
    "eta": "eta=0.0, an option of ddim, analytic_ddim and dpmpp2m_sde",
    "extra_args": "model_kwargs={...}",
    "final_sigmas_type": "final='clean' (zero) or 't_min' (sigma_min), of the spacings that list times",
    "flow_shift": "schedule=fastdiff.schedules.flow(shift)",
    "generator": "seed=0, or one seed per sample",
    "guidance_rescale": "guidance=fastdiff.guidance.Rescale(scale, phi)",
    "labels": "model_kwargs={'y': labels} (the network's own name for them), or cond and uncond for guidance",
    "latents": "x=..., the state at t_start",
    "mask": "correct_xt=(x, t, step) -> x, which puts in what is known (docs/solvers.md, Inpainting)",
    "n_steps": "steps=10 (pc's Langevin steps are n_corrector=1)",
    "negative_prompt_embeds": "uncond={'encoder_hidden_states': ...}",
    "noise_sampler": "noise=(draw, like) -> tensor",
    "num_images_per_prompt": "the first number of shape=(batch, ...)",
    "num_inference_steps": "steps=10",
    "num_steps": "steps=10",
    "order": "the method's name: 'dpmpp2m', 'dpmpp3m'; order=3 is an option of unipc and dpm_adaptive",
    "output_type": "nothing: the result is a tensor",
    "prediction_type": "prediction='eps', 'x0', 'v' or 'flow'",
    "prompt_embeds": "cond={'encoder_hidden_states': ...}",
    "rescale_betas_zero_snr": "fastdiff.schedules.discrete(betas, zero_terminal_snr=True)",
    "return_dict": "nothing: the result is a tensor",
    "return_intermediate": "return_trajectory=True",
    "return_intermediates": "return_trajectory=True",
    "s_churn": "s_churn=0.0, an option of heun",
    "sampler": "method='dpm3'",
    "sampler_name": "method='dpm3'",
    "scheduler": "method='dpm3' and schedule='ddpm'",
    "set_alpha_to_one": "final='clean' (True) or 't_min' (False)",
    "shift": "schedule=fastdiff.schedules.flow(shift)",
    "sigma_max": "t_start of ve and edm schedules, or schedule=fastdiff.schedules.ve(sigma_min, sigma_max)",
    "sigma_min": "t_end of ve and edm schedules, or schedule=fastdiff.schedules.ve(sigma_min, sigma_max)",
    "sigmas": "spacing=[...]: the times themselves, which are sigmas for ve, edm, and flow without a shift",
    "skip_type": "spacing='time_uniform', 'logsnr' or 'time_quadratic'",
    "solver": "method='dpm3'",
    "solver_order": "the method's name: 'dpmpp2m', 'dpmpp3m'",
    "strength": "t_start=..., and x=fastdiff.losses.q_sample(image, t_start, schedule)",
    "thresholding": "clip='dynamic'",
    "timestep_respacing": "spacing='ddim25', '10,15,20' and the like",
    "timestep_spacing": "spacing='leading', 'linspace' or 'trailing'",
    "timesteps": "spacing=[...]: the times themselves, and where they end",
    "use_beta_sigmas": "spacing=[...]: the times themselves; spacing 'karras' and 'exponential' are near",
    "use_exponential_sigmas": "spacing='exponential'",
    "use_karras_sigmas": "spacing='karras'",
    "use_lu_lambdas": "spacing='exponential', or 'logsnr' to the last time with noise",
    "verbose": "progress=True",
    "x_init": "x=..., the state at t_start",
    "x_T": "x=..., the state at t_start",
}
"""What diffusers, k-diffusion, guided-diffusion, dpm-solver and others call an argument of `sample`. In messages
only."""

CONDITIONING = ("encoder_hidden_states", "class_labels", "y", "added_cond_kwargs", "pooled_projections")
"""What networks are commonly conditioned on: arguments of the model, not of `sample`."""


def nearest(got: object, valid: Iterable[str], also: Iterable[str] = ()) -> str | None:
    """The valid name that is nearest to what was got, or None; names of `also` stand for themselves too."""
    if not isinstance(got, str):
        return None
    names = list(valid)
    synonym = SYNONYMS.get(got.lower())
    if synonym in names:
        return synonym
    folded = {name.lower(): name for name in (*names, *also)}
    near = difflib.get_close_matches(got.lower(), folded, n=1)
    return folded[near[0]] if near else None


def unknown(kind: str, got: object, valid: Iterable[str], guess: bool = True, also: Iterable[str] = ()) -> str:
    """The message of an error about a name: what was got, the nearest valid name (with `guess`; those of `also` too),
    and all valid names.

    >>> unknown("spacing", "karas", ["karras", "logsnr"])
    "unknown spacing 'karas'; did you mean 'karras'? Valid: karras, logsnr"
    """
    names = list(valid)
    near = nearest(got, names, also) if guess else None
    hint = f"; did you mean '{near}'?" if near else "."
    listed = ", ".join(names) if names else "none"
    return f"unknown {kind} {short(got)}{hint} Valid: {listed}"


def short(value: object) -> str:
    """The repr of a value that came from a caller, cut where it is long."""
    text = " ".join(repr(value).split("\n"))
    return text if len(text) <= 100 else f"{text[:96]}..."


def one_of(kind: str, got: Any, valid: Iterable[str]) -> str:
    """`got`, one of the valid names; ValueError for any other, TypeError for what is no name."""
    names = list(valid)
    if not isinstance(got, str):
        raise TypeError(f"{kind} got {short(got)}; expected a name, one of {', '.join(names)}")
    if got not in names:
        raise ValueError(unknown(kind, got, names))
    return got


def representable(value: Any) -> bool:
    """Whether a number is finite as a float64: integers may lie beyond."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def misplaced(call: str, got: str, valid: Iterable[str], places: Mapping[str, str]) -> str:
    """The message about an argument that a call does not take: where it goes, or what is nearest.

    Args:
        call: such as "sample".
        valid: what the call takes.
        places: arguments of other calls, and where they go.

    >>> misplaced("sample", "progess", ["progress", "seed"], {})
    "unknown argument of sample: 'progess'; did you mean 'progress'?"
    """
    names = list(valid)
    start = f"unknown argument of {call}: {got!r}"
    if got in ELSEWHERE:
        return f"{start}. Here that is {ELSEWHERE[got]}"
    if got in CONDITIONING:
        return f"{start}. What the model is given goes in model_kwargs={{{got!r}: ...}}"
    if got in places:
        return f"{start}. It is {places[got]}"
    near = nearest(got, names)
    if near is not None:
        return f"{start}; did you mean '{near}'?"
    listed = ", ".join(names)
    return f"{start}. Valid: {listed}"


def unknown_option(method: str, got: str, valid: Iterable[str], owners: Iterable[str] = ()) -> str:
    """The message about an option that a method does not take; for another library's name, what it is called here, and
    the methods that have it.

    >>> unknown_option("ddim", "use_karras_sigmas", ["eta"])
    "unknown option of method 'ddim': 'use_karras_sigmas'. Valid: eta. Here that is spacing='karras'"
    """
    have = list(owners)
    # A name that another call knows is not a misspelling.
    message = unknown(f"option of method {method!r}:", got, valid, guess=got not in ELSEWHERE and not have)
    if got in ELSEWHERE:
        return f"{message}. Here that is {ELSEWHERE[got]}"
    if have:
        return f"{message}. It is an option of {', '.join(have)}"
    if got in CONDITIONING:
        return f"{message}. What the model is given goes in model_kwargs={{{got!r}: ...}}"
    return message


def untraced(function: F) -> F:
    """A function that `torch.compile` calls as it is, while it records, with the values that it knows at that time: for
    work of the host that it cannot record. The result must be None, a number or text.

    The mark is that of `torch.compiler.assume_constant_result`, which would import the compiler, a second's work.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def no_values(name: str) -> ValueError:
    """The error about a tensor whose values are asked for inside a compiled function."""
    return ValueError(
        f"{name} is a tensor inside a compiled function, where it has no values yet: give numbers, made outside by "
        f"{name}.tolist()"
    )


def constant(value: Any) -> Any:
    """`value`; of a number of which `torch.compile` knows a symbol alone, what it is in this call."""
    if isinstance(value, float):
        return value.__float__()
    # The symbol of a bool is a bool.
    return len(range(value)) if type(value) is int and value > 0 else value


@untraced
def warn(message: str) -> None:
    """A UserWarning at the line, outside this package, that called into it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


ANNOUNCED: set[object] = set()
"""What `warn_once` has said in this process."""


@untraced
def warn_once(key: object, message: str) -> None:
    """`warn`, the first time in this process that it is called with this key."""
    if key not in ANNOUNCED:
        ANNOUNCED.add(key)
        warn(message)
