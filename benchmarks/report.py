"""What was measured, as JSON, tables and pictures, and whether it meets the targets."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.files import write_whole

FORMAT = 1
Data = dict[str, Any]


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_bytes() -> int:
    """Size of the last cache, or 32 MiB where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 << 20


def machine() -> Data:
    """The machine and the versions that the figures belong to."""
    ok, simd = fastdiff.backends()["cpu"]
    found: Data = {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cache_mib": cache_bytes() >> 20,
        "threads": torch.get_num_threads(),
        "simd": simd if ok else "no C++ back end",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastdiff": fastdiff.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 2)
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "memory_gib": round(p.total_memory / 2**30, 1),
            "multiprocessors": p.multi_processor_count,
            "l2_mib": getattr(p, "L2_cache_size", 0) >> 20,
            "cuda": torch.version.cuda,
        }
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain columns: the first to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0].rstrip(), "  ".join("-" * w for w in widths), *(line.rstrip() for line in lines[1:])])


def fmt_time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}x" if a and b else "-"


def fastest(seconds: Mapping[str, float], prefix: str = "fastdiff") -> str | None:
    """The fastest of our back ends in a row."""
    names = [n for n in seconds if n.startswith(prefix) and "without noise" not in n]
    return min(names, key=lambda n: seconds[n]) if names else None


def stage_rows(stages: Sequence[Data]) -> list[list[str]]:
    """One row for each measured stage: times, speed, bandwidth and its share of the copy's."""
    rows = []
    for s in stages:
        t = s["seconds"]
        name = fastest(t)
        own = t[name] if name else None
        gbs = s["bytes"] / own / 1e9 if own else 0.0
        rows.append(
            [
                s["method"],
                s["size"],
                s["network"],
                *(fmt_time(t.get(n)) for n in ("eager", "compile")),
                fmt_time(own),
                ratio(t.get("eager"), own),
                ratio(t.get("compile"), own),
                f"{gbs:.1f}",
                f"{100 * t['copy'] / own:.0f}%" if own and "copy" in t else "-",
            ]
        )
    return rows


STAGE_HEADER = ["method", "size", "network", "eager", "compile", "fastdiff", "/ eager", "/ compile", "GB/s", "of copy"]


def target(name: str, value: float, unit: str, bound: float, at_least: bool) -> Data:
    good = value >= bound if at_least else value <= bound
    return {"name": name, "value": value, "unit": unit, "bound": bound, "at_least": at_least, "ok": bool(good)}


def targets(data: Data, headline: str) -> list[Data]:
    """The project's goals on a CPU, with what was measured. Only what was measured is judged."""
    by = {(s["method"], s["size"], s["network"]): s for s in data.get("stages", [])}
    found = []
    s = by.get(("dpm3", headline, "float32"))
    if s:
        t = s["seconds"]
        found.append(target("dpm3's step against eager", t["eager"] / t["fastdiff"], "x", 15, True))
        if "compile" in t:
            found.append(target("dpm3's step against torch.compile", t["compile"] / t["fastdiff"], "x", 1.5, True))
        found.append(
            target("dpm3's step, share of the copy's bandwidth", 100 * t["copy"] / t["fastdiff"], "%", 85, True)
        )
    for method in ("ddpm", "dpmpp2m_sde"):
        s = by.get((method, headline, "float32"))
        if s:
            t = s["seconds"]
            found.append(target(f"{method}'s step with noise against eager", t["eager"] / t["fastdiff"], "x", 10, True))
            without = t["fastdiff"] / t["fastdiff without noise"]
            found.append(target(f"{method}'s step against the same without noise", without, "x", 1.6, False))
    for n in data.get("noise", []):
        if n["size"] == headline:
            found.append(target("normals against torch.randn", n["ratio"], "x", 3, True))
    for row in data.get("overhead", []):
        if row["name"] == "fastdiff dpm3":
            value = row["per_step_of_10_with_setup_us"]
            found.append(target("a step of dpm3 beyond the network, set-up included", value, "us", 25, False))
    if data.get("by_hand"):
        us = data["by_hand"]["microseconds"]
        value = us["fastdiff"] / us["by hand, making its times"]
        found.append(target("10 Euler steps at (1, 16, 7) against a loop by hand", value, "x", 1.0, False))
    return found


