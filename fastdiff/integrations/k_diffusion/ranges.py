"""k-diffusion's functions that are given a range of sigma instead of a list: DPM-Solver-fast, the adaptive one, and the
log-likelihood."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch

from fastdiff import likelihood, solvers
from fastdiff.integrations.k_diffusion.plans import ranged
from fastdiff.integrations.k_diffusion.run import (
    Callback,
    Denoiser,
    Extra,
    Model,
    NoiseSampler,
    admitted,
    check_callable,
    check_callback,
    counted,
    extras,
    passed,
    shown,
    start,
    state_dtype,
    telling,
)
from fastdiff.run.controlled import AdaptiveEngine
from fastdiff.run.job import sampling_mode
from fastdiff.schedules import edm
from fastdiff.solvers.control import Limited
from fastdiff.solvers.embedded import Embedded
from fastdiff.values import number


def _range(
    sigma_min: float | torch.Tensor, sigma_max: float | torch.Tensor, eta: float, name: str
) -> tuple[float, float]:
    low, high = number("sigma_min", sigma_min, "0.03"), number("sigma_max", sigma_max, "14.6")
    eta = number("eta", eta, "0.0")
    if not (0.0 < low < math.inf and 0.0 < high < math.inf and low != high):
        raise ValueError(f"sigma_min={low:g}, sigma_max={high:g}: expected 0 < sigma_min < sigma_max")
    if eta != 0.0:
        raise ValueError(
            f"eta={eta:g}: {name} is without noise here; with noise: sample_dpmpp_2s_ancestral(model, x, sigmas, "
            f"eta={eta:g}), or sample_dpmpp_2m_sde"
        )
    return low, high


def _timed(callback: Callback | None) -> Callback | None:
    """Told t and t_up too, -log of the two sigmas, as these two samplers are in k-diffusion."""
    check_callback(callback)
    if callback is None:
        return None
    return lambda told: callback({**told, "t": -told["sigma"].log(), "t_up": -told["sigma_hat"].log()})


def sample_dpm_fast(
    model: Model,
    x: torch.Tensor,
    sigma_min: float | torch.Tensor,
    sigma_max: float | torch.Tensor,
    n: int,
    extra_args: Extra | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> torch.Tensor:
    """DPM-Solver-fast: `n` evaluations in steps of orders 3, 2 and 1 (Lu et al. 2022, arXiv 2206.00927).

    Args:
        model, x, extra_args, callback, disable: as in `sample_euler`.
        sigma_min, sigma_max: the end and the start; where sigma_min is the larger one, the way from data to noise.
        n: network evaluations.
        eta: 0; s_noise and noise_sampler, of its noise, have no effect.

    Returns:
        (B, ...) of x's dtype.

    Raises:
        ValueError: no range, or eta other than 0.
    """
    low, high = _range(sigma_min, sigma_max, eta, "sample_dpm_fast")
    x = admitted(x)
    found = ranged("dpm_fast", n, high, low, state_dtype(x))
    callback = _timed(callback)
    tell = None if callback is None else telling(callback, found, x.new_empty(0), False)
    return passed(found, Denoiser(model, x.dtype, extras(extra_args), tell, early=True), x, disable, None)


@functools.lru_cache(maxsize=16)
def _engine(
    low: float, high: float, dtype: torch.dtype, safety: float, options: tuple[tuple[str, Any], ...]
) -> AdaptiveEngine:
    method = solvers.find("dpm_adaptive")

    def make(prediction: str) -> Embedded:
        made = solvers.adaptive(method, None, edm(low, high), None, None, low, prediction, **dict(options))
        own = made.controller
        limited = Limited(own.rtol, own.atol, own.exponent, accept_safety=safety)
        # Its limiter bounds a step's change instead of the step.
        return dataclasses.replace(made, controller=limited, longest=math.inf, doubtful=math.inf)

    return AdaptiveEngine(make, "x0", dtype)


def sample_dpm_adaptive(
    model: Model,
    x: torch.Tensor,
    sigma_min: float | torch.Tensor,
    sigma_max: float | torch.Tensor,
    extra_args: Extra | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
) -> Any:
    """DPM-Solver-12 and -23 with k-diffusion's control of the step (Lu et al. 2022, arXiv 2206.00927).

    Args:
        model, x, extra_args, disable: as in `sample_euler`.
        sigma_min, sigma_max: the end and the start.
        callback: told {'x', 'i', 't', 't_up', 'sigma', 'sigma_hat', 'denoised'} at the start of every accepted step;
            t is -log sigma.
        order: 2 or 3.
        rtol, atol, h_init: tolerances of a step's error, and the first step in log sigma.
        pcoeff, icoeff, dcoeff: 0, 1 and 0: the control looks at the last error alone.
        accept_safety: a step is accepted if the next one's factor is at least this.
        eta: 0; s_noise and noise_sampler, of its noise, have no effect.
        return_info: add {'steps', 'nfe', 'n_accept', 'n_reject'}.

    Returns:
        (B, ...) of x's dtype, or a tuple of it and a dict.

    Raises:
        ValueError: no range, or an argument that is fixed here.
    """
    low, high = _range(sigma_min, sigma_max, eta, "sample_dpm_adaptive")
    if low > high:
        raise ValueError(
            f"sigma_min={low:g}, sigma_max={high:g}: sample_dpm_adaptive runs from noise to data alone here: from data "
            "to noise take sample_dpm_fast, or fastdiff.Sampler(method='ode', ...).invert"
        )
    accept_safety = number("accept_safety", accept_safety, "0.81")
    rtol, atol, h_init = number("rtol", rtol, "0.05"), number("atol", atol, "0.0078"), number("h_init", h_init, "0.05")
    pcoeff, icoeff, dcoeff = (
        number("pcoeff", pcoeff, "0.0"),
        number("icoeff", icoeff, "1.0"),
        number("dcoeff", dcoeff, "0.0"),
    )
    if (pcoeff, icoeff, dcoeff) != (0.0, 1.0, 0.0):
        raise ValueError(
            f"pcoeff={pcoeff:g}, icoeff={icoeff:g}, dcoeff={dcoeff:g}: expected 0, 1 and 0, since the control here "
            "looks at the last error alone"
        )
    x = admitted(x)
    dtype = state_dtype(x)
    options = {"order": order, "rtol": rtol, "atol": atol, "h_init": h_init, "t_err": 0.0}
    engine = _engine(low, high, dtype, accept_safety, tuple(options.items()))
    callback, watch = _timed(callback), None
    if callback is not None:

        def watch(step: int, sigma: float, state: torch.Tensor, x0: torch.Tensor) -> None:
            level = torch.tensor(sigma, dtype=dtype, device=x.device)
            callback(
                {"x": state.to(x.dtype), "i": step, "sigma": level, "sigma_hat": level, "denoised": x0.to(x.dtype)}
            )

    with sampling_mode():
        job = start(engine, Denoiser(model, x.dtype, extras(extra_args)), x, None, dtype, watch)
        job.progress = shown(disable)
        result, _, info = engine.run(job)
    result = result.to(x.dtype)
    assert info is not None
    return (result, counted(info, order)) if return_info else result


def log_likelihood(
    model: Model,
    x: torch.Tensor,
    sigma_min: float | torch.Tensor,
    sigma_max: float | torch.Tensor,
    extra_args: Extra | None = None,
    atol: float = 1e-4,
    rtol: float = 1e-4,
) -> tuple[torch.Tensor, dict[str, int]]:
    """The log density of x under the ODE from sigma_min to sigma_max, where it is N(0, sigma_max²), by one random probe
    from torch's generator; `fastdiff.log_likelihood` has more.

    Args:
        model, x, extra_args: as in `sample_euler`; x is data, taken as the state at sigma_min.
        atol, rtol: of a step's error, which is controlled for the batch as a whole.

    Returns:
        (B,) of x's dtype, in nats, and {'fevals'}, how often the model was called.

    Raises:
        ValueError, TypeError: bad arguments, with what is valid.
    """
    low, high = _range(sigma_min, sigma_max, 0.0, "log_likelihood")
    check_callable("model", model, "model(x, sigma, **extra_args)")
    x, extra = admitted(x), extras(extra_args)
    made = likelihood.log_likelihood(
        lambda x, sigma: model(x, sigma, **extra),
        x,
        schedule=edm(low, high),
        prediction="x0",
        probe=torch.randint_like(x, 2) * 2 - 1,
        atol=atol,
        rtol=rtol,
        prior=lambda z: torch.distributions.Normal(0.0, high).log_prob(z).flatten(1).sum(1),
        dtype=state_dtype(x),
    )
    return made.log_prob.to(x.dtype), {"fevals": made.nfe}
