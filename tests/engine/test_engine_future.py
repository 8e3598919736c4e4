"""A request as users of futures expect it, and faults that stay with the request that has them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.engine.desk import ELSEWHERE, SHARED

SHAPE = (1, 4, 4)


def table(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Raises for a label that it does not have, as an embedding does."""
    return x / (1.0 + x * x) + torch.arange(8.0)[y].reshape(-1, 1, 1, 1) * 0.125


def engine(model: Any = table, **options: Any) -> fastdiff.Engine:
    return fastdiff.Engine(model, **{"slots": 4, "shape": SHAPE, "schedule": "ddpm", **options})


def label(y: int) -> dict[str, torch.Tensor]:
    return {"y": torch.tensor([y])}


def sampled(seed: int, y: int, steps: int = 4) -> torch.Tensor:
    given: dict[str, Any] = {"shape": (1, *SHAPE), "schedule": "ddpm", "seed": seed, "model_kwargs": label(y)}
    return fastdiff.sample(table, method="dpm3", steps=steps, **given)[0]


def test_a_request_is_a_future() -> None:
    e = engine(slots=1)
    first, second = (e.submit(steps=3, seed=i, cond=label(i)) for i in range(2))
    assert isinstance(first, concurrent.futures.Future)
    with pytest.raises(concurrent.futures.TimeoutError, match="was not done in 0 s"):
        first.result(0)
    assert first.progress.done == 0 and not first.running()
    e.step()
    assert first.running() and not second.running() and not first.done()
    assert concurrent.futures.wait([first, second], timeout=0).not_done == {first, second}
    # It may be cancelled while it runs, and those that wait for several are told.
    threading.Timer(0.05, first.cancel).start()
    done = concurrent.futures.wait([first, second], timeout=30, return_when=concurrent.futures.FIRST_COMPLETED).done
    assert done == {first} and first.cancelled() and first.cancel() and not first.running()
    threading.Thread(target=e.run).start()
    assert list(concurrent.futures.as_completed([second], timeout=30)) == [second]
    assert torch.equal(second.result(), sampled(1, 1, 3))
    assert not second.cancel() and second.exception() is None

    async def awaited() -> torch.Tensor:
        request = e.submit(steps=3, seed=2, cond=label(2))
        threading.Thread(target=e.run).start()
        return await asyncio.wrap_future(request)

    assert torch.equal(asyncio.run(awaited()), sampled(2, 2, 3))


def test_what_belongs_to_a_process_is_not_copied() -> None:
    e = engine()
    request = e.submit(cond=label(1))
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"send request.result\(\)"):
            call(request)
        with pytest.raises(TypeError, match="an Engine belongs to its process"):
            call(e)


def test_what_a_request_was_given_may_change_afterwards() -> None:
    e = engine(uncond=label(0))
    start, cond, uncond = torch.ones(SHAPE), label(3), label(1)
    given: dict[str, Any] = {"method": "ddim", "steps": 3, "guidance": 2.0}
    request = e.submit(x=start, cond=cond, uncond=uncond, **given)
    own: dict[str, Any] = {"x": start[None].clone(), "cond": label(3), "uncond": label(1), "schedule": "ddpm"}
    for tensor in (start, cond["y"], uncond["y"]):
        tensor.zero_()
    assert torch.equal(request.result(), fastdiff.sample(table, **own, **given)[0])


BAD: list[Callable[[], dict[str, torch.Tensor]]] = [
    lambda: label(99),
    lambda: {"y": torch.zeros(1, dtype=torch.int64), "z": torch.zeros(1)},
    lambda: {"y": torch.zeros(1, 3, dtype=torch.int64)},
    lambda: {"y": torch.zeros(1)},
    dict,
]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bad", range(len(BAD)))
def test_a_condition_that_the_network_cannot_take_ends_its_request_alone(bad: int, first: bool) -> None:
    """Whether it comes before the others, with them or while they run."""
    e = engine()
    wrong = [e.submit(steps=4, cond=BAD[bad]())] if first else []
    right = [e.submit(steps=4, seed=i, cond=label(i)) for i in range(2)]
    e.step()
    wrong.append(e.submit(steps=4, cond=BAD[bad]()))
    right.append(e.submit(steps=4, seed=2, cond=label(2)))
    e.run()
    assert [r.status for r in wrong] == ["failed"] * len(wrong)
    for i, request in enumerate(right):
        assert torch.equal(request.result(), sampled(i, i))


