"""The built-in noise by itself: `randn`, and increments of a Brownian path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastdiff import ops
from fastdiff.ops import Buffers, Coeffs
from fastdiff.ops.brownian import PATH_WIDTH, TERMS, Path
from fastdiff.ops.layout import NEXT_U, NONE, WIDTH, StageSpec
from fastdiff.ops.philox import PRIOR, STEP
from fastdiff.plan import MAX_DRAWS, ZA
from fastdiff.run.arguments import STATE_DTYPES, check_shape, resolve_device, resolve_seeds
from fastdiff.values import flag


def randn(
    shape: Sequence[int],
    *,
    seed: int | Sequence[int] = 0,
    draw: int = 0,
    first_sample: int = 0,
    prior: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Exactly the noise that the kernels draw: standard normals (B, ...), a function of seed, draw and sample index
    alone.

    Args:
        shape: (B, ...).
        seed, first_sample: as in `fastdiff.sample`.
        draw: number of the draw, 0 to 2^32 − 1.
        prior: the stream of the initial x_T instead of the steps'.
        dtype: torch.float32 or torch.float64 (the same float32 values).
        device, backend: as in `fastdiff.sample`.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in STATE_DTYPES:
        raise ValueError(f"dtype={dtype}: expected torch.float32 or torch.float64")
    flag("prior", prior)
    size = check_shape(shape)
    if isinstance(draw, bool) or not isinstance(draw, int | np.integer) or not 0 <= draw < 2**32:
        raise ValueError(f"draw={draw!r}: expected an integer from 0 to 2**32 - 1")
    where = resolve_device(device, None, None)
    seeds, index = resolve_seeds(seed, first_sample, size[0], where)
    module = ops.select(backend, where, dtype, dtype)
    out = torch.empty(size, dtype=dtype, device=where)
    module.normal_(out, seeds, index, draw, PRIOR if prior else STEP)
    return out


_ZA = StageSpec(NONE, False, False, 1 << ZA, 0, 0, path=TERMS)
"""The stage whose u' is za, an increment of a path."""


def increment_(
    out: torch.Tensor, path: Path, start: float, end: float, seeds: torch.Tensor, index: torch.Tensor
) -> None:
    """Fill `out` (B, ...), contiguous float32 or float64, with `path`'s increment between two values of lambda over its
    standard deviation: standard normals, as a stage with `noise="brownian"` draws them.

    Args:
        seeds, index: (B,) int64 and (B,) int32, as `resolve_seeds` gives them, on out's device.

    Raises:
        ValueError: as `Path.increment`.
    """
    draws = np.zeros((1, MAX_DRAWS * PATH_WIDTH), dtype=np.int32)
    draws[0, :PATH_WIDTH] = words = path.words(start, end)
    table = torch.zeros(1, WIDTH, dtype=out.dtype)
    table[0, NEXT_U + ZA] = 1.0
    coeffs = Coeffs(table.to(out.device), torch.from_numpy(draws).to(out.device), seeds, index)
    module = ops.select(None, out.device, out.dtype, out.dtype, out.numel())
    module.stage(_ZA._replace(path=int(words[0])), 0, coeffs, Buffers(u_out=out))
