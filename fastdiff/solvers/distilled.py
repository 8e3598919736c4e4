"""Samplers of distilled networks, whose predicted x0 is already a sample: predict x0, noise it again, repeat.

- lcm: x_t = alpha_t·f + sigma_t·z (Luo et al. 2023, arXiv 2310.04378, Algorithm 3; Song et al. 2023, arXiv 2303.01469,
  Algorithm 1 with epsilon = 0). The re-noising lists of DMD (Yin et al. 2024, arXiv 2405.14867) and self-forcing (Huang
  et al. 2025, arXiv 2506.08009), and "ping-pong", are this with times of your own.
- consistency: the same, whose x0 is one of noise level epsilon (Song et al. 2023, Algorithm 1).
- tcd: eps takes the predicted x0 part of the way, noise the rest (Zheng et al. 2024, arXiv 2402.19159, Algorithm 4).

These do not converge to the data with more steps: each step is as good as the network's x0.
"""

from __future__ import annotations

import math
from itertools import pairwise

from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.solvers.base import ROW, Draw, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import check_downward
from fastdiff.solvers.reverse import S_NOISE, check_start

SIGMA_DATA = 0.5


def boundary(schedule: NoiseSchedule, s: Point, timestep_scaling: float) -> Row:
    """f = c_skip·x + c_out·x0 of a latent consistency model at a discrete time (Luo et al. 2023, App. E), or x0."""
    if timestep_scaling == 0:
        return ROW["m"]
    if not schedule.discrete:
        raise ValueError(
            f"timestep_scaling={timestep_scaling:g} is for the whole times of a discrete schedule, and the schedule is "
            f"{schedule!r}: leave it out (method='lcm')"
        )
    scaled = timestep_scaling * s.t
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total * ROW["x"] + scaled / math.sqrt(total) * ROW["m"]


def build_lcm(request: Request, *, s_noise: float, timestep_scaling: float) -> Plan:
    check_downward(request, "lcm")
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start("lcm", s)
        x0 = boundary(request.schedule, s, timestep_scaling)
        rows.add(s, t, t.alpha * x0 + s_noise * t.sigma * ROW["za"], step=i, noise=(Draw(s, t),))
    options = {"s_noise": s_noise, "timestep_scaling": timestep_scaling}
    return rows.plan("lcm", "data", 1, request, points, options)


def build_consistency(request: Request, *, epsilon: float, s_noise: float) -> Plan:
    check_downward(request, "consistency")
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start("consistency", s)
        std = math.sqrt(max(t.sigma**2 - (t.alpha * epsilon) ** 2, 0.0))
        rows.add(s, t, t.alpha * ROW["m"] + s_noise * std * ROW["za"], step=i, noise=(Draw(s, t),))
    options = {"epsilon": epsilon, "s_noise": s_noise}
    return rows.plan("consistency", "data", 1, request, points, options)


def between(schedule: NoiseSchedule, t: Point, gamma: float) -> Point:
    """Where eps ends and noise begins: (1 − gamma)·t, a whole time on discrete schedules as in training."""
    time = (1.0 - gamma) * t.t
    return schedule.at(max(float(math.floor(time)) if schedule.discrete else time, schedule.t_clean))


def build_tcd(request: Request, *, gamma: float, s_noise: float) -> Plan:
    if gamma:
        check_downward(request, "tcd")
    points = request.points()
    rows = Recorder()
    for i, (s, t) in enumerate(pairwise(points)):
        check_start("tcd", s)
        last = i + 2 == len(points) or t.sigma == 0
        low = t if last or request.upward else between(request.schedule, t, gamma)
        # x at `low` by eps = (x − alpha_s·x0)/sigma_s, then noise up to t.
        keep = low.sigma / s.sigma
        row = keep * ROW["x"] + (low.alpha - keep * s.alpha) * ROW["m"]
        if low != t:
            ratio = t.alpha / low.alpha
            row = ratio * row + s_noise * math.sqrt(max(t.sigma**2 - (ratio * low.sigma) ** 2, 0.0)) * ROW["za"]
        rows.add(s, t, row, step=i, noise=(Draw(s, t),))
    return rows.plan("tcd", "data", 1, request, points, {"gamma": gamma, "s_noise": s_noise})


METHODS = (
    Method(
        name="lcm",
        summary="Latent consistency models, and other networks that predict a sample: x0, then noise again",
        paper="Luo et al. 2023, arXiv 2310.04378",
        order=1,
        build=build_lcm,
        space="data",
        spacing="lcm",
        stochastic=True,
        options={
            "s_noise": S_NOISE,
            "timestep_scaling": Option(
                0.0,
                "of the boundary condition c_skip(10·t), c_out(10·t): 10 in diffusers; 0: x0 as it is, as in ComfyUI",
                minimum=0.0,
            ),
        },
        aliases=("pingpong", "ping_pong", "dmd", "self_forcing", "flowmatchlcm", "latent_consistency"),
        good_for=("distilled",),
    ),
    Method(
        name="consistency",
        summary="Multistep sampling of a consistency model",
        paper="Song et al. 2023, arXiv 2303.01469, Algorithm 1",
        order=1,
        build=build_consistency,
        space="data",
        spacing="karras",
        stochastic=True,
        options={
            "epsilon": Option(0.002, "the noise level of the network's x0, in sigma/alpha", minimum=0.0),
            "s_noise": S_NOISE,
        },
        aliases=("cm", "consistency_models", "cmstochasticiterative"),
        good_for=("distilled",),
    ),
    Method(
        name="tcd",
        summary="Trajectory consistency distillation: eps for a part of the way, noise for the rest",
        paper="Zheng et al. 2024, arXiv 2402.19159",
        order=1,
        build=build_tcd,
        space="data",
        spacing="lcm",
        stochastic=True,
        options={
            "gamma": Option(0.3, "the part of the time that noise makes up: 0 none, 1 all", minimum=0.0, maximum=1.0),
            "s_noise": S_NOISE,
        },
        good_for=("distilled",),
    ),
)
