"""The one loop: it walks a program around the network. No host synchronisation, no branch on a device value.

Where x and u live, when the history is written and which buffer is free are decided on the host, from the plan alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from fastdiff.bind import Move, Program
from fastdiff.guidance import Blend
from fastdiff.ops import Backend, Buffers, Coeffs, Kinds
from fastdiff.ops.layout import StageSpec
from fastdiff.run.corrections import corrected
from fastdiff.run.evaluate import Evaluator, Hooks, placed
from fastdiff.run.history import Draws, History, Noise, Recycled, lasts, recycles, remember, trust
from fastdiff.run.langevin import langevin_rows
from fastdiff.run.network import Network


@dataclass(slots=True)
class Run:
    """Everything that one run of the loop needs, prepared by the sampler.

    Attributes:
        program: the plan, bound, on the device.
        coeffs: coefficients, seeds, bounds.
        evaluator: what becomes of the network's outputs.
        network_dtype: dtype of the network's input.
        direct: whether the slots themselves are the network's input (same dtype, in_scale = 1).
        noise: the user's own noise, or None.
        echo: the rows that write x instead of u', for an x_t corrected by the user, or None.
        squares: (stages, B, chunks), where each stage leaves the sums of za's squares, or None.
        states: gets a copy of the state after each step, or None.
        note: told of a graph that replayed this run, or None.
        again: told of a run in the host's memory that went through by launches alone, or None.
    """

    program: Program
    coeffs: Coeffs
    evaluator: Evaluator
    network_dtype: torch.dtype
    direct: bool
    noise: Noise | None = None
    echo: Coeffs | None = None
    squares: torch.Tensor | None = None
    states: list[torch.Tensor] | None = None
    note: Callable[[Any, Run], None] | None = None
    again: Callable[[State], None] | None = None

    @property
    def network(self) -> Network:
        return self.evaluator.network

    @property
    def hooks(self) -> Hooks:
        return self.evaluator.hooks

    @property
    def backend(self) -> Backend:
        return self.evaluator.backend


class State:
    """A run between two network evaluations: the buffers, the history, and the stage that waits for an output.

    Attributes:
        k: the stage whose network evaluation is due; the number of stages when all is done.
        input: what the network is to be given, (B, ...) or (2·B, ...) under batched guidance, in its own dtype.
        time: the model's time for `input`, one per row; (2, rows) where it is given two (`Plan.two_times`).
        x: the latest state; the result at the end.
    """

    def __init__(self, r: Run, x: torch.Tensor, copies: bool = False, quiet: int = 0, watch: bool = False) -> None:
        self.r, self.k, self.quiet = r, 0, quiet
        r.evaluator.memory = {}
        self.evaluator, self.hooks, self.backend = r.evaluator, r.hooks, r.backend
        self.moves, self.sites, self.watches = r.program.moves, r.program.sites, r.hooks.watches
        self.batch, guided, program = x.shape[0], r.network.guided, r.program
        both = (2 * self.batch, *x.shape[1:]) if guided else x.shape
        apart = any(m.x != m.u or m.u_to != m.u or m.x_to is not None for m in program.moves)
        # Under guidance a slot that serves as the network's input holds both halves.
        self.slots = [
            torch.empty(both if r.direct else x.shape, dtype=x.dtype, device=x.device) for _ in range(1 + apart)
        ]
        self.halves = [slot.narrow(0, 0, self.batch) for slot in self.slots] if guided and r.direct else self.slots
        self.shared = None if r.direct else torch.empty(both, dtype=r.network_dtype, device=x.device)
        own = self.slots if self.shared is None else [*self.slots, self.shared]
        recorded = r.evaluator.recorded
        addresses = () if recorded else tuple(buffer.data_ptr() for buffer in own)
        # Each run has its own time tensors, since some networks scale them in place.
        self.times = program.clock.clone().unbind(0)
        # The user's noise and corrections may not be asked for twice, so such a run must never begin again.
        once = r.noise is not None or r.hooks.correct_x0 is not None or r.echo is not None
        own_copies = copies or once or recorded
        # Where nothing but the stage looks at the outputs, it is launched by addresses.
        quick = (
            not once
            and r.squares is None
            and r.states is None
            and not r.coeffs.inner
            and r.evaluator.quick(program.numbers is not None)
            and program.launches is not None
        )
        self.walker = getattr(r.backend, "walks", None) if quick else None
        self.walks: Callable[..., Any] | None = None
        self.kinds: Kinds | None = None
        self.walk: Any = None
        self.past = History(program.history, program.raw, own_copies, addresses, x.dtype, watch)
        self.draws = None if r.noise is None else Draws(r.noise, (m.draws for m in program.moves), r.hooks.finite)
        self._write(Buffers(x=x), program.opening, 0, r.coeffs, 0)
        self.x = self.halves[0]
        self._settle()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a State is a run under way, in the memory of this process, and cannot be pickled or copied: keep what it "
            "was begun with (the sampler, x or shape, seed), which gives the same sample, or the result, state.x"
        )

    def bare(self) -> State:
        """What `around` makes runs like this one from: without buffers, and without the model."""
        made: State = State.__new__(State)
        made.__dict__.update(self.__dict__, slots=[None] * len(self.slots), halves=[], times=(), walk=None)
        for name in ("past", "x", "input", "time"):
            made.__dict__.pop(name, None)
        made.shared = None if self.shared is None else self.shared.new_empty(0)
        made.r = replace(self.r, evaluator=self.evaluator.of(None, {}), note=None, again=None)
        made.evaluator = made.r.evaluator
        return made

    def around(
        self,
        walk: Any,
        r: Run,
        slots: list[torch.Tensor],
        shared: torch.Tensor | None,
        times: tuple[torch.Tensor, ...],
        ring: list[torch.Tensor],
    ) -> State:
        """The run of which `walk` did the beginning, from `bare` of another one like it."""
        made: State = State.__new__(State)
        made.__dict__.update(self.__dict__, r=r, evaluator=r.evaluator, walk=walk, shared=shared, times=times)
        made.slots = made.halves = slots
        own = slots if shared is None else [*slots, shared]
        places = tuple([buffer.data_ptr() for buffer in own])
        made.past = History(r.program.history, r.program.raw, False, places, slots[0].dtype)
        made.past.ring = ring
        made.caught_up()
        return made

    @property
    def done(self) -> bool:
        return self.k == len(self.moves)

    def _settle(self) -> None:
        """Run the stages that need no network, up to the next that does."""
        moves = self.moves
        while self.k < len(moves):
            move = moves[self.k]
            if not move.evaluate:
                self._finish(move, self._buffers(move), None)
                continue
            self.input = self.slots[move.u] if self.shared is None else self.shared
            self.time = self.times[self.k]
            evaluator = self.evaluator
            if evaluator.compared:
                evaluator.give(self.input)
            elif evaluator.keeps_input:
                evaluator.version = self.input._version
            return

    def _buffers(self, move: Move) -> Buffers:
        return Buffers(x=self.halves[move.x], u=self.halves[move.u], h=tuple(self.past.values))

    def step(self, out: torch.Tensor) -> None:
        """Take the network's output at `input`, and go on to the next evaluation.

        Raises TypeError or ValueError for an output that is no tensor of the input's shape and device.
        """
        if self.walk is not None and self.walk.take(out):
            self.caught_up()
        else:
            self.look_at(self.r.network.check(out, self.input))

    def _set_out(self) -> None:
        """From here on, stages are launched by addresses, as long as the outputs are like the last one."""
        evaluator, past = self.evaluator, self.past
        network = evaluator.admitted
        if self.walker is None or network is None or past.watch or evaluator.copy is not None:
            self.walk = None
            return
        kinds = network, past.kind(network), self.r.network_dtype
        if kinds != self.kinds:
            self.kinds, self.walk = kinds, None
            self.walks = self.walks_of(self.r.coeffs, self.halves[0].numel() // self.batch)
        if self.done:
            return
        if self.walk is None:
            assert self.walks is not None
            state = self.halves[0]
            # One slot stands for both where x and u never differ.
            tensors = state, self.halves[-1], self.slots[0], self.slots[-1], self.shared
            # A fresh result, rather than half of a buffer that would stay alive with it.
            fresh = partial(torch.empty_like, state) if self.r.direct and evaluator.guided else None
            self.walk = self.walks(tensors, past.buffers(state, network), self.times, fresh)
        self.walk.resume(self.k, self.x, past.kept())
        past.restore([])

    def walks_of(self, coeffs: Coeffs, n: int) -> Callable[..., Any]:
        """What makes this run's walk, with these coefficients; `n`: elements of a sample."""
        e, program = self.evaluator, self.r.program
        like = torch.Tensor, e.admitted, e.shape, e.device, e.nbytes
        assert self.walker is not None
        made: Callable[..., Any] = self.walker(
            coeffs, self.batch, n, self.kinds, program, like, program.history, e.guided, e.keeps_input
        )
        return made

    def caught_up(self) -> None:
        """Where the walk is now."""
        walk = self.walk
        self.k, self.x = walk.k, walk.x
        if not self.done:
            move = self.moves[self.k]
            self.input, self.time = self.slots[move.u] if self.shared is None else self.shared, self.times[self.k]

    def look_at(self, out: torch.Tensor) -> None:
        """A step whose output may be unlike the last, or is watched, corrected or changed on its way to the stage."""
        k, r = self.k, self.r
        move, site, evaluator, hooks = self.moves[k], self.sites[k], self.evaluator, self.hooks
        if self.walk is not None:
            evaluator.version = self.walk.version
            self.past.restore(self.walk.history())
        loud = k >= self.quiet
        out = evaluator.admit(out, self.input, site, loud)
        out = self.past.arrived(out, evaluator.storage, k)
        buf = self._buffers(move)
        records = calls = False
        if self.watches and loud:
            records, calls = hooks.trajectory is not None and move.begins, hooks.callback is not None
        blend, x0 = evaluator.read(out, buf, site, r.coeffs, records or calls)
        if x0 is not None and buf.u is not None:
            if records and hooks.trajectory is not None:
                hooks.trajectory.append((site.t, buf.u.clone(), x0.clone() if calls else x0))
            if calls and hooks.callback is not None:
                hooks.callback(k, site.t, buf.u.clone(), x0)
        if move.keep and buf.first is not None and buf.u is not None:
            buf.m_out = self.past.slot(buf.first, buf.u)
        self._finish(move, buf, blend)
        self._settle()
        self._set_out()

    def _finish(self, move: Move, buf: Buffers, blend: Blend | None) -> None:
        """Run the stage itself, and take it into account."""
        r, k = self.r, self.k
        if self.draws is not None and buf.u is not None:
            buf.z = self.draws(k, move.draws, buf.u)
        if move.x_to is not None:
            buf.x_out = self.halves[move.x_to]
        if r.squares is not None and move.spec.noises:
            buf.squares = r.squares.select(0, k)
        coeffs, row = r.coeffs, move.row
        if blend is not None:
            coeffs, row = placed(coeffs, row, blend)
        if move.langevin_norm:
            coeffs = langevin_rows(self.backend, move.spec, row, move.langevin_norm, move.draws[0], coeffs, buf)
            row = 0
        if k + 1 == len(self.moves) and r.direct and self.evaluator.guided:
            # A fresh tensor, rather than half of a buffer that would stay alive with it.
            buf.u_out = self.x = torch.empty_like(self.halves[0])
            self.backend.stage(move.spec, row, coeffs, buf)
        else:
            self._write(buf, move.spec, row, coeffs, move.u_to)
            self.x = self.halves[move.u_to]
        if move.keep:
            self.past.keep(buf.first, buf.m_out)
        if move.ends:
            if r.echo is not None:
                self._correct(move, r.echo)
            if r.states is not None:
                r.states.append(self.x.clone())
            if self.hooks.progress is not None and k >= self.quiet:
                self.hooks.progress(r.program.done[k])
        self.k = k + 1

    def _correct(self, move: Move, echo: Coeffs) -> None:
        """Use the user's x_t instead of the step's."""
        r, s = self.r, self.r.program.plan.stages[self.k]
        assert self.hooks.correct_xt is not None
        x = corrected("correct_xt", self.hooks.correct_xt(self.x.clone(), s.t_next, s.step + 1), self.x)
        if move.row == len(self.moves):
            self.x = x.clone()
        else:
            self._write(Buffers(x=x), r.program.opening._replace(copies=move.spec.copies), move.row, echo, move.u_to)

    def _write(self, buf: Buffers, spec: StageSpec, row: int, coeffs: Coeffs, slot: int) -> None:
        """Run a stage whose u' goes to `slot`, and to the network's input where the spec says so."""
        if spec.copies:
            buf.net_in = self.slots[slot] if self.shared is None else self.shared
        if not (spec.copies and self.shared is None):
            buf.u_out = self.halves[slot]
        self.backend.stage(spec, row, coeffs, buf)


