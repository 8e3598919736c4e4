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

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from fastdiff.plan import Plan
from fastdiff.schedule_base import NoiseSchedule, Point
from fastdiff.schedules import VE, SubVP, VPLinear
from fastdiff.solvers.base import ROW, Method, Option, Recorder, Request, Row
from fastdiff.solvers.ddim import fresh, posterior_std

PREDICTORS = ("reverse_diffusion", "euler_maruyama", "ancestral", "none")
CORRECTORS = ("langevin", "ald", "none")


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step does to x without the corrector: x' = keep·x + score·m + std·z; and the corrector's alpha."""

    keep: float
    score: float
    std: float
    alpha: float


def sde_time(schedule: NoiseSchedule, p: Point) -> float:
    """The SDE's own time: for VE, sigma = sigma_min·(sigma_max/sigma_min)^time, and its clean end counts as 0."""
    if isinstance(schedule, VE):
        return math.log(p.t / schedule.sigma_min) / _log_ratio(schedule) if p.t else 0.0
    return p.t


def _log_ratio(schedule: VE) -> float:
    return math.log(schedule.sigma_max / schedule.sigma_min)


def _beta(schedule: VPLinear, time: float) -> float:
    return schedule.beta_min + time * (schedule.beta_max - schedule.beta_min)


def diffusion(schedule: NoiseSchedule, s: Point, dt: float) -> tuple[float, float] | None:
    """(beta·dt, g²·dt) at s for the three SDEs of the paper (eqs. 30 to 32), else None."""
    if isinstance(schedule, VE):
        return 0.0, 2.0 * s.sigma**2 * _log_ratio(schedule) * dt
    if isinstance(schedule, VPLinear):
        b = _beta(schedule, s.t) * dt
        # 1 − exp(−2·integral of beta) is 1 − alpha⁴.
        return b, b * (1.0 - s.alpha**4) if isinstance(schedule, SubVP) else b
    return None


def transition(s: Point, t: Point) -> tuple[float, float]:
    """(r, V) of the exact forward transition from t, the cleaner time, to s."""
    return s.alpha / t.alpha, s.sigma**2 * fresh(s, t)


def exact_step(predictor: str, schedule: NoiseSchedule, s: Point, t: Point) -> Step:
    """The step between two times of any grid, from the transition between them."""
    r, v = transition(s, t)
    alpha = r * r if schedule.kind in ("vp", "subvp") else 1.0
    if predictor == "euler_maruyama":
        # A sigma below VE's sigma_min is before the SDE's beginning.
        drift = diffusion(schedule, s, max(sde_time(schedule, s) - sde_time(schedule, t), 0.0))
        b, v = (1.0 - r * r, v) if drift is None else drift
        return Step(1.0 + 0.5 * b, v, math.sqrt(v), alpha)
    if predictor == "ancestral":
        # As published: the posterior's variance for VE, and beta, that of the forward step, for VP.
        return Step(1.0 / r, v / r, math.sqrt(v) if schedule.kind == "vp" else posterior_std(s, t), alpha)
    return Step(2.0 - r, v, math.sqrt(v), alpha)


def published_steps(predictor: str, corrector: str, schedule: NoiseSchedule, points: Sequence[Point]) -> list[Step]:
    """The steps as the published code discretises them: N steps of the SDE's time, each 1/N of the whole.

    Where betas or sigmas come from a table of N values, at equally spaced times from 0 to the start, a step takes the
    entry at or below its time. The grid's own times end at eps, so that step i takes entry N − 1 − i + floor(i·eps).
    """
    steps = len(points) - 1
    start = sde_time(schedule, points[0])
    dt = start / steps
    # 1e-9: a time that is an entry's may be rounded to below it.
    entries = [math.floor(sde_time(schedule, s) / start * (steps - 1) + 1e-9) for s in points[:-1]]
    nodes = [start * j / (steps - 1) if steps > 1 else start for j in entries]
    lower = [start * (j - 1) / (steps - 1) if j > 0 else None for j in entries]
    result = []
    for i, s in enumerate(points[:-1]):
        alpha = 1.0 - forward_beta(schedule, nodes[i], dt)
        if alpha <= 0 and (corrector != "none" or (predictor != "euler_maruyama" and not isinstance(schedule, SubVP))):
            raise ValueError(
                f"discretization='score_sde' with steps={steps}: beta·dt = {1.0 - alpha:.3g} at step {i} is not below "
                "1, and the published update takes the square root of 1 - beta·dt: use more steps, or "
                "discretization='exact'"
            )
        result.append(published_step(predictor, schedule, s, dt, nodes[i], lower[i]))
    return result


