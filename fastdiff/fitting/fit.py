"""`fit`: a plan whose every number is fitted to one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from typing_extensions import Unpack

from fastdiff.fitting.candidates import Candidate, candidates
from fastdiff.fitting.checkpoint import STATES, Checkpoint
from fastdiff.fitting.explicit import explicit_plan
from fastdiff.fitting.loss import Errors, check_loss, errors, mean, of_samples, sample_rms
from fastdiff.fitting.options import FIT_DEFAULTS, FitOptions, whole
from fastdiff.fitting.polish import OPTIMIZERS, Polish
from fastdiff.fitting.problem import Batch, Problem
from fastdiff.fitting.progress import Progress
from fastdiff.fitting.ranks import world
from fastdiff.fitting.search import Found, Memo, Places, coarse_steps, search, snap
from fastdiff.fitting.student import Student
from fastdiff.fitting.table import Score
from fastdiff.fitting.teacher import Teacher
from fastdiff.fitting.tune import FIRST_LOOK, score, tune_cost
from fastdiff.guidance import described
from fastdiff.names import one_of, warn
from fastdiff.options import filled
from fastdiff.plan import Plan
from fastdiff.run.job import sampling_mode
from fastdiff.run.weights import fingerprint
from fastdiff.schedules import NoiseSchedule

RESIDUALS = 2**14
"""Numbers to fit, trajectories times elements; docs/fitting.md has what fewer and more give."""
FEWEST, MOST = 256, 1024
"""Trajectories by default, at least and at most."""
VALIDATION = 128
BUDGET = 80
"""Evaluations of each trajectory that the search may ask for, for each evaluation of the plan."""
PART, FEWEST_OF_PART = 4, 128
"""The search's large steps are on a fourth of the trajectories, or so many."""
STARTS = 4
"""Time grids of the best settings, from which the search starts at the best."""


def fit(model: Callable[..., Any], steps: int = 5, **options: Unpack[FitOptions]) -> Plan:
    """A plan of `steps` network evaluations whose every coefficient and time is fitted to this network.

        plan = fastdiff.fit(model, steps=5, shape=(64, 3, 32, 32), seed=0, progress=True)
        x = fastdiff.sample(model, plan=plan, shape=(64, 3, 32, 32), seed=1)

    A teacher's trajectories are the truth. The best setting of `fastdiff.tune` gives the first times. Then, stage by
    stage along the student's own states, the coefficients of x and of the seven newest model values that lead nearest
    to the teacher's state are a linear least-squares problem, and the times are searched for on the teacher's grid.
    No gradient of the network is needed.

    Args:
        model: as in `fastdiff.sample`; any callable.
        steps: network evaluations of the plan.
        shape: (B, ...): B trajectories are evaluated at once. Default: as in `fastdiff.sample`.
        schedule, prediction, guidance, guidance_scale, cond, uncond, classifier_grad, classifier_form, model_kwargs,
            clip, dtype, device, backend: as in `fastdiff.sample`; tensors of conditions have first dimension B, and
            serve for every batch.
        conditions: (first, count) -> {"model_kwargs": ..., "cond": ..., "uncond": ...}: the conditions of the
            trajectories from number `first` on, such as labels. The same call must give the same. Instead of the three.
        t_start, t_end: the times of the run; default: the schedule's range.
        seed: of the fit's starts; validation's starts are of seed + 1.
        trajectories: how many to fit to. Default: so many that 16,384 numbers are fitted, from 256 to 1,024.
        validation: how many to report the errors on (128).
        teacher: a number of steps (160, of UniPC), a deterministic plan, or "ode", the adaptive solver. Compared with
            another resolution; a UserWarning tells where its own error is not small beside the fit's.
        methods: names of the methods whose settings may be the start; default: all.
        start: a plan to start from, instead of the best setting.
        budget: evaluations of each trajectory that the search for times may ask for; default: 80 times `steps`.
        loss: "norm": the mean of the samples' RMS distances, which few hard starts do not rule; "square", "l1"; or
            (x, target) -> (B,) losses of the samples at the end, which chooses the times (coefficients stay least
            squares) and is what a polish makes small.
        polish: go on with gradients through the whole loop: coefficients, times of the state and times given to the
            network. Needs a model that is differentiable in x and, for its times to move, in t.
        polish_rounds: of `polish`: how many times the optimizer runs for ten iterations.
        optimizer: of `polish`: "lbfgs", or "adam", for networks whose gradients are rough.
        checkpoint: a file ending in .safetensors: an unfinished fit is saved there every 20 seconds and when it is
            interrupted, and the same call goes on with it, to the same result. Removed at the end.
        offload: keep trajectories in host memory: a fit holds 161 states of each.
        progress: show a bar, with the cost in network evaluations before it begins.
        callback: (phase, evaluations done, evaluations expected at most, loss or None), called as it goes.

    Under torchrun, with a process group, every process fits to its part of the trajectories, and gets the same plan.

    Returns:
        `Plan` with method "fitted". Its `origin` tells network, schedule, guidance, teacher, seeds, cost, and the
        errors on the validation starts of the start ("before") and of itself ("after").

    Raises:
        ValueError, TypeError: bad arguments.
        RuntimeError: the fitted plan is not better than its start on the validation starts.
    """
    work = _Fit(model, steps, filled("fastdiff.fit", options, FIT_DEFAULTS))
    with sampling_mode():
        return work.run()


