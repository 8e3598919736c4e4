"""Times drawn by how large their losses have been (Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.3, eq. 18)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastdiff.values import floats, number, whole


class LossSecondMoment:
    """p(t) proportional to sqrt(E[loss_t²]), over the last losses seen at each time, with weights that keep the loss's
    mean: the variational bound's terms differ by orders of magnitude, and its gradient is noisy under uniform times.

        times = LossSecondMoment(1000)
        t, weight = times.sample(len(x0))
        losses = vlb_loss(model, x0, t=t, reduction="none")
        times.update(t, losses)
        (weight.to(losses) * losses).mean().backward()

    Times are uniform until each has been seen `history` times. With torch.distributed running, `update` gathers what
    every process saw, so that all keep the same weights: every process must call it.

    Args:
        num_times: N; times are the integers 0 to N − 1.
        history: losses kept of each time.
        uniform_prob: the part of the probability that is spread evenly, so that no time is forgotten.

    Raises:
        ValueError: arguments out of range.
    """

    def __init__(self, num_times: int, history: int = 10, uniform_prob: float = 0.001) -> None:
        for name, value in (("num_times", num_times), ("history", history)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer of at least 1")
        uniform_prob = number("uniform_prob", uniform_prob, "0.001")
        if not 0.0 <= uniform_prob <= 1.0:
            raise ValueError(f"uniform_prob={uniform_prob!r}: expected a probability, such as 0.001")
        self.uniform_prob = uniform_prob
        # A ring for each time: the newest loss replaces the oldest.
        self._losses = np.zeros((num_times, history))
        self._seen = np.zeros(num_times, dtype=np.int64)

    def probabilities(self) -> np.ndarray:
        """(N,) float64: how likely each time is to be drawn."""
        count, history = self._losses.shape
        if (self._seen < history).any():
            return np.full(count, 1.0 / count)
        size = np.sqrt(np.square(self._losses).mean(axis=1))
        if not size.any():
            return np.full(count, 1.0 / count)
        return (1.0 - self.uniform_prob) * size / size.sum() + self.uniform_prob / count

    def sample(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`batch` times and their weights 1/(N p(t)), (B,) int64 and (B,) float32, on the host."""
        batch = whole("batch", batch, 1, 2**31 - 1, "16")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        p = torch.from_numpy(self.probabilities())
        where = p if generator is None else p.to(generator.device)
        t = torch.multinomial(where, batch, replacement=True, generator=generator).cpu()
        return t, (1.0 / (len(p) * p[t])).float()

    def update(self, t: Tensor | ArrayLike, losses: Tensor) -> None:
        """Notes the losses, (B,), seen at the times t, (B,), before weighting. Waits for the device they are on.

        Raises:
            ValueError: other shapes, times outside 0 to N − 1, or a loss that is not finite.
        """
        times, values = floats("t", t, "(B,) times"), floats("losses", losses, "(B,) losses, reduction='none'")
        if times.ndim != 1 or times.shape != values.shape:
            raise ValueError(
                f"t has shape {times.shape} and losses {values.shape}; expected (B,) of both: reduction='none'"
            )
        if np.any(times != np.rint(times)) or np.any((times < 0) | (times >= len(self._seen))):
            got = ", ".join(f"{v:g}" for v in times)
            raise ValueError(f"t got [{got}]; expected integers from 0 to {len(self._seen) - 1}")
        pairs = list(zip(times.astype(int).tolist(), values.tolist(), strict=True))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, pairs)
            pairs = [pair for own in everyone for pair in own]
        # After the losses are gathered: every process then raises, and no process waits for another.
        for time, loss in pairs:
            if not math.isfinite(loss):
                raise ValueError(f"losses got {loss} at time {time}; expected finite losses")
        for time, loss in pairs:
            self._losses[time, self._seen[time] % self._losses.shape[1]] = loss
            self._seen[time] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs, as tensors: losses (N, history) and how many each time has seen, (N,)."""
        return {"losses": torch.from_numpy(self._losses.copy()), "seen": torch.from_numpy(self._seen.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a `state_dict` of the same num_times and history; ValueError for any other."""
        if not isinstance(state, Mapping) or not all(isinstance(state.get(n), Tensor) for n in ("losses", "seen")):
            raise ValueError("the state is none that state_dict() gave: expected the tensors 'losses' and 'seen'")
        losses, seen = (state[name].cpu().numpy() for name in ("losses", "seen"))
        if losses.shape != self._losses.shape or seen.shape != self._seen.shape:
            raise ValueError(
                f"the state is of num_times={losses.shape[0]}, history={losses.shape[-1]}; expected "
                f"{self._losses.shape[0]} and {self._losses.shape[1]}"
            )
        self._losses, self._seen = losses.astype(np.float64), seen.astype(np.int64)
