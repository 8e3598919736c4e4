"""The one loop: it walks a bound plan around the network. No host synchronisation, no branch on a device value.

Where x and u live, when the history is written and which buffer is free are decided here, on the host, from the plan
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch

from fastdiff.corrections import CorrectX0, CorrectXt, corrected
from fastdiff.history import Draws, History, Noise, Recycled, recycles, remember
from fastdiff.langevin import rescaled
from fastdiff.network import Network
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.plan import AUX, IDENTITY, Plan
from fastdiff.table import RAW, StageSpec, Table


class Move(NamedTuple):
    """One stage as the loop runs it: the table row, its structure, and the slots (0 or 1) of x, u and their
    successors."""

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
    norms: str = ""


def moves(plan: Plan, table: Table) -> tuple[Move, ...]:
    """Where every stage finds and leaves x and u, with two slots and no copies.

    x and u share a slot until a stage tells them apart; a stage that keeps x sends u to the other slot; a stage whose
    next_u and next_x are equal brings them together again.
    """
    result = []
    x = u = 0
    begun = None
    stages = plan.stages
    for k, stage in enumerate(stages):
        u_to, x_to = u, None
        if stage.next_u == stage.next_x:
            after = u
        elif stage.next_x == IDENTITY:
            u_to, after = (u if u != x else 1 - u), x
        else:
            after = x_to = x if u != x else 1 - u
        # The first evaluation of its step: churn may open a step with a stage that has none. Or one that ends a step
        # and is kept, for the next step to begin with: a corrector's, in a stage of its own.
        begins = stage.evaluate and (stage.step != begun or (stage.push and stage.t_next == stage.t))
        begun = stage.step if stage.evaluate else begun
        ends = k + 1 == len(stages) or stages[k + 1].step != stage.step
        spec = table.specs[k + 1]
        result.append(
            Move(k + 1, spec, stage.evaluate, stage.push, x, u, u_to, x_to, begins, ends, stage.draws, stage.norms)
        )
        x, u = after, u_to
    return tuple(result)


@dataclass(slots=True)
class Hooks:
    """What a run reports while it goes; everything optional, nothing costs when absent."""

    progress: Callable[[], None] | None = None
    callback: Callable[[int, float, torch.Tensor, torch.Tensor], None] | None = None
    trajectory: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    finite: Callable[[int, torch.Tensor], None] | None = None
    correct_x0: CorrectX0 | None = None
    correct_xt: CorrectXt | None = None


@dataclass(slots=True)
class Run:
    """Everything that one run of the loop needs, prepared by the sampler.

    Attributes:
        program: the stages, from `moves`.
        plan: for the times that hooks report.
        backend: the module whose `stage` runs them.
        network: the adapted model.
        coeffs: coefficients, seeds, bounds, on the device.
        clock: (stages, rows of network input): the model's times.
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
        echo: the rows that write x in the place of u', for an x_t corrected by the user, or None.
    """

    program: tuple[Move, ...]
    plan: Plan
    backend: ModuleType
    network: Network
    coeffs: Coeffs
    clock: torch.Tensor
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
    echo: Coeffs | None = None


class State:
    """A run between two network evaluations: the buffers, the history, and the stage that waits for an output.

    Attributes:
        k: the stage whose network evaluation is due; the number of stages when all is done.
        input: what the network is to be given, (B, ...) or (2·B, ...) under batched guidance, in its own dtype.
        time: the model's time for `input`, one per row.
        x: the latest state; the result at the end.
    """

    def __init__(self, r: Run, x: torch.Tensor, copies: bool = False, quiet: int = 0) -> None:
        self.r, self.k, self.quiet = r, 0, quiet
        self.batch, guided = x.shape[0], r.network.guided
        wide = (2 * self.batch, *x.shape[1:]) if guided else x.shape
        apart = any(m.x != m.u or m.u_to != m.u or m.x_to is not None for m in r.program)
        # Under guidance a slot that serves as the network's input holds both halves.
        self.slots = [
            torch.empty(wide if r.direct else x.shape, dtype=x.dtype, device=x.device) for _ in range(1 + apart)
        ]
        self.halves = [slot.narrow(0, 0, self.batch) for slot in self.slots] if guided and r.direct else self.slots
        self.shared = None if r.direct else torch.empty(wide, dtype=r.network_dtype, device=x.device)
        self.own = self.slots if self.shared is None else [*self.slots, self.shared]
        # A run of its own time tensors, since networks scale them in place.
        self.times = r.clock.clone().unbind(0)
        # Own noise and corrections may not be asked for twice, so such a run must never begin anew.
        once = r.noise is not None or r.hooks.correct_x0 is not None or r.echo is not None
        self.past = History(r.history, r.raw, copies or once)
        self.dtype: torch.dtype | None = None
        self.draws = None if r.noise is None else Draws(r.noise, (m.draws for m in r.program))
        self._write(Buffers(x=x), r.opening, 0, r.coeffs, 0)
        self.x = self.halves[0]
        self._settle()

    @property
    def done(self) -> bool:
        return self.k == len(self.r.program)

    def _settle(self) -> None:
        """Run the stages that need no network, up to the next that does."""
        program = self.r.program
        while self.k < len(program) and not program[self.k].evaluate:
            self._finish(program[self.k], self._buffers(program[self.k]))
        if self.k < len(program):
            self.input = self.slots[program[self.k].u] if self.shared is None else self.shared
            self.time = self.times[self.k]
            self.version = self.input._version

    def _buffers(self, move: Move) -> Buffers:
        return Buffers(x=self.halves[move.x], u=self.halves[move.u], h=tuple(self.past.values))

    def step(self, out: torch.Tensor) -> None:
        """Take the network's output at `input`, and go on to the next evaluation. `out` has the shape of `input`."""
        r, k = self.r, self.k
        move = r.program[k]
        # A cast copy is written anew for every evaluation; the state itself is not.
        if self.shared is None and self.input._version != self.version:
            raise RuntimeError(
                "the model changed its input in place, which the sampler still needs: let it work on a copy, "
                "lambda x, t, **kw: model(x.clone(), t, **kw)"
            )
        if out.dtype is not self.dtype:
            self._admit(out.dtype)
        if not out.is_contiguous():
            out = out.contiguous()
        loud = k >= self.quiet
        if r.hooks.finite is not None and loud:
            r.hooks.finite(k, out)
        out = self.past.arrived(out, self.own, k)
        buf = self._buffers(move)
        if r.network.guided:
            buf.out, buf.aux = out.narrow(0, 0, self.batch), out.narrow(0, self.batch, self.batch)
        else:
            buf.out = out
            if r.gradient is not None:
                assert buf.u is not None
                # The network may have scaled its own times in place.
                buf.out, buf.aux = _gradient(r.gradient, buf.u, r.clock[k].clone(), out)
        if r.probe is not None:
            _observe(r, r.probe, move, buf, loud)
        if move.push:
            assert buf.u is not None
            buf.m_out = self.past.slot(buf.out, buf.u)
        self._finish(move, buf)
        self._settle()

    def _admit(self, dtype: torch.dtype) -> None:
        slot = self.slots[0]
        ok, why = self.r.backend.supports(slot.device, slot.dtype, dtype)
        if not ok:
            raise TypeError(
                f"the model returned {dtype}, which the back end {self.r.backend.NAME!r} does not read: {why}; cast "
                "it, lambda x, t, **kw: model(x, t, **kw).float()"
            )
        self.dtype = dtype

    def _finish(self, move: Move, buf: Buffers) -> None:
        """Run the stage itself, and take it into account."""
        r, k = self.r, self.k
        if self.draws is not None and buf.u is not None:
            buf.z = self.draws(k, move.draws, buf.u)
        if move.x_to is not None:
            buf.x_out = self.halves[move.x_to]
        coeffs, row = r.coeffs, move.row
        if move.norms:
            coeffs, row = rescaled(r.backend, move.spec, row, move.norms, move.draws[0], coeffs, buf), 0
        if k + 1 == len(r.program) and r.network.guided and r.direct:
            # A fresh tensor, rather than half of a buffer that would stay alive with it.
            buf.u_out = self.x = torch.empty_like(self.halves[0])
            r.backend.stage(move.spec, row, coeffs, buf)
        else:
            self._write(buf, move.spec, row, coeffs, move.u_to)
            self.x = self.halves[move.u_to]
        if move.push:
            self.past.pushed(buf)
        if move.ends and r.echo is not None:
            self._correct(move, r.echo)
        if move.ends and r.hooks.progress is not None and k >= self.quiet:
            r.hooks.progress()
        self.k = k + 1

    def _correct(self, move: Move, echo: Coeffs) -> None:
        """Put the user's x_t in the place of the step's."""
        r, s = self.r, self.r.plan.stages[move.row - 1]
        assert r.hooks.correct_xt is not None
        x = corrected("correct_xt", r.hooks.correct_xt(self.x.clone(), s.t_next, s.step + 1), self.x)
        if move.row == len(r.program):
            self.x = x.clone()
        else:
            self._write(Buffers(x=x), r.opening._replace(copies=move.spec.copies), move.row, echo, move.u_to)

    def _write(self, buf: Buffers, spec: StageSpec, row: int, coeffs: Coeffs, slot: int) -> None:
        """Run a stage whose u' goes to `slot`, and to the network's input where the spec says so."""
        if spec.copies:
            buf.net_in = self.slots[slot] if self.shared is None else self.shared
        if not (spec.copies and self.shared is None):
            buf.u_out = self.halves[slot]
        self.r.backend.stage(spec, row, coeffs, buf)


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
    state, network, last = State(r, x, copies, quiet), r.network, len(r.program)
    while state.k < last:
        state.step(network(state.input, state.time))
    return state.x


