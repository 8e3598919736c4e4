"""`Sampler`: a plan bound to prediction, guidance and clipping, ready to run on any model; and `sample`, the one-line form."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdiff import ops, solvers
from fastdiff.history import Noise
from fastdiff.loop import Hooks, Move, Run, is_raw, moves, run
from fastdiff.names import unknown
from fastdiff.network import Network, placement, sample_shape, stated
from fastdiff.ops.buffers import Coeffs
from fastdiff.philox import PRIOR, STEP
from fastdiff.plan import NREG, M, Plan
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.table import NEXT_U, NEXT_X, PREDICTIONS, StageSpec, Table, bind

Clip = None | str | tuple[float, float]
Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

DYNAMIC_QUANTILE = 0.995
STATE_DTYPES = (torch.float32, torch.float64)


class Trajectory(NamedTuple):
    """What `return_trajectory=True` adds.

    Attributes:
        times: (steps + 1,) schedule times.
        x: (steps + 1, B, ...): the state at each time, the last being the result.
        x0: (steps, B, ...): x0 as predicted at each time but the last.
    """

    times: torch.Tensor
    x: torch.Tensor
    x0: torch.Tensor


class _Bound(NamedTuple):
    """One binding of the plan, with its tensors on one device."""

    program: tuple[Move, ...]
    table: Table
    values: torch.Tensor
    draws: torch.Tensor
    times: list[torch.Tensor]
    probe: tuple[torch.Tensor, tuple[StageSpec, ...]]
    raw: bool


@functools.lru_cache(maxsize=256)
def _plan(
    method: str,
    steps: int | None,
    schedule: NoiseSchedule,
    spacing: str | tuple[float, ...] | None,
    t_start: float | None,
    t_end: float | None,
    options: tuple[tuple[str, Any], ...],
) -> Plan:
    return solvers.plan(method, steps, schedule, spacing, t_start, t_end, **dict(options))


class Sampler:
    """A sampling method, built once and used with any model, from any thread.

    Args:
        method: a name or alias of `fastdiff.methods()`.
        steps: number of steps, at least 1. Default: what `spacing` says, else 10.
        schedule: `NoiseSchedule` or its name. Default: "ddpm".
        prediction: what the network gives: "eps", "x0", "v", "score" or "flow".
        spacing: a spacing's name, or the `steps + 1` times themselves. Default: the method's own.
        t_start, t_end: the schedule's times to begin and end at. Default: its whole range.
        clip: None, bounds (lo, hi) of the predicted x0, or "dynamic" (Saharia et al. 2022, arXiv 2205.11487, Section 2.3:
            the 99.5% quantile of |x0| of each sample, at least 1, bounds x0, which is then divided by it).
        dtype: of the state and its history: torch.float32 or torch.float64. The network keeps its own.
        backend: None for the fastest that can run, or "reference", "cpu", "triton", "cuda".
        graph: "auto", True or False: CUDA graph capture.
        plan: a `Plan` of your own, instead of method, steps, schedule, spacing, t_start, t_end and options.
        **method_options: the method's options (`fastdiff.methods()` lists them), and the spacing's.

    Raises:
        ValueError, TypeError: bad arguments, with what is valid.
        RuntimeError: a named back end that cannot run here, or graph=True where nothing can be captured.
    """

    def __init__(
        self,
        method: str = "dpm3",
        steps: int | None = None,
        *,
        schedule: str | NoiseSchedule | None = None,
        prediction: str = "eps",
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
        if prediction not in PREDICTIONS:
            raise ValueError(unknown("prediction", prediction, PREDICTIONS))
        if dtype not in STATE_DTYPES:
            raise ValueError(
                f"dtype={dtype}: the state is torch.float32 or torch.float64, whatever the network's own dtype is (a bfloat16 or "
                "float16 network is fine with dtype=torch.float32)"
            )
        if backend is not None and backend not in ops.BACKENDS:
            raise ValueError(unknown("backend", backend, ops.BACKENDS))
        if graph not in ("auto", True, False):
            raise ValueError(f"graph={graph!r}: expected 'auto', True or False")
        if graph is True:
            _refuse_graph()
        self.clip = _check_clip(clip)
        if plan is not None:
            if not isinstance(plan, Plan):
                raise TypeError(
                    f"plan must be a fastdiff.Plan, got {type(plan).__name__}: fastdiff.plan(...) makes one"
                )
            self.plan = plan
        else:
            named = tuple(np.asarray(spacing, dtype=np.float64).ravel().tolist()) if _is_times(spacing) else spacing
            arguments = (method, steps, resolve(schedule or "ddpm"), named, t_start, t_end)
            try:
                self.plan = _plan(*arguments, tuple(sorted(method_options.items())))  # type: ignore[arg-type]
            except TypeError as error:
                if "unhashable" not in str(error):
                    raise
                self.plan = solvers.plan(*arguments, **method_options)  # type: ignore[arg-type]
        self.prediction = prediction
        self.dtype = dtype
        self.backend = backend
        self.graph = graph
        self._bound: dict[tuple[Any, ...], _Bound] = {}

    def __repr__(self) -> str:
        return f"Sampler({self.plan.method!r}, steps={self.plan.steps}, prediction={self.prediction!r}, dtype={self.dtype})"

    @torch.no_grad()
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
        model_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        callback: Callable[[int, float, torch.Tensor, torch.Tensor], None] | None = None,
        return_trajectory: bool = False,
        check_finite: bool = False,
    ) -> Any:
        """Sample. See `fastdiff.sample` for the arguments; returns a fresh tensor (B, ...), or (tensor, Trajectory)."""
        _check_guidance(guidance_scale, cond, uncond, classifier_grad)
        if x is not None:
            _check_x(x)
        found, network_dtype = placement(model)
        where = _device(device, x, found)
        with torch.inference_mode(False):
            size = tuple(x.shape) if x is not None else _shape(model, shape)
            if x is not None and shape is not None and tuple(shape) != size:
                raise ValueError(f"shape={tuple(shape)} does not go with x of shape {size}: give one of them")
            seeds, index = _seeds(seed, first_sample, size[0], where)
            network_dtype = network_dtype or self.dtype
            _, backend = ops.select(self.backend, where, self.dtype, network_dtype)
            if x is None:
                start = torch.empty(size, dtype=self.dtype, device=where)
                if noise is not None:
                    start.copy_(_prior(noise, start))
                else:
                    backend.normal_(start, seeds, index, 0, PRIOR)
                start *= self.plan.prior_std
            else:
                start = x.detach().to(device=where, dtype=self.dtype).contiguous()
            network = Network(model, size[0], model_kwargs, cond, uncond)
            hooks = Hooks(callback=callback, trajectory=[] if return_trajectory else None)
            if check_finite:
                hooks.finite = functools.partial(_require_finite, self.plan)
            r = self._prepare(
                network, backend, network_dtype, start, seeds, index, noise, guidance_scale, classifier_grad, hooks
            )
            with _progress(self.plan, hooks) if progress else contextlib.nullcontext():
                result = run(r, start)
            if hooks.trajectory is None:
                return result
            states, predicted = zip(*hooks.trajectory)
            times = torch.tensor(self.plan.times, dtype=torch.float64, device=where)
            return result, Trajectory(times, torch.stack([*states, result]), torch.stack(predicted))

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
        hooks: Hooks,
    ) -> Run:
        batch, device = start.shape[0], start.device
        direct = network_dtype == self.dtype and all(s.in_scale == 1.0 for s in self.plan.stages)
        copies = 2 if network.guided else int(not direct)
        bound = self._bind(guidance_scale, gradient is not None, copies, device, batch * (2 if network.guided else 1))
        coeffs = Coeffs(bound.values, bound.draws, seeds, index)
        threshold = None
        if self.clip is not None:
            lo, hi = (-1.0, 1.0) if isinstance(self.clip, str) else self.clip
            coeffs.lo = torch.full((batch,), lo, dtype=self.dtype, device=device)
            coeffs.hi = torch.full((batch,), hi, dtype=self.dtype, device=device)
            coeffs.scale = torch.ones(batch, dtype=self.dtype, device=device)
            threshold = dynamic_threshold if isinstance(self.clip, str) else None
        observed = hooks.callback is not None or hooks.trajectory is not None or threshold is not None
        return Run(
            program=bound.program,
            plan=self.plan,
            backend=backend,
            network=network,
            coeffs=coeffs,
            times=bound.times,
            opening=bound.table.specs[0],
            network_dtype=network_dtype,
            direct=direct,
            history=self.plan.history,
            raw=bound.raw,
            noise=noise,
            gradient=gradient,
            probe=bound.probe if observed else None,
            threshold=threshold,
            hooks=hooks,
        )

    def _bind(self, guidance: float | None, classifier: bool, copies: int, device: torch.device, rows: int) -> _Bound:
        key = (guidance, classifier, copies, device, rows)
        found = self._bound.get(key)
        if found is not None:
            return found
        table = bind(
            self.plan,
            self.prediction,
            guidance_scale=guidance,
            classifier=classifier,
            clip=self.clip is not None,
            copies=copies,
        )
        probe = bind(self.plan, self.prediction, space="data", guidance_scale=guidance, classifier=classifier, copies=0)
        values = probe.values.copy()
        values[:, NEXT_U : NEXT_X + NREG] = 0.0
        values[:, NEXT_U + M] = 1.0
        specs = tuple(s._replace(u_mask=1 << M, x_mask=0, copies=0) for s in probe.specs)
        times = torch.as_tensor(table.times).to(device=device, dtype=self.dtype)

        def put(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array).to(device=device, dtype=self.dtype).contiguous()

        made = _Bound(
            program=moves(self.plan, table),
            table=table,
            values=put(table.values),
            draws=torch.as_tensor(table.draws).to(device),
            times=list(times.reshape(-1, 1).repeat(1, rows).unbind(0)),
            probe=(put(values), specs),
            raw=is_raw(table, self.plan),
        )
        if len(self._bound) >= 16:
            self._bound.clear()
        self._bound[key] = made
        return made


def sample(
    model: Callable[..., Any],
    x: torch.Tensor | None = None,
    *,
    shape: Sequence[int] | None = None,
    steps: int | None = None,
    method: str = "dpm3",
    schedule: str | NoiseSchedule | None = None,
    prediction: str | None = None,
    spacing: str | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    seed: int | Sequence[int] = 0,
    first_sample: int = 0,
    noise: Noise | None = None,
    guidance_scale: float | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    classifier_grad: Gradient | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    clip: Clip = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | None = None,
    graph: bool | str = "auto",
    progress: bool = False,
    callback: Callable[[int, float, torch.Tensor, torch.Tensor], None] | None = None,
    return_trajectory: bool = False,
    check_finite: bool = False,
    **method_options: Any,
) -> Any:
    """Sample a diffusion model: `fastdiff.sample(model, steps=10, method="dpm3")`.

    Args:
        model: callable (x, t, **kwargs) -> tensor, tuple, or object with `.sample`. x is (B, ...) in the network's dtype, t is
            (B,) in the state's dtype: the schedule's model time.
        x: (B, ...) the state at `t_start`; floating point, finite. Default: drawn from the prior with `seed`.
        shape: (B, ...) where x is not given; default: one sample of `model.sample_shape` or of a diffusers model's config.
        steps: at least 1; default: what `spacing` says, else 10. Singlestep methods count network evaluations.
        method: a name of `fastdiff.methods()`; names of diffusers, k-diffusion and ComfyUI are aliases.
        schedule: a `NoiseSchedule` or its name; default: `model.schedule`, else "ddpm".
        prediction: "eps", "x0", "v", "score" or "flow"; default: `model.prediction`, else "eps".
        spacing: the time grid: a name, respacing such as "ddim25", or the times themselves. Default: the method's own.
        t_start, t_end: schedule times to begin and end at.
        seed: an int: sample b of the batch is sample `first_sample + b` of that seed; or B ints: each sample has its own.
        first_sample: global index of row 0, so that a batch can be split anywhere with the same result.
        noise: your own noise, (draw, like) -> tensor of like's shape, instead of the built-in; draw is -1 for the prior.
        guidance_scale, cond, uncond: classifier-free guidance uncond + scale·(cond − uncond) (Ho and Salimans 2022), with one
            call of the model on both halves; cond and uncond are dicts of keyword arguments with first dimension B.
        classifier_grad: (x, t) -> grad of log p(y | x) with respect to x, times its scale: classifier guidance in the score
            form (Dhariwal and Nichol 2021, Algorithm 2).
        model_kwargs: keyword arguments for every call of the model.
        clip: None, (lo, hi) for the predicted x0, or "dynamic" thresholding.
        dtype: of the state: torch.float32 or torch.float64.
        device: where to sample; default: x's, else the model's, else the CPU.
        backend: None for the fastest that can run, or one of `fastdiff.backends()`.
        graph: CUDA graph capture: "auto", True or False.
        progress: show a tqdm bar.
        callback: called as callback(stage, time, x, x0) at every network evaluation, with tensors of its own.
        return_trajectory: return (result, Trajectory).
        check_finite: raise FloatingPointError at the first NaN or Inf of the network, naming step and sample; costs a
            synchronisation per evaluation.
        **method_options: options of the method and the spacing; unknown ones are errors that list the valid.

    Returns:
        (B, ...) tensor of dtype `dtype`: the sample at `t_end`; with `return_trajectory`, also a `Trajectory`.

    Raises:
        ValueError, TypeError: bad arguments or model outputs; the message says what was got and what would be right.
        RuntimeError: a named back end that cannot run, or a model that changes its input in place.
    """
    sampler = Sampler(
        method,
        steps,
        schedule=schedule if schedule is not None else stated(model, "schedule"),
        prediction=prediction if prediction is not None else stated(model, "prediction") or "eps",
        spacing=spacing,
        t_start=t_start,
        t_end=t_end,
        clip=clip,
        dtype=dtype,
        backend=backend,
        graph=graph,
        **method_options,
    )
    return sampler(
        model,
        x,
        shape=shape,
        seed=seed,
        first_sample=first_sample,
        noise=noise,
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
    )


def randn(
    shape: Sequence[int],
    *,
    seed: int | Sequence[int] = 0,
    draw: int = 0,
    first_sample: int = 0,
    prior: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Exactly the noise that the kernels draw: standard normals (B, ...), a function of seed, draw and sample index alone.

    Args:
        shape: (B, ...).
        seed, first_sample: as in `fastdiff.sample`.
        draw: number of the draw, 0 to 2^32 − 1.
        prior: the stream of the initial x_T instead of the steps'.
        dtype: torch.float32 or torch.float64 (the same float32 values).
        device, backend: as in `fastdiff.sample`.
    """
    if dtype not in STATE_DTYPES:
        raise ValueError(f"dtype={dtype}: expected torch.float32 or torch.float64")
    size = _check_shape(shape)
    if not 0 <= draw < 2**32:
        raise ValueError(f"draw={draw}: expected 0 to 2**32 - 1")
    where = _device(device, None, None)
    seeds, index = _seeds(seed, first_sample, size[0], where)
    _, module = ops.select(backend, where, dtype, dtype)
    out = torch.empty(size, dtype=dtype, device=where)
    module.normal_(out, seeds, index, draw, PRIOR if prior else STEP)
    return out


