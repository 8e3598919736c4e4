"""One run over a list of sigmas, with k-diffusion's model, callback and noise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import numpy as np
import torch

from fastdiff.bind import Binding
from fastdiff.guidance import UNGUIDED, Guidance
from fastdiff.integrations.k_diffusion.comfyui import Unconditional, listening
from fastdiff.integrations.k_diffusion.noise import BrownianTreeNoiseSampler
from fastdiff.integrations.k_diffusion.plans import Listed, apart, levels, listed
from fastdiff.names import short
from fastdiff.run.arguments import check_x
from fastdiff.run.evaluate import Callback as Watch
from fastdiff.run.evaluate import Hooks
from fastdiff.run.history import Noise
from fastdiff.run.job import Engine, Job, begin, sampling_mode
from fastdiff.run.network import Network
from fastdiff.run.report import Info
from fastdiff.values import number

Model = Callable[..., torch.Tensor]
Callback = Callable[[dict[str, Any]], Any]
NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Extra = Mapping[str, Any]
Tell = Callable[[int, torch.Tensor, torch.Tensor], None]


def default_noise_sampler(x: torch.Tensor, seed: int | None = None) -> NoiseSampler:
    """Independent normals of x's shape from torch's generator; with a seed from one of their own, which ComfyUI seeds
    with seed + 1 on the CPU."""
    if seed is None:
        # In the order in which x lies in memory, as k-diffusion's.
        return lambda sigma, sigma_next: torch.randn_like(x)
    generator = torch.Generator(device=x.device)
    generator.manual_seed(seed + (x.device.type == "cpu"))
    return lambda sigma, sigma_next: torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def tree(x: torch.Tensor, values: list[float], seed: int | None) -> NoiseSampler:
    """A Brownian path in sigma over the list."""
    positive = [v for v in values if v > 0.0]
    if len(set(positive)) < 2:
        return default_noise_sampler(x, seed)
    return BrownianTreeNoiseSampler(x, min(positive), max(positive), seed)


def check_path(method: str, found: Listed) -> None:
    """ValueError where noise acts at one level, or down to 0: a path in sigma has no increment there."""
    for one, other, _ in found.spans.values():
        if one == other or not min(one, other) > 0.0:
            raise ValueError(
                f"method {method!r} draws noise between sigma={one:g} and sigma={other:g}, which is no step of a "
                "Brownian path: brownian=False, independent noise"
            )


class Denoiser:
    """The model as an engine calls it, which tells the callback of each step.

    Args:
        model: called as model(x, sigma, **extra_args), sigma of shape (B,) and x's dtype, it gives x0. Each call gets
            an x of its own, which it may keep.
        early: whether a step's slope is taken before the callback is told of it, as in k-diffusion's Euler and Heun
            methods, so that what the callback writes into 'denoised' has no effect; else it has.
    """

    def __init__(
        self, model: Model, dtype: torch.dtype, extra: Extra, tell: Tell | None = None, early: bool = False
    ) -> None:
        check_callable("model", model, "model(x, sigma, **extra_args)")
        self.model, self.dtype, self.extra, self.tell, self.early = model, dtype, extra, tell, early
        self.calls = 0

    def bound(self) -> Callable[..., torch.Tensor]:
        """What the engine is given: a method of the model, by which it knows a model that it has seen before."""
        return MethodType(self, self.model)

    def __call__(self, model: Model, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        x = x.to(self.dtype, copy=True)
        denoised = model(x, sigma.to(self.dtype), **self.extra)
        if self.tell is None or not isinstance(denoised, torch.Tensor):
            return denoised
        # Memory of its own: a run over a buffer that the model writes into again begins anew, and would tell twice.
        taken = denoised.clone() if self.early else None
        version = x._version
        self.tell(self.calls, x, denoised)
        if x._version != version:
            raise RuntimeError(
                "the callback changed 'x' in place, which the step has already read: change the state between steps, "
                "fastdiff.sample(model, x, correct_xt=...), or what the model gives for it, by a function around the "
                "model"
            )
        self.calls += 1
        return denoised.clone() if taken is None else taken


def check_callable(name: str, given: Any, call: str) -> None:
    """TypeError for what cannot be called."""
    if not callable(given):
        raise TypeError(f"{name} got {short(given)}; expected a function, called as {call}")


def check_callback(callback: Any) -> None:
    """TypeError for a callback that cannot be called; None is none."""
    if callback is not None:
        check_callable("callback", callback, "callback({'x': x, 'i': i, 'sigma': sigma, ...})")


def plain(options: Any) -> dict[str, Any]:
    """A method's options: numbers as such, also those that tensors hold. TypeError for what is none."""
    if not isinstance(options, Mapping):
        raise TypeError(
            f"options got {short(options)}; expected a dict of options of the method, such as {{'eta': 0.5}}"
        )
    kept = (str, bool, int, float, tuple, np.generic, type(None))
    return {n: v if isinstance(v, kept) else number(n, v, "1.0") for n, v in options.items()}


