"""A stage for each of the CUDA stage kernels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from helpers.stage_cases import Case, random_case

from fastdiff.ops.buffers import CHUNK, Buffers
from fastdiff.ops.layout import BLEND, CLIP, LINEAR, RAW, StageSpec
from fastdiff.plan import H1, SECOND, ZA, M, U, X

ONE, TWO, ALL, FRAMES, SUMS = 0, 1, 2, 3, 4
"""Shapes of kernels, as in csrc/cuda/launch.h."""
SHAPE = (2, 4, 8, 20)
"""640 elements a sample: 160 groups, which are no multiple of what a warp handles."""


class Variant(NamedTuple):
    """What a kernel is specialised on; csrc/cuda/launch.h says what the words mean."""

    state: torch.dtype
    net: torch.dtype
    hist: torch.dtype
    shape: int
    entries: int
    paired: bool
    learned: bool
    noise: bool
    path: bool = False
    wide: bool = True
    known: bool = True
    """Whether it is compiled for the network's dtype: from ALL on, it then takes what ONE does but for its history."""

    @property
    def single(self) -> bool:
        """Whether x and u are one buffer, without an x', and the noise is za, drawn."""
        return self.shape == ONE or (self.shape >= ALL and self.known)


def variants() -> Iterator[Variant]:
    """One for each kernel."""
    full, flags = torch.float32, (False, True)
    for net in (torch.float16, torch.bfloat16, full):
        for shape, noise, entries, paired in itertools.product((ONE, TWO), flags, range(4), flags):
            yield Variant(full, net, full, shape, entries, paired, False, noise)
            if net != full and entries and not paired:
                yield Variant(full, net, net, shape, entries, paired, False, noise)
        for paired, noise in itertools.product(flags, flags):
            yield Variant(full, net, full, ONE, 0, paired, True, noise)
        yield Variant(full, net, full, ALL, 6, True, True, True)
        for shape, noise in ((FRAMES, False), (FRAMES, True), (SUMS, True)):
            yield Variant(full, net, full, shape, 6, True, False, noise)
    double = torch.float64
    for shape, net, noise in itertools.product((ALL, FRAMES, SUMS), (full, double), flags):
        if (shape == ALL or net == double) and (shape != SUMS or noise):
            yield Variant(double, net, double, shape, 6, True, False, noise)
    for state in (full, double):
        yield Variant(state, torch.bfloat16, state, ALL, 6, True, True, False, known=False)
        for wide in flags:
            for shape, path in ((ALL, False), (ALL, True), (FRAMES, False), (SUMS, False)):
                yield Variant(state, torch.bfloat16, state, shape, 6, True, True, True, path, wide, known=False)


def case_for(v: Variant, seed: int) -> Case:
    """A stage that runs that kernel; the seed draws how m is made, what is written, and all numbers."""
    rng = np.random.default_rng(seed)
    deep = v.shape >= ALL and not v.known
    raw = v.hist != v.state
    convert = RAW if raw else int(rng.choice([LINEAR, CLIP, BLEND]))
    mask = 1 << X | 1 << M | ((1 << v.entries) - 1) << H1 | int(v.noise) << ZA
    mask |= int(v.learned and v.paired) << SECOND
    x_mask = 0
    if not v.single:
        mask |= 1 << U | (2 << ZA if v.noise and rng.random() < 0.5 else 0)
        x_mask = mask & ~(1 << M)
    learned = (2 if v.paired and rng.random() < 0.5 else 1) if v.learned else 0
    copies = int(rng.integers(0, 3))
    spec = StageSpec(convert, v.paired, convert != RAW, mask, x_mask, copies, learned, 3 * v.path)
    shape = SHAPE if v.wide else (2, 3, 7, 5)
    case = random_case(seed, spec=spec, state=v.state, network=v.net, shape=shape, frames=2 * (v.shape == FRAMES))
    buf = case.buf
    if not deep:
        buf.z = (None, None, None)
    case.buf = Buffers(x=buf.x, u=buf.u, first=buf.first, second=buf.second, z=buf.z)
    case.buf.h = tuple(None if h is None else h.to(v.hist) for h in buf.h)
    if v.single:
        case.buf.u = buf.x
    # u' in place of u, m in place of the oldest entry, as the loop has them.
    case.buf.u_out = case.buf.u
    case.buf.x_out = buf.x if x_mask else None
    if not raw:
        oldest = case.buf.h[-1] if v.entries else None
        case.buf.m_out = oldest if oldest is not None else torch.empty(shape, dtype=v.hist)
    if v.shape == SUMS:
        case.buf.z = (None, *case.buf.z[1:])
        n = math.prod(shape[1:])
        case.buf.squares = torch.full((shape[0], -(-n // CHUNK)), torch.nan, dtype=v.state)
    if copies:
        case.buf.net_in = torch.empty((copies * shape[0], *shape[1:]), dtype=v.net)
    return case