def dynamic_threshold(x0: torch.Tensor, coeffs: Coeffs) -> None:
    """Set lo, hi and scale from each sample's quantile of |x0| (Saharia et al. 2022, Section 2.3), on the device."""
    assert coeffs.lo is not None and coeffs.hi is not None and coeffs.scale is not None
    size = x0.abs().flatten(1)
    rank = DYNAMIC_QUANTILE * (size.shape[1] - 1)
    low = math.floor(rank)
    # torch.quantile refuses more than 2^24 elements; the order statistics that it interpolates have no such limit.
    a = size.kthvalue(low + 1, dim=1).values
    b = size.kthvalue(min(low + 2, size.shape[1]), dim=1).values
    bound = torch.lerp(a, b, rank - low).clamp(min=1.0)
    coeffs.hi.copy_(bound)
    coeffs.lo.copy_(-bound)
    coeffs.scale.copy_(1.0 / bound)


@contextlib.contextmanager
def _progress(plan: Plan, hooks: Hooks) -> Iterator[None]:
    from tqdm.auto import tqdm

    with tqdm(total=plan.steps, desc=plan.method, unit="step") as bar:
        hooks.progress = bar.update
        yield


def _require_finite(plan: Plan, stage: int, out: torch.Tensor) -> None:
    good = torch.isfinite(out).flatten(1).all(dim=1)
    if bool(good.all()):
        return
    first = int(torch.argmin(good.int()))
    s = plan.stages[stage]
    raise FloatingPointError(
        f"the network returned NaN or Inf at step {s.step} (stage {stage}, model time {s.model_time:g}) for row {first} of its "
        f"batch of {len(good)}: check the network's dtype, its input scale and prediction=..."
    )


