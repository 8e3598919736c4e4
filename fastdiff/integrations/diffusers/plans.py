"""The plan of each scheduler class: from its config's keys to a method of ours with its options, or to rows.

Rows are made here where diffusers lowers the order of single steps by rules of its own (DPM-Solver and UniPC).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from fastdiff import solvers
from fastdiff.integrations.diffusers.spacing import Grid, merged
from fastdiff.plan import IDENTITY, Plan, Stage
from fastdiff.plan.phi import phi
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.adams import EQUAL
from fastdiff.solvers.adams import combined as combined_values
from fastdiff.solvers.base import HISTORY, ROW, Exponential, Recorder, Request, Row, orders_of
from fastdiff.solvers.unipc import update

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """What `step` is given besides tensors, which the plan depends on."""

    eta: float | None = None
    use_clipped_model_output: bool = False
    s_noise: float = 1.0
    order: int | None = None


Build = Callable[[Config, Grid, int, Options], Plan]
"""(config, grid, the step that the run begins with, options) -> the plan of the rest of the run."""


@dataclass(frozen=True)
class Named:
    """One of our methods, on the grid's times."""

    method: str
    options: Callable[[Config, Options, Grid], dict[str, Any]] | None = None

    def __call__(self, config: Config, grid: Grid, begin: int, asked: Options) -> Plan:
        given = {} if self.options is None else self.options(config, asked, grid)
        times = merged(grid.times[begin:])
        if len(times) < 2:
            return still(grid, grid.times[begin:])
        plan = solvers.plan(self.method, schedule=grid.schedule, spacing=times, **given)
        return whole(plan, grid.times[begin:])


def rowwise(fill: Callable[[Rows, list[Point], Config, int], str]) -> Build:
    """Rows that `fill` writes for the points of the grid, equal neighbours included; it returns their space, and takes
    the number of steps that the whole run has."""

    def build(config: Config, grid: Grid, begin: int, asked: Options) -> Plan:
        times = merged(grid.times[begin:])
        if len(times) < 2:
            return still(grid, grid.times[begin:])
        rows = Rows()
        space = fill(rows, [grid.schedule.at(t) for t in grid.times[begin:]], config, len(grid.network))
        points = [grid.schedule.at(t) for t in times]
        return rows.plan("diffusers", space, 1, Request(grid.schedule, spacing=times), points, {})

    return build


