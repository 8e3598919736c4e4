"""Frames, or tokens, at steps of their own: the scheduling matrix of diffusion forcing. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastdiff.values import number, shown, whole

ORDERS = ("full_sequence", "pyramid", "autoregressive")


@dataclass(frozen=True, eq=False)
class Frames:
    """Each frame of a sample at a step of its own: diffusion forcing (Chen et al. 2024, arXiv 2407.01392), causal
    video, inpainting by time. For `sample(..., frames=...)`; the network's time is then (B, F).

    Args:
        axis: of x (B, ...) that counts the frames: 2 for (B, C, F, H, W), 1 for (B, T, D).
        steps: "full_sequence": all frames advance together. "pyramid": each block begins `lag` network evaluations
            after the one before it. "autoregressive": a block begins when the one before it is complete. Or the
            scheduling matrix itself, integers (evaluations + 1, F) or (evaluations + 1, B, F): how many of the plan's
            network evaluations each frame has behind it, before the first evaluation and after each. A frame advances
            by 0 or 1; what is 0 is pure noise, and what is `plan.nfe` is clean.
        lag: of "pyramid", at least 0, which may be a fraction: block j begins floor(j·lag) evaluations after block 0.
            Diffusion forcing calls it the uncertainty scale, SkyReels-V2 ar_step.
        block: so many frames advance together (SkyReels-V2's causal_block_size).
        context: frames that are clean from the beginning: how many of the first, or a mask of bools, (F,) or (B, F).
            x is kept there. Not with a matrix, which says it itself.
        clean_time: the model's time for clean frames. Default: where the plan ends, but the schedule's lowest time
            with noise where its clean end is no time of a network (index −1, sigma 0).

    Raises:
        ValueError, TypeError: what is none of these.
    """

    axis: int
    steps: Any = "full_sequence"
    lag: float = 1
    block: int = 1
    context: Any = 0
    clean_time: float | None = None
    begun: bool = field(init=False, repr=False, compare=False)
    """Whether some frame is no pure noise at the start, so that x must be given."""

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("axis", whole("frames: axis", self.axis, 1, 63, "2 for x (B, C, F, H, W)"))
        put("block", whole("frames: block", self.block, 1, 2**31 - 1, "1"))
        put("lag", number("frames: lag", self.lag, "1"))
        if self.lag < 0:
            raise ValueError(f"frames: lag={self.lag:g}: expected at least 0, such as 1")
        if self.clean_time is not None:
            put("clean_time", number("frames: clean_time", self.clean_time, "0.0"))
        if isinstance(self.steps, str):
            if self.steps not in ORDERS:
                raise ValueError(
                    f"frames: steps={self.steps!r}: expected one of {', '.join(map(repr, ORDERS))}, or a matrix of "
                    "integers (evaluations + 1, F)"
                )
            put("context", _context(self.context))
        else:
            put("steps", _matrix(self.steps))
            if isinstance(self.context, bool) or not isinstance(self.context, int) or self.context:
                raise ValueError(
                    "frames: context goes with a named order: in a matrix, frames that are clean from the beginning "
                    "have plan.nfe in every row"
                )
        put("begun", bool(np.any(self.context if isinstance(self.steps, str) else self.steps[0])))

    def matrix(self, batch: int, frames: int, evaluations: int) -> np.ndarray:
        """The scheduling matrix, int64 (rows, batch, frames), for a plan of so many network evaluations.

        Raises:
            ValueError: a matrix or a mask for another number of samples or frames; one that goes back, that advances a
                frame by more than 1, or that leaves its range; an evaluation at which no frame advances.
        """
        if not isinstance(self.steps, str):
            return _checked(self.steps, batch, frames, evaluations)
        clean = np.zeros((batch, frames), dtype=bool)
        if isinstance(self.context, int):
            if self.context >= frames:
                raise ValueError(
                    f"frames: context={self.context} of {frames} frames leaves nothing to sample: give less"
                )
            clean[:, : self.context] = True
        else:
            if self.context.shape[-1] != frames or (self.context.ndim == 2 and len(self.context) != batch):
                raise ValueError(
                    f"frames: context is a mask of shape {self.context.shape}; expected ({frames},) or "
                    f"({batch}, {frames})"
                )
            clean |= self.context
            if clean.all():
                raise ValueError("frames: context marks every frame as clean, which leaves nothing to sample")
        lag = {"full_sequence": 0.0, "autoregressive": evaluations}.get(self.steps, self.lag)
        # Numbers of the blocks among the frames that are sampled, and when each begins.
        blocks = (np.cumsum(~clean, axis=1) - 1) // self.block
        begins = np.floor(np.where(clean, 0, blocks) * lag).astype(np.int64)
        last = int(np.max(begins, where=~clean, initial=0)) + evaluations
        rows = np.clip(np.arange(last + 1).reshape(-1, 1, 1) - begins, 0, evaluations)
        # A lag longer than a block takes leaves evaluations out between them.
        moved = (np.diff(np.where(clean, 0, rows), axis=0) > 0).any(axis=(1, 2))
        return np.where(clean, evaluations, rows[np.flatnonzero(np.append(True, moved))])


def _context(given: Any) -> Any:
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return whole("frames: context", given, 0, 2**31 - 1, "4, the first 4 frames")
    mask = _array(given)
    if mask.dtype != bool or mask.ndim not in (1, 2):
        raise TypeError(
            f"frames: context={shown(given)}: expected a number of frames, or a mask of bools, (F,) or (B, F)"
        )
    return mask


def _matrix(given: Any) -> np.ndarray:
    found = _array(given)
    if found.dtype.kind not in "iu" or found.ndim not in (2, 3) or len(found) < 2:
        raise TypeError(
            f"frames: steps is an array of {found.dtype} of shape {found.shape}; expected integers (evaluations + 1, "
            "F) or (evaluations + 1, B, F), with at least one evaluation"
        )
    return found.astype(np.int64)


def _array(given: Any) -> np.ndarray:
    detached = getattr(given, "detach", None)
    try:
        return np.asarray(given if detached is None else detached().cpu()).copy()
    except ValueError:
        raise TypeError(f"frames got {shown(given)}; expected an array of numbers") from None


def _checked(steps: np.ndarray, batch: int, frames: int, evaluations: int) -> np.ndarray:
    if steps.shape[-1] != frames or (steps.ndim == 3 and steps.shape[1] not in (1, batch)):
        raise ValueError(
            f"frames: steps has shape {steps.shape}, and x has {batch} samples of {frames} frames: expected "
            f"(evaluations + 1, {frames}) or (evaluations + 1, {batch}, {frames})"
        )
    whole_batch = np.broadcast_to(steps.reshape(len(steps), -1, frames), (len(steps), batch, frames))
    if steps.min() < 0 or steps.max() > evaluations:
        raise ValueError(
            f"frames: steps goes from {steps.min()} to {steps.max()}; expected 0 (pure noise) to {evaluations} "
            "(clean), the plan's network evaluations. Matrices of noise levels count down: pass plan.nfe - matrix"
        )
    advance = np.diff(whole_batch, axis=0)
    for bad, why in ((advance < 0, "goes back"), (advance > 1, "advances by more than 1")):
        if bad.any():
            e, b, f = (int(i[0]) for i in np.nonzero(bad))
            raise ValueError(
                f"frames: frame {f} of sample {b} {why} at evaluation {e}, from {whole_batch[e, b, f]} to "
                f"{whole_batch[e + 1, b, f]}: an evaluation is one step of a frame, or none"
            )
    still = ~(advance > 0).any(axis=(1, 2))
    if still.any():
        raise ValueError(
            f"frames: no frame advances at evaluation {int(np.argmax(still))}: leave that row of steps out"
        )
    return whole_batch
