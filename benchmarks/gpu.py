"""On a CUDA device: stages against a copy in device memory, back ends against each other, whole loops, graphs.

Every part stands alone: one that fails is reported with its error, and the others go on. Parts that would begin after
the time is spent are left out, and named.
"""

from __future__ import annotations

import functools
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
SECONDS = 240.0
COMPILED = ("dpm3", "dpmpp2m_sde")
TOLERANCE = 1e-4
"""Largest difference from the eager formulas in float32, relative to the largest value; their terms cancel in part."""


class Parts:
    """Runs parts until the time is spent; keeps what failed and what was left out.

    Args:
        seconds: the time for all parts. One that has begun is not cut short.
        after: called after each part, to keep what there is.
    """

    def __init__(self, seconds: float, after: Callable[[], None] = lambda: None) -> None:
        self.end = time.perf_counter() + seconds
        self.after = after
        self.failed: list[str] = []
        self.left_out: list[str] = []

    def time_for(self, name: str, seconds: float) -> bool:
        """Whether that many seconds are left; where they are not, `name` is left out."""
        if time.perf_counter() + seconds > self.end:
            self.left_out.append(name)
            return False
        return True

    def run(self, name: str, part: Callable[[], Any]) -> Any:
        if not self.time_for(name, 0.0):
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
            self.after()


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
    note = None
    if compiled:
        torch.compiler.reset()
        works["compile"] = fused.baseline(case, compiled=True)
        try:
            works["compile"]()
        except Exception as error:
            del works["compile"]
            note = f"torch.compile failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
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
    row: report.Data = {
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
    return {**row, "note": note} if note else row


def measure(
    quick: bool, seconds: float = SECONDS, save: Callable[[report.Data], None] = lambda data: None
) -> report.Data:
    """Everything, within about `seconds`; the data's "failed" is not empty if a part failed or was interrupted.

    Args:
        quick: fewer rounds and methods.
        save: given the data as they stand after each part, and at the end.
    """
    start = time.perf_counter()
    data: report.Data = {
        "format": report.FORMAT,
        "device": "cuda",
        "quick": quick,
        "machine": report.machine(),
        "headline": LARGE,
        "stages": [],
        "noise": [],
        "loops": [],
        "graphs": [],
    }
    parts = Parts(seconds, lambda: save(data))
    where = torch.device("cuda", torch.cuda.current_device())
    backends, data["backends"] = [], {}
    for name in ("cuda", "triton"):
        module = ops.load(name)
        ok, why = module.available()
        if ok:
            ok, why = module.supports(where, torch.float32, torch.bfloat16)
        data["backends"][name] = why
        if ok:
            backends.append(name)
    try:
        _measure(data, parts, backends, quick)
    except KeyboardInterrupt:
        parts.failed.append("interrupted: what follows was not measured")
    data["targets"] = targets(data)
    data["failed"] = parts.failed
    data["wall_seconds"] = round(time.perf_counter() - start, 1)
    data["notes"] = [f"{k} did not run: {why}" for k, why in data["backends"].items() if k not in backends]
    for row in (*data["stages"], *data["loops"]):
        if "note" in row:
            what = row.get("method") if "size" in row else row.get("network")
            data["notes"].append(f"{what}, {row.get('size') or row.get('batch')}: {row['note']}")
    data["notes"] += [f"failed: {what}" for what in parts.failed]
    if parts.left_out:
        data["notes"].append(f"left out after {seconds:.0f} s: {', '.join(parts.left_out)}")
    save(data)
    return data


def _measure(data: report.Data, parts: Parts, backends: list[str], quick: bool) -> None:
    """Fill in "stages", "noise", "loops" and "graphs"; what the goals need comes first."""
    rounds = 5 if quick else 11
    order = [(m, LARGE, torch.float32) for m in ("dpm3", "ddpm", "dpmpp2m_sde")]
    every = [(m, s, d) for s in SIZES for d in (torch.float32, torch.bfloat16) for m in eager.METHODS]
    later = [job for job in every if job not in order and (not quick or job[0] == "dpm3")]

    def stages(jobs: list[tuple[str, str, torch.dtype]], compiled: bool = False) -> None:
        for method, size, network in jobs:
            name = f"stage {method} {size} {str(network).removeprefix('torch.')}"
            also = compiled and parts.time_for(f"torch.compile of {name}", 15.0)
            row = parts.run(name, functools.partial(stage, method, size, network, backends, rounds, also))
            if row is not None:
                data["stages"].append(row)

    def loops(subjects: list[tuple[str, int]], compiled: bool = False) -> None:
        for name, batch in subjects:
            full = f"loop {name} batch {batch}"
            also = compiled and parts.time_for(f"torch.compile of {full}", 60.0)
            found = parts.run(full, functools.partial(gpu_loops.measure, name, batch, rounds, also))
            if found is not None:
                data["loops"].append(found[0])
                data["graphs"].append(found[1])

    # A compilation takes seconds, that of a network up to a minute: of a few, and of those only while there is time.
    fused = [job for job in every if job[0] in COMPILED and job[2] == torch.float32 and not quick]
    slow = [(name, 1) for name in ("action chunk", "DiT-B/2") if not quick]
    both = [(name, batch) for name, (_, _, batches) in gpu_loops.subjects().items() for batch in batches]
    stages([job for job in order if job not in fused])
    stages([job for job in fused if job in order], True)
    loops([job for job in both if job not in slow])
    loops(slow[:1], True)
    for size in SIZES:
        measured = functools.partial(noise.measure, size, rounds, "cuda", shape=SIZES[size])
        row = parts.run(f"noise {size}", measured)
        if row is not None:
            data["noise"].append(row)
    loops(slow[1:], True)
    stages([job for job in later if job[0] in COMPILED and job not in fused])
    stages([job for job in fused if job not in order], True)
    stages([job for job in later if job[0] not in COMPILED])


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
