"""The CUDA kernels' machine code, executed: the code that the extension carries, for each architecture, without a GPU.

The machine (`machine.py`) raises for an instruction that it does not know, for an access that is misaligned or outside
of every buffer, and where threads wait for ever.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pytest
import sass
import torch
from helpers.stage_cases import NORMAL_TOLERANCE, Case, check, random_case
from launches import Backend, Kernels, Space
from variants import ALL, FRAMES, ONE, SHAPE, TWO, Variant, case_for, variants

from fastdiff.ops import cpu, philox, reference
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.ops.layout import LINEAR, NEXT_U, NEXT_X, NONE, WIDTH, StageSpec
from fastdiff.plan import H1, ZA, M, X

_spec = importlib.util.find_spec("fastdiff._cuda")
if _spec is None or _spec.origin is None:
    pytest.skip("fastdiff._cuda is not built: there was no nvcc, or FASTDIFF_CUDA=0", allow_module_level=True)
if sass.tool("cuobjdump") is None or sass.tool("nvdisasm") is None:
    pytest.skip("cuobjdump and nvdisasm are neither in the triton package nor on PATH", allow_module_level=True)
BINARY = _spec.origin
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities and NaN that are meant


@functools.cache
def kernels(arch: str) -> Kernels:
    folder = tempfile.mkdtemp(prefix="fastdiff-cubins-")
    found = Kernels(BINARY, arch, Path(folder))
    if not found.cubins:
        pytest.skip(f"the extension carries no code for {arch}")
    return found


UNITS = {
    "float16": lambda v: v.state == torch.float32 and v.known and v.net == torch.float16,
    "bfloat16": lambda v: v.state == torch.float32 and v.known and v.net == torch.bfloat16,
    "float32": lambda v: v.state == torch.float32 and (not v.known or v.net == torch.float32),
    "float64": lambda v: v.state == torch.float64,
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("arch", ARCHITECTURES[:2])
@pytest.mark.slow
def test_every_stage_kernel(arch: str, unit: str) -> None:
    """Each on a stage of its own, against the reference in float64; and no kernel is left out."""
    found = kernels(arch)
    for seed, v in enumerate(filter(UNITS[unit], variants())):
        before = set(found.used)
        backend = Backend(found)
        check(backend, case_for(v, seed))
        ran = backend.ran
        kinds = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
        dtypes = f"Li{kinds[v.net] if v.known else 4}ELi{4 if v.shape >= ALL else kinds[v.hist]}E"
        flags = "".join(f"Lb{int(flag)}E" for flag in (v.paired, v.learned, v.noise, v.path, v.wide))
        expected = f"stage_kernelI{'d' if v.state == torch.float64 else 'f'}{dtypes}Li{v.shape}ELi{v.entries}E{flags}E"
        assert ran == [expected], v
        assert len(found.used) == len(before) + 1 or found.name(expected) in before


def test_the_list_of_kernels_is_whole() -> None:
    names = [name for name in kernels("sm_90").cubins if "stage_kernel" in name]
    assert len(names) == len(set(variants())) == len(list(variants()))


@pytest.mark.parametrize("chunk", range(3))
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_random_stages(arch: str, chunk: int) -> None:
    """Any structure, in odd sizes and even ones, skewed or not; as many by wide accesses as by narrow ones."""
    found, wide = kernels(arch), 0
    shapes = ((2, 3, 16, 16), (1, 64), (7, 5, 41), (3, 1024), (5, 4), (2, 1028), (1, 1))
    for seed in range(16 * chunk, 16 * chunk + 16):
        backend = Backend(found, skew=(0, 0, 16, 0, 8)[seed % 5])
        check(backend, random_case(seed, shape=shapes[seed % len(shapes)]))
        wide += backend.ran[0].endswith("Lb1EE")
    assert wide >= 8


@pytest.mark.parametrize("network", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 320), (1, 2, 1024), (2, 5, 4), (1, 2, 132), (2, 3, 42)])
def test_frames_of_any_length(shape: tuple[int, ...], network: torch.dtype) -> None:
    """A thread's two groups of 4 elements are of one frame or of two; 42 elements are no multiple of 4."""
    mask = 1 << X | 1 << M | 1 << H1 | 1 << ZA
    for seed, x_mask in enumerate((0, mask)):
        spec = StageSpec(LINEAR, False, True, mask, x_mask, 1)
        case = random_case(50 + seed, spec=spec, state=torch.float32, network=network, shape=shape, frames=1)
        case.buf.z = (None, None, None)
        if not x_mask:
            case.buf.u = case.buf.x
        assert case.buf.net_in is not None
        case.buf.net_in = case.buf.net_in.to(network)
        backend = Backend(kernels("sm_90"))
        check(backend, case)
        name = backend.ran[0]
        assert f"Li{FRAMES}ELi6E" in name
        assert ("Li4ELi4E" in name) == bool(x_mask or shape[-1] % 4)


