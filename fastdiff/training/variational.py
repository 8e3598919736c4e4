"""The variational bound of a DDPM chain: as a training loss, alone or beside the simple one, and in bits per dimension.

Ho et al. 2020 (arXiv 2006.11239), eq. 5 and section 3.3; Nichol and Dhariwal 2021 (arXiv 2102.09672), eqs. 4 to 7, 15
and 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from fastdiff import solvers
from fastdiff.names import one_of, representable
from fastdiff.plan import ZA
from fastdiff.prediction import PREVIOUS, along
from fastdiff.run.arguments import check_clip
from fastdiff.run.noise import randn
from fastdiff.run.report import span
from fastdiff.run.threshold import Dynamic
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.solvers.analytic import x0_variance
from fastdiff.solvers.ddim import LEARNED
from fastdiff.solvers.gamma import Gamma
from fastdiff.training.chain import VARIANCES, Chain, chain_of
from fastdiff.training.decoder import check_bins, check_decoder, check_scaled, decoder_log_prob
from fastdiff.training.forward import (
    Model,
    Source,
    as_stated,
    check_data,
    check_names,
    column,
    deviation,
    diffuse,
    evaluate,
    full,
    normal,
    per_sample,
    reduce,
)
from fastdiff.values import flag, shown

ANALYTIC = "analytic"
NATS_PER_BIT = math.log(2.0)


def vlb_loss(
    model: Model,
    x0: Tensor,
    schedule: str | NoiseSchedule | None = None,
    *,
    prediction: str | None = None,
    variance: str = "small",
    rescale: bool = False,
    steps: int | None = None,
    spacing: str | Sequence[float] | None = None,
    bins: int = 256,
    cdf: str = "exact",
    t: Tensor | ArrayLike | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """One term of the variational bound at a random time, in bits per dimension (Nichol and Dhariwal 2021, eqs. 4–7).

    KL(q(x_{t−1} | x_t, x0) || p(x_{t−1} | x_t)), or −log p(x0 | x_1) at the chain's cleanest time, where x0 has `bins`
    values between −1 and 1.

    Args:
        model: callable (x, t, **model_kwargs) as in `fastdiff.sample`.
        x0: (B, ...) data in [−1, 1], floating point.
        schedule: a `NoiseSchedule` or its name; default: `model.schedule`, else "ddpm".
        prediction: what the model gives: "eps", "x0", "v", "score", "flow", or "previous", the mean of x_{t−1};
            default: `model.prediction`, else "eps".
        variance: of p, as for method "ddpm": "small", "large", or "learned_range" or "learned", where the network gives
            twice the channels.
        rescale: times the number of steps, which makes it an unbiased estimate of the whole bound (without the prior's
            term, which no network changes).
        steps, spacing: the chain, as in `fastdiff.sample`; default: all times of a discrete schedule.
        bins: values that an element can have: 256 for 8-bit images.
        cdf: "exact", or "tanh" for the approximation of the normal distribution in published code, with its lower
            bound of 1e-12 on probabilities.
        t: (B,) times of the chain; default: drawn uniformly.
        noise, generator, seed, first_sample, model_kwargs, reduction: as in `ddpm_loss`.

    Raises:
        TypeError, ValueError: bad arguments, times outside the chain, an output of the wrong shape, or, where it is on
            the CPU, data from 0 to 255.
    """
    schedule, prediction = _checked(model, x0, schedule, prediction, reduction, bins, cdf)
    flag("rescale", rescale)
    source = Source(generator, seed, first_sample).check()
    chain = chain_of(schedule, steps, spacing, variance)
    k = chain.draw(len(x0), source, prediction) if t is None else chain.find(t, len(x0))
    at = _evaluate(model, chain, k, x0, source.normal(x0, noise), model_kwargs)
    term = _term(chain, at, chain.predicted_x0(k, at.x, at.out, prediction), bins, cdf)
    return reduce(len(chain) * term if rescale else term, reduction)


def hybrid_loss(
    model: Model,
    x0: Tensor,
    schedule: str | NoiseSchedule | None = None,
    *,
    prediction: str | None = None,
    variance: str = "learned_range",
    vlb_weight: float = 1e-3,
    steps: int | None = None,
    spacing: str | Sequence[float] | None = None,
    bins: int = 256,
    cdf: str = "exact",
    t: Tensor | ArrayLike | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Sequence[int] | None = None,
    first_sample: int = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """L_simple + vlb_weight·L_vlb, for networks with a learned variance (Nichol and Dhariwal 2021, eq. 16).

    L_simple is `ddpm_loss` of the first half of the network's channels; L_vlb is `vlb_loss` with `rescale`, and its
    gradient reaches the second half alone, that of the variance.

    Args:
        variance: "learned_range" or "learned".
        vlb_weight: 0.001 as published, for any number of steps N; 1/N for the term as it is, unscaled.
        model, x0, schedule, prediction, steps, spacing, bins, cdf, t, noise, generator, seed, first_sample,
            model_kwargs, reduction: as in `vlb_loss`.

    Raises:
        TypeError, ValueError: as `vlb_loss`, and an output that has not twice the channels.
    """
    schedule, prediction = _checked(model, x0, schedule, prediction, reduction, bins, cdf)
    if not isinstance(variance, str) or variance not in LEARNED:
        raise ValueError(
            f"variance={shown(variance)}: hybrid_loss trains a learned variance, 'learned_range' or 'learned'; for a "
            "fixed one call ddpm_loss(model, x0, schedule)"
        )
    if not (isinstance(vlb_weight, int | float) and representable(vlb_weight) and vlb_weight >= 0):
        raise ValueError(f"vlb_weight={vlb_weight!r}: expected a number of at least 0, such as 0.001")
    source = Source(generator, seed, first_sample).check()
    chain = chain_of(schedule, steps, spacing, variance)
    k = chain.draw(len(x0), source, prediction) if t is None else chain.find(t, len(x0))
    at = _evaluate(model, chain, k, x0, source.normal(x0, noise), model_kwargs)
    frozen = chain.predicted_x0(k, at.x, at.out.detach(), prediction)
    term = _term(chain, at, frozen, bins, cdf)
    if prediction == PREVIOUS:
        error = at.out - chain.mean(k, at.x, at.x0)
    else:
        error = deviation(at.out, at.x0, at.eps, chain.alpha[k], chain.sigma[k], prediction)
        if prediction == "score":
            error = error * column(chain.sigma[k], error)
    return reduce(per_sample(error.square()) + vlb_weight * len(chain) * term, reduction)


class VariationalBound(NamedTuple):
    """The result of `variational_bound`; N steps, from the noisiest time. All float64.

    Attributes:
        total: (B,) bits per dimension: the prior's term and all others; an upper bound of −log2 p(x0) / d.
        prior: (B,) KL(q(x_T | x0) || N(0, prior_std²)).
        terms: (B, N) the KL of each step, and −log2 p(x0 | x_1) in the last column.
        x0_mse: (B, N) mean squared error of the predicted x0.
        eps_mse: (B, N) mean squared error of the eps that follows from it.
        times: (N,) schedule times of the columns.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor
    x0_mse: Tensor
    eps_mse: Tensor
    times: Tensor

    def __repr__(self) -> str:
        return (
            f"VariationalBound({len(self.total)} samples, {len(self.times)} steps, total {span(self.total)} bits per "
            f"dimension, of it prior {span(self.prior)})"
        )


