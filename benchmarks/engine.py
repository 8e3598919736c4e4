"""`python -m benchmarks.engine`: what many requests in one batch cost. Writes benchmarks/results/engine.json.

On one thread, seconds are of this process's processor time, so that other work on the machine does not count as ours;
what it takes from the caches and the memory does. On several they are the clock's, and the least over the rounds is
what a machine with nothing else to do would show. All variants take turns in every round.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

import fastdiff
from benchmarks import report
from fastdiff.demo import load_model
from fastdiff.sampler import kept_plan

SHAPE, SLOTS = (4, 64, 64), 32
MIX = ("dpm3", "dpmpp2m", "unipc", "dpmpp2m_sde")
METHODS = ("dpm3", "dpmpp2m", "unipc", "ddim", "heun", "dpmpp2m_sde")
ONE_A_STEP = ("dpm3", "dpmpp2m", "unipc", "ddim", "dpmpp3s", "dpmpp2m_sde")


def now() -> float:
    """Seconds, as the docstring of this file says."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


OUTPUT = torch.randn(SLOTS, *SHAPE)
"""What the network gives, at no cost: what is left is the engine."""


def busy(methods: tuple[str, ...], steps: int, shape: tuple[int, ...] = SHAPE) -> fastdiff.Engine:
    """An engine whose slots are all taken, one tick old."""
    output = OUTPUT if shape == SHAPE else torch.randn(SLOTS, *shape)
    engine = fastdiff.Engine(lambda x, t: output[: len(x)], slots=SLOTS, shape=shape, schedule="ddpm", graph=False)
    requests = [engine.submit(methods[i % len(methods)], steps, seed=i) for i in range(SLOTS)]  # type: ignore[arg-type]
    if engine.step() != SLOTS:
        raise RuntimeError("not all requests run") from requests[0].exception(0)
    return engine


def host(rounds: int) -> report.Data:
    """Seconds of a tick whose stage has next to nothing to do: the engine's own Python."""
    engine, found = busy(MIX, rounds + 2, (1, 8, 8)), []
    for _ in range(rounds):
        start = now()
        engine.step()
        found.append(now() - start)
    return {"slots": SLOTS, "shape": (1, 8, 8), "median_seconds": median(found), "least_seconds": min(found)}


def diffusers(steps: int) -> Callable[[], None]:
    """One step of a scheduler for each request, of the same four methods."""
    from diffusers import DPMSolverMultistepScheduler as Dpm
    from diffusers import UniPCMultistepScheduler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made: list[Any] = []
        for i in range(SLOTS):
            kind = (
                lambda: Dpm(algorithm_type="dpmsolver", solver_order=3, final_sigmas_type="sigma_min"),
                Dpm,
                UniPCMultistepScheduler,
                lambda: Dpm(algorithm_type="sde-dpmsolver++"),
            )[i % 4]
            made.append(kind())
            made[-1].set_timesteps(steps)
    states = list(torch.randn(SLOTS, 1, *SHAPE))
    at = 0

    def step() -> None:
        nonlocal at
        for i, scheduler in enumerate(made):
            states[i] = scheduler.step(OUTPUT[i : i + 1], scheduler.timesteps[at], states[i]).prev_sample
        at += 1

    return step


def mixtures(rounds: int) -> report.Data:
    """Ticks of 32 requests of one method each, of four methods, and 32 schedulers of diffusers."""
    steps = rounds + 8
    works: dict[str, Callable[[], object]] = {name: busy((name,), steps).step for name in MIX}
    works["mixed"], works["diffusers"] = busy(MIX, steps).step, diffusers(steps)
    found: dict[str, list[float]] = {name: [] for name in works}
    with torch.no_grad():
        for work in works.values():
            work()
        for _ in range(rounds):
            for name, work in works.items():
                start = now()
                work()
                found[name].append(now() - start)
    alike = {name: mean(f(found[m]) for m in MIX) for name, f in (("median", median), ("least", min))}
    return {
        "threads": torch.get_num_threads(),
        "slots": SLOTS,
        "shape": SHAPE,
        "median_seconds": {name: median(v) for name, v in found.items()},
        "least_seconds": {name: min(v) for name, v in found.items()},
        "mixed_over_alike": {
            "median": median(found["mixed"]) / alike["median"],
            "least": min(found["mixed"]) / alike["least"],
        },
        "diffusers_over_mixed": {
            "median": median(found["diffusers"]) / median(found["mixed"]),
            "least": min(found["diffusers"]) / min(found["mixed"]),
        },
    }


