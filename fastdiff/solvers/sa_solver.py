"""SA-Solver: a stochastic Adams predictor and corrector (Xue et al. 2023, arXiv 2309.05019, Algorithm 1).

The noise tau makes the reverse SDE with eta = tau² (`solvers.reverse`). The predictor interpolates the model values of
the last `order` times, the corrector also the one at the predicted point, and both integrate the polynomial exactly.
The corrector uses the predictor's noise again. Without a further evaluation the next step starts from the corrected
state with the value at the predicted one (PEC); PECE evaluates the corrected state too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from fastdiff.plan import Plan
from fastdiff.schedules import Point
from fastdiff.solvers.base import HISTORY, ROW, Draw, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.reverse import S_NOISE, Reverse, check_start

MAX_ORDER = 4


def adams(step: Reverse, x: Row, nodes: Sequence[Point], values: Sequence[Row], simple: bool) -> Row:
    """The mean of a step from `x` with the polynomial in lambda through the nodes, newest first (eqs. 15 and 18).

    `simple`: with two nodes half of H·h·alpha_t, as published for few steps, in the place of the slope's integral.
    """
    s, h = step.s, step.h
    if len(nodes) == 1 or not step.finite:
        return step.first(x, values[0])
    if len(nodes) == 2 and simple and step.space == "data":
        slope = (values[0] - values[1]) * (h / (nodes[0].lam - nodes[1].lam))
        # The step starts at one of the nodes: the newest of a predictor, the older of a corrector.
        at_start = values[0] if nodes[0] == s else values[1]
        return step.first(x, at_start) + 0.5 * step.t.alpha * step.stretched * slope
    theta = np.array([(p.lam - s.lam) / h for p in nodes])
    # gain(k + 1)·k! is the integral of theta^k; its Lagrange weights solve a small Vandermonde system.
    moments = np.array([step.gain(k + 1) * math.factorial(k) for k in range(len(nodes))])
    weights = np.linalg.solve(np.vander(theta, increasing=True).T, moments)
    return step.decay * x + sum((w * v for w, v in zip(weights, values, strict=False)), np.zeros_like(x))


def corrects(points: Sequence[Point], i: int, order: int, pece: bool, end: bool) -> bool:
    """Whether the predicted state at points[i] is corrected: not at the start, nor where the last step was infinitely
    long, nor before a clean end, whose x0 hardly depends on it; PECE's evaluation there does. The last one only if
    `end` says so."""
    if i == 0 or order == 0 or not math.isfinite(points[i - 1].lam):
        return False
    if i + 1 == len(points):
        return end
    return pece or points[i + 1].sigma > 0


def nodes_at(points: Sequence[Point], i: int, order: int) -> list[Point]:
    """Up to `order` points, newest first; one with an infinite lambda cannot be interpolated."""
    return [p for k, p in enumerate(points[i::-1][:order]) if k == 0 or math.isfinite(p.lam)]


def build(
    name: str,
    request: Request,
    *,
    predictor_order: int,
    corrector_order: int,
    tau: float,
    tau_low: float,
    tau_high: float,
    s_noise: float,
    use_pece: bool,
    simple_order_2: bool,
    lower_order_final: bool,
    correct_end: bool,
    prediction_type: str,
) -> Plan:
    if tau:
        check_downward(request, name)
    if use_pece and not corrector_order:
        raise ValueError(
            f"use_pece=True evaluates the corrected state, and corrector_order=0 corrects nothing: method={name!r}, "
            "corrector_order=2, or use_pece=False"
        )
    points = request.points()
    steps = len(points) - 1
    if correct_end and points[-1].sigma == 0:
        raise ValueError(
            "correct_end=True evaluates the network at the run's end, and this one ends at sigma = 0: final='t_min', "
            "or correct_end=False"
        )
    if correct_end and (use_pece or not corrector_order):
        raise ValueError(
            "correct_end=True corrects the last step of sa_solver, and use_pece=True does so already, "
            "corrector_order=0 never: leave it out"
        )
    # Steps with noise at their end: towards a clean one the orders fall. A last correction counts as a step.
    clean = points[-1].sigma == 0
    whole = steps - clean + correct_end if lower_order_final else steps + MAX_ORDER
    # A corrector may use one value more than the predictor of the same step, as in the paper's program; towards a clean
    # end as many, as in ComfyUI.
    most = whole + 1 if clean else whole + 2
    values = (ROW["m"], *HISTORY)
    rows = Recorder()
    x = ROW["x"]
    # The last predictor's step, noise and its standard deviation: the corrector takes the step again.
    last: tuple[Reverse, Draw, float] | None = None
    for i, (s, t) in enumerate(pairwise(points)):
        check_start(name, s, prediction_type)
        base, old = ROW["u"] if i else x, Draw()
        if last is not None and corrects(points, i, corrector_order, use_pece, correct_end):
            before, old, old_std = last
            nodes = nodes_at(points, i, min(corrector_order, most - i))
            base = adams(before, x, nodes, values, simple_order_2)
            if use_pece:
                rows.add(s, s, base + old_std * ROW["za"], step=i - 1, noise=(old,))
                base = x
            else:
                base = base + old_std * ROW["zb"]
        eta = tau**2 if tau_low <= s.t <= tau_high and (t.sigma > 0 or prediction_type == "data") else 0.0
        step, draw = Reverse(prediction_type, s, t, eta), Draw(s, t)
        std = s_noise * step.parts([s])[0]
        nodes = nodes_at(points, i, max(min(predictor_order, whole - i), 1))
        predicted = adams(step, base, nodes, values, simple_order_2) + std * ROW["za"]
        kept = base if corrects(points, i + 1, corrector_order, use_pece, correct_end) else predicted
        rows.add(s, t, predicted, kept, step=i, keep=True, noise=(draw, old))
        last = step, draw, std
    if last is not None and corrects(points, steps, corrector_order, use_pece, correct_end):
        before, old, old_std = last
        nodes = nodes_at(points, steps, min(corrector_order, most - steps))
        corrected = adams(before, x, nodes, values, simple_order_2) + old_std * ROW["za"]
        rows.add(points[-1], points[-1], corrected, step=steps, noise=(old,))
    options = {
        "predictor_order": predictor_order,
        "corrector_order": corrector_order,
        "tau": tau,
        "tau_low": tau_low,
        "tau_high": tau_high if math.isfinite(tau_high) else None,
        "s_noise": s_noise,
        "use_pece": use_pece,
        "simple_order_2": simple_order_2,
        "lower_order_final": lower_order_final,
        "correct_end": correct_end,
        "prediction_type": prediction_type,
    }
    reached = max(predictor_order, corrector_order)
    return rows.plan(name, prediction_type, min(reached, 2), request, points, options)


def sa_solver(name: str, pece: bool, summary: str, aliases: tuple[str, ...]) -> Method:
    return Method(
        name=name,
        summary=summary,
        paper="Xue et al. 2023, arXiv 2309.05019",
        order=2,
        build=partial(build, name),
        space="data",
        spacing="karras",
        nfe_per_step=2 if pece else 1,
        stochastic=True,
        options={
            "predictor_order": Option(3, "model values that the predictor interpolates", choices=(1, 2, 3, 4)),
            "corrector_order": Option(
                4, "those of the corrector, the predicted point's included", choices=(0, 1, 2, 3, 4)
            ),
            "tau": Option(1.0, "noise: 1 is the reverse SDE, 0 the ODE; eta = tau²", minimum=0.0),
            "tau_low": Option(0.0, "tau is 0 in steps that begin at a lower schedule time"),
            "tau_high": Option(math.inf, "tau is 0 in steps that begin at a higher one"),
            "s_noise": S_NOISE,
            "use_pece": Option(pece, "evaluate the corrected state too (PECE)"),
            "simple_order_2": Option(False, "two model values in the published form for few steps (data prediction)"),
            "lower_order_final": Option(True, "the orders fall towards the end, to 1"),
            "correct_end": Option(False, "evaluate the network at the run's end too, to correct the last step"),
            "prediction_type": Option("data", "what the polynomials interpolate", choices=("data", "noise")),
        },
        aliases=aliases,
        good_for=("noise",),
    )


METHODS = (
    sa_solver("sa_solver", False, "Stochastic Adams solver: predictor, evaluation, corrector (PEC)", ("sasolver",)),
    sa_solver("sa_solver_pece", True, "Stochastic Adams solver that evaluates the corrected state too (PECE)", ()),
)
