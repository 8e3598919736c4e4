"""The one loop: it walks a bound plan around the network. No host synchronisation, no branch on a device value.

Where x and u live, when the history is written and which buffer is free are decided here, on the host, from the plan alone.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch

from fastdiff.network import Network
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.plan import IDENTITY, MAX_DRAWS, Plan
from fastdiff.table import RAW, StageSpec, Table

Noise = Callable[[int, torch.Tensor], torch.Tensor]


class Move(NamedTuple):
    """One stage as the loop runs it: the table row, its structure, and the slots (0 or 1) of x, u and their successors."""

    row: int
    spec: StageSpec
    evaluate: bool
    push: bool
    x: int
    u: int
    u_to: int
    x_to: int | None
    begins: bool
    ends: bool
    draws: tuple[int, int, int]


def moves(plan: Plan, table: Table) -> tuple[Move, ...]:
    """Where every stage finds and leaves x and u, with two slots and no copies.

    x and u share a slot until a stage tells them apart; a stage that keeps x sends u to the other slot; a stage whose
    next_u and next_x are equal brings them together again.
    """
    result = []
    x = u = 0
    stages = plan.stages
    for k, stage in enumerate(stages):
        u_to, x_to = u, None
        if stage.next_u == stage.next_x:
            after = u
        elif stage.next_x == IDENTITY:
            u_to, after = (u if u != x else 1 - u), x
        else:
            after = x_to = x if u != x else 1 - u
        begins = k == 0 or stages[k - 1].step != stage.step
        ends = k + 1 == len(stages) or stages[k + 1].step != stage.step
        spec = table.specs[k + 1]
        result.append(Move(k + 1, spec, stage.evaluate, stage.push, x, u, u_to, x_to, begins, ends, stage.draws))
        x, u = after, u_to
    return tuple(result)


@dataclass(slots=True)
class Hooks:
    """What a run reports while it goes; everything optional, nothing costs when absent."""

    progress: Callable[[], None] | None = None
    callback: Callable[[int, float, torch.Tensor, torch.Tensor], None] | None = None
    trajectory: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    finite: Callable[[int, torch.Tensor], None] | None = None


@dataclass(slots=True)
class Run:
    """Everything that one run of the loop needs, prepared by the sampler.

    Attributes:
        program: the stages, from `moves`.
        plan: for the times that hooks report.
        backend: the module whose `stage` runs them.
        network: the adapted model.
        coeffs: coefficients, seeds, bounds, on the device.
        times: one (rows of network input,) tensor per stage: the model's time.
        opening: structure of row 0, which writes x into its slot and the network's first input.
        network_dtype: dtype of the network's input.
        direct: whether the slots themselves are the network's input (same dtype, in_scale = 1).
        history: how many earlier model values are kept.
        raw: whether the model value is the network's raw output, so that outputs themselves may be the history.
        noise: the user's own noise, or None.
        gradient: classifier gradient (u, t) -> tensor for the second stream, or None.
        probe: table and specs of the predicted x0, for hooks and dynamic thresholding.
        threshold: sets coeffs.lo, hi, scale from the predicted x0 (dynamic thresholding), or None.
        hooks: see `Hooks`.
    """

    program: tuple[Move, ...]
    plan: Plan
    backend: ModuleType
    network: Network
    coeffs: Coeffs
    times: list[torch.Tensor]
    opening: StageSpec
    network_dtype: torch.dtype
    direct: bool
    history: int
    raw: bool
    noise: Noise | None
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    probe: tuple[torch.Tensor, tuple[StageSpec, ...]] | None
    threshold: Callable[[torch.Tensor, Coeffs], None] | None
    hooks: Hooks


def run(r: Run, x: torch.Tensor) -> torch.Tensor:
    """Sample from `x` (B, ...), contiguous in the state's dtype, and return a fresh tensor. `x` is not changed."""
    model = r.network.model
    try:
        return _run(r, x, recycles(model), 0)
    except Recycled as found:
        remember(model)
        # All that was reported so far was right: nothing is reported twice.
        return _run(r, x, True, found.stage)


