"""Langevin steps: coefficients that depend on norms, in rows of one call that are written on the device before the
fused stage reads them."""

from __future__ import annotations

import torch

from fastdiff.ops import Backend, Buffers, Coeffs
from fastdiff.ops.layout import NEXT_U, StageSpec
from fastdiff.ops.philox import STEP
from fastdiff.ops.sums import lengths
from fastdiff.plan import ZA, M
from fastdiff.run.evaluate import own_rows, with_rows


def langevin_rows(
    backend: Backend, spec: StageSpec, row: int, norm: str, draw: int, coeffs: Coeffs, buf: Buffers
) -> Coeffs:
    """The coefficients of a Langevin step: row 0, or row b for sample b, has table row `row` with the coefficient of m
    times q² and that of za times q, q = ‖za‖/‖m‖.

    Two passes precede the stage: one draws za into `buf.z`, unless it is the user's own, so that the norm and the stage
    see the same numbers; one makes m times its coefficient. All on the device, without synchronisation.

    Args:
        norm: "batch" for the mean of each norm over the batch, "sample" for every sample's own.
        draw: draw number of za.
    """
    u, z = buf.u, buf.z[0]
    assert u is not None
    if z is None:
        z = torch.empty_like(u)
        backend.normal_(z, coeffs.seeds, coeffs.index, draw, STEP)
        buf.z = (z, None, None)
    m = torch.empty_like(u)
    only_m = spec._replace(u_mask=1 << M, x_mask=0, copies=0)
    backend.stage(only_m, row, coeffs, Buffers(u=u, first=buf.first, second=buf.second, u_out=m))
    length_z, length_m = lengths(z), lengths(m)
    if norm == "batch":
        length_z, length_m = length_z.mean(0, keepdim=True), length_m.mean(0, keepdim=True)
    table = own_rows(coeffs, row)
    if len(table) < len(length_z):
        table = table.repeat(len(length_z), 1)
    of_m, of_z = table.select(1, NEXT_U + M), table.select(1, NEXT_U + ZA)
    # m holds its coefficient already.
    q = length_z / length_m * of_m
    of_m.mul_(q * q)
    of_z.mul_(q)
    return with_rows(coeffs, table, row)
