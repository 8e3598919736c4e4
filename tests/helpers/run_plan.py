"""A NumPy interpreter of bound tables in float64: the smallest loop that runs a plan, for tests without torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastdiff.bind import Binding, bind
from fastdiff.guidance import UNGUIDED, ClassifierFree
from fastdiff.ops.layout import BLEND, CG, CU, IN_SCALE, LINEAR, NEXT_U, NEXT_X, NONE, PG, PU, QG, QU, QX, RAW, W1, W2
from fastdiff.plan import H1, IDENTITY, MAX_DRAWS, NREG, SECOND, ZA, M, Plan, Stage, U, X
from helpers.analytic import Array, Mixture

Model = Callable[[Array, Stage], Array]
Noise = Callable[[int, Array], Array]


def network(dist: Mixture, prediction: str) -> Model:
    """The perfect network for `dist`, told alpha and sigma of the stage."""
    return lambda u, stage: dist.predict(prediction, u, stage.alpha, stage.sigma)


def run(
    plan: Plan,
    model: Model,
    x: Array,
    prediction: str = "eps",
    *,
    noise: Noise | None = None,
    guidance: tuple[float, Model] | None = None,
    clip: tuple[float, float] | None = None,
) -> Array:
    """The plan's result from `x`; `noise(draw, like)` gives the normals, `guidance` the scale and the second model."""
    guided = ClassifierFree(guidance[0]) if guidance else UNGUIDED
    table = bind(plan, Binding(prediction, guided, clip=clip is not None))
    history: list[Array | None] = []
    u, net_in = x, table.values[0, IN_SCALE] * x
    for k, stage in enumerate(plan.stages):
        row, spec = table.values[k + 1], table.specs[k + 1]
        registers: list[Array | None] = [None] * NREG
        registers[X], registers[U] = x, u
        registers[H1 : H1 + len(history)] = history
        for d in range(MAX_DRAWS):
            if spec.reads_z(d):
                assert noise is not None
                registers[ZA + d] = noise(int(table.draws[k + 1, d]), x)
        if spec.convert != NONE:
            g = model(net_in, stage)
            if guidance:
                registers[SECOND] = guidance[1](net_in, stage)
                g = row[W1] * g + row[W2] * registers[SECOND]
            if spec.clips:
                assert clip is not None
                past = row[QG] * g if spec.convert == BLEND else 0.0
                g = row[QU] * u + row[QX] * np.clip(row[PU] * u + row[PG] * g, *clip) + past
            elif spec.convert == LINEAR:
                g = row[CU] * u + row[CG] * g
            else:
                assert spec.convert == RAW
            registers[M] = g

        if stage.langevin_norm:
            row = langevin(row, stage.langevin_norm, registers[M], registers[ZA])  # type: ignore[arg-type]
        new_u = combine(row[..., NEXT_U:], spec.u_mask, registers)
        if spec.x_mask:
            new_x = combine(row[..., NEXT_X:], spec.x_mask, registers)
        else:
            new_x = x if stage.next_x == IDENTITY else new_u
        u, x, net_in = new_u, new_x, table.values[k + 1, IN_SCALE] * new_u
        if stage.keep:
            history = [registers[M], *history][: SECOND - H1]
    return x


def combine(coefficients: Array, mask: int, registers: list[Array | None]) -> Array:
    """The sum of the registers in `mask`, each times its coefficient; TypeError where one is not there."""
    return sum(coefficients[..., j] * registers[j] for j in range(NREG) if mask >> j & 1) + 0.0  # type: ignore[operator]


def langevin(row: Array, norm: str, m: Array, z: Array) -> Array:
    """The row with m times q² and za times q, q = ‖z‖/‖m‖; with "sample" one row for each, (B, 1, ..., columns)."""
    length_z, length_m = (np.sqrt((v.reshape(len(v), -1) ** 2).sum(axis=1)) for v in (z, m))
    q = np.atleast_1d(length_z.mean() / length_m.mean() if norm == "batch" else length_z / length_m)
    scaled = np.tile(row, (len(q), 1))
    scaled[:, [NEXT_U + M, NEXT_X + M]] *= q[:, None] ** 2
    scaled[:, [NEXT_U + ZA, NEXT_X + ZA]] *= q[:, None]
    return scaled.reshape(len(q), *[1] * (m.ndim - 1), len(row))
