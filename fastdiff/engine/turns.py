"""Whose turn it is, where more requests are under way than a tick has slots.

Of the same priority, those who wait come first, so that the first evaluation comes at once. Then come those who are
furthest from their end, so that batches stay full until all end together. Age counts too, so that nobody is overtaken
for ever. Everything is counted in evaluations and ticks: the turns do not depend on any clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from fastdiff.engine.run import Run

_TURN = 2
"""Evaluations of one turn, about: turns change only where it makes a difference."""

_AGE = 8
"""Ticks of age that weigh as much as one evaluation that is left."""

Following = Callable[[int | None, int], Run | None]
"""(greatest `order[0]`, rows of the network's input) -> the next of those who wait that goes in there, and now enters;
or None."""


def turns(here: Sequence[Run], slots: int, rows: int, following: Following) -> tuple[list[Run], list[Run]]:
    """Those of `here` whose turn it is, and the others; `following` is told of those who enter, who take slots and rows
    too."""
    seats, free = slots, slots - len(here)
    room = rows - sum([run.width for run in here]) if free > 0 else 0
    while free > 0 and room > 0 and (entering := following(None, room)) is not None:
        free, room = free - 1, room - entering.width
        slots, rows = slots - 1, rows - entering.width
    if free > 0 and room >= 0:
        return list(here), []
    for run in here:
        # The others are parked, and theirs does not change.
        if run.slot < seats:
            run.urgency = _urgency(run)
    going: list[Run] = []
    paused: list[Run] = []
    asked: int | None = None
    order = sorted(here, key=attrgetter("urgency"))
    for k, run in enumerate(order):
        while slots and run.order[0] != asked and (entering := following(run.order[0], rows)) is not None:
            slots, rows = slots - 1, rows - entering.width
        asked = run.order[0]
        if not slots:
            return going, paused + order[k:]
        if (width := run.width) > rows:
            paused.append(run)
        else:
            going.append(run)
            slots, rows = slots - 1, rows - width
    while slots and (entering := following(None, rows)) is not None:
        slots, rows = slots - 1, rows - entering.width
    return going, paused


def _urgency(run: Run) -> tuple[int, int, int]:
    left = -((run.request.count - run.request.nfe) // _TURN)
    return run.order[0], run.since - _AGE * _TURN * left, run.order[1]
