"""A request's sample is that of `fastdiff.sample` with the same arguments, bit for bit, whatever runs beside it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers.methods import ADAPTIVE, TABLES

import fastdiff
from fastdiff import guidance, ops
from fastdiff.ops.layout import DEPTH, KEEP, NEXT_U, NEXT_X, NONE, RAW, WIDTH, StageSpec
from fastdiff.plan import H1, U, X

SHAPE = (2, 5, 6)


def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """Exact operations alone, so that the layout of the batch changes no bit."""
    column = (-1, *[1] * (x.ndim - 1))
    out = x / (1.0 + x * x) * (1.0 + t.to(x.dtype).reshape(column) * 0.001)
    return out if y is None else out + y.to(x.dtype).reshape(column) * 0.125


def labelled(label: float) -> dict[str, torch.Tensor]:
    return {"y": torch.tensor([label])}


def alone(method: str, steps: int, engine: dict[str, Any], given: dict[str, Any]) -> torch.Tensor:
    run = {"schedule": "ddpm", **engine, **given}
    if run.get("guidance") is None and "cond" in run:
        run["model_kwargs"] = run.pop("cond")
        run.pop("uncond", None)
    return fastdiff.sample(run.pop("model", network), shape=(1, *SHAPE), method=method, steps=steps, **run)[0]


GUIDED = {"cond": labelled(2.0), "uncond": labelled(-1.0)}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    *((name, steps, {"cond": labelled(1.0)}) for name in TABLES for steps in (1, 4)),
    ("heun", 3, {"s_churn": 2.0, "s_tmax": 100.0, "cond": labelled(0.0)}),
    ("unipc", 7, {"order": 6, "cond": labelled(0.0)}),
    ("unipc", 5, {"split": True, "cond": labelled(0.0)}),
    ("ddim", 5, {"clip": (-1.0, 1.0), "eta": 0.5, "cond": labelled(0.0)}),
    ("ddim", 5, {"clip": (-0.5, 0.75), "use_clipped_model_output": False, "cond": labelled(0.0)}),
    ("dpmpp2m", 5, {"clip": "dynamic", **GUIDED, "guidance": 3.0}),
    ("dpm3", 5, {**GUIDED, "guidance": 3.0}),
    ("dpmpp2m_sde", 5, {**GUIDED, "guidance": lambda t: 1.0 + t / 500}),
    ("dpmpp2m", 6, {**GUIDED, "guidance": guidance.Interval(4.0, 0.3, 5.0)}),
    ("ddim", 4, {**GUIDED, "guidance": guidance.CFGPlusPlus(0.6)}),
    ("ddim", 4, {**GUIDED, "guidance": guidance.Rescale(5.0, 0.7)}),
    ("ddpm", 4, {**GUIDED, "guidance": 2.0, "clip": (-1.0, 1.0)}),
    ("ddpm", 4, {"noise": lambda draw, like: torch.full_like(like, 0.25 * (draw + 2)), "cond": labelled(0.0)}),
    ("dpmpp2m_sde", 4, {"noise": "brownian", "cond": labelled(0.0)}),
    ("dpmpp1", 4, {"correct_x0": lambda x0, t: x0.clamp(-0.5, 0.5), "cond": labelled(0.0)}),
    ("dpm2", 4, {"x": torch.linspace(-2, 2, 60).reshape(1, *SHAPE), "cond": labelled(0.0)}),
    ("ddpm", 4, {"seed": 2**63 + 5, "cond": labelled(0.0)}),
]


def test_every_method_beside_every_other() -> None:
    """Slots are fewer than requests, which come in bursts at random and are given up at random."""
    rng = random.Random(3)
    with fastdiff.Engine(network, slots=7, shape=SHAPE, schedule="ddpm", uncond=labelled(0.0)) as engine:
        cases = [(name, steps, {"seed": i, **given}) for i, (name, steps, given) in enumerate(CASES)]
        rng.shuffle(cases)
        found, dropped, left = [], [], list(cases)
        while left or not engine.idle:
            for _ in range(rng.randrange(6)):
                if left:
                    name, steps, given = left.pop()
                    own = {**given, "x": given["x"][0]} if "x" in given else given
                    found.append(
                        (name, steps, given, engine.submit(name, steps, previews=bool(rng.randrange(2)), **own))
                    )
            if found and rng.random() < 0.5:
                # One that is there only to be given up, wherever it is then.
                dropped.append(engine.submit("unipc", 6, seed=99, cond=labelled(9.0)))
            if dropped and rng.random() < 0.4:
                rng.choice(dropped).cancel()
            engine.step()
    for name, steps, given, request in found:
        assert torch.equal(request.result(), alone(name, steps, {}, given)), (name, given)
        assert request.progress.done == request.nfe
    assert engine._floor.batch.table.free == [(1, engine._floor.batch.table.capacity - 1)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_back_ends_and_dtypes(backend: str, dtype: torch.dtype) -> None:
    if not fastdiff.backends()[backend][0]:
        pytest.skip(f"no back end {backend!r}: {fastdiff.backends()[backend][1]}")
    own = {"backend": backend, "dtype": dtype}
    engine = fastdiff.Engine(network, slots=4, shape=SHAPE, schedule="ddpm", **own)
    asked = [("unipc", 5), ("ddpm", 4), ("dpm3s", 6), ("dpmpp2m_sde", 3), ("heun", 3)]
    requests = [engine.submit(name, steps, seed=i) for i, (name, steps) in enumerate(asked)]
    engine.run()
    for i, ((name, steps), request) in enumerate(zip(asked, requests, strict=True)):
        assert torch.equal(request.result(), alone(name, steps, own, {"seed": i}))


@pytest.mark.parametrize(
    ("schedule", "prediction", "methods"),
    [
        ("edm", "x0", ("heun", "dpmpp2m", "ddim")),
        ("flow", "flow", ("dpmpp3m", "ddim", "unipc")),
        ("cosine", "v", ("dpm2",)),
    ],
)
def test_schedules_and_predictions(schedule: str, prediction: str, methods: tuple[str, ...]) -> None:
    """EDM's network input is scaled, by another factor in each slot."""
    own = {"schedule": schedule, "prediction": prediction}
    engine = fastdiff.Engine(network, slots=8, shape=SHAPE, **own)
    requests = [(name, steps, engine.submit(name, steps)) for name in methods for steps in (3, 6)]
    engine.run()
    for name, steps, request in requests:
        assert torch.equal(request.result(), alone(name, steps, own, {})), name


