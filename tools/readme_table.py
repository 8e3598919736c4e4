"""Writes the README's tables of measurements from the JSON files under benchmarks/results, between two markers.

python tools/readme_table.py [--check] [--readme README.md] [JSON ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NO_GPU = "GPU figures have not been measured yet: `make gpu` measures them."


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table; all columns but the first to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3g} ms"


def times(a: float | None, b: float) -> str:
    return "–" if a is None else f"{a / b:.1f}×"


def _own(seconds: dict[str, float]) -> float:
    return min(s for name, s in seconds.items() if name.startswith("fastdiff") and "without noise" not in name)


def stage_table(data: dict[str, Any], size: str) -> str:
    """One row a method: its step at one size with a float32 network."""
    rows = []
    for s in data["stages"]:
        if s["size"] != size or s["network"] != "float32":
            continue
        t, own = s["seconds"], _own(s["seconds"])
        eager, compiled = t.get("eager"), t.get("compile")
        rows.append(
            [
                f"`{s['method']}`",
                *(milliseconds(v) for v in (eager, compiled, own)),
                times(eager, own),
                times(compiled, own),
                f"{s['bytes'] / own / 1e9:.1f} GB/s",
                f"{100 * t['copy'] / own:.0f}%",
            ]
        )
    header = [
        "step of",
        "eager PyTorch",
        "torch.compile",
        "fastdiff",
        "vs eager",
        "vs compile",
        "bandwidth",
        "of a copy's",
    ]
    return markdown(header, rows)


def loop_table(data: dict[str, Any]) -> str:
    """One row a network and batch, one column a loop."""
    names = list(dict.fromkeys(n for r in data["loops"] for n in r["seconds"]))
    rows = [
        [f"{r['network']}, batch {r['batch']}", *(milliseconds(r["seconds"].get(n)) for n in names)]
        for r in data["loops"]
    ]
    return markdown([f"{data['loops'][0]['steps']} steps", *names], rows)


def section(data: dict[str, Any]) -> str:
    """What the README says of one JSON file."""
    m, size = data["machine"], data.get("headline", "16x3x256x256")
    if data["device"] == "cuda":
        where = f"{m['gpu']['name']}, CUDA {m['gpu']['cuda']}"
    else:
        where = f"{m['cpu']}, {m['threads']} threads ({m['simd']})"
    parts = [f"{where}, torch {m['torch']}, {m['date']}; state {size} in float32, medians of interleaved runs:"]
    parts.append(stage_table(data, size))
    lines = [
        f"- `fastdiff.randn` against `torch.randn`, {n['size']}: {n['ratio']:.1f}×."
        for n in data["noise"]
        if n["size"] == size
    ]
    for r in data.get("overhead", []):
        lines.append(
            f"- {r['name']}, at 1x1x8x8: {r['step_us']:.1f} µs a step beyond the network's own call, "
            f"and {r['setup_us']:.0f} µs a run."
        )
    if data.get("by_hand"):
        each = ", ".join(f"{name} {us:.0f} µs" for name, us in data["by_hand"]["microseconds"].items())
        lines.append(f"- Ten Euler steps of a flow at 1x16x7, where launches count: {each}.")
    if lines:
        parts.append("\n".join(lines))
    if data.get("loops"):
        parts.append(loop_table(data))
    return "\n\n".join(parts)


def body(found: list[dict[str, Any]]) -> str:
    """All that stands between the markers."""
    parts = [section(data) for data in found]
    if not any(data["device"] == "cuda" for data in found):
        parts.append(NO_GPU)
    return "\n\n".join(parts)


def insert(text: str, new: str) -> str:
    """`text` with `new` between the markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"expected the lines {START} and {END} once each, in this order")
    head, rest = text.split(START)
    return f"{head}{START}\n{new}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="*", type=Path, help="default: cpu.json and cuda.json of benchmarks/results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the README is not up to date")
    args = parser.parse_args(arguments)
    paths = args.json or [p for p in (RESULTS / "cpu.json", RESULTS / "cuda.json") if p.exists()]
    if not paths:
        print("no measurements: run python -m benchmarks first", file=sys.stderr)
        return 2
    text = args.readme.read_text(encoding="utf-8")
    try:
        new = insert(text, body([json.loads(p.read_text(encoding="utf-8")) for p in paths]))
    except ValueError as error:
        print(f"{args.readme}: {error}", file=sys.stderr)
        return 2
    if args.check:
        if new != text:
            print(
                f"{args.readme} does not show {', '.join(map(str, paths))}: run python tools/readme_table.py",
                file=sys.stderr,
            )
        return int(new != text)
    args.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
