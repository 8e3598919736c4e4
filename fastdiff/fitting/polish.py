"""Gradients through the whole loop: L-BFGS or Adam from fitted coefficients, with recomputation of the network.

Each stage's network call is made again in the backward pass (`torch.utils.checkpoint`), so that memory holds the
states and model values of one batch, and the activations of one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fastdiff.bind import blend_numbers, clock_dtype
from fastdiff.fitting.checkpoint import POLISHED, Checkpoint
from fastdiff.fitting.explicit import VALUES, explicit_plan
from fastdiff.fitting.loss import of_samples
from fastdiff.fitting.problem import Batch, Problem
from fastdiff.fitting.progress import Progress
from fastdiff.fitting.ranks import total
from fastdiff.guidance import Outputs, Place
from fastdiff.plan import H1, MAX_HISTORY, M, Plan, Stage, X
from fastdiff.prediction import SPACES, conversion
from fastdiff.run.network import Network, placement

OPTIMIZERS = ("lbfgs", "adam")
ITERATIONS = 10
"""Of an optimizer in a round; a round is what a checkpoint goes on from."""
CLOSURES = 13
"""Passes of a round, at most: an iteration's line search may need more than one."""
RATE = 0.03
"""Step of Adam at the start of a round, as a part of the loss: both are distances of the state. It falls to 0 by half a
cosine."""
DAMPING = 1e-8
"""Of the products that coefficients are measured in."""