@pytest.mark.parametrize("chunk", range(2))
def test_the_same_bits_as_on_the_cpu(chunk: int) -> None:
    """The fused multiply-adds are written out, in one order: given the same noise, nothing differs. The normals differ
    by 2 units in the last place."""
    compared = 0
    for seed in range(900 + 24 * chunk, 924 + 24 * chunk):
        shape = ((2, 3, 16, 16), (3, 41))[seed % 3 == 0]
        case = random_case(seed, shape=shape, state=torch.float32)
        state, z = case.coeffs.table.dtype, list(case.buf.z)
        for i in range(3):
            if case.spec.reads_z(i):
                z[i] = torch.randn(shape, dtype=state)
        case.buf.z = (z[0], z[1], z[2])
        ours, theirs = case.fresh(), case.fresh()
        Backend(kernels("sm_90")).stage(case.spec, case.k, case.coeffs, ours)
        cpu.stage(case.spec, case.k, case.coeffs, theirs)
        for name in ("u_out", "x_out", "m_out", "net_in"):
            a, b = getattr(ours, name), getattr(theirs, name)
            if a is not None:
                assert torch.equal(a.nan_to_num(), b.nan_to_num()), (seed, name, case.spec)
                compared += 1
    assert compared >= 40


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_small_and_odd_sizes(arch: str) -> None:
    """Sizes around what a group, a warp and a block handle, with noise, which makes samples differ."""
    spec = StageSpec(NONE, False, False, 1 << X | 1 << ZA, 0, 1)
    for n in (1, 3, 4, 5, 124, 128, 132, 252, 256, 260, 512, 516, 1020, 2048, 2052):
        case = random_case(n, spec=spec, state=torch.float32, network=torch.float32, shape=(2, n))
        case.buf.z = (None, None, None)
        check(Backend(kernels(arch)), case)


@pytest.mark.parametrize("seed", range(4))
def test_the_grid_strides_over_samples(seed: int) -> None:
    """A batch of more than 65535 samples, in small: two rows of blocks for seven samples."""
    case = random_case(700 + seed, shape=(7, (64, 41)[seed % 2]), state=torch.float32)
    backend = Backend(kernels("sm_90"), rows=2)
    check(backend, case)


def drawn(arch: str, state: torch.dtype, n: int, which: str) -> torch.Tensor:
    """(2, n) normals of draw 4 as a stage gives them: u' = za."""
    mask, spec = 1 << ZA, StageSpec(NONE, False, False, 1 << ZA, 0, 0)
    table = torch.zeros(1, WIDTH, dtype=state)
    table[0, NEXT_U + ZA] = table[0, NEXT_X + ZA] = 1
    coeffs = Coeffs(
        table, torch.tensor([[4, -1, -1]], dtype=torch.int32), torch.tensor([5, -3]),
        torch.tensor([0, 9], dtype=torch.int32),
    )  # fmt: skip
    buf = Buffers(u_out=torch.full((2, n), torch.nan, dtype=state))
    if which == "TWO":
        spec = spec._replace(x_mask=mask)
        buf.x_out = torch.full_like(buf.u_out, torch.nan)
    elif which == "ALL":  # h4 is read, and is 0
        spec = spec._replace(u_mask=mask | 8 << H1)
        buf.h = (None, None, None, torch.zeros(2, n, dtype=state))
    backend = Backend(kernels(arch))
    backend.stage(spec, 0, coeffs, buf)
    assert buf.u_out is not None
    shape = {"ONE": ONE, "TWO": TWO, "ALL": ALL}[which]
    assert n % 4 or state == torch.float64 or f"Li{shape}ELi" in backend.ran[0]
    return buf.u_out.float()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_noise_has_the_same_bits_in_every_kernel(arch: str) -> None:
    """And is within the contract: 2 units in the last place, or 1e-6."""
    n = 2048
    seeds, index = torch.tensor([5, -3]), torch.tensor([0, 9], dtype=torch.int32)
    outs = []
    for length in (n, n - 1):
        for dtype in (torch.float32, torch.float64):
            out = torch.full((2, length), torch.nan, dtype=dtype)
            Backend(kernels(arch)).normal_(out, seeds, index, 4, philox.STEP)
            outs.append(out.float()[:, : n - 1])
            for which in ("ONE", "TWO", "ALL"):
                outs.append(drawn(arch, dtype, length, which)[:, : n - 1])
    for out in outs[1:]:
        assert torch.equal(out, outs[0])
    truth = [philox.normals(n - 1, seed, i, 4, philox.STEP) for seed, i in ((5, 0), (2**64 - 3, 9))]
    want = torch.from_numpy(np.stack(truth)).double()
    allowed = torch.clamp(2 * want.abs() * 2.0**-23, min=NORMAL_TOLERANCE)
    assert ((outs[0].double() - want).abs() <= allowed).all()


def test_the_square_root_rounds_to_nearest() -> None:
    """Through the radius: where the cosine is 1, a normal is sqrt(-2 ln u), of which few words give u next to 1."""
    n = 1 << 14
    out = torch.empty(1, n)
    Backend(kernels("sm_90")).normal_(out, torch.tensor([1]), torch.tensor([0], dtype=torch.int32), 0, 0)
    words = philox.integers(n, 1, 0, 0, 0).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log(philox.uniforms(words[:, 0]).astype(np.float64)))
    got = out.double().reshape(-1, 2).norm(dim=1).numpy()
    # Roundings: 2 of the logarithm, 1 of the root, 3 of sine and cosine.
    assert (np.abs(got - radius) <= 6 * 2.0**-24 * radius).all()


