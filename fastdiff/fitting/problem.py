"""What is fitted: a network with its guidance and conditions, on one schedule, from starts that a seed draws."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from fastdiff import guidance
from fastdiff.fitting.explicit import SPACE_OF, row
from fastdiff.fitting.ranks import part
from fastdiff.guidance import Guidance
from fastdiff.names import unknown
from fastdiff.plan import Plan, Stage
from fastdiff.prediction import PREDICTIONS, along
from fastdiff.run.arguments import check_halves, resolve_device, resolve_shape
from fastdiff.run.network import placement, stated
from fastdiff.run.noise import randn
from fastdiff.sampler import Sampler
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.schedules.registry import told

TENSOR_CONDITIONS = ("model_kwargs", "cond", "uncond")


class Batch(NamedTuple):
    """Rows that are evaluated at once: trajectories `first` to `first + size` of `seed`."""

    seed: int
    first: int
    size: int
    row: int
    """Number of the first row for `conditions`: validation's rows come after those of the fit."""


class Problem:
    """One network to sample: everything but the plan.

    Args:
        arguments: of `fit` or `tune`, with defaults filled in.

    Raises:
        ValueError, TypeError: bad arguments, with what is valid.
    """

    def __init__(self, model: Any, arguments: Mapping[str, Any]) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable as model(x, t, **kwargs), got {type(model).__name__}")
        self.model = model
        size = resolve_shape(model, arguments["shape"], None)
        self.batch, self.shape = size[0], size[1:]
        named, prediction = told(arguments["schedule"], arguments["prediction"])
        named = stated(model, "schedule") if named is None else named
        self.schedule: NoiseSchedule = resolve("ddpm" if named is None else named)
        self.prediction = along(prediction or stated(model, "prediction"), self.schedule)
        if self.prediction not in PREDICTIONS:
            raise ValueError(unknown("prediction", self.prediction, PREDICTIONS))
        self.space = SPACE_OF[self.prediction]
        self.seed = arguments["seed"]
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed={self.seed!r}: expected an integer, such as seed=0")
        self.dtype: torch.dtype = arguments["dtype"]
        self.device = resolve_device(arguments["device"], None, placement(model)[0])
        self.store = torch.device("cpu") if arguments["offload"] else self.device
        self.backend, self.clip = arguments["backend"], arguments["clip"]
        self.guidance: Guidance = guidance.choose(arguments, "fitted")
        if self.guidance.weak is not None or self.guidance.further is not None:
            raise ValueError(
                f"a plan is not fitted with {type(self.guidance).__name__}, which has outputs beyond the two halves: "
                "fit with guidance=7.5, and sample with any form"
            )
        self.asked = {name: arguments[name] for name in ("classifier_grad", "classifier_form")}
        self.asked["guidance"] = self.guidance if arguments["classifier_grad"] is None else None
        self._conditions = arguments["conditions"]
        self._fixed = {name: arguments[name] for name in TENSOR_CONDITIONS}
        if self._conditions is not None and any(v is not None for v in self._fixed.values()):
            given = ", ".join(name for name, v in self._fixed.items() if v is not None)
            raise ValueError(f"conditions and {given} say the same twice: give conditions=(first, count) -> dict alone")
        if self._conditions is None:
            check_halves(self.guidance.batched, None, self._fixed["cond"], self._fixed["uncond"])
        # Its numbers do not matter here: a plan with a history, of which some forms can make nothing.
        self.guidance.check(_with_history(), "fitted")
        s = self.schedule
        first, last = arguments["t_start"], arguments["t_end"]
        self.t_start = s.t_max if first is None else float(first)
        self.t_end = s.t_min if last is None else float(last)
        s.check(self.t_start)
        s.check(self.t_end)
        if not self.t_start > self.t_end:
            raise ValueError(f"t_start={self.t_start:g} must be above t_end={self.t_end:g}")
        self.evaluations = 0
        """Of the network, counted in samples; both halves of guidance are one."""
        self.sampler = functools.lru_cache(maxsize=1024)(self._sampler)

    def _sampler(self, plan: Plan) -> Sampler:
        return Sampler(
            plan=plan,
            prediction=self.prediction,  # type: ignore[arg-type]
            clip=self.clip,
            dtype=self.dtype,
            backend=self.backend,
            graph=False,
        )

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - a problem lives as long as its fit
    def probe(self, t: float) -> Plan:
        """The plan of one stage whose result is the model value at `t`."""
        p = self.schedule.at(t)
        value = row(0.0, (1.0,))
        below = self.schedule.t_clean if t > self.schedule.t_clean else t - 1.0
        return Plan(
            "probe", self.space, 1, (p.t, below), (Stage(p.t, p.model_time, p.alpha, p.sigma, value, value, below),)
        )

    def value(self, x: torch.Tensor, t: float, batch: Batch) -> torch.Tensor:
        """The model value at x and t, in the space of the plan, guided and clipped."""
        return self.run(self.probe(t), x, batch)

    def run(self, plan: Plan, x: torch.Tensor, batch: Batch, **options: Any) -> Any:
        """A run of `plan` from `x`, counted."""
        self.evaluations += plan.nfe * batch.size
        return self.sampler(plan)(self.model, x, **self.conditions(batch), **self.asked, **options)

    def adaptive(self, x: torch.Tensor, batch: Batch, t: float, end: float) -> torch.Tensor:
        """The probability flow ODE from t to `end` by the adaptive Runge-Kutta method, counted."""
        with warnings.catch_warnings():
            # Of indices below 1, which a user may have mistaken for times from 0 to 1; these come from a grid.
            warnings.simplefilter("ignore", UserWarning)
            solver = Sampler(
                "ode",
                schedule=self.schedule,
                t_start=t,
                t_end=end,
                prediction=self.prediction,  # type: ignore[arg-type]
                clip=self.clip,
                dtype=self.dtype,
                backend=self.backend,
            )
        found, info = solver(self.model, x, return_info=True, **self.conditions(batch), **self.asked)
        self.evaluations += info.nfe * batch.size
        return found

    def conditions(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments of a run for the rows of `batch`."""
        if self._conditions is not None:
            found = dict(self._conditions(batch.row, batch.size))
            wrong = sorted(set(found) - set(TENSOR_CONDITIONS))
            if wrong:
                raise ValueError(
                    f"conditions(first, count) gave {', '.join(wrong)}; expected a dict with keys among "
                    f"{', '.join(TENSOR_CONDITIONS)}, such as {{'model_kwargs': {{'y': labels}}}}"
                )
            return found

        def cut(leaf: Any) -> Any:
            own = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == self.batch
            return leaf[: batch.size] if own else leaf

        return {name: tree_map(cut, value) for name, value in self._fixed.items() if value is not None}

    def levels(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma at one time, () float64, with their slopes for autograd."""
        s, at = self.schedule, float(t.detach())
        # Central differences in float64: 1e-5 of the way is good to about 1e-10 of the slope's size.
        width = 1e-5 * (s.t_max - s.t_clean)
        low, high = max(at - width, s.t_clean), min(at + width, s.t_max)
        found = []
        for values in (s.alpha, s.sigma):
            slope = (values(high) - values(low)) / (high - low)
            found.append(values(at) + slope * (t - t.detach()))
        return found[0], found[1]

    def start(self, batch: Batch) -> torch.Tensor:
        """x at `t_start`, (count, ...): the prior's noise, which a run with this seed starts from."""
        z = randn(
            (batch.size, *self.shape),
            seed=batch.seed,
            first_sample=batch.first,
            prior=True,
            dtype=self.dtype,
            device=self.device,
        )
        return z * self.schedule.prior_std(self.t_start)

    def batches(self, count: int, seed: int, row: int = 0) -> list[Batch]:
        """This process's part of `count` trajectories, in batches."""
        first, end = part(count)
        return list(self._split(first, end, seed, row))

    def _split(self, first: int, end: int, seed: int, row: int) -> Iterator[Batch]:
        for at in range(first, end, self.batch):
            yield Batch(seed, at, min(self.batch, end - at), row + at)


def _with_history() -> Plan:
    stage = Stage(1.0, 1.0, 0.5, 0.5, row(1.0, (0.0,)), row(1.0, (0.0,)), 0.5, keep=True)
    last = Stage(0.5, 0.5, 0.5, 0.5, row(1.0, (0.0, 1.0)), row(1.0, (0.0, 1.0)), 0.0, step=1)
    return Plan("fitted", "noise", 1, (1.0, 0.5, 0.0), (stage, last))
