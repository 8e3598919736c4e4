"""`tune`: every setting of a given number of evaluations, scored on trajectories of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from fastdiff.fitting.candidates import Candidate, candidates
from fastdiff.fitting.loss import Errors, errors, sample_rms
from fastdiff.fitting.options import TUNE_DEFAULTS, TuneOptions, whole
from fastdiff.fitting.problem import Batch, Problem
from fastdiff.fitting.progress import Progress
from fastdiff.fitting.table import Score, Table
from fastdiff.fitting.teacher import Teacher
from fastdiff.options import filled
from fastdiff.run.job import sampling_mode

TRAJECTORIES = 128
FINALISTS = 12
"""Settings that are scored on every trajectory."""
FIRST_LOOK = 32
"""Trajectories on which all settings are scored."""


def tune(model: Callable[..., Any], steps: int = 5, **options: Unpack[TuneOptions]) -> Table:
    """Every method, spacing and option that gives a plan of `steps` network evaluations, scored on a teacher's
    trajectories.

    Args:
        model: as in `fastdiff.sample`.
        steps: network evaluations of each plan.
        **options: as in `fastdiff.fit`.

    Returns:
        `Table`: print it, plot it, take `table[0].plan`. All settings are scored on 32 trajectories, the twelve best on
        all.

    Raises:
        ValueError, TypeError: bad arguments.
    """
    given = filled("fastdiff.tune", options, TUNE_DEFAULTS)
    problem = Problem(model, given)
    count = whole("trajectories", TRAJECTORIES if given["trajectories"] is None else given["trajectories"], 2)
    teacher = Teacher(problem, given["teacher"])
    made = candidates(problem.schedule, problem.t_start, problem.t_end, whole("steps", steps), given["methods"])
    batches = problem.batches(count, problem.seed)
    expected = count * teacher.cost + teacher.check_cost(problem.batch) + tune_cost(len(made), steps, count)
    with sampling_mode(), Progress("tune", expected, given["progress"], given["callback"]) as progress:
        error = teacher.error(batches[0])
        ends = []
        for b in batches:
            ends.append(teacher.ends(b))
            progress.add("teacher", b.size * teacher.cost)
        scores = score(problem, made, batches, ends, progress)
    return Table(tuple(scores), steps, teacher.name, error)


def tune_cost(settings: int, steps: int, count: int) -> int:
    """Evaluations that `score` asks for."""
    return steps * (settings * min(count, FIRST_LOOK) + min(settings, FINALISTS) * count)


def score(
    problem: Problem,
    made: Sequence[Candidate],
    batches: Sequence[Batch],
    ends: Sequence[torch.Tensor],
    progress: Progress,
) -> list[Score]:
    """The settings, the best first; `ends` are the teacher's, of each batch."""
    # The first rows of every process's part.
    few = [b._replace(size=min(b.size, FIRST_LOOK)) for b in batches[:1]]
    first = [(one, measured(problem, one, few, ends, progress)) for one in made]
    first.sort(key=lambda pair: pair[1].mean)
    final = [(one, measured(problem, one, batches, ends, progress)) for one, _ in first[:FINALISTS]]
    final.sort(key=lambda pair: pair[1].mean)
    return [Score(c.method, c.spacing, c.options, c.plan, e) for c, e in [*final, *first[FINALISTS:]]]


def measured(
    problem: Problem,
    one: Candidate,
    batches: Sequence[Batch],
    ends: Sequence[torch.Tensor],
    progress: Progress,
) -> Errors:
    distances = []
    for b, end in zip(batches, ends, strict=False):
        x = problem.run(one.plan, problem.start(b), b)
        distances.append(sample_rms(x, end[: b.size].to(x.device)))
        progress.add("tune", one.plan.nfe * b.size)
    return errors(torch.cat(distances))
