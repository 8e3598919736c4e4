"""Which of several processes this one is. They never talk to each other: the number alone divides the work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple


class Worker(NamedTuple):
    """Process `number`, from 0, of `workers`; `local` is its number on its machine, which chooses its device."""

    number: int
    workers: int
    local: int = 0


_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "", "SLURM_ARRAY_TASK_MIN"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
)
"""Variables of the number, the count, the number on the machine, and the first number: torchrun, Slurm arrays, srun."""


def this_worker(environment: Mapping[str, str] = os.environ) -> Worker:
    """What the launcher says, torchrun or Slurm; the only process where none does.

    Raises:
        ValueError: variables that are no numbers, or do not go together.
    """
    for number, count, local, first in _LAUNCHERS:
        if number in environment and count in environment:
            names = [name for name in (number, count, local, first) if name in environment]
            try:
                values = {name: int(environment[name]) for name in names}
            except ValueError:
                said = ", ".join(f"{name}={environment[name]!r}" for name in names)
                raise ValueError(f"{said}: expected whole numbers; or say which worker this is, --worker 0/8") from None
            return checked(values[number] - values.get(first, 0), values[count], values.get(local, 0))
    return Worker(0, 1)


def checked(number: int, count: int, local: int = 0) -> Worker:
    """A worker, or ValueError where there is none of that number."""
    if not 0 <= number < count:
        raise ValueError(
            f"worker {number} of {count}: expected a number from 0 to {max(count, 1) - 1}, as in 0/{max(count, 1)}"
        )
    return Worker(number, count, local)
