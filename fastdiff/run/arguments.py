"""Checks of what the public functions are given: each error says what was got, what was expected, and the right
call."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from fastdiff import ops
from fastdiff.guidance import Guidance
from fastdiff.names import no_values, short, unknown, untraced, warn_once
from fastdiff.plan import Frames
from fastdiff.prediction import ALL_PREDICTIONS
from fastdiff.run.history import Noise
from fastdiff.run.network import DTYPES, sample_shape
from fastdiff.run.threshold import Dynamic
from fastdiff.values import flag, shown

BROWNIAN = "brownian"
STATE_DTYPES = (torch.float32, torch.float64)


def check_run(prediction: Any, dtype: Any, backend: Any, graph: Any) -> None:
    """What every sampler is made with."""
    if prediction is not None and not (isinstance(prediction, str) and prediction in ALL_PREDICTIONS):
        raise ValueError(unknown("prediction", prediction, ALL_PREDICTIONS))
    if not isinstance(dtype, torch.dtype) or dtype not in STATE_DTYPES:
        raise ValueError(
            f"dtype={short(dtype)}: the state is torch.float32 or torch.float64, whatever the network's own dtype is "
            "(a bfloat16 or float16 network is fine with dtype=torch.float32)"
        )
    if backend is not None and not (isinstance(backend, str) and backend in ops.BACKENDS):
        raise ValueError(unknown("backend", backend, ops.BACKENDS))
    if not isinstance(graph, bool) and not (isinstance(graph, str) and graph == "auto"):
        raise ValueError(f"graph={graph!r}: expected 'auto', True or False")


def default_schedule(prediction: Any) -> str:
    """The schedule of a network for which none was named, and which states none. Said once in a process.

    Raises:
        ValueError: a network of flow matching, whose schedule this cannot be.
    """
    if prediction in ("flow", "flow_to_data"):
        raise ValueError(
            f"prediction={prediction!r}, and no schedule was named: schedule='flow', or fastdiff.schedules.flow(shift, "
            "time_scale=1000) for a network that is given 0 to 1000, or 'flow_to_data' where t = 1 is data"
        )
    warn_once(
        "schedule",
        "no schedule was named, and the model states none: 'ddpm' is taken, linear betas from 0.0001 to 0.02 in 1000 "
        "steps. Name the one that the network was trained with, schedule='ddpm' or schedule='scaled_linear' (Stable "
        "Diffusion), or give the model an attribute `schedule`",
    )
    return "ddpm"


def warn_of_training(model: Any) -> None:
    """Once for each class: a network whose dropout and batch statistics are those of training."""
    if isinstance(model, torch.nn.Module) and model.training:
        kind = type(model)
        warn_once(
            ("training", kind),
            f"the model, {kind.__name__}, is in training mode, where dropout and batch normalisation act otherwise: "
            "call model.eval()",
        )


def check_clip(clip: Any, dtype: torch.dtype) -> Dynamic | tuple[float, float] | None:
    """`clip` with "dynamic" spelled out; `dtype`: of the state, which must hold its numbers."""
    known = _clip(clip)
    # The factor of dynamic thresholding, 1/max_value, too.
    numbers = (known.max_value, 1.0 / known.max_value) if isinstance(known, Dynamic) else known or ()
    if any(abs(v) > torch.finfo(dtype).max for v in numbers):
        raise ValueError(f"clip={clip!r}: bounds beyond what {dtype} holds; expected such as (-1, 1)")
    return known


def _clip(clip: Any) -> Dynamic | tuple[float, float] | None:
    if clip is None or isinstance(clip, Dynamic):
        return clip
    expected = "expected None, 'dynamic', fastdiff.Dynamic(...), or bounds such as (-1, 1)"
    if isinstance(clip, str):
        if clip != "dynamic":
            raise ValueError(f"clip={clip!r}: {expected}")
        return Dynamic()
    try:
        lo, hi = (float(v) for v in clip)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"clip={clip!r}: {expected}") from None
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"clip={clip!r}: expected finite bounds lo < hi, such as (-1, 1)")
    return lo, hi


def check_conditions(form: Guidance, scale: Any, cond: Any, uncond: Any) -> None:
    """A guidance and its conditions go together."""
    if form.weak is not None and (cond is not None or uncond is not None):
        raise ValueError(
            f"{type(form).__name__} calls both networks with the same conditions: give model_kwargs=..., not cond and "
            "uncond"
        )
    check_halves(form.conditioned, scale, cond, uncond)


def check_observed(form: Guidance, clip: Any, correct_x0: Any) -> None:
    """What needs the guided x0 as the model value does not go with rows written for the unconditional one."""
    if form.reverses and (clip is not None or correct_x0 is not None):
        what = "clip" if clip is not None else "correct_x0"
        raise ValueError(
            f"{what} does not go with a method that is CFG++, whose model value is the unconditional x0: use "
            "method='ddim', guidance=CFGPlusPlus(0.6), which takes it"
        )


def check_halves(batched: bool, scale: Any, cond: Any, uncond: Any) -> None:
    """Classifier-free guidance and its two conditions go together."""
    if batched == (cond is not None) == (uncond is not None):
        return
    given = {"guidance": batched, "cond": cond is not None, "uncond": uncond is not None}
    name = "guidance_scale" if scale is not None else "guidance"
    have = ", ".join(name if k == "guidance" else k for k, v in given.items() if v)
    need = ", ".join(name if k == "guidance" else k for k, v in given.items() if not v)
    hint = "; to condition without guidance, give model_kwargs=..." if given["cond"] and not batched else ""
    raise ValueError(
        f"classifier-free guidance needs guidance, cond and uncond together: got {have}, missing {need}{hint}"
    )


FLAGS = ("progress", "check_finite", "return_trajectory", "return_info")


def check_flags(arguments: Mapping[str, Any]) -> None:
    for name in FLAGS:
        if name in arguments:
            flag(name, arguments[name])


def is_path(noise: Any) -> bool:
    """Whether the noise is one Brownian path. Raises ValueError for any other word."""
    if isinstance(noise, str) and noise != BROWNIAN:
        raise ValueError(unknown("noise", noise, [BROWNIAN]))
    return isinstance(noise, str)


def check_callables(noise: Any, callback: Any) -> None:
    """The two functions that a run calls."""
    if noise is None and callback is None:
        return
    calls = (
        ("noise", None if is_path(noise) else noise, "noise(draw, like) -> tensor of like's shape"),
        ("callback", callback, "callback(stage, time, x, x0)"),
    )
    for name, value, call in calls:
        if value is not None and not callable(value):
            hint = "; a tensor to start from is x" if name == "noise" and isinstance(value, torch.Tensor) else ""
            raise TypeError(f"{name} must be callable as {call}, got {type(value).__name__}{hint}")


def check_frames(frames: Any, arguments: Mapping[str, Any], has_x: bool) -> None:
    """Frames, and what does not go with them."""
    if frames is None:
        return
    if not isinstance(frames, Frames):
        raise TypeError(
            f"frames={shown(frames)}: expected a fastdiff.Frames, such as fastdiff.Frames(axis=2, steps='pyramid')"
        )
    if arguments["noise"] is not None:
        raise ValueError("noise=... draws whole samples, and with frames each has draws of its own: leave it out")
    if arguments.get("correct_xt") is not None:
        raise ValueError(
            "correct_xt is called after the steps of a whole sample, and with frames each has steps of its own: "
            "correct x0 with correct_x0, or call sampler.begin and sampler.step"
        )
    if frames.begun and not has_x:
        raise ValueError(
            "some frames are no pure noise at the start: pass x with these frames in their places, and noise in the "
            "others, x = fastdiff.randn(...)"
        )


def check_x(x: Any) -> torch.Tensor:
    """`x`, through the door of `fastdiff.ops`; raises for what no run can begin with."""
    if not isinstance(x, torch.Tensor):
        hint = ""
        if isinstance(x, tuple | list):
            hint = ": to draw the start give shape=(B, ...)"
        elif isinstance(x, np.ndarray):
            hint = ": pass torch.from_numpy(x)"
        elif callable(x):
            hint = (
                "; a model goes first, sampler(model, x), and begin(x) takes none: its caller evaluates the network, "
                "sampler.step(state, model(state.input, state.time))"
            )
        raise TypeError(f"x must be a torch.Tensor of shape (B, ...), got {type(x).__name__}{hint}")
    x = ops.admitted("x", x)
    if not x.dtype.is_floating_point:
        raise TypeError(f"x has dtype {x.dtype}; expected floating point: pass x.float()")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, ...) with at least one sample and one element")
    if x.requires_grad:
        raise ValueError("x requires grad, but sampling runs without gradients: pass x.detach()")
    return x


def cast_x(x: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """x, already checked, as a contiguous state; ValueError for values that are not finite in its dtype."""
    state = x.detach().to(device=device, dtype=dtype).contiguous()
    # On a device this would wait for it, in every call: check_finite=True looks at what the network makes of x.
    if x.device.type == "cpu" and not ops.symbolic(x) and not finite(state):
        if bool(torch.isfinite(x).all()):
            raise ValueError(
                f"x has values up to {float(x.detach().abs().max()):.3g}, which {dtype} cannot hold: scale it, or give "
                "dtype=torch.float64 (and a network in float64)"
            )
        raise ValueError("x has NaN or Inf; expected finite values")
    return state


def finite(x: torch.Tensor) -> bool:
    """Whether all values are. A sum is not finite where one of them is not, and costs far less than a look at each."""
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def check_shape(shape: Any, kind: str = "(B, ...)", such: tuple[int, ...] = (16, 3, 32, 32)) -> tuple[int, ...]:
    try:
        size = tuple(operator.index(n) for n in shape)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"shape={shape!r}: expected {kind}, such as shape={such}") from None
    if not size or min(size) < 1:
        raise ValueError(f"shape={size}: expected {kind} with sizes of at least 1, such as shape={such}")
    if size[0] >= 2**31 or math.prod(size[1:]) > 2**34 or math.prod(size) > 2**40:
        raise ValueError(
            f"shape={short(size)}: expected a batch below 2**31 and at most 2**34 elements in a sample, 2**40 in all"
        )
    return size


def check_out(out: Any, start: torch.Tensor) -> None:
    if out is None:
        return
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out must be a torch.Tensor of shape {tuple(start.shape)}, got {type(out).__name__}")
    ops.admitted("out", out)
    got = (tuple(out.shape), out.dtype, out.device)
    want = (tuple(start.shape), start.dtype, start.device)
    if got != want or out.requires_grad:
        raise ValueError(f"out has shape, dtype and device {got}; expected {want}, without requires_grad")


def check_output_dtype(
    asked: Any, network: torch.dtype | None, state: torch.dtype, out: torch.Tensor | None
) -> torch.dtype:
    """The dtype of the result that was asked for: the network's, or one that was named."""
    if isinstance(asked, str) and asked == "network":
        if network is None:
            raise ValueError(
                "output_dtype='network', and the model, which is no module with parameters, does not say its own: name "
                "it, such as output_dtype=torch.bfloat16"
            )
        asked = network
    if not isinstance(asked, torch.dtype) or asked not in DTYPES:
        raise ValueError(f"output_dtype={short(asked)}: expected 'network' or one of {', '.join(map(str, DTYPES))}")
    if out is not None and asked != state:
        raise ValueError(
            f"output_dtype={asked} with out of dtype {state}: the result is written into out; give one of them"
        )
    return cast(torch.dtype, asked)