def _is_times(spacing: Any) -> bool:
    return spacing is not None and not isinstance(spacing, str)


def _refuse_graph() -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("graph=True needs a CUDA device, and torch sees none here: use graph='auto' or graph=False")
    raise RuntimeError("graph=True: this version runs the loop eagerly on CUDA; use graph='auto' or graph=False")


def _check_clip(clip: Any) -> Clip:
    if clip is None:
        return None
    if isinstance(clip, str):
        if clip != "dynamic":
            raise ValueError(f"clip={clip!r}: expected None, 'dynamic', or bounds such as (-1, 1)")
        return clip
    try:
        lo, hi = (float(v) for v in clip)
    except (TypeError, ValueError):
        raise ValueError(f"clip={clip!r}: expected None, 'dynamic', or bounds such as (-1, 1)") from None
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"clip={clip!r}: expected finite bounds lo < hi, such as (-1, 1)")
    return lo, hi


def _check_guidance(scale: Any, cond: Any, uncond: Any, gradient: Any) -> None:
    given = {"guidance_scale": scale is not None, "cond": cond is not None, "uncond": uncond is not None}
    if any(given.values()) and not all(given.values()):
        have = ", ".join(k for k, v in given.items() if v)
        need = ", ".join(k for k, v in given.items() if not v)
        hint = (
            "; to condition without guidance, give model_kwargs=..."
            if given["cond"] and not given["guidance_scale"]
            else ""
        )
        raise ValueError(
            f"classifier-free guidance needs guidance_scale, cond and uncond together: got {have}, missing {need}{hint}"
        )
    if scale is not None and (isinstance(scale, bool) or not math.isfinite(scale)):
        raise ValueError(f"guidance_scale={scale!r}: expected a finite number, such as 3.0")
    if gradient is not None:
        if scale is not None:
            raise ValueError(
                "classifier_grad and classifier-free guidance (guidance_scale, cond, uncond) do not go together: use one"
            )
        if not callable(gradient):
            raise TypeError(f"classifier_grad must be callable as classifier_grad(x, t), got {type(gradient).__name__}")


