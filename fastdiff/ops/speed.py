"""Which of the back ends for GPUs is the faster for a run, by what is known of each kind of stage.

speed.json holds the fraction of a copy's bandwidth that each back end reaches: predicted from the machine code by
`python -m benchmarks.gpu_model` until a device has measured it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

MARGIN = 0.02
"""What must lie between two fractions for one to be the larger: below it stand the table's two digits."""
LARGE = 1 << 22
"""Elements of a state from which on memory counts more than the launch, which costs the host less with `cuda`."""


class Traits(NamedTuple):
    """What the stages of a run are like, as far as it decides how fast they are.

    Attributes:
        network: the dtype of the network's output.
        history: how many earlier model values are read.
        elements: of the state.
    """

    noise: bool
    guided: bool
    learned: bool
    history: int
    network: torch.dtype
    elements: int


class Choice(NamedTuple):
    """The back end that is the faster, and why."""

    name: str
    why: str


@functools.cache
def known() -> dict[str, Any]:
    """The table: {"how": where it comes from, "chips": [...], "stages": [{traits, "cuda": [...], "triton": [...]}]}."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("speed.json").read_text(encoding="utf-8"))
    return found


def chip_of(name: str, capability: tuple[int, int]) -> str:
    """The chip of the table that a device is most like: the one that its name holds, else by compute capability."""
    chips: list[str] = known()["chips"]
    named = next((chip for chip in chips if chip in name), None)
    if named is not None:
        return named
    return {8: "A100" if capability == (8, 0) else "RTX 4090", 9: "H100"}.get(capability[0], "H200")


def faster(traits: Traits, chip: str) -> Choice:
    """`cuda`, or `triton` for a large state where the table has it ahead by `MARGIN` for the stage most like these."""
    table = known()
    if traits.elements < LARGE:
        return Choice("cuda", f"a state below {LARGE} elements is bound by launches")

    def unlike(row: dict[str, Any]) -> tuple[int, ...]:
        half = torch.finfo(traits.network).bits == 16
        return (
            (row["noise"] != traits.noise) + (row["guided"] != traits.guided) + 2 * (row["learned"] != traits.learned),
            int(half != (row["network"] != "float32")),
            abs(row["history"] - traits.history),
        )

    row = min(table["stages"], key=unlike)
    at = table["chips"].index(chip)
    cuda, triton = row["cuda"][at], row["triton"][at]
    name = "triton" if round(triton - cuda, 4) >= MARGIN else "cuda"
    return Choice(name, f"{row['stage']} on {chip}: cuda {cuda:.2f} of a copy's bandwidth, triton {triton:.2f}")


def summary(chip: str) -> str:
    """One sentence: what is chosen on a chip."""
    table = known()
    at = table["chips"].index(chip)
    others = [row["stage"] for row in table["stages"] if round(row["triton"][at] - row["cuda"][at], 4) >= MARGIN]
    if not others:
        return "cuda for every stage"
    return f"cuda; triton for states of {LARGE} elements or more in stages like {'; '.join(others)}"
