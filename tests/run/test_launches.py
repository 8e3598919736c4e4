"""Stages launched by addresses, with the run's arguments packed once, do what stages given tensors do."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.ops import Coeffs, cpu, extension
from fastdiff.ops.layout import LINEAR, StageSpec

SHAPE = (2, 3, 5, 4)
Y = {"y": torch.linspace(0.5, 1.5, 2)}
GUIDED = {"guidance": 3.0, "cond": Y, "uncond": {"y": -Y["y"]}}


class Counted:
    """A walk, and how many stages it did."""

    def __init__(self, walk: Any, done: list[int]) -> None:
        self.walk, self.done = walk, done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.walk, name)

    def _counting(self, step: Callable[[Any], Any], given: Any) -> Any:
        before = self.walk.k
        try:
            return step(given)
        finally:
            self.done[0] += self.walk.k - before

    def run(self, call: Any) -> Any:
        return self._counting(self.walk.run, call)

    def take(self, out: Any) -> Any:
        return self._counting(self.walk.take, out)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many stages were launched by addresses."""
    made, done = cpu.walks, [0]

    def walks(*given: Any) -> Callable[..., Counted]:
        make = made(*given)
        return lambda *more: Counted(make(*more), done)

    monkeypatch.setattr(cpu, "walks", walks)
    return done


def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.tanh(x.float() * 0.7 + t.float().reshape(-1, 1, 1, 1) / 900).to(x.dtype)
    return out if y is None else out + y.to(x.dtype).reshape(-1, 1, 1, 1) * 0.1


def both(sampler: fastdiff.Sampler, model: Any, **call: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """By addresses, and with tensors."""
    call = {"shape": SHAPE, "seed": 4, **call}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "walks", None)
        # In the first run of a model its inputs are compared with copies.
        other = sampler(model, **call)
    return sampler(model, **call), other


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m_sde", "unipc", "heun", "dpm3s", "ddpm"])
def test_the_same_bits(counted: list[int], method: str, guided: bool) -> None:
    for dtype in (torch.float32, torch.float64):
        sampler = fastdiff.Sampler(method, 6, schedule="ddpm", dtype=dtype, clip=(-2, 2))
        ours, other = both(sampler, network, **(GUIDED if guided else {}))
        assert torch.equal(ours, other), dtype
    # All but the opening and the first, which shows what the outputs are like.
    assert counted[0] == 2 * (sampler.plan.nfe - 1)


def test_networks_in_other_dtypes(counted: list[int]) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        net = torch.nn.Conv2d(3, 3, 1).to(dtype).eval()
        ours, other = both(fastdiff.Sampler("dpm3", 5, schedule="ddpm"), lambda x, t, net=net, d=dtype: net(x.to(d)))
        assert torch.equal(ours, other), dtype
    assert counted[0] == 3 * 4


def test_learned_variances(counted: list[int]) -> None:
    sampler = fastdiff.Sampler("ddpm", 5, schedule="ddpm", variance="learned_range")

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return torch.cat([network(x, t, y), 0.3 * network(x, t, y)], dim=1)

    for call in ({}, GUIDED):
        ours, other = both(sampler, model, **call)
        assert torch.equal(ours, other)
    assert counted[0] == 2 * 4


ODD: dict[str, Callable[[torch.Tensor], Any]] = {
    "transposed": lambda out: out.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2),
    "part": lambda out: torch.cat([out, out], dim=1)[:, 3:],
    "negative": lambda out: torch._neg_view(-out),
    "wider": lambda out: out.double(),
    "in a tuple": lambda out: (out, None),
    "parameter": lambda out: torch.nn.Parameter(out, requires_grad=False),
}


@pytest.mark.parametrize("odd", sorted(ODD))
def test_an_output_unlike_the_others(counted: list[int], odd: str) -> None:
    """Any one of them may come in any form that the first may have."""
    for method in ("dpm3", "unipc"):
        for at in (2, 4):
            sampler = fastdiff.Sampler(method, 7, schedule="ddpm")
            calls = [0]

            def model(x: torch.Tensor, t: torch.Tensor, at: int = at, calls: list[int] = calls) -> Any:
                calls[0] += 1
                out = network(x, t)
                return ODD[odd](out) if calls[0] % 7 == at else out

            ours, other = both(sampler, model)
            assert torch.equal(ours, other), (method, at)
    assert counted[0] >= 8


