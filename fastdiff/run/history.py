"""The model values that a run keeps, and the user's own noise."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch

from fastdiff.ops import Buffers, returned
from fastdiff.plan import MAX_DRAWS

Noise = Callable[[int, torch.Tensor], torch.Tensor]


class Recycled(Exception):
    """The network wrote into an output that the history still needed; `stage` is the first one that would have read
    it."""

    def __init__(self, stage: int) -> None:
        super().__init__(stage)
        self.stage = stage


RECYCLING: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models seen to return a buffer of theirs again: their outputs are copied into the history from the start."""


def _owner(model: Any) -> Any:
    # A bound method is a new object each time that it is asked for.
    return model.__self__ if isinstance(model, MethodType) else model


def recycles(model: Any) -> bool:
    try:
        return _owner(model) in RECYCLING
    except TypeError:
        return False


def remember(model: Any) -> None:
    with contextlib.suppress(TypeError):
        RECYCLING.add(_owner(model))


OWN: tuple[int, int | None] = (-1, None)
"""The mark of a value that the history holds in its own memory."""


class History:
    """Earlier model values, newest first. Where `raw`, the network's own outputs are kept, and no copy is written.

    Networks that replay graphs or engines of their own may return one buffer, or a few in turn. Their memory shows it.
    An output whose storage is still in the history, or a kept one that was written to since, raises `Recycled`, and the
    run is repeated with copies.

    Args:
        own: addresses of the loop's buffers.
        dtype: of the state.
    """

    def __init__(self, length: int, raw: bool, copies: bool, own: tuple[int, ...], dtype: torch.dtype) -> None:
        self.length, self.raw, self.copies = length, raw, copies or not raw
        self.own, self.dtype = own, dtype
        self.values: list[torch.Tensor] = []
        # Memory and version (if it has one) of each value that is the network's own.
        self.marks: list[tuple[int, int | None]] = []
        self.ring: list[torch.Tensor] = []

    def arrived(self, out: torch.Tensor, storage: int, k: int) -> torch.Tensor:
        """Look at where a new output lies. Returns it, or a copy if it lies across the buffers of the loop.

        Args:
            storage: the address of its storage; 0 where operations are recorded, and every value is copied.
            k: the stage.
        """
        for value, (kept, version) in zip(self.values, self.marks, strict=True):
            if storage == kept or (version is not None and value._version != version):
                raise Recycled(k)
        if self.raw and self.values and self.values[0].dtype != out.dtype:
            # All entries have one dtype. From here on it is the state's, which holds values of both.
            self.values = [value.to(self.dtype) for value in self.values]
            self.marks = [OWN] * len(self.values)
            self.ring, self.raw, self.copies = [], False, True
        if storage in self.own:
            self.copies = True
            return out if out.data_ptr() == storage else out.clone()
        return out

    def slot(self, out: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
        """Where the stage writes m, or None if the output itself is kept."""
        if not self.length or not self.copies:
            return None
        # The oldest value may be overwritten: every element is read before it is written.
        needed = self.values[: self.length - 1]
        for buffer in self.ring:
            if all(buffer is not v for v in needed):
                return buffer
        dtype = out.dtype if self.raw else like.dtype
        self.ring.append(torch.empty(like.shape, dtype=dtype, device=like.device))
        return self.ring[-1]

    def keep(self, buf: Buffers) -> None:
        """The stage has run: its m is now h1."""
        value = buf.first if buf.m_out is None else buf.m_out
        if not self.length or value is None:
            return
        mark = OWN
        if buf.m_out is None:
            mark = value.untyped_storage().data_ptr(), None if value.is_inference() else value._version
        self.values.insert(0, value)
        self.marks.insert(0, mark)
        del self.values[self.length :], self.marks[self.length :]


class Draws:
    """The user's own noise, asked for once per draw number and kept while a later stage needs it."""

    def __init__(self, noise: Noise, stages: Iterable[tuple[int, int, int]]) -> None:
        self.noise = noise
        self.last = {d: k for k, draws in enumerate(stages) for d in draws if d >= 0}
        self.kept: dict[int, torch.Tensor] = {}

    def __call__(
        self, k: int, draws: tuple[int, int, int], like: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The tensors of stage `k`'s draws."""
        z: list[torch.Tensor | None] = [None] * MAX_DRAWS
        for i, d in enumerate(draws):
            if d < 0:
                continue
            if d not in self.kept:
                # Like the state, but not the state: a callable may fill it in place.
                value = self.noise(d, torch.empty_like(like))
                if not isinstance(value, torch.Tensor) or value.shape != like.shape or value.device != like.device:
                    got = (
                        (tuple(value.shape), str(value.device))
                        if isinstance(value, torch.Tensor)
                        else type(value).__name__
                    )
                    raise ValueError(
                        f"noise(draw, like) returned {got}; expected a tensor of shape {tuple(like.shape)} on "
                        f"{like.device}, such as torch.randn_like(like)"
                    )
                value = returned("noise", value).detach().to(like.dtype).contiguous()
                # Beside another draw it needs its own memory, because the callable may fill one buffer again.
                alone = self.last[d] == k and sum(n >= 0 for n in draws) == 1
                self.kept[d] = value if alone else value.clone()
            z[i] = self.kept[d]
            if self.last[d] == k:
                del self.kept[d]
        return z[0], z[1], z[2]
