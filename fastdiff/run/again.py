"""A plain run in the host's memory that went through before: the same again, prepared once.

What a run is prepared from follows from the types, shapes and plain values of its arguments, as in
`fastdiff.run.recall`. Seeds, x and the model's arguments are free; the first two are checked in every call. The loop is
the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch

from fastdiff.ops import cpu
from fastdiff.ops.philox import PRIOR
from fastdiff.run.arguments import resolve_seeds
from fastdiff.run.history import Recycled, recycles, remember
from fastdiff.run.job import sampling_mode
from fastdiff.run.loop import Run, State, walked
from fastdiff.run.network import placement
from fastdiff.run.recall import MAX_RECALLS, NO_SEED, Options, key_of, owner_of, seed_of

_TAKEN = frozenset(("seed", "first_sample", "shape", "model_kwargs"))


Clock = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
_SPARE = 4
"""How many clocks are kept between runs: as many runs of a call may be under way at once and make none anew."""


@dataclasses.dataclass(eq=False, slots=True)
class Prepared:
    """What is known of a call. It does not keep the model alive.

    Attributes:
        state: of a run that went through, without its buffers.
        placed: the model's device and dtype, as `placement` says.
        seed: (seed, first_sample) whose tensors `state.r.coeffs` holds.
        prior_std: of x at the start, rounded to its dtype.
        said: keeps alive what the key names by identity.
        clocks: the times of the network, and each stage's part of them, of runs that are over.
    """

    owner: weakref.ref[Any]
    state: State
    placed: tuple[Any, Any]
    seed: tuple[Any, int]
    shape: torch.Size
    dtype: torch.dtype
    prior_std: float
    said: tuple[Any, Any]
    clocks: list[Clock]

    def clock(self) -> Clock:
        """Of one run: some networks scale their times in place, so that they are looked at before they serve again."""
        made = self.state.r.program.clock
        with contextlib.suppress(IndexError):
            kept = self.clocks.pop()
            if cpu.same(kept[0], made):
                return kept
        own = made.clone()
        return own, own.unbind(0)


class Again:
    """The plain calls of one sampler."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], Prepared] = {}

    def __reduce__(self) -> tuple[type[Again], tuple[()]]:
        # A copy, perhaps in another process, has other models.
        return Again, ()

    def noting(
        self, model: Any, x: Any, options: Options, said: tuple[Any, Any], prior_std: float
    ) -> Callable[[State], None] | None:
        """What remembers this call once it went through by launches; None for calls with more arguments than these."""
        if not options.keys() <= _TAKEN:
            return None

        def note(state: State) -> None:
            key, batch = key_of(model, x, options, said), state.batch
            seed = seed_of(options, batch)
            if key is None or seed is None:
                return
            own = owner_of(model)
            if x is not None and x.dtype is not state.x.dtype:
                return
            try:
                like = state.x.shape, state.x.dtype, prior_std, said
                self.known[key] = Prepared(weakref.ref(own), state.bare(), placement(model), seed, *like, [])
            except TypeError:
                # A model without weak references, or an argument that cannot be hashed.
                return
            # A copy of the keys in one operation: other threads may add to them.
            for old in list(self.known)[:-MAX_RECALLS]:
                self.known.pop(old, None)

        return note

    def run(self, model: Any, x: Any, options: Options, said: tuple[Any, Any]) -> torch.Tensor | None:
        """The sample, or None where the call is not known, or has to be looked at after all."""
        if not options.keys() <= _TAKEN:
            return None
        key = key_of(model, x, options, said)
        try:
            known = None if key is None else self.known.get(key)
        except TypeError:
            return None
        if known is None or key is None:
            return None
        if known.owner() is not owner_of(model):
            self.known.pop(key, None)
            return None
        seed = seed_of(options, known.state.batch) if options else NO_SEED
        placed = placement(model) if isinstance(model, torch.nn.Module) else known.placed
        if seed is None or placed != known.placed or recycles(model):
            return None
        at = 0
        if x is not None:
            at = cpu.start(x, known.shape.numel())
            if not at:
                return None
        kwargs = options.get("model_kwargs") or {}
        with sampling_mode():
            return self._walked(known, model, kwargs, x, at, seed)

    @staticmethod
    def _walked(
        known: Prepared, model: Any, kwargs: dict[str, Any], x: Any, at: int, seed: tuple[Any, int]
    ) -> torch.Tensor | None:
        """A run of its own from `x`, a state at `at`, or from the prior's noise where that is 0."""
        state, shape, dtype = known.state, known.shape, known.dtype
        r, walks = state.r, state.walks
        c = r.coeffs
        if seed != known.seed and (not at or r.program.plan.stochastic):
            seeds, index = resolve_seeds(*seed, state.batch, c.seeds.device)
            c = dataclasses.replace(c, seeds=seeds, index=index)
            walks = state.walks_of(c, shape.numel() // state.batch)
        start = x
        if not at:
            start = torch.empty(shape, dtype=dtype)
            r.backend.normal_(start, c.seeds, c.index, 0, PRIOR)
            if known.prior_std != 1.0:
                start *= known.prior_std
            at = start.data_ptr()
        # Half the time of torch.empty.
        like = torch.empty_like
        slots = [like(start) for _ in state.slots]
        shared = None if state.shared is None else like(start, dtype=r.network_dtype)
        copied = 0 if r.program.raw else r.program.history
        ring = [like(start) for _ in range(copied)]
        clock, times = known.clock()
        assert walks is not None
        walk = walks((slots[0], slots[-1], slots[0], slots[-1], shared), ring, times, None)
        walk.open(at)
        out = walk.run(r.network.raw_of(model, kwargs))
        if walk.k == len(times):
            if len(known.clocks) < _SPARE:
                known.clocks.append((clock, times))
            result: torch.Tensor = walk.x
            return result
        evaluator = r.evaluator.of(model, kwargs)
        run = Run(r.program, c, evaluator, r.network_dtype, r.direct)
        rest = state.around(walk, run, slots, shared, times, ring)
        try:
            rest.look_at(evaluator.network.check(out, rest.input))
            return walked(rest).x
        except Recycled:
            remember(model)
            return None
