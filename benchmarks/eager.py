"""One step of every method as its paper writes it, one PyTorch operation after another: the baseline of the benchmarks.

Scalars are Python floats, computed as the formulas have them; tensors are used as a careful user would, without out=
and without repeated work. The conversion from the network's output and the cast of its next input are part of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdiff.plan import Plan
from fastdiff.plan.phi import phi
from fastdiff.schedules import resolve
from fastdiff.schedules.base import Point

Randn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Times:
    """The times of one step.

    Attributes:
        now: where the network was just evaluated.
        to: where the step leads.
        past: where the earlier model values were taken, newest first.
    """

    now: Point
    to: Point
    past: tuple[Point, ...]


@dataclass(frozen=True)
class Inputs:
    """x, u: (B, ...) base and evaluation point; out: the network's output; h: earlier model values, newest first."""

    x: Tensor
    u: Tensor
    out: Tensor
    h: Sequence[Tensor]


Result = tuple[Tensor, Tensor | None, Tensor]
"""u', x' where it differs from u' (else None), and the model value m that enters the history."""

Step = Callable[[Times, Inputs, Randn], Result]


def times_of(plan: Plan, k: int) -> Times:
    """The times of stage `k` of a plan."""
    schedule = resolve("ddpm")
    stage = plan.stages[k]
    past = [s.t for s in plan.stages[:k] if s.keep][::-1]
    return Times(schedule.at(stage.t), schedule.at(stage.t_next), tuple(schedule.at(t) for t in past))


def predicted_x0(p: Point, u: Tensor, eps: Tensor) -> Tensor:
    return (u - p.sigma * eps) / p.alpha


def dpm1(c: Times, v: Inputs, randn: Randn) -> Result:
    """DPM-Solver-1 (Lu et al. 2022, eq. 3.7)."""
    s, t, eps = c.now, c.to, v.out
    h = t.lam - s.lam
    return (t.alpha / s.alpha) * v.x - t.sigma * math.expm1(h) * eps, None, eps


def dpm2(c: Times, v: Inputs, randn: Randn) -> Result:
    """Multistep DPM-Solver-2: the midpoint form over two earlier values."""
    s, t, eps = c.now, c.to, v.out
    h = t.lam - s.lam
    r0 = (s.lam - c.past[0].lam) / h
    D1 = (eps - v.h[0]) / r0
    phi_1 = math.expm1(h)
    x = (t.alpha / s.alpha) * v.x - (t.sigma * phi_1) * eps - 0.5 * (t.sigma * phi_1) * D1
    return x, None, eps


def third_order_differences(c: Times, m: Tensor, h: Sequence[Tensor]) -> tuple[float, Tensor, Tensor]:
    """h, and estimates of h·m' and h²·m'' from three values."""
    step = c.to.lam - c.now.lam
    r0 = (c.now.lam - c.past[0].lam) / step
    r1 = (c.past[0].lam - c.past[1].lam) / step
    D1_0 = (m - h[0]) / r0
    D1_1 = (h[0] - h[1]) / r1
    D1 = D1_0 + (r0 / (r0 + r1)) * (D1_0 - D1_1)
    D2 = (2.0 / (r0 + r1)) * (D1_0 - D1_1)
    return step, D1, D2


def dpm3(c: Times, v: Inputs, randn: Randn) -> Result:
    """Multistep DPM-Solver-3 with the Taylor term of its third order."""
    s, t, eps = c.now, c.to, v.out
    h, D1, D2 = third_order_differences(c, eps, v.h)
    phi_1 = math.expm1(h)
    phi_2 = phi_1 / h - 1.0
    phi_3 = phi_2 / h - 0.5
    x = (t.alpha / s.alpha) * v.x - (t.sigma * phi_1) * eps - (t.sigma * phi_2) * D1 - (t.sigma * phi_3) * D2
    return x, None, eps


