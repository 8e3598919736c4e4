"""DPM-Solver-12 and DPM-Solver-23: singlestep DPM-Solver, and its ++ form, with a controlled step in lambda.

Lu et al. 2022 (arXiv 2206.00927), App. C, with the error and the step rule of Jolicoeur-Martineau et al. 2021 (arXiv
2105.14080).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from fastdiff.plan import Stage
from fastdiff.schedules import Point
from fastdiff.solvers.base import ROW, Exponential, Method, Option, Recorder, Request
from fastdiff.solvers.control import Extrapolation
from fastdiff.solvers.dpm_multistep import solver_type as solver_type_option
from fastdiff.solvers.dpm_singlestep import add_step
from fastdiff.solvers.embedded import CONTROL, DENOISE, MAX_NFE, Embedded, from_history, last_point

RATIOS = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}

LONGEST = 2.0
"""In lambda. The published control, which is for VP, bounds no step: where the first errors are nothing (large sigma),
its next step may be the whole rest of the way, which the two orders then miss alike. On Gaussian data of standard
deviations 0.1 to 1.5 the result was wrong by up to 12 times their size (EDM), and by 0.04 with this bound, at no more
evaluations."""
DOUBTFUL = 4.0
"""In lambda. The published runs that the tests hold, and those on trained networks, have shorter steps."""


@dataclasses.dataclass(frozen=True)
class Singlestep(Embedded):
    """The step of `order`, compared with the one of `order` − 1 that shares its evaluations."""

    solver_type: str = "dpmsolver"
    t_err: float = 1e-5

    def position(self, p: Point) -> float:
        return p.lam

    def point(self, w: float) -> Point:
        return self.schedule.at(float(self.schedule.inverse_lambda(w)))

    def scale(self, p: Point) -> float:
        return 1.0

    def trial(self, s: Point, t: Point) -> tuple[Stage, ...]:
        nodes = [s, *(self.point(s.lam + r * (t.lam - s.lam)) for r in RATIOS[self.order])]
        rows = Recorder()
        add_step(rows, self.space, self.solver_type, nodes, t, 0)
        first, *others = rows.stages
        whole = Exponential(self.space, s, t)
        if self.order == 2:
            lower = whole.first(ROW["x"], ROW["h1"])
        else:
            r1 = Exponential(self.space, s, nodes[1]).h / whole.h
            d1 = (ROW["h1"] - ROW["h2"]) / r1
            second = whole.midpoint if self.solver_type == "dpmsolver" else whole.taylor
            lower = second(ROW["x"], ROW["h2"], d1)
        error = np.array(others[-1].next_u) - lower
        others[-1] = dataclasses.replace(others[-1], next_x=tuple(error.tolist()))
        return (from_history(first), *others)

    def arrived(self, p: Point) -> bool:
        """The times of discrete schedules are counted in their N."""
        return p == self.stop or abs(p.t - self.stop.t) <= self.t_err * (self.schedule.num_train or 1)


def build(
    request: Request,
    *,
    order: int,
    algorithm_type: str,
    solver_type: str,
    h_init: float,
    h_max: float,
    theta: float,
    t_err: float,
    denoise_to_zero: bool,
    rtol: float,
    atol: float,
    **limits: Any,
) -> Singlestep:
    """`limits`: control and max_nfe."""
    schedule = request.schedule
    start, stop = request.ends("dpm_adaptive")
    if start.t < stop.t:
        raise ValueError(
            f"method 'dpm_adaptive' runs from noise to data: t_start={start.t:g} must lie above t_end={stop.t:g} "
            "(method='ode' runs either way)"
        )
    for name, value in (("h_init", h_init), ("h_max", h_max), ("theta", theta)):
        if value <= 0:
            raise ValueError(f"{name}={value:g}: method 'dpm_adaptive' expects a number above 0")
    stop, clean = last_point(schedule, stop, denoise_to_zero, False)
    if not (math.isfinite(start.lam) and start.lam < stop.lam):
        why = (
            "alpha = 0 (zero terminal SNR)"
            if start.alpha == 0
            else f"lambda = {start.lam:g} is not below the end's, {stop.lam:g}"
        )
        raise ValueError(
            f"method 'dpm_adaptive' steps in lambda = log(alpha/sigma) and cannot start at t={start.t:g}, where "
            f"{why}: use an earlier t_start, such as {0.999 * start.t:g}, or method='ode'"
        )
    published = schedule.kind == "vp"
    return Singlestep(
        method="dpm_adaptive",
        space="data" if algorithm_type == "dpmsolver++" else "noise",
        order=order,
        controller=Extrapolation(rtol, atol, order, safety=theta),
        schedule=schedule,
        start=start,
        stop=stop,
        clean=clean,
        options={"order": order, "algorithm_type": algorithm_type, "solver_type": solver_type},
        first_step=h_init,
        longest=h_max if published else min(h_max, LONGEST),
        doubtful=DOUBTFUL,
        solver_type=solver_type,
        t_err=t_err,
        **limits,
    )


METHODS = (
    Method(
        name="dpm_adaptive",
        summary="DPM-Solver-12 and -23, and their ++ forms, with a controlled step",
        paper="Lu et al. 2022, arXiv 2206.00927",
        order=3,
        build=build,
        space="noise",
        spacing="",
        nfe_per_step=3,
        adaptive=True,
        options={
            "order": Option(3, "2: DPM-Solver-12, 3: DPM-Solver-23", choices=(2, 3)),
            "algorithm_type": Option(
                "dpmsolver",
                "'dpmsolver': in the noise prediction; 'dpmsolver++': in the data prediction",
                choices=("dpmsolver", "dpmsolver++"),
            ),
            "solver_type": solver_type_option("dpmsolver"),
            "rtol": Option(0.05, "relative tolerance of a step's error in x", minimum=0.0),
            "atol": Option(0.0078, "absolute tolerance; 0.0078 is a 256th of [-1, 1]", minimum=0.0),
            "h_init": Option(0.05, "the first step in lambda", minimum=0.0),
            "h_max": Option(
                math.inf, "the longest step in lambda, such as 2; without it none on VP, as published, and 2 elsewhere"
            ),
            "theta": Option(0.9, "safety factor of the step", minimum=0.0, maximum=1.0),
            "t_err": Option(1e-5, "end so close to t_end, in time from 0 to 1", minimum=0.0),
            "control": CONTROL,
            "denoise_to_zero": DENOISE,
            "max_nfe": MAX_NFE,
        },
        aliases=("dpm_solver_adaptive",),
    ),
)
