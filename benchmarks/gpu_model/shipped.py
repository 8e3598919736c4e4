"""The part of the model's table that the package carries: python -m benchmarks.gpu_model.shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu_model.stages import others, stages
from fastdiff.ops.speed import Traits

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "fastdiff/ops/speed.json"


def small(result: dict[str, Any]) -> dict[str, Any]:
    """What `fastdiff.ops.speed` reads, from benchmarks/results/model.json."""
    chips = list(result["chips"])
    rows = []
    made = {**stages(), **others()}
    for row in (*result["stages"], *result["others"]):
        spec, _, coeffs, buf = made[row["stage"]]
        traits = Traits.of(spec, coeffs, buf)._asdict()
        traits["network"] = str(traits["network"]).removeprefix("torch.")
        fractions = {name: [row[name]["fraction"][chip] for chip in chips] for name in ("cuda", "triton")}
        rows.append({"stage": row["stage"], **traits, **fractions})
    return {"how": result["what"], "chips": chips, "stages": rows}


def write(result: dict[str, Any]) -> None:
    """Put it into the package."""
    found = small(result)
    lines = ",\n  ".join(json.dumps(row) for row in found.pop("stages"))
    head = json.dumps(found)[:-1]
    TARGET.write_text(f'{head},\n "stages": [\n  {lines}\n ]}}\n', encoding="utf-8")


if __name__ == "__main__":
    write(json.loads((ROOT / "benchmarks/results/model.json").read_text(encoding="utf-8")))