def dpmpp2m(c: Times, v: Inputs, randn: Randn) -> Result:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2)."""
    s, t = c.now, c.to
    x0 = predicted_x0(s, v.u, v.out)
    h = t.lam - s.lam
    r0 = (s.lam - c.past[0].lam) / h
    D1 = (x0 - v.h[0]) / r0
    phi_1 = math.expm1(-h)
    x = (t.sigma / s.sigma) * v.x - (t.alpha * phi_1) * x0 - 0.5 * (t.alpha * phi_1) * D1
    return x, None, x0


def dpmpp3m(c: Times, v: Inputs, randn: Randn) -> Result:
    """DPM-Solver++(3M), with the Taylor term of its third order."""
    s, t = c.now, c.to
    x0 = predicted_x0(s, v.u, v.out)
    h, D1, D2 = third_order_differences(c, x0, v.h)
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / h + 1.0
    phi_3 = phi_2 / h - 0.5
    x = (t.sigma / s.sigma) * v.x - (t.alpha * phi_1) * x0 + (t.alpha * phi_2) * D1 - (t.alpha * phi_3) * D2
    return x, None, x0


def ddim(c: Times, v: Inputs, randn: Randn) -> Result:
    """DDIM with eta = 0 (Song et al. 2021, eq. 12)."""
    x0 = predicted_x0(c.now, v.u, v.out)
    return c.to.alpha * x0 + c.to.sigma * v.out, None, x0


def ddpm(c: Times, v: Inputs, randn: Randn) -> Result:
    """DDPM's posterior of a subsequence (Ho et al. 2020, eqs. 6 and 7), with its noise."""
    s, t = c.now, c.to
    x0 = predicted_x0(s, v.u, v.out)
    beta = 1.0 - (s.alpha / t.alpha) ** 2
    mean = (t.alpha * beta / s.sigma**2) * x0 + (s.alpha / t.alpha * t.sigma**2 / s.sigma**2) * v.x
    std = math.sqrt(t.sigma**2 / s.sigma**2 * beta)
    return mean + std * randn(v.x), None, x0


def dpmpp2m_sde(c: Times, v: Inputs, randn: Randn) -> Result:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, App. D), with its noise."""
    s, t = c.now, c.to
    x0 = predicted_x0(s, v.u, v.out)
    h = t.lam - s.lam
    r0 = (s.lam - c.past[0].lam) / h
    D1 = (x0 - v.h[0]) / r0
    gain = -t.alpha * math.expm1(-2.0 * h)
    x = (t.sigma / s.sigma * math.exp(-h)) * v.x + gain * x0 + 0.5 * gain * D1
    x = x + (t.sigma * math.sqrt(-math.expm1(-2.0 * h))) * randn(v.x)
    return x, None, x0


def _rhos(ratios: Sequence[float], hh: float) -> list[float]:
    """UniPC's weights for B(h) = e^h − 1 (Zhao et al. 2023, eq. 11)."""
    r = np.asarray(ratios)
    powers = np.stack([r**i for i in range(len(r))])
    right = [math.factorial(i) * hh * float(phi(i + 1, hh)) / math.expm1(hh) for i in range(1, len(r) + 1)]
    found: list[float] = np.linalg.solve(powers, np.array(right)).tolist()
    return found


def unipc(order: int, c: Times) -> Step:
    """UniPC (bh2, data prediction; Zhao et al. 2023, Algorithms 1 and 2): corrects this step, predicts the next.

    The weights, which need a small linear system, are solved here, outside the measured step.
    """
    s, t, previous = c.now, c.to, c.past[0]
    back = s.lam - previous.lam
    ahead = t.lam - s.lam
    before = [(p.lam - previous.lam) / back for p in c.past[1:order]]
    recent = [(p.lam - s.lam) / ahead for p in c.past[: order - 1]]
    corrector, predictor = _rhos([*before, 1.0], -back), _rhos(recent, -ahead) if len(recent) > 1 else [0.5]

    def step(c: Times, v: Inputs, randn: Randn) -> Result:
        x0 = predicted_x0(s, v.u, v.out)
        newest = v.h[0]
        D = [(h - newest) / r for h, r in zip(v.h[1:], before, strict=False)] + [x0 - newest]
        B = math.expm1(-back)
        total = corrector[0] * D[0]
        for rho, d in zip(corrector[1:], D[1:], strict=True):
            total = total + rho * d
        x = (s.sigma / previous.sigma) * v.x - (s.alpha * B) * newest - (s.alpha * B) * total
        D = [(h - x0) / r for h, r in zip(v.h, recent, strict=False)]
        B = math.expm1(-ahead)
        total = predictor[0] * D[0]
        for rho, d in zip(predictor[1:], D[1:], strict=True):
            total = total + rho * d
        u = (t.sigma / s.sigma) * x - (t.alpha * B) * x0 - (t.alpha * B) * total
        return u, x, x0

    return step


