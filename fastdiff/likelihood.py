"""Log-likelihood by the instantaneous change of variables along the probability flow ODE.

Chen et al. 2018 (arXiv 1806.07366, Theorem 1); for diffusion models Song et al. 2021 (arXiv 2011.13456, App. D.2); the
trace estimator of Hutchinson 1990 as in Grathwohl et al. 2019 (arXiv 1810.01367).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdiff import ops, solvers
from fastdiff.bind import Binding
from fastdiff.names import one_of, short, unknown
from fastdiff.ops import Coeffs
from fastdiff.ops.layout import CG, CU, StageSpec
from fastdiff.ops.philox import STEP
from fastdiff.prediction import PREDICTIONS, settled
from fastdiff.run.adaptive import Driver
from fastdiff.run.arguments import (
    STATE_DTYPES,
    cast_x,
    check_x,
    default_schedule,
    need_values,
    resolve_device,
    resolve_seeds,
    warn_of_training,
)
from fastdiff.run.evaluate import Hooks
from fastdiff.run.job import Job, Start, sampling_mode
from fastdiff.run.network import Network, placement, stated
from fastdiff.run.report import progress_bar, span
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.schedules.registry import told
from fastdiff.values import flag, number

TRACES = ("hutchinson", "exact")
PROBES = ("rademacher", "gaussian")
MOST_PROBES = 10_000
"""Each is a state in memory, and a backward pass an evaluation."""

LEAST_TOLERANCE = 8 * 2.0**-23
"""Of rtol + atol, with a state in float32: about 1e-6.