def run(r: Run, x: torch.Tensor) -> torch.Tensor:
    """Sample from `x` (B, ...), contiguous in the state's dtype, and return a fresh tensor. `x` is not changed."""
    model, length = r.network.model, r.program.history
    if r.evaluator.recorded:
        return _run(r, x, True, 0)
    copies = recycles(model)
    try:
        state = walked(State(r, x, copies, watch=not copies and not lasts(model, length)))
    except Recycled as found:
        remember(model)
        # All that was reported so far was right: nothing is reported twice.
        return _run(r, x, True, found.stage)
    if state.past.watch:
        if state.past.reused:
            remember(model)
        elif state.past.lasting:
            trust(model, length)
    known = not (state.past.watch or r.evaluator.compared or copies)
    if r.again is not None and known and state.walks is not None and x.device.type == "cpu":
        r.again(state)
    r.evaluator.complete()
    return state.x


def _run(r: Run, x: torch.Tensor, copies: bool, quiet: int) -> torch.Tensor:
    """One pass over the stages; hooks are silent before stage `quiet`."""
    return walked(State(r, x, copies, quiet)).x


def walked(state: State) -> State:
    """The state after all its stages."""
    network, lends = state.r.network, state.evaluator.lends
    call = network.raw
    while not state.done:
        if state.walk is None:
            try:
                out = call(state.input if lends else state.input.clone(), state.time)
            except TypeError as error:
                raise network.explained(network.model, error) from error
            state.look_at(network.check(out, state.input))
            # As below.
            del out
            continue
        try:
            out = state.walk.run(call)
        except TypeError as error:
            raise network.explained(network.model, error) from error
        state.caught_up()
        if not state.done:
            state.look_at(network.check(out, state.input))
        # Else it would outlive its place in the history.
        del out
    return state
