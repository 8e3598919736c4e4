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
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
Stage = tuple[StageSpec, int, Coeffs, Buffers]


def of_method(method: str, network: torch.dtype) -> Stage:
    """A method's fullest stage."""
    case = fused.make_case(method, SHAPE, network)
    return case.spec, case.k + 1, case.coeffs, case.sets[0]


def of_spec(spec: StageSpec, network: torch.dtype, state: torch.dtype = F32, own_noise: bool = False) -> Stage:
    """A stage whose history is in the state's dtype; x and u are one buffer unless there is an x'.

    own_noise: za is the user's.
    """
    batch, shape = SHAPE[0], SHAPE
    coeffs = Coeffs(
        torch.randn(2, WIDTH, dtype=state), torch.ones(2, 3, dtype=torch.int32), torch.full((batch,), 7),
        torch.arange(batch, dtype=torch.int32),
    )  # fmt: skip

    def drawn() -> torch.Tensor:
        return torch.randn(shape, dtype=state)

    if spec.clips:
        one = torch.ones(batch, dtype=state)
        coeffs.lo, coeffs.hi, coeffs.scale = -one, one, one
    x = drawn()
    learned = spec.learned

    def network_output(twice: bool) -> torch.Tensor:
        return torch.randn(batch, shape[1] * (2 if twice else 1), *shape[2:]).to(network)

    buf = Buffers(x=x, u=x, u_out=x, first=network_output(learned > 0))
    if spec.x_mask:
        buf.u, buf.x_out = drawn(), x
        buf.u_out = buf.u
    if spec.guided or spec.mask >> SECOND & 1:
        buf.second = network_output(learned == 2)
    buf.h = tuple(drawn() if spec.reads_h(i) else None for i in range(spec.history))
    if buf.h:
        buf.m_out = buf.h[-1]
    if own_noise:
        buf.z = (drawn(), None, None)
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


def framed(stage: Stage, frames: int = FRAMES) -> Stage:
    """The stage with a row for each frame."""
    spec, k, coeffs, buf = stage
    batch, n = SHAPE[0], math.prod(SHAPE[1:])
    rows = torch.full((k + 1, batch, frames), k, dtype=torch.int32)
    return spec, k, replace(coeffs, rows=rows, inner=n // frames), buf


def summed(stage: Stage) -> Stage:
    """The stage with the sums of the noise's squares."""
    spec, k, coeffs, buf = stage
    squares = torch.empty(SHAPE[0], math.prod(SHAPE[1:]) // CHUNK, dtype=coeffs.table.dtype)
    return spec, k, coeffs, replace(buf, squares=squares)


def others() -> dict[str, Stage]:
    """What no method's stage with default options is like."""
    plain = StageSpec(LINEAR, False, True, 1 << X | 1 << M, 0, 0)
    noisy = plain._replace(u_mask=plain.u_mask | 1 << ZA)

    def reading(spec: StageSpec, entries: int) -> StageSpec:
        """The stage with so many entries of the history."""
        return spec._replace(u_mask=spec.u_mask | (1 << entries) - 1 << H1)

    sde = reading(noisy, 1)
    guided = sde._replace(guided=True, copies=2)
    found = {f"history of {n}, float32": of_spec(reading(plain, n), F32) for n in (4, 5, 6)}
    found |= {
        "history of 6, bfloat16": of_spec(reading(plain, 6)._replace(copies=1), BF16),
        "history of 6, guided, bfloat16": of_spec(reading(plain, 6)._replace(guided=True, copies=2), BF16),
        "history of 4, noise, float32": of_spec(reading(noisy, 4), F32),
        "only h2, float32": of_spec(plain._replace(u_mask=plain.u_mask | 2 << H1), F32),
        "own noise, float32": of_spec(sde, F32, own_noise=True),
        "own noise, guided, bfloat16": of_spec(guided, BF16, own_noise=True),
        "learned variance, history, float32": of_spec(sde._replace(learned=1), F32),
        "learned variance, history, bfloat16": of_spec(sde._replace(learned=1, copies=1), BF16),
        "learned variance, guided, history, bfloat16": of_spec(guided._replace(learned=2), BF16),
        "a row for each frame, no noise, float32": framed(of_spec(reading(plain, 1), F32)),
        "a row for each frame, no noise, bfloat16": framed(of_spec(reading(plain, 1)._replace(copies=1), BF16)),
        "a row for each frame, float32": framed(of_spec(sde, F32)),
        "a row for each frame, guided, bfloat16": framed(of_spec(guided, BF16)),
        "squares of the noise, float32": summed(of_spec(sde, F32)),
        "squares of the noise, guided, bfloat16": summed(of_spec(guided, BF16)),
        "ddim, float64": of_spec(plain, F64, F64),
        "ddim, float64 beside a float32 network": of_spec(plain._replace(copies=1), F32, F64),
        "history of 2, float64": of_spec(reading(plain, 2), F64, F64),
        "ddpm, float64": of_spec(noisy, F64, F64),
        "dpmpp2m_sde, float64": of_spec(sde, F64, F64),
    }
    spec, k, coeffs, buf = of_spec(sde, F32)
    one = torch.zeros(PATH_WIDTH, dtype=torch.int32)
    one[0] = PATH_NORMALS
    one[1 : 1 + 2 * PATH_NORMALS : 2] = torch.arange(PATH_NORMALS, dtype=torch.int32)
    one[2 : 2 + 2 * PATH_NORMALS : 2] = torch.full((PATH_NORMALS,), PATH_NORMALS**-0.5).view(torch.int32)
    path = replace(coeffs, draws=one.repeat(len(coeffs.draws), 3))
    found["noise of a Brownian path, float32"] = spec._replace(path=TERMS), k, path, buf
    return found
