"""Coefficients that depend on norms: a table row of one call, written on the device before the fused stage reads it."""

from __future__ import annotations

from types import ModuleType

import torch

from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.philox import STEP
from fastdiff.plan import ZA, M
from fastdiff.table import NEXT_U, StageSpec


def rescaled(
    backend: ModuleType, spec: StageSpec, row: int, norms: str, draw: int, coeffs: Coeffs, buf: Buffers
) -> Coeffs:
    """The coefficients of a stage with `norms`: row 0, or row b for sample b, has table row `row` with the coefficient
    of m times q² and that of za times q, q = ‖za‖/‖m‖.

    Two passes precede the stage: one draws za into `buf.z`, unless it is the user's own, so that the norm and the stage
    see the same numbers; one makes m times its coefficient. All on the device, without synchronisation.

    Args:
        norms: "batch" for the mean of each norm over the batch, "sample" for every sample's own.
        draw: draw number of za.
    """
    u, z = buf.u, buf.z[0]
    assert u is not None and coeffs.rows is None
    if z is None:
        z = torch.empty_like(u)
        backend.normal_(z, coeffs.seeds, coeffs.index, draw, STEP)
        buf.z = (z, None, None)
    m = torch.empty_like(u)
    backend.stage(
        spec._replace(u_mask=1 << M, x_mask=0, copies=0), row, coeffs, Buffers(u=u, out=buf.out, aux=buf.aux, u_out=m)
    )
    length_z, length_m = lengths(z), lengths(m)
    if norms == "batch":
        length_z, length_m = length_z.mean(0, keepdim=True), length_m.mean(0, keepdim=True)
    # By select and narrow instead of indexing, which tests on fake tensors cannot do.
    table = coeffs.table.select(0, row).repeat(len(length_z), 1)
    of_m, of_z = table.select(1, NEXT_U + M), table.select(1, NEXT_U + ZA)
    # m holds its coefficient already.
    q = length_z / length_m * of_m
    of_m.mul_(q * q)
    of_z.mul_(q)
    rows = torch.arange(len(table), dtype=torch.int32, device=table.device) if norms == "sample" else None
    draws = coeffs.draws.select(0, row).repeat(len(table), 1)
    return Coeffs(table, draws, coeffs.seeds, coeffs.index, coeffs.lo, coeffs.hi, coeffs.scale, rows)


def lengths(v: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of each sample of (B, ...): (B,).

    A tree of element-wise sums, whose order is the same for every batch and device: a library's reduction may split a
    row in ways that depend on the number of rows, and a sample must not depend on the batch that it is in.
    """
    s = v.reshape(len(v), -1).square()
    n = s.shape[1]
    while n > 1:
        half = n // 2
        s.narrow(1, 0, half).add_(s.narrow(1, n - half, half))
        n -= half
    return s.select(1, 0).sqrt()
