"""Randomised stages, and the check of any back end against the reference in float64.

Use:

    @pytest.mark.parametrize("seed", range(200))
    def test_stage(seed):
        check(cpu, random_case(seed))                       # or: random_case(seed, state=torch.float64, shape=(7, 5))

`random_case` covers every conversion, guidance, clipping (with NaN in the data), 0 to 6 history entries, 0 to 3
noises (drawn, given, or of a path), networks that give a variance, all dtypes, odd sizes, outputs that share memory
with inputs, and a table row per sample. `check` fills the outputs with NaN before the run, so that an element that was
not written is seen, and verifies that inputs are left as they were.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastdiff.ops import reference
from fastdiff.ops.brownian import PATH_WIDTH
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.ops.layout import (
    BLEND,
    CLIP,
    CU,
    DEPTH,
    IN_SCALE,
    KEEP,
    LINEAR,
    NEXT_U,
    NEXT_X,
    NONE,
    PU,
    QU,
    RAW,
    S0,
    S1,
    W1,
    W2,
    WIDTH,
    StageSpec,
)
from fastdiff.plan import H1, MAX_DRAWS, MAX_HISTORY, NREG, SECOND, ZA, M, U, X

SHAPES = ((1, 1), (7, 1), (1, 7), (7, 7), (1, 1025), (7, 5, 41), (2, 3, 16, 16), (1, 64), (3, 2051))
NETWORK = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STATE = (torch.float32, torch.float64)
INPUTS = ("x", "u", "first", "second")
OUTPUTS = ("u_out", "x_out", "m_out", "net_in")

NORMAL_TOLERANCE = 1e-6
"""What the random-number contract allows between two back ends' normals; 2 ulp of the largest, 6.7, is 9.5e-7."""


@dataclasses.dataclass
class Case:
    """One stage to run: `fresh()` gives buffers of its own for each run."""

    spec: StageSpec
    k: int
    coeffs: Coeffs
    buf: Buffers

    def fresh(self) -> Buffers:
        """Copies of all buffers; those that shared memory still do. Pure outputs are filled with NaN."""
        copies: dict[int, torch.Tensor] = {}
        for tensor in (*(getattr(self.buf, name) for name in INPUTS), *self.buf.h, *self.buf.z):
            if tensor is not None and id(tensor) not in copies:
                copies[id(tensor)] = tensor.clone()
        for name in OUTPUTS:
            tensor = getattr(self.buf, name)
            if tensor is not None and id(tensor) not in copies:
                copies[id(tensor)] = torch.full_like(tensor, math.nan)

        def copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else copies[id(tensor)]

        names = (*INPUTS, *OUTPUTS)
        z = self.buf.z
        return Buffers(
            **{name: copy(getattr(self.buf, name)) for name in names},
            h=tuple(copy(h) for h in self.buf.h),
            z=(copy(z[0]), copy(z[1]), copy(z[2])),
            squares=None if self.buf.squares is None else torch.full_like(self.buf.squares, math.nan),
        )


def random_spec(rng: np.random.Generator) -> StageSpec:
    """Any structure that the contract allows."""
    convert = int(rng.choice([NONE, RAW, LINEAR, CLIP, BLEND], p=[0.1, 0.2, 0.25, 0.25, 0.2]))
    guided = convert != NONE and bool(rng.random() < 0.4)
    history, noises = int(rng.integers(0, MAX_HISTORY + 1)), int(rng.integers(0, MAX_DRAWS + 1))
    allowed = [X, U, *range(H1, H1 + history), *range(ZA, ZA + noises)]
    allowed += [] if convert == NONE else [M]
    allowed += [SECOND] if rng.random() < 0.3 else []

    def mask() -> int:
        picked = [j for j in allowed if rng.random() < 0.7] or [int(rng.choice(allowed))]
        return sum(1 << j for j in picked)

    # From a generator of its own, so that what follows does not depend on it.
    path = int(rng.spawn(1)[0].choice([0, 0, 0, 1, 9])) if noises else 0
    return StageSpec(
        convert=convert,
        guided=guided,
        m_reads_u=convert in (LINEAR, CLIP, BLEND) and bool(rng.random() < 0.6),
        u_mask=mask(),
        x_mask=mask() if rng.random() < 0.5 else 0,
        copies=int(rng.integers(0, 3)),
        learned=int(rng.choice([0, 1, 2] if guided else [0, 0, 1])) if convert != NONE else 0,
        path=path,
    )


