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
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdiff.names import unknown
from fastdiff.plan import Stage
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import HISTORY, ROW, Method, Option, Request, Row
from fastdiff.solvers.control import Controller
from fastdiff.solvers.embedded import CONTROL, MAX_NFE, Embedded, last_point, stage
from fastdiff.solvers.score_sde import published_denoising
from fastdiff.solvers.sde import Step


@dataclasses.dataclass(frozen=True)
class Tableau:
    """An embedded Runge-Kutta pair whose last evaluation is at the result, and the next step's first.

    Attributes:
        nodes: c, of every evaluation, that at the result included.
        weights: the rows of a; the last is b, the result's own.
        lower: b of the other order, over all evaluations.
        order: of the result.
    """

    nodes: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    lower: tuple[float, ...]
    order: int

    @property
    def result(self) -> tuple[float, ...]:
        """The weights of the result, over all evaluations."""
        return (*self.weights[-1], 0.0)

    @property
    def error(self) -> tuple[float, ...]:
        """The weights of the estimated error."""
        return tuple(b - e for b, e in zip(self.result, self.lower, strict=True))


DORMAND_PRINCE = Tableau(
    nodes=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    weights=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    lower=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    order=5,
)


@dataclasses.dataclass(frozen=True)
class RungeKutta(Embedded):
    """An embedded pair in the variables of `space`: "noise" (x/alpha over sigma/alpha) or "velocity".

    Attributes:
        tableau: the pair.
        last: a published last step, instead of the predicted x0.
    """

    tableau: Tableau = DORMAND_PRINCE
    last: Step | None = None

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
        inner = [c for c in self.tableau.nodes[1:] if c < 1.0]
        nodes = [s, *(self.point(w + c * width) for c in inner)]
        nodes += [t] * (len(self.tableau.nodes) - len(nodes))
        base, stages = ROW["x"] / self.scale(s), []
        for j, weights in enumerate(self.tableau.weights):
            # Newest first: m is the value just computed, h1 the one before it; at the first stage all is history.
            known = [HISTORY[0]] if j == 0 else [*reversed(HISTORY[:j]), ROW["m"]]
            to = nodes[j + 1]
            row = self.scale(to) * (base + width * combined(weights, known))
            stages.append(stage(nodes[j], to, row, evaluate=j > 0, keep=j > 0))
        error = (
            self.scale(t)
            * width
            * combined(self.tableau.error, [*reversed(HISTORY[: len(self.tableau.weights)]), ROW["m"]])
        )
        return (*stages, stage(t, t, ROW["u"], error, keep=True))

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.tableau.result), np.array(self.tableau.error)

    def denoise(self, p: Point) -> Stage:
        if self.last is None:
            return super().denoise(p)
        eps = ROW["h1"] if self.space == "noise" else (ROW["x"] + p.alpha * ROW["h1"]) / (p.alpha + p.sigma)
        # The score is -eps/sigma.
        row = self.last.keep * ROW["x"] - self.last.score / p.sigma * eps
        return stage(p, self.clean or p, row, evaluate=False)

    def begun(self, s: Point, p: Point) -> tuple[Stage, Stage]:
        width = self.position(p) - self.position(s)
        euler = self.scale(p) * (ROW["x"] / self.scale(s) + width * ROW["h1"])
        return stage(s, p, euler, evaluate=False), stage(p, p, ROW["m"] - ROW["h1"])


def combined(weights: tuple[float, ...], values: list[Row]) -> Row:
    return sum((a * k for a, k in zip(weights, values, strict=True) if a), np.zeros_like(ROW["x"]))


class LastStep(Option):
    """False, True or the name of a last step."""

    def check(self, method: str, name: str, value: Any) -> Any:
        if isinstance(value, bool | np.bool_):
            return bool(value)
        named = list(LAST_STEPS)
        if isinstance(value, str):
            if value in named:
                return value
            raise ValueError(unknown(f"{name} of method {method!r}:", value, ["False", "True", *named]))
        raise TypeError(
            f"{name}={value!r}: method {method!r} expects {', '.join(['False', 'True', *map(repr, named)])} "
            f"(method={method!r}, {name}=True)"
        )

    @property
    def accepted(self) -> tuple[Any, ...]:
        return False, True, *LAST_STEPS


LAST_STEPS: dict[str, Callable[[NoiseSchedule, Point, int], Step]] = {"score_sde": published_denoising}
"""Last steps other than the predicted x0, by the name of option `denoise_to_zero`: from the schedule, the point and
N."""


def build(
    request: Request,
    *,
    form: str,
    denoise_to_zero: bool | str,
    sde_steps: int,
    rtol: float,
    atol: float,
    **limits: Any,
) -> RungeKutta:
    """`limits`: control and max_nfe."""
    if not isinstance(sde_steps, int | np.integer):
        raise TypeError(f"sde_steps={sde_steps!r}: method 'ode' expects an integer (sde_steps=1000)")
    schedule = request.schedule
    start, stop = request.ends("ode")
    if form == "noise" and min(start.alpha, stop.alpha) == 0:
        raise ValueError(
            f"form='noise' divides by alpha, which is 0 at t={max(start.t, stop.t):g} (zero terminal SNR): use "
            "form='velocity' with a network that predicts 'v', 'flow' or 'x0', or another t_start"
        )
    clean = None
    if start.t > stop.t:
        # Networks of the other schedules are not made for sigma = 0, and no drift follows from x0 or the score there.
        through = schedule.kind == "flow" and form == "velocity" and request.prediction not in ("x0", "score")
        stop, clean = last_point(schedule, stop, bool(denoise_to_zero), through)
        if stop.t >= start.t:
            raise ValueError(
                f"method 'ode' cannot start at t={start.t:g}: it must lie above t={stop.t:g}, where its last "
                "step begins"
            )
    elif denoise_to_zero:
        raise ValueError(
            f"denoise_to_zero={denoise_to_zero!r} goes from noise to data, not from t_start={start.t:g} to "
            f"t_end={stop.t:g}"
        )
    return RungeKutta(
        method="ode",
        space=form,
        order=DORMAND_PRINCE.order,
        controller=Controller(rtol, atol, DORMAND_PRINCE.order),
        schedule=schedule,
        start=start,
        stop=stop,
        clean=clean,
        options={"form": form, "denoise_to_zero": denoise_to_zero, "sde_steps": sde_steps},
        fsal=True,
        last=LAST_STEPS[denoise_to_zero](schedule, stop, sde_steps) if isinstance(denoise_to_zero, str) else None,
        **limits,
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
            "denoise_to_zero": LastStep(
                False,
                "end with the predicted x0 at t_end; 'score_sde': with the published step, reverse diffusion by 1/N "
                "without noise",
            ),
            "sde_steps": Option(1000, "N of the published SDE, for denoise_to_zero='score_sde'", minimum=1),
            "max_nfe": MAX_NFE,
        },
        aliases=("rk45", "dopri5", "probability_flow_ode"),
    ),
)