def demand(seed: int, slots: int, load: float) -> tuple[list[int], list[float]]:
    """Of 64 requests that come at random: evaluations, 4 to 30, and the tick at which each comes.

    Args:
        load: evaluations asked for per tick, in slots: the mean gap between two arrivals, in ticks, follows from it.
    """
    rng, count = random.Random(seed), 64
    steps = [rng.randint(4, 30) for _ in range(count)]
    gap = mean(steps) / slots / load
    return steps, [0.0, *itertools.accumulate(rng.expovariate(1.0 / gap) for _ in range(count - 1))]


def turnover(rounds: int, load: float) -> report.Data:
    """Seconds of a tick of 16 slots in which requests come, take turns and go, with a network that costs nothing: the
    mean over a run's ticks of the least that each took in any round."""
    output, best, slots = torch.randn(32, 1, 8, 8), list[float](), 16
    steps, due = demand(0, slots, load)
    for _ in range(rounds):
        engine = fastdiff.Engine(lambda x, t, y: output[: len(x)], slots=slots, shape=(1, 8, 8), schedule="ddpm")
        found: list[float] = []
        sent = 0
        while sent < len(due) or not engine.idle:
            while sent < len(due) and due[sent] <= len(found):
                label: Any = {"y": torch.tensor([sent % 10])}
                engine.submit(ONE_A_STEP[sent % len(ONE_A_STEP)], steps[sent], seed=sent, cond=label)
                sent += 1
            start = now()
            engine.step()
            found.append(now() - start)
        best = [min(pair) for pair in zip(best or found, found, strict=True)]
    return {"slots": slots, "load": load, "requests": len(due), "ticks": len(best), "seconds_a_tick": mean(best)}


def fewest_ticks(steps: list[int], due: list[float], slots: int) -> int:
    """The ticks that any order of work needs at least: those of longest remaining first, which no order beats where
    the host sees the requests as they come (each takes at most one evaluation a tick, and may pause)."""
    left: dict[int, int] = {}
    coming, tick, busy = 0, 0, 0
    while coming < len(steps) or left:
        while coming < len(steps) and due[coming] <= tick:
            left[coming] = steps[coming]
            coming += 1
        busy += bool(left)
        for i in sorted(left, key=lambda i: -left[i])[:slots]:
            left[i] -= 1
            if not left[i]:
                del left[i]
        tick += 1
    return busy


def arrivals(seed: int, slots: int, load: float, guided: bool, parked: int | None) -> report.Data:
    """64 requests of 4 to 30 evaluations for the network of the digits, coming at random.

    Args:
        load: as of `demand`.
        guided: whether each evaluates both halves of classifier-free guidance.
        parked: as of `fastdiff.Engine`.
    """
    rows = slots * (1 + guided)
    model, within = load_model(), 0.0

    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal within
        start = now()
        out: torch.Tensor = model(x, t, y)
        within += now() - start
        return out

    engine = fastdiff.Engine(network, slots=slots, parked=parked, shape=(1, 8, 8), schedule="ddpm")
    steps, due = demand(seed, slots, load)
    count = len(steps)
    full = (torch.randn(rows, 1, 8, 8), torch.full((rows,), 500.0), torch.zeros(rows, dtype=torch.long))
    calls: list[float] = []
    requests: list[fastdiff.Request] = []
    came: list[int] = []
    ended: dict[fastdiff.Request, int] = {}
    tick, spent, submitting = 0, 0.0, 0.0
    kept_plan.cache_clear()
    while len(requests) < count or not engine.idle:
        while len(requests) < count and due[len(requests)] <= tick:
            i = len(requests)
            given: Any = {"cond": {"y": torch.tensor([i % 10])}, "seed": i}
            if guided:
                given |= {"uncond": {"y": torch.tensor([10])}, "guidance": 2.0 + i % 3}
            start = now()
            requests.append(engine.submit(ONE_A_STEP[i % len(ONE_A_STEP)], steps[i], **given))
            submitting += now() - start
            came.append(tick)
        start = now()
        engine.step()
        spent += now() - start
        tick += 1
        for request in requests:
            if request.done():
                ended.setdefault(request, tick)
        start = now()
        with torch.no_grad():
            model(*full)
        calls.append(now() - start)
    for request in requests:
        request.result(0)
    ideal = engine.stats.evaluations / rows * mean(calls)
    return {
        "seed": seed,
        "slots": slots,
        "load": load,
        "guided": guided,
        "parked": parked,
        "evaluations": engine.stats.evaluations,
        "ticks": engine.stats.ticks,
        "fewest_ticks": fewest_ticks(steps, due, slots),
        "rows_with_padding": engine.stats.padded,
        "seconds": spent,
        "ideal_seconds": ideal,
        "over_ideal": spent / ideal,
        "submitting_over_ideal": submitting / ideal,
        "over_its_own_network_calls": spent / within,
        "mean_waited_ticks": mean(r.waited for r in requests),
        "mean_ticks_to_the_end": mean(ended[r] - at for r, at in zip(requests, came, strict=True)),
    }


