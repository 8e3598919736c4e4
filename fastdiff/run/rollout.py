"""Transitions with a density, for policy gradients: their log-probability, in the run and again with another network.

Where a stage is x' = mean + std·z with one draw z, log p(x' | x) follows from the sum of z², which the stage takes
while it has z in registers. With another network the mean is that of the same row without the noise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fastdiff.ops import Buffers, Coeffs, load
from fastdiff.ops.buffers import CHUNK
from fastdiff.ops.layout import IN_SCALE, NEXT_U
from fastdiff.ops.sums import sample_sums
from fastdiff.plan import ZA, Plan
from fastdiff.run.job import Job
from fastdiff.run.loop import Run, run
from fastdiff.run.planned import PlanEngine
from fastdiff.run.threshold import Dynamic
from fastdiff.values import flag, shown

REDUCTIONS = ("mean", "sum")


class Rollout(NamedTuple):
    """What `Sampler.rollout` returns beside the sample.

    Attributes:
        times: (steps + 1,) schedule times, float64.
        x: (steps + 1, B, ...) the states, the first being the start and the last the sample.
        log_prob: (steps, B) float64, log p(x[k + 1] | x[k]) of each transition; 0 for a step without noise.
        reduce: "mean" over the elements of a sample, or their "sum".
    """

    times: torch.Tensor
    x: torch.Tensor
    log_prob: torch.Tensor
    reduce: str

    def __repr__(self) -> str:
        return f"Rollout({len(self.log_prob)} steps, x {tuple(self.x.shape)}, reduce={self.reduce!r})"


def check_rollout(engine: Any, arguments: Any, reduce: Any) -> PlanEngine:
    """The engine, if each of its steps is one transition with a density.

    Raises:
        ValueError: a method of which this is not so, or arguments that do not go with a rollout.
    """
    if not isinstance(reduce, str) or reduce not in REDUCTIONS:
        raise ValueError(f"reduce={shown(reduce)}: expected 'mean' (of a sample's elements, as Flow-GRPO) or 'sum'")
    if not isinstance(engine, PlanEngine) or not _has_densities(engine.plan):
        raise ValueError(
            f"method {engine.name!r} with these options has no density of its transitions: each step must be one "
            "evaluation and one draw of noise, without a history, as of grpo, cps, ddpm, or ddim with eta=1"
        )
    for name in ("frames", "correct_x0", "correct_xt", "classifier_grad"):
        if arguments[name] is not None:
            raise ValueError(f"{name} changes transitions in a way that log_prob cannot replay: leave it out")
    if flag("return_trajectory", arguments["return_trajectory"]):
        raise ValueError("a rollout holds the states itself: leave return_trajectory out")
    return engine


def _has_densities(plan: Plan) -> bool:
    return plan.stochastic and all(
        s.evaluate and s.next_u == s.next_x and s.draws[1:] == (-1, -1) and not (s.langevin_norm or s.learned_variance)
        for s in plan.stages
    ) and plan.history == 0 and not plan.two_times  # fmt: skip


def _check_job(job: Job) -> None:
    if job.start.path:
        raise ValueError("noise='brownian' has no transitions of its own: leave it out")
    if isinstance(job.bounds, Dynamic):
        raise ValueError(
            "clip='dynamic' takes values of the whole sample, which log_prob does not replay: leave it out"
        )


def _prepared(engine: PlanEngine, job: Job) -> Run:
    """The run; ValueError where its guidance is more than the weights of a row."""
    _check_job(job)
    r, form = engine.prepare(job), job.binding.guidance
    if r.program.numbers is not None or form.reverses or r.network.outputs > 1:
        raise ValueError(
            f"guidance {type(form).__name__} gives each sample weights of its own, or has other outputs than the two "
            "halves, which log_prob does not replay: give one number, guidance=4.5"
        )
    return r


def rollout(engine: PlanEngine, job: Job, reduce: str) -> tuple[torch.Tensor, Rollout]:
    """Sample, eagerly, and keep the states and their log-probabilities."""
    r, start = _prepared(engine, job), job.start.x
    n = start[0].numel()
    squares = torch.zeros(len(r.program.moves), len(start), -(-n // CHUNK), dtype=start.dtype, device=start.device)
    states = [start.clone()]
    result = run(dataclasses.replace(r, squares=squares, states=states), start)
    if job.out is not None:
        result = job.out.copy_(result)
    sums = sample_sums(squares.double().reshape(-1, squares.shape[2])).reshape(squares.shape[:2])
    log_prob = torch.stack([_normal(s, _std(r, k), n, reduce) for k, s in enumerate(sums)])
    times = torch.from_numpy(r.program.times).to(start.device)
    return result, Rollout(times, torch.stack(states), log_prob, reduce)


def replay(engine: PlanEngine, job: Job, given: Rollout, steps: Sequence[int]) -> torch.Tensor:
    """(len(steps), B) float64: the log-probabilities of transitions of a rollout under the job's network, through which
    gradients flow."""
    r = _prepared(engine, job)
    return torch.stack([_replayed(r, given, k) for k in steps])


def _replayed(r: Run, given: Rollout, k: int) -> torch.Tensor:
    x, after, c, network = given.x[k], given.x[k + 1], r.coeffs, r.network
    spec, row = r.program.moves[k].spec, k + 1
    n, std = x[0].numel(), _std(r, k)
    if std == 0.0:
        return x.new_zeros(len(x), dtype=torch.float64)
    # The row before this one writes this stage's input.
    shown = (c.table[k, IN_SCALE] * x).to(r.network_dtype)
    out = network(torch.cat([shown, shown]) if network.guided else shown, r.program.clock[k].clone())
    first, second = out.chunk(2) if network.guided else (out, None)
    mean = torch.empty_like(x)
    quiet = spec._replace(u_mask=spec.u_mask & ~(1 << ZA), x_mask=0, copies=0)
    own = Coeffs(c.table, c.draws, c.seeds, c.index, c.lo, c.hi, c.scale)
    load("reference").stage(quiet, row, own, Buffers(x=x, u=x, first=first, second=second, u_out=mean))
    squares = ((after - mean).double() / std).square().flatten(1).sum(1)
    return _normal(squares, std, n, given.reduce)


def _std(r: Run, k: int) -> float:
    return abs(float(r.coeffs.table[k + 1, NEXT_U + ZA]))


def _normal(squares: torch.Tensor, std: float, n: int, reduce: str) -> torch.Tensor:
    """The log-density of n normals of that standard deviation, whose squares in units of it have that sum."""
    if std == 0.0:
        return torch.zeros_like(squares)
    total = -0.5 * squares - n * (math.log(std) + 0.5 * math.log(2 * math.pi))
    return total / n if reduce == "mean" else total