def _gradient(
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], u: torch.Tensor, t: torch.Tensor, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's output and the gradient, in the wider dtype of the two."""
    # The loop runs without gradients, which a classifier's needs.
    with torch.enable_grad():
        grad = gradient(u.detach().clone(), t)
    if not isinstance(grad, torch.Tensor) or grad.shape != u.shape:
        got = tuple(grad.shape) if isinstance(grad, torch.Tensor) else type(grad).__name__
        raise ValueError(f"classifier_grad returned {got}, expected a tensor of x's shape {tuple(u.shape)}")
    wider = torch.promote_types(out.dtype, grad.dtype)
    return out.to(wider), grad.detach().to(device=out.device, dtype=wider).contiguous()


def _observe(r: Run, probe: tuple[torch.Tensor, tuple[StageSpec, ...]], move: Move, buf: Buffers, report: bool) -> None:
    """Predicted x0 for the hooks and for dynamic thresholding: the same operation, run with the probe's row."""
    (values, specs), hooks, c, row = probe, r.hooks, r.coeffs, move.row
    record = report and move.begins and hooks.trajectory is not None
    call = report and hooks.callback is not None
    if not (record or call or r.threshold is not None or hooks.correct_x0 is not None):
        return
    u = buf.u
    assert u is not None
    x0 = torch.empty_like(u)
    r.backend.stage(
        specs[row], row, Coeffs(values, c.draws, c.seeds, c.index), Buffers(u=u, out=buf.out, aux=buf.aux, u_out=x0)
    )
    if hooks.correct_x0 is not None:
        x0 = corrected("correct_x0", hooks.correct_x0(x0, r.plan.stages[row - 1].t), u)
        _replace(move.spec, buf, x0)
        # The stage has yet to read it, and the user may write into it again.
        x0 = x0.clone() if record or call else x0
    if r.threshold is not None:
        r.threshold(x0, c)
    if c.lo is not None and c.hi is not None and c.scale is not None:
        column = (-1,) + (1,) * (x0.ndim - 1)
        x0 = torch.maximum(torch.minimum(x0, c.hi.reshape(column)), c.lo.reshape(column)) * c.scale.reshape(column)
    if record and hooks.trajectory is not None:
        hooks.trajectory.append((u.clone(), x0.clone() if call else x0))
    if call and hooks.callback is not None:
        hooks.callback(row - 1, r.plan.stages[row - 1].t, u.clone(), x0)


def _replace(spec: StageSpec, buf: Buffers, x0: torch.Tensor) -> None:
    """Let the stage, which is bound to the prediction of x0, read the corrected one in the place of the network's
    output."""
    assert buf.out is not None
    # Beside x0, the second half of the channels still tells the variance.
    buf.out = torch.cat([x0, buf.out.chunk(2, dim=1)[1].to(x0.dtype)], dim=1) if spec.spread else x0
    buf.aux = buf.aux.to(x0.dtype) if buf.aux is not None and spec.mask >> AUX & 1 else None


def is_raw(table: Table, plan: Plan) -> bool:
    """Whether every model value that enters the history is the network's output as it came."""
    pushes = [table.specs[k + 1] for k, s in enumerate(plan.stages) if s.push]
    return all(spec.convert == RAW and not spec.guided and not spec.spread for spec in pushes)