def _check_x(x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a torch.Tensor of shape (B, ...), got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"x has dtype {x.dtype}; expected floating point: pass x.float()")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, ...) with at least one sample and one element")
    if x.requires_grad:
        raise ValueError("x requires grad, but sampling runs without gradients: pass x.detach()")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x has NaN or Inf; expected finite values")


def _check_shape(shape: Any) -> tuple[int, ...]:
    try:
        size = tuple(int(n) for n in shape)
    except (TypeError, ValueError):
        raise TypeError(f"shape={shape!r}: expected (B, ...), such as shape=(16, 3, 32, 32)") from None
    if not size or min(size) < 1:
        raise ValueError(f"shape={size}: expected (B, ...) with sizes of at least 1, such as shape=(16, 3, 32, 32)")
    return size


def _shape(model: Any, shape: Any) -> tuple[int, ...]:
    if shape is not None:
        return _check_shape(shape)
    one = sample_shape(model)
    if one is None:
        raise ValueError(
            "cannot tell the shape of a sample: pass x=..., or shape=(B, ...), or give the model an attribute sample_shape = (C, H, W)"
        )
    return (1, *one)


def _device(device: torch.device | str | None, x: torch.Tensor | None, model: torch.device | None) -> torch.device:
    where = (
        torch.device(device) if device is not None else (x.device if x is not None else model or torch.device("cpu"))
    )
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    if model is not None and (model.type != where.type or (model.index is not None and model.index != where.index)):
        raise ValueError(
            f"the model is on {model}, and sampling would run on {where}: move one, x.to({str(model)!r}) or model.to(...)"
        )
    return where


