"""Networks in torch whose right answer is known, data for them, and bounds of the rounding of a run with them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch

from fastdiff import ops
from fastdiff.bind.table import bind
from fastdiff.ops.layout import CG, CU, NEXT_U, NEXT_X, NONE
from fastdiff.plan import H1, IDENTITY, NREG, SECOND, M, Plan
from fastdiff.schedules import NoiseSchedule, resolve
from helpers.analytic import Mixture, gaussian, mixture

BACKENDS = [name for name in ("reference", "cpu") if ops.load(name).available()[0]]
"""The back ends that run on every machine, if they are built."""
MIXTURE = mixture([0.4, 0.6], [[-0.8, 0.5, 0.1], [0.9, -0.3, 0.4]], [0.3, 0.45])
X = torch.tensor([[0.5, -1.1, 0.3], [2.0, 0.3, -0.7], [-1.7, -0.2, 0.9], [0.1, 1.4, -0.4]], dtype=torch.float64)


class Exact:
    """The perfect network for a distribution: float64 truth at the time that it is given, in the dtype of its input.

    Attributes:
        seen: the shape of every input.
    """

    def __init__(self, dist: Mixture, schedule: str | NoiseSchedule = "ddpm", prediction: str = "eps") -> None:
        self.dist, self.noise, self.kind = dist, resolve(schedule), prediction
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        return exact(self.dist, self.kind, x, *levels(self.noise, t))


def levels(schedule: NoiseSchedule, t: torch.Tensor) -> tuple[float, float]:
    """alpha and sigma at the model time that all rows share (schedules with time_scale 1)."""
    assert bool((t == t[0]).all())
    return schedule.alpha(float(t[0])), schedule.sigma(float(t[0]))


def exact(dist: Mixture, prediction: str, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    d = dist.means.shape[1]
    out = dist.predict(prediction, x.detach().double().numpy().reshape(-1, d), alpha, sigma)
    return torch.from_numpy(out).reshape(x.shape).to(x.dtype)


class Field:
    """The perfect network in float64, each row at a time of its own; counts its calls and notes where they were."""

    dtype = torch.float64

    def __init__(self, dist: Mixture, schedule, prediction: str = "eps") -> None:
        self.dist, self.noise, self.kind = dist, resolve(schedule), prediction
        self.calls: list[tuple[bytes, bytes]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls.append((x.numpy().tobytes(), t.numpy().tobytes()))
        times = t.double().numpy()
        parts = [slice(None)] if (times == times[0]).all() else [slice(i, i + 1) for i in range(len(x))]
        out = [self.dist.predict(self.kind, x[p].double().numpy(), *self.level(float(times[p][0]))) for p in parts]
        return torch.from_numpy(np.concatenate(out)).to(x.dtype)

    def level(self, t: float) -> tuple[float, float]:
        if self.noise.kind == "flow":
            return 1.0 - t, t  # the model's time is sigma, whatever the shift
        return self.noise.alpha(t), self.noise.sigma(t)


def simple(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Exact operations alone: the same bits for every layout of the batch."""
    return x / (1.0 + x * x) * (1.0 + t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * 0.001)


class Linear(torch.nn.Module):
    """The perfect network for N(0, std²), any dtype: `slope(t)·x`, with one parameter so that it has a dtype."""

    def __init__(self, std: float = 0.5, dtype: torch.dtype = torch.float32, prediction: str = "eps") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.std, self.kind, self.noise = std, prediction, resolve("ddpm")

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * slope(self.std, self.kind, *levels(self.noise, t)) * self.weight


def slope(std: float, prediction: str, alpha: float, sigma: float) -> float:
    """What the perfect network for N(0, std²) multiplies its input by."""
    return float(gaussian([0.0], std).predict(prediction, np.ones((1, 1)), alpha, sigma)[0, 0])


