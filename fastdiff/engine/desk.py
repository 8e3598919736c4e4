"""What `Engine.submit` is given, made into a request that can enter, or refused with the reason."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from fastdiff import guidance as forms
from fastdiff.bind import Binding
from fastdiff.engine import conditions
from fastdiff.engine.joint import Joint, joint
from fastdiff.engine.kept import Kept, same
from fastdiff.engine.options import SUBMIT_DEFAULTS
from fastdiff.engine.request import Owner, Request
from fastdiff.engine.run import Run, needs_own_stage
from fastdiff.names import short
from fastdiff.options import RUN_DEFAULTS, Prediction
from fastdiff.prediction import settled
from fastdiff.run.arguments import cast_x, check_callables, check_halves, check_observed, check_x, resolve_seeds
from fastdiff.run.corrections import check_corrections
from fastdiff.run.fitted import warn_of_other_use
from fastdiff.run.planned import PlanEngine
from fastdiff.sampler import Sampler
from fastdiff.schedules import NoiseSchedule
from fastdiff.values import flag, whole

SHARED = ("shape", "schedule", "prediction", "dtype", "backend", "graph", "device", "model_kwargs", "check_finite")
"""Arguments of `sample` that are the engine's."""

ELSEWHERE = {
    "guidance_scale": "give guidance=...",
    "callback": "give on_preview=..., which is called with each predicted x0",
    "progress": "look at request.progress, or give on_preview=...",
    "return_trajectory": "give on_preview=..., and keep what it is called with",
    "return_info": "request.nfe and request.progress say what it costs",
    "out": "request.result() is memory of its own",
    "output_dtype": "give Engine(..., dtype=...), or cast request.result()",
    "frames": "its row for each frame needs a table of its own: use fastdiff.sample(model, frames=...)",
    "classifier_grad": "give guidance=fastdiff.guidance.ClassifierScore(...) or another form of a classifier's",
    "classifier_form": "give guidance=fastdiff.guidance.ClassifierScore(...) or another form of a classifier's",
}
"""What stands for arguments of `sample` that no request has."""


