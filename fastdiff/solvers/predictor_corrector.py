"""Predictor-corrector sampling of score SDEs: VE (continuous and SMLD), VP (continuous and discrete) and sub-VP.

Song et al. 2021 (arXiv 2011.13456): Algorithms 2 to 5, App. D, E, F and G. Each step corrects `n_corrector` times at
its time, then predicts the next. With s the step's time, t the next, m the score, and x_s = r·x_t + sqrt(V)·z the
forward transition from t to s,

    reverse_diffusion   x' = (2 − r)·x + V·m + sqrt(V)·z                        (eq. 46)
    euler_maruyama      x' = (1 + B/2)·x + V·m + sqrt(V)·z,                     B = beta·dt, V = g²·dt
    ancestral           x' = (x + V·m)/r + std·z                                (eq. 4; eq. 47)
    Langevin            x' = x + 2·a·(snr·q)²·m + 2·snr·q·sqrt(a)·z,            q = ‖z‖/‖m‖ (Algorithms 4 and 5)
    annealed Langevin   the same with q = sigma_s

and the probability flow has half of V and no noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from fastdiff.names import short
from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.schedules.grids import MAX_STEPS
from fastdiff.solvers.base import ROW, Draw, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import check_downward, fresh, posterior_std
from fastdiff.solvers.score_sde import published_steps
from fastdiff.solvers.sde import Step, diffusion, sde_time

PREDICTORS = ("reverse_diffusion", "euler_maruyama", "ancestral", "none")
CORRECTORS = ("langevin", "ald", "none")


def transition(s: Point, t: Point) -> tuple[float, float]:
    """(r, V) of the exact forward transition from t, the cleaner time, to s."""
    return s.alpha / t.alpha, s.sigma**2 * fresh(s, t)


def std_of(variance: float) -> float:
    """Upwards, along the probability flow, the variance counts backwards, and nothing is drawn."""
    return math.sqrt(max(variance, 0.0))


def exact_step(predictor: str, schedule: NoiseSchedule, s: Point, t: Point) -> Step:
    """The step between two times of any grid, from the transition between them."""
    r, v = transition(s, t)
    alpha = r * r if schedule.kind in ("vp", "subvp") else 1.0
    if predictor == "euler_maruyama":
        dt = sde_time(schedule, s) - sde_time(schedule, t)
        # A sigma below VE's sigma_min is before the SDE's beginning.
        drift = diffusion(schedule, s, max(dt, 0.0) if s.lam < t.lam else dt)
        b, v = (1.0 - r * r, v) if drift is None else drift
        return Step(1.0 + 0.5 * b, v, std_of(v), alpha)
    if predictor == "ancestral":
        # As published: for VE the posterior's variance; for VP beta, the variance of the forward step.
        return Step(1.0 / r, v / r, math.sqrt(v) if schedule.kind == "vp" else posterior_std(s, t), alpha)
    return Step(2.0 - r, v, std_of(v), alpha)


def exact_steps(request: Request, predictor: str, corrector: str, points: Sequence[Point]) -> list[Step]:
    """From the transitions between the grid's own times."""
    return [exact_step(predictor, request.schedule, s, t) for s, t in itertools.pairwise(points)]


Discretization = Callable[[Request, str, str, Sequence[Point]], list[Step]]
DISCRETIZATIONS: dict[str, Discretization] = {"exact": exact_steps, "score_sde": published_steps}
"""How the steps of a grid are made, by the name of option `discretization`."""


def _check(
    request: Request,
    points: Sequence[Point],
    predictor: str,
    corrector: str,
    probability_flow: bool,
) -> None:
    schedule, first = request.schedule, points[0]
    if predictor == corrector == "none":
        raise ValueError("predictor='none' with corrector='none' changes nothing: choose predictor='reverse_diffusion'")
    if predictor == "ancestral" and schedule.kind not in ("vp", "ve", "edm"):
        raise ValueError(
            f"predictor='ancestral' is defined for VE and VP, and the schedule is {schedule!r}: use "
            "predictor='reverse_diffusion' or 'euler_maruyama'"
        )
    # Without a predictor there is nothing that it acts on, as published.
    if probability_flow and predictor == "ancestral":
        raise ValueError(
            f"probability_flow=True with predictor={predictor!r}: the probability flow is for "
            "predictor='reverse_diffusion' or 'euler_maruyama'"
        )
    if first.alpha == 0 and (predictor == "ancestral" or (corrector != "none" and schedule.kind == "vp")):
        raise ValueError(
            f"method 'pc' with predictor={predictor!r}, corrector={corrector!r} cannot start at t={first.t:g}, where "
            "alpha = 0 (zero terminal SNR): use predictor='reverse_diffusion' with corrector='none', or an earlier "
            "t_start"
        )


