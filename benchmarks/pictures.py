"""Pictures of the measurements, with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import Data, fastest
from fastdiff.files import save_figure

COLOURS = {"eager": "#9aa5b1", "compile": "#e0a458", "fastdiff": "#2a6f97"}


def stages(data: Data, size: str, path: Path) -> None:
    """Times of every method's step at one size, and the share of a copy's bandwidth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    networks = list(dict.fromkeys(s["network"] for s in data["stages"] if s["size"] == size))
    fig, axes = plt.subplots(1, max(1, len(networks)), figsize=(6.5 * max(1, len(networks)), 4.6), squeeze=False)
    for ax, network in zip(axes[0], networks, strict=False):
        rows = [s for s in data["stages"] if s["size"] == size and s["network"] == network]
        _bars(ax, rows)
        ax.set_title(f"one step, {size}, {network} network")
    m = data["machine"]
    where = m["gpu"]["name"] if data.get("device") == "cuda" else f"{m['cpu']}, {m['threads']} threads"
    fig.suptitle(f"{where}, torch {m['torch']}, {m['date']}", fontsize=9, y=0.02, va="bottom")
    fig.tight_layout(rect=(0, 0.04, 1, 1))
    save_figure(fig, path, dpi=130)
    plt.close(fig)


def _bars(ax: Any, rows: list[Data]) -> None:
    for j, name in enumerate(COLOURS):
        at, height = [], []
        for i, row in enumerate(rows):
            key = fastest(row["seconds"]) if name == "fastdiff" else name
            if key in row["seconds"]:
                at.append(i + 0.27 * (j - 1))
                height.append(1e3 * row["seconds"][key])
        if not at:
            continue
        bars = ax.bar(at, height, width=0.27, color=COLOURS[name], label={"compile": "torch.compile"}.get(name, name))
        if name == "fastdiff":
            ax.bar_label(bars, fmt="%.2g", fontsize=7)
    copies = [1e3 * row["seconds"].get("copy", float("nan")) for row in rows]
    ax.plot(range(len(rows)), copies, "_", color="black", markersize=16, label="copy of as many bytes")
    ax.set_xticks(range(len(rows)), [r["method"] for r in rows], rotation=45, ha="right")
    ax.set_ylabel("milliseconds")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(low / 2, high * 4)  # Room for the legend.
    ax.legend(fontsize=8, ncols=2, loc="upper left")
