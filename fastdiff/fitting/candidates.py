"""Every plan of a given number of evaluations that the methods, spacings and their options give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule
from fastdiff.solvers import METHODS, Method, find, plan

SPACING_NAMES = ("logsnr", "time_uniform", "time_quadratic", "karras", "trailing")
VARIED: Mapping[str, tuple[Any, ...]] = {
    "lower_order_final": (True, False),
    "solver_type": ("taylor", "dpmsolver"),
    "variant": ("bh1", "bh2"),
    "order": (2, 3),
}
"""Options that are tried, of methods that have them."""


class Candidate(NamedTuple):
    """A setting and its plan."""

    method: str
    spacing: str
    options: Mapping[str, Any]
    plan: Plan

    @property
    def label(self) -> str:
        """The setting as one line."""
        own = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{self.method}, {self.spacing}{own}"


def candidates(
    schedule: NoiseSchedule, t_start: float, t_end: float, nfe: int, names: Sequence[str] | None = None
) -> list[Candidate]:
    """Deterministic plans from t_start to t_end of `nfe` evaluations; no two are equal.

    Raises:
        ValueError: an unknown method, or no plan of this size.
    """
    chosen = list(METHODS.values()) if names is None else [find(name) for name in names]
    found: dict[tuple[Any, ...], Candidate] = {}
    for method in chosen:
        if method.adaptive:
            if names is not None:
                raise ValueError(f"method {method.name!r} is adaptive and has no plan: leave it out of methods")
            continue
        for spacing, options in itertools.product(SPACING_NAMES, _options(method)):
            for made in _plans(method, schedule, t_start, t_end, nfe, spacing, options):
                found.setdefault((made.times, made.stages), Candidate(method.name, spacing, options, made))
    if not found:
        listed = "no method" if names is None else f"none of {', '.join(names)}"
        raise ValueError(
            f"{listed} has a deterministic plan of {nfe} evaluations from t={t_start:g} to {t_end:g}: give other "
            "methods, such as methods=['dpm2', 'unipc']"
        )
    return list(found.values())


def _options(method: Method) -> Iterator[dict[str, Any]]:
    names = [name for name in VARIED if name in method.options]
    for values in itertools.product(*(VARIED[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _plans(
    method: Method,
    schedule: NoiseSchedule,
    t_start: float,
    t_end: float,
    nfe: int,
    spacing: str,
    options: Mapping[str, Any],
) -> Iterator[Plan]:
    # Two evaluations a step, and one in a last step to sigma = 0.
    for steps in {nfe, (nfe + 1) // 2} if method.nfe_per_step > 1 else {nfe}:
        try:
            made = plan(method, steps, schedule, spacing, t_start, t_end, **options)
        except ValueError:
            continue  # a spacing that this schedule, or options that this number of steps does not have
        if made.nfe == nfe and not made.stochastic and made.times[-1] == t_end and made.times[0] == t_start:
            yield made