def batch_dependence(count: int) -> report.Data:
    """How far the digits' samples are from runs alone: the network's own rounding depends on the size of its batch."""
    model, label = load_model(), {"y": torch.tensor([3])}
    engine = fastdiff.Engine(model, slots=16, shape=(1, 8, 8), schedule="ddpm")
    requests = [engine.submit(ONE_A_STEP[i % len(ONE_A_STEP)], 4 + i % 9, seed=i, cond=label) for i in range(count)]
    engine.run()
    gaps = []
    for request in requests:
        given: Any = {"model_kwargs": label, "method": request.method, "steps": request.nfe, "seed": request.seed}
        alone = fastdiff.sample(model, shape=(1, 1, 8, 8), schedule="ddpm", **given)[0]
        gaps.append(float((request.result() - alone).abs().max()))
    return {"requests": count, "largest_difference": max(gaps), "median_difference": median(gaps)}


def memory(count: int) -> report.Data:
    """Bytes that Python and the engine hold while requests come and go."""

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x / (1.0 + x * x)

    engine = fastdiff.Engine(network, slots=32, shape=(1, 8, 8), schedule="ddpm")
    held: dict[int, int] = {}
    tracemalloc.start()
    for i in range(count + 1):
        if i % (count // 5) == 0:
            engine.run()
            gc.collect()
            held[i] = tracemalloc.get_traced_memory()[0]
        while engine.waiting > 8:
            engine.step()
        engine.submit(METHODS[i % len(METHODS)], 2 + i % 4, seed=i)  # type: ignore[arg-type]
    engine.run()
    tracemalloc.stop()
    resident = Path("/proc/self/statm")
    pages = int(resident.read_text().split()[1]) if resident.exists() else None
    return {"requests": count, "python_bytes": held, "resident_pages": pages, "ticks": engine.stats.ticks}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engine.json"))
    args = parser.parse_args()
    data: report.Data = {"format": report.FORMAT, "machine": report.machine()}
    data["mixtures"] = []
    for threads in sorted({1, os.cpu_count() or 1}, reverse=True):
        torch.set_num_threads(threads)
        data["mixtures"].append(mixtures(args.rounds))
    data["host"] = host(2 * args.rounds)
    data["turnover"] = [turnover(args.rounds // 4, load) for load in (1.0, 2.0)]
    data["arrivals"] = [
        arrivals(seed, slots, load, guided, parked)
        for slots, guided in ((8, False), (16, False), (16, True), (32, False))
        for load in (1.0, 1.5, 2.0, 3.0)
        for parked in (None, 0)
        for seed in range(3)
    ]
    data["batch_dependence"] = batch_dependence(48)
    data["memory"] = memory(args.requests)
    report.save(data, args.out)
    for found in data["mixtures"]:
        print(f"{found['threads']} threads:", end=" ")
        print(f"mixed over alike {found['mixed_over_alike']}, diffusers over mixed {found['diffusers_over_mixed']}")
    print(f"a tick of small states: {data['host']['median_seconds'] * 1e6:.0f} us")
    for found in data["turnover"]:
        print(f"where requests come and go, at a load of {found['load']:g}: {found['seconds_a_tick'] * 1e6:.0f} us")
    for i in range(0, len(data["arrivals"]), 3):
        runs = data["arrivals"][i : i + 3]
        first, told = runs[0], ", ".join(f"{run['over_ideal']:.3f}" for run in runs)
        keys = ("submitting_over_ideal", "ticks", "fewest_ticks", "mean_waited_ticks", "mean_ticks_to_the_end")
        plans, ticks, fewest, waited, ends = (mean(run[key] for run in runs) for key in keys)
        print({key: first[key] for key in ("slots", "load", "guided", "parked")}, end=": ")
        print(f"{told} of the ideal, and {plans:.3f} to submit; {ticks:.0f} ticks, {fewest:.0f} at least; ", end="")
        print(f"{waited:.2f} ticks waited, {ends:.0f} to the end")
    print(data["memory"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
