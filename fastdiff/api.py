"""The one-line forms: `sample` and `randn`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastdiff import ops
from fastdiff.arguments import STATE_DTYPES, Clip, Gradient, check_shape, resolve_device, resolve_seeds
from fastdiff.corrections import CorrectX0, CorrectXt
from fastdiff.history import Noise
from fastdiff.network import stated
from fastdiff.philox import PRIOR, STEP
from fastdiff.sampler import Sampler
from fastdiff.schedules import NoiseSchedule


def _sampler(**arguments: Any) -> Sampler:
    """A sampler for these arguments, kept for the next call with the same ones."""
    try:
        return _kept(tuple((name, type(value), value) for name, value in arguments.items()))
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return Sampler(**arguments)


# With the types: 1 and True are equal, but only one of them may be valid.
@functools.lru_cache(maxsize=64)
def _kept(arguments: tuple[tuple[str, type, Any], ...]) -> Sampler:
    return Sampler(**{name: value for name, _, value in arguments})


def sample(
    model: Callable[..., Any],
    x: torch.Tensor | None = None,
    *,
    shape: Sequence[int] | None = None,
    steps: int | None = None,
    method: str = "dpm3",
    schedule: str | NoiseSchedule | None = None,
    prediction: str | None = None,
    spacing: str | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    seed: int | Sequence[int] = 0,
    first_sample: int = 0,
    noise: Noise | None = None,
    guidance_scale: float | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    classifier_grad: Gradient | None = None,
    classifier_form: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    clip: Clip = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | None = None,
    graph: bool | str = "auto",
    progress: bool = False,
    callback: Callable[[int, float, torch.Tensor, torch.Tensor], None] | None = None,
    return_trajectory: bool = False,
    return_info: bool = False,
    check_finite: bool = False,
    correct_x0: CorrectX0 | None = None,
    correct_xt: CorrectXt | None = None,
    out: torch.Tensor | None = None,
    **method_options: Any,
) -> Any:
    """Sample a diffusion model: `fastdiff.sample(model, steps=10, method="dpm3")`.

    Args:
        model: callable (x, t, **kwargs) -> tensor, tuple, or object with `.sample`. x is (B, ...) in the network's
            dtype, t is (B,) float32 (float64 for a float64 network): the schedule's model time.
        x: (B, ...) the state at `t_start`; floating point, finite. Default: drawn from the prior with `seed`.
        shape: (B, ...) where x is not given; default: one sample of `model.sample_shape` or of a diffusers model's
            config.
        steps: at least 1; default: what `spacing` says, else 10. Singlestep methods count network evaluations.
            Adaptive methods ("ode", "dpm_adaptive") take none: they choose their steps by rtol and atol.
        method: a name of `fastdiff.methods()`; names of diffusers, k-diffusion and ComfyUI are aliases.
        schedule: a `NoiseSchedule` or its name; default: `model.schedule`, else "ddpm".
        prediction: "eps", "x0", "v", "score" or "flow"; with method "ddpm" also "previous": the mean of the next,
            cleaner state of the steps taken. Default: `model.prediction`, else "eps".
        spacing: the time grid: a name, respacing such as "ddim25", or the times themselves. Default: the method's own.
        t_start, t_end: schedule times to begin and end at. Of a discrete schedule of N times these are its indices, 0
            to N − 1, and not DPM-Solver's t in (0, 1], whose index is t·N − 1: a float t_start in (0, 1] gives a
            UserWarning there; the integer 1 is the index 1.
        seed: an int: sample b of the batch is sample `first_sample + b` of that seed; or B ints: each sample has its
            own.
        first_sample: global index of row 0, so that a batch can be split anywhere with the same result.
        noise: your own noise, (draw, like) -> tensor of like's shape, instead of the built-in; draw is -1 for the
            prior, else 0, 1, ... in the order in which noise is needed. It counts draws, not steps: a step whose std is
            0 draws nothing, others may draw twice; `plan.stages[i].draws` tells.
        guidance_scale, cond, uncond: classifier-free guidance uncond + scale·(cond − uncond) (Ho and Salimans 2022),
            with one call of the model on both halves; cond and uncond are dicts of keyword arguments with first
            dimension B.
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
        device: where to sample; default: x's, else the model's, else the CPU.
        backend: None for the fastest that can run, or one of `fastdiff.backends()`.
        graph: CUDA graph capture: "auto", True or False.
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
        **method_options: options of the method and the spacing; unknown ones are errors that list the valid.

    Returns:
        (B, ...) tensor of dtype `dtype`: the sample at `t_end`; with `return_trajectory`, also a `Trajectory`.

    Raises:
        ValueError, TypeError: bad arguments or model outputs; the message says what was got and what would be right.
        RuntimeError: a named back end that cannot run, or a model that changes its input in place.
    """
    sampler = _sampler(
        method=method,
        steps=steps,
        schedule=schedule if schedule is not None else stated(model, "schedule"),
        prediction=prediction,
        spacing=tuple(spacing) if isinstance(spacing, list) else spacing,
        t_start=t_start,
        t_end=t_end,
        clip=clip,
        dtype=dtype,
        backend=backend,
        graph=graph,
        **method_options,
    )
    return sampler(
        model,
        x,
        shape=shape,
        seed=seed,
        first_sample=first_sample,
        noise=noise,
        guidance_scale=guidance_scale,
        cond=cond,
        uncond=uncond,
        classifier_grad=classifier_grad,
        classifier_form=classifier_form,
        model_kwargs=model_kwargs,
        device=device,
        progress=progress,
        callback=callback,
        return_trajectory=return_trajectory,
        return_info=return_info,
        check_finite=check_finite,
        correct_x0=correct_x0,
        correct_xt=correct_xt,
        out=out,
    )


def randn(
    shape: Sequence[int],
    *,
    seed: int | Sequence[int] = 0,
    draw: int = 0,
    first_sample: int = 0,
    prior: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Exactly the noise that the kernels draw: standard normals (B, ...), a function of seed, draw and sample index
    alone.

    Args:
        shape: (B, ...).
        seed, first_sample: as in `fastdiff.sample`.
        draw: number of the draw, 0 to 2^32 − 1.
        prior: the stream of the initial x_T instead of the steps'.
        dtype: torch.float32 or torch.float64 (the same float32 values).
        device, backend: as in `fastdiff.sample`.
    """
    if dtype not in STATE_DTYPES:
        raise ValueError(f"dtype={dtype}: expected torch.float32 or torch.float64")
    size = check_shape(shape)
    if isinstance(draw, bool) or not isinstance(draw, int | np.integer) or not 0 <= draw < 2**32:
        raise ValueError(f"draw={draw!r}: expected an integer from 0 to 2**32 - 1")
    where = resolve_device(device, None, None)
    seeds, index = resolve_seeds(seed, first_sample, size[0], where)
    _, module = ops.select(backend, where, dtype, dtype)
    out = torch.empty(size, dtype=dtype, device=where)
    module.normal_(out, seeds, index, draw, PRIOR if prior else STEP)
    return out
