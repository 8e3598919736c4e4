"""`python -m benchmarks`: measure, print the tables, write JSON and pictures."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import eager, fused, loops, noise, overhead, report, timing
from benchmarks.fused import HEADLINE, SIZES
from fastdiff import ops

QUICK_METHODS = ("dpm3", "dpmpp2m", "ddpm", "dpmpp2m_sde")
# A compilation takes seconds: these at the headline's size, the first and the last at the others but the largest.
COMPILED = ("dpm3", "dpmpp2m", "unipc", "ddim", "ddpm", "dpmpp2m_sde")
ROUNDS = {"1x4x64x64": 15, "4x4x64x64": 15, "16x3x256x256": 11, "32x3x512x512": 5}


def stage(
    method: str, size: str, network: torch.dtype, rounds: int, compiled: bool, evict: torch.Tensor
) -> report.Data:
    """Every variant of one stage on the CPU, taking turns."""
    shape = SIZES[size]
    cpu = ops.load("cpu")
    nbytes = fused.make_case(method, (1, 16), network).bytes * (torch.Size(shape).numel() // 16)
    sets = fused.rotation(nbytes, report.cache_bytes()) if size == HEADLINE else 1
    case = fused.make_case(method, shape, network, sets=sets)
    works: dict[str, timing.Work] = {"eager": fused.baseline(case)}
    note = None
    if compiled:
        torch.compiler.reset()
        works["compile"] = fused.baseline(case, compiled=True)
        try:
            works["compile"]()
        except Exception as error:
            del works["compile"]
            note = f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}"
    works["fastdiff"] = fused.ours(case, cpu)
    if case.spec.noises:
        works["fastdiff without noise"] = fused.ours(case, cpu, case.noiseless())
        works["normals alone"] = fused.normals(case, cpu)
    works.update(fused.copies(case.bytes, sets=sets))
    reset = fused.restore(case, evict if size == HEADLINE else None)
    samples = timing.interleaved(works, rounds, reset, short=5e-3 if sets == 1 else 1e-3, least=sets)
    for found in samples:
        found["copy"] = min(found[name] for name in ("copy_", "memcpy") if name in found)
    found = samples.median
    row: report.Data = {
        "method": method,
        "size": size,
        "network": str(network).removeprefix("torch."),
        "state": "float32",
        "stage": case.k,
        "bytes": case.bytes,
        "seconds": found,
        "least_seconds": samples.least,
        "gb_per_second": {name: case.bytes / s / 1e9 for name, s in found.items()},
    }
    return {**row, "note": note} if note else row


def cpu(quick: bool) -> report.Data:
    """All measurements on the CPU. Quick: four methods, two sizes, torch.compile of two."""
    start = time.perf_counter()
    methods = QUICK_METHODS if quick else eager.METHODS
    sizes = ("1x4x64x64", HEADLINE) if quick else tuple(SIZES)
    dtypes = (torch.float32, torch.bfloat16)
    evict = torch.zeros(max(4 * report.cache_bytes(), 64 << 20) // 4)
    jobs = [(m, s, d) for s in sizes for d in dtypes for m in methods]
    data: report.Data = {"format": report.FORMAT, "device": "cpu", "quick": quick, "machine": report.machine()}
    stages, notes = [], []
    for method, size, network in (bar := tqdm(jobs, desc="stages", disable=None)):
        bar.set_postfix_str(f"{method} {size}")
        main = network == torch.float32 and size == HEADLINE
        if quick:
            compiled = main and method in ("dpm3", "ddpm")
        else:
            small = size != "32x3x512x512" and method in (COMPILED[0], COMPILED[-1])
            compiled = small or (main and method in COMPILED)
        stages.append(stage(method, size, network, ROUNDS[size], compiled, evict))
        if "note" in stages[-1]:
            notes.append(f"{method}, {size}: {stages[-1]['note']}")
    data["stages"] = stages
    data["noise"] = [noise.measure(size, 5 if size == "32x3x512x512" else 11) for size in sizes]
    data["loops"] = [loops.measure(batch, 5 if quick else 9) for batch in ((1, 16) if quick else (1, 16, 100))]
    data["overhead"] = overhead.measure(15 if quick else 41)
    data["by_hand"] = overhead.by_hand(15 if quick else 41)
    data["targets"] = report.targets(data, HEADLINE)
    data["wall_seconds"] = round(time.perf_counter() - start, 1)
    data["notes"] = notes
    return data


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer methods and sizes: about a minute")
    parser.add_argument("--gpu", action="store_true", help="measure on a CUDA device instead of the CPU")
    parser.add_argument("--seconds", type=float, help="with --gpu: begin nothing after so many seconds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for JSON and pictures")
    args = parser.parse_args()
    if args.gpu:
        if not torch.cuda.is_available():
            print(
                f"--gpu needs a CUDA device, and torch {torch.__version__} finds none: leave --gpu out", file=sys.stderr
            )
            return 2
        from benchmarks import gpu

        def save(data: report.Data) -> None:
            report.save(data, args.out / f"cuda{'-quick' if args.quick else ''}.json")

        # What was measured until then is written, printed and drawn.
        for ending in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ending, signal.default_int_handler)
        usual = 90.0 if args.quick else gpu.SECONDS
        data = gpu.measure(args.quick, usual if args.seconds is None else args.seconds, save)
    else:
        ok, why = ops.load("cpu").available()
        if not ok:
            print(f"the C++ back end is not available: {why}", file=sys.stderr)
            return 2
        data = cpu(args.quick)
    name = data["device"] + ("-quick" if args.quick else "")
    report.save(data, args.out / f"{name}.json")
    print(report.text(data), flush=True)
    written = [args.out / f"{name}.json"]
    try:
        from benchmarks import pictures

        pictures.stages(data, data.get("headline", HEADLINE), args.out / f"{name}.png")
        written.append(args.out / f"{name}.png")
    except ImportError as error:
        print(f"no picture: {error} (pip install matplotlib)")
    print("\n" + "\n".join(str(p) for p in written))
    return 1 if data.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
