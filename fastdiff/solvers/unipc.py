"""UniPC: the unified predictor-corrector of any order (Zhao et al. 2023, arXiv 2302.04867, Algorithms 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdiff.plan import MAX_HISTORY, Plan
from fastdiff.plan.phi import phi
from fastdiff.schedules import Point
from fastdiff.solvers.base import (
    HISTORY,
    ROW,
    Exponential,
    Method,
    Option,
    Recorder,
    Request,
    Row,
    finite,
    multistep_rows,
    orders_of,
)
from fastdiff.solvers.dpm_multistep import TO_ZERO


def weights(ratios: Sequence[float], hh: float, base: float) -> np.ndarray:
    """The rho of eq. 11: sum_m rho_m r_m^(i−1) = i!·hh·phi_{i+1}(hh)/B(h) for i = 1 … len(ratios). Shape (count,), of
    columns (n, 1, count)."""
    count = len(ratios)
    powers, right = np.ones((*np.shape(hh), count, count)), np.empty((*np.shape(hh), count, 1))
    for j, r in enumerate(ratios):
        for i in range(1, count):
            powers[..., i, j] = powers[..., i - 1, j] * r
    for i in range(1, count + 1):
        right[..., i - 1, 0] = math.factorial(i) * hh * phi(i + 1, hh) / base
    return np.linalg.solve(powers, right)[..., 0]


def update(
    space: str, variant: str, x: Row, nodes: Sequence[Point], values: Sequence[Row], t: Point, corrected: Row | None
) -> Row:
    """UniP-p from nodes[0] to t (p = len(nodes), newest first), or UniC-p where `corrected` is the model value at t."""
    step = Exponential(space, nodes[0], t)
    base = step.first(x, values[0])
    if not step.finite:
        return base
    h = step.h
    # A start at alpha = 0 is infinitely far in lambda: its value says nothing about the slope.
    older = [(node, v) for node, v in zip(nodes[1:], values[1:], strict=True) if finite(node.lam)]
    ratios = [(node.lam - nodes[0].lam) / h for node, _ in older]
    differences = [(v - values[0]) / r for (_, v), r in zip(older, ratios, strict=True)]
    if corrected is not None:
        ratios, differences = [*ratios, 1.0], [*differences, corrected - values[0]]
    if not ratios:
        return base
    hh = h if space == "noise" else -h
    # With the weights of eq. 11 B(h) cancels. With one difference the published forms with a B(h) take the limit of
    # the weights, 1/2, instead. That keeps the order.
    b = np.expm1(hh) if variant == "bh2" else hh
    rho = np.array([0.5]) if len(ratios) == 1 and variant != "vary_coeff" else weights(ratios, hh, b)
    scale = -(t.sigma if space == "noise" else t.alpha) * b
    return base + sum((scale * rho[..., j] * d for j, d in enumerate(differences)), np.zeros_like(base))


def build(
    request: Request,
    *,
    order: int,
    variant: str,
    corrector: bool,
    split: bool,
    lower_order_final: bool,
    denoise_to_zero: bool,
    prediction_type: str,
) -> Plan:
    if split and not corrector:
        raise ValueError(
            "split=True parts the corrector from the predictor, and corrector=False leaves none: give one of them; "
            "correct_xt goes with either"
        )
    space = prediction_type
    points = request.points()
    steps = len(points) - 1
    orders = orders_of(order, steps, lower_order_final)
    # Where the evaluation of step i finds x: at the end of the corrected step before.
    bases = np.tile(ROW["x"], (steps, 1))
    if corrector:

        def correct(at: np.ndarray, nodes: Sequence[Point], t: Point) -> Row:
            return update(space, variant, ROW["x"], nodes, HISTORY[: len(nodes)], t, ROW["m"])

        bases[1:] = multistep_rows(points[:-1], orders[:-1], correct)
    # In stages of its own, the evaluation's value is h1 from the corrector on, which the first step has none of.
    values = HISTORY if split else (ROW["m"], *HISTORY)

    def predict(at: np.ndarray, nodes: Sequence[Point], t: Point) -> Row:
        return update(space, variant, ROW["x"] if split else bases[at], nodes, values[: len(nodes)], t, None)

    predicted = multistep_rows(points, orders, predict)
    if split:
        predicted[0] = update(space, variant, ROW["x"], points[:1], [ROW["m"]], points[1], None)
    rows = Recorder()
    for i in range(steps):
        apart = split and i > 0
        if apart:
            # The end of the last step.
            rows.add(points[i], points[i], bases[i], step=i - 1, keep=True)
        # Without a further evaluation there is nothing left to correct: x' and u' are one.
        single = not corrector or i == steps - 1
        keeps = None if single else (ROW["x"] if split else bases[i])
        rows.add(points[i], points[i + 1], predicted[i], keeps, step=i, keep=not apart, evaluate=not apart)
    options = {
        "order": order,
        "variant": variant,
        "corrector": corrector,
        "split": split,
        "lower_order_final": lower_order_final,
        "denoise_to_zero": denoise_to_zero,
        "prediction_type": prediction_type,
    }
    # The corrector's extra order is lost where the last steps are of lower order.
    reached = order + 1 if corrector and not lower_order_final else order
    return rows.plan("unipc", space, reached, request, points, options, denoise_to_zero=denoise_to_zero)


METHODS = (
    Method(
        name="unipc",
        summary="UniPC: predictor of orders 1 to 6 and a corrector that costs no evaluation",
        paper="Zhao et al. 2023, arXiv 2302.04867",
        order=3,
        build=build,
        space="data",
        spacing="time_uniform",
        options={
            "order": Option(
                3,
                "order of the predictor; the corrector adds one. Keeps that many earlier model values, without the "
                "corrector one less",
                choices=tuple(range(1, MAX_HISTORY + 1)),
            ),
            "variant": Option(
                "bh2",
                "B(h): 'bh1' is h, 'bh2' is e^h - 1; 'vary_coeff' has none: the exact weights with one difference too",
                choices=("bh1", "bh2", "vary_coeff"),
            ),
            "corrector": Option(True, "correct every step but the last with the value that the next step needs anyway"),
            "split": Option(
                False, "corrector and next predictor in stages of their own, for correct_xt; one more pass a step"
            ),
            "lower_order_final": Option(True, "lower the order of the last steps, at any number of steps"),
            "denoise_to_zero": TO_ZERO,
            "prediction_type": Option("data", "space of the solver", choices=("data", "noise")),
        },
        aliases=("uni_pc", "unipc_bh2", "unipcmultistep", "uni_pc_bh2"),
        good_for=("few", "flow", "video"),
    ),
)
