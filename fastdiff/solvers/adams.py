"""Linear multistep methods on d(x/alpha)/d(sigma/alpha) = eps: Adams-Bashforth with true and with fixed weights.

lms: the weights of the actual steps (k-diffusion; DEIS calls it rho-AB). ipndm: the weights of equal steps, without a
Runge-Kutta start (Liu et al. 2022, arXiv 2202.09778, eq. 12; Zhang and Chen 2022, arXiv 2204.13902, App. H).
gradient_estimation: two values with a free weight (Permenter and Yuan 2023, arXiv 2306.04848, Algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.plan import Plan
from fastdiff.solvers.base import HISTORY, ROW, Method, Option, Recorder, Request, Row
from fastdiff.solvers.level import levels, moved

EQUAL = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth weights of orders 1 to 4 for equal steps, newest value first."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)
"""Exact for polynomials of degree 7."""
VALUES = (ROW["m"], *HISTORY)


def lagrange(nodes: Sequence[float], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Lagrange polynomials of the nodes: (len(nodes), ...)."""
    made = np.ones((len(nodes), *at.shape))
    for j, own in enumerate(nodes):
        for k, other in enumerate(nodes):
            if k != j:
                made[j] *= (at - other) / (own - other)
    return made


def adams_bashforth(nodes: Sequence[float], end: float) -> NDArray[np.float64]:
    """The integrals of the Lagrange polynomials of the nodes from nodes[0] to `end`. Up to 8 nodes."""
    half = 0.5 * (end - nodes[0])
    return half * (lagrange(nodes, nodes[0] + half * (1.0 + NODES)) @ WEIGHTS)


def combined(weights: Sequence[float] | NDArray[np.float64]) -> Row:
    """The model values, newest first, times their weights."""
    return sum((w * v for w, v in zip(weights, VALUES, strict=False)), np.zeros_like(ROW["x"]))


def multistep(
    name: str, request: Request, order: int, options: dict[str, Any], change: Callable[[list[float], int], Row]
) -> Plan:
    """One evaluation a step; `change(levels, i)` is what step i adds to x/alpha."""
    points = request.points()
    r = levels(points, name)
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        rows.add(s, t, moved(ROW["x"], s, t, change(r, i)), step=i, keep=True)
    return rows.plan(name, "noise", order, request, points, options)


def build_lms(request: Request, *, order: int, final_euler: bool) -> Plan:
    def change(r: list[float], i: int) -> Row:
        used = 1 if final_euler and r[i + 1] == 0 else order
        return combined(adams_bashforth(r[i::-1][:used], r[i + 1]))

    return multistep("lms", request, order, {"order": order, "final_euler": final_euler}, change)


def build_ipndm(request: Request, *, max_order: int, final_euler: bool) -> Plan:
    def change(r: list[float], i: int) -> Row:
        used = 1 if final_euler and r[i + 1] == 0 else min(max_order, i + 1)
        return (r[i + 1] - r[i]) * combined(EQUAL[used - 1])

    # Where the steps are not equal in sigma/alpha, no more than the second order remains.
    options = {"max_order": max_order, "final_euler": final_euler}
    return multistep("ipndm", request, min(max_order, 2), options, change)


def build_gradient(request: Request, *, gamma: float) -> Plan:
    def change(r: list[float], i: int) -> Row:
        weight = gamma if i > 0 and r[i + 1] > 0 else 1.0
        return (r[i + 1] - r[i]) * combined((weight, 1.0 - weight)[: min(i + 1, 2)])

    # 1.5 is the weight of Adams and Bashforth.
    return multistep("gradient_estimation", request, 2 if gamma == 1.5 else 1, {"gamma": gamma}, change)


FINAL = Option(
    False, "a last step to sigma = 0 is Euler's, as in ComfyUI; False: extrapolated, as in k-diffusion and diffusers"
)

METHODS = (
    Method(
        name="lms",
        summary="Adams-Bashforth of orders 1 to 4 in sigma/alpha with the weights of the actual steps",
        paper="Zhang and Chen 2022, arXiv 2204.13902 (rho-AB)",
        order=4,
        build=build_lms,
        space="noise",
        spacing="logsnr",
        options={
            "order": Option(4, "order; the first steps have fewer values", choices=(1, 2, 3, 4)),
            "final_euler": FINAL,
        },
        # The weights of ipndm_v are meant to be these; as published a parenthesis is missing (docs/parity.md).
        aliases=("lmsdiscrete", "ipndm_v"),
        good_for=("few",),
    ),
    Method(
        name="ipndm",
        summary="Adams-Bashforth in sigma/alpha with the weights of equal steps, orders 1 to 4",
        paper="Liu et al. 2022, arXiv 2202.09778; Zhang and Chen 2022, arXiv 2204.13902",
        order=2,
        build=build_ipndm,
        space="noise",
        spacing="time_quadratic",
        options={
            "max_order": Option(4, "values combined; the first steps have fewer", choices=(1, 2, 3, 4)),
            "final_euler": FINAL,
        },
        good_for=("few",),
    ),
    Method(
        name="gradient_estimation",
        summary="Euler with the slope extrapolated from two values: gamma·new + (1 - gamma)·old",
        paper="Permenter and Yuan 2023, arXiv 2306.04848",
        order=1,
        build=build_gradient,
        space="noise",
        spacing="time_quadratic",
        options={
            "gamma": Option(
                2.0, "weight of the newest value; 1: Euler; 1.5: Adams-Bashforth of equal steps", minimum=0.0
            )
        },
        aliases=("gradientestimation",),
    ),
)