def test_offsets_beyond_32_bits() -> None:
    """The last whole block of a sample of 2^33 + 2048 elements; only its part of the memory is there."""
    n = 2**33 + 2048
    x, out = torch.randn(2048), torch.full((2048,), torch.nan)
    table = torch.zeros(1, WIDTH)
    table[0, NEXT_U] = 2
    space, found = Space(), kernels("sm_90")
    from fastdiff import _cuda

    start = 4 * (n - 2048)
    given = (StageSpec(NONE, False, False, 1, 0, 0), 0, 1, n, 2, 2, 2, 2, space.address(x) - start)
    nothing: tuple[None, ...] = (None,) * 3
    pointers = (None, None, None, (), nothing, space.address(out) - start, None, None, None, space.address(table))
    fragment, grid_x, _, threads, arguments = _cuda.stage_launch(*given, *pointers, *(None,) * 7, 0, 0, None, 0, 0)
    assert threads == 256 and grid_x == n // 2048
    found.machine(fragment, (1, 1), threads, arguments, space, first_block=grid_x - 1).run()
    space.take_back()
    assert torch.equal(out, 2 * x)


def test_a_table_that_is_not_aligned_is_read_number_by_number() -> None:
    case = random_case(3, spec=StageSpec(NONE, False, False, 1, 0, 0), state=torch.float32, shape=(1, 64))
    whole = torch.zeros(case.coeffs.table.numel() + 1)
    whole[1:] = case.coeffs.table.reshape(-1)
    case.coeffs.table = whole[1:].reshape(case.coeffs.table.shape)
    backend = Backend(kernels("sm_90"))
    check(backend, case)
    assert backend.ran[0].endswith("Lb0EE")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize(("n", "elements"), [(1, 4), (700, 700), (701, 704), (1200, 400)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.slow
def test_quantiles(arch: str, n: int, elements: int, dtype: torch.dtype) -> None:
    """By blocks alone and by several, in packs and one by one, with ties, an infinite element and a NaN."""
    x = torch.randn(3, n, dtype=dtype)
    x[1] = x[1].mul(4).round()
    x[2, n // 2] = torch.nan if n == 701 else torch.inf
    for q in (0.995, 0.5):
        out, want = torch.full((3,), 7.0, dtype=dtype), torch.empty(3, dtype=dtype)
        reference.quantile_(want, x, q)
        Backend(kernels(arch)).quantile_(out, x, q, elements)
        torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)


def test_quantiles_with_warps_in_any_order() -> None:
    x, out, want = torch.randn(1, 520), torch.empty(1), torch.empty(1)
    reference.quantile_(want, x, 0.9)
    for seed, elements in enumerate((520, 260)):
        Backend(kernels("sm_90"), order=np.random.default_rng(seed)).quantile_(out, x, 0.9, elements)
        assert torch.equal(out, want)


@pytest.mark.parametrize("arch", ARCHITECTURES[:2])
def test_warps_may_run_in_any_order(arch: str) -> None:
    """Outputs in place of inputs: no thread may read what another writes."""
    for seed, shape in enumerate((ONE, TWO, ALL)):
        entries, flag = (6, True) if shape == ALL else (2, False)  # of ALL, the one that takes any stage
        v = Variant(torch.float32, torch.bfloat16, torch.float32, shape, entries, flag, flag, True, known=False)
        check(Backend(kernels(arch), order=np.random.default_rng(seed)), case_for(v, seed))


def test_what_a_stage_does_not_read_is_not_touched() -> None:
    """A table whose unused coefficients are NaN gives the same numbers."""
    v = Variant(torch.float32, torch.bfloat16, torch.float32, ONE, 1, False, False, True)
    case = case_for(v, 5)
    first, second = case.fresh(), case.fresh()
    Backend(kernels("sm_90")).stage(case.spec, case.k, case.coeffs, first)
    unused = case.coeffs.table == 0
    case.coeffs.table[unused] = torch.nan
    Backend(kernels("sm_90")).stage(case.spec, case.k, case.coeffs, second)
    assert first.u_out is not None and second.u_out is not None
    assert torch.equal(first.u_out.nan_to_num(), second.u_out.nan_to_num())


def test_the_reference_and_the_kernels_take_the_same_stages() -> None:
    """`check` compares with the reference; it must itself tell a wrong number."""

    class Wrong(Backend):
        def stage(self, spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
            super().stage(spec, k, coeffs, buf)
            if buf.u_out is not None:
                buf.u_out.view(-1)[7] += 1e-3

    v = Variant(torch.float32, torch.float32, torch.float32, ONE, 0, False, False, False)
    case: Case = case_for(v, 1)
    assert case.buf.u_out is not None and case.buf.u_out.shape == SHAPE
    with pytest.raises(AssertionError, match="1 of 1280 elements outside the bound; element 7"):
        check(Wrong(kernels("sm_90")), case)
    check(reference, case)