class Rows(Recorder):
    """A recorder of steps that may have length 0: these share the number of the step after, since two steps of a plan
    may not begin at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.last = -1, math.nan

    def put(self, at: Point, to: Point, next_u: Row, next_x: Row | None = None, keep: bool = True) -> None:
        """The stage of one step."""
        if at.t != self.last:
            self.step, self.last = self.step + 1, at.t
        self.add(at, to, next_u, next_x, step=self.step, keep=keep)


def distinct(nodes: Sequence[Point], values: Sequence[Row], count: int) -> tuple[list[Point], list[Row]]:
    """The newest `count` nodes with their values, without those at the level of a newer one, and those at alpha = 0,
    which are infinitely far: no divided difference exists with them."""
    pairs = list(zip(nodes, values, strict=False))[:count]
    kept = [
        (n, v) for i, (n, v) in enumerate(pairs) if i == 0 or (math.isfinite(n.lam) and n.lam != pairs[i - 1][0].lam)
    ]
    return [n for n, _ in kept], [v for _, v in kept]


def whole(plan: Plan, times: Sequence[float]) -> Plan:
    """The plan with a stage that changes nothing for each step of length 0, which divided differences cannot have."""
    repeated = [i for i, (a, b) in enumerate(pairwise(times)) if a == b]
    if not repeated:
        return plan
    if repeated == [len(times) - 2]:
        # The last step alone, after which nothing is left to be done.
        last = replace(_still(plan, (), plan.stages), step=plan.stages[-1].step + 1)
        return replace(plan, stages=(*plan.stages, last))
    if plan.nfe != plan.steps:
        raise ValueError(
            f"sigmas {repeated[0]} and {repeated[0] + 1} of the run are equal, and its method takes several "
            "evaluations a step: leave one of them out"
        )
    stages, made = list(plan.stages), []
    for i, (a, b) in enumerate(pairwise(times)):
        if a != b:
            made.append(replace(stages.pop(0), step=i))
        else:
            # The step number of what follows: two steps of a plan may not begin at one time.
            made.append(replace(_still(plan, stages, made), step=i + 1))
    return replace(plan, stages=tuple(made))


def _still(plan: Plan, ahead: Sequence[Stage], behind: Sequence[Stage]) -> Stage:
    """A stage that evaluates the network, and leaves x and u as they are."""
    if ahead:
        at = ahead[0]
        p = Point(at.t, at.model_time, at.alpha, at.sigma, 0.0)
    else:
        p = NoiseSchedule.from_dict(plan.schedule).at(behind[-1].t_next)
    u = tuple(ROW["u"].tolist()) if ahead else IDENTITY
    return Stage(p.t, p.model_time, p.alpha, p.sigma, u, IDENTITY, p.t)


def still(grid: Grid, times: Sequence[float]) -> Plan:
    """The plan of steps of length 0 alone, one for each of the times but the last."""
    p = grid.schedule.at(times[0])
    beyond = float(np.nextafter(p.t, -math.inf))
    row = Stage(p.t, p.model_time, p.alpha, p.sigma, IDENTITY, IDENTITY, p.t)
    stages = [row] * (len(times) - 1)
    # A plan's times differ, and its last stage leads to the last of them.
    stages[-1] = replace(row, t_next=beyond)
    return Plan("diffusers", "data", 1, (p.t, beyond), tuple(stages))


ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def check_algorithm(config: Config) -> tuple[str, str]:
    """`algorithm_type` and `solver_type`, with the names of other classes that diffusers takes for its own."""
    kind = {"deis": "dpmsolver++"}.get(config["algorithm_type"], config["algorithm_type"])
    if kind not in ALGORITHMS:
        raise ValueError(f"algorithm_type={kind!r}: expected one of {', '.join(ALGORITHMS)}")
    form = config["solver_type"]
    if form in ("logrho", "bh1", "bh2"):
        form = "midpoint"
    if form not in ("midpoint", "heun"):
        raise ValueError(f"solver_type={form!r}: expected 'midpoint' or 'heun'")
    return kind, form


def space_of(algorithm: str) -> str:
    return "data" if algorithm.endswith("++") else "noise"


def advance(
    algorithm: str, form: str, s: Point, t: Point, x: Row, nodes: Sequence[Point], values: Sequence[Row]
) -> Row:
    """A multistep update from s = nodes[0] to t; nodes and values newest first, their number is the order."""
    if s.lam == t.lam:
        return x
    return combined(algorithm, form, s, t, x, differences(nodes, values, t))


def combined(algorithm: str, form: str, s: Point, t: Point, x: Row, d: Sequence[Row]) -> Row:
    """DPM-Solver's update from s to t by d[0], the model value, and d[k], differences that stand for h^k times its k-th
    derivative (divided ones for k = 2 in multistep, as published).

    Lu et al. 2022b (arXiv 2211.01095), eqs. 4.1 and 5.2 and App. B, with and without noise.
    """
    step = Exponential(space_of(algorithm), s, t)
    if not algorithm.startswith("sde"):
        if len(d) == 1 or not step.finite:
            return step.first(x, d[0])
        if len(d) == 2 and form == "midpoint":
            return step.midpoint(x, d[0], d[1])
        return step.taylor(x, *d)
    h, noise = step.h, ROW["za"]
    if not step.finite:
        if t.sigma == 0:
            return t.alpha * d[0]
        return t.alpha * d[0] + t.sigma * noise
    if algorithm == "sde-dpmsolver++":
        y = 2.0 * h
        row = t.sigma / s.sigma * math.exp(-h) * x - t.alpha * math.expm1(-y) * d[0]
        if len(d) == 2 and form == "midpoint":
            row = row - 0.5 * t.alpha * math.expm1(-y) * d[1]
        elif len(d) > 1:
            row = row + t.alpha * y * float(phi(2, -y)) * d[1]
        if len(d) > 2:
            # Here diffusers has the sign of phi_2 turned, and a term that stays as h goes to 0.
            row = row + t.alpha * y * float(phi(3, -y)) * d[2]
        return np.asarray(row + t.sigma * math.sqrt(-math.expm1(-2.0 * h)) * noise)
    row = t.alpha / s.alpha * x - 2.0 * t.sigma * math.expm1(h) * d[0]
    if len(d) > 1:
        slope = math.expm1(h) if form == "midpoint" else 2.0 * h * float(phi(2, h))
        row = row - t.sigma * slope * d[1]
    return np.asarray(row + t.sigma * math.sqrt(math.expm1(2.0 * h)) * noise)


def differences(nodes: Sequence[Point], values: Sequence[Row], t: Point) -> list[Row]:
    """The model value at nodes[0] and its differences on the way to t, nodes and values newest first."""
    if len(nodes) == 1:
        return [values[0]]
    h = t.lam - nodes[0].lam
    r0 = (nodes[0].lam - nodes[1].lam) / h
    d1_0 = (values[0] - values[1]) / r0
    if len(nodes) == 2:
        return [values[0], d1_0]
    r1 = (nodes[1].lam - nodes[2].lam) / h
    d1_1 = (values[1] - values[2]) / r1
    return [values[0], d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1), (d1_0 - d1_1) / (r0 + r1)]


def dpm_multistep(rows: Rows, points: list[Point], config: Config, total: int) -> str:
    """DPM-Solver and DPM-Solver++, multistep: diffusers lowers the last orders with less than 15 steps."""
    algorithm, form = check_algorithm(config)
    order, steps = int(config["solver_order"]), len(points) - 1
    if algorithm.startswith("sde") and points[-1].lam < points[0].lam:
        raise ValueError(f"algorithm_type={algorithm!r} of DPMSolverMultistepInverseScheduler: noise has no inverse")
    if order not in (1, 2, 3) or (order == 3 and algorithm == "sde-dpmsolver"):
        raise ValueError(f"solver_order={order} of algorithm_type={algorithm!r}: expected 1 or 2, or 3 of the others")
    lower = config["lower_order_final"] and total < 15
    last_of_first = config["euler_at_final"] or lower or config.get("final_sigmas_type") == "zero"
    values = (ROW["m"], *HISTORY)
    for i in range(steps):
        n = min(order, i + 1)
        if i == steps - 1 and last_of_first:
            n = 1
        elif i == steps - 2 and lower:
            n = min(n, 2)
        t = points[i + 1]
        nodes, known = distinct(points[i::-1], values, n if math.isfinite(t.lam) else 1)
        rows.put(points[i], t, advance(algorithm, form, points[i], t, ROW["x"], nodes, known))
    return space_of(algorithm)


def video(rows: Rows, points: list[Point], config: Config, total: int) -> str:
    """CogVideoXDPM: SDE-DPM-Solver++(2M), its last step of first order."""
    own = {"algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint", "solver_order": 2}
    last = {"lower_order_final": False, "euler_at_final": True}
    return dpm_multistep(rows, points, {**config, **own, **last}, total)


def cosine(rows: Rows, points: list[Point], config: Config, total: int) -> str:
    """CosineDPMSolverMultistep: SDE-DPM-Solver++ of orders 1 and 2."""
    if config["solver_order"] not in (1, 2):
        raise ValueError(f"solver_order={config['solver_order']} of CosineDPMSolverMultistepScheduler: expected 1 or 2")
    return dpm_multistep(rows, points, {**config, "algorithm_type": "sde-dpmsolver++"}, total)


def ipndm(rows: Rows, points: list[Point], config: Config, total: int) -> str:
    """IPNDM: Adams-Bashforth weights of equal steps (Liu et al. 2022, arXiv 2202.09778, eq. 12)."""
    for i, (s, t) in enumerate(pairwise(points)):
        eps = combined_values(EQUAL[min(i, 3)])
        # At alpha = 0, where x is all noise, diffusers takes x0 = 0: it divides 0 by 1e-8.
        x0 = (ROW["x"] - s.sigma * eps) / s.alpha if s.alpha > 0 else np.zeros_like(eps)
        rows.put(s, t, t.alpha * x0 + t.sigma * eps)
    return "noise"


def orders(config: Config, steps: int) -> list[int]:
    """Which order each evaluation of DPM-Solver's singlestep form ends, as diffusers splits them: a group of k is
    1, 2, ..., k."""
    order = int(config["solver_order"])
    if order not in (1, 2, 3):
        raise ValueError(f"solver_order={order}: expected 1, 2 or 3")
    zero = config["final_sigmas_type"] == "zero"
    # It sets lower_order_final itself where the steps do not go round, and where the run ends at 0.
    lower = config["lower_order_final"] or steps % order != 0 or zero
    group = list(range(1, order + 1))
    if order == 1:
        return [1] * steps
    full, rest = divmod(steps, order)
    if not lower:
        return group * full
    if rest:
        return group * full + group[:rest]
    return group * (full - 1) + ([1, 1] if order == 2 else [1, 2, 1])


def dpm_singlestep(rows: Rows, points: list[Point], config: Config, total: int) -> str:
    """DPM-Solver and DPM-Solver++, singlestep: each group of evaluations starts from the same state."""
    algorithm, form = check_algorithm(config)
    if algorithm == "sde-dpmsolver":
        raise ValueError("algorithm_type='sde-dpmsolver' is none of DPMSolverSinglestepScheduler's")
    steps = len(points) - 1
    planned = orders(config, total)[total - steps :]
    if config["final_sigmas_type"] == "zero":
        planned[-1] = 1
    x, m = ROW["x"], ROW["m"]
    for i in range(steps):
        n = min(planned[i], i + 1)
        begun = i - n + 1
        s, t = points[begun], points[i + 1]
        if t.lam == points[i].lam:
            if n > 1:
                raise ValueError(
                    f"sigmas {i} and {i + 1} of the run are equal within a step of order {n}: leave one out"
                )
            rows.put(points[i], t, x)
            continue
        if n > 1 and not (math.isfinite(s.lam) and math.isfinite(t.lam)):
            raise ValueError("a step of order 2 or 3 cannot start at alpha = 0: use DPMSolverMultistepScheduler")
        h = t.lam - s.lam
        if n == 1:
            d = [m]
        elif n == 2:
            r = (points[i].lam - s.lam) / h
            d = [ROW["h1"], (m - ROW["h1"]) / r]
        else:
            r0, r1 = (points[i].lam - s.lam) / h, (points[i - 1].lam - s.lam) / h
            d1_0, d1_1 = (ROW["h1"] - ROW["h2"]) / r1, (m - ROW["h2"]) / r0
            d = [ROW["h2"], d1_1]
            if form == "heun":
                d = [ROW["h2"], (r0 * d1_0 - r1 * d1_1) / (r0 - r1), 2.0 * (d1_1 - d1_0) / (r0 - r1)]
        # With three nodes, "midpoint" is the Taylor form with one difference.
        row = combined(algorithm, "heun" if n == 3 else form, s, t, x, d)
        more = i + 1 < steps and min(planned[i + 1], i + 2) > n
        rows.put(points[i], t, row, x if more else None)
    return space_of(algorithm)


def unipc(rows: Rows, points: list[Point], config: Config, total: int) -> str:
    """UniPC with its own warm-up and its list of steps without corrector."""
    order, steps = int(config["solver_order"]), len(points) - 1
    form = "bh2" if config["solver_type"] in ("midpoint", "heun", "logrho") else config["solver_type"]
    if form not in ("bh1", "bh2"):
        raise ValueError(f"solver_type={form!r}: expected 'bh1' or 'bh2'")
    if not 1 <= order <= len(HISTORY):
        raise ValueError(f"solver_order={order}: expected 1 to {len(HISTORY)}")
    if config["solver_p"] is not None:
        raise ValueError("solver_p: another scheduler as predictor is not here; leave it None")
    space = "data" if config["predict_x0"] else "noise"
    without = {int(i) - (total - steps) for i in config["disable_corrector"] or ()}
    orders = orders_of(order, steps, config["lower_order_final"])

    def step(x: Row, i: int, values: Sequence[Row], corrected: Row | None) -> Row:
        if points[i].lam == points[i + 1].lam:
            return x
        nodes, known = distinct(points[i::-1], values, orders[i])
        return update(space, form, x, nodes, known, points[i + 1], corrected)

    for i in range(steps):
        base = ROW["x"]
        if i > 0 and i - 1 in without:
            base = ROW["u"]
        elif i > 0:
            base = step(base, i - 1, HISTORY, ROW["m"])
        predicted = step(base, i, (ROW["m"], *HISTORY), None)
        rows.put(points[i], points[i + 1], predicted, None if i == steps - 1 else base)
    return space


def ddim_inverse(rows: Rows, points: list[Point], config: Config, total: int) -> str:
    """DDIM's map towards noise (Song et al. 2021, arXiv 2010.02502, section 4.3)."""
    if config["clip_sample"]:
        raise ValueError(
            "clip_sample=True of DDIMInverseScheduler: a step that clips cannot be gone back; give clip_sample=False"
        )
    if config["prediction_type"] == "sample" and points[0].sigma == 0:
        raise ValueError(
            "prediction_type='sample' of DDIMInverseScheduler: at the clean start x0 says nothing of the noise; give "
            "set_alpha_to_one=False"
        )
    for s, t in pairwise(points):
        rows.put(s, t, Exponential("noise", s, t).first(ROW["x"], ROW["m"]), keep=False)
    return "noise"


def renoised(rows: Rows, points: list[Point], config: Config, total: int) -> str:
    """The predicted x0 with fresh noise of the next level: FlowMatchEuler's stochastic_sampling, FlowMatchLCM."""
    for s, t in pairwise(points):
        rows.put(s, t, t.alpha * ROW["m"] + t.sigma * ROW["za"], keep=False)
    return "data"


def pndm(config: Config, grid: Grid, begin: int, asked: Options) -> Plan:
    """PNDM, whose list of times has one more than steps: its first step is corrected at the second time.

    A run that begins in the midst has no such step: it begins with lower orders at its own time; at the second entry of
    the list it stays for one evaluation.
    """
    skip = bool(config["skip_prk_steps"])
    if begin == 0:
        return Named("pndm", lambda *_: {"skip_prk_steps": skip})(config, grid, 0, asked)
    if not skip:
        raise ValueError("skip_prk_steps=False: a run of PNDM's Runge-Kutta start begins at its first time; give True")
    rest = grid.times[begin - 1 :] if begin > 1 else (grid.times[1], *grid.times[1:])
    return Named("ipndm")(config, replace(grid, times=rest), 0, asked)