def shrunk(out: torch.Tensor) -> torch.Tensor:
    out.untyped_storage().resize_(8)
    return out


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (shrunk, ValueError, "it was freed or resized"),
        (lambda out: out.to_sparse(), TypeError, "is a sparse tensor"),
        (lambda out: out[:1], ValueError, "returned shape"),
        (lambda out: out.to(torch.complex64), TypeError, "return its real part"),
        (lambda out: out.to("meta"), ValueError, "returned a tensor on meta"),
        (lambda out: None, TypeError, "the model returned NoneType"),
    ],
)
def test_a_later_output_is_checked_like_the_first(spoil: Any, error: type[Exception], message: str) -> None:
    calls = [0]

    def model(x: torch.Tensor, t: torch.Tensor) -> Any:
        calls[0] += 1
        return spoil(network(x, t)) if calls[0] == 6 + 4 else network(x, t)

    sampler = fastdiff.Sampler("dpm3", 6, schedule="ddpm")
    sampler(model, shape=SHAPE)
    with pytest.raises(error, match=message):
        sampler(model, shape=SHAPE)


def test_a_changed_input_is_seen_at_any_step() -> None:
    calls = [0]

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 6 + 5:
            x.mul_(2.0)
        return network(x, t)

    sampler = fastdiff.Sampler("dpm3", 6, schedule="ddpm")
    sampler(model, shape=SHAPE)
    with pytest.raises(RuntimeError, match="changed its input in place"):
        sampler(model, shape=SHAPE)


def test_launches_are_checked() -> None:
    """A null stream that the structure reads is refused; so is what was never packed."""
    table, draws = torch.zeros(1, 40), torch.zeros(1, 3, dtype=torch.int32)
    coeffs = Coeffs(table, draws, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32))
    launch = cpu.launcher(coeffs, 1, 8, torch.float32, torch.float32, torch.float32)
    spec = StageSpec(LINEAR, False, False, 0b1101, 0, 0)
    x = torch.zeros(8)
    full = [x.data_ptr(), 0, x.data_ptr(), 0, [x.data_ptr()], x.data_ptr(), 0, 0, 0]
    launch(spec, 0, *full)
    for i, name in ((0, "x"), (2, "first"), (4, "h1")):
        lacking = list(full)
        lacking[i] = [] if i == 4 else 0
        with pytest.raises(ValueError, match=f"the stage needs {name}, which was not given"):
            launch(spec, 0, *lacking)
    with pytest.raises(ValueError, match="net_in"):
        launch(spec._replace(copies=1), 0, *full)
    with pytest.raises(ValueError, match="out of range"):
        launch(spec._replace(convert=9), 0, *full)
    with pytest.raises(TypeError, match="at most 6 items"):
        launch(spec, 0, *full[:4], [0] * 7, *full[5:])
    with pytest.raises(TypeError, match="spec must be a tuple of 8 items"):
        launch(tuple(spec)[:6], 0, *full)
    with pytest.raises(TypeError, match="launch takes 13 arguments, got 12"):
        launch(spec, 0, *full[:-1])
    with pytest.raises(TypeError, match="must be what `pack` returned"):
        cpu._ext.launch(b"12", 1, spec, 0, *full)
    with pytest.raises(TypeError, match="pack takes 15 arguments, got 1"):
        cpu._ext.pack(1)


def walk_of(method: str = "dpm3", **call: Any) -> tuple[Any, Any]:
    """A run of the caller's that is under way, and its walk."""
    sampler = fastdiff.Sampler(method, 6, schedule="ddpm", **call)
    state = sampler.begin(shape=SHAPE, seed=1)
    while state.walk is None:
        state.step(network(state.input, state.time))
    return state, state.walk


def test_a_loop_of_the_caller_s_own_goes_by_addresses_too(counted: list[int]) -> None:
    for method in ("dpm3", "unipc", "heun", "dpmpp2m_sde"):
        sampler = fastdiff.Sampler(method, 9, schedule="ddpm")
        state = sampler.begin(shape=SHAPE, seed=1)
        seen = []
        while not state.done:
            seen.append((state.k, float(state.time[0])))
            state.step(network(state.input, state.time))
        assert torch.equal(state.x, sampler(network, shape=SHAPE, seed=1)), method
        assert [k for k, _ in seen] == sorted({k for k, _ in seen})
        assert counted[0] >= len(seen) // 2, method


