"""Whole loops on a CUDA device: captured and eager, ours, written out, and diffusers' where it is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastdiff
from benchmarks import networks, timing
from fastdiff.demo import load_model
from fastdiff.demo.eager import dpm3

STEPS = 10
Loop = Callable[[], object]
GOAL_SHARE, GOAL_SECONDS = 0.01, 20e-6
"""The goal for the time beyond the network: the larger of the two."""


def subjects() -> dict[str, tuple[Callable[[], nn.Module], torch.dtype, tuple[int, ...]]]:
    """Name: how to make the network, its dtype, and the batches."""
    return {
        "digits": (load_model, torch.float32, (1, 16)),
        "action chunk": (networks.ActionTransformer, torch.float32, (1,)),
        "CIFAR U-Net": (networks.cifar_unet, torch.bfloat16, (1, 16)),
        "DiT-B/2": (networks.DiT, torch.bfloat16, (1, 16)),
    }


class Compiled:
    """Another way to call a network, which says the same of itself."""

    def __init__(self, model: nn.Module, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.prediction, self.call = getattr(model, "prediction", "eps"), call

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(x, t)


def settings(model: object) -> tuple[str, str, str]:
    """(method, schedule, prediction) for a network."""
    if getattr(model, "prediction", "eps") == "flow":
        return "ddim", "flow", "flow"
    return "dpm3", "ddpm", "eps"


def written_out(model: Callable[..., Tensor], x: Tensor, dtype: torch.dtype) -> Loop:
    """The same sampler as the formulas read, one operation at a time."""
    method, schedule, prediction = settings(model)
    times = fastdiff.plan(method, STEPS, schedule=schedule).times

    def euler() -> Tensor:
        state = x
        with torch.no_grad():
            for s, t in pairwise(times):
                now = torch.full(x.shape[:1], s, device=x.device)
                state = state + (t - s) * model(state.to(dtype), now).to(x.dtype)
        return state

    def multistep() -> Tensor:
        return dpm3(lambda u, t: model(u.to(dtype), t.to(x.dtype)).to(x.dtype), x, STEPS, np.asarray(times))

    return euler if prediction == "flow" else multistep


def captured(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Loop:
    """The bare network in a graph of its own, replayed once an evaluation."""
    given = x.to(dtype)
    t = torch.full(x.shape[:1], 0.5, device=x.device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            model(given, t)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        model(given, t)

    def run() -> None:
        for _ in range(STEPS):
            graph.replay()

    return run


def diffusers_loop(model: Callable[..., Tensor], x: Tensor, dtype: torch.dtype) -> Loop | None:
    """diffusers' scheduler of the same family around the network, or None where it is not installed."""
    try:
        from diffusers import DPMSolverMultistepScheduler  # type: ignore[import-not-found]
    except ImportError:
        return None
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, solver_order=3, algorithm_type="dpmsolver++"
    )

    def run() -> Tensor:
        with torch.no_grad():
            scheduler.set_timesteps(STEPS, device=x.device)
            state = x
            for t in scheduler.timesteps:
                out = model(state.to(dtype), t.expand(len(x))).to(x.dtype)
                state = scheduler.step(out, t, state).prev_sample
        return state

    return run


def compiled(model: nn.Module, x: Tensor, dtype: torch.dtype) -> dict[str, Loop]:
    """The eager loops around the network under torch.compile, which replays graphs of each evaluation; warmed up."""
    fast = torch.compile(model, mode="reduce-overhead")
    # Such a network returns the same memory at every call.
    fresh = Compiled(model, lambda u, t: fast(u, t).clone())
    works: dict[str, Loop] = {"eager formulas, reduce-overhead": written_out(fresh, x, dtype)}
    if fresh.prediction == "eps" and (peer := diffusers_loop(fresh, x, dtype)) is not None:
        works["diffusers, reduce-overhead"] = peer
    for work in works.values():
        for _ in range(3):
            work()
    return works


def measure(name: str, batch: int, rounds: int, compiles: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(row of loops, row of graphs) for one network and batch."""
    make, dtype, _ = subjects()[name]
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False).to("cuda", dtype)
    x = torch.randn((batch, *model.sample_shape), device="cuda")  # type: ignore[misc]
    method, schedule, prediction = settings(model)

    def sampler(graph: bool) -> Loop:
        s = fastdiff.Sampler(method, STEPS, schedule=schedule, prediction=prediction, graph=graph)
        return lambda: s(model, x)

    eager, graph, formulas = sampler(False), sampler(True), written_out(model, x, dtype)
    want = eager()
    torch.cuda.synchronize()
    # A capture empties the allocator's cache, which would count as memory gained.
    torch.cuda.empty_cache()
    before, start = torch.cuda.memory_reserved(), time.perf_counter()
    got = graph()
    torch.cuda.synchronize()
    capture_seconds = time.perf_counter() - start
    torch.cuda.empty_cache()
    memory = torch.cuda.memory_reserved() - before
    assert isinstance(want, Tensor) and isinstance(got, Tensor)
    written = formulas()
    assert isinstance(written, Tensor)
    works: dict[str, Loop] = {
        "eager formulas": formulas,
        "fastdiff eager": eager,
        "fastdiff graph": graph,
        "network graph": captured(model, x, dtype),
    }
    if prediction == "eps" and (peer := diffusers_loop(model, x, dtype)) is not None:
        works["diffusers"] = peer
    note = None
    if compiles:
        try:
            works.update(compiled(model, x, dtype))
        except Exception as error:
            note = f"torch.compile failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    seconds = timing.interleaved(works, rounds, None, timing.device_seconds, short=20e-3).median
    beyond = seconds["fastdiff graph"] - seconds["network graph"]
    goal = max(GOAL_SHARE * seconds["network graph"], GOAL_SECONDS)
    gain = seconds["fastdiff eager"] - seconds["fastdiff graph"]
    row = {
        "network": name,
        "parameters": networks.parameters(model),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "method": method,
        "steps": STEPS,
        "seconds": seconds,
        "beyond_network_seconds": beyond,
        "goal_seconds": goal,
        "ok": beyond <= goal,
        "graph_equals_eager": bool(torch.equal(want, got)),
        "difference_from_formulas": ((want - written).norm() / written.norm()).item(),
    }
    cost = {
        "network": name,
        "batch": batch,
        "capture_seconds": capture_seconds,
        "memory_mib": memory / 2**20,
        "pays_back_after": capture_seconds / gain if gain > 0 else -1.0,
    }
    if note:
        row["note"] = note
    fastdiff.clear_graphs()
    return row, cost
