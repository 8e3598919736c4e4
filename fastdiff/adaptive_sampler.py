"""`AdaptiveSampler`: what `Sampler` is for methods that choose their steps while they run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fastdiff import solvers
from fastdiff.adaptive import Driver
from fastdiff.adaptive_lanes import Binding
from fastdiff.adaptive_report import Hooks, progress_bar
from fastdiff.arguments import (
    Clip,
    Gradient,
    check_callables,
    check_clip,
    check_guidance,
    check_out,
    check_run,
    resolve_shape,
)
from fastdiff.corrections import CorrectX0, CorrectXt, check_calls
from fastdiff.history import Noise
from fastdiff.loop import State
from fastdiff.network import Network, placement, stated
from fastdiff.ops.buffers import Coeffs
from fastdiff.plan import Plan
from fastdiff.report import Trajectory
from fastdiff.sampler import Sampler, _mode
from fastdiff.schedule_base import Point
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.solvers.embedded import Embedded
from fastdiff.table import check_previous
from fastdiff.threshold import set_bounds


class AdaptiveSampler(Sampler):
    """A `Sampler` without a plan; `Sampler("ode", ...)` makes one. Arguments as there, but for `steps`, `spacing` and
    `plan`.

    Raises:
        ValueError: `steps` or `spacing` given, times outside the schedule, unknown options.
        RuntimeError: graph=True.
    """

    def __init__(
        self,
        method: str = "ode",
        steps: int | None = None,
        *,
        schedule: str | NoiseSchedule | None = None,
        prediction: str | None = None,
        spacing: str | Sequence[float] | None = None,
        t_start: float | None = None,
        t_end: float | None = None,
        clip: Clip = None,
        dtype: torch.dtype = torch.float32,
        backend: str | None = None,
        graph: bool | str = "auto",
        plan: Plan | None = None,
        **method_options: Any,
    ) -> None:
        check_run(prediction, dtype, backend, graph)
        if plan is not None:
            raise ValueError(
                f"plan= does not go with the adaptive method {method!r}, which chooses its steps as it runs"
            )
        chosen = solvers.find(method)
        if graph is True:
            raise RuntimeError(
                f"graph=True: method {chosen.name!r} chooses each step from the error of the last, a value that the "
                "host must read, so a run cannot be captured as one graph; use graph='auto' or graph=False (the model "
                "itself may replay a graph of its own)"
            )
        self.schedule = resolve("ddpm" if schedule is None else schedule)
        solvers.warn_of_unit_times(self.schedule, t_start, t_end)
        self.clip = check_clip(clip)
        self._arguments = chosen, steps, self.schedule, spacing, t_start, t_end
        self._options = method_options
        self._own_schedule = schedule is None
        self.prediction, self.dtype, self.backend, self.graph = prediction, dtype, backend, graph
        self._named = self._method(prediction or "eps")
        rtol, atol = self._named.rtol, self._named.atol
        # One rounding of a state of order 1: below it a step's error is noise, and steps shrink without end.
        if dtype == torch.float32 and rtol + atol < 2.0**-23:
            raise ValueError(
                f"rtol={rtol:g}, atol={atol:g} are below what a state in float32 can show, 1.2e-07 together: give "
                "dtype=torch.float64 (and a network in float64), or larger ones"
            )

    def _method(self, prediction: str) -> Embedded:
        check_previous(prediction, self._arguments[0].name)
        return solvers.adaptive(*self._arguments, prediction, **self._options)

    @property
    def plan(self) -> Plan:  # type: ignore[override]
        """AttributeError: an adaptive method has none."""
        raise AttributeError(
            f"method {self._named.method!r} is adaptive and has no plan: its steps are chosen while it runs; call the "
            "sampler with return_info=True to see them"
        )

    @property
    def _first(self) -> Point:
        return self._named.start

    @property
    def _prior_std(self) -> float:
        return self._named.prior_std

    def __repr__(self) -> str:
        a = self._named
        return (
            f"Sampler({a.method!r}, rtol={a.rtol:g}, atol={a.atol:g}, control={a.control!r}, "
            f"prediction={self.prediction!r}, dtype={self.dtype})"
        )

    def _check_stated(self, model: Any) -> None:
        schedule = stated(model, "schedule")
        if self._own_schedule and schedule is not None and resolve(schedule) != self.schedule:
            raise ValueError(
                f"the model states schedule={resolve(schedule)!r}, and this Sampler was made for the default, 'ddpm': "
                "Sampler(..., schedule=model.schedule)"
            )

    def __call__(
        self,
        model: Callable[..., Any],
        x: torch.Tensor | None = None,
        *,
        shape: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        first_sample: int = 0,
        noise: Noise | None = None,
        guidance_scale: float | None = None,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        classifier_grad: Gradient | None = None,
        classifier_form: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        callback: Callable[[int, float, torch.Tensor, torch.Tensor], None] | None = None,
        return_trajectory: bool = False,
        return_info: bool = False,
        check_finite: bool = False,
        correct_x0: CorrectX0 | None = None,
        correct_xt: CorrectXt | None = None,
        out: torch.Tensor | None = None,
    ) -> Any:
        """Sample. See `fastdiff.sample`; returns a fresh tensor (B, ...), or a tuple of it, `Trajectory` and `Info`, as
        asked.

        `callback(step, time, x, x0)` is called at the start and after every accepted step. `correct_x0` is called at
        every evaluation, also of steps that are then rejected; with control="sample" its t is a (B,) float64 tensor, a
        time for each sample, and what it makes of a sample that has arrived is not used.
        """
        check_guidance(guidance_scale, cond, uncond, classifier_grad)
        check_callables(noise, callback)
        check_calls(correct_x0, correct_xt)
        self._check(classifier_grad, classifier_form, correct_xt, callback is not None or return_trajectory)
        self._check_stated(model)
        prediction = self.prediction or stated(model, "prediction") or "eps"
        method = self._method(prediction)
        if correct_x0 is not None:
            # It stands in for the output: where x0 says nothing of the noise, at sigma = 0, the run cannot pass.
            method = self._method("x0")
        if x is None and not method.forward:
            raise ValueError(
                f"from t_start={method.start.t:g} to t_end={method.stop.t:g} method {method.method!r} runs from data "
                "to noise: pass x, the data"
            )
        found, network_dtype = placement(model)
        with _mode():
            backend, start, seeds, index = self._start(
                x, resolve_shape(model, shape, x), seed, first_sample, noise, device, found, network_dtype
            )
            check_out(out, start)
            network = Network(model, len(start), model_kwargs, cond, uncond)
            coeffs, binding = Coeffs(start, start, seeds, index), Binding(prediction, guidance_scale, classifier_grad)
            binding.clip, binding.corrects = self.clip is not None, correct_x0 is not None
            binding.threshold = set_bounds(self.clip, coeffs, start, backend)
            hooks = Hooks(callback, [] if return_trajectory else None, finite=check_finite, correct_x0=correct_x0)
            driver = Driver(method, backend, network, network_dtype or self.dtype, binding, coeffs, start, hooks)
            with progress_bar(method, hooks) if progress else contextlib.nullcontext():
                result = driver.run()
            result = result if out is None else out.copy_(result)
            more: list[Any] = []
            if hooks.trajectory is not None:
                at, states, predicted = zip(*hooks.trajectory, strict=True)
                times = torch.tensor([*at, driver.lanes[0].times[-1]], dtype=torch.float64, device=start.device)
                more.append(Trajectory(times, torch.stack([*states, result]), torch.stack(predicted)))
            if return_info:
                more.append(driver.info())
            return (result, *more) if more else result

    def _check(self, gradient: Any, form: Any, correct_xt: Any, observed: bool) -> None:
        name = self._named.method
        if form is not None and (gradient is None or form != "score"):
            raise ValueError(
                f"classifier_form={form!r}: method {name!r} is an ODE, and takes classifier_grad in the form 'score' "
                "alone"
            )
        if correct_xt is not None:
            raise ValueError(
                f"correct_xt does not go with adaptive methods: the next step of method {name!r} and its error start "
                "from values of the state before the correction, and the times at which it were called would depend on "
                "the tolerances; use correct_x0=..., or a method with a plan"
            )
        if observed and self._named.control == "sample":
            raise ValueError(
                "callback and return_trajectory report the steps of the batch, and with control='sample' each sample "
                "has its own: use control='batch', or return_info=True for the times"
            )

    @functools.cached_property
    def inverse(self) -> Sampler:
        """The ODE between the same times from data to noise.

        Raises:
            ValueError: 'dpm_adaptive', which runs from noise to data alone.
        """
        a, options = self._named, {k: v for k, v in self._options.items() if k != "denoise_to_zero"}
        if a.method != "ode":
            raise ValueError(f"method {a.method!r} runs from noise to data alone: invert method='ode'")
        return Sampler(
            a.method,
            schedule=self.schedule,
            prediction=self.prediction,
            t_start=a.stop.t,
            t_end=a.start.t,
            clip=self.clip,
            dtype=self.dtype,
            backend=self.backend,
            **options,
        )

    def begin(self, x: torch.Tensor | None = None, **arguments: Any) -> State:
        """ValueError: an adaptive method evaluates trial steps that may be rejected, so its loop cannot be the
        caller's."""
        raise ValueError(
            f"method {self._named.method!r} is adaptive: its loop cannot be the caller's; call the sampler itself"
        )
