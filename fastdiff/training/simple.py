"""Training losses: DDPM's, SMLD's, the score SDEs' and flow matching's; those of the variational bound are in
variational.py.

Every loss compares the network's output with its own target and returns a scalar that gradients flow through. With
x_t = alpha x_0 + sigma eps, an error of the output is an error of eps times a known factor, so that each loss works
with each prediction. Draws are explicit arguments (`t`, `noise`), or come from a `torch.Generator`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.names import one_of
from fastdiff.prediction import PREVIOUS, along, conversion
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.training.chain import chain_of
from fastdiff.training.forward import (
    Array,
    Model,
    Source,
    as_stated,
    check_data,
    check_names,
    check_times,
    column,
    deviation,
    diffuse,
    evaluate,
    full,
    per_sample,
    reduce,
    vector,
)
from fastdiff.values import flag, floats, number

KINDS = ("l2", "l1")


def ddpm_loss(
    model: Model,
    x0: Tensor,
    schedule: str | NoiseSchedule | None = None,
    *,
    kind: str = "l2",
    prediction: str | None = None,
    steps: int | None = None,
    spacing: str | Sequence[float] | None = None,
    reduce_mean: bool = True,
    t: Tensor | ArrayLike | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """DDPM's simple loss, E |out − target|² (Ho et al. 2020, arXiv 2006.11239, eq. 14), or its L1 form.

    The target is eps, x0, v = alpha eps − sigma x0 (Salimans and Ho 2022, arXiv 2202.00512, App. D) or eps − x0
    ("flow"); a score, whose target −eps/sigma has no bound, is compared times sigma: its loss is the one of eps.

    Args:
        model: callable (x, t, **model_kwargs) as in `fastdiff.sample`; x is in the dtype of its parameters, of x0 where
            it has none; t is (B,) model times, float32, or float64 where x0 is.
        x0: (B, ...) data, floating point. The loss is in float32 at least.
        schedule: a discrete schedule or its name; default: `model.schedule`, else "ddpm".
        kind: "l2" for squares, "l1" for absolute values.
        prediction: what the model gives: "eps", "x0", "v", "score" or "flow"; or "previous", whose target is the mean
            of q(x_{t−1} | x_t, x0) (Ho et al. 2020, eq. 7). Default: `model.prediction`, else "eps".
        reduce_mean: mean over a sample's elements; False: half their sum, as score_sde has it.
        steps, spacing: a respaced chain, as in `fastdiff.sample`; default: all times. It decides the times that are
            drawn, and, with "previous", the target: the mean of a step of that chain.
        t: (B,) times; default: those of the chain, drawn uniformly.
        noise: (B, ...) standard normal eps; default: drawn.
        generator: source of both draws; default: torch's own.
        seed, first_sample: instead of a generator, as in `q_sample`: both draws are functions of these alone.
        model_kwargs: keyword arguments of the model.
        reduction: "mean" over samples and elements, or "none": (B,), the mean over each sample's elements.

    Raises:
        TypeError, ValueError: bad arguments, a schedule that is not discrete, or an output of the wrong shape.
    """
    schedule, prediction = (
        as_stated(model, "schedule", schedule, "ddpm"),
        as_stated(model, "prediction", prediction, "eps"),
    )
    one_of("kind", kind, KINDS)
    source = _checked(x0, prediction, reduction, reduce_mean, Source(generator, seed, first_sample))
    known = resolve(schedule)
    if known.num_train is None:
        raise ValueError(
            f"ddpm_loss got {known!r}, which has no integer times; expected a discrete schedule such as 'ddpm': "
            + _elsewhere(known)
        )
    respaced = steps is not None or spacing is not None
    chain = chain_of(schedule, steps, spacing) if respaced or prediction == PREVIOUS else None
    if t is None:
        drawn = source.uniform(len(x0))
        t = np.floor(known.num_train * drawn) if chain is None else chain.ascending(drawn)
    times = check_times(t, len(x0), known)
    k = None if chain is None else chain.find(times, len(x0))
    if prediction == PREVIOUS:
        assert chain is not None and k is not None
        clean, eps = full(x0), full(source.normal(x0, noise))
        x = diffuse(clean, eps, chain.alpha[k], chain.sigma[k])
        error = evaluate(model, x, x0.dtype, chain.model_time[k], model_kwargs) - chain.mean(k, x, clean)
    else:
        alpha, sigma = known.alpha(times), known.sigma(times)
        error = _error(model, x0, known.model_time(times), alpha, sigma, prediction, noise, source, model_kwargs)
        if prediction == "score":
            error = error * column(sigma, error)
    return reduce(per_sample(error.abs() if kind == "l1" else error.square(), reduce_mean), reduction)


def smld_loss(
    model: Model,
    x0: Tensor,
    sigmas: ArrayLike | str | NoiseSchedule,
    *,
    prediction: str | None = None,
    reduce_mean: bool = True,
    t: Tensor | ArrayLike | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Denoising score matching at discrete noise levels (Song and Ermon 2019, arXiv 1907.05600, eq. 5 and 6).

    With the weight sigma², for each sample |sigma s(x, sigma) + eps|², where x = x_0 + sigma eps: half of its sum over
    the elements as in the paper, or its mean over them (`reduce_mean`), as score_sde trains.

    Args:
        model: callable (x, t, **model_kwargs), t being (B,) model times: of a schedule, its own (the label of a level);
            else sigma itself.
        x0: (B, ...) data, floating point.
        sigmas: a schedule of discrete levels, as `schedules.smld(...)`, or its name; or (N,) positive levels.
        prediction: what the model gives; the loss is that of the score it stands for. Default:
            `model.prediction`, else "score".
        reduce_mean: mean instead of half the sum over a sample's elements.
        t: (B,) indices of the levels, 0 to N − 1; default: drawn uniformly.
        noise, generator, seed, first_sample, model_kwargs, reduction: as in `ddpm_loss`.

    Raises:
        TypeError, ValueError: bad arguments, levels that are not positive, or an output of the wrong shape.
    """
    prediction = as_stated(model, "prediction", prediction, "score")
    source = _checked(x0, prediction, reduction, reduce_mean, Source(generator, seed, first_sample))
    table, labels = _levels(sigmas)
    if t is None:
        t = np.floor(len(table) * source.uniform(len(x0)))
    index = vector("t", t, len(x0))
    if np.any(index != np.rint(index)) or np.any(index < 0) or np.any(index > len(table) - 1):
        raise ValueError(f"t got {index.tolist()}; expected integer indices of the levels, 0 to {len(table) - 1}")
    chosen = index.astype(np.int64)
    sigma, one = table[chosen], np.ones(len(x0))
    error = _error(model, x0, labels[chosen], one, sigma, prediction, noise, source, model_kwargs)
    scaled = error * column(_factor(prediction, one, sigma), error)
    return reduce(per_sample(scaled.square(), reduce_mean), reduction)