class Half(torch.nn.Module):
    """A network in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.75, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.bfloat16 and t.dtype == torch.float32
        return x * self.weight


def test_a_network_in_bfloat16() -> None:
    model = Half()
    engine = fastdiff.Engine(model, slots=4, shape=SHAPE, schedule="ddpm")
    requests = [(name, engine.submit(name, 4, seed=5)) for name in ("dpm3", "unipc", "ddpm")]
    engine.run()
    for name, request in requests:
        assert torch.equal(request.result(), alone(name, 4, {"model": model}, {"seed": 5})), name


def test_a_learned_variance() -> None:
    """The network's second half of channels is read by those methods alone that know it."""

    def wide(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(x, t), 0.25 * x], 1)

    engine = fastdiff.Engine(wide, slots=4, shape=SHAPE, schedule="ddpm", learned_variance=True)
    learned = engine.submit("ddpm", 4, variance="learned_range", seed=1)
    plain = [engine.submit(name, 4, seed=2) for name in ("ddpm", "dpm3", "pc")]
    engine.run()
    expected = alone("ddpm", 4, {"model": wide}, {"seed": 1, "variance": "learned_range"})
    assert torch.equal(learned.result(), expected)
    for request in plain:
        assert torch.equal(request.result(), alone(request.method, 4, {}, {"seed": 2})), request


