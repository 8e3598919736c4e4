"""One run of a pipeline through a plan: a stage for each call of `step`, and everything that a run keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdiff import ops
from fastdiff.bind import Binding, bind, bind_stages_x0, rounded
from fastdiff.integrations.diffusers.spacing import Grid
from fastdiff.ops import Buffers, Coeffs
from fastdiff.ops.layout import CG, CU, IN_SCALE, LINEAR, NEXT_U, NEXT_X, PG, PU, QG, QU, RAW, StageSpec
from fastdiff.plan import IDENTITY, NREG, Plan, U, X
from fastdiff.run.history import Draws

Noise = Callable[[int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Limits:
    """How the predicted x0 is bounded: by `fixed` on both sides, or by each sample's `quantile` of |x0|, at least 1 and
    at most `highest`, which x0 is then divided by (Saharia et al. 2022, arXiv 2205.11487, Section 2.3; the upper end is
    diffusers')."""

    fixed: float = 1.0
    quantile: float | None = None
    highest: float = 1.0


@dataclass(frozen=True)
class Bound:
    """A plan in numbers on one device, in the units of the pipeline's sample.

    Attributes:
        values, draws: the table, (stages + 1, ...); row k + 1 is stage k.
        specs, x0_specs: of the stages, and of the rows of `x0` that give the predicted x0.
    """

    plan: Plan
    values: torch.Tensor
    draws: torch.Tensor
    specs: tuple[StageSpec, ...]
    x0: torch.Tensor
    x0_specs: tuple[StageSpec, ...]


def bound(
    plan: Plan, grid: Grid, prediction: str, sign: float, clip: bool, dtype: torch.dtype, device: torch.device
) -> Bound:
    """`plan` for a network that gives `sign` times `prediction`, on the pipeline's own scale of the sample."""
    binding = Binding(prediction, clip=clip)
    made = bind(plan, binding, copies=0)
    x0, watched = bind_stages_x0(plan.stages, binding, int(plan.learned_variance))
    values = made.values.copy()
    specs, x0_specs = list(made.specs[1:]), []
    base = plan.stages[0].t
    for k, stage in enumerate(plan.stages):
        own, there = grid.unit(stage.t), grid.unit(stage.t_next if stage.t_next >= grid.schedule.t_clean else stage.t)
        row, seen = values[k + 1], x0[k]
        for start, stays in ((NEXT_U, False), (NEXT_X, stage.next_x == IDENTITY)):
            coefficients = row[start : start + NREG]
            coefficients[[X, U]] *= (grid.unit(base), own)
            coefficients /= grid.unit(base) if stays else there
        for part in (row, seen):
            part[[CU, PU, QU]] *= own
            part[[CG, PG, QG]] *= sign
        seen[NEXT_U:NEXT_X] *= grid.data_std
        if stage.next_x != IDENTITY:
            base = stage.t_next
        spec = watched[k]
        if sign != 1.0:
            specs[k], spec = _scaled(specs[k]), _scaled(spec)
        x0_specs.append(spec)

    def put(array: np.ndarray) -> torch.Tensor:
        return on(rounded(array, dtype), device)

    values[:, IN_SCALE] = 1.0
    draws = on(torch.from_numpy(made.draws), device)
    return Bound(plan, put(values), draws, tuple(specs), put(x0), tuple(x0_specs))


def _scaled(spec: StageSpec) -> StageSpec:
    return spec._replace(convert=LINEAR) if spec.convert == RAW else spec


def on(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small tensor on the device, without waiting for the work that it still has."""
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


class Walk:
    """The state of one run.

    Args:
        table: the plan of the rest of the run.
        first: number of the evaluation that it begins with, among all of the grid's.
        seeds: of each sample, int64 (B,), and `index`, int32 (B,): the key of the built-in noise.
        limits: bounds of the predicted x0, or None.

    Attributes:
        source: noise of the caller's own for the call that comes, or None for the built-in.
    """

    source: Noise | None = None

    def __init__(
        self,
        table: Bound,
        first: int,
        like: torch.Tensor,
        seeds: torch.Tensor,
        index: torch.Tensor,
        limits: Limits | None,
    ) -> None:
        self.table, self.first, self.done = table, first, 0
        self.stages = table.plan.stages
        self.k = 0
        self.limits = limits
        bounds: dict[str, Any] = {}
        if limits is not None:
            levels = (-limits.fixed, limits.fixed, 1.0)
            bounds = {
                name: torch.full((len(like),), v, dtype=table.values.dtype, device=like.device)
                for name, v in zip(("lo", "hi", "scale"), levels, strict=True)
            }
        self.coeffs = Coeffs(table.values, table.draws, seeds, index, **bounds)
        self.draws = Draws(self._asked, (s.draws for s in self.stages))
        self.base: torch.Tensor | None = None
        self.past: list[torch.Tensor] = []
        # What was returned last, and the same in the state's dtype.
        self.given: torch.Tensor | None = None
        self.wide: torch.Tensor | None = None
        self.version: int | None = None

    @property
    def finished(self) -> bool:
        return self.k == len(self.stages)

    def state_of(self, sample: torch.Tensor) -> torch.Tensor:
        """`sample` in the state's dtype: the very state that it was rounded from, where the pipeline left it alone."""
        if sample is self.given and self.wide is not None and version(sample) == self.version:
            return self.wide
        # Contiguous memory of its own is not needed: nothing is written into it.
        return ops.admitted("sample", sample.detach()).to(self.table.values.dtype).contiguous()

    def step(self, out: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
        """The next sample, of `sample`'s dtype, and a function that gives the predicted x0 of this one."""
        u = self.state_of(sample)
        module = ops.select(None, u.device, u.dtype, out.dtype)
        first = ops.admitted("model_output", out.detach()).contiguous()
        predicted = self._predicted(module, u, first, (out, version(out)))
        if self.limits is not None and self.limits.quantile is not None:
            predicted = self._threshold(module, predicted())
        narrow = sample.dtype != u.dtype
        result = self._stage(module, u, first, sample.dtype if narrow and self._last_of_call() else None)
        while not self.finished and not self.stages[self.k].evaluate:
            result = self._stage(module, result[0], None, sample.dtype if narrow and self._last_of_call() else None)
        self.done += 1
        self.wide, self.given = result[0], result[1] if narrow else result[0]
        assert self.given is not None
        self.version = version(self.given)
        return self.given, predicted

    def _asked(self, draw: int, like: torch.Tensor) -> torch.Tensor:
        assert self.source is not None
        return self.source(draw, like)

    def _last_of_call(self) -> bool:
        return self.k + 1 == len(self.stages) or self.stages[self.k + 1].evaluate

    def _stage(
        self, module: Any, u: torch.Tensor, first: torch.Tensor | None, dtype: torch.dtype | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run stage `k`; `dtype`: of a copy of the result."""
        stage, spec, length = self.stages[self.k], self.table.specs[self.k], self.table.plan.history
        x = u if self.base is None else self.base
        buf = Buffers(x=x, u=u, first=first, h=tuple(self.past), u_out=torch.empty_like(u))
        if dtype is not None:
            spec = spec._replace(copies=1)
            buf.net_in = torch.empty_like(u, dtype=dtype)
        if spec.x_mask:
            buf.x_out = torch.empty_like(u)
        if stage.keep and length:
            # The oldest value may be overwritten: every element is read before it is written.
            full = len(self.past) == length
            buf.m_out = self.past[-1] if full else torch.empty_like(u)
        if self.source is not None:
            buf.z = self.draws(self.k, stage.draws, u)
        module.stage(spec, self.k + 1, self.coeffs, buf)
        if buf.m_out is not None:
            self.past = [buf.m_out, *self.past][:length]
        if stage.next_x == stage.next_u:
            self.base = None
        else:
            self.base = x if stage.next_x == IDENTITY else buf.x_out
        self.k += 1
        assert buf.u_out is not None
        return buf.u_out, buf.net_in

    def _predicted(
        self, module: Any, u: torch.Tensor, first: torch.Tensor, given: tuple[torch.Tensor, int | None]
    ) -> Callable[[], torch.Tensor]:
        k, coeffs = self.k, self.coeffs
        seen = version(u)

        def predicted() -> torch.Tensor:
            if version(u) != seen or version(given[0]) != given[1]:
                raise RuntimeError(
                    "pred_original_sample is made when it is asked for, and sample or model_output was changed in "
                    "place since: ask for it before that, or change a copy"
                )
            x0 = torch.empty_like(u)
            rows = Coeffs(self.table.x0, coeffs.draws, coeffs.seeds, coeffs.index)
            module.stage(self.table.x0_specs[k], k, rows, Buffers(u=u, first=first, u_out=x0))
            if self.limits is not None and self.limits.quantile is None:
                x0 = x0.clamp_(-self.limits.fixed, self.limits.fixed)
            return x0

        return predicted

    def _threshold(self, module: Any, x0: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Set the bounds from a predicted x0. Nothing waits for the device."""
        lo, hi, scale, limits = self.coeffs.lo, self.coeffs.hi, self.coeffs.scale, self.limits
        assert lo is not None and hi is not None and scale is not None and limits is not None
        assert limits.quantile is not None
        module.quantile_(hi, x0, limits.quantile)
        hi.clamp_(min=1.0, max=max(1.0, limits.highest))
        torch.neg(hi, out=lo)
        torch.reciprocal(hi, out=scale)
        s = hi.clone().reshape(-1, *[1] * (x0.ndim - 1))
        return lambda: torch.maximum(torch.minimum(x0, s), -s) / s


def version(t: torch.Tensor) -> int | None:
    """What changes when a tensor is written to; None in inference mode, where nothing says so."""
    return None if t.is_inference() else t._version


class Stepped(Sequence[Any]):
    """What `step` returns: `prev_sample`, and `pred_original_sample`, which is made when it is asked for.

    As with diffusers' outputs, fields are attributes, items by name, and items by number.
    """

    def __init__(
        self, prev_sample: torch.Tensor, predicted: Callable[[], torch.Tensor], names: tuple[str, ...]
    ) -> None:
        self.prev_sample, self._predicted, self._names = prev_sample, predicted, names
        self._x0: torch.Tensor | None = None

    @property
    def pred_original_sample(self) -> torch.Tensor:
        """(B, ...) the x0 that the network's output says, clipped as the config has it, in prev_sample's dtype."""
        if self._x0 is None:
            self._x0 = self._predicted().to(self.prev_sample.dtype)
        return self._x0

    @property
    def denoised(self) -> torch.Tensor:
        """The same, as LCM's scheduler calls it."""
        return self.pred_original_sample

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self._names:
                raise KeyError(key)
            return getattr(self, key)
        if isinstance(key, slice):
            return tuple(getattr(self, name) for name in self._names[key])
        return getattr(self, self._names[key])

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._names)

    def keys(self) -> tuple[str, ...]:
        """The names of the fields."""
        return self._names

    def to_tuple(self) -> tuple[Any, ...]:
        """All fields."""
        return tuple(self)
