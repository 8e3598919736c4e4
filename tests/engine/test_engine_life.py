"""How requests come and go: order, bounds, failures that stay with one, and memory that does not grow."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import guidance
from fastdiff.engine import Closed, Preview, QueueFull
from fastdiff.engine import run as entering
from fastdiff.plan import IDENTITY

SHAPE = (1, 4, 4)


def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    out = x / (1.0 + x * x)
    return out if y is None else out + y.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * 0.125


def engine(model: Any = model, **options: Any) -> fastdiff.Engine:
    return fastdiff.Engine(model, **{"slots": 4, "shape": SHAPE, "schedule": "ddpm", **options})


def sampled(seed: int, method: str = "dpm3", steps: int = 4, **options: Any) -> torch.Tensor:
    return fastdiff.sample(model, shape=(1, *SHAPE), method=method, steps=steps, seed=seed, schedule="ddpm", **options)[
        0
    ]


def test_order_is_fair_and_priorities_come_first() -> None:
    e = engine(slots=1)
    done: list[int] = []
    for seed, priority in ((0, 0), (1, 0), (2, 5), (3, -1), (4, 5)):
        e.submit("ddim", 2, seed=seed, priority=priority).add_done_callback(lambda r: done.append(r.seed))
    e.run()
    assert done == [2, 4, 0, 1, 3]


def test_thousands_who_leave_the_queue_are_not_looked_for() -> None:
    """Each of 3,000 was found by comparing it with all before it: 4.5 million comparisons."""
    e, compared = engine(slots=1, parked=0, queue=5000), [0]

    class Order(tuple[int, int]):
        def __lt__(self, other: tuple[int, int]) -> bool:
            compared[0] += 1
            return tuple.__lt__(self, other)

        def __eq__(self, other: object) -> bool:
            compared[0] += 1
            return tuple.__eq__(self, other)

        __hash__ = None  # type: ignore[assignment]

    requests = [e.submit("ddim", 2, seed=seed) for seed in range(3000)]
    for asked in requests:
        run = e._known[asked]
        run.order = Order(run.order)
    e._waiting.heap = [(run.order, run) for run in e._waiting]
    e._waiting.heap.sort()
    kept, compared[0] = requests[7::100], 0
    for asked in reversed(requests):
        if asked not in kept:
            asked.cancel()
    assert compared[0] < 60_000 and e.waiting == len(kept) and len(e._waiting.heap) <= 2 * len(kept)
    done: list[int] = []
    for asked in kept:
        asked.add_done_callback(lambda r: done.append(r.seed))
    e.run()
    assert done == list(range(7, 3000, 100)) and not e._waiting.heap and not e._known


def test_whoever_is_told_that_a_waiting_request_is_cancelled_finds_its_place_free() -> None:
    e, second = engine(slots=1, parked=0, queue=1), list[fastdiff.Request]()
    first = e.submit("ddim", 2)
    first.add_done_callback(lambda r: second.append(e.submit("ddim", 2)))
    first.cancel()
    with pytest.raises(QueueFull):
        e.submit("ddim", 2)
    e.run()
    assert second[0].status == "done" and e.idle and not e._known


@pytest.mark.parametrize("parked", [0, 12])
def test_equal_requests_end_in_the_order_in_which_they_came(parked: int) -> None:
    """Also those of one tick, whose slots have another order."""
    e, done = engine(parked=parked), list[int]()
    for seed in range(60):
        e.submit("ddim", 7, seed=seed).add_done_callback(lambda r: done.append(r.seed))
        if seed % 3 == 0:
            e.step()
    e.run()
    assert done == list(range(60))


def test_a_request_enters_at_the_next_tick() -> None:
    e = engine()
    e.submit("ddim", 9)
    e.step()
    late = e.submit("ddim", 3)
    assert (late.status, late.waited) == ("waiting", 0)
    assert e.step() == 2
    assert (late.status, late.progress, late.waited) == ("running", (1, 3), 0)
    e.run()
    assert late.status == "done" and late.done()


def test_a_request_joins_at_the_next_tick_where_all_slots_are_taken() -> None:
    """The others take turns, and their samples are the same."""
    seen: list[int] = []

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return model(x, t)

    e = engine(counted, slots=2)
    requests = [e.submit("unipc", 6, seed=0), e.submit("dpm3", 6, seed=1)]
    e.step()
    for seed in range(2, 6):
        requests.append(e.submit(("dpmpp2m_sde", "unipc")[seed % 2], 6, seed=seed))
        e.step()
        assert requests[-1].progress.done == 1 and requests[-1].waited == 0
    assert sum(r.progress.done for r in requests) == 10
    # None is forgotten by a call that fails, nor fails with it, whose turn it was not.
    e.run()
    assert max(seen) == 2 and seen.count(2) == len(seen) == 18
    for request in requests:
        assert torch.equal(request.result(), sampled(request.seed, request.method, 6)), request


def test_turns_end_together_and_nobody_is_overtaken_for_ever() -> None:
    e, done = engine(slots=2), []
    for request in [*(e.submit("ddim", 10, seed=i) for i in range(1, 4)), e.submit("ddim", 30, seed=0)]:
        request.add_done_callback(lambda r: done.append(r.seed))
    ticks = 0
    while not e.idle:
        e.step()
        ticks += 1
    # 60 evaluations in about 30 ticks of 2; one after the other would take 40. Equal ones end in their order.
    assert ticks <= 32 and [seed for seed in done if seed] == [1, 2, 3]
    # Longer ones that keep coming do not hold a short one up for ever.
    e.submit("ddim", 900, seed=8)
    first = e.submit("ddim", 4, seed=9)
    for seed in range(100):
        e.submit("ddim", 40, seed=seed)
        for _ in range(20):
            e.step()
        if first.done():
            break
    assert first.done() and seed < 99
    e.close(cancel=True)


def test_parked_requests_outlive_an_error_of_the_network() -> None:
    broken = [False]

    def flaky(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if broken[0]:
            raise RuntimeError("out of memory")
        return model(x, t)

    e = engine(flaky, slots=2)
    first = [e.submit(seed=i, steps=9) for i in range(2)]
    e.step()
    others = [e.submit(seed=i, steps=9) for i in range(2, 4)]
    broken[0] = True
    assert e.step() == 0
    broken[0] = False
    e.run()
    assert all(isinstance(r.exception(), RuntimeError) for r in others)
    for request in first:
        assert torch.equal(request.result(), sampled(request.seed, steps=9))


def test_parked_places_are_bounded_by_memory() -> None:
    assert engine(shape=(3, 512, 512), slots=1)._floor.places == 1 + (256 << 20) // (5 * 4 * 3 * 512 * 512)
    assert engine(slots=40)._floor.places == 160 and engine(slots=2)._floor.places == 66
    assert engine(slots=2, parked=0)._floor.places == 2


def test_a_full_queue_says_so() -> None:
    e = engine(queue=2)
    first = [e.submit() for _ in range(2)]
    with pytest.raises(QueueFull, match=r"2 requests wait, as many as queue=2 allows: try again"):
        e.submit()
    first[0].cancel()
    e.submit()


def test_close_drains_or_cancels() -> None:
    with engine() as e:
        drained = [e.submit(seed=i, steps=3) for i in range(9)]
    assert all(r.status == "done" for r in drained)
    with pytest.raises(Closed, match="takes no more requests"):
        e.submit()
    e = engine()
    requests = [e.submit() for _ in range(9)]
    e.step()
    e.close(cancel=True)
    assert all(r.cancelled() for r in requests) and e.idle
    with pytest.raises(ZeroDivisionError), engine() as e:
        dropped = e.submit()
        raise ZeroDivisionError
    assert dropped.cancelled()


def test_cancelled_requests_leave_and_say_so() -> None:
    e = engine()
    running, waiting, other = e.submit(seed=1), e.submit(seed=2), e.submit(seed=3)
    e.step()
    assert running.cancel() and waiting.cancel() and not (running.done() and running.cancel() is False)
    assert e.step() == 1
    e.run()
    with pytest.raises(CancelledError):
        running.result()
    assert not other.cancel()
    assert torch.equal(other.result(), sampled(3, steps=10))


def test_a_nan_ends_its_request_alone() -> None:
    def sick(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = model(x, t)
        return torch.where(y.reshape(-1, 1, 1, 1) > 0, out / 0.0 * 0.0, out)

    e = engine(sick)
    well = [e.submit(seed=i, steps=12, cond={"y": torch.tensor([0.0])}) for i in range(3)]
    ill = e.submit("unipc", 20, cond={"y": torch.tensor([1.0])})
    e.run()
    with pytest.raises(FloatingPointError, match=r"a sample of method 'unipc' is NaN or Inf after evaluation \d of 20"):
        ill.result()
    assert ill.status == "failed" and isinstance(ill.exception(), FloatingPointError)
    for i, request in enumerate(well):
        assert torch.equal(request.result(), sampled(i, steps=12))
    # The slot is clean for the next one.
    again = e.submit("unipc", 4, seed=8, cond={"y": torch.tensor([0.0])})
    assert torch.equal(again.result(), sampled(8, "unipc"))


def test_an_error_in_a_function_of_the_callers_ends_its_request_alone() -> None:
    def shout(*given: Any) -> Any:
        raise KeyError("mine")

    e = engine()
    calls = [{"on_preview": shout}, {"noise": shout}, {"correct_x0": shout}, {"correct_xt": shout}]
    calls += [{"guidance": guidance.ClassifierScore(shout)}, {"noise": shout, "x": torch.zeros(SHAPE)}]
    broken = [e.submit("ddpm", 4, **call) for call in calls]
    fine = e.submit(seed=5, steps=4)
    e.run()
    for request in broken:
        with pytest.raises(KeyError, match="mine"):
            request.result()
    assert torch.equal(fine.result(), sampled(5))


def test_an_error_of_the_network_ends_those_in_flight_and_not_the_engine() -> None:
    broken = [False]

    def flaky(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if broken[0]:
            broken[0] = False
            raise RuntimeError("out of memory")
        return model(x, t)

    e = engine(flaky, slots=2, parked=0)
    first = [e.submit(seed=i, steps=4) for i in range(3)]
    e.step()
    broken[0] = True
    assert e.step() == 0
    for request in first[:2]:
        with pytest.raises(RuntimeError, match="out of memory"):
            request.result()
    e.run()
    assert torch.equal(first[2].result(), sampled(2))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x, t: x[:, :0], r"the model returned shape"),
        (lambda x, t: x.to(torch.float8_e4m3fn), r"which the back end .* does not read"),
    ],
)
def test_outputs_that_cannot_be_read(network: Any, message: str) -> None:
    request = engine(network, backend="cpu" if fastdiff.backends()["cpu"][0] else None).submit()
    with pytest.raises((ValueError, TypeError), match=message):
        request.result()


def test_conditions_that_do_not_go_together() -> None:
    e = engine()
    good = e.submit(seed=1, steps=4, cond={"y": torch.tensor([0.0])})
    bad = e.submit(cond={"y": torch.zeros(1, 7)})
    e.run()
    with pytest.raises(ValueError, match=r"cond has y: \(1, 7\) torch.float32, and the conditions of this engine have"):
        bad.result()
    assert torch.equal(good.result(), sampled(1))


@pytest.mark.parametrize("graph", [False, "auto"])
def test_a_condition_that_the_network_refuses_ends_its_request_alone(graph: Any) -> None:
    """Whoever enters with it, and whoever runs already."""
    table = torch.linspace(-1.0, 1.0, 4)

    def embedded(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return model(x, t, table[y])

    def label(y: int) -> dict[str, torch.Tensor]:
        return {"y": torch.tensor([y])}

    e = engine(embedded, uncond=label(3), graph=graph)
    running = e.submit("unipc", 6, seed=0, cond=label(1))
    e.step()
    bad = [e.submit(cond=label(9)), e.submit(cond=label(0), uncond=label(7), guidance=2.0)]
    good = e.submit("unipc", 6, seed=1, cond=label(2))
    assert e.step() == 2
    e.run()
    for request in bad:
        with pytest.raises(IndexError):
            request.result()
    for request, y in ((running, 1), (good, 2)):
        expected = sampled(request.seed, "unipc", 6, model_kwargs={"y": table[y : y + 1]})
        assert torch.equal(request.result(), expected)


def test_an_error_that_no_condition_explains_ends_all_of_the_tick() -> None:
    calls: list[int] = []

    def once(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return model(x, t)

    e = engine(once)
    requests = [e.submit(steps=4)]
    e.step()
    requests.append(e.submit(steps=4))
    assert e.step() == 0 and e.idle
    assert all(isinstance(r.exception(), RuntimeError) for r in requests)


def test_whose_condition_is_the_odd_one() -> None:
    """That of those who run already is right, and else that of most."""
    e = engine()
    odd = e.submit(cond={"y": torch.zeros(1, 7)})
    good = [e.submit(seed=i, steps=4, cond={"y": torch.tensor([0.0])}) for i in range(2)]
    e.step()
    assert isinstance(odd.exception(), ValueError)
    odd = [e.submit(cond={"z": torch.tensor([0.0])}) for _ in range(2)]
    e.run()
    assert all(isinstance(r.exception(), ValueError) for r in odd)
    for request in good:
        assert torch.equal(request.result(), sampled(request.seed))


def test_a_collate_function_pads() -> None:
    def mean_of_tokens(x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # Multiples of 1/8: their sum is exact in any order.
        return model(x, t) + (tokens * mask).sum(1).reshape(-1, 1, 1, 1) * 0.125

    def pad(conditions: Any) -> dict[str, torch.Tensor]:
        if any(len(c["tokens"]) > 5 for c in conditions):
            raise ValueError("too long")
        longest = max(len(c["tokens"]) for c in conditions)
        tokens, mask = torch.zeros(2, len(conditions), longest)
        for i, c in enumerate(conditions):
            tokens[i, : len(c["tokens"])], mask[i, : len(c["tokens"])] = c["tokens"], 1.0
        return {"tokens": tokens, "mask": mask}

    e = engine(mean_of_tokens, collate=pad)
    lengths = (1, 3, 5, 9, 2)
    requests = [e.submit(seed=n, steps=4, cond={"tokens": torch.ones(n)}) for n in lengths]
    e.run()
    for n, request in zip(lengths, requests, strict=True):
        if n > 5:
            with pytest.raises(ValueError, match="too long"):
                request.result()
            continue
        expected = sampled(n, model_kwargs={"y": torch.tensor([float(n)])})
        assert torch.equal(request.result(), expected), n


@pytest.mark.parametrize(
    ("collate", "message"),
    [(lambda rows: list(rows), "collate returned list"), (lambda rows: {"y": torch.zeros(3)}, r"from 1 conditions")],
)
def test_what_a_collate_function_may_not_return(collate: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        engine(collate=collate).submit(cond={"y": torch.zeros(1)}).result()


SUBMITTED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dtype": torch.float64}, TypeError, r"dtype is the engine's, for all requests"),
    ({"seed": "a"}, TypeError, "seed='a': expected an integer"),
    ({"x": torch.zeros(3, 3)}, ValueError, r"x has shape \(3, 3\); expected \(1, 4, 4\), the engine's"),
    ({"guidance": 3.0}, ValueError, "classifier-free guidance needs guidance, cond and uncond"),
    (
        {"guidance": 2.0, "cond": {"y": torch.zeros(1)}, "uncond": {"y": torch.zeros(1, 2)}},
        ValueError,
        r"uncond has y: \(1, 2\) torch.float32, and the conditions of this engine have y: \(1,\)",
    ),
    ({"cond": [1]}, TypeError, r"cond must be a dict of keyword arguments of the network"),
    ({"cond": {"y": torch.zeros(2)}}, ValueError, r"cond\['y'\] has shape \(2,\); expected the first dimension 1"),
    ({"priority": 0.5}, TypeError, "priority=0.5: expected an integer"),
    ({"on_preview": 3}, TypeError, r"on_preview=3: expected a function, on_preview\(preview\)"),
    ({"cond": {"y": np.zeros((1, 2))}}, TypeError, r"cond\['y'\] is an array of NumPy.*torch.from_numpy\(value\)"),
    ({"stepz": 3}, ValueError, "stepz"),
    ({"method": "ddpm", "variance": "learned_range"}, ValueError, r"Engine\(..., learned_variance=True\)"),
    ({"method": "mean_flow", "two_times": True}, ValueError, r"calls the network as model\(x, t, s\)"),
    ({"method": "ddpm", "steps": 900}, ValueError, r"a plan of 900 stages takes up to 1802 rows"),
]


@pytest.mark.parametrize(("options", "kind", "message"), SUBMITTED, ids=[str(o) for o, _, _ in SUBMITTED])
def test_bad_submissions_say_what_is_right(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        engine(rows=1000).submit(**options)


ENGINES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"slots": 0}, ValueError, "slots=0: expected an integer from 1"),
    ({"shape": None}, ValueError, "cannot tell the shape of a sample"),
    ({"buckets": (4, 2)}, ValueError, "expected ascending sizes"),
    ({"buckets": 4}, TypeError, r"buckets=4: expected ascending sizes, such as buckets=\(1, 2, 4, 8\)"),
    ({"shape": 3}, TypeError, r"shape=3: expected \(C, ...\), without a batch, such as shape=\(3, 32, 32\)"),
    ({"collate": 3}, TypeError, "collate=3: expected a function"),
    ({"graph": True}, RuntimeError, "graph=True: it needs a CUDA device"),
    ({"history": 7}, ValueError, "history=7: expected an integer from 0 to 6"),
    ({"parked": -1}, ValueError, "parked=-1: expected an integer from 0"),
]


@pytest.mark.parametrize(("options", "kind", "message"), ENGINES, ids=[str(o) for o, _, _ in ENGINES])
def test_bad_engines_say_what_is_right(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        engine(**options)


def test_a_plan_without_a_network_is_refused() -> None:
    made = fastdiff.plan("ddim", 1)
    stage = replace(made.stages[0], evaluate=False, next_u=IDENTITY, next_x=IDENTITY)
    with pytest.raises(ValueError, match="never evaluates the network"):
        engine().submit(plan=replace(made, stages=(stage,)))


def test_guidance_that_cannot_change() -> None:
    labels = {"cond": {"y": torch.tensor([1.0])}, "uncond": {"y": torch.tensor([0.0])}}
    e = engine(buckets=(1, 2), parked=0)
    own = e.submit("ddim", 4, guidance=guidance.Rescale(3.0), **labels)
    with pytest.raises(ValueError, match="a request with guidance Rescale runs its stages by itself"):
        own.guidance = 2.0
    e.run()
    with pytest.raises(ValueError, match="is over: its guidance cannot change any more"):
        own.guidance = 2.0
    bare, labelled = e.submit(cond=labels["cond"]), e.submit(**labels)
    with pytest.raises(ValueError, match="needs guidance, cond and uncond together"):
        bare.guidance = 2.0
    e.step()
    with pytest.raises(ValueError, match="no room for another unconditional half"):
        labelled.guidance = 2.0
    narrow = engine(buckets=(1,), uncond=labels["uncond"]).submit(cond=labels["cond"])
    with pytest.raises(ValueError, match="no room for another unconditional half"):
        narrow.guidance = 2.0
    with pytest.raises(ValueError, match="needs two rows of the network's input"):
        engine(buckets=(1,)).submit(guidance=2.0, **labels)


def test_guidance_that_comes_while_a_request_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has left the queue and has not begun: its half needs room all the same."""
    labels = {"cond": {"y": torch.tensor([1.0])}, "uncond": {"y": torch.tensor([0.0])}}
    e, real, refused = engine(slots=2, buckets=(1, 2), parked=0), entering.draw_start, []
    first, second = e.submit(**labels), e.submit(**labels)

    def begin(*given: Any) -> Any:
        if second.running():
            with pytest.raises(ValueError, match="no room for another unconditional half"):
                second.guidance = 2.0
            refused.append(True)
        return real(*given)

    monkeypatch.setattr(entering, "draw_start", begin)
    e.step()
    first.cancel()
    e.step()
    second.guidance = 3.0
    e.run()
    assert refused == [True] and second.done() and not second.exception()


