"""The modules that a function or an object calls: a graph must not read where their weights lay before."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.graph_stand_in import SHAPE, FakeCapture, Net, stand_in

import fastdiff
from fastdiff.run import graph
from fastdiff.run.weights import Weights, fingerprint, held_by

NET = Net()
OTHER = Net()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    yield from stand_in(monkeypatch)


def by_name(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return NET(x, t)


def through_another(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return by_name(x, t)


class Pipeline:
    """Holds more than what is called."""

    def __init__(self, unet: Any, text_encoder: Any = None) -> None:
        self.unet, self.text_encoder = unet, text_encoder

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.denoised(x, t)

    def denoised(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return [self.unet][0](x, t)


def closure(net: Any) -> Any:
    return lambda x, t: net(x, t)


def default(net: Any) -> Any:
    def model(x: torch.Tensor, t: torch.Tensor, net: Any = net) -> Any:
        return net(x, t)

    return model


def attribute(net: Any) -> Any:
    pipe = Pipeline(net, OTHER)
    return lambda x, t: pipe.unet(x, t)


def keyword(net: Any) -> Any:
    return functools.partial(lambda x, t, nets: nets["own"](x, t), nets={"own": net})


def cached(net: Any) -> Any:
    return functools.lru_cache(lambda x, t: net(x, t))


MODELS: dict[str, Callable[[Net], Any]] = {
    "module": lambda net: net,
    "method": lambda net: net.forward,
    "global": lambda net: by_name,
    "function": lambda net: through_another,
    "closure": closure,
    "default": default,
    "closure of a closure": lambda net: closure(closure(net)),
    "partial": keyword,
    "object": lambda net: Pipeline(net, OTHER),
    "method of an object": lambda net: Pipeline(net, OTHER).denoised,
    "attribute": attribute,
    "decorated": cached,
    "without gradients": lambda net: torch.no_grad()(closure(net)),
    "list": lambda net: (lambda nets: lambda x, t: nets[0](x, t))([net]),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_modules_of_a_model(name: str) -> None:
    """The network that is called, and none beside it, such as a text encoder that is moved away."""
    model = MODELS[name](NET)
    found, _ = held_by(model)
    assert found == [NET]
    assert fingerprint(model) == fingerprint(NET) != fingerprint(OTHER)
    weights = Weights(model)
    assert not weights.moved()
    before = NET.conv.weight.data
    NET.conv.weight.data = before.clone()
    assert weights.moved()
    NET.conv.weight.data = before
    assert not weights.moved()


def test_another_network_behind_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(by_name)
    monkeypatch.setitem(globals(), "NET", OTHER)
    assert weights.moved()
    pipe = Pipeline(OTHER)
    weights = Weights(pipe)
    pipe.unet = Net()
    assert weights.moved()


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])
def test_torchscript(fake, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules are captured as others are, by themselves and in a function."""
    if not compiled:
        monkeypatch.setattr("fastdiff.run.weights._LOOK", None)
    with warnings.catch_warnings():
        # TorchScript is deprecated.
        warnings.simplefilter("ignore")
        net = torch.jit.script(Net())
    for model in (net, closure(net)):
        weights, before = Weights(model), net.conv.weight.data
        assert not weights.moved()
        net.conv.weight.data = before.clone()
        assert weights.moved()
        sampler = fastdiff.Sampler("ddim", 3, graph=True)
        x = sampler(model, shape=SHAPE)
        assert torch.equal(x, fastdiff.Sampler("ddim", 3, graph=False)(model, shape=SHAPE))
    assert fake.captures == 2


@pytest.mark.parametrize("model", [lambda x, t: x, functools.partial(torch.add), torch.tanh, 3, None])
def test_what_has_no_module_has_no_weights(model: Any) -> None:
    assert not Weights(model).moved() and fingerprint(model) == "" and held_by(model) == ([], [])


@pytest.mark.parametrize("name", ["closure", "object", "partial"])
def test_nothing_is_replayed_over_weights_that_moved(fake, name: str) -> None:
    net = Net()
    model, sampler = MODELS[name](net), fastdiff.Sampler("ddim", 3, graph=True)
    sampler(model, shape=SHAPE)
    sampler(model, shape=SHAPE)
    with torch.no_grad():
        net.conv.weight.data = net.conv.weight.data * 2
    after = sampler(model, shape=SHAPE)
    assert torch.equal(after, fastdiff.Sampler("ddim", 3, graph=False)(model, shape=SHAPE))
    assert (fake.captures, fake.replays) == (2, 3)


@pytest.mark.parametrize("name", ["closure", "object", "attribute"])
def test_a_graph_keeps_no_model_alive(fake, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # The stand-in keeps its body, which a real graph does not.
    monkeypatch.setattr(fake, "capture", lambda self, body: body())
    monkeypatch.setattr(fake, "replay", lambda self: None)
    net = Net()
    model = MODELS[name](net)
    fastdiff.Sampler("ddim", 3, graph=True)(model, shape=SHAPE)
    assert len(graph.CACHE.entries) == 1
    gone = weakref.ref(net)
    del net, model
    gc.collect()
    assert gone() is None and not graph.CACHE.entries