def sde_loss(
    model: Model,
    x0: Tensor,
    schedule: str | NoiseSchedule,
    *,
    likelihood_weighting: bool = False,
    reduce_mean: bool = True,
    eps: float = 1e-5,
    prediction: str | None = None,
    t: Tensor | ArrayLike | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Continuous denoising score matching (Song et al. 2021, arXiv 2011.13456, eq. 7) for VP, sub-VP and VE.

    E_t weight(t) |s(x_t, t) + eps/sigma(t)|², with the weight sigma(t)², or, for likelihood training, g(t)² (Song et
    al. 2021b, arXiv 2101.09258, eq. 7), g being `schedule.diffusion(t)`. t is uniform in [`eps`, `t_max`]; for VE that
    is the SDE's own time u, whose sigma_min (sigma_max/sigma_min)^u is the public time of our schedule.

    Args:
        model: callable (x, t, **model_kwargs) as in `fastdiff.sample`; t is (B,) model times, float32, or float64 where
            x0 is.
        x0: (B, ...) data, floating point.
        schedule: a continuous schedule of kind "vp", "subvp" or "ve", or its name.
        likelihood_weighting: weight g(t)² instead of sigma(t)².
        reduce_mean: mean over a sample's elements, as score_sde trains; False: half their sum, as in the paper.
        eps: smallest time that is drawn; positive, since the score of the data itself need not exist.
        prediction: what the model gives; the loss is that of the score it stands for. Default:
            `model.prediction`, else "eps".
        t: (B,) public times (sigma for VE), with noise in them; default: drawn.
        noise, generator, seed, first_sample, model_kwargs, reduction: as in `ddpm_loss`.

    Raises:
        TypeError, ValueError: bad arguments, a schedule without such an SDE, or an output of the wrong shape.
    """
    prediction = as_stated(model, "prediction", prediction, "eps")
    flag("likelihood_weighting", likelihood_weighting)
    source = _checked(x0, prediction, reduction, reduce_mean, Source(generator, seed, first_sample))
    known = resolve(schedule)
    if known.discrete or known.kind not in ("vp", "subvp", "ve"):
        raise ValueError(
            f"sde_loss got {known!r}; expected a continuous VP, sub-VP or VE schedule, such as 'vp_linear', 'subvp' or "
            f"'ve': {_elsewhere(known)}"
        )
    last = 1.0 if known.kind == "ve" else known.t_max
    eps = number("eps", eps, "1e-5")
    if not 0.0 < eps < last:
        raise ValueError(f"eps={eps!r}: expected a time between 0 and {last!r}, such as eps=1e-5")
    if t is None:
        drawn = eps + (last - eps) * source.uniform(len(x0))
        if known.kind == "ve":
            low, high = known.t_min, known.t_max
            drawn = np.minimum(low * (high / low) ** drawn, high)
        t = drawn
    times = check_times(t, len(x0), known)
    alpha, sigma = known.alpha(times), known.sigma(times)
    if np.any(sigma == 0.0):
        raise ValueError(
            f"t got {float(times[sigma == 0.0][0])!r}, where sigma is 0 and no score exists; expected t > 0"
        )
    error = _error(model, x0, known.model_time(times), alpha, sigma, prediction, noise, source, model_kwargs)
    factor = _factor(prediction, alpha, sigma)
    if likelihood_weighting:
        factor = factor * known.diffusion(times) / sigma
    return reduce(per_sample((error * column(factor, error)).square(), reduce_mean), reduction)


def flow_loss(
    model: Model,
    x0: Tensor,
    schedule: str | NoiseSchedule | None = None,
    *,
    prediction: str | None = None,
    reduce_mean: bool = True,
    t: Tensor | ArrayLike | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Flow matching on straight paths, E_t |out − target|² (Lipman et al. 2023, arXiv 2210.02747, eq. 23; Liu et al.
    2023, arXiv 2209.03003, eq. 1).

    x_t = (1 − sigma) x0 + sigma eps, and the target is the velocity along the network's own time: eps − x0 on
    `schedules.flow`, x0 − eps on `flow_to_data`. t is uniform in [0, 1]; a shift of the schedule moves sigma towards
    the noise, as where it is sampled.

    Args:
        model: callable (x, t, **model_kwargs) as in `fastdiff.sample`; t is (B,) model times, float32, or float64 where
            x0 is.
        x0: (B, ...) data, floating point. The loss is in float32 at least.
        schedule: `schedules.flow(...)`, `flow_to_data(...)` or a name; default: `model.schedule`, else "flow".
        prediction: what the model gives, whose own target it is compared with; default: `model.prediction`, else
            "flow".
        t: (B,) times of the schedule, 0 at the data and 1 at the noise; default: drawn.
        reduce_mean, noise, generator, seed, first_sample, model_kwargs, reduction: as in `ddpm_loss`.

    Raises:
        TypeError, ValueError: bad arguments, a schedule that is no flow, or an output of the wrong shape.
    """
    known = resolve(as_stated(model, "schedule", schedule, "flow"))
    prediction = along(as_stated(model, "prediction", prediction, "flow"), known)
    source = _checked(x0, prediction, reduction, reduce_mean, Source(generator, seed, first_sample))
    if known.kind != "flow":
        raise ValueError(
            f"flow_loss got {known!r}; expected schedules.flow(...) or flow_to_data(...), or a name of theirs: "
            + _elsewhere(known)
        )
    times = check_times(source.uniform(len(x0)) if t is None else t, len(x0), known)
    alpha, sigma = known.alpha(times), known.sigma(times)
    error = _error(model, x0, known.model_time(times), alpha, sigma, prediction, noise, source, model_kwargs)
    return reduce(per_sample(error.square(), reduce_mean), reduction)


def _checked(x0: Any, prediction: str, reduction: str, reduce_mean: bool, source: Source) -> Source:
    """What every loss here asks of its arguments. Returns the source of its numbers."""
    check_names(prediction, reduction)
    flag("reduce_mean", reduce_mean)
    check_data(x0)
    return source.check()


def _elsewhere(schedule: NoiseSchedule) -> str:
    """The loss of a schedule, for the error of another one."""
    if schedule.discrete:
        return "for a discrete one call ddpm_loss(model, x0, schedule)"
    if schedule.kind == "flow":
        return "for flow matching call flow_loss(model, x0, schedule)"
    if schedule.kind in ("vp", "subvp", "ve"):
        return "for a continuous one call sde_loss(model, x0, schedule)"
    return "for a loss of your own q_sample(x0, t, schedule) gives x_t"


def _error(
    model: Model,
    x0: Tensor,
    model_time: Array,
    alpha: Array,
    sigma: Array,
    prediction: str,
    noise: Tensor | None,
    source: Source,
    model_kwargs: Mapping[str, Any] | None,
) -> Tensor:
    """Output minus target, (B, ...), in the wider dtype of x0 and the output, at least float32."""
    if prediction == PREVIOUS:
        raise ValueError(
            "prediction='previous' is the mean of a step of a DDPM chain, which only ddpm_loss, vlb_loss and "
            "hybrid_loss know"
        )
    clean, eps = full(x0), full(source.normal(x0, noise))
    out = evaluate(model, diffuse(clean, eps, alpha, sigma), x0.dtype, model_time, model_kwargs)
    return deviation(out, clean, eps, alpha, sigma, prediction)


def _factor(prediction: str, alpha: Array, sigma: Array) -> Array:
    """By what an error of the output must be multiplied to be one of eps = −sigma score."""
    pairs = zip(alpha.tolist(), sigma.tolist(), strict=True)
    return np.array([conversion(prediction, "noise", a, s)[1] for a, s in pairs])


def _levels(sigmas: Any) -> tuple[Array, Array]:
    """The noise levels, and what the network is given for each."""
    if isinstance(sigmas, str | NoiseSchedule):
        known = resolve(sigmas)
        if known.kind != "ve" or known.num_train is None:
            raise ValueError(
                f"smld_loss got {known!r}; expected discrete levels, as schedules.smld(sigma_min, sigma_max, N); "
                "for a continuous schedule call sde_loss(model, x0, schedule)"
            )
        index = np.arange(float(known.num_train))
        return known.sigma(index), known.model_time(index)
    table = floats("sigmas", sigmas, "a schedule of discrete levels, or (N,) positive levels")
    if table.ndim != 1 or table.size == 0 or not np.all(np.isfinite(table)) or np.any(table <= 0.0):
        raise ValueError(
            f"sigmas got shape {table.shape} with values such as {table.reshape(-1)[:3].tolist()}; expected (N,) "
            "finite positive levels, such as np.geomspace(50, 0.01, 1000)"
        )
    return table, table
