"""On a CUDA device: stages against a copy in device memory, back ends against each other, whole loops, graphs.

Every part stands alone: one that fails is reported with its error, and the others go on. Parts that would begin after
the time is spent are left out, and named.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import eager, fused, gpu_loops, noise, report, timing
from fastdiff import ops

LARGE = "64x4x512x512"
"""64 Mi elements."""

SIZES: dict[str, tuple[int, ...]] = {
    "1x4x64x64": (1, 4, 64, 64),
    "16x3x256x256": (16, 3, 256, 256),
    LARGE: (64, 4, 512, 512),
}
SECONDS = 400.0
COMPILED = ("dpm3", "dpmpp2m_sde")
TOLERANCE = 1e-4
"""Largest difference from the eager formulas in float32, relative to the largest value; their terms cancel in part."""


class Parts:
    """Runs parts until the time is spent; keeps what failed and what was left out."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds
        self.failed: list[str] = []
        self.left_out: list[str] = []

    def run(self, name: str, part: Callable[[], Any]) -> Any:
        if time.perf_counter() > self.end:
            self.left_out.append(name)
            return None
        try:
            found = part()
            torch.cuda.synchronize()
            return found
        except Exception as error:
            traceback.print_exc()
            self.failed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            return None
        finally:
            torch.cuda.empty_cache()


def in_a_graph(work: timing.Work, calls: int) -> timing.Work:
    """`calls` calls as one graph: what the device takes where the host's launches would dominate."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return graph.replay


def stage(
    method: str, size: str, network: torch.dtype, backends: list[str], rounds: int, compiled: bool
) -> report.Data:
    """Every variant of one stage, checked against the formulas first."""
    shape, cache = SIZES[size], torch.cuda.get_device_properties(0).L2_cache_size
    nbytes = fused.make_case(method, (1, 16), network).bytes * (torch.Size(shape).numel() // 16)
    sets = fused.rotation(nbytes, cache)
    case = fused.make_case(method, shape, network, device="cuda", sets=sets)
    works: dict[str, timing.Work] = {"eager": fused.baseline(case)}
    if compiled:
        torch.compiler.reset()
        works["compile"] = fused.baseline(case, compiled=True)
    differences = {}
    for name in backends:
        module = ops.load(name)
        differences[name] = fused.agreement(case, module)
        if not differences[name] <= TOLERANCE:
            raise AssertionError(
                f"{name} differs from the formulas by {differences[name]:.3g} in {method}, {size}, {network}"
            )
        works[f"fastdiff {name}"] = fused.ours(case, module)
        if case.spec.noises:
            works[f"fastdiff {name} without noise"] = fused.ours(case, module, case.noiseless())
    works["copy"] = fused.copies(case.bytes, "cuda", sets)["copy_"]
    samples = timing.interleaved(works, rounds, fused.restore(case), timing.device_seconds, short=5e-3, least=sets)
    seconds, least = samples
    if size == "1x4x64x64":
        calls = 20
        graphs = {name: in_a_graph(work, calls) for name, work in works.items() if name not in ("compile",)}
        launched = timing.interleaved(graphs, rounds, fused.restore(case), timing.device_seconds, most=1)
        device = {name: s / calls for name, s in launched.median.items()}
    else:
        device = {}
    return {
        "method": method,
        "size": size,
        "network": str(network).removeprefix("torch."),
        "state": "float32",
        "stage": case.k,
        "bytes": case.bytes,
        "seconds": seconds,
        "least_seconds": least,
        "in_a_graph_seconds": device,
        "gb_per_second": {name: case.bytes / s / 1e9 for name, s in seconds.items()},
        "differences": differences,
    }


def measure(quick: bool) -> report.Data:
    """Everything, within `SECONDS`; the data's "failed" is not empty if a part failed."""
    start = time.perf_counter()
    parts = Parts(90.0 if quick else SECONDS)
    data: report.Data = {
        "format": report.FORMAT,
        "device": "cuda",
        "quick": quick,
        "machine": report.machine(),
        "headline": LARGE,
    }
    where = torch.device("cuda", torch.cuda.current_device())
    backends, reasons = [], {}
    for name in ("cuda", "triton"):
        module = ops.load(name)
        ok, why = module.available()
        if ok:
            ok, why = module.supports(where, torch.float32, torch.bfloat16)
        reasons[name] = why
        if ok:
            backends.append(name)
    data["backends"] = reasons
    rounds = 5 if quick else 11

    # What the goals need comes first.
    order = [(m, LARGE, torch.float32) for m in ("dpm3", "ddpm", "dpmpp2m_sde")]
    every = [(m, s, d) for s in SIZES for d in (torch.float32, torch.bfloat16) for m in eager.METHODS]
    later = [job for job in every if job not in order and (not quick or job[0] == "dpm3")]

    def stages(jobs: list[tuple[str, str, torch.dtype]]) -> list[report.Data]:
        found = []
        for method, size, network in jobs:
            compiled = method in COMPILED and network == torch.float32 and not quick
            row = parts.run(
                f"stage {method} {size} {network}",
                lambda m=method, s=size, d=network, c=compiled: stage(m, s, d, backends, rounds, c),  # type: ignore[misc]
            )
            if row is not None:
                found.append(row)
        return found

    data["stages"] = stages(order)
    data["noise"] = [
        row
        for size in ("1x4x64x64", "32x3x512x512")
        if (row := parts.run(f"noise {size}", lambda s=size: noise.measure(s, rounds, "cuda"))) is not None  # type: ignore[misc]
    ]
    data["loops"], data["graphs"] = [], []
    for name, (_, _, batches) in gpu_loops.subjects().items():
        for batch in batches:
            # reduce-overhead compiles for a minute; once is enough to see it.
            compiles = not quick and name == "DiT-B/2" and batch == 1
            found = parts.run(
                f"loop {name} batch {batch}",
                lambda n=name, b=batch, c=compiles: gpu_loops.measure(n, b, rounds, c),  # type: ignore[misc]
            )
            if found is not None:
                data["loops"].append(found[0])
                data["graphs"].append(found[1])
    data["stages"] += stages(later)
    data["targets"] = targets(data)
    data["failed"] = parts.failed
    data["wall_seconds"] = round(time.perf_counter() - start, 1)
    data["notes"] = [f"{k} did not run: {why}" for k, why in reasons.items() if k not in backends]
    data["notes"] += [f"failed: {what}" for what in parts.failed]
    if parts.left_out:
        data["notes"].append(f"left out for want of time: {len(parts.left_out)} parts, from {parts.left_out[0]!r} on")
    return data


def targets(data: report.Data) -> list[report.Data]:
    """The project's goals on a GPU: shares of a copy's bandwidth, and the loop's time beyond the network."""
    found = []
    for s in data["stages"]:
        name = report.fastest(s["seconds"])
        if s["size"] != LARGE or s["network"] != "float32" or name is None:
            continue
        noisy = any("without noise" in n for n in s["seconds"])
        if s["method"] in ("dpm3", "ddpm", "dpmpp2m_sde"):
            share = 100 * s["seconds"]["copy"] / s["seconds"][name]
            found.append(
                report.target(
                    f"{s['method']}'s step, share of the copy's bandwidth", share, "%", 85 if noisy else 92, True
                )
            )
    for row in data["loops"]:
        label = f"{row['network']}, batch {row['batch']}: a loop beyond the network"
        found.append(
            report.target(label, 1e6 * row["beyond_network_seconds"], "us", round(1e6 * row["goal_seconds"], 1), False)
        )
    return found