def heun(c: Times, v: Inputs, randn: Randn) -> Result:
    """The correcting half of EDM's Heun step (Karras et al. 2022, Algorithm 1, line 8), for any alpha."""
    s, t = c.past[0], c.to
    width = t.sigma / t.alpha - s.sigma / s.alpha
    return t.alpha * (v.x / s.alpha + width * (0.5 * v.h[0] + 0.5 * v.out)), None, v.out


def dpm2s(c: Times, v: Inputs, randn: Randn) -> Result:
    """The end of DPM-Solver-2's step (Lu et al. 2022, Algorithm 1; App. for any r1)."""
    s, s1, t = c.past[0], c.now, c.to
    h = t.lam - s.lam
    r1 = (s1.lam - s.lam) / h
    phi_1 = math.expm1(h)
    x = (t.alpha / s.alpha) * v.x - (t.sigma * phi_1) * v.h[0] - (0.5 / r1) * (t.sigma * phi_1) * (v.out - v.h[0])
    return x, None, v.out


def dpm3s(c: Times, v: Inputs, randn: Randn) -> Result:
    """The end of DPM-Solver-3's step (Lu et al. 2022, Algorithm 2)."""
    s, s2, t = c.past[1], c.now, c.to
    h = t.lam - s.lam
    r2 = (s2.lam - s.lam) / h
    phi_1 = math.expm1(h)
    phi_2 = phi_1 / h - 1.0
    x = (t.alpha / s.alpha) * v.x - (t.sigma * phi_1) * v.h[1] - (t.sigma * phi_2 / r2) * (v.out - v.h[1])
    return x, None, v.out


def dpmpp2s(c: Times, v: Inputs, randn: Randn) -> Result:
    """The end of DPM-Solver++(2S)'s step (Lu et al. 2022b, Algorithm 1)."""
    s, s1, t = c.past[0], c.now, c.to
    x0 = predicted_x0(s1, v.u, v.out)
    h = t.lam - s.lam
    r1 = (s1.lam - s.lam) / h
    phi_1 = math.expm1(-h)
    x = (t.sigma / s.sigma) * v.x - (t.alpha * phi_1) * v.h[0] - (0.5 / r1) * (t.alpha * phi_1) * (x0 - v.h[0])
    return x, None, x0


def dpmpp3s(c: Times, v: Inputs, randn: Randn) -> Result:
    """The end of the third-order singlestep DPM-Solver++ step (Lu et al. 2022b, Algorithm 3)."""
    s, s2, t = c.past[1], c.now, c.to
    x0 = predicted_x0(s2, v.u, v.out)
    h = t.lam - s.lam
    r2 = (s2.lam - s.lam) / h
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / h + 1.0
    x = (t.sigma / s.sigma) * v.x - (t.alpha * phi_1) * v.h[1] + (t.alpha * phi_2 / r2) * (x0 - v.h[1])
    return x, None, x0


STEPS: dict[str, Step] = {
    f.__name__: f
    for f in (dpm1, dpm2, dpm3, dpm2s, dpm3s, dpmpp2m, dpmpp3m, dpmpp2s, dpmpp3s, ddim, ddpm, heun, dpmpp2m_sde)
}
METHODS = (*STEPS, "unipc")

STAGE = {"heun": 9, "dpm2s": 5, "dpmpp2s": 5, "dpm3s": 5, "dpmpp3s": 5}
"""The measured stage of a ten-step plan, where it is not number 5: each method's fullest one."""


def stage_of(method: str) -> int:
    return STAGE.get(method, 5)


def step_of(method: str, plan: Plan, k: int) -> Callable[[Inputs, Randn], Result]:
    """The method's step at stage `k` of its plan, in the state's dtype."""
    c = times_of(plan, k)
    step = unipc(3, c) if method == "unipc" else STEPS[method]
    return lambda v, randn: step(c, v, randn)


def whole(
    method: str, plan: Plan, k: int, network: torch.dtype, feeds: bool
) -> Callable[[Tensor, Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, ...]]:
    """The step with its casts: the network's output to the state's dtype, its next input (if `feeds`) to its own.

    Returns a function (x, u, out, h) -> (u', x' or u', m, network's next input).
    """
    step = step_of(method, plan, k)

    def run(x: Tensor, u: Tensor, out: Tensor, h: Sequence[Tensor]) -> tuple[Tensor, ...]:
        u_next, x_next, m = step(Inputs(x, u, out.to(x.dtype), h), torch.randn_like)
        return u_next, u_next if x_next is None else x_next, m, u_next.to(network) if feeds else u_next

    return run