def _run(r: Run, x: torch.Tensor, copies: bool, quiet: int) -> torch.Tensor:
    """One pass over the stages; hooks are silent before stage `quiet`."""
    stage, coeffs, network, hooks = r.backend.stage, r.coeffs, r.network, r.hooks
    batch, guided = x.shape[0], network.guided
    wide = (2 * batch, *x.shape[1:]) if guided else x.shape
    apart = any(move.x != move.u or move.u_to != move.u or move.x_to is not None for move in r.program)
    slots = [torch.empty(wide if r.direct else x.shape, dtype=x.dtype, device=x.device) for _ in range(1 + apart)]
    state = [slot[:batch] for slot in slots] if guided and r.direct else slots
    shared = None if r.direct else torch.empty(wide, dtype=r.network_dtype, device=x.device)

    def write(buf: Buffers, spec: StageSpec, row: int, slot: int) -> None:
        """Run one stage whose u' goes to `slot`, and to the network's input where the spec says so."""
        if spec.copies:
            buf.net_in = shared if shared is not None else slots[slot]
        if not (spec.copies and r.direct):
            buf.u_out = state[slot]
        stage(spec, row, coeffs, buf)

    write(Buffers(x=x), r.opening, 0, 0)
    past = History(r.history, r.raw, copies)
    own = slots if shared is None else [*slots, shared]
    draws = _Draws(r.noise, r.program) if r.noise is not None else None
    last = len(r.program) - 1
    result = state[0]
    for k, move in enumerate(r.program):
        u, spec = state[move.u], move.spec
        buf = Buffers(x=state[move.x], u=u, h=tuple(past.values))
        if move.evaluate:
            full = slots[move.u] if shared is None else shared
            version = full._version
            out = network(full, r.times[k])
            if full._version != version:
                raise RuntimeError(
                    "the model changed its input in place, which the sampler still needs: let it work on a copy, "
                    "lambda x, t, **kw: model(x.clone(), t, **kw)"
                )
            if not out.is_contiguous():
                out = out.contiguous()
            if hooks.finite is not None and k >= quiet:
                hooks.finite(k, out)
            out = past.arrived(out, own, k)
            if guided:
                buf.out, buf.aux = out[:batch], out[batch:]
            else:
                buf.out = out
                if r.gradient is not None:
                    buf.aux = _gradient(r.gradient, u, r.times[k], out)
            if r.probe is not None:
                _observe(r, r.probe, move, buf, k >= quiet)
            if move.push:
                buf.m_out = past.slot(out, x)
        if draws is not None:
            buf.z = draws(move, u)
        if move.x_to is not None:
            buf.x_out = state[move.x_to]
        if k == last and guided and r.direct:
            # A fresh tensor, rather than half of a buffer that would stay alive with it.
            buf.u_out = torch.empty_like(x)
            stage(spec, move.row, coeffs, buf)
            result = buf.u_out
        else:
            write(buf, spec, move.row, move.u_to)
            result = state[move.u_to]
        if move.push:
            past.pushed(buf)
        if move.ends and hooks.progress is not None and k >= quiet:
            hooks.progress()
    return result


def _gradient(
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], u: torch.Tensor, t: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    grad = gradient(u.detach().clone(), t)
    if not isinstance(grad, torch.Tensor) or grad.shape != u.shape:
        got = tuple(grad.shape) if isinstance(grad, torch.Tensor) else type(grad).__name__
        raise ValueError(f"classifier_grad returned {got}, expected a tensor of x's shape {tuple(u.shape)}")
    return grad.detach().to(device=out.device, dtype=out.dtype).contiguous()


def _observe(
    r: Run, probe: tuple[torch.Tensor, tuple[StageSpec, ...]], move: Move, buf: Buffers, report: bool
) -> None:
    """Predicted x0 for the hooks and for dynamic thresholding: the same operation, run with the probe's row."""
    (values, specs), hooks, c, row = probe, r.hooks, r.coeffs, move.row
    record = report and move.begins and hooks.trajectory is not None
    call = report and hooks.callback is not None
    if not (record or call or r.threshold is not None):
        return
    u = buf.u
    assert u is not None
    x0 = torch.empty_like(u)
    r.backend.stage(specs[row], row, Coeffs(values, c.draws, c.seeds, c.index), Buffers(u=u, out=buf.out, aux=buf.aux, u_out=x0))
    if r.threshold is not None:
        r.threshold(x0, c)
    if c.lo is not None and c.hi is not None and c.scale is not None:
        column = (-1,) + (1,) * (x0.ndim - 1)
        x0 = torch.maximum(torch.minimum(x0, c.hi.reshape(column)), c.lo.reshape(column)) * c.scale.reshape(column)
    if record and hooks.trajectory is not None:
        hooks.trajectory.append((u.clone(), x0))
    if call and hooks.callback is not None:
        hooks.callback(row - 1, r.plan.stages[row - 1].t, u.clone(), x0)


