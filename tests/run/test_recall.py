"""A replay of a call that is known: few operations, none of which waits, and the same sample as an eager run."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.graph_stand_in import SHAPE, FakeCapture, Net, stand_in
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff.guidance import AdaptiveProjected, Interval, Rescale
from fastdiff.ops import cpu
from fastdiff.run import graph


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    yield from stand_in(monkeypatch)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


class Counted(TorchDispatchMode):
    """The operations on tensors; views and fresh memory are none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func.__name__.startswith(("empty", "lift_fresh", "detach")):
            self.names.append(func.__name__)
        return out


ONE, TWO = torch.linspace(-1, 1, 3), torch.linspace(2, 0, 3)
CFG = {"guidance": 2.0, "cond": {"y": ONE}, "uncond": {"y": TWO}}
X = torch.linspace(-1, 1, 150).reshape(SHAPE)
INNER = {"y": ONE, "more": {"z": TWO, "w": [ONE.double(), TWO.double()]}}
OUTER = {"y": TWO, "more": {"z": ONE, "w": [TWO.double(), ONE.double()]}}
CALLS: dict[str, tuple[dict[str, Any], int]] = {
    "x": ({"x": X}, 2),
    "x, guided": ({"x": X, **CFG}, 3),
    "drawn": ({"shape": SHAPE, "seed": 3}, 2),
    "drawn, guided": ({"shape": SHAPE, **CFG}, 3),
    "seeds": ({"shape": SHAPE, "seed": [1, 2**64 - 1, -3]}, 3),
    "labels": ({"shape": SHAPE, "model_kwargs": {"y": ONE}}, 3),
    "several": ({"shape": SHAPE, "model_kwargs": {"y": ONE, "z": TWO, "w": ONE + TWO}}, 3),
    "several, guided": (
        {"shape": SHAPE, "guidance": 2.0, "cond": {"y": ONE, "z": TWO}, "uncond": {"y": TWO, "z": ONE}},
        3,
    ),
    # One operation for each dtype.
    "nested": ({"x": X, "model_kwargs": INNER}, 4),
    "nested, guided": ({"x": X, "guidance": 2.0, "cond": INNER, "uncond": OUTER}, 4),
    "form": ({"x": X, **CFG, "guidance": Rescale(Interval(2.0, 0.1, 9.0), 0.5)}, 3),
    "momentum": ({"x": X, **CFG, "guidance": AdaptiveProjected(2.0)}, 3),
    "device": ({"shape": SHAPE, "device": "cpu"}, 2),
    "doubled": ({"x": X, "guidance": 2.0, "cond": {"z": ONE}, "uncond": {"z": TWO}, "model_kwargs": {"y": TWO}}, 4),
}


class Kind:
    """Neither plain nor a tensor."""


class Two(Net):
    def forward(self, x, t, y=None, z=None, w=None, more=None):
        out = super().forward(x, t, y)
        if more is not None:
            z, w = more["z"], more["w"][0] - 2.0 * more["w"][1]
        out = out if z is None else out * z.reshape(-1, 1, 1, 1)
        return out if w is None else out + w.to(x.dtype).reshape(-1, 1, 1, 1)


def samplers(**build: Any) -> tuple[fastdiff.Sampler, fastdiff.Sampler]:
    build = {"schedule": "ddpm", **build}
    return fastdiff.Sampler("ddim", 3, graph=True, **build), fastdiff.Sampler("ddim", 3, graph=False, **build)