def target_rows(found: Sequence[Data]) -> list[list[str]]:
    return [
        [
            t["name"],
            f"{t['value']:.2f} {t['unit']}",
            f"{'>=' if t['at_least'] else '<='} {t['bound']:g} {t['unit']}",
            "pass" if t["ok"] else "FAIL",
        ]
        for t in found
    ]


def text(data: Data) -> str:
    """The whole report, for the terminal."""
    m = data["machine"]
    where = m["gpu"]["name"] if data.get("device") == "cuda" else f"{m['cpu']}, {m['threads']} threads, {m['simd']}"
    parts = [f"{where}; torch {m['torch']}, fastdiff {m['fastdiff']}, {m['date']}"]
    if data.get("stages"):
        parts.append("One stage of a step (its casts included)\n" + table(STAGE_HEADER, stage_rows(data["stages"])))
    if data.get("noise"):
        rows = [
            [
                n["size"],
                *(f"{n['normals_per_second'][k] / 1e9:.2f} G/s" for k in ("torch", "fastdiff")),
                f"{n['ratio']:.1f}x",
            ]
            for n in data["noise"]
        ]
        parts.append("Normals\n" + table(["size", "torch.randn", "fastdiff.randn", "ratio"], rows))
    if data.get("loops"):
        parts.append(loops_text(data["loops"]))
    if data.get("overhead"):
        rows = [
            [r["name"], f"{r['step_us']:.1f}", f"{r['setup_us']:.0f}", f"{r['per_step_of_10_with_setup_us']:.1f}"]
            for r in data["overhead"]
        ]
        header = ["loop at 1x1x8x8, microseconds", "a step", "set-up", "a step of 10, with set-up"]
        parts.append(table(header, rows))
    if data.get("by_hand"):
        rows = [[name, f"{us:.0f}"] for name, us in data["by_hand"]["microseconds"].items()]
        parts.append(table(["10 Euler steps at 1x16x7", "microseconds"], rows))
    if data.get("graphs"):
        rows = [
            [
                g["network"],
                g["batch"],
                fmt_time(g["capture_seconds"]),
                f"{g['memory_mib']:.1f} MiB",
                f"{g['pays_back_after']:.0f}",
            ]
            for g in data["graphs"]
        ]
        parts.append("Capture\n" + table(["network", "batch", "capture", "memory", "pays back after calls"], rows))
    if data.get("targets"):
        parts.append(table(["target", "measured", "goal", ""], target_rows(data["targets"])))
    if alone := [s for s in data.get("stages", []) if "normals alone" in s["seconds"]]:
        names = ("fastdiff without noise", "normals alone", "fastdiff")
        rows = [[s["method"], s["size"], s["network"], *(fmt_time(s["seconds"][n]) for n in names)] for s in alone]
        parts.append("Noise in the stage\n" + table(["method", "size", "network", *names], rows))
    for note in data.get("notes", []):
        parts.append(f"note: {note}")
    return "\n\n".join(parts)


def loops_text(loops: Sequence[Data]) -> str:
    """Whole loops: the seconds of every variant, and what is beyond the network."""
    names = list(dict.fromkeys(name for row in loops for name in row["seconds"]))
    rows = [
        [f"{r['network']}, batch {r['batch']}", r["method"], *(fmt_time(r["seconds"].get(n)) for n in names)]
        for r in loops
    ]
    return f"Whole loops, {loops[0]['steps']} steps\n" + table(["network", "method", *names], rows)


def finite(value: Any) -> Any:
    """The same data with None in the place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save(data: Data, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(finite(data), indent=1, allow_nan=False) + "\n").encode())


def load(path: Path) -> Data:
    data: Data = json.loads(path.read_text())
    if data.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {data.get('format')!r}, expected {FORMAT}: write it with python -m benchmarks"
        )
    return data
