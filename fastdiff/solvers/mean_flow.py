"""Flow maps: networks of two times, whose output is the average velocity from t to s (Geng et al. 2025, MeanFlow, arXiv
2505.13447, eq. 12; Gu et al. 2025, AnyFlow).

On a flow schedule a step is x_s = x_t + (sigma_s − sigma_t)·u(x_t, t, s). On others the same holds for y = x/(alpha +
sigma) and w = sigma/(alpha + sigma), where dy/dw = eps − x0 is the velocity. Without `two_times=True` the network
is given t alone, and the step is Euler's method with its velocity.
"""

from __future__ import annotations

from itertools import pairwise

from fastdiff.plan import Plan
from fastdiff.schedules import Point
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request


def scale(p: Point) -> float:
    return p.alpha + p.sigma


def build(request: Request, *, two_times: bool) -> Plan:
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        width = t.sigma / scale(t) - s.sigma / scale(s)
        row = scale(t) * (ROW["x"] / scale(s) + width * ROW["m"])
        rows.add(s, t, row, step=i, model_time_to=t.model_time if two_times else None)
    return rows.plan("mean_flow", "velocity", 1, request, points, {"two_times": two_times})


METHODS = (
    Method(
        name="mean_flow",
        summary="A step of a flow map, a network that is given two times and returns the average velocity between them",
        paper="Geng et al. 2025, arXiv 2505.13447",
        order=1,
        build=build,
        space="velocity",
        spacing="uniform",
        options={
            "two_times": Option(
                False,
                "whether the network is called as model(x, t, s), s the time of the step's end, and not as model(x, t)",
            ),
        },
        aliases=("meanflow", "flow_map", "anyflow", "flowmapeulerdiscrete"),
        good_for=("distilled", "flow"),
    ),
)
