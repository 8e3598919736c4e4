"""Which of the back ends for GPUs is the faster for a stage, by what is known of each kind of stage.

speed.json holds the fraction of a copy's bandwidth that each back end reaches: predicted from the machine code by
`python -m benchmarks.gpu_model` until a device has measured it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.ops.layout import StageSpec

MARGIN = 1.05
"""How many times the fraction of `cuda` the other must be: a few registers more or less in a kernel move the model's
fractions by as much, and what Triton launches is first compiled, for a second."""
LARGE = 1 << 22
"""Elements of a state from which on memory counts more than the launch, which costs the host less with `cuda`."""


class Traits(NamedTuple):
    """What a stage is like, as far as it decides how fast it is.

    Attributes:
        path: whether the noise is of a Brownian path.
        frames: whether there is a row for each frame.
        squares: whether the noise's squares are summed.
        double: whether the state is float64.
        given: whether noise is the user's.
        history: how many earlier model values are read.
        network: the dtype of the network's output.
    """

    path: bool
    frames: bool
    squares: bool
    double: bool
    given: bool
    noise: bool
    learned: bool
    guided: bool
    history: int
    network: torch.dtype

    @classmethod
    def of(cls, spec: StageSpec, coeffs: Coeffs, buf: Buffers) -> Traits:
        """Those of a stage as a back end is given it."""
        state = coeffs.table.dtype
        output = buf.first if buf.first is not None else buf.second
        return cls(
            path=bool(spec.path and spec.noises),
            frames=coeffs.inner > 0,
            squares=buf.squares is not None,
            double=state == torch.float64,
            given=any(z is not None for z in buf.z),
            noise=spec.noises > 0,
            learned=spec.reads_v,
            guided=spec.guided,
            history=spec.history,
            network=state if output is None else output.dtype,
        )


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


def _leads(row: dict[str, Any], at: int) -> bool:
    """Whether `triton` is taken for such stages on the chip of that number.

    Never where the two back ends' results differ in their last bits: a sample must not depend on its batch's size. In
    float64 an exponential is each compiler's own, and sums of squares have an order of their own.
    """
    return not (row["squares"] or row["double"]) and row["triton"][at] >= MARGIN * row["cuda"][at]


def faster(traits: Traits, chip: str) -> Choice:
    """`cuda`, or `triton` where the table has it ahead by `MARGIN` for the stage most like this one."""
    table = known()

    def unlike(row: dict[str, Any]) -> tuple[int, ...]:
        half = torch.finfo(traits.network).bits == 16
        kinds = ("path", "frames", "squares", "double", "given")
        return (
            sum(row[kind] != getattr(traits, kind) for kind in kinds),
            (row["noise"] != traits.noise) + (row["guided"] != traits.guided) + 2 * (row["learned"] != traits.learned),
            abs(row["history"] - traits.history),
            int(half != (row["network"] not in ("float32", "float64"))),
        )

    row = min(table["stages"], key=unlike)
    at = table["chips"].index(chip)
    name = "triton" if _leads(row, at) and not (traits.squares or traits.double) else "cuda"
    cuda, triton = row["cuda"][at], row["triton"][at]
    return Choice(name, f"{row['stage']} on {chip}: cuda {cuda:.2f} of a copy's bandwidth, triton {triton:.2f}")


@functools.cache
def led(chip: str) -> tuple[str, ...]:
    """The stages of the table for which `triton` is taken on a chip."""
    table = known()
    at = table["chips"].index(chip)
    return tuple(row["stage"] for row in table["stages"] if _leads(row, at))


def summary(chip: str) -> str:
    """One sentence: what is chosen on a chip."""
    others = led(chip)
    if not others:
        return "cuda for every stage"
    return f"cuda; triton for states of {LARGE} elements or more in stages like {'; '.join(others)}"
