"""The probability flow ODE by Dormand and Prince's 5(4) pair with a controlled step, in either direction.

Dormand and Prince 1980, Table 2 (RK5(4)7M); step control and first step as in Hairer, Norsett and Wanner, Solving
Ordinary Differential Equations I, II.4. The ODE is Song et al. 2021 (arXiv 2011.13456, eq. 13), written for x/alpha
over sigma/alpha, where its drift is the noise prediction, without a stiff linear part (Karras et al. 2022, arXiv
2206.00364, eq. 4; Song et al. 2021, arXiv 2010.02502, eq. 14); or, by default, for x/(alpha + sigma) over sigma/(alpha
+ sigma), where it is eps − x0: regular at alpha = 0 too, and its steps need not shrink with sigma.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fastdiff.plan import Stage
from fastdiff.schedule_base import Point
from fastdiff.solvers.base import HISTORY, ROW, Method, Option, Row
from fastdiff.solvers.embedded import CONTROL, DENOISE, MAX_NFE, Embedded, Request, last_point, stage

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
LOWER = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
ERROR = tuple(b - e for b, e in zip((*WEIGHTS[-1], 0.0), LOWER, strict=True))
SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 10.0


@dataclasses.dataclass(frozen=True)
class DormandPrince(Embedded):
    """RK5(4)7M in the variables of `space`: "noise" (x/alpha over sigma/alpha) or "velocity"."""

    def position(self, p: Point) -> float:
        return p.sigma / self.scale(p)

    def point(self, w: float) -> Point:
        ratio = w if self.space == "noise" else w / (1.0 - w)
        # A quotient may pass an end of the schedule by rounding.
        low, high = sorted((self.start.lam, self.stop.lam))
        lam = -math.log(ratio) if ratio > 0 else math.inf
        return self.schedule.at(float(self.schedule.inverse_lambda(min(max(lam, low), high))))

    def scale(self, p: Point) -> float:
        return p.alpha if self.space == "noise" else p.alpha + p.sigma

    def trial(self, s: Point, t: Point) -> tuple[Stage, ...]:
        w, width = self.position(s), self.position(t) - self.position(s)
        nodes = [s, *(self.point(w + c * width) for c in NODES[1:5]), t, t]
        base, stages = ROW["x"] / self.scale(s), []
        for j, weights in enumerate(WEIGHTS):
            # Newest first: m is the value just computed, h1 the one before it; at the first stage all is history.
            known = [HISTORY[0]] if j == 0 else [*reversed(HISTORY[:j]), ROW["m"]]
            to = nodes[j + 1]
            row = self.scale(to) * (base + width * combined(weights, known))
            stages.append(stage(nodes[j], to, row, evaluate=j > 0, push=j > 0))
        error = self.scale(t) * width * combined(ERROR, [*reversed(HISTORY), ROW["m"]])
        return (*stages, stage(t, t, ROW["u"], error, push=True))

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([*WEIGHTS[-1], 0.0]), np.array(ERROR)

    def begun(self, s: Point, p: Point) -> tuple[Stage, Stage]:
        width = self.position(p) - self.position(s)
        euler = self.scale(p) * (ROW["x"] / self.scale(s) + width * ROW["h1"])
        return stage(s, p, euler, evaluate=False), stage(p, p, ROW["m"] - ROW["h1"])

    def factor(self, error: float, retried: bool) -> tuple[bool, float]:
        change = SAFETY * error ** (-1 / self.exponent) if error > 0 else LARGEST
        if error < 1:
            return True, min(1.0 if retried else LARGEST, change)
        return False, max(SMALLEST, change)


def combined(weights: tuple[float, ...], values: list[Row]) -> Row:
    return sum((a * k for a, k in zip(weights, values, strict=True) if a), np.zeros_like(ROW["x"]))


def build(
    request: Request, *, rtol: float, atol: float, form: str, control: str, denoise_to_zero: bool, max_nfe: int
) -> DormandPrince:
    schedule = request.schedule
    start, stop = request.ends("ode")
    if not (rtol > 0 or atol > 0):
        raise ValueError(
            f"rtol={rtol:g} and atol={atol:g}: method 'ode' needs one of them above 0 (rtol=1e-5, atol=1e-5)"
        )
    if form == "noise" and min(start.alpha, stop.alpha) == 0:
        raise ValueError(
            f"form='noise' divides by alpha, which is 0 at t={max(start.t, stop.t):g} (zero terminal SNR): use "
            "form='velocity' with a network that predicts 'v', 'flow' or 'x0', or another t_start"
        )
    clean = None
    if start.t > stop.t:
        # The other schedules' networks are not made for sigma = 0, nor can x0 or score be turned into a drift there.
        through = schedule.kind == "flow" and form == "velocity" and request.prediction not in ("x0", "score")
        stop, clean = last_point(schedule, stop, denoise_to_zero, through)
        if stop.t >= start.t:
            raise ValueError(
                f"method 'ode' cannot start at t={start.t:g}: it must lie above t={stop.t:g}, where its last "
                "step begins"
            )
    elif denoise_to_zero:
        raise ValueError(
            f"denoise_to_zero=True goes from noise to data, not from t_start={start.t:g} to t_end={stop.t:g}"
        )
    return DormandPrince(
        method="ode",
        space=form,
        order=5,
        exponent=5,
        schedule=schedule,
        start=start,
        stop=stop,
        clean=clean,
        rtol=rtol,
        atol=atol,
        control=control,
        max_nfe=max_nfe,
        options={"form": form, "denoise_to_zero": denoise_to_zero},
        fsal=True,
    )


METHODS = (
    Method(
        name="ode",
        summary="Probability flow ODE, Dormand-Prince 5(4) with a controlled step, in either direction",
        paper="Dormand and Prince 1980; Song et al. 2021, arXiv 2011.13456",
        order=5,
        build=build,
        space="velocity",
        spacing="",
        nfe_per_step=6,
        adaptive=True,
        options={
            "rtol": Option(1e-5, "relative tolerance of a step's error in x", minimum=0.0),
            "atol": Option(1e-5, "absolute tolerance of a step's error in x", minimum=0.0),
            "form": Option(
                "velocity",
                "'velocity': x/(alpha + sigma) over sigma/(alpha + sigma); 'noise': x/alpha over sigma/alpha, which "
                "takes two to four times as many evaluations",
                choices=("velocity", "noise"),
            ),
            "control": CONTROL,
            "denoise_to_zero": DENOISE,
            "max_nfe": MAX_NFE,
        },
        aliases=("rk45", "dopri5", "probability_flow_ode"),
    ),
)
