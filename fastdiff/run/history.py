"""The model values that a run keeps, and the user's own noise."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch

from fastdiff.ops import returned
from fastdiff.plan import MAX_DRAWS

Noise = Callable[[int, torch.Tensor], torch.Tensor]


class Recycled(Exception):
    """The network wrote into an output that the history still needed; `stage` is the first one that would have read
    it."""

    def __init__(self, stage: int) -> None:
        super().__init__(stage)
        self.stage = stage


class Habits:
    """What is known of the models seen so far, as long as they live. A function made anew for each call is a new model
    each time, and so is what cannot be referenced weakly."""

    def __init__(self) -> None:
        self.recycling: weakref.WeakSet[Any] = weakref.WeakSet()
        """Models seen to return a buffer of theirs again: their outputs are copied into the history from the start."""
        self.fresh: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        """How many outputs of a model were kept beside their copies, and found to stay as they were."""
        self.reading: weakref.WeakSet[Any] = weakref.WeakSet()
        """Models that went through a whole run without changing their input."""


HABITS = Habits()


def _owner(model: Any) -> Any:
    # A bound method is a new object each time that it is asked for.
    return model.__self__ if isinstance(model, MethodType) else model


def recycles(model: Any) -> bool:
    """Whether the model was seen to write into outputs of its own that were kept."""
    try:
        return _owner(model) in HABITS.recycling
    except TypeError:
        return False


def remember(model: Any) -> None:
    with contextlib.suppress(TypeError):
        HABITS.recycling.add(_owner(model))


def lasts(model: Any, length: int) -> bool:
    """Whether as many as `length` outputs of the model were kept and seen to keep their values."""
    try:
        return HABITS.fresh.get(_owner(model), -1) >= length
    except TypeError:
        return False


def trust(model: Any, length: int) -> None:
    """`length` outputs of the model were kept, and none was written to."""
    with contextlib.suppress(TypeError):
        HABITS.fresh[_owner(model)] = max(length, HABITS.fresh.get(_owner(model), 0))


def reads_only(model: Any) -> bool:
    """Whether the model was seen to leave its input alone through a whole run."""
    try:
        return _owner(model) in HABITS.reading
    except TypeError:
        return False


def trust_input(model: Any) -> None:
    with contextlib.suppress(TypeError):
        HABITS.reading.add(_owner(model))


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def comparable(value: torch.Tensor) -> bool:
    """Whether a look at the values costs no more than reading them: in the host's memory, and not within a capture."""
    if type(value) is not torch.Tensor or value.device.type != "cpu":
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two contiguous tensors of one dtype hold the same bits: NaN is equal to itself."""
    bits = _BITS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


class History:
    """Earlier model values, newest first. Where `raw`, the network's own outputs are kept, and no copy is written.

    Networks that replay graphs or engines of their own may return one buffer, or a few in turn. With `watch`, for a
    model that is not known yet, copies are kept, and the outputs beside them, which shows whether they would have
    lasted. Without it their memory shows it: an output whose storage is still in the history, or a kept one that was
    written to since, raises `Recycled`, and the run is repeated with copies.

    Args:
        own: addresses of the loop's buffers.
        dtype: of the state.
    """

    def __init__(
        self,
        length: int,
        raw: bool,
        copies: bool,
        own: tuple[int, ...],
        dtype: torch.dtype,
        watch: bool = False,
    ) -> None:
        self.length, self.raw, self.copies = length, raw, copies or watch or not raw
        self.own, self.dtype = own, dtype
        self.values: list[torch.Tensor] = []
        # The values once more, with memory and version (if it has one) of those that are the network's own, else -1.
        self.marks: list[tuple[torch.Tensor, int, int | None]] = []
        # Addresses of the values; 0 where it was not asked for.
        self.where: list[int] = []
        # Whether a value may be the network's own.
        self.lent = False
        self.ring: list[torch.Tensor] = []
        self.latest: torch.Tensor | None = None
        self.storage = 0
        self.watch = watch and raw and length > 0
        # Under watch: the network's outputs, whose copies the values are.
        self.beside: list[tuple[torch.Tensor, tuple[int, int | None]]] = []
        self.reused, self.seen = False, 0

    @property
    def lasting(self) -> bool:
        """Whether, under watch, as many outputs as the history holds were seen to keep their values."""
        return self.watch and not self.reused and self.seen > self.length

    def arrived(self, out: torch.Tensor, storage: int, k: int) -> torch.Tensor:
        """Look at where a new output lies. Returns it, or a copy if it lies across the buffers of the loop.

        Args:
            storage: the address of its storage; 0 where operations are recorded, and every value is copied.
            k: the stage.
        """
        self.look(storage, k)
        if self.raw and self.values and self.values[0].dtype != out.dtype:
            # All entries have one dtype. From here on it is the state's, which holds values of both.
            self.values = [value.to(self.dtype) for value in self.values]
            self.marks, self.where = [(value, -1, None) for value in self.values], [0] * len(self.values)
            self.ring, self.raw, self.copies, self.watch, self.beside = [], False, True, False, []
        self.latest, self.storage = out, storage
        if storage in self.own:
            return out if out.data_ptr() == storage else out.clone()
        return out

    def look(self, storage: int, k: int) -> None:
        """Look at the memory of an output whose dtype is the last one's; as `arrived`."""
        if self.lent:
            for value, kept, version in self.marks:
                if storage == kept or (version is not None and value._version != version):
                    raise Recycled(k)
        if self.watch:
            self._compare(storage)
        if storage in self.own:
            self.copies, self.reused = True, True

    def _compare(self, storage: int) -> None:
        self.seen += 1
        if self.reused:
            return
        for (value, (kept, version)), copy in zip(self.beside, self.values, strict=True):
            changed = storage == kept or (version is not None and value._version != version)
            if changed or (comparable(value) and not same_bits(value, copy)):
                self.reused, self.beside = True, []
                return

    def slot(self, out: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
        """Where the stage writes m, or None if the output itself is kept."""
        if not self.length or not self.copies:
            return None
        # The oldest value may be overwritten: every element is read before it is written.
        needed = self.values[: self.length - 1]
        for buffer in self.ring:
            for value in needed:
                if value is buffer:
                    break
            else:
                return buffer
        dtype = out.dtype if self.raw else like.dtype
        self.ring.append(torch.empty(like.shape, dtype=dtype, device=like.device))
        return self.ring[-1]

    def keep(self, first: torch.Tensor | None, m_out: torch.Tensor | None) -> None:
        """The stage has run: its m, in `m_out` or the network's output itself, is now h1."""
        value, length = first if m_out is None else m_out, self.length
        if not length or value is None:
            return
        values, marks = self.values, self.marks
        if len(values) == length:
            values.pop()
            marks.pop()
        values.insert(0, value)
        if m_out is None:
            self.lent = True
            marks.insert(0, (value, *self._mark(value)))
        else:
            marks.insert(0, (value, -1, None))
        self.where = [0, *self.where[: length - 1]]
        if self.watch and not self.reused and first is not None:
            self.beside.insert(0, (first, self._mark(first)))
            del self.beside[length:]

    def kept(self) -> list[tuple[torch.Tensor, int, int, int | None]]:
        """(value, its address, storage and version) of all, newest first; the storage is -1 where it is the loop's."""
        if 0 in self.where:
            self.where = [value.data_ptr() for value in self.values]
        return [(value, at, storage, v) for (value, storage, v), at in zip(self.marks, self.where, strict=True)]

    def restore(self, kept: list[tuple[torch.Tensor, int, int, int | None]]) -> None:
        """Go on from what `kept` returned, or a `Walk` did; it holds no other value afterwards."""
        self.latest, self.storage = None, 0
        self.values = [value for value, *_ in kept]
        self.marks = [(value, storage, version) for value, _, storage, version in kept]
        self.where = [at for _, at, _, _ in kept]
        self.lent = any(storage != -1 for _, _, storage, _ in kept)

    def buffers(self, like: torch.Tensor, network: torch.dtype) -> list[torch.Tensor]:
        """All that `slot` chooses from: none where the outputs themselves are kept."""
        if self.copies:
            dtype = network if self.raw else like.dtype
            more = range(self.length - len(self.ring))
            self.ring += [torch.empty(like.shape, dtype=dtype, device=like.device) for _ in more]
        return self.ring

    def kind(self, network: torch.dtype) -> torch.dtype:
        """The dtype of all values, where the network's output has `network`."""
        if self.values:
            return self.values[0].dtype
        return network if self.raw and self.length else self.dtype

    def _mark(self, value: torch.Tensor) -> tuple[int, int | None]:
        """Where a value of the network's lies, and its version if it has one."""
        # The address is asked for once: it takes as long as a part of a small stage.
        where = self.storage if value is self.latest else value.untyped_storage().data_ptr()
        try:
            return where, value._version
        except RuntimeError:
            # Tensors of inference mode have none.
            return where, None


class Draws:
    """The user's own noise, asked for once per draw number and kept while a later stage needs it."""

    def __init__(self, noise: Noise, stages: Iterable[tuple[int, int, int]], finite: bool = False) -> None:
        self.noise, self.finite = noise, finite
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
                if self.finite and not bool(torch.isfinite(value).all()):
                    raise FloatingPointError(f"noise({d}, like) returned NaN or Inf; expected standard normals")
                # Beside another draw it needs its own memory, because the callable may fill one buffer again.
                alone = self.last[d] == k and sum(n >= 0 for n in draws) == 1
                self.kept[d] = value if alone else value.clone()
            z[i] = self.kept[d]
            if self.last[d] == k:
                del self.kept[d]
        return z[0], z[1], z[2]
