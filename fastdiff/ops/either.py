"""Each stage by the faster of two back ends, which give the same bits."""

from __future__ import annotations

import functools
from typing import Any

import torch

from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.ops.layout import StageSpec
from fastdiff.ops.registry import Backend, load
from fastdiff.ops.speed import Traits, faster


class Either:
    """`cuda`, or `triton` for the stages that it is known to be faster for on a chip; all else is done by `cuda`.

    It launches no stage by addresses: such a launch is the `cuda` back end's alone, and spares the host what a large
    state's stage takes anyway.
    """

    NAME = "cuda or triton"

    def __init__(self, chip: str) -> None:
        self.chip = chip
        self._known: dict[Any, Backend] = {}

    def available(self) -> tuple[bool, str]:
        return load("cuda").available()

    def supports(self, device: torch.device, state: torch.dtype, network: torch.dtype) -> tuple[bool, str]:
        return load("cuda").supports(device, state, network)

    def stage(self, spec: StageSpec, k: int, coeffs: Coeffs, buf: Buffers) -> None:
        traits = Traits.of(spec, coeffs, buf)
        found = self._known.get(traits)
        if found is None:
            found = self._known[traits] = load(faster(traits, self.chip).name)
        found.stage(spec, k, coeffs, buf)

    def normal_(self, out: torch.Tensor, seeds: torch.Tensor, index: torch.Tensor, draw: int, stream: int) -> None:
        load("cuda").normal_(out, seeds, index, draw, stream)

    def quantile_(self, out: torch.Tensor, x0: torch.Tensor, q: float) -> None:
        load("cuda").quantile_(out, x0, q)


@functools.cache
def either(chip: str) -> Either:
    """The one for a chip."""
    return Either(chip)