def random_case(
    seed: int,
    *,
    spec: StageSpec | None = None,
    state: torch.dtype | None = None,
    network: torch.dtype | None = None,
    shape: tuple[int, ...] | None = None,
    frames: int | None = None,
    device: str = "cpu",
) -> Case:
    """The case of number `seed`; whatever is not given is drawn.

    Args:
        seed: any integer; the same case for the same arguments.
        spec: the structure.
        state, network: dtype of the state, and of the network's output.
        shape: (B, ...).
        frames: the axis of frames with rows of their own; 0: there is none. Drawn where the structure is.
        device: where the tensors live.
    """
    rng = np.random.default_rng(seed)
    drawn_spec = spec is None
    spec = spec or random_spec(rng)
    drawn_state, drawn_network = STATE[rng.integers(2)], NETWORK[rng.integers(4)]
    state, network = state or drawn_state, network or drawn_network
    net_in_dtype, drawn_shape = NETWORK[rng.integers(4)], SHAPES[rng.integers(len(SHAPES))]
    shape = shape or drawn_shape
    h_dtype = (state, network)[rng.integers(2)] if spec.history else state
    batch = shape[0]

    def tensor(dtype: torch.dtype, *lead: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(lead or shape)).to(device=device, dtype=dtype)

    def wide(twice: bool) -> tuple[int, ...]:
        return (batch, 2 * shape[1], *shape[2:]) if twice else shape

    buf = Buffers(
        x=tensor(state) if spec.reads_x else None,
        u=tensor(state) if spec.reads_u else None,
        first=tensor(network, *wide(spec.learned > 0)) if spec.convert != NONE else None,
        second=tensor(network, *wide(spec.learned == 2)) if spec.guided or spec.mask >> SECOND & 1 else None,
        h=tuple(tensor(h_dtype) if spec.reads_h(i) else None for i in range(spec.history)),
    )
    z = [tensor(state) if spec.reads_z(i) and rng.random() < 0.3 else None for i in range(MAX_DRAWS)]
    buf.z = (z[0], z[1], z[2])
    if buf.first is not None and rng.random() < 0.3:
        buf.first.view(-1)[rng.integers(buf.first.numel())] = math.nan
    _outputs(rng, spec, buf, state, h_dtype, net_in_dtype, shape, device)
    coeffs = _coeffs(rng, spec, state, batch, device)
    if frames is None and drawn_spec and not spec.path and len(shape) > 2 and rng.random() < 0.25:
        frames = int(rng.integers(1, len(shape) - 1))
    if frames and not spec.path and not (spec.learned and frames == 1):
        _with_frames(rng, coeffs, shape, frames)
    return Case(spec, 1, coeffs, buf)


def _with_frames(rng: np.random.Generator, coeffs: Coeffs, shape: tuple[int, ...], axis: int) -> None:
    """Give each frame along an axis a row of its own, and some rows coefficients of 0."""
    coeffs.inner = math.prod(shape[axis + 1 :])
    rows = torch.from_numpy(rng.integers(0, len(coeffs.table), (2, shape[0], shape[axis])))
    coeffs.rows = rows.to(coeffs.draws.device, torch.int32)
    off = torch.from_numpy(rng.random((len(coeffs.table), 2 * NREG)) < 0.3).to(coeffs.table.device)
    coeffs.table[:, NEXT_U : NEXT_U + 2 * NREG] *= ~off


def _own_rows(case: Case, shape: torch.Size) -> torch.Tensor:
    """(B,) rows, or (B, n) with frames."""
    c = case.coeffs
    if c.rows is None:
        return torch.full_like(c.index, case.k).long()
    if not c.inner:
        return c.rows.long()
    frame = torch.arange(math.prod(shape[1:]), device=c.rows.device) // c.inner % c.rows.shape[2]
    return c.rows[case.k].long()[:, frame]