def extras(extra_args: Extra | None) -> Extra:
    """The model's keyword arguments. TypeError for what is no dict."""
    if extra_args is None or isinstance(extra_args, Mapping):
        return dict(extra_args or {})
    raise TypeError(
        f"extra_args got {short(extra_args)}; expected a dict of keyword arguments of the model, such as "
        "{'cond': cond}"
    )


def start(
    engine: Engine,
    model: Denoiser,
    x: torch.Tensor,
    noise: Any,
    dtype: torch.dtype,
    watch: Watch | None,
    guidance: Guidance = UNGUIDED,
) -> Job:
    """A run from x."""
    given = {"noise": noise, "frames": None, "device": None, "seed": 0, "first_sample": 0}
    begun = begin(engine, x, tuple(x.shape), given, dtype, None, None, None)
    network = Network(model.bound(), len(x), guidance=guidance)
    return Job(begun, network, dtype, Binding("x0", guidance), None, Hooks(callback=watch))


def admitted(x: torch.Tensor) -> torch.Tensor:
    """x for a run, which takes no gradients, as k-diffusion's take none."""
    return check_x(x.detach() if isinstance(x, torch.Tensor) else x)


def shown(disable: bool | None) -> bool:
    """tqdm's rule: None shows a bar on a terminal only."""
    return sys.stderr.isatty() if disable is None else not disable


def state_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def run(
    method: str,
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    options: Mapping[str, Any],
    *,
    extra_args: Extra | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    noise_sampler: NoiseSampler | None = None,
    churned: bool = False,
    brownian: bool = False,
    whole: bool = False,
    spare: bool = False,
    early: bool = False,
    schedule: str = "edm",
) -> torch.Tensor:
    """Sample with a method of `fastdiff.methods()` over a list of sigmas.

    Args:
        method, options: of this library.
        model: model(x, sigma, **extra_args) gives x0; sigma is (B,) of x's dtype.
        x: (B, ...) the state at sigmas[0]. float16 and bfloat16 states are kept in float32 between evaluations.
        sigmas: (steps + 1,), falling or, for methods without noise, rising; equal neighbours are one level. With fewer
            than two there is nothing to do, and the result is x.
        callback: told {'x', 'i', 'sigma', 'sigma_hat', 'denoised'} once a step, after its first evaluation.
        disable: of the progress bar.
        noise_sampler: noise_sampler(sigma, sigma_next) gives standard normals. Default: independent ones, or with
            `brownian` one path, seeded by extra_args["seed"] where that is given, else from torch's generator.
        churned: the method's draws are churn, which is drawn from torch's generator at every step.
        whole: a step's noise is asked for over the whole step.
        spare: the default noise is drawn twice a step, and the second one is not used, as where it had the weight 0.
        early: of `Denoiser`.
        schedule: "edm" (x = x0 + sigma·eps), or "flow" (x = (1 − sigma)·x0 + sigma·eps).

    Returns:
        (B, ...) of x's dtype.

    Methods of CFG++ are for models of ComfyUI, which tell the unconditional x0 beside the guided one.

    Raises:
        ValueError, TypeError: as the method's plan; lists that are none; noise for a rising list.
        RuntimeError: a method of CFG++ with another model.
    """
    check_callable("model", model, "model(x, sigma, **extra_args)")
    check_callback(callback)
    if noise_sampler is not None:
        check_callable("noise_sampler", noise_sampler, "noise_sampler(sigma, sigma_next)")
    options, values = plain(options), levels(sigmas)
    sigmas = sigmas if sigmas.is_floating_point() else sigmas.to(torch.get_default_dtype())
    like = x
    x, extra = admitted(x), extras(extra_args)
    if churned and options.get("s_churn"):
        values = apart(values)
    if len(values) < 2 or all(v == values[0] for v in values):
        return x
    found = listed(method, tuple(values), schedule, whole, state_dtype(x), tuple(sorted(options.items())))
    noise = None
    if found.spans and churned:
        noise = churn(found, x)
    elif found.spans:
        seed = extra.get("seed")
        if brownian and noise_sampler is None:
            check_path(method, found)
        sampler = noise_sampler or (tree(x, values, seed) if brownian else default_noise_sampler(like, seed))
        noise = asking(sampler, sigmas, found, spare and noise_sampler is None)
    denoiser = Denoiser(
        model, x.dtype, extra, None if callback is None else telling(callback, found, sigmas, churned), churned or early
    )
    return passed(found, denoiser, x, disable, noise)