def build(
    request: Request,
    *,
    predictor: str,
    corrector: str,
    n_corrector: int,
    snr: float,
    probability_flow: bool,
    denoise: bool,
    norm: str,
    discretization: str,
) -> Plan:
    if not isinstance(n_corrector, int | np.integer):
        raise TypeError(f"n_corrector={n_corrector!r}: method 'pc' expects an integer (n_corrector=1)")
    if n_corrector > MAX_STEPS:
        raise ValueError(
            f"n_corrector={short(n_corrector)}: method 'pc' accepts at most {MAX_STEPS} corrections a step "
            "(n_corrector=1)"
        )
    if snr <= 0:
        raise ValueError(f"snr={snr!r}: method 'pc' expects a number above 0 (snr=0.16)")
    if norm == "sample" and corrector != "langevin":
        raise ValueError(f"norm='sample' goes with corrector='langevin'; corrector={corrector!r} has no norms")
    if not probability_flow or corrector != "none":
        check_downward(request, "pc")
    points = request.points()
    _check(request, points, predictor, corrector, probability_flow)
    steps = DISCRETIZATIONS[discretization](request, predictor, corrector, points)
    corrections = 0 if corrector == "none" else n_corrector
    rows = Recorder()

    def add(s: Point, t: Point, mean: Row, std: float, draw: Draw, step: int, langevin_norm: str = "") -> None:
        rows.add(s, t, mean + std * ROW["za"], step=step, langevin_norm=langevin_norm, noise=(draw,))

    for i, (s, t, now) in enumerate(zip(points[:-1], points[1:], steps, strict=True)):
        last = i + 1 == len(steps)
        for j in range(corrections):
            ends = predictor == "none" and j + 1 == corrections
            scale = snr * math.sqrt(now.alpha) * (s.sigma if corrector == "ald" else 1.0)
            langevin_norm = norm if corrector == "langevin" else ""
            # A correction moves x at one time: its noise belongs to no interval.
            mean = ROW["x"] + 2.0 * scale**2 * ROW["m"]
            add(s, t if ends else s, mean, 2.0 * scale, Draw(), i, langevin_norm)
        if predictor != "none":
            weight = 0.5 if probability_flow else 1.0
            noisy = not probability_flow and not (last and denoise)
            mean = now.keep * ROW["x"] + weight * now.score * ROW["m"]
            add(s, t, mean, now.std if noisy else 0.0, Draw(s, t), i)
    options = {
        "predictor": predictor,
        "corrector": corrector,
        "n_corrector": n_corrector,
        "snr": snr,
        "probability_flow": probability_flow,
        "denoise": denoise,
        "norm": norm,
        "discretization": discretization,
    }
    return rows.plan("pc", "score", 1, request, points, options)


METHODS = (
    Method(
        name="pc",
        summary="Predictor-corrector sampling of the reverse SDE, with Langevin corrections",
        paper="Song et al. 2021, arXiv 2011.13456",
        order=1,
        build=build,
        space="score",
        spacing="sde_uniform",
        nfe_per_step=2,
        stochastic=True,
        options={
            "predictor": Option(
                "reverse_diffusion",
                "how a step reaches the next time; 'ancestral' on VE and VP only; 'none': Langevin alone",
                choices=PREDICTORS,
            ),
            "corrector": Option(
                "langevin",
                "'langevin': step size from the norms of noise and score; 'ald': from sigma (annealed Langevin)",
                choices=CORRECTORS,
            ),
            "n_corrector": Option(1, "corrections at each step", minimum=1),
            "snr": Option(0.16, "the corrector's signal-to-noise ratio, above 0"),
            "probability_flow": Option(False, "the predictor follows the probability flow: half the score, no noise"),
            "denoise": Option(True, "the last prediction is its mean, without noise"),
            "norm": Option(
                "batch",
                "'batch': Langevin's norms are means over the batch, as published; 'sample': each sample has its own",
                choices=("batch", "sample"),
            ),
            "discretization": Option(
                "exact",
                "'exact': from the grid's own times; 'score_sde': as published, N equal steps of the SDE's time",
                choices=DISCRETIZATIONS,
            ),
        },
        aliases=("predictor_corrector",),
        good_for=("noise",),
    ),
)
