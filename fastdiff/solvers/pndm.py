"""PNDM: pseudo linear multistep, with a pseudo Runge-Kutta start or a Heun start (Liu et al. 2022, arXiv 2202.09778).

The transfer of eq. 11 is DDIM's step: x/alpha grows by (sigma_t/alpha_t − sigma_s/alpha_s)·eps.
"""

from __future__ import annotations

from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.adams import EQUAL, combined
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request
from fastdiff.solvers.level import levels, moved, straight

RUNGE_KUTTA_STEPS = 3
"""As many as the multistep formula needs earlier values."""


def heun(rows: Recorder, s: Point, t: Point) -> None:
    """The first step of the Heun start. The value at its end is not kept: the next step evaluates there again."""
    x = ROW["x"]
    if t.sigma == 0:
        return rows.add(s, t, straight(x, s, t, ROW["m"]), step=0)
    rows.add(s, t, straight(x, s, t, ROW["m"]), x, step=0, keep=True)
    rows.add(t, t, straight(x, s, t, 0.5 * (ROW["m"] + ROW["h1"])), step=0)


def runge_kutta(rows: Recorder, schedule: NoiseSchedule, s: Point, t: Point, i: int) -> None:
    """A step of the pseudo Runge-Kutta start (eq. 13). Only its first value is kept: later steps need those of three.

    The second one is read from u, which the step along it has reached.
    """
    x, u, m = ROW["x"], ROW["u"], ROW["m"]
    if t.sigma == 0:
        return rows.add(s, t, straight(x, s, t, m), step=i, keep=True)
    mid = schedule.at(0.5 * (s.t + t.t))
    whole = t.sigma / t.alpha - s.sigma / s.alpha
    half = mid.sigma / mid.alpha - s.sigma / s.alpha
    rows.add(s, mid, straight(x, s, mid, m), x, step=i, keep=True)
    rows.add(mid, mid, straight(x, s, mid, m), x, step=i)
    second = (u / mid.alpha - x / s.alpha) / half
    rows.add(mid, t, straight(x, s, t, m), x + s.alpha * whole / 3.0 * (second + m), step=i)
    rows.add(t, t, straight(x, s, t, (m + ROW["h1"]) / 6.0), step=i)


def build(request: Request, *, skip_prk_steps: bool) -> Plan:
    points = request.points()
    r = levels(points, "pndm")
    rows = Recorder()
    for i in range(len(points) - 1):
        s, t = points[i], points[i + 1]
        if skip_prk_steps and i == 0:
            heun(rows, s, t)
        elif not skip_prk_steps and i < RUNGE_KUTTA_STEPS:
            runge_kutta(rows, request.schedule, s, t, i)
        else:
            slope = combined(EQUAL[min(i + 1, len(EQUAL)) - 1])
            rows.add(s, t, moved(ROW["x"], s, t, (r[i + 1] - r[i]) * slope), step=i, keep=True)
    # Second order at most, as the steps are not equal in sigma/alpha.
    return rows.plan("pndm", "noise", 2, request, points, {"skip_prk_steps": skip_prk_steps})


METHODS = (
    Method(
        name="pndm",
        summary="PNDM: pseudo linear multistep (PLMS), started by Heun's method or by three Runge-Kutta steps",
        paper="Liu et al. 2022, arXiv 2202.09778",
        order=2,
        build=build,
        space="noise",
        spacing="time_quadratic",
        options={
            "skip_prk_steps": Option(
                True,
                "start with one Heun step (one evaluation more than steps); False: three Runge-Kutta steps of four "
                "evaluations, as in the paper",
            )
        },
        aliases=("plms",),
    ),
)