def test_values_that_a_walk_kept_live_as_long_as_it_needs_them() -> None:
    """And no longer: neither outputs nor buffers stay behind."""
    outputs: list[weakref.ref[torch.Tensor]] = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = network(x, t)
        outputs.append(weakref.ref(out))
        alive = sum(one() is not None for one in outputs)
        # Two that dpm3 keeps, and this one.
        assert alive <= 3 or len(outputs) <= 7
        return out

    sampler = fastdiff.Sampler("dpm3", 7, schedule="ddpm")
    for _ in range(4):
        sampler(model, shape=SHAPE)
    gc.collect()
    assert not any(one() is not None for one in outputs)


def test_an_exception_of_the_network_leaves_nothing_behind() -> None:
    calls, held = [0], []

    class Stop(Exception):
        pass

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] > 14 and calls[0] % 7 == 4:
            raise Stop
        held.append(weakref.ref(x))
        return network(x, t)

    sampler = fastdiff.Sampler("dpm3", 7, schedule="ddpm")
    for _ in range(2):
        sampler(model, shape=SHAPE)
    with pytest.raises(Stop):
        sampler(model, shape=SHAPE)
    gc.collect()
    assert not any(one() is not None for one in held)


def test_arguments_of_a_walk_are_checked() -> None:
    state, walk = walk_of()
    with pytest.raises(TypeError, match="resume takes 3 arguments, got 1"):
        walk.resume(1)
    for k, kept in ((-1, []), (7, []), (1, [0] * 7)):
        with pytest.raises(ValueError, match="no such stage, or more values than the stages read"):
            walk.resume(k, state.x, kept)
    for kept, error, message in (
        ([1], TypeError, r"a value is \(tensor, address, storage, version\)"),
        ([(state.x, "1", -1, None)], AttributeError, "data_ptr"),
        ([(state.x, 1, "1", None)], TypeError, "integer"),
    ):
        with pytest.raises(error, match=message):
            walk.resume(1, state.x, kept)
    with pytest.raises(TypeError, match="course takes 2 arguments"):
        cpu._ext.course(1)
    opening = state.r.program.opening
    for bad in (1, (1,), ((opening, 0, 0, 0, 5, None, True, True),)):
        with pytest.raises(TypeError, match="expected the opening and a tuple of stages"):
            cpu._ext.course(opening, bad)
    course, like = cpu._ext.course(opening, state.r.program.launches), (torch.Tensor, 1, 2, 3, 4)
    tensors, times = (state.x,) * 4 + (None,), state.times
    with pytest.raises(TypeError, match="expected what `pack` and `course` returned"):
        cpu._ext.Walk(b"12", course, like, 2, False, False, 1, tensors, [], times, None)
    packed = extension.packed(cpu._ext, state.r.coeffs, 2, 60, (torch.float32,) * 3)
    for length, few, clock in ((9, tensors, times), (2, tensors[:4], times), (2, tensors, times[1:])):
        with pytest.raises(ValueError, match="a number of values, tensors or times is out of range"):
            cpu._ext.Walk(packed, course, like, length, False, False, 1, few, [], clock, None)
    while not state.done:
        state.step(network(state.input, state.time))
    with pytest.raises(ValueError, match="the walk is complete"):
        walk.take(state.x)


def test_where_a_run_can_begin_with_a_tensor_as_it_is() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(40_000, dtype=dtype)
        assert cpu.start(x, x.numel()) == x.data_ptr()
        part = x[7:1007]
        assert cpu.start(part, 1000) == part.data_ptr()
        bad = {
            "strided": x[::2],
            "negative": torch._neg_view(x),
            "gradient": x.clone().requires_grad_(),
            "freed": x.clone(),
            "shrunk": x.clone(),
            **{
                f"{v} at {i}": x.clone().index_fill_(0, torch.tensor([i]), v)
                for v in (math.nan, math.inf)
                for i in (0, 39_999)
            },
        }
        bad["freed"].untyped_storage().resize_(0)
        bad["shrunk"].untyped_storage().resize_(64)
        for name, value in bad.items():
            assert cpu.start(value, value.numel()) == 0, name
    with pytest.raises(TypeError, match="start takes 4 arguments, got 1"):
        cpu._ext.start(1)


def test_the_same_bytes() -> None:
    a = torch.tensor([0.0, math.nan, 1.0])
    assert cpu.same(a, a.clone()) and not cpu.same(a, torch.tensor([-0.0, math.nan, 1.0]))
    assert cpu.same(a[:0], a[:0])
    with pytest.raises(TypeError, match="same takes 3 arguments, got 1"):
        cpu._ext.same(1)