def passed(
    found: Listed, denoiser: Denoiser, x: torch.Tensor, disable: bool | None, noise: Noise | None
) -> torch.Tensor:
    """The plan's result from x, of x's dtype."""
    guidance: Guidance = UNGUIDED
    if found.plan.shifted:
        denoiser.extra, taken = listening(dict(denoiser.extra))
        guidance = Unconditional(1.0, taken=taken)
    with sampling_mode():
        job = start(found.engine, denoiser, x, noise, state_dtype(x), None, guidance)
        job.progress = shown(disable)
        return found.engine.run(job)[0].to(x.dtype)


def telling(callback: Callback, found: Listed, sigmas: torch.Tensor, churned: bool) -> Tell:
    """Tells the callback of the evaluations that begin a step."""
    times = [stage.t for stage in found.plan.stages if stage.evaluate]

    def tell(call: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        step = found.first[call]
        if step is None:
            return
        i, sigma_hat = found.steps[step], sigmas.new_tensor(times[call])
        sigma = sigmas[i] if churned else sigma_hat
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma_hat, "denoised": denoised})

    return tell


def asking(sampler: NoiseSampler, sigmas: torch.Tensor, found: Listed, spare: bool = False) -> Noise:
    """A noise sampler as the noise of numbered draws."""

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        begin, end, _ = found.spans[draw]
        given = sampler(sigmas.new_tensor(begin), sigmas.new_tensor(end))
        if spare:
            sampler(sigmas.new_tensor(end), sigmas.new_tensor(end))
        try:
            return given.expand(like.shape)
        except (AttributeError, RuntimeError):
            got = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
            raise TypeError(
                f"noise_sampler(sigma, sigma_next) gave {got}; expected standard normals of x's shape, "
                f"{tuple(like.shape)}, such as torch.randn_like(x)"
            ) from None

    return noise


def churn(found: Listed, x: torch.Tensor) -> Noise:
    """Normals from torch's generator, one for each step of the list, also for those that are not churned, so that a
    seed gives k-diffusion's numbers."""
    drawn = 0

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        nonlocal drawn
        behind = found.steps[found.spans[draw][2]] - drawn
        drawn += behind + 1
        for _ in range(behind):
            torch.randn_like(x)
        return torch.randn_like(x)

    return noise


def counted(info: Info, order: int) -> dict[str, int]:
    """k-diffusion's count of an adaptive run, which counts a step's first evaluation again after a rejection."""
    accepted, rejected = int(info.accepted.max()), int(info.rejected.max())
    steps = accepted + rejected
    return {"steps": steps, "nfe": order * steps, "n_accept": accepted, "n_reject": rejected}