class _Fit:
    """One fit under way."""

    def __init__(self, model: Any, steps: Any, given: dict[str, Any]) -> None:
        self.given, self.problem = given, Problem(model, given)
        p = self.problem
        self.steps = whole("steps", steps)
        self.loss = check_loss(given["loss"])
        size = max(1, int(torch.Size(p.shape).numel()))
        default = min(max(RESIDUALS // size, FEWEST), MOST)
        self.count = whole("trajectories", default if given["trajectories"] is None else given["trajectories"], 2)
        self.held = whole("validation", VALIDATION if given["validation"] is None else given["validation"], 2)
        self.budget = whole("budget", BUDGET * self.steps if given["budget"] is None else given["budget"])
        self.teacher = Teacher(p, given["teacher"])
        if len(self.teacher.times) < self.steps + 2:
            raise ValueError(
                f"the teacher's grid has {len(self.teacher.times)} times, too few for {self.steps} evaluations"
            )
        start = given["start"]
        if start is not None:
            _check_start(start, p, self.steps)
        self.made: list[Candidate] = []
        if start is None:
            self.made = candidates(p.schedule, p.t_start, p.t_end, self.steps, given["methods"])
        self.few = min(self.count, 2 * FIRST_LOOK)
        rounds = whole("polish_rounds", given["polish_rounds"])
        optimizer = one_of("optimizer", given["optimizer"], OPTIMIZERS)
        self.polish = Polish(p, self.loss, rounds, optimizer) if given["polish"] else None
        self.batches = p.batches(self.count, p.seed)
        self.validation = p.batches(self.held, p.seed + 1, self.count)
        self.checkpoint = Checkpoint(given["checkpoint"], self._settings())

    def _settings(self) -> dict[str, Any]:
        p = self.problem
        return {
            "network": fingerprint(p.model),
            "shape": (p.batch, *p.shape),
            "schedule": p.schedule.fingerprint(),
            "prediction": p.prediction,
            "guidance": described(p.guidance),
            "clip": p.clip,
            "times": (p.t_start, p.t_end),
            "steps": self.steps,
            "seed": p.seed,
            "trajectories": self.count,
            "validation": self.held,
            "teacher": self.teacher.name,
            "methods": self.given["methods"],
            "start": None if self.given["start"] is None else self.given["start"].fingerprint(),
            "budget": self.budget,
            "loss": "function" if callable(self.loss) else self.loss,
            "polish": self.given["polish"] and (self.given["optimizer"], self.given["polish_rounds"]),
            "dtype": p.dtype,
        }

    @property
    def cost(self) -> int:
        """Evaluations of the whole fit, at most."""
        every = (self.count + self.held) * self.teacher.cost + self.teacher.check_cost(self.problem.batch)
        # Two plans are validated; the search evaluates the places that it goes on from once more.
        every += 2 * self.steps * (self.held + self.count)
        every += tune_cost(len(self.made), self.steps, self.few) + self.budget * self.count
        return every + (0 if self.polish is None else self.polish.cost(self.steps) * self.count)

    def run(self) -> Plan:
        expected = self.cost
        with Progress("fit", expected, self.given["progress"], self.given["callback"]) as progress:
            progress.say(
                f"fit of {self.steps} evaluations to {self.count} trajectories: at most {expected:,} network "
                f"evaluations of one sample, of which the teacher ({self.teacher.name}) has "
                f"{(self.count + self.held) * self.teacher.cost:,}"
            )
            try:
                return self._run(progress)
            except BaseException:
                self.checkpoint.save(now=True)
                raise

    def _run(self, progress: Progress) -> Plan:
        own = self.teacher.error(self.batches[0])
        progress.add("teacher", self.problem.evaluations)
        states = self._states(progress)
        starts, start_plan, label = self._starts(states, progress)
        found = self._search(states, starts, progress)
        plan = self._plan(found)
        if self.polish is not None:
            plan = self.polish.run(plan, self.batches, [s[-1] for s in states], self.checkpoint, progress)
        ends = []
        for b in self.validation:
            spent = self.problem.evaluations
            ends.append(self.teacher.ends(b))
            progress.add("validation", self.problem.evaluations - spent)
        before, lost = self._errors(start_plan, ends, progress)
        after, loss = self._errors(plan, ends, progress)
        if not loss < lost:
            raise RuntimeError(
                f"the fitted plan (loss {loss:.3g} on {self.held} starts that it was not fitted to) is not better than "
                f"its start, {label} ({lost:.3g}): fit to more trajectories (trajectories={2 * self.count}), or use "
                "the start: fastdiff.tune(...)[0].plan"
            )
        if own > 0.3 * after.rms:
            warn(
                f"the teacher's own error, {own:.2g} (RMS), is not small beside the fitted plan's, {after.rms:.2g}: "
                f"the fit is no better than its teacher; give a finer one, such as teacher={2 * self.teacher.cost}"
            )
        progress.say(
            f"on {self.held} other starts, distance to the teacher, median / RMS: {label} {before.median:.2g} / "
            f"{before.rms:.2g}, fitted {after.median:.2g} / {after.rms:.2g}; the teacher's own error {own:.2g}"
        )
        origin = self._origin(own, label, before, after, found, progress.done)
        self.checkpoint.remove()
        return replace(plan, origin=origin)

    def _states(self, progress: Progress) -> list[torch.Tensor]:
        states = []
        for i, b in enumerate(self.batches):
            name = f"{STATES}{i}"
            known = self.checkpoint.tensors.get(name)
            if known is None:
                before = self.problem.evaluations
                known = self.teacher.states(b)
                self.checkpoint.tensors[name] = known
                self.checkpoint.facts[name] = self.problem.evaluations - before
                self.checkpoint.save()
            states.append(known.to(self.problem.store))
            progress.add("teacher", self.checkpoint.facts[name])
        return states

    def _starts(self, states: Sequence[torch.Tensor], progress: Progress) -> tuple[list[Places], Plan, str]:
        """Places to start from, and the plan to be better than."""
        start, grid = self.given["start"], self.teacher.times
        if start is not None:
            return [snap(grid, [s.t for s in start.stages if s.evaluate], self.steps)], start, f"start ({start.method})"
        tuned = self.checkpoint.facts.get("tuned")
        if tuned is not None:
            progress.add("tune", self.checkpoint.facts["tuning"])
        else:
            before = progress.done
            few = self._part(self.few)
            found = score(self.problem, self.made, few, [s[-1] for s in states], progress)
            places = {id(c.plan): i for i, c in enumerate(self.made)}
            tuned = [places[id(s.plan)] for s in found[: 4 * STARTS]]
            self.checkpoint.facts["tuned"], self.checkpoint.facts["tuning"] = tuned, progress.done - before
            self.checkpoint.facts["methods"] = _of_methods(found)
            self.checkpoint.save()
        best = [self.made[i] for i in tuned]
        starts: list[Places] = []
        for c in best:
            at = snap(grid, [s.t for s in c.plan.stages if s.evaluate], self.steps)
            if at not in starts:
                starts.append(at)
        return starts[:STARTS], best[0].plan, best[0].label

    def _search(self, states: Sequence[torch.Tensor], starts: list[Places], progress: Progress) -> Found:
        """Large steps on a part of the trajectories, from several starts; small ones on all."""
        grid, part = self.teacher.times, max(self.count // PART, min(self.count, FEWEST_OF_PART))
        first, last = coarse_steps(grid)
        few = self._part(part)
        own = [s[:, : b.size] for b, s in zip(few, states, strict=False)]
        share = part / self.count
        memo = self._memo("part", few, own, progress)
        found = search(memo, starts, int(self.budget / share) // 2, first, last)
        memo = self._memo("all", self.batches, states, progress)
        return search(memo, [found.places], self.budget // 2, max(1, last // 2))

    def _part(self, count: int) -> list[Batch]:
        """The first rows of every process, `count` in all."""
        rows, few = max(1, count // world()[1]), []
        for b in self.batches:
            if rows:
                few.append(b._replace(size=min(b.size, rows)))
                rows -= few[-1].size
        return few

    def _memo(self, name: str, batches: Sequence[Batch], states: Sequence[torch.Tensor], progress: Progress) -> Memo:
        losses = self.checkpoint.losses.setdefault(name, {})
        known = {tuple(map(int, key.split(","))): value for key, value in losses.items()}
        rows = sum(b.size for b in batches)

        def told(cost: int, places: Places, loss: float) -> None:
            losses[",".join(map(str, places))] = loss
            progress.add("search", cost * rows, loss)
            self.checkpoint.save()

        return Memo(Student(self.problem, self.teacher.times, batches, states, self.loss), known, told)

    def _plan(self, found: Found) -> Plan:
        p, grid = self.problem, self.teacher.times
        opening = None if found.places[0] == 0 else (grid[0], found.opening)
        times = [grid[i] for i in found.places]
        return explicit_plan(p.schedule, p.space, times, found.rows, opening=opening)

    def _errors(self, plan: Plan, ends: Sequence[torch.Tensor], progress: Progress) -> tuple[Errors, float]:
        """Of a plan as it runs, on the validation starts; and its loss there."""
        distances, losses = [], []
        for b, end in zip(self.validation, ends, strict=True):
            x = self.problem.run(plan, self.problem.start(b), b)
            distances.append(sample_rms(x, end.to(x.device)))
            losses.append(of_samples(self.loss, x, end.to(x.device)))
            progress.add("validation", plan.nfe * b.size)
        return errors(torch.cat(distances)), mean(torch.cat(losses))

    def _origin(
        self, own: float, label: str, before: Errors, after: Errors, found: Found, spent: int
    ) -> dict[str, Any]:
        p = self.problem
        return {
            "kind": "fit",
            "network": {
                "name": type(p.model).__name__,
                "weights": fingerprint(p.model),
                "shape": list(p.shape),
                "prediction": p.prediction,
            },
            "schedule": p.schedule.fingerprint(),
            "guidance": described(p.guidance),
            "clip": None if p.clip is None else str(p.clip),
            "teacher": {"name": self.teacher.name, "error": own},
            "start": label,
            "methods": self.checkpoint.facts.get("methods", {}),
            "loss": "function" if callable(self.loss) else self.loss,
            "polish": self.polish is not None,
            "search_complete": found.complete,
            "seeds": {
                "fit": p.seed,
                "trajectories": self.count,
                "validation": p.seed + 1,
                "validation_trajectories": self.held,
            },
            "evaluations": spent,
            "errors": {"before": before._asdict(), "after": after._asdict()},
        }


def _of_methods(scores: Sequence[Score]) -> dict[str, float]:
    """Median error of each method's best setting, the least first."""
    found: dict[str, float] = {}
    for one in scores:
        found[one.method] = min(one.errors.median, found.get(one.method, float("inf")))
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _check_start(start: Any, problem: Problem, steps: int) -> None:
    if not isinstance(start, Plan):
        raise TypeError(f"start must be a fastdiff.Plan, got {type(start).__name__}: fastdiff.plan(...) makes one")
    if start.nfe != steps:
        raise ValueError(f"start has {start.nfe} evaluations, and steps={steps}: give steps={start.nfe}")
    if start.stochastic:
        raise ValueError(
            f"start is a plan of {start.method!r} that draws noise: give a deterministic one, or times of it"
        )
    if start.times[0] != problem.t_start or start.times[-1] != problem.t_end:
        raise ValueError(
            f"start runs from {start.times[0]:g} to {start.times[-1]:g}, and the fit from {problem.t_start:g} to "
            f"{problem.t_end:g}: give t_start and t_end"
        )
    if start.schedule and NoiseSchedule.from_dict(start.schedule) != problem.schedule:
        raise ValueError(f"start is a plan of another schedule than the fit's, {problem.schedule!r}")
