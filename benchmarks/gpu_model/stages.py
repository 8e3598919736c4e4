"""The stages that the model is asked about, with buffers laid out as the loop has them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from benchmarks import fused
from fastdiff.ops.brownian import PATH_WIDTH, TERMS
from fastdiff.ops.buffers import CHUNK, Buffers, Coeffs
from fastdiff.ops.layout import BLEND, CLIP, LINEAR, WIDTH, StageSpec
from fastdiff.plan import H1, SECOND, ZA, M, X

SHAPE = (2, 4, 32, 32)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
Stage = tuple[StageSpec, int, Coeffs, Buffers]


def of_method(method: str, network: torch.dtype) -> Stage:
    """A method's fullest stage."""
    case = fused.make_case(method, SHAPE, network)
    return case.spec, case.k + 1, case.coeffs, case.sets[0]


def of_spec(spec: StageSpec, network: torch.dtype) -> Stage:
    """A stage with a float32 state and history; x and u are one buffer."""
    batch, shape = SHAPE[0], SHAPE
    coeffs = Coeffs(
        torch.randn(2, WIDTH), torch.ones(2, 3, dtype=torch.int32), torch.full((batch,), 7),
        torch.arange(batch, dtype=torch.int32),
    )  # fmt: skip
    if spec.clips:
        coeffs.lo, coeffs.hi, coeffs.scale = torch.full((batch,), -1.0), torch.ones(batch), torch.ones(batch)
    x = torch.randn(shape)
    learned = spec[6]

    def network_output(twice: bool) -> torch.Tensor:
        return torch.randn(batch, shape[1] * (2 if twice else 1), *shape[2:]).to(network)

    buf = Buffers(x=x, u=x, u_out=x, first=network_output(learned > 0))
    if spec.guided or spec.mask >> SECOND & 1:
        buf.second = network_output(learned == 2)
    buf.h = tuple(torch.randn(shape) for _ in range(spec.history))
    if buf.h:
        buf.m_out = buf.h[-1]
    if spec.copies:
        buf.net_in = torch.empty((spec.copies * batch, *shape[1:]), dtype=network)
    return spec, 1, coeffs, buf


def stages() -> dict[str, Stage]:
    """By name."""
    found = {}
    for method in ("ddim", "dpm3", "dpmpp3m", "unipc", "ddpm", "dpmpp2m_sde"):
        for name, network in (("float32", F32), ("bfloat16", BF16)):
            found[f"{method}, {name}"] = of_method(method, network)
    found["dpm3, float16"] = of_method("dpm3", F16)
    plain = StageSpec(LINEAR, False, True, 1 << X | 1 << M, 0, 1)
    noisy = plain._replace(u_mask=plain.u_mask | 1 << ZA)
    second = 1 << H1
    found |= {
        "ddpm, clipped, bfloat16": of_spec(noisy._replace(convert=CLIP), BF16),
        "ddpm, learned variance, float32": of_spec(StageSpec(*noisy[:6], 1), F32),
        "ddpm, learned variance, bfloat16": of_spec(StageSpec(*noisy[:6], 1), BF16),
        "dpmpp2m, guided, bfloat16": of_spec(plain._replace(guided=True, u_mask=plain.u_mask | second, copies=2), BF16),
        "dpmpp2m, guided, clipped, bfloat16": of_spec(
            plain._replace(convert=CLIP, guided=True, u_mask=plain.u_mask | second, copies=2), BF16
        ),
        "dpmpp2m, guided, blended, float16": of_spec(
            plain._replace(convert=BLEND, guided=True, u_mask=plain.u_mask | second, copies=2), F16
        ),
        "dpmpp2m_sde, guided, bfloat16": of_spec(
            noisy._replace(guided=True, u_mask=noisy.u_mask | second, copies=2), BF16
        ),
    }
    return found


PATH_NORMALS = 28
"""About as many as an increment of a Brownian path is the sum of."""
FRAMES = 4


def others() -> dict[str, Stage]:
    """dpmpp2m_sde, float32, with what has a kernel of its own."""
    spec, k, coeffs, buf = of_method("dpmpp2m_sde", F32)
    batch, n = SHAPE[0], math.prod(SHAPE[1:])
    rows = torch.full((k + 1, batch, FRAMES), k, dtype=torch.int32)
    one = torch.zeros(PATH_WIDTH, dtype=torch.int32)
    one[0] = PATH_NORMALS
    one[1 : 1 + 2 * PATH_NORMALS : 2] = torch.arange(PATH_NORMALS, dtype=torch.int32)
    one[2 : 2 + 2 * PATH_NORMALS : 2] = torch.full((PATH_NORMALS,), PATH_NORMALS**-0.5).view(torch.int32)
    return {
        "a row for each frame": (spec, k, replace(coeffs, rows=rows, inner=n // FRAMES), buf),
        "squares of the noise": (spec, k, coeffs, replace(buf, squares=torch.empty(batch, n // CHUNK))),
        "noise of a Brownian path": (
            spec._replace(path=TERMS), k, replace(coeffs, draws=one.repeat(len(coeffs.draws), 3)), buf,
        ),
    }  # fmt: skip
