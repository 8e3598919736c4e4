"""The cache of graphs: what leaves it and when, memory shared by a model's graphs, threads; with a stand-in."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.graph_stand_in import SHAPE, FakeCapture, Net, pair, stand_in

import fastdiff
from fastdiff.ops import cpu
from fastdiff.run import graph, history
from fastdiff.run.weights import Weights


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    yield from stand_in(monkeypatch)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_moved_weights_are_noticed(fake, net) -> None:
    """A graph reads the weights where they lay: new storage must lead to a new capture, and the right result."""
    sampler = fastdiff.Sampler("dpm3", 4, graph=True)
    before = sampler(net, shape=SHAPE)
    with torch.no_grad():
        net.conv.weight.data = net.conv.weight.data * 2
    after, eager = pair(net, shape=SHAPE)
    assert torch.equal(after, eager) and not torch.equal(after, before)
    assert fake.captures == 2
    with torch.no_grad():
        net.conv.weight.mul_(0.5)
    pair(net, shape=SHAPE)
    assert fake.captures == 2


def test_nothing_is_launched_before_the_weights_are_looked_at(fake, net) -> None:
    """Freed memory must not be read, not even for a result that is then thrown away."""
    sampler = fastdiff.Sampler("dpm3", 4, graph=True)
    sampler(net, shape=SHAPE)
    replays = fake.replays
    with torch.no_grad():
        net.conv.weight.data = net.conv.weight.data.clone()
    sampler(net, shape=SHAPE)
    # One replay, of the new capture.
    assert (fake.captures, fake.replays) == (2, replays + 1)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])
@pytest.mark.parametrize("change", ["parameter", "data", "buffer", "none", "module", "child", "gone"])
def test_what_counts_as_moved(change: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("fastdiff.run.weights._LOOK", None)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    weights = Weights(model)
    assert not weights.moved() and not Weights(model.forward).moved()
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    assert not weights.moved()
    if change == "parameter":
        model[0].weight = torch.nn.Parameter(torch.ones(2, 2))
    elif change == "data":
        # As Module.to does it: the parameter stays the same object.
        model[0].weight.data = model[0].weight.data.clone()
    elif change == "none":
        model[0].bias = None
    elif change == "child":
        # The other child is held elsewhere, so that none is gone.
        held = model[1]
        model[1] = torch.nn.Identity()
        assert isinstance(held, torch.nn.BatchNorm1d)
    elif change == "buffer":
        model[1].running_mean = torch.ones(2)
    elif change == "module":
        model[0] = torch.nn.Linear(2, 2)
    else:
        del model
        gc.collect()
    assert weights.moved()


def test_a_look_in_c() -> None:
    """Addresses of tensors, 0 for None, then identities of the children; it refuses what it cannot look at."""
    look, address = cpu.look, torch.Tensor.data_ptr
    if look is None:
        pytest.skip("fastdiff._cpu is not built")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
    linear = model[0]
    got = np.frombuffer(look(address, [linear._parameters], [weakref.ref(model)]), np.uintp)
    assert got.tolist() == [linear.weight.data_ptr(), 0, id(linear), id(model[1])]
    with pytest.raises(TypeError, match="look takes 3 arguments, got 1"):
        look(address)
    with pytest.raises(TypeError, match="expected two lists, of dicts and of weak references"):
        look(address, linear._parameters, [])
    with pytest.raises(TypeError, match="expected a dict, got list"):
        look(address, [[]], [])
    gone = weakref.ref(torch.nn.ReLU())
    gc.collect()
    with pytest.raises(AttributeError):
        look(address, [], [gone])


def test_inside_the_callers_capture_the_loop_runs_eagerly(fake, net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "under_way", staticmethod(lambda: True))
    got = fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=SHAPE)
    assert torch.equal(got, fastdiff.Sampler("dpm3", 4, graph=False)(net, shape=SHAPE)) and fake.captures == 0


def test_least_recently_used_goes_first(fake, net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_GRAPHS", 2)
    for batch in (1, 2, 1, 3):
        fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=(batch, 2, 5, 5))
    assert fake.captures == 3
    fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=(1, 2, 5, 5))
    assert fake.captures == 3
    fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=(2, 2, 5, 5))
    assert fake.captures == 4


def test_the_graphs_of_one_model_share_a_pool(fake, net) -> None:
    sampler, other = fastdiff.Sampler("dpm3", 4, graph=True), Net()
    for model, batch in ((net, 1), (net, 2), (net.forward, 3), (other, 1)):
        sampler(model, shape=(batch, 2, 5, 5))
    one, two, method, another = (entry.pool for entry in graph.CACHE.entries.values())
    assert one is two and one is not another
    # A bound method has its owner's weights, but a key of its own.
    assert method is not another and len(graph.CACHE.pools) == 3


def test_a_dead_model_frees_its_graphs(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    # The stand-in keeps its body, which a real graph does not.
    monkeypatch.setattr(fake, "capture", lambda self, body: body())
    monkeypatch.setattr(fake, "replay", lambda self: None)
    model = Net()
    fastdiff.Sampler("dpm3", 4, graph=True)(model, shape=SHAPE)
    assert len(graph.CACHE.entries) == 1 and len(graph.CACHE.pools) == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not graph.CACHE.entries and not graph.CACHE.pools


def test_clear_graphs(fake, net) -> None:
    fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=SHAPE)
    fastdiff.clear_graphs()
    assert not graph.CACHE.entries and not graph.CACHE.pools and not graph.CACHE.seen
    fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=SHAPE)
    assert fake.captures == 2


def test_bound_methods_share_the_graph_of_their_owner(fake, net) -> None:
    sampler = fastdiff.Sampler("dpm3", 4, graph=True)
    sampler(net.forward, shape=SHAPE)
    sampler(net.forward, shape=SHAPE)
    assert (fake.captures, fake.replays) == (1, 2)


def test_a_model_that_returns_one_buffer_is_captured_with_copies(fake, net) -> None:
    """Learnt in the warm-up: under auto the second call's capture gives way to the next one's."""
    buffer = torch.empty(SHAPE)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return buffer.copy_(net(x, t))

    with torch.no_grad():
        want = fastdiff.Sampler("dpm3", 4, graph=False)(lambda x, t: model(x, t).clone(), shape=SHAPE)
        sampler = fastdiff.Sampler("dpm3", 4, graph="auto")
        for _ in range(4):
            assert torch.equal(sampler(model, shape=SHAPE), want)
    assert history.recycles(model)
    assert fake.captures == 1


def test_threads_share_a_graph(fake, net) -> None:
    sampler = fastdiff.Sampler("ddpm", 4, graph=True)
    want = [fastdiff.Sampler("ddpm", 4, graph=False)(net, shape=SHAPE, seed=i) for i in range(16)]
    got: list[torch.Tensor | None] = [None] * 16

    def work(first: int) -> None:
        for i in range(first, 16, 4):
            got[i] = sampler(net, shape=SHAPE, seed=i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_threads_that_come_first_together_capture_once(fake, net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others miss the graph too, and find it when their turn comes."""
    sampler, asked = fastdiff.Sampler("ddpm", 4, graph=True), threading.Barrier(3)
    get = graph.CACHE.get

    def together(key):
        entry = get(key)
        if not asked.broken and threading.current_thread() in waiting:
            waiting.discard(threading.current_thread())
            asked.wait(10)
        return entry

    monkeypatch.setattr(graph.CACHE, "get", together)
    got: list[torch.Tensor | None] = [None] * 3

    def work(i: int) -> None:
        got[i] = sampler(net, shape=SHAPE, seed=i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    waiting = set(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eager = fastdiff.Sampler("ddpm", 4, graph=False)
    assert all(torch.equal(x, eager(net, shape=SHAPE, seed=i)) for i, x in enumerate(got))
    assert (fake.captures, fake.replays) == (1, 3)