def _outputs(
    rng: np.random.Generator,
    spec: StageSpec,
    buf: Buffers,
    state: torch.dtype,
    h_dtype: torch.dtype,
    net_in_dtype: torch.dtype,
    shape: tuple[int, ...],
    device: str,
) -> None:
    """Give each output a buffer: its own, or in half of the cases an input's of the same dtype."""
    free = [t for t in (buf.x, buf.u, buf.first, buf.second, *buf.h, *buf.z) if t is not None and t.shape == shape]

    def place(dtype: torch.dtype) -> torch.Tensor:
        fits = [t for t in free if t.dtype == dtype]
        if fits and rng.random() < 0.5:
            chosen = fits[rng.integers(len(fits))]
            free[:] = [t for t in free if t is not chosen]
            return chosen
        return torch.empty(shape, dtype=dtype, device=device)

    if spec.copies == 0 or rng.random() < 0.5:
        buf.u_out = place(state)
    if spec.x_mask:
        buf.x_out = place(state)
    if spec.convert != NONE and rng.random() < 0.5:
        buf.m_out = place(h_dtype)
    if spec.copies:
        buf.net_in = torch.empty((spec.copies * shape[0], *shape[1:]), dtype=net_in_dtype, device=device)


def _coeffs(rng: np.random.Generator, spec: StageSpec, state: torch.dtype, batch: int, device: str) -> Coeffs:
    rows = 3
    table = rng.standard_normal((rows, WIDTH))
    # The history as everywhere.
    table[:, [KEEP, DEPTH]] = 0
    if not spec.m_reads_u:
        table[:, [CU, PU, QU]] = 0
    if not spec.guided:
        table[:, W1], table[:, W2] = 1, 0
    for first, mask in ((NEXT_U, spec.u_mask), (NEXT_X, spec.x_mask)):
        table[:, [first + j for j in range(NREG) if not mask >> j & 1]] = 0
    bounds = np.sort(rng.standard_normal((2, batch)), axis=0)
    numbers = rng.integers(0, 1000, (rows, MAX_DRAWS))

    def on(array: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype)

    clips = spec.clips
    return Coeffs(
        table=on(table, state),
        draws=on(_path(rng, rows, spec.path, numbers) if spec.path else numbers, torch.int32),
        seeds=on(rng.integers(-(2**63), 2**63, batch), torch.int64),
        index=on(rng.integers(0, 2**31, batch), torch.int32),
        lo=on(bounds[0], state) if clips else None,
        hi=on(bounds[1], state) if clips else None,
        scale=on(rng.uniform(0.5, 2, batch), state) if clips else None,
        rows=on(rng.integers(0, rows, batch), torch.int32) if rng.random() < 0.25 else None,
    )


def _path(rng: np.random.Generator, rows: int, terms: int, numbers: Any) -> Any:
    """Draws that are sums of 1 to `terms` normals of any numbers, whose weights squared add up to 1."""
    own = rng.spawn(1)[0]
    words = np.zeros((rows, MAX_DRAWS, PATH_WIDTH), dtype=np.int32)
    for place in itertools.product(range(rows), range(MAX_DRAWS)):
        count = int(own.integers(1, terms + 1))
        weights = own.standard_normal(count).astype(np.float32)
        weights /= np.float32(np.linalg.norm(weights))
        nodes = own.integers(0, 2**32, count, dtype=np.uint32)
        nodes[0] = numbers[place]
        words[place][: 1 + 2 * count] = [count, *np.stack([nodes.view(np.int32), weights.view(np.int32)], 1).flat]
    return words.reshape(rows, -1)


def _path_error(case: Case, draws: torch.Tensor, i: int) -> torch.Tensor:
    """(B,): how far draw i of a path may be from the reference's. Each normal within the contract, times its weight;
    and a rounding of the sum for each term, whose part sums are normals of at most unit variance, below 7."""
    words = draws.reshape(len(draws), MAX_DRAWS, PATH_WIDTH)[:, i].contiguous()
    weights = words[:, 2::2].contiguous().view(torch.float32).double().abs().sum(1)
    return NORMAL_TOLERANCE * weights + words[:, 0] * 2.0**-24 * 7


