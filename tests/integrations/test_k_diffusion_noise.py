"""k-diffusion's noise sampler: its arguments, its signs, and Brownian motion in its own time."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch

from fastdiff.integrations.k_diffusion import BrownianTreeNoiseSampler

X = torch.zeros(3, 4, 8, 8)
LOW, HIGH = 0.03, 14.6


def sampler(**options: Any) -> BrownianTreeNoiseSampler:
    return BrownianTreeNoiseSampler(**{"x": X, "sigma_min": LOW, "sigma_max": HIGH, "seed": 4, **options})


def test_the_published_signature() -> None:
    # k_diffusion/sampling.py (Crowson 2022), and ComfyUI's with `cpu`.
    names = list(inspect.signature(BrownianTreeNoiseSampler).parameters)
    assert names == ["x", "sigma_min", "sigma_max", "seed", "transform", "cpu"]
    assert list(inspect.signature(sampler()).parameters) == ["sigma", "sigma_next"]


@pytest.mark.parametrize("transform", [None, torch.log, lambda s: -1.0 / s], ids=["sigma", "log", "falling"])
def test_increments_add_up_in_the_transformed_time(transform: Any) -> None:
    own = {} if transform is None else {"transform": transform}
    noise, time = sampler(**own), transform or (lambda s: s)

    def moved(start: float, end: float) -> torch.Tensor:
        width = abs(float(time(torch.tensor(end).double()) - time(torch.tensor(start).double())))
        return noise(start, torch.tensor(end)).double() * math.sqrt(width)

    whole = moved(HIGH, LOW)
    # float32 numbers of at most 7 standard deviations, each to 1e-5 of one.
    scale = float(whole.std())
    torch.testing.assert_close(moved(HIGH, 2.0) + moved(2.0, 0.31) + moved(0.31, LOW), whole, rtol=0, atol=3e-5 * scale)
    assert torch.equal(noise(0.31, 2.0), -noise(2.0, 0.31))
    z = noise(2.0, 0.31)
    # 768 numbers: five standard errors.
    assert abs(float(z.mean())) < 5 / math.sqrt(768) and abs(float(z.var()) - 1) < 5 * math.sqrt(2 / 768)
    assert abs(float((z * noise(0.31, LOW)).mean())) < 5 / math.sqrt(768)


def test_shape_dtype_and_seeds() -> None:
    z = sampler()(5.0, 1.0)
    assert z.shape == X.shape and z.dtype == torch.float32
    half = sampler(x=X.half())(5.0, 1.0)
    assert torch.equal(half, z.half())
    assert torch.equal(sampler(x=X.double(), cpu=True)(5.0, 1.0).float(), z)
    each = sampler(seed=[7, 8, 9])(5.0, 1.0)
    for b in range(3):
        assert torch.equal(sampler(x=X[:1], seed=[7 + b])(5.0, 1.0), each[b : b + 1])
    torch.manual_seed(0)
    a, b = sampler(seed=None)(5.0, 1.0), sampler(seed=None)(5.0, 1.0)
    torch.manual_seed(0)
    assert torch.equal(sampler(seed=None)(5.0, 1.0), a) and not torch.equal(a, b)
    assert torch.equal(sampler(sigma_max=80.0)(5.0, 1.0), z), "the path does not depend on the range"


@pytest.mark.parametrize(
    ("options", "call", "error", "message"),
    [
        ({"x": X.int()}, (5.0, 1.0), ValueError, r"x has dtype torch.int32 and shape \(3, 4, 8, 8\): expected"),
        ({"sigma_min": 0.0}, (5.0, 1.0), ValueError, r"sigma_min=0, sigma_max=14.6: expected 0 < sigma_min < "),
        ({"sigma_max": "b"}, (5.0, 1.0), TypeError, r"sigma_max='b': expected a number or a tensor with one element"),
        ({"seed": [1, 2]}, (5.0, 1.0), ValueError, r"got 2 seeds for a batch of 3"),
        ({}, (5.0, 0.0), ValueError, r"sigma_next=0 is outside of the sampler's range, 0.03 to 14.6"),
        ({}, (float("nan"), 1.0), ValueError, r"sigma=nan: expected a finite number"),
        ({}, (1.0, 1.0), ValueError, r"its path is resolved to steps"),
    ],
)  # fmt: skip
def test_errors(options: dict[str, Any], call: tuple[float, float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sampler(**options)(*call)
