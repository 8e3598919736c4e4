"""What calls are made of: values that are right, and values that are not."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch

import fastdiff
from fastdiff import guidance, schedules
from fastdiff.solvers import METHODS

SHAPES = ((1, 1), (2, 3), (3, 1, 4), (2, 2, 3, 3), (1, 5), (4, 7))
FIXED = [name for name, m in METHODS.items() if not m.adaptive]
ADAPTIVE = [name for name, m in METHODS.items() if m.adaptive]
SPACINGS = ("time_uniform", "logsnr", "time_quadratic", "uniform", "linspace", "trailing", "karras", "exponential")
SCHEDULES = (
    "ddpm",
    "scaled_linear",
    "cosine",
    "vp_linear",
    "vp_cosine",
    "subvp",
    "ve",
    "smld",
    "edm",
    "flow",
    schedules.ddpm(50),
    schedules.ddpm(zero_terminal_snr=True),
    schedules.flow(3.0, time_scale=1000.0),
    schedules.ve(0.1, 2.0),
    schedules.discrete([0.5]),
)


class Odd:
    """An object of no use here; its repr is the same in every process."""

    def __repr__(self) -> str:
        return "Odd()"


def grumpy(*args: Any, **kwargs: Any) -> Any:
    """A function that gives nothing."""
    return None


HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    2**64,
    -(2**70),
    10**400,
    0.0,
    -0.5,
    0.5,
    1.5,
    1e-300,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    1j,
    "",
    "x",
    "dpm3",
    "karras",
    "1",
    "ddim5",
    "10,,10",
    "\ud800",
    b"x",
    [],
    (),
    {},
    set(),
    [1],
    [1, 2],
    [0.5, math.nan],
    [3.0, 2.0, 1.0],
    [999.0, 500.0, 0.0],
    (-1.0, 1.0),
    (1, -1),
    [[1.0, 2.0], [3.0]],
    [None],
    ["a", "b"],
    {"y": 1},
    {1: 2},
    {0.0: 0.5, 999.0: 0.9},
    Odd(),
    grumpy,
    np.float32(0.5),
    np.int64(2),
    np.bool_(True),
    np.array(2),
    np.array([2.0, 1.0]),
    np.array([]),
    np.zeros((2, 2)),
    np.array([math.nan, 1.0]),
    np.array(["a"]),
    np.array([object()], dtype=object),
    torch.tensor(1),
    torch.tensor(1.5),
    torch.zeros(2),
    torch.zeros(2, 3),
    torch.zeros(0),
    torch.zeros(2, 3, dtype=torch.int64),
    torch.full((2, 3), math.nan),
    torch.zeros(2, 3, dtype=torch.complex64),
    torch.zeros(2, 3, dtype=torch.bool),
    torch.zeros(2, 3, dtype=torch.float16),
    torch.float16,
    torch.float64,
    torch.device("cpu"),
    "meta",
    "cuda",
    "nope:0",
    torch.Generator(),
    schedules.ddpm(),
    schedules.edm(),
    fastdiff.Dynamic(),
    guidance.Interval(2.0, 0.1, 3.0),
)


def hostile(r: random.Random) -> Any:
    return r.choice(HOSTILE)


def net(x: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Bounded, smooth and elementwise: no rounding depends on the batch, and no method makes it grow without end."""
    wide = t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return x / (1.0 + x * x) + 0.1 * torch.cos(wide)


def doubled(x: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """As a network with a learned variance."""
    out = net(x, t)
    return torch.cat([out, 0.5 * out], dim=1)


def odd_model(r: random.Random) -> Any:
    """A network that does what no network should."""
    kinds = {
        "shape": lambda x, t, **k: x[..., :1] if x.shape[-1] > 1 else torch.cat([x, x], -1),
        "complex": lambda x, t, **k: torch.complex(x.float(), x.float()),
        "int": lambda x, t, **k: x.long(),
        "none": lambda x, t, **k: None,
        "nan": lambda x, t, **k: torch.full_like(x, math.nan),
        "tuple": lambda x, t, **k: (net(x, t), None),
        "empty": lambda x, t, **k: (),
        "dict": lambda x, t, **k: {"sample": net(x, t)},
        "wrong dict": lambda x, t, **k: {"logits": x},
        "half": lambda x, t, **k: net(x, t).half(),
        "double": lambda x, t, **k: net(x, t).double(),
        "in place": lambda x, t, **k: x.mul_(0.5),
        "data": lambda x, t, **k: x.data.mul_(0.5),
        "itself": lambda x, t, **k: x,
        "view": lambda x, t, **k: x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim > 1 else x,
        "expanded": lambda x, t, **k: torch.zeros((), dtype=x.dtype).expand(x.shape),
        "meta": lambda x, t, **k: torch.empty_like(x, device="meta"),
        "time in place": lambda x, t, **k: net(x, t.mul_(0.5)),
        "grad": lambda x, t, **k: net(x, t).requires_grad_(),
        "float8": lambda x, t, **k: x.to(torch.float8_e4m3fn),
        "sparse": lambda x, t, **k: x.to_sparse(),
    }
    name = r.choice(sorted(kinds))
    model = kinds[name]
    model.__name__ = f"odd_model[{name}]"
    return model


def state(r: random.Random, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(r.randrange(2**31))
    return torch.randn(shape, generator=generator, dtype=dtype)


def option(r: random.Random, o: Any) -> Any:
    """A value that an option of a method accepts, most of the time."""
    if o.accepted is not None:
        return r.choice(list(o.accepted))
    if isinstance(o.default, bool):
        return r.random() < 0.5
    if isinstance(o.default, int):
        return r.choice([1, 2, 3])
    if isinstance(o.default, float):
        low = 0.0 if o.minimum is None else o.minimum
        high = min(low + 2.0, math.inf if o.maximum is None else o.maximum)
        return r.choice([low, high, r.uniform(low, high), o.default])
    return o.default