def _expected(case: Case) -> tuple[Buffers, Buffers]:
    """The reference in float64, and the same on absolute values: the sum of |terms|, which bounds rounding."""
    coeffs, batch = case.coeffs, case.coeffs.seeds.shape[0]
    like = next(t for t in (case.buf.u_out, case.buf.x_out, case.buf.net_in) if t is not None)
    shape = torch.Size((batch, *like.shape[1:]))
    draws = coeffs.draws[_own_rows(case, shape)]
    z = []
    for i, given in enumerate(case.buf.z):
        if given is None and case.spec.reads_z(i):
            given = reference.drawn(case.spec, shape, coeffs, draws, i)
        z.append(given)

    def run(absolute: bool) -> Buffers:
        def convert(t: torch.Tensor | None) -> torch.Tensor | None:
            return None if t is None else (t.double().abs() if absolute else t.double())

        lo, hi = convert(coeffs.lo), convert(coeffs.hi)
        if absolute and lo is not None and hi is not None:
            lo, hi = torch.maximum(lo, hi), torch.full_like(hi, math.inf)
        wide = dataclasses.replace(coeffs, table=convert(coeffs.table), lo=lo, hi=hi, scale=convert(coeffs.scale))
        buf = Buffers(
            **{name: convert(getattr(case.buf, name)) for name in INPUTS},
            h=tuple(convert(h) for h in case.buf.h),
            z=(convert(z[0]), convert(z[1]), convert(z[2])),
        )
        for name in OUTPUTS:
            t = getattr(case.buf, name)
            setattr(buf, name, None if t is None else torch.full_like(t, math.nan, dtype=torch.float64))
        if case.buf.squares is not None:
            buf.squares = torch.full_like(case.buf.squares, math.nan, dtype=torch.float64)
        if absolute and case.spec.reads_v:
            # e is itself and its terms' sizes are needed, not e of those: v as it is, and the error of e beside it.
            assert buf.first is not None and case.buf.first is not None and wide.table is not None
            prediction, v = buf.first.chunk(2, dim=1)[0], case.buf.first.double().chunk(2, dim=1)[1]
            buf.first = torch.cat([prediction, v], dim=1)
            wide.table[:, [S0, S1]] = coeffs.table[:, [S0, S1]].double()
        reference.stage(case.spec, case.k, wide, buf)
        return buf

    return run(False), run(True)


def _spread_roundings(case: Case) -> float:
    """How many roundings more a term that is multiplied by e² may have: e is off by those of its exponent, and 4 more.

    The exponent c0 + c1·v has 3 roundings of at most |c0| + |c1·v| each, and the GPU's exp another as it changes the
    base; e² has twice the error of e, and 2 products.
    """
    if not case.spec.reads_v:
        return 0.0
    assert case.buf.first is not None
    v = case.buf.first.double().chunk(2, dim=1)[1].abs().nan_to_num().max()
    columns = case.coeffs.table.double()[:, [S0, S1]].abs().amax(0)
    return 2 * (4 * float(columns[0] + columns[1] * v) + 4) + 2


def _noise_error(case: Case, mask: int, first: int, shape: torch.Size) -> torch.Tensor:
    """(B,), or (B, n) with frames: what the contract allows the drawn normals to change in the combination that starts
    at column `first`."""
    coeffs = case.coeffs
    rows = _own_rows(case, shape)
    table = coeffs.table.double()[rows].clone()
    if case.spec.reads_v:
        assert case.buf.first is not None
        v = case.buf.first.double().chunk(2, dim=1)[1].flatten(1)
        s0, s1 = (table[..., j] if rows.ndim == 2 else table[:, j, None] for j in (S0, S1))
        # NaN in v makes the result NaN, whatever the noise.
        e = (s0 + s1 * v).exp().nan_to_num(0.0)
        table[..., [NEXT_U + ZA, NEXT_X + ZA]] *= e[..., None] if rows.ndim == 2 else e.amax(1, keepdim=True)
    total = torch.zeros(rows.shape, dtype=torch.float64, device=table.device)
    for i in range(MAX_DRAWS):
        if mask >> (ZA + i) & 1 and case.buf.z[i] is None:
            error: Any = NORMAL_TOLERANCE
            if case.spec.path:
                error = _path_error(case, coeffs.draws[rows], i)
            total += error * table[..., first + ZA + i].abs()
    return total


