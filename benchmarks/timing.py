"""Interleaved timing: all variants take turns in every round.

The median of each counts; the least shows what a machine shared with others would give when left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

Work = Callable[[], object]


class Samples(NamedTuple):
    """Seconds of each variant: median and least over the rounds."""

    median: dict[str, float]
    least: dict[str, float]


SHORT = 2e-3
"""A sample lasts at least this many seconds, so that the clock and the call of the clock do not count."""

MOST = 100
"""Calls in one sample on the CPU; updates in place would leave the range of float32 beyond."""


def seconds(work: Work, calls: int) -> float:
    """Seconds of one of `calls` calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def device_seconds(work: Work, calls: int) -> float:
    """The same on the current CUDA stream, between two events."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / calls


def interleaved(
    works: Mapping[str, Work],
    rounds: int,
    reset: Work | None = None,
    measure: Callable[[Work, int], float] = seconds,
    short: float = SHORT,
    most: int = MOST,
    least: int = 1,
) -> Samples:
    """Seconds of a call of each.

    Args:
        works: the variants.
        rounds: how often each takes its turn, after one warm-up.
        reset: called before each sample, outside the measurement.
        measure: `seconds`, or `device_seconds`.
        short: least seconds of a sample.
        most, least: most and least calls in it.
    """
    calls = {}
    for name, work in works.items():
        if reset is not None:
            reset()
        work()
        once = measure(work, 1)
        calls[name] = max(least, min(most, int(short / max(once, 1e-7)) + 1))
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            if reset is not None:
                reset()
            found[name].append(measure(work, calls[name]))
    return Samples({n: median(v) for n, v in found.items()}, {n: min(v) for n, v in found.items()})
