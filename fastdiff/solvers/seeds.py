"""Singlestep solvers of the reverse SDE: SEEDS of orders 2 and 3, which are also the singlestep SDE-DPM-Solver(++), and
DPM-Solver++ (SDE).

Gonzalez et al. 2023 (arXiv 2305.14267), Algorithms 1 to 4, App. D; Lu et al. 2022b (arXiv 2211.01095), Section 5. All
the noise of a step is one path: that of an inner node is a part of that of the whole step, with the weights of the
exact solution of the linear part (`solvers.reverse`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from fastdiff.plan import Plan
from fastdiff.schedules import Point
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.reverse import ETA, S_NOISE, Ancestral, Reverse, at_lambda, check_start, noisy, path

Step = Callable[[Recorder, list[Point], Point, float, float, str, int], None]


def parts(step: Reverse, nodes: Sequence[Point], s_noise: float) -> list[float]:
    return [s_noise * std for std in step.parts(nodes)]


def two(space: str) -> Step:
    """Two evaluations, at s and at an inner node."""

    def add(rows: Recorder, nodes: list[Point], t: Point, eta: float, s_noise: float, form: str, i: int) -> None:
        s, mid = nodes
        whole, half = Reverse(space, s, t, eta), Reverse(space, s, mid, eta)
        x, m, m0 = ROW["x"], ROW["m"], ROW["h1"]
        draws = path(nodes, t)
        first = noisy(half.first(x, m), parts(half, [s], s_noise))
        rows.add(s, mid, first, x, step=i, keep=True, noise=draws)
        d1 = (m - m0) * (whole.h / half.h)
        end = whole.midpoint(x, m0, d1) if form == "phi_1" else whole.taylor(x, m0, d1)
        rows.add(mid, t, noisy(end, parts(whole, nodes, s_noise)), step=i, noise=draws)

    return add


def three(space: str) -> Step:
    """Three evaluations, at s and at two inner nodes."""

    def add(rows: Recorder, nodes: list[Point], t: Point, eta: float, s_noise: float, form: str, i: int) -> None:
        s, s1, s2 = nodes
        whole, first, second = (Reverse(space, s, to, eta) for to in (t, s1, s2))
        x, m = ROW["x"], ROW["m"]
        draws = path(nodes, t)
        row = noisy(first.first(x, m), parts(first, [s], s_noise))
        rows.add(s, s1, row, x, step=i, keep=True, noise=draws)
        d1 = (m - ROW["h1"]) * (second.h / first.h)
        row = noisy(second.taylor(x, ROW["h1"], d1), parts(second, [s, s1], s_noise))
        rows.add(s1, s2, row, x, step=i, keep=True, noise=draws)
        # At the third evaluation the history is h1 = m(s1), h2 = m(s).
        m0 = ROW["h2"]
        d1 = (m - m0) * (whole.h / second.h)
        rows.add(s2, t, noisy(whole.taylor(x, m0, d1), parts(whole, nodes, s_noise)), step=i, noise=draws)

    return add


def build(
    name: str,
    space: str,
    add: Step,
    request: Request,
    *,
    eta: float,
    s_noise: float,
    r: float = math.nan,
    r_1: float = math.nan,
    r_2: float = math.nan,
    solver_type: str = "",
) -> Plan:
    """Steps whose inner nodes lie at these shares of the step in lambda."""
    if eta:
        check_downward(request, name)
    given = {key: v for key, v in (("r", r), ("r_1", r_1), ("r_2", r_2)) if not math.isnan(v)}
    shares = list(given.values())
    if not (0.0 < shares[0] and sorted(set(shares)) == shares and shares[-1] <= 1.0):
        asked = ", ".join(f"{key}={value:g}" for key, value in given.items())
        raise ValueError(
            f"{asked}: method {name!r} expects nodes inside the step, in order: r=0.5, or r_1=1/3, r_2=2/3"
        )
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start(name, s, space)
        whole = Reverse(space, s, t, 0.0 if space == "noise" and t.sigma == 0 else eta)
        if whole.finite:
            nodes = [
                s,
                *(t if share == 1.0 else at_lambda(request.schedule, s.lam + share * whole.h) for share in shares),
            ]
            add(rows, nodes, t, eta, s_noise, solver_type, i)
        else:
            row = noisy(whole.first(ROW["x"], ROW["m"]), parts(whole, [s], s_noise))
            rows.add(s, t, row, step=i, noise=path([s], t))
    options: dict[str, object] = {"eta": eta, "s_noise": s_noise, **given}
    if solver_type:
        options["solver_type"] = solver_type
    # Without noise the third evaluation raises the order.
    reached = 2 if eta or len(shares) == 1 else 3
    return rows.plan(name, space, reached, request, points, options)


def sde(rows: Recorder, nodes: list[Point], t: Point, eta: float, s_noise: float, form: str, i: int) -> None:
    """k-diffusion's form: both evaluations end with an ancestral step from s. The noise of the whole step holds that of
    the inner node, as the increments of one path over alpha²/sigma² do."""
    s, mid = nodes
    whole, half = Ancestral(s, t, eta, "variance"), Ancestral(s, mid, eta, "variance")
    x, m, draws = ROW["x"], ROW["m"], path(nodes, t)
    rows.add(s, mid, noisy(half.data(x, m), [s_noise * half.std]), x, step=i, keep=True, noise=draws)
    share = (mid.lam - s.lam) / (t.lam - s.lam)
    mean = (1.0 - 0.5 / share) * ROW["h1"] + 0.5 / share * m
    early = math.exp(2.0 * (mid.lam - t.lam)) * math.expm1(2.0 * (s.lam - mid.lam)) / math.expm1(2.0 * (s.lam - t.lam))
    stds = [s_noise * whole.std * math.sqrt(early), s_noise * whole.std * math.sqrt(1.0 - early)]
    rows.add(mid, t, noisy(whole.data(x, mean), stds), step=i, noise=draws)


PAPER = "Gonzalez et al. 2023, arXiv 2305.14267"
NODE = Option(0.5, "where the inner evaluation lies, as a share of the step in lambda", minimum=0.0, maximum=1.0)
NODES = {
    "r_1": Option(1.0 / 3.0, "where the first inner evaluation lies in the step, in lambda", minimum=0.0, maximum=1.0),
    "r_2": Option(2.0 / 3.0, "where the second lies", minimum=0.0, maximum=1.0),
}
FORM = "'phi_1': half of the first-order gain (midpoint); 'phi_2': the Taylor term (Heun)"


def second_order(name: str, space: str, form: str, node: float, summary: str, aliases: tuple[str, ...]) -> Method:
    options = {
        "eta": ETA,
        "s_noise": S_NOISE,
        "r": Option(node, NODE.doc, minimum=0.0, maximum=1.0),
        "solver_type": Option(form, FORM, choices=("phi_1", "phi_2")),
    }
    return Method(
        name=name,
        summary=summary,
        paper=PAPER,
        order=2,
        build=partial(build, name, space, two(space)),
        space=space,
        spacing="karras",
        nfe_per_step=2,
        stochastic=True,
        options=options,
        aliases=aliases,
        good_for=("noise",) if space == "data" else (),
    )


def third_order(name: str, space: str, summary: str, aliases: tuple[str, ...]) -> Method:
    return Method(
        name=name,
        summary=summary,
        paper=PAPER,
        order=2,
        build=partial(build, name, space, three(space)),
        space=space,
        spacing="karras",
        nfe_per_step=3,
        stochastic=True,
        options={"eta": ETA, "s_noise": S_NOISE, **NODES},
        aliases=aliases,
        good_for=("noise",) if space == "data" else (),
    )


METHODS = (
    second_order(
        "seeds_2",
        "data",
        "phi_1",
        0.5,
        "SEEDS of two evaluations a step; the singlestep SDE-DPM-Solver++(2S)",
        ("dpmpp2s_sde", "dpmpp_2s_sde", "dpm++2s_sde"),
    ),
    third_order(
        "seeds_3",
        "data",
        "SEEDS of three evaluations a step; the singlestep SDE-DPM-Solver++(3S)",
        ("dpmpp3s_sde", "dpmpp_3s_sde", "dpm++3s_sde"),
    ),
    second_order(
        "exp_heun_2_x0_sde",
        "data",
        "phi_2",
        1.0,
        "Heun's exponential method on the reverse SDE, on x0: SEEDS with its second evaluation at the step's end",
        ("exp_heun_x0_sde",),
    ),
    second_order(
        "dpm2s_sde",
        "noise",
        "phi_1",
        0.5,
        "SEEDS of two evaluations a step on eps; the singlestep SDE-DPM-Solver-2",
        ("seeds_2_noise",),
    ),
    third_order(
        "dpm3s_sde",
        "noise",
        "SEEDS of three evaluations a step on eps; the singlestep SDE-DPM-Solver-3",
        ("seeds_3_noise",),
    ),
    Method(
        name="dpmpp_sde",
        summary="DPM-Solver++ (SDE) of k-diffusion: two evaluations a step, with ancestral noise",
        paper="Lu et al. 2022b, arXiv 2211.01095",
        order=2,
        build=partial(build, "dpmpp_sde", "data", sde),
        space="data",
        spacing="karras",
        nfe_per_step=2,
        stochastic=True,
        options={"eta": ETA, "s_noise": S_NOISE, "r": NODE},
        aliases=("dpm++_sde", "dpmsolversde"),
        good_for=("noise",),
    ),
)
