"""The engine of methods with a plan: the table, bound and kept on its devices, and the loop around the network."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch

from fastdiff.bind import Binding, Program, echo_rows, program, program_of_frames
from fastdiff.names import constant, untraced
from fastdiff.ops import Coeffs, tracing
from fastdiff.plan import Frames, Plan, Stage
from fastdiff.run.compiled import Parts, Shelf, joined, parts
from fastdiff.run.corrections import check_corrections
from fastdiff.run.graph import execute
from fastdiff.run.job import Job
from fastdiff.run.loop import Run, State
from fastdiff.run.report import Info, Trajectory, progress_bar
from fastdiff.run.threshold import Dynamic

_KEPT = 16
_OF_PLAN = tuple(name for name, value in vars(Plan).items() if isinstance(value, cached_property))
_COMPARED = 3
"""Inputs of a loop of the caller's own that are compared with a copy: the network is not known there."""


class _Placed(NamedTuple):
    """Frames, which are equal if they are the same object, and the shape of x."""

    frames: Frames
    shape: tuple[int, ...]


class PlanEngine:
    """A plan, ready to run on any model, from any thread.

    Args:
        dtype: of the state.
    """

    def __init__(self, plan: Plan, dtype: torch.dtype) -> None:
        self.plan, self.dtype, self.name = plan, dtype, plan.method
        self.programs: dict[tuple[Any, ...], Program] = {}
        self.compiled = Shelf()
        """The programs of compiled graphs."""

    @untraced
    def settle(self) -> None:
        """Make what the plan keeps of itself: a compiler cannot enter the lock of Python 3.11's cached properties."""
        for name in _OF_PLAN:
            getattr(self.plan, name)

    @property
    def first(self) -> Stage:
        return self.plan.stages[0]

    @property
    def prior_std(self) -> float:
        return self.plan.prior_std

    def check(self, arguments: Mapping[str, Any], has_x: bool) -> None:
        if arguments["return_info"]:
            raise ValueError(
                f"return_info goes with adaptive methods: what method {self.name!r} does is known before, in "
                f"Sampler.plan ({self.plan.nfe} network evaluations)"
            )
        check_corrections(self.plan, arguments["correct_x0"], arguments["correct_xt"])

    def run(self, job: Job) -> tuple[torch.Tensor, Trajectory | None, Info | None]:
        r, hooks, start = self.prepare(job), job.hooks, job.start.x
        total, unit = r.program.done[-1], "step" if job.frames is None else "evaluation"
        bar = progress_bar(hooks, self.name, total, unit) if job.progress else contextlib.nullcontext()
        with bar:
            result = execute(r, start, job.graph, job.out)
        if hooks.trajectory is None:
            return result, None, None
        _, states, predicted = zip(*hooks.trajectory, strict=True)
        times = torch.from_numpy(r.program.times).to(start.device)
        return result, Trajectory(times, torch.stack([start, *states[1:], result]), torch.stack(predicted)), None

    def state(self, job: Job) -> State:
        """A run whose loop is the caller's."""
        # The outputs are the caller's, who may write into them again: the history gets copies.
        r = self.prepare(job)
        r.evaluator.compared = min(r.evaluator.compared, _COMPARED)
        return State(r, job.start.x, copies=True)

    def prepare(self, job: Job) -> Run:
        """Everything that the loop needs."""
        start, guided = job.start, job.network.guided
        direct = job.network_dtype == self.dtype and all(s.in_scale == 1.0 for s in self.plan.stages)
        frames = None if job.frames is None else _Placed(job.frames, tuple(start.x.shape))
        if frames is not None and isinstance(job.bounds, Dynamic):
            raise ValueError(
                "clip='dynamic' takes a quantile of each whole sample, whose frames have times of their own: give "
                "fixed bounds, clip=(-1.0, 1.0)"
            )
        bound = self._bind(
            job.binding,
            frames,
            # Tables that are made while operations are recorded are fake themselves, and of no use afterwards.
            not tracing(),
            len(start.x),
            copies=2 if guided else int(not direct),
            rows=len(start.x) * (1 + guided),
            observed=job.observed,
            path=start.path,
            network_dtype=job.network_dtype,
            device=start.x.device,
        )
        coeffs = Coeffs(bound.values, bound.draws, start.seeds, start.index, rows=bound.rows, inner=bound.inner)
        echo = None
        if job.hooks.correct_xt is not None:
            echo = Coeffs(echo_rows(bound.values), bound.draws, start.seeds, start.index)
        evaluator = job.evaluator(coeffs, direct)
        return Run(
            bound, coeffs, evaluator, job.network_dtype, direct, start.noise, echo, note=job.note, again=job.again
        )

    def _bind(self, binding: Binding, frames: _Placed | None, keep: bool, batch: int, **where: Any) -> Program:
        """The plan bound and on the device; kept, since a sampler is mostly called with the same arguments."""
        if torch.compiler.is_dynamo_compiling():
            given = binding.prediction, binding.clip, binding.corrected
            shape, own = (None, None) if frames is None else (frames.shape, frames.frames)
            where["rows"] = constant(where["rows"])
            name = self._bind_untraced(given, parts(binding.guidance), own, shape, constant(batch), **where)
            return getattr(self.compiled, name)
        return self._bind_eager(binding, frames, keep, batch, **where)

    def _bind_eager(self, binding: Binding, frames: _Placed | None, keep: bool, batch: int, **where: Any) -> Program:
        def bound() -> Program:
            if frames is None:
                return program(self.plan, binding, batch=batch, dtype=self.dtype, **where)
            return program_of_frames(self.plan, binding, *frames, dtype=self.dtype, **where)

        if not keep:
            return bound()
        key = (
            binding.prediction,
            binding.guidance.key,
            binding.clip,
            binding.corrected,
            frames,
            batch,
            *where.values(),
        )
        found = self.programs.get(key)
        if found is None:
            found = bound()
            if len(self.programs) >= _KEPT:
                self.programs.clear()
            self.programs[key] = found
        return found

    @untraced
    def _bind_untraced(
        self,
        given: tuple[str, bool, bool],
        form: Parts,
        frames: Frames | None,
        shape: tuple[int, ...] | None,
        batch: int,
        **where: Any,
    ) -> str:
        """The name in `compiled` of what `_bind` gives."""
        prediction, clip, corrected = given
        binding = Binding(prediction, joined(form), clip, corrected)
        with torch.inference_mode(False), torch.no_grad():
            placed = None if frames is None or shape is None else _Placed(frames, tuple(shape))
            found = self._bind_eager(binding, placed, True, batch, **where)
        # What is looked up lazily is looked up here, for the sake of the compiler.
        assert found.sites is not None and (found.launches is None or found.launches)
        return self.compiled.put(found)