def test_a_real_network_at_one_batch_shape() -> None:
    """Matrix products depend on their batch: with one bucket a sample does not depend on what runs beside it."""
    torch.manual_seed(1)
    net = torch.nn.Conv2d(2, 2, 3, padding=1)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(net(x) + t.reshape(-1, 1, 1, 1) / 1000)

    def padded(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the engine does to a run alone."""
        return model(x.expand(8, -1, -1, -1).contiguous(), t.expand(8))[:1]

    engine = fastdiff.Engine(model, slots=8, shape=SHAPE, schedule="ddpm", buckets=(8,))
    requests = [engine.submit(name, 4, seed=7) for name in ("dpm3", "ddpm", "unipc", "heun", "dpmpp3s")]
    engine.step()
    requests += [engine.submit(name, 4, seed=7) for name in ("ddim", "dpmpp2m_sde")]
    engine.run()
    for request in requests:
        assert torch.equal(request.result(), alone(request.method, 4, {"model": padded}, {"seed": 7})), request


@pytest.mark.parametrize("changed", [None, 5.0, guidance.Interval(2.0, 0.3, 5.0)], ids=["none", "number", "interval"])
def test_guidance_changes_from_the_next_evaluation_on(changed: Any) -> None:
    given = {**GUIDED, "guidance": 3.0, "seed": 4}
    engine = fastdiff.Engine(network, slots=4, shape=SHAPE, schedule="ddpm")
    request, other = engine.submit("dpm3", 6, **given), engine.submit("dpm3", 6, **given)
    engine.step()
    engine.step()
    request.guidance = changed
    assert request.guidance is changed
    engine.run()

    # A sampler's own loop, which is given the same scales: (w1, w2) are the weights of the two halves.
    scales = iter([3.0, 3.0])
    sampler = fastdiff.Sampler("dpm3", 6, schedule="ddpm")
    state = sampler.begin(shape=(1, *SHAPE), seed=4)
    while not state.done:
        stage = sampler.plan.stages[state.k]
        first, second = (network(state.input, state.time, c["y"]) for c in (GUIDED["cond"], GUIDED["uncond"]))
        level = stage.sigma / stage.alpha
        late = {None: 1.0, 5.0: 5.0}.get(changed, 2.0 if 0.3 < level <= 5.0 else 1.0)
        scale = next(scales, late)
        # In float32, the product of the second rounded first, as the kernel does.
        g = (torch.tensor(scale) * first.double() + (torch.tensor(1.0 - scale) * second).double()).float()
        state = sampler.step(state, g)
    assert torch.equal(request.result(), state.x[0])
    assert torch.equal(other.result(), alone("dpm3", 6, {}, given))


def test_the_cpu_kernel_reads_what_a_row_uses() -> None:
    """A NaN in a register without a coefficient stays out; an x' without coefficients is 0, as everywhere."""
    found = ops.load("cpu")
    if not found.available()[0]:
        pytest.skip(f"no back end 'cpu': {found.available()[1]}")
    table = torch.zeros(2, WIDTH)
    table[0, NEXT_U + U] = 2.0
    table[1, [NEXT_U + U, NEXT_U + H1, NEXT_X + U]] = 1.0
    rows, zeros = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    coeffs = ops.Coeffs(table, torch.zeros(2, 3, dtype=torch.int32), zeros.long(), zeros, rows=rows)
    spec = StageSpec(NONE, False, False, 1 << U | 1 << H1, 1 << U, 0)
    u, h, x = torch.ones(2, 5), torch.full((2, 5), float("nan")), torch.full((2, 5), 7.0)
    out = torch.empty(2, 5)
    found.stage(spec, 0, coeffs, ops.Buffers(x=x, u=u, h=(h,), u_out=out, x_out=x))
    assert torch.equal(out[0], torch.full((5,), 2.0)) and out[1].isnan().all()
    assert torch.equal(x, torch.tensor([[0.0], [1.0]]).expand(2, 5))


@pytest.mark.parametrize("apart", [True, False])
def test_an_x_that_stays_where_it_is(apart: bool) -> None:
    """It needs no traffic, beside a row that writes its x; elsewhere it is copied."""
    found = ops.load("cpu")
    if not found.available()[0]:
        pytest.skip(f"no back end 'cpu': {found.available()[1]}")
    table = torch.zeros(3, WIDTH)
    table[:, NEXT_U + U] = 2.0
    table[0, NEXT_X + X], table[1, NEXT_X + X], table[2, NEXT_X + U] = 1.0, 3.0, 1.0
    rows, zeros = torch.arange(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    coeffs = ops.Coeffs(table, torch.zeros(3, 3, dtype=torch.int32), zeros.long(), zeros, rows=rows)
    spec = StageSpec(NONE, False, False, 1 << U, 1 << X | 1 << U, 0)
    u, x = torch.ones(3, 5), torch.full((3, 5), 7.0)
    to = torch.empty_like(x) if apart else x
    found.stage(spec, 0, coeffs, ops.Buffers(x=x, u=u, u_out=torch.empty(3, 5), x_out=to))
    assert torch.equal(to, torch.tensor([[7.0], [21.0], [1.0]]).expand(3, 5))


def test_each_row_says_how_its_history_lies() -> None:
    """A ring of its own for each: the oldest value gives way, and what lies beyond stays as it is."""
    found = ops.load("cpu")
    if not found.available()[0]:
        pytest.skip(f"no back end 'cpu': {found.available()[1]}")
    # (depth, place of m) -> the places of h1, h2, h3, and where m is afterwards.
    cases = [(3, 1, (0, 2, 1), 1), (2, 0, (1, 0), 0), (1, 0, (0,), 0), (-1, 0, (), None), (0, 0, (0, 1, 2), 2)]
    n, factors = len(cases), (2.0, 4.0, 8.0)
    table = torch.zeros(n, WIDTH)
    for row, (depth, place, h, _) in zip(table, cases, strict=True):
        row[DEPTH], row[KEEP] = depth, place
        row[NEXT_U + H1 : NEXT_U + H1 + len(h)] = torch.tensor(factors[: len(h)])
    rows, zeros = torch.arange(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
    coeffs = ops.Coeffs(table, torch.zeros(n, 3, dtype=torch.int32), zeros.long(), zeros, rows=rows)
    spec = StageSpec(RAW, False, False, 0b111 << H1, 0, 0)
    before = torch.randn(3, n, 5)
    places, first, out = before.clone(), torch.randn(n, 5), torch.empty(n, 5)
    buffers = ops.Buffers(u=torch.zeros(n, 5), first=first, h=tuple(places), u_out=out, m_out=places[2])
    found.stage(spec, 0, coeffs, buffers)
    for b, (_, _, h, kept) in enumerate(cases):
        expected = sum((f * before[k, b] for f, k in zip(factors, h, strict=False)), torch.zeros(5))
        torch.testing.assert_close(out[b], expected)
        for k in range(3):
            assert torch.equal(places[k, b], first[b] if k == kept else before[k, b]), (b, k)


def test_adaptive_methods_are_refused_with_the_reason() -> None:
    engine = fastdiff.Engine(network, slots=2, shape=SHAPE, schedule="ddpm")
    for name in ADAPTIVE:
        with pytest.raises(ValueError, match=r"is adaptive: it chooses each step from the error of the last"):
            engine.submit(name)


def test_flow_without_a_prediction_is_refused_as_by_sample() -> None:
    engine = fastdiff.Engine(network, slots=2, shape=SHAPE, schedule="flow")
    x = torch.zeros(SHAPE)
    for given in ({}, {"t_start": 0.5, "x": x}):
        with pytest.raises(ValueError, match="neither the call nor the model says what the network gives"):
            engine.submit("dpmpp2m", 4, cond=labelled(1.0), **given)


def test_previews_are_the_predicted_x0() -> None:
    """Those that `callback` gives, in the joint launch and where a request runs its stages by itself."""
    engine = fastdiff.Engine(network, slots=4, shape=SHAPE, schedule="ddpm")
    plain = {"cond": labelled(1.0)}
    cases = [
        ("heun", plain),
        ("dpm3", {**GUIDED, "guidance": 2.0}),
        ("pc", plain),
        ("ddim", {"clip": "dynamic", **plain}),
        ("ddpm", {"clip": (-0.5, 0.25), **plain}),
        ("dpm1", {"correct_x0": lambda x0, t: x0 * 0.5, **plain}),
    ]
    seen: dict[str, list[fastdiff.engine.Preview]] = {name: [] for name, _ in cases}
    requests = [engine.submit(name, 3, on_preview=seen[name].append, **given) for name, given in cases]
    engine.run()
    for (name, given), request in zip(cases, requests, strict=True):
        expected: list[tuple[float, torch.Tensor]] = []
        alone(name, 3, {}, {**given, "callback": lambda k, t, x, x0, to=expected: to.append((t, x0[0]))})
        assert [p.t for p in seen[name]] == [t for t, _ in expected]
        assert [p.done for p in seen[name]] == list(range(1, request.nfe + 1))
        for preview, (_, x0) in zip(seen[name], expected, strict=True):
            assert torch.equal(preview.x0, x0), name
        assert request.preview is seen[name][-1]


def _in_place(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x.mul_(0.5)


def _itself(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x


@pytest.mark.parametrize("model", [_in_place, _itself])
@pytest.mark.parametrize("method", ["dpm3", "unipc", "edm_heun"])
def test_networks_that_give_their_input_back(model: Any, method: str) -> None:
    """Where no row scales its input, the network is given the state itself."""
    engine = fastdiff.Engine(model, slots=2, shape=SHAPE, schedule="ddpm")
    first = engine.submit(method, 4, seed=1)
    engine.step()
    others = [engine.submit("dpmpp2m", 3, seed=2), engine.submit("ddim", 5, seed=3)]
    engine.run()
    for request in (first, *others):
        # What it gives in place, it must give a plain run outside of it.
        same = {"model": (lambda x, t: x * 0.5) if model is _in_place else _itself}
        expected = alone(request.method, {"dpmpp2m": 3, "ddim": 5}.get(request.method, 4), same, {"seed": request.seed})
        assert torch.equal(request.result(), expected), request.method


def test_a_network_that_begins_to_write_to_its_input() -> None:
    """The states are lost: those in flight end with the reason, and what is submitted again is right."""
    calls = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x.mul(0.5) if len(calls) == 1 else x.mul_(0.5)

    engine = fastdiff.Engine(model, slots=2, shape=SHAPE, schedule="ddpm")
    lost = engine.submit("dpm3", 4, seed=1)
    engine.run()
    with pytest.raises(RuntimeError, match=r"the network wrote to its input.*submit the requests again"):
        lost.result()
    request = engine.submit("dpm3", 4, seed=1)
    engine.run()
    assert torch.equal(request.result(), alone("dpm3", 4, {"model": lambda x, t: x * 0.5}, {"seed": 1}))


def test_rows_that_scale_their_input_join_rows_that_do_not() -> None:
    """The input's memory, which is not written before, is right when they come, and the slots move when they go."""
    engine = fastdiff.Engine(network, slots=4, shape=SHAPE, schedule="ddpm")
    plans = [("ddim", 3), ("dpm3", 9), ("unipc", 7), ("euler", 4), ("dpmpp2m", 5), ("euler", 2)]
    requests = []
    for i, (method, steps) in enumerate(plans):
        requests.append(engine.submit(method, steps, seed=i))
        engine.step()
    engine.run()
    for i, (request, (method, steps)) in enumerate(zip(requests, plans, strict=True)):
        assert torch.equal(request.result(), alone(method, steps, {}, {"seed": i})), method
