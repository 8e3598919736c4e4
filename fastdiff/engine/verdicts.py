"""Whether the states after a tick are finite: what the host learns of them later, without waiting for the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastdiff.engine.place import Place
from fastdiff.engine.run import Run


class Verdict(NamedTuple):
    """Of some requests after a tick. The host knows it where `event` is None or done.

    Attributes:
        runs: with their samples, where these were made by that tick.
        sums: of each state, finite where it is; or None, where nobody asks.
    """

    runs: list[tuple[Run, torch.Tensor | None]]
    sums: torch.Tensor | None
    event: torch.cuda.Event | None


class Verdicts:
    """Those that nobody has looked at yet, the oldest first.

    Args:
        finite: whether states are looked at for NaN and Inf.
    """

    def __init__(self, place: Place, finite: bool) -> None:
        self.place, self.finite = place, finite
        self.waiting: deque[Verdict] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def clear(self) -> None:
        self.waiting.clear()

    @property
    def runs(self) -> list[tuple[Run, torch.Tensor | None]]:
        """All that they are about."""
        return [one for verdict in self.waiting for one in verdict.runs]

    def ask(self, runs: Sequence[Run], states: torch.Tensor | None) -> None:
        """Of these requests, of their `states`, or where that is None of their samples, which they have."""
        asked = [(run, run.result) for run in runs]
        if not self.finite:
            self.waiting.append(Verdict(asked, None, None))
            return
        # A sum of finite values that overflows has left the range of any sample.
        if states is not None:
            sums = states.flatten(1).sum(1)
        else:
            sums = torch.stack([made.sum() for _, made in asked if made is not None])
        event = None
        if sums.device.type == "cuda":
            seen = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            sums = seen.copy_(sums, non_blocking=True)
            event = self.place.mark()
        self.waiting.append(Verdict(asked, sums, event))

    def collect(self, wait: bool) -> bool:
        """Hand out the samples, and end the requests, whose states the host knows by now. `wait`: for all of them.
        Returns whether one failed."""
        failed = False
        while self.waiting:
            runs, sums, event = self.waiting[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()
            judged = zip(runs, [0.0] * len(runs) if sums is None else sums.tolist(), strict=True)
            # Those of one tick are told of in the order in which they came.
            for (run, made), total in sorted(judged, key=lambda one: one[0][0].order[1]):
                if made is not None and math.isfinite(total):
                    run.request.finish(made)
                elif not (math.isfinite(total) or run.request.ended):
                    run.request.fail(
                        FloatingPointError(
                            f"a sample of method {run.request.method!r} is NaN or Inf after evaluation {run.at} of "
                            f"{run.request.nfe}: check the network's dtype, its input scale, prediction=... and "
                            "guidance"
                        )
                    )
                    failed = True
            # Afterwards, so that nobody is forgotten where a callback is interrupted.
            self.waiting.popleft()
        return failed
