"""Tensors without ordinary memory, from every side: refused by name, or read as what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import fastdiff
from fastdiff.ops import admitted

X = torch.linspace(-1.0, 1.0, 10).reshape(2, 5)


def freed(like: torch.Tensor) -> torch.Tensor:
    t = like.clone()
    t.untyped_storage().resize_(0)
    return t


def shrunk(like: torch.Tensor) -> torch.Tensor:
    t = like.clone()
    t.untyped_storage().resize_(8)
    return t


def freed_and_strided(like: torch.Tensor) -> torch.Tensor:
    t = like.t().contiguous().t()
    t.untyped_storage().resize_(0)
    return t


def fake(like: torch.Tensor) -> torch.Tensor:
    return FakeTensorMode().from_tensor(like)


def masked(like: torch.Tensor) -> torch.Tensor:
    return torch.masked.masked_tensor(like.clone(), like > 0)


def wrapper(like: torch.Tensor) -> torch.Tensor:
    return TwoTensor(like.clone(), like.clone())


STRANGE = {
    "freed": (freed, ValueError, r"needs 40 bytes, and its storage holds 0: it was freed"),
    "shrunk": (shrunk, ValueError, r"needs 40 bytes, and its storage holds 8: it was freed"),
    "freed_and_strided": (freed_and_strided, ValueError, "its storage holds 0"),
    "fake": (fake, TypeError, "is a FakeTensor, .*with FakeTensorMode"),
    "masked": (masked, TypeError, r"is a MaskedTensor, .*to_tensor\(value\)"),
    "wrapper": (wrapper, TypeError, "is a TwoTensor, .*plain torch.Tensor"),
    "sparse": (lambda like: like.to_sparse(), TypeError, "sparse tensor.*to_dense"),
    "mkldnn": (lambda like: like.to_mkldnn(), TypeError, "special layout.*to_dense"),
}

Make = Callable[[torch.Tensor], torch.Tensor]


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


def as_x(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("dpmpp2m", 3, **options)(model, make(X))


def as_output(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("dpmpp2m", 3, **options)(lambda x, t: make(0.5 * x), X)


def as_output_of_a_tuple(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("dpmpp2m", 3, **options)(lambda x, t: (make(0.5 * x),), X)


def as_output_of_a_callers_loop(make: Make, **options: Any) -> Any:
    sampler = fastdiff.Sampler("dpmpp2m", 3, **options)
    state = sampler.begin(X)
    while not state.done:
        state = sampler.step(state, make(0.5 * state.input))
    return state.x


def as_output_of_an_adaptive_method(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("ode", rtol=1e-2, atol=1e-2, **options)(lambda x, t: make(0.5 * x), X)


def as_noise(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("dpmpp2m_sde", 3, **options)(model, X, noise=lambda draw, like: make(torch.ones_like(like)))


def as_prior(make: Make, **options: Any) -> Any:
    own = fastdiff.Sampler("ddim", 3, **options)
    return own(model, shape=(2, 5), noise=lambda draw, like: make(torch.ones_like(like)))


def as_correct_x0(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("ddim", 3, **options)(model, X, correct_x0=lambda x0, t: make(x0))


def as_correct_xt(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("ddim", 3, **options)(model, X, correct_xt=lambda x, t, step: make(x))


def as_gradient(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("ddim", 3, **options)(model, X, classifier_grad=lambda x, t: make(0.1 * x))


def as_out(make: Make, **options: Any) -> Any:
    return fastdiff.Sampler("ddim", 3, **options)(model, X, out=make(torch.zeros_like(X)))


def after_a_hook(make: Make, **options: Any) -> Any:
    module = torch.nn.Identity()
    module.forward = model  # type: ignore[method-assign]
    module.register_forward_hook(lambda m, given, out: make(out))
    return fastdiff.Sampler("ddim", 3, **options)(module, X)


SIDES = [
    as_x, as_output, as_output_of_a_tuple, as_output_of_a_callers_loop, as_output_of_an_adaptive_method, as_noise,
    as_prior, as_correct_x0, as_correct_xt, as_gradient, as_out, after_a_hook,
]  # fmt: skip


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.__name__)
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.filterwarnings("ignore:.*MaskedTensor.*:UserWarning")
def test_what_has_no_memory_of_its_own_is_refused(side: Callable[..., Any], kind: str) -> None:
    make, error, words = STRANGE[kind]
    with pytest.raises(error, match=words):
        side(make)


class Labelled(torch.Tensor):
    """A subclass with memory of its own."""


class Loud(torch.Tensor):
    """A subclass that may be looked at, but not computed with."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
        if func.__name__ == "__get__":
            return super().__torch_function__(func, types, args, kwargs)
        raise AssertionError(f"{func} was called on the subclass")


def negative(t: torch.Tensor) -> torch.Tensor:
    """The same values, with the negative bit set."""
    return torch._neg_view(-t)


ORDINARY: dict[str, Make] = {
    "parameter": lambda t: torch.nn.Parameter(t.clone(), requires_grad=False),
    "subclass": lambda t: t.clone().as_subclass(Labelled),
    "overriding": lambda t: t.clone().as_subclass(Loud),
    "negative": negative,
    "imaginary": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "strided": lambda t: t.t().contiguous().t(),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("side", [s for s in SIDES if s is not as_out], ids=lambda side: side.__name__)
@pytest.mark.parametrize("kind", ORDINARY)
def test_what_holds_its_values_is_read_as_them(side: Callable[..., Any], kind: str, backend: str | None) -> None:
    assert negative(X).is_neg() and ORDINARY["imaginary"](X).is_neg()
    want = side(lambda t: t.clone(), backend=backend)
    got = side(ORDINARY[kind], backend=backend)
    assert type(got) is torch.Tensor and torch.equal(got, want)


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (as_x, r"x has dtype torch.complex64"),
        (as_output, r"the model returned torch.complex64; expected a floating-point tensor: return its real part"),
        (as_gradient, "classifier_grad returned torch.complex64; expected a floating-point tensor"),
        (as_correct_x0, "correct_x0 returned torch.complex64; expected a floating-point tensor"),
        (as_correct_xt, "correct_xt returned torch.complex64; expected a floating-point tensor"),
        (as_noise, "noise returned torch.complex64; expected a floating-point tensor"),
        (as_prior, "noise returned torch.complex64; expected a floating-point tensor"),
    ],
    ids=lambda v: getattr(v, "__name__", "says"),
)
def test_complex_tensors_are_refused(side: Callable[..., Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        side(lambda t: t.to(torch.complex64))


def test_inside_a_transform_of_torch_the_error_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"x has no memory of its own, as inside torch.vmap .* outside them"):
        torch.vmap(lambda x: fastdiff.Sampler("ddim", 2)(model, x))(torch.ones(2, 2, 3))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"x is a nested tensor: pass torch\.nested\.to_padded_tensor"):
        admitted("x", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