class Polish:
    """A polish under way.

    Args:
        rounds: of the optimizer.
        optimizer: one of `OPTIMIZERS`.

    Raises:
        ValueError: a guidance or clip that gradients do not go through.
    """

    def __init__(self, problem: Problem, loss: Any, rounds: int, optimizer: str) -> None:
        self.problem, self.loss, self.rounds, self.optimizer = problem, loss, rounds, optimizer
        if problem.guidance.gradient is not None:
            raise ValueError(
                "polish=True needs second derivatives of the classifier, which classifier_grad does not give: fit "
                "without polish"
            )
        if getattr(problem.guidance, "momentum", 0.0):
            raise ValueError(
                "polish=True looks at each evaluation by itself, and this guidance has a momentum over several: fit "
                "without polish"
            )
        if problem.clip is not None and not isinstance(problem.clip, tuple):
            raise ValueError("polish=True does not go through dynamic thresholding: fit without polish")
        self.raw = SPACES[problem.space] == problem.prediction and problem.clip is None
        self.network_dtype = placement(problem.model)[1] or problem.dtype

    def cost(self, steps: int) -> int:
        """Evaluations of each trajectory, recomputed ones too, without the backward passes."""
        return self.rounds * CLOSURES * 2 * steps + 2 * steps

    def run(
        self,
        plan: Plan,
        batches: Sequence[Batch],
        ends: Sequence[torch.Tensor],
        store: Checkpoint,
        progress: Progress,
    ) -> Plan:
        """`plan`, or a better one on these trajectories, whose ends are the teacher's.

        Raises:
            TypeError: the model is not differentiable in x.
        """
        start = _Numbers(plan, self.problem)
        measure = self._measure(start, batches[0])
        z = torch.zeros(start.count(self.raw), dtype=torch.float64)
        first = 0
        name = f"{POLISHED}z"
        if name in store.tensors:
            z, first = store.tensors[name].clone(), int(store.facts["polished"])
            progress.add("polish", store.facts["polishing"])
        begun = progress.done - int(store.facts.get("polishing", 0))
        for k in range(first, self.rounds):
            before, _ = self._pass(start, measure, z, batches, ends, progress, gradient=False)
            tried = self._round(start, measure, z, before, batches, ends, progress)
            after, _ = self._pass(start, measure, tried, batches, ends, progress, gradient=False)
            done = not after < before or not start.moved(measure, tried, self.raw).ordered
            if not done:
                z = tried
            store.facts["polishing"] = progress.done - begun
            store.tensors[name], store.facts["polished"] = z, self.rounds if done else k + 1
            store.save()
            if done:
                break
        return start.moved(measure, z, self.raw).plan()

    def _round(
        self,
        start: _Numbers,
        measure: list[torch.Tensor],
        z: torch.Tensor,
        before: float,
        batches: Sequence[Batch],
        ends: Sequence[torch.Tensor],
        progress: Progress,
    ) -> torch.Tensor:
        own = z.clone().requires_grad_()

        def closure() -> float:
            loss, own.grad = self._pass(start, measure, own.detach(), batches, ends, progress, gradient=True)
            return loss

        if self.optimizer == "lbfgs":
            torch.optim.LBFGS(
                [own],
                max_iter=ITERATIONS,
                max_eval=CLOSURES - 2,
                history_size=ITERATIONS,
                line_search_fn="strong_wolfe",
            ).step(closure)
            return own.detach()
        adam = torch.optim.Adam([own], lr=RATE * before, betas=(0.8, 0.95))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, CLOSURES - 2)
        for _ in range(CLOSURES - 2):
            closure()
            adam.step()
            decay.step()
        return own.detach()

    def _pass(
        self,
        start: _Numbers,
        measure: list[torch.Tensor],
        z: torch.Tensor,
        batches: Sequence[Batch],
        ends: Sequence[torch.Tensor],
        progress: Progress,
        *,
        gradient: bool,
    ) -> tuple[float, torch.Tensor]:
        """Loss over all trajectories, and its gradient (zeros where not asked for)."""
        p, sums, slope = self.problem, torch.zeros(2, dtype=torch.float64), torch.zeros_like(z)
        for b, end in zip(batches, ends, strict=True):
            with torch.set_grad_enabled(gradient):
                own = z.clone().requires_grad_(gradient)
                x = self._end(start.moved(measure, own, self.raw), b)
                loss = of_samples(self.loss, x, end.to(p.device)).sum()
                if gradient:
                    (part,) = torch.autograd.grad(loss, own)
                    slope += part
            sums += torch.tensor([float(loss.detach()), b.size], dtype=torch.float64)
            done = b.size * start.steps * (2 if gradient else 1)
            p.evaluations += done
            progress.add("polish", done, float(sums[0] / sums[1]))
        both = total(torch.cat([sums, slope]).to(p.device)).cpu()
        found = float(both[0] / both[1])
        return (found if found == found else float("inf")), both[2:] / both[1]

    def _end(self, numbers: _Numbers, batch: Batch) -> torch.Tensor:
        """The state at the end, differentiable in the numbers."""
        p = self.problem
        kwargs = p.conditions(batch)
        network = Network(p.model, batch.size, **kwargs)
        x = p.start(batch)
        if numbers.opening is not None:
            x = numbers.opening.to(x) * x
        values: list[torch.Tensor] = []
        for k in range(numbers.steps):
            arguments = (x, numbers.times[k], numbers.given[k])
            if torch.is_grad_enabled():
                m = checkpoint(self._value, network, numbers.stages[k], *arguments, use_reentrant=False)
            else:
                m = self._value(network, numbers.stages[k], *arguments)
            values = [m, *values][:VALUES]
            row = numbers.rows[k].to(x)
            x = row[0] * x + sum(c * v for c, v in zip(row[1:], values, strict=True))
        return x

    def _value(
        self, network: Network, stage: Stage, x: torch.Tensor, time: torch.Tensor, given: torch.Tensor
    ) -> torch.Tensor:
        p, form = self.problem, self.problem.guidance
        u = x.to(self.network_dtype)
        u = torch.cat([u, u]) if network.guided else u
        clock = given.to(device=x.device, dtype=clock_dtype(self.network_dtype)).reshape(1).expand(len(u))
        g = network(u, clock.contiguous()).to(x.dtype)
        if u.requires_grad and torch.is_grad_enabled() and not g.requires_grad:
            raise TypeError(
                "polish=True: the model's output does not depend on its input for autograd: give a differentiable "
                "module, or fit without polish"
            )
        place = Place(stage, p.space, p.prediction)
        if form.halves:
            made = blend_numbers([form.numbers(place)], form)
            first, second = g.chunk(2)
            pair = form.weights(place)
            if pair is None:
                g = first
            elif made is None:
                g = float(pair[0]) * first + float(pair[1]) * second
            else:
                outputs = Outputs((first, second), x, torch.from_numpy(made[0]).to(x), {})
                blend = form.blend(outputs)
                g = outputs.column(blend.w1) * first + outputs.column(blend.w2) * second
                g = g if blend.wu is None else g + outputs.column(blend.wu) * x
        if self.raw:
            return g
        alpha, sigma = (c.to(x) for c in p.levels(time))
        if p.clip is None:
            cu, cg = conversion(p.prediction, p.space, alpha, sigma)  # type: ignore[arg-type]
            return cu * x + cg * g
        pu, pg = conversion(p.prediction, "data", alpha, sigma)  # type: ignore[arg-type]
        x0 = (pu * x + pg * g).clamp(*p.clip)
        qu, qx = conversion("x0", p.space, alpha, sigma)  # type: ignore[arg-type]
        return qu * x + qx * x0

    def _measure(self, start: _Numbers, batch: Batch) -> list[torch.Tensor]:
        """What one unit of z is, in the coefficients of each stage: a change of the state by one in the RMS.

        Columns of a stage are nearly parallel; in these coordinates they are not, and L-BFGS walks straight.
        """
        p, found = self.problem, []
        network = Network(p.model, batch.size, **p.conditions(batch))
        x = p.start(batch)
        if start.opening is not None:
            x = start.opening.to(x) * x
        values: list[torch.Tensor] = []
        for k in range(start.steps):
            values = [self._value(network, start.stages[k], x, start.times[k], start.given[k]), *values][:VALUES]
            columns = torch.stack([c.flatten().double() for c in (x, *values)])
            sums = total(torch.cat([(columns @ columns.T).flatten(), columns.new_tensor([columns.shape[1]])])).cpu()
            gram = (sums[:-1] / sums[-1]).reshape(len(columns), len(columns))
            gram += DAMPING * torch.diag(gram.diagonal())
            found.append(torch.linalg.inv(torch.linalg.cholesky(gram)).T.contiguous())
            row = start.rows[k].to(x)
            x = row[0] * x + sum(c * v for c, v in zip(row[1:], values, strict=True))
        return found


