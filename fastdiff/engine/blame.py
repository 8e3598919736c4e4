"""Which request is to blame where several cannot go on together: it alone ends, and the others do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastdiff.engine import conditions
from fastdiff.engine.run import Run

Blamed = tuple[int, Exception]
"""A slot, and the error for its request."""


Call = Callable[[int, list[dict[str, Any]]], object]
"""The network with one slot's state and its conditions."""


def unlike(running: Sequence[Run], residents: Sequence[Run], call: Call) -> Blamed | None:
    """The newest whose conditions cannot be joined with those that the network has taken already. Where it has taken
    none, one with which it fails, or else the newest unlike those of most."""
    kinds = [run.likeness for run in running]
    if kinds.count(kinds[0]) == len(kinds):
        return None
    right = max(residents, key=lambda run: run.at)
    wrong: list[Blamed] = [] if right.at else failing(running, call)
    if not right.at:
        fine = [run for slot, run in enumerate(running) if slot not in dict(wrong)]
        right = max(fine or running, key=lambda run: kinds.count(run.likeness))
    others = [blamed for blamed in wrong if kinds[blamed[0]] != right.likeness]
    if others:
        slot, cause = others[0]
    else:
        slot = max((s for s, kind in enumerate(kinds) if kind != right.likeness), key=lambda s: running[s].order[1])
        cause = None
    error = ValueError(conditions.unlike("cond", running[slot].cond, right.cond))
    error.__cause__ = cause
    return slot, error


def uncollated(running: Sequence[Run], collated: Callable[[list[dict[str, Any]]], object], error: Exception) -> Blamed:
    """The first that cannot be collated by itself, with its own error, or else the newest."""
    for slot, run in enumerate(running):
        try:
            collated(halves(run))
        except Exception as own:
            return slot, own
    return max(range(len(running)), key=lambda slot: running[slot].order[1]), error


def failing(running: Sequence[Run], call: Call) -> list[Blamed]:
    """Of those that have their first evaluation, the ones with whose conditions alone the network fails as well."""
    found: list[Blamed] = []
    for slot, run in enumerate(running if len(running) > 1 else ()):
        if run.at == 0 and not run.request.ended:
            try:
                call(slot, halves(run))
            except Exception as own:
                found.append((slot, own))
    return found


def halves(run: Run) -> list[dict[str, Any]]:
    """The conditions of a request, one for each of its rows of the network's input."""
    rows: list[Mapping[str, Any]] = [run.cond]
    if run.guided and run.uncond is not None:
        rows.append(run.uncond)
    return [dict(row) for row in rows]
