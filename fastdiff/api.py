"""The one-line form: `sample`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, overload

import torch
from typing_extensions import Unpack

from fastdiff import solvers
from fastdiff.names import constant, untraced
from fastdiff.options import (
    CHOICE,
    RUN_DEFAULTS,
    SAMPLE_DEFAULTS,
    SampleBoth,
    SampleInfo,
    SamplePlain,
    SampleTrajectory,
    parted,
    shows,
)
from fastdiff.run.compiled import Shelf
from fastdiff.run.network import check_model, stated
from fastdiff.run.report import Info, Trajectory
from fastdiff.sampler import Sampler
from fastdiff.schedules.registry import told

Model = Callable[..., Any]


def _sampler(options: dict[str, Any]) -> Sampler:
    """A sampler for these arguments, kept for the next call with the same ones."""
    try:
        return _kept(tuple([(name, type(value), value) for name, value in options.items()]))
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _made(options)


# With the types: 1 and True are equal, but only one of them may be valid.
@functools.lru_cache(maxsize=64)
def _kept(options: tuple[tuple[str, type, Any], ...]) -> Sampler:
    return _made({name: value for name, _, value in options})


def _made(options: dict[str, Any]) -> Sampler:
    method = options.get("method")
    # What belongs to neither call is seen here, where all arguments are known.
    own = None if options.get("plan") is not None else solvers.chosen(method, options)[0]
    parted("sample", own, options, SAMPLE_DEFAULTS)
    return Sampler(method, options.get("steps"), **{k: v for k, v in options.items() if k not in CHOICE})


_COMPILED = Shelf()
"""The samplers of compiled graphs."""


@untraced
def _sampler_untraced(**options: Any) -> str:
    """The name of a sampler in `_COMPILED`."""
    return _COMPILED.put(_sampler(options))


@overload
def sample(model: Model, x: torch.Tensor | None = None, **options: Unpack[SamplePlain]) -> torch.Tensor: ...


@overload
def sample(
    model: Model, x: torch.Tensor | None = None, **options: Unpack[SampleTrajectory]
) -> tuple[torch.Tensor, Trajectory]: ...


@overload
def sample(model: Model, x: torch.Tensor | None = None, **options: Unpack[SampleInfo]) -> tuple[torch.Tensor, Info]: ...


@overload
def sample(
    model: Model, x: torch.Tensor | None = None, **options: Unpack[SampleBoth]
) -> tuple[torch.Tensor, Trajectory, Info]: ...


@shows(SAMPLE_DEFAULTS, "method_options")
def sample(model: Model, x: torch.Tensor | None = None, **options: Any) -> Any:
    """Sample a diffusion model: `fastdiff.sample(model, steps=10, method="dpm3")`.

    Args:
        model: callable (x, t, **kwargs) -> tensor, tuple, or object with `.sample`. x is (B, ...) in the network's
            dtype, t is (B,) float32 (float64 for a float64 network): the schedule's model time.
        x: (B, ...) the state at `t_start`; floating point, finite. Default: drawn from the prior with `seed`.
        shape: (B, ...) where x is not given; default: one sample of `model.sample_shape` or of a diffusers model's
            config.
        steps: at least 1; default: what `spacing` says, else 10. Singlestep methods count network evaluations.
            Adaptive methods ("ode", "dpm_adaptive") take none: they choose their steps by rtol and atol.
        method: a name of `fastdiff.methods()`; names of diffusers, k-diffusion and ComfyUI are aliases. Default: chosen
            by the schedule and the number of steps, by measured errors (docs/solvers.md, "Defaults at few steps"):
            "dpm2" up to 10 steps and "dpm3" above; on VE and EDM schedules "dpm3" with lower_order_final=False and
            final="t_min"; "dpmpp2m" where alpha is 0 at the start, as in flow matching. `Sampler(...).method` tells.
        schedule: a `NoiseSchedule`, its name, or a scheduler of diffusers, `pipe.scheduler`, whose config says schedule
            and prediction; default: `model.schedule`, else "ddpm".
        prediction: "eps", "x0", "v", "score", "flow" (the velocity along the network's own time) or "edm" (the output
            of EDM's network itself); with method "ddpm" also "previous": the mean of the next, cleaner state of the
            steps taken. Default: `model.prediction`, else "eps" ("flow" on the schedule "flow_to_data"; on
            "flow" somebody must say).
        spacing: the time grid: a name, respacing such as "ddim25", or the times themselves. Default: the method's own.
        t_start, t_end: schedule times to begin and end at. Of a discrete schedule of N times these are its indices, 0
            to N − 1, and not DPM-Solver's t in (0, 1], whose index is t·N − 1: a float t_start in (0, 1] gives a
            UserWarning there; the integer 1 is the index 1.
        seed: an int: sample b of the batch is sample `first_sample + b` of that seed; or B ints: each sample has its
            own.
        first_sample: global index of row 0, so that a batch can be split anywhere with the same result.
        noise: your own noise, (draw, like) -> tensor of like's shape, instead of the built-in; draw is -1 for the
            prior, else 0, 1, ... in the order in which noise is needed. It counts draws, not steps: a step whose std is
            0 draws nothing, others may draw twice; `plan.stages[i].draws` says which. Or "brownian": the steps' noise
            is one Brownian path, so that a seed keeps its sample, up to the error of the steps, at any number of steps;
            for methods each of whose draws has its span of time (`plan.spanned`).
        frames: a `fastdiff.Frames`: each frame, or token, at a step of its own (docs/frames.md). The model's t is then
            (B, F), the t of hooks a (B, F) float64 tensor. Methods with a plan.
        guidance: a number s for classifier-free guidance uncond + s·(cond − uncond) (Ho and Salimans 2022, arXiv
            2207.12598), a list or tensor (B,) of one for each sample, a function of the schedule's time that gives
            either, or a form of `fastdiff.guidance`: `Interval`, `Rescale`, `CFGPlusPlus`, `AdaptiveProjected`,
            `CFGZeroStar`, `Autoguidance`, `PerpNeg`, ... Methods of CFG++ ("dpmpp_2m_cfg_pp") take its scale.
            `guidance_scale` is another word for a number.
        cond, uncond: conditioning of the two halves, dicts of keyword arguments with first dimension B. The network is
            called once on both halves. Not with `Autoguidance`, whose networks both get `model_kwargs`.
        classifier_grad: (x, t) -> grad of log p(y | x) with respect to x, times its scale: classifier guidance
            (Dhariwal and Nichol 2021, arXiv 2105.05233). Called with gradients enabled, on a copy of x that requires
            none. Kept in the wider of its dtype and the network's.
        classifier_form: how it acts: "score" adds it to the score (Algorithm 2), "mean" adds the step's variance times
            it to the step's mean (Algorithm 1); "score_after_clip" shifts the x0 that was corrected and clipped, which
            may then leave the bounds, as guided-diffusion's DDIM does (methods with one evaluation a step and no
            history). Default: "mean" for ddpm, "score" for the rest.
        model_kwargs: keyword arguments for every call of the model.
        clip: None, (lo, hi) for the predicted x0, "dynamic" thresholding, or `fastdiff.Dynamic(quantile, max_value)`.
        dtype: of the state: torch.float32 or torch.float64.
        device: where to sample; default: x's, else the model's, else torch's default
            device.
        backend: None for the fastest that can run, or one of `fastdiff.backends()`.
        graph: CUDA graph capture: "auto", True or False (docs/graphs.md).
        progress: show a tqdm bar.
        callback: called as callback(stage, time, x, x0) at every network evaluation, with tensors of its own.
        return_trajectory: return (result, Trajectory).
        return_info: of adaptive methods: return (result, Info), or (result, Trajectory, Info).
        check_finite: raise FloatingPointError at the first NaN or Inf of the network, naming step and sample; costs a
            synchronisation per evaluation.
        correct_x0: (x0, t) -> x0: your correction of the predicted x0, (B, ...) of dtype `dtype`, before it is used
            (and before `clip`, after guidance); t is the schedule's time. Costs one more pass over x and the output,
            and your own work, per evaluation. Adaptive methods call it for the evaluations of rejected steps too; with
            control="sample" t is then a (B,) float64 tensor, each sample's own time.
        correct_xt: (x, t, step) -> x: your correction of the state after step number `step`, 1 to steps, which led to
            the schedule's time t. Costs two more passes over x a step. Neither is called twice for one step, and
            neither can be captured into a CUDA graph. Not with adaptive methods; with "unipc" and its corrector,
            give split=True.
        out: (B, ...) tensor of dtype `dtype`, contiguous, on the device: written and returned instead of a fresh one.
        output_dtype: of the result: "network" (its parameters' dtype), or a dtype such as torch.bfloat16; default: the
            state's.
        plan: a `Plan` of your own, instead of method, steps, schedule, spacing, t_start, t_end and options.
        Others: options of the method and the spacing (`fastdiff.methods()` lists them).

    Returns:
        (B, ...) tensor of dtype `dtype`, or `output_dtype`: the sample at `t_end`; with `return_trajectory`, also a
        `Trajectory`.

    Raises:
        ValueError, TypeError: bad arguments or model outputs; the message says what was got and what would be right.
        RuntimeError: a named back end that cannot run, or a model that changes its input in place.
    """
    check_model(model)
    run, made = {}, {}
    for name, value in options.items():
        if name in RUN_DEFAULTS:
            run[name] = value
        else:
            # Files are read before anything is kept under their names.
            settles = name not in SAMPLE_DEFAULTS and isinstance(value, str | os.PathLike)
            made[name] = solvers.settled(name, value) if settles else tuple(value) if type(value) is list else value
    if made.get("plan") is None and made.get("schedule") is None:
        noted = stated(model, "schedule")
        if noted is not None:
            made["schedule"] = noted
    if "schedule" in made:
        given: Any = made.get("prediction")
        made["schedule"], given = told(made["schedule"], given)
        if given is not None:
            made["prediction"] = given
    if torch.compiler.is_dynamo_compiling():
        sampler: Sampler = getattr(_COMPILED, _sampler_untraced(**{k: constant(v) for k, v in made.items()}))
        return sampler(model, x, **run)
    return _sampler(made)(model, x, **run)
