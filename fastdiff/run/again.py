"""A plain run in the host's memory that went through before: the same again, prepared once.

What a run is prepared from follows from the types, shapes and plain values of its arguments, as in
`fastdiff.run.recall`. Seeds, x and the model's arguments are free; the first two are checked in every call. The loop is
the same.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch

from fastdiff.ops.philox import PRIOR
from fastdiff.run.arguments import check_x, finite, resolve_seeds
from fastdiff.run.history import Recycled, recycles, remember
from fastdiff.run.job import sampling_mode
from fastdiff.run.loop import Run, State, walked
from fastdiff.run.network import placement
from fastdiff.run.recall import MAX_RECALLS, Options, key_of, owner_of, seed_of

_TAKEN = frozenset(("seed", "first_sample", "shape", "model_kwargs"))


@dataclasses.dataclass(eq=False, slots=True)
class Prepared:
    """What is known of a call. It does not keep the model alive.

    Attributes:
        state: of a run that went through, without its buffers.
        placed: the model's device and dtype, as `placement` says.
        seed: (seed, first_sample) whose tensors `state.r.coeffs` holds.
        prior_std: of x at the start, rounded to its dtype.
        said: keeps alive what the key names by identity.
    """

    owner: weakref.ref[Any]
    state: State
    placed: tuple[Any, Any]
    seed: tuple[Any, int]
    shape: torch.Size
    dtype: torch.dtype
    prior_std: float
    said: tuple[Any, Any]


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
            try:
                like = state.x.shape, state.x.dtype, prior_std, said
                self.known[key] = Prepared(weakref.ref(own), state.bare(), placement(model), seed, *like)
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
        seed = seed_of(options, known.state.batch)
        placed = placement(model) if isinstance(model, torch.nn.Module) else known.placed
        if seed is None or placed != known.placed or recycles(model):
            return None
        start = x
        if x is not None:
            start = check_x(x)
            if start.dtype is not known.dtype or not start.is_contiguous() or not finite(start):
                return None
        with sampling_mode() if torch.is_inference_mode_enabled() else torch.no_grad():
            try:
                return walked(self._fresh(known, model, options.get("model_kwargs"), start, seed)).x
            except Recycled:
                remember(model)
                return None

    @staticmethod
    def _fresh(
        known: Prepared,
        model: Any,
        kwargs: dict[str, Any] | None,
        start: torch.Tensor | None,
        seed: tuple[Any, int],
    ) -> State:
        """A run of its own: with its own buffers, seeds and evaluator."""
        template = known.state
        r, c = template.r, template.r.coeffs
        if seed != known.seed and (start is None or r.program.plan.stochastic):
            seeds, index = resolve_seeds(*seed, template.batch, c.seeds.device)
            c = dataclasses.replace(c, seeds=seeds, index=index)
        if start is None:
            start = torch.empty(known.shape, dtype=known.dtype, device=c.seeds.device)
            r.backend.normal_(start, c.seeds, c.index, 0, PRIOR)
            if known.prior_std != 1.0:
                start *= known.prior_std
        return template.fresh(
            Run(r.program, c, r.evaluator.of(model, dict(kwargs or {})), r.network_dtype, r.direct), start
        )
