"""The CPU back end's memory: a small stack, and streams that were not given."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from fastdiff.ops import Buffers, Coeffs, cpu, reference
from fastdiff.ops.layout import BLEND, CLIP, LINEAR, NEXT_U, NONE, RAW, WIDTH, StageSpec
from fastdiff.plan import H1, SECOND, ZA, M, U, X

needs_cpu = pytest.mark.skipif(not cpu.available()[0], reason=cpu.available()[1])
BACKENDS = [pytest.param(cpu, marks=needs_cpu, id="cpu"), pytest.param(reference, id="reference")]

# Every kind of stage and the noise, on the calling thread alone and with helpers, in a thread whose stack is 128 kB.
SMALL_STACK = """
import threading, torch, fastdiff
from fastdiff.ops import cpu

x = torch.randn(2, 40_000, dtype=torch.float64)
samplers = [fastdiff.Sampler("dpmpp2m_sde", 3, dtype=d, clip=c) for d in (torch.float32, torch.float64)
            for c in (None, "dynamic")]
model = lambda x, t: 0.1 * x
for s in samplers:
    s(model, x)  # whatever torch loads late
results = []
def run():
    for s in samplers:
        results.append(s(model, x))
threading.stack_size(128 << 10)
worker = threading.Thread(target=run)
worker.start(), worker.join()
assert len(results) == 4
print("alive")
"""


@needs_cpu
def test_a_thread_with_a_small_stack_survives() -> None:
    done = subprocess.run([sys.executable, "-c", SMALL_STACK], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), (done.returncode, done.stderr)


def run(backend: Any, spec: StageSpec, without: str = "") -> None:
    """A stage with every stream that it could want, but for `without`."""
    wide = torch.ones(2, 6)
    table = torch.zeros(1, WIDTH)
    table[0, NEXT_U : NEXT_U + 13] = 1.0
    coeffs = Coeffs(
        table, torch.zeros((1, 3), dtype=torch.int32), torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int32), torch.full((2,), -1.0), torch.ones(2), torch.ones(2),
    )  # fmt: skip
    first = torch.ones(2, 12) if spec.learned else wide.clone()
    buf = Buffers(
        x=wide.clone(), u=wide.clone(), first=first, second=wide.clone(),
        h=tuple(None if without == f"h{i + 1}" else wide.clone() for i in range(6)),
        u_out=wide.clone(), x_out=wide.clone(), net_in=torch.ones(2 * max(spec.copies, 1), 6),
    )  # fmt: skip
    for where in (coeffs, buf):
        if hasattr(where, without):
            setattr(where, without, None)
    backend.stage(spec, 0, coeffs, buf)


CASES = [
    (StageSpec(NONE, False, False, 1 << X, 0, 0), "x"),
    (StageSpec(NONE, False, False, 1 << U, 0, 0), "u"),
    (StageSpec(LINEAR, False, True, 1 << M, 0, 0), "u"),
    (StageSpec(RAW, False, False, 1 << M, 0, 0), "first"),
    (StageSpec(RAW, True, False, 1 << M, 0, 0), "second"),
    (StageSpec(RAW, False, False, 1 << SECOND, 0, 0), "second"),
    (StageSpec(RAW, False, False, 1 << X, 1 << SECOND, 0), "second"),
    *((StageSpec(RAW, False, False, 1 << H1 + i, 0, 0), f"h{i + 1}") for i in range(6)),
    (StageSpec(CLIP, False, True, 1 << M, 0, 0), "lo"),
    (StageSpec(BLEND, False, True, 1 << M, 0, 0), "hi"),
    (StageSpec(CLIP, False, False, 1 << M, 0, 0), "scale"),
    (StageSpec(RAW, False, False, 1 << M | 1 << ZA, 0, 0, 1), "first"),
    (StageSpec(NONE, False, False, 1 << X, 1 << X, 0), "x_out"),
    (StageSpec(NONE, False, False, 1 << X, 0, 2), "net_in"),
    (StageSpec(NONE, False, False, 1 << M, 0, 0), "first"),
    (StageSpec(NONE, False, False, 1 << ZA, 0, 0), "draws"),
    (StageSpec(NONE, False, False, 1 << ZA + 2, 0, 0), "index"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("spec", "name"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_stream_that_is_read_and_not_given_is_an_error(backend: Any, spec: StageSpec, name: str) -> None:
    # In the kernel it would be a read of address 0.
    if spec.convert != NONE or not spec.mask >> M & 1:
        run(backend, spec)
    with pytest.raises(ValueError, match=rf"^the stage needs .*\b{name}\b.*, which was not given$"):
        run(backend, spec, name)


@needs_cpu
@pytest.mark.parametrize(
    "spec",
    [
        StageSpec(7, False, False, 1 << X, 0, 0),
        StageSpec(NONE, False, False, 1 << 13, 0, 0),
        StageSpec(NONE, False, False, 1 << X, 0, 3),
        StageSpec(NONE, False, False, 1 << X, 0, 0, 3),
    ],
)
def test_a_structure_that_no_kernel_knows_is_an_error(spec: StageSpec) -> None:
    with pytest.raises(ValueError, match="a number of the structure, a dtype or a size is out of range"):
        run(cpu, spec)


@needs_cpu
def test_noise_and_quantiles_refuse_tensors_without_memory() -> None:
    # Of no elements but a batch: what a storage resized to 0 looks like to the kernel.
    gone = torch.empty(2, 3)
    gone.untyped_storage().resize_(0)
    seeds, index = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="out has no memory"):
        cpu.normal_(gone, seeds, index, 0, 0)
    with pytest.raises(ValueError, match="x0 has no memory"):
        cpu.quantile_(torch.empty(2), gone, 0.5)
