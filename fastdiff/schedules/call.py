"""A checked call of `grid`, and what all grids ask of their ends."""

from __future__ import annotations

from typing import NamedTuple

from fastdiff.schedules.base import NoiseSchedule


class GridCall(NamedTuple):
    """A checked call; `name` is "respacing" for every respacing string, `end` is None where t_end was not given."""

    name: str
    spacing: str
    schedule: NoiseSchedule
    steps: int
    start: float
    end: float | None
    final: str | None
    options: dict[str, float]

    def last(self) -> tuple[float, bool]:
        """Where a grid in sigma ends, and whether the clean time follows: by default where t_end was not given."""
        end, final = self.end, self.final
        if end == self.schedule.t_clean:
            end, final = None, final or "clean"
        final = final or ("clean" if end is None else "t_min")
        return (self.schedule.t_floor if end is None else end), final == "clean"


def ordered(start: float, end: float, schedule: NoiseSchedule) -> None:
    """ValueError unless the start is noisier than the end."""
    if not start > end:
        raise ValueError(f"t_start={start!r} must be above t_end={end!r} (t_min={schedule.t_min!r} of {schedule!r})")
