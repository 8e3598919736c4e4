"""The driver of adaptive methods: trial steps by the fused operation, and the next step from their error.

The rows of a trial are computed in float64 on the host, uploaded together, and run around the network as the stages of
a plan are. With one step for the batch a row serves all samples; with `control="sample"` every sample is at a row, a
time and a step of its own, and one that has arrived waits for the others. Each trial synchronises once, to read the
error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fastdiff.bind import Binding, Site, clock_dtype, in_range
from fastdiff.guidance import Blend
from fastdiff.names import warn
from fastdiff.ops import Backend, Buffers, Coeffs
from fastdiff.ops.layout import StageSpec
from fastdiff.ops.sums import lengths
from fastdiff.plan import Stage
from fastdiff.run.evaluate import Evaluator, Hooks, placed
from fastdiff.run.lanes import Lane, lane_numbers, stage_rows, x0_rows
from fastdiff.run.network import Network
from fastdiff.run.report import Info
from fastdiff.schedules import Point
from fastdiff.solvers.embedded import Embedded


class Driver:
    """One run of an adaptive method.

    Args:
        method: the method, bound to its times.
        evaluator: what becomes of the network's outputs.
        network_dtype: of the network's input.
        coeffs: seeds, indices and bounds; its table is replaced at every trial.
        x: (B, ...) the start, contiguous in the state's dtype; not changed.
    """

    def __init__(
        self, method: Embedded, evaluator: Evaluator, network_dtype: torch.dtype, coeffs: Coeffs, x: torch.Tensor
    ) -> None:
        self.method, self.evaluator, self.coeffs, self.batch = method, evaluator, coeffs, len(x)
        self.each = method.control == "sample"
        self.lanes = [Lane(method.start, times=[method.start.t]) for _ in range(self.batch if self.each else 1)]
        self.halves = 1 + self.network.guided
        direct = network_dtype == x.dtype and not self.network.guided
        self.copies = 0 if direct else self.halves
        self.x, self.u, self.error = x.clone(), torch.empty_like(x), torch.empty_like(x)
        self.shared: torch.Tensor | None = None
        if not direct:
            self.shared = torch.empty((self.halves * self.batch, *x.shape[1:]), dtype=network_dtype, device=x.device)
        self.clock = clock_dtype(network_dtype)
        self.values = [torch.empty_like(x)]
        self.spare: list[torch.Tensor] = []
        self.lower: torch.Tensor | None = None
        self.nfe = 0
        self.warned = False
        lanes = torch.arange(len(self.lanes), dtype=torch.int32, device=x.device)
        self.row_sets = [lanes + k * len(self.lanes) for k in range(8)] if self.each else []

    @property
    def network(self) -> Network:
        return self.evaluator.network

    @property
    def backend(self) -> Backend:
        return self.evaluator.backend

    @property
    def hooks(self) -> Hooks:
        return self.evaluator.hooks

    @property
    def binding(self) -> Binding:
        return self.evaluator.binding

    def run(self) -> torch.Tensor:
        """The result: a tensor of its own. `info` gives the rest."""
        method = self.method
        self.first_value([True] * len(self.lanes))
        self.report()
        end = method.position(method.stop)
        self.first_steps(end)
        while not all(lane.done for lane in self.lanes):
            self.trial(end)
        if method.clean is not None:
            self.single([method.denoise(lane.at) for lane in self.lanes], self.x)
            for lane in self.lanes:
                lane.times.append(method.clean.t)
        return self.x

    def info(self) -> Info:
        lanes = self.lanes if self.each else self.lanes * self.batch

        def counts(name: str) -> torch.Tensor:
            return torch.tensor([getattr(lane, name) for lane in lanes], dtype=torch.int64, device="cpu")

        times = tuple(tuple(lane.times) for lane in lanes)
        return Info(self.nfe, counts("evaluations"), counts("accepted"), counts("rejected"), times)

    # One stage.

    def upload(self, stages: Sequence[Sequence[Stage]]) -> list[tuple[int, StageSpec]]:
        """Rows of several stages, each with one per lane, into the table; the row and the structure of each stage."""
        bound = []
        for k, lanes in enumerate(stages):
            following = stages[k + 1] if k + 1 < len(stages) else ()
            copies = self.copies if following and following[0].evaluate else 0
            bound.append(stage_rows(lanes, self.method.space, self.binding, copies))
        self.host = in_range(np.concatenate([values for values, _ in bound]), self.x.dtype)
        c, like = self.coeffs, self.x
        c.table = torch.from_numpy(self.host).to(device=like.device, dtype=like.dtype).contiguous()
        c.draws = torch.full((len(self.host), 3), -1, dtype=torch.int32, device=like.device)
        times = in_range(
            np.array([[s.model_time for s in lanes] for lanes in stages]), self.clock, "the network's time"
        )
        repeats = self.halves * (1 if self.each else self.batch)
        self.times = torch.from_numpy(np.tile(times, (1, repeats))).to(device=like.device, dtype=self.clock)
        self.bound_stages = stages
        self.numbers = [self._numbers(lanes) for lanes in stages]
        if self.evaluator.threshold is not None or self.binding.corrected:
            data = [x0_rows(lanes, self.binding) for lanes in stages]
            values = in_range(np.concatenate([v for v, _ in data]), like.dtype)
            self.x0 = torch.from_numpy(values).to(c.table), [spec for _, spec in data]
        return [(k * len(self.lanes), spec) for k, (_, spec) in enumerate(bound)]

    def _numbers(self, lanes: Sequence[Stage]) -> torch.Tensor | None:
        made = lane_numbers(lanes, self.method.space, self.binding, self.batch)
        return None if made is None else torch.from_numpy(in_range(made, self.x.dtype)).to(self.x)

    def run_stage(self, k: int, place: tuple[int, StageSpec], buf: Buffers, blend: Blend | None = None) -> None:
        row, spec = place
        c = self.coeffs
        if self.each:
            c.rows = self.row_sets[k]
        if spec.copies:
            buf.net_in = self.shared
        if spec.x_mask:
            buf.x_out = self.error
        coeffs, row = placed(c, row, blend)
        self.backend.stage(spec, row, coeffs, buf)

    def site(self, k: int, place: tuple[int, StageSpec], needs: Sequence[bool]) -> Site:
        """Where the network is evaluated at stage k."""
        row, spec = place
        lanes = self.bound_stages[k]
        t: float | torch.Tensor = lanes[0].t
        if self.each:
            t = torch.tensor([s.t for s in lanes], dtype=torch.float64, device=self.x.device)
        where: tuple[str, ...] = ()
        ignored = None
        if self.hooks.finite:
            pairs = zip(self.lanes, lanes, strict=True)
            where = tuple(f"step {lane.accepted} (model time {s.model_time:g})" for lane, s in pairs)
            if not all(needs):
                outputs = max(1, len(self.binding.guidance.halves))
                ignored = ~torch.tensor(list(needs) * outputs, device=self.x.device)
        x0 = None
        if self.evaluator.threshold is not None or self.binding.corrected:
            x0 = self.x0[0], self.x0[1][k]
        return Site(row, spec, t, self.times[k], x0, where, ignored, self.numbers[k])

    def evaluate(
        self, k: int, place: tuple[int, StageSpec], u: torch.Tensor, needs: Sequence[bool]
    ) -> tuple[Buffers, Blend | None]:
        """Call the network at stage k, where u is, for the lanes that need it; what the stage reads, and how the
        guidance combines it."""
        given = u if self.shared is None else self.shared
        if self.nfe >= self.method.max_nfe:
            self.give_up(f"reached max_nfe={self.method.max_nfe}", "raise max_nfe, or loosen rtol and atol")
        self.nfe += 1
        for lane, need in zip(self.lanes, needs, strict=True):
            lane.evaluations += need
        self.evaluator.give(given)
        if self.each:
            self.coeffs.rows = self.row_sets[k]
        site = self.site(k, place, needs)
        out = self.evaluator.admit(self.call(k, given), given, site)
        buf = Buffers(x=self.x, u=u, h=tuple(self.values))
        return buf, self.evaluator.read(out, buf, site, self.coeffs).blend

    def call(self, k: int, given: torch.Tensor) -> torch.Tensor:
        # A copy, since some networks scale their times in place.
        return self.network(given, self.times[k].clone())

    def single(self, stages: list[Stage], out: torch.Tensor) -> None:
        """A stage of its own, without an evaluation: u' to `out`."""
        (place,) = self.upload([stages])
        self.run_stage(0, place, Buffers(x=self.x, u=self.x, h=tuple(self.values[:1]), u_out=out))

    def first_value(self, needs: Sequence[bool]) -> None:
        """The model value at x, into the history, for the lanes that need it."""
        (place,) = self.upload([[self.method.value(lane.at) for lane in self.lanes]])
        if self.shared is not None:
            self.shared.copy_(self.x.repeat(1 + self.network.guided, *[1] * (self.x.ndim - 1)))
        self.values = self.values[:1]
        buf, blend = self.evaluate(0, place, self.x, needs)
        buf.h = ()
        buf.u_out = self.values[0]
        self.run_stage(0, place, buf, blend)
        self.took(0, place)

    # Steps.

    def first_steps(self, end: float) -> None:
        """Each lane's first width: given, or Hairer, Norsett and Wanner, II.4, "starting step size"."""
        method = self.method
        given = method.first_step
        if given is not None:
            for lane in self.lanes:
                lane.h = given
            return
        w = method.position(method.start)
        span, direction = abs(end - w), math.copysign(1.0, end - w)
        c = method.scale(method.start)
        scale = method.controller.atol + method.controller.rtol * self.x.abs()
        d0, d1 = self.rms(self.x / scale), [c * d for d in self.rms(self.values[0] / scale)]
        tries = [min(1e-6 if min(a, b) < 1e-5 else 0.01 * a / b, span) for a, b in zip(d0, d1, strict=True)]
        pairs = [method.begun(method.start, method.point(w + direction * h)) for h in tries]
        stages = [p for p in pairs if p is not None]
        places = self.upload([[a for a, _ in stages], [b for _, b in stages]])
        self.run_stage(0, places[0], Buffers(x=self.x, u=self.x, h=tuple(self.values), u_out=self.u))
        buf, blend = self.evaluate(1, places[1], self.u, [True] * len(self.lanes))
        buf.u_out = self.error
        self.run_stage(1, places[1], buf, blend)
        d2 = [c * d / h for d, h in zip(self.rms(self.error / scale), tries, strict=True)]
        for lane, h, b, e in zip(self.lanes, tries, d1, d2, strict=True):
            big = max(b, e)
            lane.h = min(
                100 * h, span, max(1e-6, 1e-3 * h) if big <= 1e-15 else (0.01 / big) ** (1 / method.controller.exponent)
            )

    def rms(self, v: torch.Tensor) -> list[float]:
        """The root mean square of v, for each lane."""
        norms = self.norms(v)
        return norms if self.each else [math.sqrt(sum(n * n for n in norms) / len(norms))]

    @staticmethod
    def norms(v: torch.Tensor) -> list[float]:
        """The root mean square of each sample, in float64: the square of a rejected step's error may pass float32's
        range."""
        return (lengths(v.double()) / math.sqrt(v[0].numel())).tolist()

    def trial(self, end: float) -> None:
        """Try one step of every lane that is not at its end."""
        for lane in self.lanes:
            if not lane.done:
                self.aim(lane, end)
        # Lanes that wait go through their last rows again, and the results are dropped.
        stages = list(zip(*(lane.stages for lane in self.lanes), strict=True))
        places = self.upload(stages)
        kept = self.values[0]
        del self.values[1:]
        last = len(stages) - 1
        self.run_stage(0, places[0], Buffers(x=self.x, u=self.x, h=tuple(self.values), u_out=self.u))
        free = list(self.spare)
        going = [not lane.done for lane in self.lanes]
        for k in range(1, last + 1):
            buf, blend = self.evaluate(k, places[k], self.u, going)
            if stages[k][0].keep:
                buf.m_out = free.pop() if free else self.fresh()
            buf.u_out = self.u
            self.run_stage(k, places[k], buf, blend)
            self.took(k, places[k])
            if buf.m_out is not None:
                self.values.insert(0, buf.m_out)
        newest = self.values[0]
        self.values = [kept]
        errors = self.measure()
        if not all(math.isfinite(e) for e, lane in zip(errors, self.lanes, strict=True) if not lane.done):
            self.not_finite(errors)
        self.judge(errors, kept, newest)

    def fresh(self) -> torch.Tensor:
        self.spare.append(torch.empty_like(self.x))
        return self.spare[-1]

    def aim(self, lane: Lane, end: float) -> None:
        """Where the next trial of a lane leads, and its rows."""
        method = self.method
        w = method.position(lane.at)
        remaining = abs(end - w)
        lane.h = min(lane.h, method.longest, remaining)
        if not method.needs_step(lane.h, w) and lane.h < remaining:
            self.give_up(
                f"the step fell to {lane.h:.3g}, below rounding, at t={lane.at.t:g}",
                "loosen rtol and atol"
                + ("" if self.x.dtype == torch.float64 else ", use dtype=torch.float64")
                + ", or look for NaN or jumps in the model (check_finite=True)",
            )
        to = method.stop if lane.h == remaining else method.point(w + math.copysign(lane.h, end - w))
        lane.stages, lane.to = method.trial(lane.at, to), to

    def judge(self, errors: list[float], kept: torch.Tensor, newest: torch.Tensor) -> None:
        """Accept or reject each lane's trial, and set its next step."""
        method = self.method
        taken = []
        for lane, error in zip(self.lanes, errors, strict=True):
            if lane.done:
                taken.append(False)
                continue
            good, factor = method.controller.judge(error, lane.retried)
            taken.append(good)
            if good and lane.h > method.doubtful:
                self.warn_of_width(lane)
            lane.h, lane.retried = lane.h * factor, not good
            lane.accepted += good
            lane.rejected += not good
            if good:
                assert lane.to is not None
                lane.at = lane.to
                lane.times.append(lane.at.t)
                lane.done = method.arrived(lane.at)
        if any(taken):
            self.take(taken, kept, newest)
            self.report()

    def warn_of_width(self, lane: Lane) -> None:
        assert lane.to is not None
        if not self.warned:
            warn(
                f"method {self.method.method!r} took one step of {lane.h:.3g} in lambda, from t={lane.at.t:g} to "
                f"t={lane.to.t:g}, whose error no estimate tells, since the published control does not bound a step: "
                "give h_max=2, or method='ode'"
            )
        self.warned = True

    def take(self, taken: list[bool], kept: torch.Tensor, newest: torch.Tensor) -> None:
        """The new state of the lanes that took their step, and the model value there."""
        lower = None if self.method.fsal else self.u - self.error
        if all(taken):
            self.x, self.u = self.u, self.x
            self.lower = lower
            if self.method.fsal:
                self.values = [newest]
                # The other buffers are scratch.
                self.spare = [kept if b is newest else b for b in self.spare]
        else:
            mask = torch.tensor(taken, device=self.x.device).reshape(-1, *[1] * (self.x.ndim - 1))
            self.x = torch.where(mask, self.u, self.x)
            if lower is not None:
                self.lower = torch.where(mask, lower, self.x if self.lower is None else self.lower)
            if self.method.fsal:
                self.values = [torch.where(mask, newest, kept)]
        needs = [
            moved and not (lane.done and self.method.clean is None)
            for lane, moved in zip(self.lanes, taken, strict=True)
        ]
        if not self.method.fsal and any(needs):
            self.refresh(needs)

    def refresh(self, needs: list[bool]) -> None:
        """The model value at the new x of the lanes that moved; the others keep theirs."""
        kept = None if all(needs) else self.values[0].clone()
        self.first_value(needs)
        if kept is not None:
            mask = torch.tensor(needs, device=self.x.device).reshape(-1, *[1] * (self.x.ndim - 1))
            self.values = [torch.where(mask, self.values[0], kept)]

    def measure(self) -> list[float]:
        """The error of each lane's trial, in units of its tolerance."""
        c, x, u = self.method.controller, self.x, self.u
        if c.against_lower:
            lower = u - self.error
            # At first with the start.
            before = x if self.lower is None else self.lower
            scale = (c.rtol * torch.maximum(lower.abs(), before.abs())).clamp(min=c.atol)
        else:
            scale = c.atol + c.rtol * torch.maximum(x.abs(), u.abs())
        if c.worst_sample and not self.each:
            # NumPy's maximum keeps NaN.
            return [float(np.max(self.norms(self.error / scale)))]
        return self.rms(self.error / scale)

    def took(self, k: int, place: tuple[int, StageSpec]) -> None:
        """Stage k has run: for subclasses that integrate something beside x."""

    # Reports.

    def report(self) -> None:
        hooks, method = self.hooks, self.method
        if hooks.progress is not None:
            hooks.progress(100 * min(fraction(method, lane.at) for lane in self.lanes))
        if not hooks.watches:
            return
        lane = self.lanes[0]
        if lane.done and method.clean is None:
            return
        x0 = torch.empty_like(self.x)
        self.single([method.denoise(lane.at)], x0)
        if hooks.trajectory is not None:
            hooks.trajectory.append((lane.at.t, self.x.clone(), x0))
        if hooks.callback is not None:
            hooks.callback(lane.accepted, lane.at.t, self.x.clone(), x0.clone())

    def not_finite(self, errors: list[float]) -> None:
        i = next(i for i, e in enumerate(errors) if not math.isfinite(e) and not self.lanes[i].done)
        where = f"sample {i}" if self.each else "the batch"
        raise FloatingPointError(
            f"the error of the step from t={self.lanes[i].at.t:g} is NaN or Inf for {where}: the network gave such "
            "values, or the step overflowed; check_finite=True finds the first, dtype=torch.float64 or a smaller first "
            "step helps the second"
        )

    def give_up(self, what: str, remedy: str) -> None:
        lane = max(self.lanes, key=lambda lane: (not lane.done, lane.rejected + lane.accepted))
        raise RuntimeError(
            f"method {self.method.method!r} {what}: at t={lane.at.t:g} after {lane.accepted} accepted and "
            f"{lane.rejected} rejected steps, on the way to t={self.method.stop.t:g}; {remedy}"
        )


def fraction(method: Embedded, p: Point) -> float:
    """How far p is on the way, by log-SNR."""

    def bounded(lam: float) -> float:
        return min(max(lam, -20.0), 20.0)

    a, b = bounded(method.start.lam), bounded(method.stop.lam)
    return 1.0 if a == b else (bounded(p.lam) - a) / (b - a)