def published_step(
    predictor: str, schedule: NoiseSchedule, s: Point, dt: float, node: float, below: float | None
) -> Step:
    """One step of the SDE's time `dt` from s. `node` and `below` are the times of this step's entry in the published
    tables and of the entry under it; None: there is none, sigma = 0."""
    drift = diffusion(schedule, s, dt)
    assert drift is not None
    b, v = drift
    beta = forward_beta(schedule, node, dt)
    alpha = 1.0 - beta
    keep, std = 1.0 + 0.5 * b, math.sqrt(v)
    if predictor == "euler_maruyama" or isinstance(schedule, SubVP):
        pass
    elif isinstance(schedule, VE):
        here, low = _sigma(schedule, node), 0.0 if below is None else _sigma(schedule, below)
        v = (here - low) * (here + low)
        keep, std = 1.0, (low / here if predictor == "ancestral" else 1.0) * math.sqrt(v)
    else:
        r, v, std = math.sqrt(alpha), beta, math.sqrt(beta)
        keep, v = (1.0 / r, v / r) if predictor == "ancestral" else (2.0 - r, v)
    return Step(keep, v, std, alpha)


def forward_beta(schedule: NoiseSchedule, time: float, dt: float) -> float:
    return _beta(schedule, time) * dt if isinstance(schedule, VPLinear) else 0.0


def _sigma(schedule: VE, time: float) -> float:
    return schedule.sigma_min * math.exp(_log_ratio(schedule) * time)


def _check(
    request: Request,
    points: Sequence[Point],
    predictor: str,
    corrector: str,
    probability_flow: bool,
    discretization: str,
) -> None:
    schedule, first = request.schedule, points[0]
    if predictor == corrector == "none":
        raise ValueError("predictor='none' with corrector='none' changes nothing: choose predictor='reverse_diffusion'")
    if predictor == "ancestral" and schedule.kind not in ("vp", "ve", "edm"):
        raise ValueError(
            f"predictor='ancestral' is defined for VE and VP, and the schedule is {schedule!r}: use "
            "predictor='reverse_diffusion' or 'euler_maruyama'"
        )
    if probability_flow and predictor in ("ancestral", "none"):
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
    if discretization == "score_sde":
        if not isinstance(schedule, VE | VPLinear):
            raise ValueError(
                f"discretization='score_sde' is for ve, vp_linear and subvp, and the schedule is {schedule!r}: use "
                "discretization='exact', which is the published one on all times of a discrete schedule"
            )
        if request.spacing != "sde_uniform" or points[-1].t != schedule.t_clean:
            call = "spacing='sde_uniform'"
            if request.spacing == "sde_uniform":
                call = f"t_end={points[-1].t:g} with final='clean', which is the published eps"
            raise ValueError(
                "discretization='score_sde' is N equal steps of the SDE's time to its clean end; got "
                f"spacing={request.spacing!r} from {first.t:g} to {points[-1].t:g}: use {call}, or "
                "discretization='exact'"
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
    if snr <= 0:
        raise ValueError(f"snr={snr!r}: method 'pc' expects a number above 0 (snr=0.16)")
    if norm == "sample" and corrector != "langevin":
        raise ValueError(f"norm='sample' goes with corrector='langevin'; corrector={corrector!r} has no norms")
    schedule, points = request.schedule, request.points()
    _check(request, points, predictor, corrector, probability_flow, discretization)
    if discretization == "score_sde":
        steps = published_steps(predictor, corrector, schedule, points)
    else:
        steps = [exact_step(predictor, schedule, s, t) for s, t in itertools.pairwise(points)]
    corrections = 0 if corrector == "none" else n_corrector
    rows = Recorder()

    def add(s: Point, t: Point, form: Row, std: float, step: int, norms: str = "") -> None:
        rows.add(s, t, form + std * ROW["za"], step=step, norms=norms)

    for i, (s, t, now) in enumerate(zip(points[:-1], points[1:], steps, strict=True)):
        last = i + 1 == len(steps)
        for j in range(corrections):
            ends = predictor == "none" and j + 1 == corrections
            scale = snr * math.sqrt(now.alpha) * (s.sigma if corrector == "ald" else 1.0)
            norms = norm if corrector == "langevin" else ""
            add(s, t if ends else s, ROW["x"] + 2.0 * scale**2 * ROW["m"], 2.0 * scale, i, norms)
        if predictor != "none":
            weight = 0.5 if probability_flow else 1.0
            noisy = not probability_flow and not (last and denoise)
            add(s, t, now.keep * ROW["x"] + weight * now.score * ROW["m"], now.std if noisy else 0.0, i)
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
                choices=("exact", "score_sde"),
            ),
        },
        aliases=("predictor_corrector",),
    ),
)
