"""SDE-DPM-Solver++(2M): the second-order multistep solver of the reverse SDE (Lu et al. 2022b, arXiv 2211.01095,
Section 5 and App. D).

With eta the noise may be lowered (eta = 0 is the ODE method dpmpp2m): h is stretched by 1 + eta, and a noise of
standard deviation sigma_t·sqrt(1 − exp(−2·eta·h)) is added.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from fastdiff.plan import Plan
from fastdiff.plan.phi import phi
from fastdiff.solvers.base import ROW, Draw, Method, Option, Recorder, Request
from fastdiff.solvers.ddim import check_downward


def build(request: Request, *, eta: float, s_noise: float, solver_type: str) -> Plan:
    if eta:
        check_downward(request, "dpmpp2m_sde")
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        if s.sigma == 0:
            raise ValueError(f"method 'dpmpp2m_sde' cannot start at t={s.t:g}, where sigma = 0")
        h = t.lam - s.lam
        if not math.isfinite(h):
            # To sigma = 0: the result is x0. From alpha = 0: x is all noise; eta decides how much of it is kept.
            keep = 0.0 if t.sigma == 0 or eta > 0 else t.sigma / s.sigma
            std = s_noise * t.sigma if eta > 0 else 0.0
            row = keep * ROW["x"] + t.alpha * ROW["m"] + std * ROW["za"]
        else:
            stretched = (1.0 + eta) * h
            row = t.sigma / s.sigma * math.exp(-eta * h) * ROW["x"] - t.alpha * math.expm1(-stretched) * ROW["m"]
            if i > 0 and math.isfinite(points[i - 1].lam):
                d1 = (ROW["m"] - ROW["h1"]) * (h / (s.lam - points[i - 1].lam))
                half = -0.5 * math.expm1(-stretched)
                row = (
                    row + t.alpha * (half if solver_type == "midpoint" else stretched * float(phi(2, -stretched))) * d1
                )
            std = s_noise * t.sigma * math.sqrt(-math.expm1(-2.0 * eta * h))
            row = row + std * ROW["za"]
        rows.add(s, t, np.asarray(row), step=i, keep=True, noise=(Draw(s, t),))
    options = {"eta": eta, "s_noise": s_noise, "solver_type": solver_type}
    return rows.plan("dpmpp2m_sde", "data", 2, request, points, options)


METHODS = (
    Method(
        name="dpmpp2m_sde",
        summary="SDE-DPM-Solver++(2M): second-order multistep for the reverse SDE",
        paper="Lu et al. 2022b, arXiv 2211.01095",
        order=2,
        build=build,
        space="data",
        spacing="karras",
        stochastic=True,
        options={
            "eta": Option(1.0, "noise of the reverse SDE; 0 gives the ODE method", minimum=0.0),
            "s_noise": Option(1.0, "factor of the noise", minimum=0.0),
            "solver_type": Option("midpoint", "form of the second-order term", choices=("midpoint", "heun")),
        },
        aliases=("dpmpp_2m_sde", "dpm++2m_sde", "sde_dpmsolver++"),
    ),
)