def rounding_bound(
    plan: Plan, x: np.ndarray, std: float, u_state: float, u_network: float, noise: Callable[[int], np.ndarray]
) -> float:
    """How far a run with `Linear` from `x` may be from exact arithmetic, to first order in the unit round-offs.

    A sum of n terms c·r with rounded coefficients is wrong by at most (n + 2)·u·sum |c·r|; the network's input is
    rounded once, its output three times (slope, product, weight). The whole run is linear, so each of these
    errors reaches the result multiplied by what a unit error at that place gives: a run
    from 0, without noise, with a 1 there.
    """
    errors: dict[tuple[int, str], float] = {}
    _linear_run(plan, x, std, noise, errors, (u_state, u_network), None)
    sensitivity = {place: _linear_run(plan, np.zeros(1), std, None, None, (0.0, 0.0), place) for place in errors}
    return sum(error * float(np.abs(sensitivity[place]).max()) for place, error in errors.items())


def _linear_run(plan, x, std, noise, errors, units, inject):
    """The run in float64; fills `errors` with each place's own round-off, and adds 1 at the place `inject`."""
    table, (u_state, u_network) = bind(plan), units
    history: list[np.ndarray] = []

    def placed(place, value, error):
        if errors is not None:
            errors[place] = error
        return value + 1.0 if place == inject else value

    def total(place, terms):
        size = sum((abs(c * r) for c, r in terms), np.zeros(1))
        value = sum((c * r for c, r in terms), np.zeros(x.shape))
        return placed(place, value, (len(terms) + 2) * u_state * float(np.max(size)))

    x = u = placed((-1, "x"), x, 2 * u_state * float(np.abs(x).max()))
    for k, stage in enumerate(plan.stages):
        row, spec = table.values[k + 1], table.specs[k + 1]
        z = [np.zeros(1) if noise is None or d < 0 else noise(d) for d in stage.draws]
        registers = [
            x,
            u,
            np.zeros(1),
            *history[: SECOND - H1],
            *[np.zeros(1)] * (SECOND - H1 - len(history)),
            np.zeros(1),
            *z,
        ]
        if spec.convert != NONE:
            g = slope(std, "eps", stage.alpha, stage.sigma) * u
            g = placed((k, "g"), g, 4 * u_network * float(np.abs(g).max()))
            registers[M] = g if (row[CU], row[CG]) == (0, 1) else total((k, "m"), [(row[CU], u), (row[CG], g)])
        new_u = total((k, "u"), [(row[NEXT_U + j], registers[j]) for j in range(NREG) if spec.u_mask >> j & 1])
        new_x = total((k, "x"), [(row[NEXT_X + j], registers[j]) for j in range(NREG) if spec.x_mask >> j & 1])
        x = new_x if spec.x_mask else (x if stage.next_x == IDENTITY else new_u)
        u = new_u
        if stage.keep:
            history = [registers[M], *history][: SECOND - H1]
    return x


class Pooled:
    """Returns a few buffers in turn, as engines and replayed graphs do; the first `fresh` calls return new memory."""

    def __init__(self, model, buffers: int, fresh: int = 0) -> None:
        self.model, self.buffers, self.fresh = model, buffers, fresh
        self.pool: list[torch.Tensor] = []
        self.calls = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = self.model(x, t)
        self.calls += 1
        if self.calls <= self.fresh:
            return out
        if len(self.pool) < self.buffers:
            self.pool.append(torch.empty_like(out))
        buffer = self.pool[self.calls % len(self.pool)] if len(self.pool) == self.buffers else self.pool[-1]
        return buffer.copy_(out)


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A network that is not linear, and depends on time: errors in the bookkeeping of outputs show."""
    return torch.sin(x * 0.7 + t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * 0.01)


class DiffusersLike(torch.nn.Module):
    """The interface of a diffusers network: config, `.sample` of its output."""

    def __init__(self, channels: int = 2, size: int | tuple[int, int] = 4) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=channels, sample_size=size)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=wavy(x, t))