The result of a Dormand-Prince step is a sum of eight products, x and up to seven model values. Each is rounded as a
product and as a term, by 2^-24 of the state: 8·2^-23 for a state of order 1, whatever the step's width. With less
tolerance the control measures its own rounding.
"""


class LogLikelihood(NamedTuple):
    """The result of `log_likelihood`.

    Attributes:
        log_prob: (B,) float64: log density of each sample, in nats.
        bits_per_dim: (B,) float64: bits for each element at the given bin width.
        nfe: number of calls of the model.
        latent: (B, ...) x at the noisy end.
    """

    log_prob: torch.Tensor
    bits_per_dim: torch.Tensor
    nfe: int
    latent: torch.Tensor

    def __repr__(self) -> str:
        return (
            f"LogLikelihood({len(self.log_prob)} samples of shape {tuple(self.latent.shape[1:])}, "
            f"log_prob {span(self.log_prob)}, bits_per_dim {span(self.bits_per_dim)}, nfe={self.nfe})"
        )


class DivergenceDriver(Driver):
    """The driver, with the integral of the drift's divergence beside x, under the same error control."""

    probes: Sequence[torch.Tensor]
    exact: bool
    slopes: list[torch.Tensor]

    def call(self, k: int, given: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = given.detach().clone().requires_grad_(True)
            out = self.network(leaf, self.times[k].clone())
            if not out.requires_grad:
                raise ValueError(
                    "the model's output does not depend on its input through autograd: the likelihood needs its "
                    "derivative, so the model must not run under torch.no_grad() or detach its input"
                )
            total = torch.zeros(self.batch, dtype=torch.float64, device=leaf.device)
            for i, probe in enumerate(self.probes):
                v = probe.to(out.dtype)
                # Only the last call may free the graph.
                (slope,) = torch.autograd.grad(out, leaf, v, retain_graph=i + 1 < len(self.probes))
                total += (slope.double() * v.double()).flatten(1).sum(1)
        self.divergence = total if self.exact else total / len(self.probes)
        return out.detach()

    def took(self, k: int, place: tuple[int, StageSpec]) -> None:
        """The divergence of this evaluation's drift: m = cu·u + cg·g, in the variable y = x/c."""
        row, n = place[0], len(self.lanes)
        cu, cg = self.column(self.host[row : row + n, CU]), self.column(self.host[row : row + n, CG])
        scale = self.column([self.method.scale(self.schedule_point(k, lane)) for lane in range(n)])
        value = scale * (cu * self.x[0].numel() + cg * self.divergence)
        self.slopes = [value] if k == 0 else [*self.slopes, value]

    def schedule_point(self, k: int, lane: int) -> Any:
        """alpha and sigma of stage k: the stage's own, or the lane's where there is no trial."""
        return self.lanes[lane].at if k == 0 else self.lanes[lane].stages[k]

    def column(self, values: Sequence[float] | np.ndarray) -> torch.Tensor:
        """(B,) float64 on the device, from one value per lane."""
        array = np.broadcast_to(np.asarray(values, dtype=np.float64), (self.batch,)).copy()
        return torch.from_numpy(array).to(self.x.device)

    def run(self) -> torch.Tensor:
        self.integral = torch.zeros(self.batch, dtype=torch.float64, device=self.x.device)
        return super().run()

    def measure(self) -> list[float]:
        method = self.method
        pair = method.weights()
        assert pair is not None
        ends = [(method.position(lane.at), method.position(lane.to or lane.at)) for lane in self.lanes]
        width = self.column([b - a for a, b in ends])
        slopes = torch.stack(self.slopes)
        result, error = (width * (torch.as_tensor(w, device=slopes.device) @ slopes) for w in pair)
        self.proposed, self.newest = self.integral + result, self.slopes[-1]
        self.slopes = self.slopes[:1]
        scale = method.controller.atol + method.controller.rtol * torch.maximum(
            self.integral.abs(), self.proposed.abs()
        )
        return np.maximum(super().measure(), self.rms((error / scale).reshape(-1, 1))).tolist()

    def take(self, taken: list[bool], kept: torch.Tensor, newest: torch.Tensor) -> None:
        mask = torch.tensor(taken if self.each else taken * self.batch, device=self.x.device)
        self.integral = torch.where(mask, self.proposed, self.integral)
        self.slopes = [torch.where(mask, self.newest, self.slopes[0])]
        super().take(taken, kept, newest)


def log_likelihood(
    model: Callable[..., Any],
    x: torch.Tensor,
    *,
    schedule: str | NoiseSchedule | None = None,
    prediction: str | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    trace: str = "hutchinson",
    probe: str | torch.Tensor = "rademacher",
    probes: int = 1,
    seed: int | Sequence[int] = 0,
    first_sample: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    control: str = "batch",
    max_nfe: int = 10000,
    prior: Callable[[torch.Tensor], torch.Tensor] | None = None,
    bin_width: float = 1.0,
    model_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | None = None,
    progress: bool = False,
) -> LogLikelihood:
    """The log density that a model gives to data: the ODE from data to noise, and the integral of its divergence.

    Args:
        model: as in `fastdiff.sample`; differentiable with respect to its input.
        x: (B, ...) data, taken to be the state at `t_start`.
        schedule, prediction: as in `fastdiff.sample`.
        t_start, t_end: schedule times of the data and of the noise; default: where ODE solvers end (the lowest time
            with noise), and the schedule's last time.
        trace: "hutchinson", an unbiased estimate of the divergence from random probes, which are the same at all times;
            or "exact", with one backward pass for every element of a sample.
        probe, probes: "rademacher" or "gaussian", and how many; or your own probes instead, a floating point tensor
            (B, ...) or (probes, B, ...). Their elements should be uncorrelated, with mean 0 and variance 1.
        seed, first_sample: of the probes, as in `fastdiff.sample`.
        rtol, atol, control, max_nfe: as of method "ode"; the integral is under the same control. With a state in
            float32 rtol + atol must be at least 1e-6. A network in float32 or less limits the result likewise.
        prior: x at `t_end` -> (B,) its log density; default: N(0, prior_std²) of the schedule there.
        bin_width: of the data, for bits per dimension: 2/256 for 8-bit images in [-1, 1] with uniform noise of that
            width.
        model_kwargs: keyword arguments for every call of the model.
        dtype, device, backend, progress: as in `fastdiff.sample`: the state is float32 unless dtype=torch.float64 is
            given, whatever x's dtype.

    Returns:
        `LogLikelihood`.

    Raises:
        ValueError, TypeError: bad arguments, tolerances that float32 cannot hold, or a model without a derivative.
        RuntimeError: max_nfe reached, or a named back end that cannot run here.
    """
    x = check_x(x)
    if x.ndim < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (B, ...), with at least one dimension beside the batch"
        )
    if not isinstance(dtype, torch.dtype) or dtype not in STATE_DTYPES:
        raise ValueError(f"dtype={dtype}: expected torch.float32 or torch.float64")
    one_of("trace", trace, TRACES)
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes={probes!r}: expected an integer of at least 1")
    if probes > MOST_PROBES:
        raise ValueError(f"probes={short(probes)}: expected at most {MOST_PROBES}, or trace='exact'")
    if isinstance(probe, torch.Tensor):
        check_probe(probe, probes, trace, x)
    elif not isinstance(probe, str) or probe not in PROBES:
        raise ValueError(unknown("probe", probe, PROBES))
    bin_width = number("bin_width", bin_width, "2/256")
    flag("progress", progress)
    if bin_width <= 0:
        raise ValueError(f"bin_width={bin_width!r}: expected a positive number, such as 2/256")
    schedule, prediction = told(schedule, prediction)
    said = prediction if prediction is not None else stated(model, "prediction")
    if said is not None:
        one_of("prediction", said, PREDICTIONS)
    if prior is not None and not callable(prior):
        raise TypeError(f"prior must be callable as prior(x) -> (B,) log density, got {type(prior).__name__}")
    noted = schedule if schedule is not None else stated(model, "schedule")
    chosen = resolve(default_schedule(said) if noted is None else noted)
    kind = settled(said, chosen)
    warn_of_training(model)
    low = chosen.t_floor if chosen.sigma(chosen.t_min) == 0 else chosen.t_min
    method = solvers.adaptive(
        solvers.find("ode"),
        None,
        chosen,
        None,
        low if t_start is None else t_start,
        chosen.t_max if t_end is None else t_end,
        kind,
        rtol=rtol,
        atol=atol,
        control=control,
        max_nfe=max_nfe,
    )
    if dtype == torch.float32 and method.controller.rtol + method.controller.atol < LEAST_TOLERANCE:
        raise ValueError(
            f"rtol={rtol:g} and atol={atol:g} are less than float32 can hold, about "
            f"{LEAST_TOLERANCE:.1g} together: give dtype=torch.float64 (and a network in float64), or larger ones"
        )
    if method.forward:
        raise ValueError(f"t_start={method.start.t:g} is the data's time, and must lie below t_end={method.stop.t:g}")
    found, network_dtype = placement(model)
    where = resolve_device(device, x, found)
    need_values(where, "log_likelihood")
    module = ops.select(backend, where, dtype, network_dtype or dtype, x.numel())
    seeds, index = resolve_seeds(seed, first_sample, len(x), where)
    size = x[0].numel()
    with sampling_mode():
        start = cast_x(x, where, dtype)
        job = Job(
            Start(module, start, seeds, index, None),
            Network(model, len(start), model_kwargs),
            network_dtype or dtype,
            Binding(kind),
            None,
            Hooks(),
        )
        coeffs = Coeffs(start, start, seeds, index)
        evaluator = job.evaluator(coeffs, job.network_dtype == dtype)
        driver = DivergenceDriver(method, evaluator, job.network_dtype, coeffs, start)
        driver.exact = trace == "exact"
        if driver.exact:
            driver.probes = units(start)
        elif isinstance(probe, torch.Tensor):
            driver.probes = list(probe.detach().to(start).reshape(-1, *start.shape))
        else:
            driver.probes = drawn(module, start, seeds, index, probe, probes)
        with progress_bar(job.hooks, method.method, 100, "%") if progress else contextlib.nullcontext():
            latent = driver.run()
        if prior is None:
            std = chosen.prior_std(method.stop.t)
            square = latent.double().flatten(1).square().sum(1)
            last = -0.5 * square / std**2 - 0.5 * size * math.log(2 * math.pi * std**2)
        else:
            last = prior(latent)
            if not isinstance(last, torch.Tensor):
                raise TypeError(f"prior(x) returned {type(last).__name__}, expected a tensor ({len(x)},)")
            last = last.double()
            if last.shape != (len(x),):
                raise ValueError(
                    f"prior(x) returned shape {tuple(last.shape)}, expected ({len(x)},), a log density for each sample"
                )
        # From the density of x to that of y = x/c at the noise, and back at the data.
        change = size * math.log(method.scale(method.stop) / method.scale(method.start))
        log_prob = last + change + driver.integral
        bits = -log_prob / (size * math.log(2.0)) - math.log2(bin_width)
    return LogLikelihood(log_prob, bits, driver.nfe, latent)