def test_conditions_may_name_their_parts_in_any_order() -> None:
    def nested(x: torch.Tensor, t: torch.Tensor, text: dict[str, Any], y: torch.Tensor) -> torch.Tensor:
        return table(x, t, y) + 0.01 * (text["a"] - 2.0 * text["b"]["c"]).reshape(-1, 1, 1, 1)

    a, c, y = torch.ones(1), torch.full((1,), 3.0), torch.tensor([2])
    one = {"text": {"a": a, "b": {"c": c}}, "y": y}
    other = {"y": y + 1, "text": {"b": {"c": 2 * c}, "a": 5 * a}}
    given: dict[str, Any] = {"method": "ddim", "steps": 3, "guidance": 2.0}
    e = engine(nested)
    requests = [e.submit(cond=p, uncond=q, **given) for p, q in ((one, other), (other, one))]
    for request, (p, q) in zip(requests, ((one, other), (other, one)), strict=True):
        alone = fastdiff.sample(nested, shape=(1, *SHAPE), schedule="ddpm", cond=p, uncond=q, **given)
        assert torch.equal(request.result(), alone[0])


def test_the_reason_names_the_conditions() -> None:
    e = engine()
    wrong, right = e.submit(steps=2, cond={}), e.submit(steps=2, cond=label(1))
    e.run()
    with pytest.raises(
        ValueError, match=r"cond has no entries, and the conditions of this engine have y: \(1,\)"
    ) as told:
        wrong.result()
    assert "missing 1 required positional argument: 'y'" in str(told.value.__cause__)
    assert right.status == "done"


def test_an_error_of_the_device_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """After which nobody waits for ever, also under asyncio."""
    e = engine(slots=1)

    def gone(wait: bool) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(e._floor, "collect", gone)

    async def all_of_them() -> list[Any]:
        calls = [e.generate(steps=2, cond=label(1)) for _ in range(3)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)

    assert [str(error) for error in asyncio.run(all_of_them())] == ["an illegal memory access was encountered"] * 3
    assert e.idle


@pytest.mark.parametrize("name", [*SHARED, *ELSEWHERE])
def test_arguments_of_sample_that_a_request_has_not(name: str) -> None:
    told = rf"Engine\(..., {name}=" if name in SHARED else f"a request of an Engine takes no {name}: "
    given: dict[str, Any] = {name: None}
    with pytest.raises(TypeError, match=told):
        engine().submit(**given)


def test_a_stream_misses_nothing_and_a_later_follower_begins_with_the_latest() -> None:
    e = engine(slots=1)

    async def streamed() -> list[int]:
        async with contextlib.aclosing(e.stream(steps=5, cond=label(1))) as previews:
            first = [(await anext(previews)).done]
            return first + [preview.done async for preview in previews]

    async def followed() -> list[int]:
        # An engine of its own: a tick that an ended loop began may still be under way in the other.
        own = engine(slots=1)
        request = own.submit(steps=5, cond=label(1), previews=True)
        own.step()
        own.step()
        return [preview.done async for preview in own.follow(request)]

    # Another thread ticks as soon as it can.
    stop = threading.Event()

    def ticking() -> None:
        while not stop.is_set():
            e.step()

    thread = threading.Thread(target=ticking)
    thread.start()
    try:
        for _ in range(20):
            assert asyncio.run(streamed()) == [1, 2, 3, 4, 5]
    finally:
        stop.set()
        thread.join()
    assert asyncio.run(followed()) == [2, 3, 4, 5]


def test_event_loops_in_threads_share_an_engine_and_leave_nothing() -> None:
    e = engine(slots=3)
    found: dict[int, list[torch.Tensor]] = {}

    async def several(first: int) -> None:
        calls = [e.generate(steps=1 + i % 3, seed=first + i, cond=label(i)) for i in range(6)]
        found[first] = await asyncio.gather(*calls)
        # Left in the middle, with its loop.
        asyncio.get_running_loop().create_task(e.generate(steps=50, cond=label(1)))
        await asyncio.sleep(0)

    threads = [threading.Thread(target=asyncio.run, args=(several(100 * k),)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for first, samples in found.items():
        for i, x in enumerate(samples):
            assert torch.equal(x, sampled(first + i, i, 1 + i % 3))
    e.run()
    gc.collect()
    assert len(found) == 3 and e.idle and not e._driver.loops and not e._known