class Recycled(Exception):
    """The network wrote into an output that the history still needed; `stage` is the first one that would have read it."""

    def __init__(self, stage: int) -> None:
        super().__init__(stage)
        self.stage = stage


RECYCLING: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models seen to return a buffer of theirs again: their outputs are copied into the history from the start."""


def recycles(model: Any) -> bool:
    try:
        return model in RECYCLING
    except TypeError:
        return False


def remember(model: Any) -> None:
    with contextlib.suppress(TypeError):
        RECYCLING.add(model)


class History:
    """Earlier model values, newest first. Where `raw`, the network's own outputs are kept, and no copy is written.

    Networks that replay graphs or engines of their own may return one buffer, or a few in turn. Their memory tells: an
    output whose storage is still in the history raises `Recycled`, and the run is repeated with copies.
    """

    def __init__(self, length: int, raw: bool, copies: bool) -> None:
        self.length, self.raw, self.copies = length, raw, copies or not raw
        self.values: list[torch.Tensor] = []
        self.storages: list[int] = []
        self.ring: list[torch.Tensor] = []

    def arrived(self, out: torch.Tensor, own: list[torch.Tensor], k: int) -> torch.Tensor:
        """Look at where a new output lies. Returns it, or a copy if it lies across the buffers of the loop."""
        storage = out.untyped_storage().data_ptr()
        if storage in self.storages:
            raise Recycled(k)
        for buffer in own:
            if buffer.data_ptr() == storage:
                self.copies = True
                return out if out.data_ptr() == storage else out.clone()
        return out

    def slot(self, out: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
        """Where the stage writes m, or None if the output itself is kept."""
        if not self.length or not self.copies:
            return None
        # The oldest value may be overwritten: every element is read before it is written.
        keep = self.values[: self.length - 1]
        for buffer in self.ring:
            if all(buffer is not v for v in keep):
                return buffer
        dtype = out.dtype if self.raw else like.dtype
        self.ring.append(torch.empty(like.shape, dtype=dtype, device=like.device))
        return self.ring[-1]

    def pushed(self, buf: Buffers) -> None:
        """The stage has run: its m is now h1."""
        value = buf.out if buf.m_out is None else buf.m_out
        if not self.length or value is None:
            return
        self.values.insert(0, value)
        self.storages.insert(0, 0 if buf.m_out is not None else value.untyped_storage().data_ptr())
        del self.values[self.length :], self.storages[self.length :]


class _Draws:
    """The user's own noise, asked for once per draw number and kept while a later stage needs it."""

    def __init__(self, noise: Noise, program: tuple[Move, ...]) -> None:
        self.noise = noise
        self.last = {d: k for k, move in enumerate(program) for d in move.draws if d >= 0}
        self.kept: dict[int, torch.Tensor] = {}

    def __call__(
        self, move: Move, like: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        z: list[torch.Tensor | None] = [None] * MAX_DRAWS
        for i, d in enumerate(move.draws):
            if d < 0:
                continue
            if d not in self.kept:
                value = self.noise(d, like.detach())
                if not isinstance(value, torch.Tensor) or value.shape != like.shape or value.device != like.device:
                    got = (tuple(value.shape), str(value.device)) if isinstance(value, torch.Tensor) else type(value).__name__
                    raise ValueError(
                        f"noise(draw, like) returned {got}; expected a tensor of shape {tuple(like.shape)} on {like.device}, such "
                        "as torch.randn_like(like)"
                    )
                self.kept[d] = value.to(like.dtype).contiguous()
            z[i] = self.kept[d]
            if self.last[d] == move.row - 1:
                del self.kept[d]
        return z[0], z[1], z[2]


def is_raw(table: Table, plan: Plan) -> bool:
    """Whether every model value that enters the history is the network's output as it came."""
    pushes = [table.specs[k + 1] for k, s in enumerate(plan.stages) if s.push]
    return all(spec.convert == RAW and not spec.guided for spec in pushes)