class _Numbers:
    """What a polish moves: coefficients, times of the state, times given to the network."""

    def __init__(self, plan: Plan, problem: Problem) -> None:
        self.problem = problem
        opened = not plan.stages[0].evaluate
        self.stages = [s for s in plan.stages if s.evaluate]
        self.steps = len(self.stages)
        self.opened_at = plan.stages[0].t if opened else None
        self.opening = torch.tensor(plan.stages[0].next_u[X], dtype=torch.float64) if opened else None
        registers = (X, M, *range(H1, H1 + MAX_HISTORY))
        self.rows = [
            torch.tensor([s.next_u[j] for j in registers[: 2 + min(k, MAX_HISTORY)]], dtype=torch.float64)
            for k, s in enumerate(self.stages)
        ]
        self.times = torch.tensor([s.t for s in self.stages], dtype=torch.float64)
        self.given = torch.tensor([s.model_time for s in self.stages], dtype=torch.float64)
        self.end = plan.times[-1]

    def count(self, raw: bool) -> int:
        """How many numbers there are. In the space of the network's own output no state's time matters."""
        return sum(len(r) for r in self.rows) + (self.opening is not None) + self.steps * (1 if raw else 2)

    @property
    def ordered(self) -> bool:
        """Whether the times still fall, inside the schedule."""
        every = [*self.times.tolist(), self.end]
        top = self.problem.t_start if self.opened_at is None else self.opened_at
        falls = all(a > b for a, b in pairwise(every))
        distinct = len(set(self.given.tolist())) == self.steps
        return falls and distinct and every[0] <= top and (self.opened_at is None or every[0] < top)

    def moved(self, measure: Sequence[torch.Tensor], z: torch.Tensor, raw: bool) -> _Numbers:
        """The numbers at z, in the coordinates of `measure`; z = 0 is here."""
        other = _Numbers.__new__(_Numbers)
        other.__dict__.update(self.__dict__)
        at, other.rows = 0, []
        for row, unit in zip(self.rows, measure, strict=True):
            other.rows.append(row + unit @ z[at : at + len(row)])
            at += len(row)
        if self.opening is not None:
            other.opening = self.opening + z[at]
            at += 1
        # A network knows the times of its schedule alone.
        ends = [self.problem.schedule.model_time(t) for t in (self.problem.t_start, self.end)]
        given = self.given + self._gaps(self.given) * z[at : at + self.steps]
        other.given = given.clamp(min(ends), max(ends))
        at += self.steps
        if not raw:
            other.times = (self.times + self._gaps(self.times) * z[at : at + self.steps]).clamp(
                self.end, self.problem.t_start
            )
            if self.opened_at is None:
                # The run starts here.
                other.times = torch.cat([self.times[:1], other.times[1:]])
        return other

    @staticmethod
    def _gaps(times: torch.Tensor) -> torch.Tensor:
        if len(times) == 1:
            return times.abs() + 1.0
        gaps = (times[:-1] - times[1:]).abs()
        return torch.minimum(torch.cat([gaps, gaps[-1:]]), torch.cat([gaps[:1], gaps]))

    def plan(self) -> Plan:
        """As data."""
        opening = None
        if self.opening is not None and self.opened_at is not None:
            opening = (self.opened_at, float(self.opening))
        rows = [row.tolist() for row in self.rows]
        p, times = self.problem, [*self.times.tolist(), self.end]
        return explicit_plan(
            p.schedule,
            p.space,
            times,
            rows,
            opening=opening,
            model_times=self.given.tolist(),
            origin={"kind": "fit"},
        )
