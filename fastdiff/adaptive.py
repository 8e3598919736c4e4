"""The driver of adaptive methods: trial steps by the fused operation, and the next step from their error.

The rows of a trial are computed in float64 on the host, uploaded together, and run around the network as the stages of
a plan are. With one step for the batch a row serves all samples; with `control="sample"` every sample is at a row, a
time and a step of its own, and one that has arrived waits for the others. Each trial synchronises once, to read the
error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch

from fastdiff.adaptive_lanes import Binding, Lane
from fastdiff.adaptive_report import Hooks, Info, fraction
from fastdiff.corrections import corrected
from fastdiff.langevin import lengths
from fastdiff.loop import _gradient
from fastdiff.network import Network
from fastdiff.ops.buffers import Buffers, Coeffs
from fastdiff.plan import Stage
from fastdiff.solvers.dpm_adaptive import Adaptive
from fastdiff.solvers.embedded import Embedded
from fastdiff.table import StageSpec


class Driver:
    """One run of an adaptive method.

    Args:
        method: the method, bound to its times.
        backend: the module whose `stage` runs the rows.
        network: the adapted model, and the dtype of its input.
        binding: prediction, guidance, clipping.
        coeffs: seeds, indices and bounds; its table is replaced at every trial.
        x: (B, ...) the start, contiguous in the state's dtype; not changed.
    """

    def __init__(
        self,
        method: Embedded,
        backend: ModuleType,
        network: Network,
        network_dtype: torch.dtype,
        binding: Binding,
        coeffs: Coeffs,
        x: torch.Tensor,
        hooks: Hooks,
    ) -> None:
        self.method, self.backend, self.network, self.binding, self.hooks = method, backend, network, binding, hooks
        self.coeffs, self.batch = coeffs, len(x)
        self.each = method.control == "sample"
        self.lanes = [Lane(method.start, times=[method.start.t]) for _ in range(self.batch if self.each else 1)]
        self.direct = network_dtype == x.dtype and not network.guided
        self.copies = 0 if self.direct else 1 + network.guided
        self.x, self.u, self.error = x.clone(), torch.empty_like(x), torch.empty_like(x)
        self.shared: torch.Tensor | None = None
        if not self.direct:
            wide = ((1 + network.guided) * self.batch, *x.shape[1:])
            self.shared = torch.empty(wide, dtype=network_dtype, device=x.device)
        self.clock = torch.float64 if network_dtype == torch.float64 else torch.float32
        self.values = [torch.empty_like(x)]
        self.spare: list[torch.Tensor] = []
        self.admitted: torch.dtype | None = None
        self.lower: torch.Tensor | None = None
        self.nfe = 0
        lanes = torch.arange(len(self.lanes), dtype=torch.int32, device=x.device)
        self.row_sets = [lanes + k * len(self.lanes) for k in range(8)] if self.each else []

    def run(self) -> torch.Tensor:
        """The result: a tensor of its own. `info` tells the rest."""
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
            return torch.tensor([getattr(lane, name) for lane in lanes], dtype=torch.int64)

        times = tuple(tuple(lane.times) for lane in lanes)
        return Info(self.nfe, counts("evaluations"), counts("accepted"), counts("rejected"), times)

    # One stage.

    def upload(self, stages: Sequence[Sequence[Stage]]) -> list[tuple[int, StageSpec]]:
        """Rows of several stages, each with one per lane, into the table; the row and the structure of each stage."""
        bound = []
        for k, lanes in enumerate(stages):
            following = stages[k + 1] if k + 1 < len(stages) else ()
            copies = self.copies if following and following[0].evaluate else 0
            bound.append(self.binding.rows(lanes, self.method.space, copies))
        self.host = np.concatenate([values for values, _ in bound])
        c, like = self.coeffs, self.x
        c.table = torch.as_tensor(self.host).to(device=like.device, dtype=like.dtype).contiguous()
        c.draws = torch.full((len(self.host), 3), -1, dtype=torch.int32, device=like.device)
        times = np.array([[s.model_time for s in lanes] for lanes in stages])
        repeats = (1 + self.network.guided) * (1 if self.each else self.batch)
        self.times = torch.as_tensor(np.tile(times, (1, repeats))).to(device=like.device, dtype=self.clock)
        self.moments = [[s.t for s in lanes] for lanes in stages]
        if self.binding.threshold is not None or self.binding.corrects:
            data = [self.binding.x0_rows(lanes) for lanes in stages]
            self.probe = torch.as_tensor(np.concatenate([v for v, _ in data])).to(c.table), [s for _, s in data]
        return [(k * len(self.lanes), spec) for k, (_, spec) in enumerate(bound)]

    def run_stage(self, k: int, place: tuple[int, StageSpec], buf: Buffers) -> None:
        row, spec = place
        c = self.coeffs
        if self.each:
            c.rows = self.row_sets[k]
        if spec.copies:
            buf.net_in = self.shared
        if spec.x_mask:
            buf.x_out = self.error
        self.backend.stage(spec, row, c, buf)

    def evaluate(self, k: int, u: torch.Tensor, needs: Sequence[bool]) -> Buffers:
        """Call the network at stage k, where u is, for the lanes that need it, and look at what it gives."""
        given = u if self.shared is None else self.shared
        if self.nfe >= self.method.max_nfe:
            self.give_up(f"reached max_nfe={self.method.max_nfe}", "raise max_nfe, or loosen rtol and atol")
        self.nfe += 1
        for lane, need in zip(self.lanes, needs, strict=True):
            lane.evaluations += need
        version = given._version
        out = self.call(k, given)
        if self.direct and given._version != version:
            raise RuntimeError(
                "the model changed its input in place, which the sampler still needs: let it work on a copy, "
                "lambda x, t, **kw: model(x.clone(), t, **kw)"
            )
        if out.dtype is not self.admitted:
            self.admit(out.dtype)
        out = out.contiguous()
        if self.hooks.finite:
            self.require_finite(k, out, needs)
        buf = Buffers(x=self.x, u=u, h=tuple(self.values))
        if self.network.guided:
            buf.out, buf.aux = out[: self.batch], out[self.batch :]
        else:
            buf.out = out
            if self.binding.gradient is not None:
                buf.out, buf.aux = _gradient(self.binding.gradient, u, self.times[k].clone(), out)
        if self.binding.threshold is not None or self.binding.corrects:
            self.look(k, buf)
        return buf

    def call(self, k: int, given: torch.Tensor) -> torch.Tensor:
        # A copy, since networks scale their times in place.
        return self.network(given, self.times[k].clone())

    def look(self, k: int, buf: Buffers) -> None:
        """This evaluation's predicted x0: corrected, in the place of the output, and dynamic thresholding's bounds of
        it."""
        values, specs = self.probe
        c = self.coeffs
        x0 = torch.empty_like(self.x)
        rows = self.row_sets[k] if self.each else None
        data = Coeffs(values, c.draws, c.seeds, c.index, rows=rows)
        self.backend.stage(specs[k], k * len(self.lanes), data, Buffers(u=buf.u, out=buf.out, aux=buf.aux, u_out=x0))
        if self.hooks.correct_x0 is not None:
            moments: list[float] = self.moments[k]
            t = torch.tensor(moments, dtype=torch.float64, device=x0.device) if self.each else moments[0]
            x0 = corrected("correct_x0", self.hooks.correct_x0(x0, t), self.x)
            buf.out, buf.aux = x0, None
        if self.binding.threshold is not None:
            self.binding.threshold(x0, c)

    def admit(self, dtype: torch.dtype) -> None:
        ok, why = self.backend.supports(self.x.device, self.x.dtype, dtype)
        if not ok:
            raise TypeError(
                f"the model returned {dtype}, which the back end {self.backend.NAME!r} does not read: {why}; cast it, "
                "lambda x, t, **kw: model(x, t, **kw).float()"
            )
        self.admitted = dtype

    def require_finite(self, k: int, out: torch.Tensor, needs: Sequence[bool]) -> None:
        good = torch.isfinite(out).flatten(1).all(dim=1).tolist()
        for i, fine in enumerate(good):
            j = i % self.batch if self.each else 0
            lane = self.lanes[j]
            if not fine and needs[j]:
                raise FloatingPointError(
                    f"the network returned NaN or Inf at step {lane.accepted} (model time {float(self.times[k, i]):g}) "
                    f"for sample {i % self.batch} of {self.batch}: check the network's dtype, its input scale and "
                    "prediction=..."
                )

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
        buf = self.evaluate(0, self.x, needs)
        buf.h = ()
        buf.u_out = self.values[0]
        self.run_stage(0, place, buf)
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
        scale = method.atol + method.rtol * self.x.abs()
        d0, d1 = self.rms(self.x / scale), [c * d for d in self.rms(self.values[0] / scale)]
        tries = [min(1e-6 if min(a, b) < 1e-5 else 0.01 * a / b, span) for a, b in zip(d0, d1, strict=True)]
        pairs = [method.begun(method.start, method.point(w + direction * h)) for h in tries]
        stages = [p for p in pairs if p is not None]
        places = self.upload([[a for a, _ in stages], [b for _, b in stages]])
        self.run_stage(0, places[0], Buffers(x=self.x, u=self.x, h=tuple(self.values), u_out=self.u))
        buf = self.evaluate(1, self.u, [True] * len(self.lanes))
        buf.u_out = self.error
        self.run_stage(1, places[1], buf)
        d2 = [c * d / h for d, h in zip(self.rms(self.error / scale), tries, strict=True)]
        for lane, h, b, e in zip(self.lanes, tries, d1, d2, strict=True):
            big = max(b, e)
            lane.h = min(100 * h, span, max(1e-6, 1e-3 * h) if big <= 1e-15 else (0.01 / big) ** (1 / method.exponent))

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
        # Lanes that wait go through their last rows again; nothing of it is kept.
        stages = list(zip(*(lane.stages for lane in self.lanes), strict=True))
        places = self.upload(stages)
        kept = self.values[0]
        del self.values[1:]
        last = len(stages) - 1
        self.run_stage(0, places[0], Buffers(x=self.x, u=self.x, h=tuple(self.values), u_out=self.u))
        free = list(self.spare)
        going = [not lane.done for lane in self.lanes]
        for k in range(1, last + 1):
            buf = self.evaluate(k, self.u, going)
            if stages[k][0].push:
                buf.m_out = free.pop() if free else self.fresh()
            buf.u_out = self.u
            self.run_stage(k, places[k], buf)
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
        lane.h = min(lane.h, remaining)
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
            good, factor = method.factor(error, lane.retried)
            taken.append(good)
            lane.h, lane.retried = lane.h * factor, not good
            lane.accepted += good
            lane.rejected += not good
            if good:
                assert lane.to is not None
                lane.at = lane.to
                lane.times.append(lane.at.t)
                lane.done = lane.at == method.stop or (isinstance(method, Adaptive) and method.near(lane.at))
        if any(taken):
            self.take(taken, kept, newest)
            self.report()

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
        method, x, u = self.method, self.x, self.u
        if isinstance(method, Adaptive):
            # Compared with the lower order's last result, as published; at first with the start.
            lower = u - self.error
            before = x if self.lower is None else self.lower
            scale = (method.rtol * torch.maximum(lower.abs(), before.abs())).clamp(min=method.atol)
            norms = self.norms(self.error / scale)
            # NumPy's maximum keeps NaN.
            return norms if self.each else [float(np.max(norms))]
        scale = method.atol + method.rtol * torch.maximum(x.abs(), u.abs())
        return self.rms(self.error / scale)

    def took(self, k: int, place: tuple[int, StageSpec]) -> None:
        """Stage k has run: for subclasses that integrate something beside x."""

    # Reports.

    def report(self) -> None:
        hooks, method = self.hooks, self.method
        if hooks.progress is not None:
            hooks.progress(min(fraction(method, lane.at) for lane in self.lanes))
        if hooks.callback is None and hooks.trajectory is None:
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