def _seeds(seed: Any, first_sample: Any, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) int64 keys and (B,) int32 indices: one seed and consecutive indices, or a seed for each sample with index 0."""
    if (
        isinstance(first_sample, bool)
        or not isinstance(first_sample, int | np.integer)
        or not 0 <= first_sample <= 2**31 - 1 - batch
    ):
        raise ValueError(f"first_sample={first_sample!r}: expected an integer from 0 to {2**31 - 1 - batch}")
    if isinstance(seed, torch.Tensor):
        seed = seed.tolist()
    several = isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str)
    values = list(seed) if several else [seed] * batch
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not -(2**63) <= value < 2**64:
            raise TypeError(
                f"seed={value!r}: expected an integer from -2**63 to 2**64 - 1, or one such integer per sample"
            )
    if len(values) != batch:
        raise ValueError(f"got {len(values)} seeds for a batch of {batch}: give one seed, or one per sample")
    if several and first_sample:
        raise ValueError("first_sample goes with a single seed: with one seed per sample, each sample is its own")
    signed = [int(v) - 2**64 if int(v) >= 2**63 else int(v) for v in values]
    index = (
        torch.zeros(batch, dtype=torch.int32)
        if several
        else torch.arange(first_sample, first_sample + batch, dtype=torch.int32)
    )
    return torch.tensor(signed, dtype=torch.int64).to(device), index.to(device)


def _prior(noise: Noise, like: torch.Tensor) -> torch.Tensor:
    value = noise(-1, like)
    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(
            f"noise(-1, like) returned {got}; expected a tensor of shape {tuple(like.shape)}: the prior's noise"
        )
    return value