def test_a_callback_that_waits_for_a_tick() -> None:
    """It runs in the tick's own thread, where it would wait for ever."""
    e, told = engine(), []
    other = e.submit(seed=1, steps=9)

    def call(request: fastdiff.Request) -> None:
        with pytest.raises(RuntimeError, match="a tick is under way in this thread"):
            other.result(5)
        told.append(request)

    first = e.submit(seed=0, steps=2)
    first.add_done_callback(call)
    e.run()
    assert told == [first] and torch.equal(other.result(), sampled(1, steps=9))


def test_a_table_that_is_full_lets_others_wait() -> None:
    e = engine(slots=4, rows=30)
    requests = [e.submit("ddim", 9, seed=i) for i in range(6)]
    assert e.step() == 2
    e.run()
    for i, request in enumerate(requests):
        assert torch.equal(request.result(), sampled(i, "ddim", 9))


def test_result_advances_the_engine_where_nobody_does() -> None:
    e = engine()
    requests = [e.submit(seed=i, steps=4) for i in range(6)]
    assert torch.equal(requests[5].result(), sampled(5))
    with pytest.raises(FutureTimeout, match="was not done in 0 s"):
        e.submit(steps=900).result(0)
    nested = e.submit(on_preview=lambda preview: requests[0].exception() or e.step())
    with pytest.raises(RuntimeError, match="a tick is under way in this thread"):
        nested.result()


