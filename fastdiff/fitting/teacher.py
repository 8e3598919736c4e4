"""The truth of a fit: the states of a converged run at every time of a fine grid, for every trajectory."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fastdiff.fitting.options import whole
from fastdiff.fitting.problem import Batch, Problem
from fastdiff.fitting.ranks import total, world
from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule
from fastdiff.solvers import plan

FINE = 2048
NOISIEST = -6.0
"""Lambda from which on equal steps of lambda are counted, where a schedule starts noisier."""
TIME_SHARE = 0.3
"""Of the grid's density: equal steps of time have this part, equal steps of lambda the rest, as times of few
evaluations lie where both are fine."""
ODE_TIMES = 80
"""Grid of the adaptive teacher."""
CHECKED = 64
"""Trajectories on which the teacher is compared with another resolution."""


def teacher_times(schedule: NoiseSchedule, t_start: float, t_end: float, steps: int) -> tuple[float, ...]:
    """`steps + 1` times from t_start to t_end; a clean end is the last alone."""
    clean = t_end == schedule.t_clean
    low = schedule.t_floor if clean else t_end
    last = steps - clean
    lam_low = max(schedule.lam(t_start), NOISIEST)
    even = np.linspace(t_start, low, FINE)
    curved = np.asarray(schedule.inverse_lambda(np.linspace(lam_low, schedule.lam(low), FINE)))
    t = np.unique(np.clip(np.concatenate([even, curved]), low, t_start))
    lam = np.maximum(np.asarray(schedule.lam(t)), lam_low)
    share = 0.0 if schedule.kind in ("ve", "edm") else TIME_SHARE
    # 0 at t_start, 1 at the end; increasing with falling time.
    way = share * (t_start - t) / (t_start - low) + (1.0 - share) * (lam - lam_low) / (lam[0] - lam_low)
    way[-1] = 0.0
    found = np.interp(np.linspace(0.0, 1.0, last + 1), way[::-1], t[::-1])
    found[0], found[-1] = t_start, low
    return tuple(found.tolist()) + ((schedule.t_clean,) if clean else ())


class Teacher:
    """Where the truth comes from.

    Args:
        source: a number of steps, of UniPC on `teacher_times`; a deterministic plan of one evaluation or more a step;
            or "ode": the adaptive solver between the times of a grid.

    Attributes:
        times: (G + 1,) the grid, descending: where the student may evaluate.

    Raises:
        ValueError: a plan that draws noise or runs elsewhere; fewer times than a search needs.
    """

    def __init__(self, problem: Problem, source: Any) -> None:
        self.problem, self.source = problem, source
        p = problem
        if isinstance(source, Plan):
            if source.stochastic:
                raise ValueError(
                    f"teacher is a plan of {source.method!r} that draws noise: a fit needs the same end from the same "
                    "start; give a deterministic plan, a number of steps, or 'ode'"
                )
            if source.times[0] != p.t_start or source.times[-1] != p.t_end:
                raise ValueError(
                    f"teacher runs from {source.times[0]:g} to {source.times[-1]:g}, and the fit from {p.t_start:g} to "
                    f"{p.t_end:g}: give t_start and t_end, or another plan"
                )
            if source.schedule and NoiseSchedule.from_dict(source.schedule) != p.schedule:
                raise ValueError(f"teacher is a plan of another schedule than the fit's, {p.schedule!r}")
            self.plan: Plan | None = source
            self.times = source.times
            self.name = f"{source.method}, {source.nfe} evaluations"
        elif source == "ode":
            self.plan, self.times = None, teacher_times(p.schedule, p.t_start, p.t_end, ODE_TIMES)
            self.name = f"ode, between {ODE_TIMES + 1} times"
        else:
            if isinstance(source, str):
                raise ValueError(f"teacher={source!r}: expected a number of steps, a plan, or 'ode'")
            steps = whole("teacher", source, 8)
            self.plan = self._unipc(teacher_times(p.schedule, p.t_start, p.t_end, steps))
            self.times, self.name = self.plan.times, f"unipc, {steps} steps"

    def _unipc(self, times: tuple[float, ...]) -> Plan:
        return plan("unipc", schedule=self.problem.schedule, spacing=times)

    @property
    def cost(self) -> int:
        """Evaluations of one trajectory, as far as they are known before."""
        return self.plan.nfe if self.plan is not None else 8 * ODE_TIMES

    def check_cost(self, batch: int) -> int:
        """Evaluations of `error`, in all processes, as far as they are known before."""
        other = self.plan.nfe // 2 + 1 if self.plan is not None and not isinstance(self.source, Plan) else 200
        return min(batch, CHECKED) * world()[1] * (self.cost + other)

    def states(self, batch: Batch) -> torch.Tensor:
        """(G + 1, count, ...), where trajectories are stored."""
        p = self.problem
        x = p.start(batch)
        if self.plan is None:
            return self._solved(x, batch, self.times).to(p.store)
        _, trajectory = p.run(self.plan, x, batch, return_trajectory=True)
        return trajectory.x.to(p.store)

    def ends(self, batch: Batch) -> torch.Tensor:
        """(count, ...) the last states alone."""
        p = self.problem
        if self.plan is None:
            return self._solved(p.start(batch), batch, self.times)[-1].to(p.store)
        return p.run(self.plan, p.start(batch), batch).to(p.store)

    def _solved(self, x: torch.Tensor, batch: Batch, times: tuple[float, ...]) -> torch.Tensor:
        p, found = self.problem, [x]
        for t, following in pairwise(times):
            x = p.adaptive(x, batch, t, following)
            found.append(x)
        return torch.stack(found)

    def error(self, batch: Batch) -> float:
        """RMS difference of the end from that at another resolution: half the steps, or, of a given plan, the adaptive
        solver. On at most `CHECKED` trajectories of a batch of each process."""
        p = self.problem
        some = batch._replace(size=min(batch.size, CHECKED))
        fine = self.ends(some)
        if self.plan is None or isinstance(self.source, Plan):
            coarse = self._solved(p.start(some), some, (self.times[0], self.times[-1]))[-1]
        else:
            # Every other time; both ends stay.
            coarse = p.run(self._unipc((*self.times[:-1:2], self.times[-1])), p.start(some), some)
        gap = (fine - coarse.to(p.store)).double()
        both = total(torch.tensor([float(gap.square().sum()), gap.numel()], dtype=torch.float64, device=p.device))
        return math.sqrt(float(both[0] / both[1]))
