"""A plan as a table to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdiff.plan.stage import IDENTITY, REGISTERS, ZA, Stage

COLUMNS = ("stage", "step", "t", "model t", "alpha", "sigma", "next u", "next x")


def table_text(plan: Any) -> str:
    """One line a stage, with the formula of each output."""
    nature = "deterministic"
    if plan.stochastic:
        nature = "stochastic with spans" if plan.spanned else "stochastic"
    head = (
        f"{plan.method}: {plan.steps} steps, {plan.nfe} network evaluations, order {plan.order}, {plan.space} space, "
        f"history {plan.history}, {nature}"
    )
    rows = [list(COLUMNS)]
    for k, s in enumerate(plan.stages):
        marks = (("*", not s.evaluate), ("+", s.keep), ("~", s.langevin_norm), ("^", s.learned_variance))
        same = s.next_x == s.next_u
        rows.append(
            [
                f"{k}{''.join(mark for mark, wanted in marks if wanted)}",
                str(s.step),
                f"{s.t:.6g}",
                f"{s.model_time:.6g}" if s.evaluate else "-",
                f"{s.alpha:.6g}",
                f"{s.sigma:.6g}",
                formula(s.next_u, s),
                "= u" if same else ("= x" if s.next_x == IDENTITY else formula(s.next_x, s)),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    body = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    norm = next((s.langevin_norm for s in plan.stages if s.langevin_norm), "")
    tail = f"; ~: m times q², za times q, q = ‖za‖/‖m‖ of the {norm}" if norm else ""
    if plan.learned_variance:
        tail += "; ^: za times exp(c0 + c1·v), v the second half of the network's channels"
    return f"{head}\n{body}\n(+: the model value is kept in the history; *: no network evaluation{tail})"


def formula(row: Sequence[float], stage: Stage) -> str:
    """A row as a sum of registers; a draw has its number, and its span where that is not the stage's own step."""
    terms = []
    for j, c in enumerate(row):
        if c:
            name = REGISTERS[j]
            if j >= ZA:
                span = stage.span(j - ZA)
                apart = span and span != (stage.t, stage.t_next)
                name += f"#{stage.draws[j - ZA]}" + (f"[{span[0]:.6g}, {span[1]:.6g}]" if apart else "")
            terms.append(f"{'+' if c > 0 else '-'} {abs(c):.5g} {name}")
    return (" ".join(terms) or "0").removeprefix("+ ")
