"""From torch's generators to seeds, and to noise as diffusers draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

_GOLDEN = 0x9E3779B97F4A7C15
_BITS = 0x7FFFFFFFFFFFFFFF


def keys(generator: Any, batch: int) -> int | list[int]:
    """The seed of a run, or one for each sample from a list of generators.

    Each use moves the generator on, so that a run with the same one has other noise. A generator on a device is not
    asked for a number, which would wait: its seed and its offset are.

    Raises:
        ValueError: a list of another length than the batch.
        TypeError: not a generator.
    """
    if isinstance(generator, Sequence):
        if len(generator) != batch:
            raise ValueError(
                f"got {len(generator)} generators for a batch of {batch}: give one, or one for each sample"
            )
        return [_key(g) for g in generator]
    return _key(generator)


def _key(generator: Any) -> int:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}: torch.Generator(device)")
    if generator is None or generator.device.type == "cpu":
        return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())
    offset = int(generator.get_offset())
    generator.set_offset(offset + 4)
    return (int(generator.initial_seed()) ^ (offset + 1) * _GOLDEN) & _BITS


def drawn(generator: Any, always: torch.Tensor | None = None) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Noise as diffusers draws it: tensors from the generator, one after the other.

    Args:
        always: a tensor like the sample, where diffusers draws noise in steps that do not use it too: it is drawn now.
    """
    if isinstance(generator, tuple):
        generator = list(generator)

    def draw(like: torch.Tensor) -> torch.Tensor:
        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    if always is None:
        return lambda number, like: draw(like)
    ready = draw(always)
    return lambda number, like: ready.to(like.dtype)