def check(backend: ModuleType | Any, case: Case) -> None:
    """Run `backend.stage` on a copy of the case, and assert what it wrote against the reference in float64.

    The bound: a term goes through at most 2 roundings in g, 2 in x0, 1 in its scale, 2 in m, then 1 product and `terms`
    sums: (terms + 8)·u·Σ|c·r| with u the state's unit roundoff, and one more for in_scale; then the rounding to the
    output's dtype (float64 to a 16-bit dtype may go through float32). 2% covers the second-order terms.
    """
    spec, state = case.spec, case.coeffs.table.dtype
    buf = case.fresh()
    backend.stage(spec, case.k, case.coeffs, buf)
    want, size = _expected(case)
    rounding, spread = torch.finfo(state).eps / 2, _spread_roundings(case)
    like = next(t for t in (buf.u_out, buf.x_out, buf.net_in) if t is not None)
    shape = torch.Size((len(case.coeffs.seeds), *like.shape[1:]))
    in_scale = case.coeffs.table.double()[_own_rows(case, shape), IN_SCALE].abs()
    noise_u, noise_x = (
        _noise_error(case, mask, first, shape) for mask, first in ((spec.u_mask, NEXT_U), (spec.x_mask, NEXT_X))
    )
    zero = torch.zeros_like(noise_u)
    terms = {"m_out": 0, "u_out": spec.u_mask.bit_count(), "x_out": spec.x_mask.bit_count()}
    terms["net_in"] = terms["u_out"] + 1
    noise = {
        "m_out": zero,
        "u_out": noise_u,
        "x_out": noise_x,
        "net_in": (in_scale * noise_u).repeat(spec.copies, *[1] * (noise_u.ndim - 1)),
    }
    if buf.squares is not None:
        assert want.squares is not None
        # 128 products and as many sums at most; a square is off by twice what the contract allows the normal, times it.
        allowed = 256 * rounding * want.squares + 2 * NORMAL_TOLERANCE * (128 * want.squares).sqrt()
        assert bool(((buf.squares.double() - want.squares).abs() <= allowed).all())
    for name in OUTPUTS:
        got = getattr(buf, name)
        if got is None:
            continue
        info, expected = torch.finfo(got.dtype), getattr(want, name)
        column = (-1,) + (1,) * (got.dim() - 1) if noise_u.ndim == 1 else got.shape
        bound = 1.02 * (terms[name] + 8 + (0 if name == "m_out" else spread)) * rounding * getattr(size, name)
        bound = bound + noise[name].reshape(column)
        store = 0.0 if got.dtype == state else info.eps / 2 + 2.0**-24
        bound = bound + store * (expected.abs() + bound) + info.tiny * info.eps
        inside = (got.double() - expected).abs() <= bound
        # Beyond float16's range both are infinite, or one is the largest finite number.
        inside |= (expected.abs() + bound > info.max) & (got.double().abs() >= info.max * (1 - info.eps))
        inside |= got.isnan() & expected.isnan()
        if not inside.all():
            off = int((~inside).reshape(-1).nonzero()[0])
            value, wanted, within = (t.expand_as(inside).reshape(-1)[off].item() for t in (got, expected, bound))
            raise AssertionError(
                f"{name}: {int((~inside).sum())} of {inside.numel()} elements outside the bound; element {off}: "
                f"got {value}, expected {wanted} +- {within:.3g}; {spec}, state {state}, shape {tuple(got.shape)}"
            )
    written = {id(getattr(buf, name)) for name in OUTPUTS}
    pairs = [(name, getattr(buf, name), getattr(case.buf, name)) for name in INPUTS]
    pairs += [(f"h{i + 1}", h, case.buf.h[i]) for i, h in enumerate(buf.h)]
    pairs += [(f"z{i}", z, case.buf.z[i]) for i, z in enumerate(buf.z)]
    for name, after, before in pairs:
        if after is not None and id(after) not in written:
            assert torch.equal(after.nan_to_num(), before.nan_to_num()), f"the stage changed its input {name}"
