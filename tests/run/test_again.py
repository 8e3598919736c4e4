"""A plain call that is made again from what the first was prepared with: the same samples, and the same checks."""

from __future__ import annotations

import concurrent.futures
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.ops import load

if not load("cpu").available()[0]:
    pytest.skip(load("cpu").available()[1], allow_module_level=True)

X = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
METHODS = ("dpm3", "unipc", "heun", "dpmpp2m_sde", "ddpm", "dpm3s")


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) + 1e-3 * t.reshape(-1, *[1] * (x.ndim - 1))


def made(method: str = "dpm3", **options: Any) -> fastdiff.Sampler:
    return fastdiff.Sampler(method, 4, schedule="ddpm", **options)  # type: ignore[arg-type]


def warm(sampler: fastdiff.Sampler, model: Any, x: Any = X, **options: Any) -> None:
    for _ in range(3):
        sampler(model, x, **options)
    assert sampler._again.known


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_as_a_first_call(method: str, dtype: torch.dtype) -> None:
    sampler, clip = made(method, dtype=dtype), made(method, dtype=dtype, clip=(-1.0, 1.0))
    for one in (sampler, clip):
        warm(one, wavy, X.to(dtype))
        warm(one, wavy, None, shape=(3, 2, 5))
    for given in ({}, {"seed": 5}, {"seed": [3, 4, 5]}, {"seed": 2**63, "first_sample": 7}):
        for x in (X.to(dtype), 2 * X.to(dtype), X.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)):
            assert torch.equal(sampler(wavy, x, **given), made(method, dtype=dtype)(wavy, x, **given))
        want = made(method, dtype=dtype, clip=(-1.0, 1.0))(wavy, shape=(3, 2, 5), **given)
        assert torch.equal(clip(wavy, shape=(3, 2, 5), **given), want)


def test_a_tensor_without_memory_of_its_own_is_refused_as_in_a_first_call() -> None:
    sampler = made()
    warm(sampler, wavy)
    words = (
        r"x has no memory of its own, as inside torch.vmap and the transforms of torch.func: call the sampler outside"
    )
    for transform in (torch.vmap, torch.func.jacrev, torch.func.grad):
        with pytest.raises(TypeError, match=words):
            transform(lambda x: sampler(wavy, x.reshape(X.shape)).sum())(X[None])
    with pytest.raises(TypeError, match="x is a sparse tensor or of another special layout"):
        sampler(wavy, X.to_sparse())


def test_the_model_s_arguments_are_those_of_the_call() -> None:
    def net(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, power: int = 1) -> torch.Tensor:
        return torch.sin(x) + y.reshape(-1, 1, 1) ** power

    sampler = made()
    warm(sampler, net, model_kwargs={"y": torch.ones(3)})
    for given in ({"y": torch.arange(3.0)}, {"y": torch.ones(1)}, {"y": torch.arange(3.0), "power": 2}):
        for _ in range(3):
            assert torch.equal(sampler(net, X, model_kwargs=given), made()(net, X, model_kwargs=given))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        sampler(net, X)


def test_networks_of_another_dtype() -> None:
    class Net(torch.nn.Linear):
        def forward(self, x: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x)

    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        model, sampler = Net(5, 5, dtype=dtype).eval(), made()
        for _ in range(3):
            sampler(model, X)
        assert torch.equal(sampler(model, 3 * X), made()(model, 3 * X))
        # The same object now asks for another input.
        model.to(torch.float64)
        assert torch.equal(sampler(model, X), made()(model, X))


def test_what_is_checked_in_a_first_call_is_checked_in_each() -> None:
    sampler = made()
    warm(sampler, wavy)
    with pytest.raises(ValueError, match="x has NaN or Inf"):
        sampler(wavy, X / 0)
    with pytest.raises(ValueError, match="x requires grad"):
        sampler(wavy, X.clone().requires_grad_())
    with pytest.raises(TypeError, match="expected an integer"):
        sampler(wavy, X, seed=True)
    with pytest.raises(ValueError, match="got 2 seeds for a batch of 3"):
        sampler(wavy, X, seed=[1, 2])
    with pytest.raises(ValueError, match="expected an integer from 0"):
        sampler(wavy, X, first_sample=-1)
    large = X.clone()
    large[0, 0, 0] = 3e38
    large[1, 0, 0] = 3e38
    # Its sum is Inf, and its values are not.
    assert sampler(lambda x, t: 0 * x, large).shape == X.shape


def test_a_network_that_begins_to_misbehave_is_seen() -> None:
    class Net:
        mode, buffer = "", torch.empty_like(X)

        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> Any:
            if self.mode == "in place":
                return x.mul_(0.5)
            if self.mode == "shape":
                return x[:, :1]
            if self.mode == "buffer":
                return torch.mul(x, 0.5, out=self.buffer)
            if self.mode == "double":
                return 0.5 * x.double()
            return 0.5 * x

    net, sampler = Net(), made()
    warm(sampler, net)
    want = sampler(net, X)
    net.mode = "in place"
    with pytest.raises(RuntimeError, match="changed its input in place"):
        sampler(net, X)
    net.mode = "shape"
    with pytest.raises(ValueError, match=r"returned shape \(3, 1, 5\)"):
        sampler(net, X)
    for net.mode in ("double", "buffer"):
        for _ in range(3):
            assert torch.allclose(sampler(net, X), want, rtol=1e-5)


def test_the_state_of_one_run_is_its_own() -> None:
    sampler = made("dpmpp2m_sde")
    warm(sampler, wavy)
    want = [made("dpmpp2m_sde")(wavy, X, seed=s) for s in range(16)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda s: sampler(wavy, X, seed=s), range(16)))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    # The same call inside of one's network.
    inside = made("dpmpp2m_sde")
    warm(inside, wavy)

    def nested(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert torch.equal(inside(wavy, X, seed=3), want[3])
        return wavy(x, t)

    for _ in range(3):
        assert torch.equal(inside(nested, X, seed=4), want[4])


def test_neither_model_nor_memory_is_kept() -> None:
    class Net:
        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 0.5 * x

    net, sampler = Net(), made()
    warm(sampler, net)
    gone = weakref.ref(net)
    copied = pickle.loads(pickle.dumps(sampler))
    assert not copied._again.known and torch.equal(copied(net, X), sampler(net, X))
    del net
    gc.collect()
    assert gone() is None
