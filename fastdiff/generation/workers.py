"""Which of several processes this one is. They never talk to each other: the number alone divides the work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Worker(NamedTuple):
    """Process `number`, from 0, of `workers`; `local` is its number on its machine, which chooses its device."""

    number: int
    workers: int
    local: int = 0


_PROCESSES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
"""Variables of the number, the count and the number on the machine: torchrun, srun, mpirun."""

_STEP = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
"""The same of srun, where there is no array: with one, a script may have asked for tasks that it does not start."""

_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")


def this_worker(environment: Mapping[str, str] = os.environ) -> Worker:
    """What the launchers say: torchrun, srun or mpirun, in each task of a Slurm array where there is one. The only
    process where none does.

    Raises:
        ValueError: variables that are no numbers, or do not go together.
    """
    number, count, local = 0, 1, 0
    array = all(name in environment for name in _ARRAY[:2])
    for names in _PROCESSES if array else (*_PROCESSES, _STEP):
        if all(name in environment for name in names[:2]):
            own = _whole(environment, names)
            number, count, local = checked(own[names[0]], own[names[1]], own.get(names[2], 0))
            break
    if not array:
        return Worker(number, count, local)
    task = _whole(environment, _ARRAY)
    tasks, step = task[_ARRAY[1]], task.get(_ARRAY[3], 1)
    place, rest = divmod(task[_ARRAY[0]] - task.get(_ARRAY[2], 0), max(step, 1))
    if step < 1 or rest or not 0 <= place < tasks:
        said = ", ".join(f"{name}={value}" for name, value in task.items())
        raise ValueError(
            f"{said}: expected an array without gaps, such as --array=0-15; or say which worker this is, --worker 0/8"
        )
    return checked(place * count + number, tasks * count, local)


def _whole(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, int]:
    """Those of the variables that are there."""
    there = {name: environment[name] for name in names if name in environment}
    try:
        return {name: int(value) for name, value in there.items()}
    except ValueError:
        said = ", ".join(f"{name}={value!r}" for name, value in there.items())
        raise ValueError(f"{said}: expected whole numbers; or say which worker this is, --worker 0/8") from None


def checked(number: int, count: int, local: int = 0) -> Worker:
    """A worker, or ValueError where there is none of that number."""
    if not 0 <= number < count:
        raise ValueError(
            f"worker {number} of {count}: expected a number from 0 to {max(count, 1) - 1}, as in 0/{max(count, 1)}"
        )
    return Worker(number, count, local)