def check_probe(probe: torch.Tensor, probes: int, trace: str, x: torch.Tensor) -> None:
    """The caller's own probes."""
    if trace == "exact":
        raise ValueError("trace='exact' uses no probes: leave probe out, or give trace='hutchinson'")
    shape, size = tuple(probe.shape), tuple(x.shape)
    if shape[-x.ndim :] != size or probe.ndim > x.ndim + 1 or not probe.numel():
        raise ValueError(f"probe has shape {shape}; expected {size} as x, or (probes, *x.shape) for several")
    count = 1 if probe.ndim == x.ndim else len(probe)
    if probes not in (1, count):
        raise ValueError(
            f"probes={probes} does not go with a probe of shape {shape}, which holds {count}: leave it out"
        )
    if not probe.dtype.is_floating_point:
        raise TypeError(f"probe has dtype {probe.dtype}; expected floating point: pass probe.float()")
    if not bool(torch.isfinite(probe).all()):
        raise ValueError("probe has NaN or Inf; expected finite values")


def units(x: torch.Tensor) -> list[torch.Tensor]:
    """The unit vectors of a sample's elements, each for the whole batch."""
    size = x[0].numel()
    return [
        torch.eye(size, dtype=x.dtype, device=x.device)[i].reshape(1, *x.shape[1:]).expand(x.shape) for i in range(size)
    ]


def drawn(
    module: Any, x: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, probe: str, count: int
) -> list[torch.Tensor]:
    """`count` probes: the built-in normals of draws 0, 1, ..., or their signs."""
    made = []
    for draw in range(count):
        z = torch.empty_like(x)
        module.normal_(z, seeds, index, draw, STEP)
        made.append(torch.where(z >= 0, 1.0, -1.0).to(x.dtype) if probe == "rademacher" else z)
    return made