def test_threads_submit_change_and_cancel_while_it_runs() -> None:
    e = engine(slots=8, uncond={"y": torch.tensor([0.0])})
    found: dict[int, fastdiff.Request] = {}
    stop = threading.Event()

    def client(first: int) -> None:
        for seed in range(first, first + 20):
            request = e.submit("dpm3", 3 + seed % 5, seed=seed, cond={"y": torch.tensor([0.0])}, guidance=1.0)
            if seed % 7 == 3:
                request.cancel()
            elif seed % 7 == 5:
                try:
                    request.guidance = None
                except ValueError:
                    assert request.done()
            found[seed] = request

    def loop() -> None:
        while not (stop.is_set() and e.idle):
            e.step()

    threads = [threading.Thread(target=client, args=(100 * i,)) for i in range(4)]
    runner = threading.Thread(target=loop)
    for thread in (runner, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    runner.join()
    for seed, request in found.items():
        if not request.cancelled():
            # Guidance of scale 1 and none are the conditional output.
            assert torch.equal(request.result(), sampled(seed, steps=3 + seed % 5)), seed


def test_memory_does_not_grow() -> None:
    e = engine(slots=4)

    def some(first: int) -> None:
        for seed in range(first, first + 40):
            e.submit(("dpm3", "unipc", "pc", "heun")[seed % 4], 2 + seed % 3, seed=seed)
        e.run()

    for round in range(3):
        some(40 * round)
    tracemalloc.start()
    some(200)
    # torch's trees leave circles behind, which are collected now and then.
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for round in range(3):
        some(300 + 40 * round)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    # A Request and its Run take more than 1 kB, and there were 120: half of what they would take if they stayed.
    assert grown < 60_000, grown
    assert not e._known and e.idle


def test_asyncio_generates_and_streams() -> None:
    async def main() -> None:
        e = engine(slots=4)
        given = [e.generate("dpm3", 4, seed=i) for i in range(9)]

        async def streamed() -> list[Preview]:
            return [preview async for preview in e.stream("unipc", 5, seed=20)]

        previews, *samples = await asyncio.gather(streamed(), *given)
        for i, x in enumerate(samples):
            assert torch.equal(x, sampled(i))
        assert [p.done for p in previews] == [1, 2, 3, 4, 5]
        assert torch.equal(previews[-1].x0, sampled(20, "unipc", 5))

        async for preview in e.stream("ddpm", 50):
            if preview.done == 2:
                break
        task = asyncio.create_task(e.generate("ddpm", 500))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ValueError, match="is adaptive"):
            await e.generate("ode")
        while not e.idle:
            await asyncio.sleep(0.001)
        e.close()

    asyncio.run(main())