@dataclass(frozen=True)
class Terms:
    """What all requests of an engine share.

    Attributes:
        shape: of a sample.
        said: the schedule, where the caller or the model named one.
        uncond: of requests that have none.
        stacks: whether conditions are joined along a first dimension of 1.
        history: how many evaluations are kept.
        learned: whether the network gives twice the channels.
        own: whether each request's rows say how its history lies.
        capacity: rows of the table. widest: rows of the network's largest input.
        fixed: names of the arguments that the network is given with every call.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    network_dtype: torch.dtype
    device: torch.device
    schedule: NoiseSchedule
    said: NoiseSchedule | None
    prediction: Prediction | None
    uncond: dict[str, Any] | None
    stacks: bool
    history: int
    learned: bool
    own: bool
    capacity: int
    widest: int
    fixed: frozenset[str]


class Desk:
    """Takes requests in, from any thread. Samplers and bound rows are kept for the next request like this one."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.samplers, self.joints = Kept(), Kept()
        self.numbers = itertools.count()

    def rebound(self, run: Run, guidance: Any) -> Joint:
        """The rows of a request that is there, with other guidance."""
        own, sampler = run.arguments, run.sampler
        bound = self._bound(sampler, guidance, run.cond, run.uncond, own["correct_x0"] is not None)
        why = run.alone or needs_own_stage(bound, sampler.clip, own, self.terms.history)
        if why is not None:
            raise ValueError(
                f"a request with {why} runs its stages by itself, and keeps its guidance: cancel it, and submit another"
            )
        return bound

    def run(self, owner: Owner, method: Any, steps: int | None, options: dict[str, Any]) -> Run:
        """A request, ready to enter: its sampler, its bound rows, and all that may be wrong with them."""
        terms = self.terms
        own = {k: options.pop(k) if k in options else v for k, v in SUBMIT_DEFAULTS.items()}
        sampler = self._sampler(method, steps, options)
        engine = sampler.engine
        if not isinstance(engine, PlanEngine):
            raise ValueError(
                f"method {engine.name!r} is adaptive: it chooses each step from the error of the last, which the host "
                "must read, so that it cannot go in step with others: use fastdiff.sample(model, "
                f"method={engine.name!r}), or a method with a plan, such as dpm3"
            )
        if engine.plan.two_times:
            raise ValueError(
                f"method {engine.name!r} with two_times=True calls the network as model(x, t, s), and the engine calls "
                "it as model(x, t) for all requests: use fastdiff.sample, or two_times=False for a network that takes "
                "one time"
            )
        check_callables(own["noise"], None)
        if own["on_preview"] is not None and not callable(own["on_preview"]):
            raise TypeError(f"on_preview={short(own['on_preview'])}: expected a function, on_preview(preview)")
        check_corrections(engine.plan, own["correct_x0"], own["correct_xt"])
        if not engine.plan.nfe:
            raise ValueError(f"the plan of {engine.name!r} never evaluates the network: there is nothing to run")
        if own["x"] is not None:
            own["x"] = self._start(own["x"])
        # Their errors belong to this call.
        resolve_seeds(own["seed"], own["first_sample"], 1, torch.device("cpu"))
        cond = conditions.checked("cond", own["cond"], terms.device, terms.stacks, terms.fixed)
        uncond = conditions.checked("uncond", own["uncond"], terms.device, terms.stacks, terms.fixed)
        bound = self._bound(sampler, own["guidance"], cond, uncond or terms.uncond, own["correct_x0"] is not None)
        learned = engine.plan.learned_variance
        if learned and not terms.learned:
            raise ValueError(
                f"method {engine.name!r} reads a learned variance, twice the channels, which this engine's network "
                "does not give: Engine(..., learned_variance=True)"
            )
        size = len(bound.block.values) * 2
        if size >= terms.capacity:
            raise ValueError(
                f"a plan of {len(bound.plan.stages)} stages takes up to {size} rows of the table, which has "
                f"{terms.capacity}: Engine(..., rows={4 * size})"
            )
        if bound.binding.guidance.batched and terms.widest < 2:
            raise ValueError("a guided request needs two rows of the network's input: Engine(..., buckets=...) of 2")
        priority = whole("priority", own["priority"], -(2**31), 2**31, "priority=0")
        watch = own["on_preview"]
        request = Request(
            owner, engine.name, engine.plan.nfe, engine.plan.times[-1], own["seed"], own["guidance"], watch
        )
        given = cond if cond is not None else terms.uncond
        return Run(
            request,
            sampler,
            engine,
            bound,
            sampler.clip,
            needs_own_stage(bound, sampler.clip, own, terms.history),
            given or {},
            uncond or terms.uncond,
            own,
            flag("previews", own["previews"]) or watch is not None,
            (-priority, next(self.numbers)),
            0,
            conditions.likeness(given or {}),
        )

    def _start(self, x: Any) -> torch.Tensor:
        """A given start as a batch of one."""
        terms, x = self.terms, check_x(x)
        if tuple(x.shape) == terms.shape:
            x = x[None]
        if tuple(x.shape) != (1, *terms.shape):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected {terms.shape}, the engine's")
        # Of its own: it is read when the request enters, and the caller may write into it before.
        return cast_x(x.clone(), terms.device, terms.dtype)

    def _sampler(self, method: Any, steps: int | None, options: dict[str, Any]) -> Sampler:
        """A sampler of these arguments, kept for the next request with the same ones."""
        for name in options:
            if name in SHARED:
                raise TypeError(f"{name} is the engine's, for all requests: Engine(..., {name}=...)")
            if name in ELSEWHERE:
                raise TypeError(f"a request of an Engine takes no {name}: {ELSEWHERE[name]}")
        if options.get("plan") is not None and method == "dpm3":
            # submit's default: a plan is its own method.
            method = None
        key = same({"method": method, "steps": steps, **options})
        if options.get("plan") is None:
            # The engine's, and no part of the key: its hash is made of 1000 numbers.
            options = {**options, "schedule": self.terms.schedule}

        def made() -> Sampler:
            return Sampler(
                method,
                steps,
                prediction=self.terms.prediction,
                dtype=self.terms.dtype,
                graph=False,
                **options,
            )

        return self.samplers.get(key, made)

    def _bound(self, sampler: Sampler, guidance: Any, cond: Any, uncond: Any, corrected: bool) -> Joint:
        """The rows of a request with this guidance."""
        plan, terms = sampler.plan, self.terms
        chosen = forms.choose({**RUN_DEFAULTS, "guidance": guidance}, plan.method, plan)
        if chosen.weak is not None or chosen.further is not None:
            raise ValueError(
                f"guidance {type(chosen).__name__} has outputs beyond the two halves, which an Engine does not batch: "
                "give another form, or sample with fastdiff.sample"
            )
        check_observed(chosen, sampler.clip, True if corrected else None)
        if chosen.batched:
            check_halves(True, None, cond, uncond)
            if terms.stacks and conditions.likeness(cond) != conditions.likeness(uncond):
                raise ValueError(conditions.unlike("uncond", uncond, cond))
        chosen.check(plan, plan.method)
        prediction = settled(sampler.prediction or terms.prediction, sampler.axis)
        binding = Binding(prediction, chosen, clip=sampler.clip is not None, corrected=corrected)
        warn_of_other_use(plan, binding.prediction, chosen, terms.said)
        key = same({"plan": sampler, "guidance": chosen.key, "corrected": corrected})
        return self.joints.get(key, lambda: joint(plan, binding, terms.dtype, terms.network_dtype, terms.own))