@pytest.mark.parametrize("build", [{}, {"clip": (-1, 1)}, {"clip": "dynamic"}, {"eta": 1.0}], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_few_operations(fake, monkeypatch: pytest.MonkeyPatch, name: str, build: dict[str, Any]) -> None:
    """At most 4 beside the graph, the drawing of the prior among them."""
    torch.manual_seed(0)
    net, (call, most) = Two().eval(), CALLS[name]
    sampler, eager = samplers(**build)
    want = eager(net, **call)
    assert torch.equal(sampler(net, **call), want)
    # A replay of the stand-in runs the loop.
    monkeypatch.setattr(fake, "replay", lambda self: None)
    draws, drawn = [0], cpu.normal_

    def draw(*given: Any) -> None:
        draws[0] += 1
        drawn(*given)

    monkeypatch.setattr(cpu, "normal_", draw)
    sampler(net, **call)
    with Counted() as counted:
        sampler(net, **call)
    monkeypatch.undo()
    draws[0] -= 1
    assert len(counted.names) + draws[0] <= most <= 4, counted.names
    assert not {"_local_scalar_dense.default", "is_nonzero.default", "equal.default"} & set(counted.names)


def test_trees_of_conditions_may_change(fake) -> None:
    """Other values in the same places, also written into the same list, are a replay; another structure is not."""
    torch.manual_seed(0)
    net, (sampler, eager) = Two().eval(), samplers()
    call: dict[str, Any] = {
        "shape": SHAPE,
        "guidance": 2.0,
        "cond": copy.deepcopy(INNER),
        "uncond": copy.deepcopy(OUTER),
    }
    for i in range(4):
        for tree in (call["cond"], call["uncond"]):
            tree["y"], tree["more"]["z"] = tree["y"] + i, tree["more"]["z"] * 0.5
            tree["more"]["w"][1] = tree["more"]["w"][1] - i
        assert torch.equal(sampler(net, **call), eager(net, **call))
    assert (fake.captures, fake.replays, len(sampler._recalls.known)) == (1, 4, 1)
    for tree in (call["cond"], call["uncond"]):
        tree["more"]["w"] = tuple(w.float() for w in tree["more"]["w"])
    for _ in range(2):
        assert torch.equal(sampler(net, **call), eager(net, **call))
    assert fake.captures == 2


def test_what_is_free_may_change(fake, net) -> None:
    """Seeds of each kind, first samples, x, conditions and `out`, in any order: a replay each, of one graph."""
    sampler, eager = samplers(eta=1.0)
    start = torch.flip(X, [0]).double().transpose(2, 3)
    changes = [
        *({"seed": s} for s in (0, 1, 2**64 - 1, -(2**63), [4, 5, 6], 1, (7, 8, 9))),
        {"seed": 1, "first_sample": 7},
        {"seed": 1, "first_sample": 8},
        {"seed": 2, "first_sample": 8},
        {"seed": 2},
        {"cond": {"y": TWO}},
        {"uncond": {"y": ONE.requires_grad_(False) * 3}},
        {"guidance": 0.5},
        {"guidance": 2.0},
        {"guidance": Interval(2.0, 300.0, 800.0)},
        {"shape": None, "x": X},
        {"shape": None, "x": start},
        {"shape": None, "x": X.half()},
        {"out": torch.empty(SHAPE)},
        {},
    ]
    for round_ in range(2):
        for change in changes:
            call = {"shape": SHAPE, **CFG, **change}
            if "shape" in change:
                del call["shape"]
            want = eager(net, **{**call, "out": None})
            got = sampler(net, **call)
            assert torch.equal(got, want), (round_, change)
            assert call.get("out") is None or got is call["out"]
    assert fake.captures == 1 and fake.replays == 2 * len(changes)


@pytest.mark.parametrize("schedule", ["edm", "flow", "ve"])
def test_the_prior_s_deviation(fake, net, schedule: str) -> None:
    """Multiplied by the opening row, with the same bits; a start that is given is not."""
    build = {"schedule": schedule, "prediction": "flow" if schedule == "flow" else "eps"}
    for dtype in (torch.float32, torch.float64):
        sampler, eager = samplers(dtype=dtype, **build)
        for call in ({"seed": 1}, {"seed": 2}, {"x": X}, {"seed": 3}):
            call = call if "x" in call else {"shape": SHAPE, **call}
            for _ in range(2):
                assert torch.equal(sampler(net, **call), eager(net, **call)), (schedule, dtype, call)


def test_a_model_that_says_something_new_is_asked_again(fake, net) -> None:
    sampler, eager = fastdiff.Sampler("ddim", 3, graph=True), fastdiff.Sampler("ddim", 3, graph=False)
    before = sampler(net, X)
    assert torch.equal(sampler(net, X), before)
    net.prediction = "v"
    assert torch.equal(sampler(net, X), eager(net, X)) and not torch.equal(sampler(net, X), before)
    net.schedule = "cosine"
    with pytest.raises(ValueError, match="the model states schedule"):
        sampler(net, X)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": 2**64}, TypeError, "seed="),
        ({"seed": [1, 2]}, ValueError, "got 2 seeds for a batch of 3"),
        ({"first_sample": -1}, ValueError, "first_sample=-1"),
        ({"out": torch.empty(2)}, ValueError, "out has shape"),
        ({"steps": 3}, TypeError, "steps"),
        ({"cond": {"y": torch.ones(2)}}, ValueError, "expected the batch, 3"),
        ({"cond": None}, ValueError, "needs guidance, cond and uncond together"),
    ],
)
def test_a_known_call_is_no_way_around_the_checks(fake, net, change: dict, error: type, message: str) -> None:
    sampler, _ = samplers()
    for _ in range(2):
        sampler(net, shape=SHAPE, **CFG)
    with pytest.raises(error, match=message):
        sampler(net, **{"shape": SHAPE, **CFG, **change})


def test_x_without_memory_is_refused(fake, net) -> None:
    sampler, _ = samplers()
    for _ in range(2):
        sampler(net, X)
    freed = X.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="it was freed or resized"):
        sampler(net, freed)
    with pytest.raises(ValueError, match="x requires grad"):
        sampler(net, X.clone().requires_grad_())


def test_results_are_ordinary_tensors_in_inference_mode(fake, net) -> None:
    sampler, _ = samplers()
    sampler(net, X)
    with torch.inference_mode():
        assert not sampler(net, X).is_inference()
    weight = torch.ones(3, requires_grad=True)
    got = sampler(net, X, model_kwargs={"y": weight})
    assert torch.equal(sampler(net, X, model_kwargs={"y": weight}), got) and not got.requires_grad


def test_nothing_is_kept_alive(fake, net) -> None:
    """Neither a graph that was cleared nor one of a model that is gone."""
    sampler, eager = samplers()
    for _ in range(2):
        sampler(net, X)
    graph.clear_graphs()
    assert torch.equal(sampler(net, X), eager(net, X)) and fake.captures == 2
    # Switching a mode is another call.
    net.train()
    sampler(net, X)
    assert fake.captures == 3
    # Values that may change behind their identity are looked at each time.
    known = len(sampler._recalls.known)

    class Parts(Net):
        def forward(self, x, t, kind=None):
            return super().forward(x, t)

    for _ in range(2):
        sampler(Parts().eval(), X, model_kwargs={"kind": Kind()})
    assert len(sampler._recalls.known) == known


def test_a_sampler_may_be_copied(fake, net) -> None:
    """Also one that remembers calls: the copy remembers none, and another process gets what it needs."""
    sampler, eager = samplers()
    for _ in range(2):
        want = sampler(net, X)
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert sampler._recalls.known and not other._recalls.known
        assert torch.equal(other(net, X), want) and torch.equal(want, eager(net, X))