def test_a_request_that_is_cancelled_while_a_task_waits_for_it() -> None:
    async def main() -> None:
        e = engine()
        e.submit("ddpm", 900)
        waiting = asyncio.create_task(e.generate("ddpm", 900, on_preview=lambda p: known[0].cancel()))
        await asyncio.sleep(0)
        known.extend(r for r in e._known if r.method == "ddpm" and r._watches)
        with pytest.raises(RuntimeError, match="was cancelled while it was waited for"):
            await waiting
        e.close(cancel=True)

    known: list[fastdiff.Request] = []
    asyncio.run(main())


def test_an_interrupt_ends_those_in_flight_and_is_raised() -> None:
    armed = [False]

    def stopped(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if armed[0]:
            raise KeyboardInterrupt
        return model(x, t)

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    e = engine(stopped)
    running = e.submit(steps=9)
    e.step()
    armed[0] = True
    with pytest.raises(KeyboardInterrupt):
        e.step()
    armed[0] = False
    entering = e.submit("ddpm", 4, noise=noise)
    with pytest.raises(KeyboardInterrupt):
        e.step()
    for request in (running, entering):
        assert isinstance(request.exception(), KeyboardInterrupt)
    assert torch.equal(e.submit(seed=2, steps=4).result(), sampled(2))