def variational_bound(
    model: Model,
    x0: Tensor,
    schedule: str | NoiseSchedule | None = None,
    *,
    prediction: str | None = None,
    variance: str = "small",
    gamma: Gamma | Mapping[float, float] | str | None = None,
    decoder_variance: float | None = None,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    steps: int | None = None,
    spacing: str | Sequence[float] | None = None,
    bins: int = 256,
    cdf: str = "exact",
    noise: Callable[[int, Tensor], Tensor] | None = None,
    seed: int | Sequence[int] = 0,
    first_sample: int = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> VariationalBound:
    """The whole variational bound of data under a chain, in bits per dimension (Ho et al. 2020, eq. 5).

    One evaluation of the network at each time of the chain, with noise of its own. It bounds the likelihood of the
    stochastic sampler; `fastdiff.likelihood.log_likelihood` is that of the probability-flow ODE.

    Args:
        schedule, prediction: default: what the model states, else "ddpm" and "eps".
        variance: as in `vlb_loss`, or "analytic": the optimal one of method "analytic_ddpm" with this `gamma` (Bao et
            al. 2022, arXiv 2201.06503, Theorem 1), without `clip_steps`; for the last step that of x0 given x_1.
        gamma: for "analytic": what `fastdiff.analytic.estimate_gamma` returns, its file, {time: Gamma}, or a bound.
        decoder_variance: of the last step, p(x0 | x_1), instead of the chain's own.
        clip: bounds of the predicted x0, (low, high), or None.
        noise: noise(k, like) -> a tensor like `like`, for the k-th step from the noisiest; default: the built-in
            normals, `fastdiff.randn(..., seed=seed, draw=k, first_sample=first_sample)`.
        seed, first_sample: of the built-in normals, as in `fastdiff.sample`: results do not depend on the batch.
        progress: show a bar.
        model, x0, steps, spacing, bins, cdf, model_kwargs: as in `vlb_loss`.

    Returns:
        `VariationalBound`.

    Raises:
        TypeError, ValueError: bad arguments, data from 0 to 255, noise or an output of the wrong shape. Data beyond
            [−1, 1] give a UserWarning.
    """
    known = resolve(as_stated(model, "schedule", schedule, "ddpm"))
    kind = along(as_stated(model, "prediction", prediction, None), known)
    check_names(kind, "mean")
    check_decoder(bins, cdf)
    check_data(x0)
    check_bins(x0, bins)
    bounds = check_clip(clip, full(x0).dtype)
    if isinstance(bounds, Dynamic):
        raise ValueError(f"clip={clip!r}: expected the data's bounds, (low, high), such as (-1.0, 1.0), or None")
    one_of("variance", variance, (*VARIANCES, ANALYTIC))
    if (variance == ANALYTIC) != (gamma is not None):
        raise ValueError(
            f"got variance={variance!r} and gamma={gamma!r}, which go together: variance='analytic', "
            "gamma=fastdiff.analytic.estimate_gamma(model, data)"
        )
    chain = chain_of(known, steps, spacing, "small" if variance == ANALYTIC else variance)
    if gamma is not None:
        chain = _analytic(chain, known, gamma)
    if noise is not None and not callable(noise):
        raise TypeError(f"noise must be callable as noise(k, like) -> tensor, got {type(noise).__name__}")
    flag("progress", progress)
    if decoder_variance is not None:
        number = isinstance(decoder_variance, int | float)
        if not (number and representable(decoder_variance) and decoder_variance > 0):
            raise ValueError(f"decoder_variance={decoder_variance!r}: expected a number above 0, such as 1e-4")
        chain = chain.with_variances(np.array([math.nan] * (len(chain) - 1) + [math.log(decoder_variance)]))
    dtype = full(x0).dtype
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for i in tqdm(range(len(chain)), desc="variational bound", disable=not progress):
            k = np.full(len(x0), i)
            if noise is None:
                drawn = randn(x0.shape, seed=seed, draw=i, first_sample=first_sample, dtype=dtype, device=x0.device)
            else:
                drawn = normal(x0, noise(i, x0))
            at = _evaluate(model, chain, k, x0, drawn, model_kwargs)
            found = chain.predicted_x0(k, at.x, at.out, kind)
            if bounds is not None:
                found = found.clamp(*bounds)
            eps = (at.x - column(chain.alpha[k], at.x) * found) / column(chain.sigma[k], at.x)
            term = _term(chain, at, found, bins, cdf)
            columns.append((term, per_sample((found - at.x0).square()), per_sample((eps - at.eps).square())))
    terms, x0_mse, eps_mse = (torch.stack(list(c), dim=1).double() for c in zip(*columns, strict=True))
    wide, std = x0.detach().double(), known.prior_std(float(chain.times[0]))
    excess = 2.0 * math.log(chain.sigma[0] / std)
    square = 0.5 * (math.expm1(excess) - excess + (chain.alpha[0] / std * wide).square())
    prior = per_sample(square) / NATS_PER_BIT
    return VariationalBound(terms.sum(1) + prior, prior, terms, x0_mse, eps_mse, torch.from_numpy(chain.times.copy()))


def _analytic(chain: Chain, schedule: NoiseSchedule, gamma: Gamma | Mapping[float, float] | str) -> Chain:
    """The chain with Analytic-DPM's variances, for data in [−1, 1]."""
    known = solvers.find("analytic_ddpm").check_options({"gamma": gamma})["gamma"]
    stages = solvers.plan("analytic_ddpm", None, schedule, chain.grid, gamma=known, clip_steps=0).stages
    # The last step's mean is x0 itself, and it draws nothing: all of its variance is x0's, if any is left.
    last = x0_variance(known, schedule, schedule.at(float(chain.times[-1])), (-1.0, 1.0))
    variances = np.array([*(s.next_u[ZA] ** 2 for s in stages[:-1]), last or math.nan])
    return chain.with_variances(np.log(variances))


def _checked(
    model: Model,
    x0: Tensor,
    schedule: str | NoiseSchedule | None,
    prediction: str | None,
    reduction: str,
    bins: int,
    cdf: str,
) -> tuple[NoiseSchedule, str]:
    """Schedule and prediction of a loss, after checks of what both losses are given."""
    known = resolve(as_stated(model, "schedule", schedule, "ddpm"))
    kind = along(as_stated(model, "prediction", prediction, None), known)
    check_names(kind, reduction)
    check_decoder(bins, cdf)
    check_data(x0)
    check_scaled(x0)
    return known, kind


class _Evaluated(NamedTuple):
    """The network at steps of a chain: positions k, (B,); data, noise and x_t, (B, ...), float32 at least; the
    prediction there, and v of a learned variance."""

    k: np.ndarray
    x0: Tensor
    eps: Tensor
    x: Tensor
    out: Tensor
    v: Tensor | None


def _evaluate(
    model: Model, chain: Chain, k: np.ndarray, x0: Tensor, eps: Tensor, model_kwargs: Mapping[str, Any] | None
) -> _Evaluated:
    clean, noise = full(x0), full(eps)
    x = diffuse(clean, noise, chain.alpha[k], chain.sigma[k])
    out = evaluate(model, x, x0.dtype, chain.model_time[k], model_kwargs, learned=chain.learned)
    first, second = out.chunk(2, dim=1) if chain.learned else (out, None)
    return _Evaluated(k, clean, noise, x, first, second)


def _term(chain: Chain, at: _Evaluated, found: Tensor, bins: int, cdf: str) -> Tensor:
    """(B,) bits per dimension of the steps, for the predicted x0 `found`."""
    k, x0, v = at.k, at.x0, at.v
    # Both means have the same part of x: they differ by of_x0·(x0 − found). 2·(c0 + c1·v) is the model's log-variance.
    c0, c1 = chain.log_std[k].T
    if v is None:
        log_variance = column(2.0 * c0, found).expand_as(found)
    else:
        log_variance = column(2.0 * c0, found) + column(2.0 * c1, found) * v
    excess = column(chain.log_posterior[k], found) - log_variance
    shift = column(chain.of_x0[k], found) * (x0 - found) * torch.exp(-0.5 * log_variance)
    # KL of two normals: 0.5·(exp(d) − 1 − d + shift²), d the difference of the log-variances.
    bits = per_sample(0.5 * (torch.expm1(excess) - excess + shift.square())) / NATS_PER_BIT
    last = torch.from_numpy(np.flatnonzero(k == len(chain) - 1)).to(found.device)
    if len(last):
        # The step to the data: its mean is the predicted x0. In float64, since differences of probabilities cancel.
        log_p = decoder_log_prob(x0[last].double(), found[last].double(), 0.5 * log_variance[last].double(), bins, cdf)
        bits = bits.index_copy(0, last, (per_sample(-log_p) / NATS_PER_BIT).to(bits.dtype))
    return bits
