"""The Triton back end against the reference, in Triton's interpreter.

Triton decides when its kernels are imported whether they are interpreted, and other tests compile the same kernels.
So these tests run in a process of their own: outside it, this file is the one test that starts it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED:

    @pytest.mark.slow
    def test_in_the_interpreter() -> None:
        """Run this file with TRITON_INTERPRET=1."""
        pytest.importorskip("triton")
        root = Path(__file__).resolve().parents[2]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
        run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]

else:
    import triton
    import triton.language as tl
    from helpers.stage_cases import NETWORK, NORMAL_TOLERANCE, STATE, check, random_case

    import fastdiff
    from fastdiff._triton import noise as kernels
    from fastdiff._triton import stage as stage_module
    from fastdiff.ops import Buffers, Coeffs, philox
    from fastdiff.ops import layout as table
    from fastdiff.ops import triton as backend
    from fastdiff.ops.layout import BLEND, CLIP, LINEAR, NONE, RAW, WIDTH, StageSpec
    from fastdiff.plan import H1, SECOND, ZA, M, U, X

    MAX_SEED = 2**63

    @triton.jit
    def words_kernel(counter, seeds, out):
        """Philox of the counters (rows, 4) under each row's key; out (rows, 4)."""
        i = tl.program_id(0)
        c0 = tl.load(counter + i * 4).to(tl.uint32, bitcast=True)
        c1 = tl.load(counter + i * 4 + 1).to(tl.uint32, bitcast=True)
        c2 = tl.load(counter + i * 4 + 2).to(tl.uint32, bitcast=True)
        c3 = tl.load(counter + i * 4 + 3).to(tl.uint32, bitcast=True)
        w0, w1, w2, w3 = kernels.philox(c0, c1, c2, c3, tl.load(seeds + i))
        tl.store(out + i * 4, w0.to(tl.int32, bitcast=True))
        tl.store(out + i * 4 + 1, w1.to(tl.int32, bitcast=True))
        tl.store(out + i * 4 + 2, w2.to(tl.int32, bitcast=True))
        tl.store(out + i * 4 + 3, w3.to(tl.int32, bitcast=True))

    @triton.jit
    def turn_kernel(a, b, first, second, BLOCK: tl.constexpr):
        offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        words_a = tl.load(a + offset).to(tl.uint32, bitcast=True)
        words_b = tl.load(b + offset).to(tl.uint32, bitcast=True)
        z0, z1 = kernels.box_muller(words_a, words_b)
        tl.store(first + offset, z0)
        tl.store(second + offset, z1)

    def signed(words: np.ndarray | list[int]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(words, dtype=np.uint32).view(np.int32).copy())

    def test_says_what_it_runs_on() -> None:
        ok, why = backend.available()
        assert ok and "TRITON_INTERPRET" in why
        assert backend.supports(torch.device("cpu"), torch.float32, torch.bfloat16)[0]
        assert not backend.supports(torch.device("cuda"), torch.float32, torch.float32)[0]
        for state, network in ((torch.float16, torch.float16), (torch.float32, torch.int32)):
            ok, why = backend.supports(torch.device("cpu"), state, network)
            assert not ok and str(state if state == torch.float16 else network) in why

    def test_constants_are_those_of_the_table() -> None:
        """The kernel cannot import them: Triton reads only constexpr globals."""
        names = ("W1", "W2", "CU", "CG", "PU", "PG", "QU", "QX", "IN_SCALE", "NEXT_U", "NEXT_X", "S0", "S1", "QG")
        for name in (*names, "WIDTH", "NONE", "RAW", "LINEAR", "CLIP", "BLEND"):
            assert getattr(stage_module, name).value == getattr(table, name), name
        for name, number in {"X": X, "U": U, "M": M, "H1": H1, "SECOND": SECOND, "ZA": ZA}.items():
            assert getattr(stage_module, name).value == number, name
        assert stage_module.STEP.value == philox.STEP

    def test_known_answers() -> None:
        """The kat_vectors of Random123 for philox4x32 with 10 rounds."""
        counters = [[0] * 4, [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]]
        seeds = torch.tensor([0, -1, 0x299F31D0_A4093822], dtype=torch.int64)
        out = torch.zeros(3, 4, dtype=torch.int32)
        words_kernel[(3,)](signed(counters), seeds, out)
        expected = [
            [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ]
        assert out.numpy().view(np.uint32).tolist() == expected

    @pytest.mark.parametrize("n", [1, 7, 1025])
    @pytest.mark.parametrize("draw", [0, 0xFFFFFFFE])
    def test_words_are_the_contract_bit_for_bit(n: int, draw: int) -> None:
        seeds, index = [0, -1, 0x0123456789ABCDEF, -MAX_SEED, 2**32], [0, 2**31 - 1, 5, 0, 1]
        out = torch.zeros(5, n, dtype=torch.int32)
        backend.words_(out, torch.tensor(seeds), torch.tensor(index, dtype=torch.int32), draw, philox.PRIOR)
        for b in range(5):
            expected = philox.integers(n, seeds[b], index[b], draw, philox.PRIOR)
            np.testing.assert_array_equal(out[b].numpy().view(np.uint32), expected)

    @pytest.mark.parametrize("dtype", STATE)
    @pytest.mark.parametrize("n", [1, 7, 1025])
    def test_normals_are_within_the_contract(n: int, dtype: torch.dtype) -> None:
        seeds, index = [3, -4], [0, 9]
        out = torch.full((2, n), torch.nan, dtype=dtype)
        backend.normal_(out, torch.tensor(seeds), torch.tensor(index, dtype=torch.int32), 2, philox.STEP)
        for b in range(2):
            expected = philox.normals(n, seeds[b], index[b], 2, philox.STEP).astype(np.float64)
            np.testing.assert_allclose(out[b].double().numpy(), expected, rtol=0, atol=NORMAL_TOLERANCE)

    def test_box_muller_at_the_edges_and_in_between() -> None:
        """Against float64, for radii where u is next to 0 and to 1, and angles next to every change of quadrant.

        Allowed: 2 ulp of float32, or 1e-6. Small radii (u next to 1) must be right to a relative 1e-6, which a
        logarithm with a merely absolute error would miss.
        """
        edges = [0, 1, 2, 127, 128, 2**31, 2**32 - 1, 2**32 - 128, 2**32 - 129, 2**32 - 400, 2**32 - 2**20]
        turns = [(quarter * 2**29 + d) % 2**32 for quarter in range(8) for d in (-65, -1, 0, 1, 64)]
        grid = np.array([(a, b) for a in edges for b in turns], dtype=np.uint32)
        rng = np.random.default_rng(1)
        pairs = np.concatenate([grid, rng.integers(0, 2**32, (2**16 - len(grid), 2), dtype=np.uint32)])
        first, second = torch.empty(2**16), torch.empty(2**16)
        turn_kernel[(4,)](signed(pairs[:, 0]), signed(pairs[:, 1]), first, second, BLOCK=2**14)
        u = philox.uniforms(pairs[:, 0]).astype(np.float64)
        angle = pairs[:, 1].astype(np.float64) * (2 * np.pi / 2**32)
        radius = np.sqrt(-2 * np.log(u))
        for got, expected in ((first, radius * np.cos(angle)), (second, radius * np.sin(angle))):
            error = np.abs(got.double().numpy() - expected)
            assert (error <= np.maximum(1e-6, 2 * np.spacing(np.abs(expected).astype(np.float32)))).all()
        length = np.hypot(first.double().numpy(), second.double().numpy())
        np.testing.assert_allclose(length, radius, rtol=1e-6, atol=0)

    def test_noise_does_not_depend_on_the_batch_split() -> None:
        seeds, index = torch.full((7,), 11), torch.arange(7, dtype=torch.int32)
        whole, n = torch.empty(7, 300), 300
        backend.normal_(whole, seeds, index, 0, 0)
        for first, last in ((0, 1), (1, 4), (4, 7)):
            part = torch.empty(last - first, n)
            backend.normal_(part, seeds[first:last].clone(), index[first:last].clone(), 0, 0)
            assert torch.equal(part, whole[first:last])
        assert len(torch.unique(whole)) > 2090  # no sample, and no block, repeats another

    @pytest.mark.parametrize("seed", range(80))
    def test_stage(seed: int) -> None:
        check(backend, random_case(seed))

    @pytest.mark.parametrize("convert", [NONE, RAW, LINEAR, CLIP, BLEND])
    @pytest.mark.parametrize("copies", [0, 1, 2])
    @pytest.mark.parametrize("guided", [False, True])
    def test_structures(convert: int, copies: int, guided: bool) -> None:
        seed = 1000 + convert * 6 + copies * 2 + guided
        mask = 1 << X | 1 << U | (1 << M if convert else 0) | (1 << SECOND if guided else 0)
        spec = StageSpec(convert, guided and convert != NONE, convert in (LINEAR, CLIP, BLEND), mask, 1 << X, copies)
        check(backend, random_case(seed, spec=spec, shape=(2, 37)))

    @pytest.mark.parametrize("history", range(7))
    @pytest.mark.parametrize("noises", range(4))
    def test_history_and_noises(history: int, noises: int) -> None:
        mask = 1 << U | 1 << M | sum(1 << (H1 + i) for i in range(history)) | sum(1 << (ZA + i) for i in range(noises))
        spec = StageSpec(RAW, False, False, mask, 0, 1)
        check(backend, random_case(2000 + 4 * history + noises, spec=spec, shape=(2, 21)))

    @pytest.mark.parametrize("state", STATE)
    @pytest.mark.parametrize("network", NETWORK)
    @pytest.mark.parametrize("shape", [(1, 1), (7, 7), (1, 1025)])
    def test_dtypes_and_sizes(state: torch.dtype, network: torch.dtype, shape: tuple[int, int]) -> None:
        spec = StageSpec(CLIP, True, True, 1 << X | 1 << M | 1 << H1 | 1 << ZA, 1 << X | 1 << M, 2)
        check(backend, random_case(7, spec=spec, state=state, network=network, shape=shape))

    def test_wide_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backend, "_WIDE", 0)
        for seed in range(6):
            check(backend, random_case(seed, shape=(2, 1100)))

    def copy_through(values: torch.Tensor, dtype: torch.dtype, **clip: torch.Tensor) -> torch.Tensor:
        """`values` (1, n) through a stage with unit coefficients into a network input of `dtype`."""
        rows = torch.zeros(1, WIDTH, dtype=values.dtype)
        rows[0, [table.PG, table.QX, table.IN_SCALE, table.NEXT_U + M]] = 1
        draws, seeds = torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        coeffs = Coeffs(rows, draws, seeds, index=torch.zeros(1, dtype=torch.int32), **clip)
        net_in = torch.full_like(values, torch.nan, dtype=dtype)
        spec = StageSpec(CLIP if clip else RAW, False, False, 1 << M, 0, 1)
        backend.stage(spec, 0, coeffs, Buffers(first=values, net_in=net_in))
        return net_in

    # The interpreter's NumPy warns; the infinity is meant.
    @pytest.mark.filterwarnings("ignore:overflow encountered in cast")
    @pytest.mark.parametrize("dtype", NETWORK)
    @pytest.mark.parametrize("state", STATE)
    def test_rounding_to_the_network_dtype_is_pytorchs(dtype: torch.dtype, state: torch.dtype) -> None:
        """Ties to even, both infinities, NaN, overflow, and subnormal numbers."""
        ties = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-8, 1 + 2.0**-8 + 2.0**-20]
        special = [torch.inf, -torch.inf, torch.nan, 1e6, -65520.0, 3.39e38, 1e-7, 0.0, -0.0]
        values = torch.tensor([ties + special], dtype=state)
        got, expected = copy_through(values, dtype), values.to(dtype)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())

    def test_clamp_keeps_nan() -> None:
        values = torch.tensor([[torch.nan, -3.0, 3.0, 0.25, torch.inf, -torch.inf]])
        bounds = {"lo": torch.tensor([-1.0]), "hi": torch.tensor([1.0]), "scale": torch.tensor([2.0])}
        got = copy_through(values, torch.float32, **bounds)
        assert got[0, 0].isnan()
        assert got[0, 1:].tolist() == [-2.0, 2.0, 0.5, 2.0, -2.0]

    def test_in_place() -> None:
        """u' over u, m over the oldest history entry: one buffer each, as the loop uses them."""
        spec = StageSpec(LINEAR, False, True, 1 << U | 1 << M | 1 << H1 | 1 << (H1 + 1), 0, 1)
        case = random_case(5, spec=spec, state=torch.float32, network=torch.float32, shape=(3, 50))
        case.buf.u_out, case.buf.m_out = case.buf.u, case.buf.h[1]
        check(backend, case)

    def test_x_and_u_in_one_buffer() -> None:
        """As in multistep solvers: read once, used as both."""
        spec = StageSpec(LINEAR, False, True, 1 << X | 1 << U | 1 << M, 0, 1)
        case = random_case(6, spec=spec, state=torch.float32, network=torch.float16, shape=(3, 50))
        case.buf.x = case.buf.u_out = case.buf.u
        check(backend, case)

    def test_rows_per_sample_equal_one_row_at_a_time() -> None:
        spec = StageSpec(LINEAR, False, True, 1 << U | 1 << M | 1 << ZA, 0, 0)
        case = random_case(12, spec=spec, state=torch.float32, network=torch.float32, shape=(3, 40))
        case.buf.z, case.buf.m_out, case.buf.u_out = (None, None, None), None, torch.empty(3, 40)
        case.coeffs.rows = torch.tensor([2, 0, 1], dtype=torch.int32)
        together = case.fresh()
        backend.stage(spec, 0, case.coeffs, together)
        case.coeffs.rows = None
        assert together.u_out is not None
        for b, k in enumerate((2, 0, 1)):
            alone = case.fresh()
            backend.stage(spec, k, case.coeffs, alone)
            assert alone.u_out is not None and torch.equal(alone.u_out[b], together.u_out[b])

    @pytest.mark.parametrize("method", ["dpm3", "unipc", "dpmpp3s"])
    def test_whole_loop_in_float64(method: str) -> None:
        """All stages from one x_T: some hundred roundings of 1.1e-16, far below 1e-12 of the largest value."""
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 5, 5)))

        def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return (0.3 * x).tanh()

        def run(name: str) -> torch.Tensor:
            return fastdiff.sample(network, x.clone(), steps=6, method=method, backend=name, dtype=torch.float64)

        got, expected = run("triton"), run("reference")
        assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()

    def test_nothing_to_write_is_an_error() -> None:
        case = random_case(0, shape=(1, 4))
        with pytest.raises(ValueError, match="u_out, x_out and net_in are all None"):
            backend.stage(StageSpec(NONE, False, False, 1, 0, 0), 0, case.coeffs, Buffers(x=torch.zeros(1, 4)))

    def test_empty_batch_is_left_alone() -> None:
        case = random_case(0, shape=(1, 4))
        empty = torch.zeros(0, 4, dtype=case.coeffs.table.dtype)
        backend.stage(StageSpec(NONE, False, False, 1, 0, 0), 0, case.coeffs, Buffers(x=empty, u_out=empty))
