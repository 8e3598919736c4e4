"""A request as the engine runs it: in the joint launch, or with a stage of its own beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from fastdiff.engine.batch import Batch
from fastdiff.engine.joint import Joint
from fastdiff.engine.request import Preview, Request
from fastdiff.engine.seats import Key
from fastdiff.engine.table import IDLE
from fastdiff.guidance import Guidance
from fastdiff.ops.layout import StageSpec
from fastdiff.options import RUN_DEFAULTS
from fastdiff.run.arguments import resolve_seeds
from fastdiff.run.evaluate import Hooks
from fastdiff.run.job import Bounds, Job, begin, draw_start
from fastdiff.run.loop import State
from fastdiff.run.network import Network
from fastdiff.run.planned import PlanEngine
from fastdiff.run.threshold import Dynamic
from fastdiff.sampler import Sampler

FREE = (float("-inf"), float("inf"))
"""The bounds of an x0 that is not clipped."""


def needs_own_stage(joint: Joint, bounds: Bounds, arguments: dict[str, Any], history: int) -> str | None:
    """Why a request's rows cannot stand in the joint launch, which has no norms, no selection and no host's work
    between its evaluation and its stage; or None."""
    form: Guidance = joint.binding.guidance
    if any(s.langevin_norm for s in joint.plan.stages):
        return "Langevin steps, whose coefficients are norms"
    if isinstance(bounds, Dynamic):
        return "dynamic thresholding"
    if form.blends or form.reverses or form.gradient is not None:
        return f"guidance {type(form).__name__}"
    for name in ("noise", "correct_x0", "correct_xt"):
        if arguments[name] is not None:
            return f"{name}=..."
    if joint.history > history:
        return f"a history of {joint.history} evaluations, and the engine keeps {history}"
    return None


class Mix(NamedTuple):
    """What a request adds to the joint launch.

    Attributes:
        spec: the union of its rows'.
        history: as of `Joint`.
        shows: whether its previews are made of rows in the table.
    """

    spec: StageSpec
    history: int
    shows: bool


@dataclass(eq=False)
class Run:
    """What the engine knows of a request.

    Attributes:
        sampler, engine: of its method.
        joint: its bound rows.
        alone: why its stages run by themselves, or None.
        cond, uncond: of the two halves.
        arguments: of `Engine.submit`.
        slot: its place in the batch's memory.
        partner: the row of the network's input with its unconditional half.
        order: minus its priority, and its number.
        since: the engine's ticks when it was submitted.
        ready: when what it was given is on the device.
        likeness: what its conditions must share with others'.
        block: its first row in the device's table.
        next: its rows with other guidance, from the next tick on.
        guided: whether it takes two rows of the network's input.
        plain: whether nothing is to be done for it between two ticks.
        mix: None where its stages run by themselves.
        scales: whether the network's input is other than u.
        key: of its seat.
        urgency: what its turn is judged by, while it does not run.
    """

    request: Request
    sampler: Sampler
    engine: PlanEngine
    joint: Joint
    bounds: Bounds
    alone: str | None
    cond: dict[str, Any]
    uncond: dict[str, Any] | None
    arguments: dict[str, Any]
    previews: bool
    order: tuple[int, int]
    since: int
    likeness: object
    slot: int = 0
    ready: torch.cuda.Event | None = None
    partner: int = 0
    block: int = IDLE
    next: Joint | None = None
    state: State | None = None
    result: torch.Tensor | None = None
    seen: list[Preview] = field(default_factory=list)
    guided: bool = field(init=False)
    plain: bool = field(init=False)
    mix: Mix | None = field(init=False)
    scales: bool = field(init=False)
    key: Key = field(init=False)
    urgency: tuple[int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._bind(self.joint)
        self.plain = self.alone is None and not self.previews and self.request.nfe == len(self.joint.plan.stages)
        self.scales = self.alone is not None or self.joint.scaled
        seed, index = resolve_seeds(self.arguments["seed"], self.arguments["first_sample"], 1, torch.device("cpu"))
        self.key = int(seed), int(index), *(self.bounds if isinstance(self.bounds, tuple) else FREE)

    @property
    def at(self) -> int:
        """How many evaluations are done."""
        return self.request.count

    @property
    def row(self) -> int:
        """The table's row of the next evaluation."""
        return self.block + self.joint.evaluated[self.request.count]

    @property
    def over(self) -> bool:
        """Whether its slot is free: its sample is made, it failed, or was cancelled."""
        return self.result is not None or self.request.ended

    def renew(self) -> None:
        """Take the guidance that was asked for, if any was."""
        if self.next is not None:
            self._bind(self.next)
            self.next = None

    def _bind(self, joint: Joint) -> None:
        self.joint, self.guided = joint, joint.binding.guidance.batched
        self.mix = None if self.alone is not None else Mix(joint.spec, joint.history, self.previews)

    @property
    def width(self) -> int:
        """Rows of the network's input, now or with the guidance that is to come."""
        return 1 + (self.guided or (self.next is not None and self.next.binding.guidance.batched))

    @property
    def size(self) -> int:
        """Rows of the table: previews have theirs after the stages'."""
        return len(self.joint.block.values) * (1 + self.shows)

    @property
    def shows(self) -> bool:
        """Whether previews are made of rows in the table."""
        return self.mix is not None and self.previews

    def place(self, batch: Batch) -> None:
        """Write its rows into its block."""
        joint, table = self.joint, batch.table
        table.place(self.block, joint.block if self.alone is None else joint.held)
        if self.shows:
            table.write(self.block + len(joint.block.values), joint.observed[0])

    def rewrite(self, batch: Batch) -> None:
        """Other guidance: the same rows with other coefficients."""
        joint = self.joint
        batch.table.write(self.block, joint.block.values)
        if self.shows:
            batch.table.write(self.block + len(joint.block.values), joint.observed[0])

    def enter(self, batch: Batch, model: Any) -> None:
        """Begin in its slot, up to the first evaluation."""
        joint, x, slot = self.joint, self.arguments["x"], batch.slot(self.slot)
        if self.alone is None:
            if x is None:
                draw_start(self.engine, batch.backend, slot.x, slot.coeffs.seeds, slot.coeffs.index)
            else:
                slot.x.copy_(x)
            batch.begin(self.slot)
            if joint.opens:
                batch.run(self.slot, self.block, joint.specs[0], 0, joint.history)
            self._settle(batch, 0)
            return
        given = {**RUN_DEFAULTS, **self.arguments, "device": slot.x.device}
        like = tuple(slot.x.shape), given, slot.x.dtype, batch.backend.NAME, None, batch.given.dtype
        start = begin(self.engine, x, *like)
        slot.x.copy_(start.x)
        batch.begin(self.slot)
        network = Network(model, 1, learned=joint.plan.learned_variance)
        network.guided = self.guided
        hooks = Hooks(
            callback=self._callback if self.previews else None,
            correct_x0=self.arguments["correct_x0"],
            correct_xt=self.arguments["correct_xt"],
        )
        self.state = self.engine.state(Job(start, network, batch.given.dtype, joint.binding, self.bounds, hooks))
        slot.given.copy_(self.state.input[:1])

    def advance(self, batch: Batch) -> None:
        """After a tick that was counted: what is left of the stage, the predicted x0, the sample. May raise what the
        caller's functions do."""
        at, done, slot = self.at, self.at == self.request.nfe, batch.slot(self.slot)
        if self.plain:
            if done:
                self.result = slot.out.clone()
            return
        row = self.joint.evaluated[at - 1]
        if not done and self.row != self.block + row + 1:
            batch.seats.go_to(self.slot, self.row)
        if self.alone is None:
            if self.previews:
                values, specs = self.joint.observed
                x0 = batch.observe(self.slot, self.partner, self.block + len(values) + row, specs[row])
                self._show(self.joint.plan.stages[row - 1].t, x0[0])
            self._settle(batch, row)
            if done:
                self.result = slot.out.clone()
            return
        assert self.state is not None and batch.out is not None
        self.state.step(self._output(batch))
        # Where the engine looks for values that are not finite.
        slot.u.copy_(self.state.x)
        if self.state.done:
            self.result = self.state.x[0]
        else:
            slot.given.copy_(self.state.input[:1])
        for preview in self.seen:
            self.request.shown(preview)
        self.seen.clear()

    def _output(self, batch: Batch) -> torch.Tensor:
        """The network's output for this request, (1, ...) or both halves."""
        assert batch.out is not None
        rows = [batch.out[self.slot : self.slot + 1]]
        if self.guided:
            rows.append(batch.out[self.partner : self.partner + 1])
        out = torch.cat(rows)
        channels = batch.x.shape[1]
        # Of a network with a learned variance, other methods read the prediction alone.
        return out if self.joint.plan.learned_variance or out.shape[1:] == batch.x.shape[1:] else out[:, :channels]

    def _settle(self, batch: Batch, row: int) -> None:
        """The stages after `row` that need no network, up to the next that does."""
        stages, specs = self.joint.plan.stages, self.joint.specs
        while row < len(stages) and not stages[row].evaluate:
            row += 1
            batch.run(self.slot, self.block + row, specs[row], self.at, self.joint.history)

    def _callback(self, stage: int, t: float, x: torch.Tensor, x0: torch.Tensor) -> None:
        self.seen.append(Preview(self.at, self.request.nfe, t, x0[0]))

    def _show(self, t: float, x0: torch.Tensor) -> None:
        self.request.shown(Preview(self.at, self.request.nfe, t, x0))
