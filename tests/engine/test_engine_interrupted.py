"""Interrupts between any two lines of a tick, and errors that are no `Exception`: nobody waits for ever, nothing wrong
is handed out, and the engine goes on."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.engine import batch, floor, queue, request, run, seats, table, turns, verdicts

SHAPE = (1, 4, 4)
METHODS = (("dpm3", 3), ("ddim", 5), ("heun", 3), ("ddpm", 4))
FILES = {module.__file__ for module in (batch, floor, queue, request, run, seats, table, turns, verdicts)}
CLEANING = {"forget", "clear", "fail"}
"""What runs after an interrupt; a second one is another matter."""


class Odd(BaseException):
    """Neither an `Exception` nor one that event loops know."""


def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x / (1.0 + x * x)


def engine(network: Any = model, **options: Any) -> fastdiff.Engine:
    return fastdiff.Engine(network, **{"slots": 2, "parked": 2, "shape": SHAPE, "schedule": "ddpm", **options})


def sampled(seed: int, method: str, steps: int) -> torch.Tensor:
    return fastdiff.sample(model, shape=(1, *SHAPE), method=method, steps=steps, seed=seed, schedule="ddpm")[0]


def interrupting(at: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises at a line of the engine's files, counted from 0."""
    passed = 0

    def traced(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal passed
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name in CLEANING:
            return None
        if event == "line":
            passed += 1
            if passed == at + 1:
                sys.settrace(None)
                raise KeyboardInterrupt
        return traced

    return traced


def test_an_interrupt_between_any_two_lines_leaves_nobody_waiting_and_no_wrong_sample() -> None:
    wanted = {(seed, *METHODS[seed % 4]): sampled(seed, *METHODS[seed % 4]) for seed in range(7)}
    numbers, interrupted, before = random.Random(0), 0, sys.gettrace()
    for at in (numbers.randrange(1500) for _ in range(60)):
        e = engine()
        requests = {
            key: e.submit(key[1], key[2], seed=key[0], previews=key[0] % 3 == 0, priority=key[0] % 2) for key in wanted
        }
        try:
            sys.settrace(interrupting(at))
            e.run()
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(before)
        e.run()
        assert e.idle and not e._known, f"line {at}"
        for key, asked in requests.items():
            assert asked.done(), f"line {at}: {asked}"
            if asked.status == "done":
                assert torch.equal(asked.result(), wanted[key]), f"line {at}: {asked}"
            else:
                assert isinstance(asked.exception(), KeyboardInterrupt)
        assert torch.equal(e.submit("ddim", 5, seed=1).result(), wanted[(1, "ddim", 5)])
    assert interrupted > 40


def test_a_sample_that_is_made_when_another_hook_is_interrupted_is_not_lost() -> None:
    def stopped(preview: fastdiff.engine.Preview) -> None:
        if preview.done == 3:
            raise Odd

    e = engine()
    made, other = e.submit("ddim", 3), e.submit("ddim", 5, on_preview=stopped)
    with pytest.raises(Odd):
        e.run()
    assert made.done() and isinstance(other.exception(), Odd)


def test_a_callback_that_is_interrupted_leaves_the_others_of_its_tick_their_samples() -> None:
    def stopped(asked: Any) -> None:
        raise Odd

    e = engine()
    first, second = e.submit("ddim", 3, seed=1), e.submit("ddim", 3, seed=2)
    first.add_done_callback(stopped)
    with pytest.raises(Odd):
        e.run()
    e.run()
    assert torch.equal(first.result(), sampled(1, "ddim", 3)) and second.done()


@pytest.mark.parametrize("kind", [Odd, asyncio.CancelledError])
def test_under_asyncio_what_is_no_exception_ends_its_requests_and_the_others_go_on(kind: type[BaseException]) -> None:
    calls = 0

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise kind
        return model(x, t)

    async def main() -> list[Any]:
        e = engine(network, slots=1, parked=0)
        asked = [asyncio.ensure_future(e.generate("ddim", 3, seed=seed)) for seed in range(3)]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)

    first, *others = asyncio.run(main())
    assert isinstance(first, kind)
    assert all(torch.equal(x, sampled(seed, "ddim", 3)) for seed, x in enumerate(others, start=1))


def test_event_loops_that_were_closed_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    e = engine()
    step = e.step

    def long() -> int:
        """Its sample is told of before the tick is over."""
        rows = step()
        time.sleep(0.05)
        return rows

    monkeypatch.setattr(e, "step", long)
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(e.generate("ddim", 2))
        loop.close()
    del loop

    async def main() -> int:
        await e.generate("ddim", 2)
        gc.collect()
        return len(e._driver.loops)

    assert asyncio.run(main()) <= 1
    gc.collect()
    # Neither a task that was never ended nor an error in the engine's thread.
    assert capfd.readouterr().err == ""


def test_an_event_loop_that_runs_again_goes_on() -> None:
    e, loop = engine(), asyncio.new_event_loop()
    for seed in range(3):
        x = loop.run_until_complete(asyncio.wait_for(e.generate("ddim", 3, seed=seed), 20))
        assert torch.equal(x, sampled(seed, "ddim", 3))
    loop.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_after_a_fork_the_child_is_told_to_make_an_engine_of_its_own() -> None:
    e = engine()
    e.submit("ddim", 2).result()
    child = os.fork()
    if not child:
        status = 1
        try:
            e.submit("ddim", 2)
        except RuntimeError as error:
            status = 0 if "before a fork: make one in this process" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert e.submit("ddim", 2).result() is not None


def test_an_engine_is_not_idle_while_a_request_is_between_queue_and_slot() -> None:
    e, seen = engine(), list[bool]()

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        seen.append(e.idle)
        return torch.zeros_like(like)

    e.submit("ddim", 2, noise=noise)
    e.run()
    assert seen == [False] and e.idle


def test_a_verdict_that_comes_late_is_none_of_a_later_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device the host learns afterwards whether states are finite; here it looks one tick late."""

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x, t) * (torch.nan if e.stats.ticks == 8 else 1.0)

    e = engine(network)
    asked, collect, looks = e.submit("ddim", 9), e._floor.collect, list[int]()

    def late(wait: bool) -> None:
        looks.append(e.stats.ticks)
        if e.stats.ticks != 8:
            collect(wait)

    monkeypatch.setattr(e._floor, "collect", late)
    e.run()
    assert 8 in looks and isinstance(asked.exception(), FloatingPointError)