def resolve_shape(model: Any, shape: Any, x: Any) -> tuple[int, ...]:
    """The shape of the run's state: x's, the one asked for, or one sample of the model's."""
    if isinstance(x, torch.Tensor):
        if shape is not None and (size := check_shape(shape)) != tuple(x.shape):
            raise ValueError(f"shape={size} does not go with x of shape {tuple(x.shape)}: give one of them")
        return tuple(x.shape)
    if x is not None:
        check_x(x)
    if shape is not None:
        return check_shape(shape)
    one = sample_shape(model)
    if one is None:
        raise ValueError(
            "cannot tell the shape of a sample: pass x=..., or shape=(B, ...), or give the model an attribute "
            "sample_shape = (C, H, W)"
        )
    return (1, *one)


def _device(device: Any) -> torch.device:
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device={short(device)}: expected a torch.device or its name, such as device='cpu'")
    try:
        return torch.device(device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={short(device)}: expected a name such as 'cpu' or 'cuda:0' ({reason})") from None


def _check_there(device: torch.device) -> None:
    """RuntimeError for a device that this build of torch cannot make tensors on."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise RuntimeError(
            f"device={str(device)!r}: torch makes no tensors there ({reason}); use device='cpu', or leave it out"
        ) from None


@untraced
def _default_device() -> str:
    return str(torch.get_default_device())


def resolve_device(
    device: torch.device | str | None, x: torch.Tensor | None, model: torch.device | None
) -> torch.device:
    if device is not None:
        where = _device(device)
    else:
        where = x.device if x is not None else model or torch.device(_default_device())
    if where.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device={str(where)!r}: torch sees no CUDA device here; use device='cpu', or leave it out")
    if where.index is None and model is not None and model.type == where.type:
        # "mps" and "xpu" name the device that their tensors say has a number.
        where = model
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    if where.type not in ("cpu", "cuda", "meta"):
        _check_there(where)
    if model is not None and (model.type != where.type or (model.index is not None and model.index != where.index)):
        raise ValueError(
            f"the model is on {model}, and sampling would run on {where}: move one, x.to({str(model)!r}) or "
            "model.to(...)"
        )
    return where


def need_values(device: torch.device, what: str) -> None:
    """ValueError for a device whose tensors have no values, where the host decides by them."""
    if device.type == "meta":
        raise ValueError(f"device='meta' holds no values, and {what} decides by them: use device='cpu'")


def resolve_seeds(seed: Any, first_sample: Any, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) int64 keys and (B,) int32 indices: one seed and consecutive indices, or a seed for each sample with index
    0."""
    if (
        isinstance(first_sample, bool)
        or not isinstance(first_sample, int | np.integer)
        or not 0 <= first_sample <= 2**31 - 1 - batch
    ):
        raise ValueError(f"first_sample={first_sample!r}: expected an integer from 0 to {2**31 - 1 - batch}")
    first = int(first_sample)
    if isinstance(seed, torch.Tensor) and torch.compiler.is_dynamo_compiling():
        raise no_values("seed")
    if isinstance(seed, torch.Tensor | np.ndarray):
        # One seed where there is no dimension.
        seed = seed.tolist()
    several = isinstance(seed, Sequence) and not isinstance(seed, str | bytes | bytearray)
    values = list(seed) if several else [seed]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not -(2**63) <= value < 2**64:
            raise TypeError(
                f"seed={short(value)}: expected an integer from -2**63 to 2**64 - 1, or one such integer per sample"
            )
    signed = [int(v) - 2**64 if int(v) >= 2**63 else int(v) for v in values]
    if not several:
        # No kernel writes them. On a device they are each call's own, which may be on another stream.
        made = _one_seed if device.type != "cpu" or ops.tracing() else _kept_seed
        return made(signed[0], first, batch, device)
    if len(values) != batch:
        raise ValueError(f"got {len(values)} seeds for a batch of {batch}: give one seed, or one per sample")
    if first:
        raise ValueError("first_sample goes with a single seed: with one seed per sample, each sample is its own")
    own = torch.tensor(signed, dtype=torch.int64, device="cpu")
    if device.type == "cuda":
        own = own.pin_memory().to(device, non_blocking=True)
    return own.to(device), torch.zeros(batch, dtype=torch.int32, device=device)


def _one_seed(seed: int, first: int, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Made on the device: a copy from the host would wait for all the work that the stream still has."""
    seeds = torch.full((batch,), seed, dtype=torch.int64, device=device)
    return seeds, torch.arange(first, first + batch, dtype=torch.int32, device=device)


_kept_seed = functools.lru_cache(maxsize=64)(_one_seed)


def prior_noise(noise: Noise, like: torch.Tensor) -> torch.Tensor:
    value = noise(-1, like)
    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(
            f"noise(-1, like) returned {got}; expected a tensor of shape {tuple(like.shape)}: the prior's noise"
        )
    value = ops.returned("noise", value)
    if value.device.type == "cpu" and not ops.symbolic(value) and not finite(value):
        raise ValueError("noise(-1, like) returned NaN or Inf; expected standard normals, the prior's noise")
    return value
