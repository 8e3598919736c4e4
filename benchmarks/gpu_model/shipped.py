"""The part of the model's table that the package carries: python -m benchmarks.gpu_model.shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu_model.stages import stages

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "fastdiff/ops/speed.json"


def small(result: dict[str, Any]) -> dict[str, Any]:
    """What `fastdiff.ops.speed` reads, from benchmarks/results/model.json."""
    chips = list(result["chips"])
    rows = []
    for row in result["stages"]:
        spec, _, _, buf = stages()[row["stage"]]
        assert buf.first is not None
        rows.append(
            {
                "stage": row["stage"],
                "noise": spec.noises > 0,
                "guided": bool(spec.guided),
                "learned": spec.learned > 0,
                "history": spec.history,
                "network": str(buf.first.dtype).removeprefix("torch."),
                **{name: [row[name]["fraction"][chip] for chip in chips] for name in ("cuda", "triton")},
            }
        )
    return {"how": result["what"], "chips": chips, "stages": rows}


def write(result: dict[str, Any]) -> None:
    """Put it into the package."""
    found = small(result)
    lines = ",\n  ".join(json.dumps(row) for row in found.pop("stages"))
    head = json.dumps(found)[:-1]
    TARGET.write_text(f'{head},\n "stages": [\n  {lines}\n ]}}\n', encoding="utf-8")


if __name__ == "__main__":
    write(json.loads((ROOT / "benchmarks/results/model.json").read_text(encoding="utf-8")))
