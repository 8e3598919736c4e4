"""A plan bound to prediction, guidance and clipping, with its tensors on one device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fastdiff.loop import Move, is_raw, moves
from fastdiff.plan import Plan, X
from fastdiff.table import IN_SCALE, NEXT_U, StageSpec, Table, bind, model_value_rows


class Bound(NamedTuple):
    """One binding of the plan, with its tensors on one device."""

    program: tuple[Move, ...]
    table: Table
    values: torch.Tensor
    draws: torch.Tensor
    clock: torch.Tensor
    probe: tuple[torch.Tensor, tuple[StageSpec, ...]] | None
    raw: bool


def bound_on_device(
    plan: Plan,
    dtype: torch.dtype,
    clip: bool,
    network_dtype: torch.dtype,
    prediction: str,
    guidance: float | None,
    classifier: str,
    copies: int,
    device: torch.device,
    rows: int,
    observed: bool,
    corrects: bool,
) -> Bound:
    """Bind `plan`, and put its numbers in `dtype` on `device`.

    Args:
        clip, prediction, guidance, classifier, copies: as in `fastdiff.table.bind`.
        rows: rows of the network's input, each with its time.
        observed: whether the predicted x0 is asked for, which needs rows of its own.
        corrects: whether the user corrects x0, which then takes the place of the network's output.
    """
    # A corrected x0 takes the place of the network's output, guided or not.
    table = bind(
        plan,
        "x0" if corrects else prediction,
        guidance_scale=None if corrects else guidance,
        classifier="" if corrects and classifier == "score" else classifier,
        clip=clip,
        copies=copies,
    )

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array).to(device=device, dtype=dtype).contiguous()

    probe = None
    if observed:
        data = bind(plan, prediction, space="data", guidance_scale=guidance, classifier=classifier, copies=0)
        values, specs = model_value_rows(data.values, data.specs)
        probe = put(values), specs
    # Exact for every training index; float64 for networks that compute in it, float32 for all others.
    exact = torch.float64 if network_dtype == torch.float64 else torch.float32
    # Spread over the rows before it goes to the device: what is kept there is then read from any stream.
    clock = torch.as_tensor(table.times).to(exact).reshape(-1, 1).repeat(1, rows).to(device)

    return Bound(
        program=moves(plan, table),
        table=table,
        values=put(table.values),
        draws=torch.as_tensor(table.draws).to(device),
        clock=clock,
        probe=probe,
        raw=is_raw(table, plan) and not corrects,
    )


def echo_rows(values: torch.Tensor) -> torch.Tensor:
    """The rows that write x where stage k writes u', with its in_scale: for an x that was corrected after it."""
    rows = torch.zeros_like(values)
    rows[:, IN_SCALE] = values[:, IN_SCALE]
    rows[:, NEXT_U + X] = 1.0
    return rows
