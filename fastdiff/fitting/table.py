"""What `tune` returns: settings with their errors, the best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdiff.fitting.loss import Errors
from fastdiff.plan import Plan
from fastdiff.plan.picture import new_figure


@dataclass(frozen=True)
class Score:
    """One setting.

    Attributes:
        method, spacing, options: as `fastdiff.plan` takes them.
        plan: the plan that they give.
        errors: distances to the teacher at the end: median, RMS and mean over the samples of each sample's RMS.
    """

    method: str
    spacing: str
    options: Mapping[str, Any]
    plan: Plan
    errors: Errors

    @property
    def label(self) -> str:
        """The setting as one line."""
        own = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{self.method}, {self.spacing}{own}"


@dataclass(frozen=True)
class Table(Sequence[Score]):
    """Settings by their mean error, the best first; a sequence of `Score` that prints and plots.

    Attributes:
        scores: every setting.
        steps: network evaluations of each.
        teacher: what the truth was, and its own error.
    """

    scores: tuple[Score, ...]
    steps: int
    teacher: str
    teacher_error: float

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, k: Any) -> Any:
        return self.scores[k]

    def __str__(self) -> str:
        shown = self.scores[:20]
        width = max(len(s.label) for s in shown)
        lines = [
            f"{len(self)} settings of {self.steps} evaluations; distance to the teacher ({self.teacher}; its own error "
            f"{self.teacher_error:.1e})",
            f"{'setting':<{width}}  median   rms      mean",
        ]
        lines += [f"{s.label:<{width}}  {s.errors.median:.1e}  {s.errors.rms:.1e}  {s.errors.mean:.1e}" for s in shown]
        if len(self) > len(shown):
            lines.append(f"... and {len(self) - len(shown)} more")
        return "\n".join(lines)

    def plot(self, path: str | Path, count: int = 15) -> None:
        """Draw the errors of the first `count` settings to a picture file. Needs matplotlib."""
        shown = self.scores[:count][::-1]
        figure = new_figure(figsize=(8, 0.3 * len(shown) + 1.2), layout="constrained")
        axes = figure.subplots()
        rows = range(len(shown))
        axes.scatter([s.errors.rms for s in shown], rows, label="rms", marker="s", s=18)
        axes.scatter([s.errors.median for s in shown], rows, label="median", marker="o", s=18)
        axes.set_xscale("log")
        axes.set_yticks(list(rows), [s.label for s in shown], fontsize=7)
        axes.set_xlabel(f"distance to the teacher, {self.steps} evaluations")
        axes.grid(True, which="both", axis="x", color="0.92")
        axes.legend(fontsize=8, frameon=False)
        figure.savefig(path, dpi=150)
