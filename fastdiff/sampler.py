"""`Sampler`: a plan bound to prediction, guidance and clipping, ready to run on any model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from fastdiff import ops, solvers
from fastdiff.arguments import (
    Clip,
    Gradient,
    check_callables,
    check_clip,
    check_guidance,
    check_out,
    check_run,
    check_x,
    prior_noise,
    resolve_device,
    resolve_form,
    resolve_seeds,
    resolve_shape,
)
from fastdiff.binding import Bound, bound_on_device, echo_rows
from fastdiff.corrections import CorrectX0, CorrectXt, check_corrections
from fastdiff.graph import capture_refusal, execute
from fastdiff.history import Noise
from fastdiff.loop import Hooks, Run, State
from fastdiff.names import unknown, warn
from fastdiff.network import Network, placement, stated
from fastdiff.ops.buffers import Coeffs
from fastdiff.philox import PRIOR
from fastdiff.plan import Plan, Stage
from fastdiff.report import Trajectory, progress_bar, require_finite
from fastdiff.schedule_base import Point
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.table import ALL_PREDICTIONS, check_previous
from fastdiff.threshold import Dynamic, set_bounds


# Typed, and options with their types: 1 and True are equal, but only one of them is valid.
@functools.lru_cache(maxsize=256, typed=True)
def _plan(
    method: str,
    steps: int | None,
    schedule: NoiseSchedule,
    spacing: str | tuple[float, ...] | None,
    t_start: float | None,
    t_end: float | None,
    options: tuple[tuple[str, type, Any], ...],
) -> Plan:
    return solvers.plan(method, steps, schedule, spacing, t_start, t_end, **{k: v for k, _, v in options})


class Sampler:
    """A sampling method, built once and used with any model, from any thread.

    Args:
        method: a name or alias of `fastdiff.methods()`.
        steps: number of steps, at least 1. Default: what `spacing` says, else 10.
        schedule: `NoiseSchedule` or its name. Default: "ddpm".
        prediction: what the network gives: "eps", "x0", "v", "score" or "flow"; with method "ddpm" also "previous": the
            mean of the next, cleaner state of the steps taken. Default: `model.prediction`, else "eps".
        spacing: a spacing's name, or the `steps + 1` times themselves. Default: the method's own.
        t_start, t_end: the schedule's times to begin and end at, of discrete schedules indices (see `fastdiff.sample`).
            Default: its whole range.
        clip: None, bounds (lo, hi) of the predicted x0, "dynamic" (Saharia et al. 2022, arXiv 2205.11487, Section 2.3:
            the 99.5% quantile of |x0| of each sample, at least 1, bounds x0, which is then divided by it), or
            `fastdiff.Dynamic` with another quantile or least bound.
        dtype: of the state and its history: torch.float32 or torch.float64. The network keeps its own.
        backend: None for the fastest that can run, or "reference", "cpu", "triton", "cuda".
        graph: "auto", True or False: CUDA graph capture.
        plan: a `Plan` of your own, instead of method, steps, schedule, spacing, t_start, t_end and options.
        **method_options: the method's options (`fastdiff.methods()` lists them), and the spacing's.

    Raises:
        ValueError, TypeError: bad arguments, with what is valid.
        RuntimeError: a named back end that cannot run here, or graph=True where nothing can be captured.
    """

    def __new__(cls, method: str = "dpm3", *args: Any, **kwargs: Any) -> Sampler:
        """Adaptive methods, which have no plan, have a class of their own."""
        if cls is Sampler and kwargs.get("plan") is None and solvers.find(method).adaptive:
            from fastdiff.adaptive_sampler import AdaptiveSampler

            cls = AdaptiveSampler
        return super().__new__(cls)

    def __init__(
        self,
        method: str = "dpm3",
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
        if graph is True:
            why = capture_refusal()
            if why is not None:
                raise RuntimeError(f"graph=True: {why}; use graph='auto' or graph=False")
        self.clip = check_clip(clip)
        if plan is not None:
            if not isinstance(plan, Plan):
                raise TypeError(
                    f"plan must be a fastdiff.Plan, got {type(plan).__name__}: fastdiff.plan(...) makes one"
                )
            self.plan = plan
        else:
            named = spacing if spacing is None or isinstance(spacing, str) else solvers.own_times(spacing)
            arguments = (method, steps, resolve("ddpm" if schedule is None else schedule), named, t_start, t_end)
            try:
                typed = tuple((k, type(v), v) for k, v in sorted(method_options.items()))
                self.plan = _plan(*arguments, typed)
            except TypeError as error:
                if "unhashable" not in str(error):
                    raise
                self.plan = solvers.plan(*arguments, **method_options)
        check_previous(prediction, self.plan.method)
        self.prediction = prediction
        self._own_schedule = plan is None and schedule is None
        self._asked = None if plan is not None else (arguments, method_options)
        self.dtype = dtype
        self.backend = backend
        self.graph = graph
        self._bound: dict[tuple[Any, ...], Bound] = {}

    def __repr__(self) -> str:
        return (
            f"Sampler({self.plan.method!r}, steps={self.plan.steps}, prediction={self.prediction!r}, "
            f"dtype={self.dtype})"
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
        """Sample. See `fastdiff.sample` for the arguments; returns a fresh tensor (B, ...), or (tensor, Trajectory)."""
        check_guidance(guidance_scale, cond, uncond, classifier_grad)
        check_callables(noise, callback)
        if return_info:
            raise ValueError(
                f"return_info goes with adaptive methods: what method {self.plan.method!r} does is known before, in "
                f"Sampler.plan ({self.plan.nfe} network evaluations)"
            )
        form = resolve_form(self.plan, classifier_grad, classifier_form)
        check_corrections(self.plan, correct_x0, correct_xt)
        self._check_stated(model)
        found, network_dtype = placement(model)
        with _mode():
            backend, start, seeds, index = self._start(
                x, resolve_shape(model, shape, x), seed, first_sample, noise, device, found, network_dtype
            )
            check_out(out, start)
            network_dtype = network_dtype or self.dtype
            network = Network(model, len(start), model_kwargs, cond, uncond, wide=self.plan.wide)
            hooks = Hooks(callback=callback, correct_x0=correct_x0, correct_xt=correct_xt)
            hooks.trajectory = [] if return_trajectory else None
            if check_finite:
                hooks.finite = functools.partial(require_finite, self.plan, len(start))
            r = self._prepare(
                network,
                backend,
                network_dtype,
                start,
                seeds,
                index,
                noise,
                guidance_scale,
                classifier_grad,
                form,
                hooks,
            )
            with progress_bar(self.plan, hooks) if progress else contextlib.nullcontext():
                result = execute(r, start, self.graph, out)
            if hooks.trajectory is None:
                return result
            states, predicted = zip(*hooks.trajectory, strict=True)
            times = torch.tensor(self.plan.times, dtype=torch.float64, device=start.device)
            return result, Trajectory(times, torch.stack([start, *states[1:], result]), torch.stack(predicted))

    @functools.cached_property
    def inverse(self) -> Sampler:
        """The same method on the same times upwards, from data to noise: the sampler that `invert` runs.

        The data are taken as the state at the lowest time with noise: the time that the grid ends at, or its schedule's
        `t_floor` where it ends at sigma = 0, where most networks and solvers are not defined.

        Raises:
            ValueError: the method draws noise, or the plan was given as it is.
        """
        if self.plan.stochastic:
            raise ValueError(
                f"method {self.plan.method!r} with these options draws noise, so that no single x_T leads to a sample: "
                "invert a deterministic one, such as ddim with eta=0"
            )
        if self._asked is None:
            raise ValueError(
                "this Sampler was given its plan ready-made, whose inverse only its maker knows: give it the method "
                "and its options, or run Sampler(plan=fastdiff.plan(..., invert=True)) on the data"
            )
        arguments, options = self._asked
        return Sampler(
            prediction=self.prediction,
            clip=self.clip,
            dtype=self.dtype,
            backend=self.backend,
            graph=self.graph,
            plan=solvers.plan(*arguments, invert=True, **options),
        )

    def invert(
        self,
        model: Callable[..., Any],
        x: torch.Tensor,
        *,
        guidance_scale: float | None = None,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        classifier_grad: Gradient | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        callback: Callable[[int, float, torch.Tensor, torch.Tensor], None] | None = None,
        return_trajectory: bool = False,
        check_finite: bool = False,
        out: torch.Tensor | None = None,
    ) -> Any:
        """From data to the noise that leads to them: `sampler(model, sampler.invert(model, x))` is x, but for the error
        of the steps, which falls with their number at the method's order (DDIM, Song et al. 2021, arXiv 2010.02502,
        section 4.3).

        Args:
            x: (B, ...) data. See `inverse` for the time at which they are taken to be.
            Others: as in `fastdiff.sample`. Give the same guidance to both runs; strong guidance makes the map stiff,
                and the reconstruction poor.

        Returns:
            (B, ...): x at the time at which the sampler starts; with `return_trajectory`, also a `Trajectory`.

        Raises:
            ValueError, TypeError: as in `fastdiff.sample`, and for methods that draw noise.
        """
        self._check_stated(model)
        if not isinstance(x, torch.Tensor):
            check_x(x)
        return self.inverse(
            model,
            x,
            guidance_scale=guidance_scale,
            cond=cond,
            uncond=uncond,
            classifier_grad=classifier_grad,
            model_kwargs=model_kwargs,
            device=device,
            progress=progress,
            callback=callback,
            return_trajectory=return_trajectory,
            check_finite=check_finite,
            out=out,
        )

    def _check_stated(self, model: Any) -> None:
        """What the model states must not be passed over in silence, where the sampler was not told otherwise."""
        prediction = stated(model, "prediction")
        if self.prediction is None and prediction is not None:
            if prediction not in ALL_PREDICTIONS:
                raise ValueError(unknown("model.prediction", prediction, ALL_PREDICTIONS))
            check_previous(prediction, self.plan.method)
        schedule = stated(model, "schedule")
        if self._own_schedule and schedule is not None and resolve(schedule) != resolve("ddpm"):
            raise ValueError(
                f"the model states schedule={resolve(schedule)!r}, and this Sampler was made for the default, 'ddpm': "
                "Sampler(..., schedule=model.schedule)"
            )

    def begin(
        self,
        x: torch.Tensor | None = None,
        *,
        shape: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        first_sample: int = 0,
        noise: Noise | None = None,
        guidance_scale: float | None = None,
        network_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """Start a run whose loop is the caller's, who evaluates the network:

            state = sampler.begin(shape=(4, 3, 32, 32), seed=0)
            while not state.done:
                state = sampler.step(state, model(state.input, state.time))
            x = state.x

        Args:
            guidance_scale: if given, `state.input` has 2·B rows, and so has the output: the conditional half first.
            network_dtype: of `state.input`; default: the state's.
            x, shape, seed, first_sample, noise, device: as in `fastdiff.sample`.
        """
        with _mode():
            given = network_dtype or self.dtype
            size = resolve_shape(None, shape, x)
            backend, start, seeds, index = self._start(x, size, seed, first_sample, noise, device, None, given)
            network = Network(_outside, len(start), wide=self.plan.wide)
            network.guided = guidance_scale is not None
            r = self._prepare(network, backend, given, start, seeds, index, noise, guidance_scale, None, "", Hooks())
            # The outputs are the caller's, who may write into them again: the history gets copies.
            return State(r, start, copies=True)

    def step(self, state: State, output: torch.Tensor) -> State:
        """Take the network's `output` at `state.input`, and go to the next evaluation. Returns `state`, advanced."""
        if state.done:
            raise ValueError("the run is complete: state.x is the sample; sampler.begin(...) starts another")
        with _mode():
            state.step(state.r.network.check(output, state.input))
        return state

    @property
    def _prior_std(self) -> float:
        return self.plan.prior_std

    @property
    def _first(self) -> Stage | Point:
        """The time that a run starts at."""
        return self.plan.stages[0]

    def _start(
        self,
        x: torch.Tensor | None,
        size: tuple[int, ...],
        seed: Any,
        first_sample: int,
        noise: Noise | None,
        device: torch.device | str | None,
        model_device: torch.device | None,
        network_dtype: torch.dtype | None,
    ) -> tuple[ModuleType, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The back end, x at the start, and every sample's seed and index."""
        if x is not None:
            check_x(x)
        where = resolve_device(device, x, model_device)
        seeds, index = resolve_seeds(seed, first_sample, size[0], where)
        _, backend = ops.select(self.backend, where, self.dtype, network_dtype or self.dtype)
        if x is not None:
            return backend, x.detach().to(device=where, dtype=self.dtype).contiguous(), seeds, index
        first = self._first
        if first.alpha > first.sigma:
            warn(
                f"x is pure noise, drawn at t={first.t:g}, where alpha={first.alpha:.3g}, sigma={first.sigma:.3g}: a "
                "network expects little noise there, and the result will be no sample; start at a noisier time, or "
                "pass x (times of discrete schedules are indices, not sigmas)"
            )
        start = torch.empty(size, dtype=self.dtype, device=where)
        if noise is not None:
            start.copy_(prior_noise(noise, start))
        else:
            backend.normal_(start, seeds, index, 0, PRIOR)
        start *= self._prior_std
        return backend, start, seeds, index

    def _prepare(
        self,
        network: Network,
        backend: ModuleType,
        network_dtype: torch.dtype,
        start: torch.Tensor,
        seeds: torch.Tensor,
        index: torch.Tensor,
        noise: Noise | None,
        guidance_scale: float | None,
        gradient: Gradient | None,
        form: str,
        hooks: Hooks,
    ) -> Run:
        batch, device = start.shape[0], start.device
        direct = network_dtype == self.dtype and all(s.in_scale == 1.0 for s in self.plan.stages)
        copies = 2 if network.guided else int(not direct)
        corrects = hooks.correct_x0 is not None
        observed = (
            corrects or hooks.callback is not None or hooks.trajectory is not None or isinstance(self.clip, Dynamic)
        )
        rows = batch * (2 if network.guided else 1)
        prediction = self.prediction or stated(network.model, "prediction") or "eps"
        bound = self._bind(network_dtype, prediction, guidance_scale, form, copies, device, rows, observed, corrects)
        coeffs = Coeffs(bound.values, bound.draws, seeds, index)
        return Run(
            program=bound.program,
            plan=self.plan,
            backend=backend,
            network=network,
            coeffs=coeffs,
            clock=bound.clock,
            opening=bound.table.specs[0],
            network_dtype=network_dtype,
            direct=direct,
            history=self.plan.history,
            raw=bound.raw,
            noise=noise,
            gradient=gradient,
            probe=bound.probe,
            threshold=set_bounds(self.clip, coeffs, start, backend),
            echo=None if hooks.correct_xt is None else Coeffs(echo_rows(bound.values), bound.draws, seeds, index),
            hooks=hooks,
        )

    def _bind(self, network_dtype: torch.dtype, *key: Any) -> Bound:
        """The plan bound and on the device; kept, since a sampler is mostly called with the same arguments."""
        full = (network_dtype, *key)
        found = self._bound.get(full)
        if found is None:
            found = bound_on_device(self.plan, self.dtype, self.clip is not None, network_dtype, *key)
            if len(self._bound) >= 16:
                self._bound.clear()
            self._bound[full] = found
        return found


@contextlib.contextmanager
def _mode() -> Iterator[None]:
    """No gradients, and ordinary tensors even in a caller's inference mode, whose tensors have no version counter."""
    # In this order: leaving inference mode switches gradients on.
    with torch.inference_mode(False), torch.no_grad():
        yield


def _outside(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("this run's network is called by the owner of the loop")
