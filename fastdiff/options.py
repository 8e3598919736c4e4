"""The arguments of `sample`, `Sampler` and its calls, each declared once. `fastdiff.sample` explains each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from typing_extensions import Required, TypedDict

from fastdiff.guidance import Guidance
from fastdiff.names import CONDITIONING, ELSEWHERE, misplaced, nearest
from fastdiff.plan import Frames, Plan
from fastdiff.run.corrections import CorrectX0, CorrectXt
from fastdiff.run.evaluate import Callback
from fastdiff.run.history import Noise
from fastdiff.run.threshold import Dynamic
from fastdiff.schedules import NoiseSchedule
from fastdiff.solvers import GRID_OPTIONS, GUIDED, METHODS, Method
from fastdiff.solvers.method_names import MethodName, MethodOptions

Clip = Literal["dynamic"] | Dynamic | tuple[float, float] | None
Prediction = Literal["eps", "x0", "v", "score", "flow", "flow_to_data", "edm", "previous"]
Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Seeds = int | Sequence[int] | torch.Tensor
F = TypeVar("F", bound=Callable[..., Any])


class HasConfig(Protocol):
    """A scheduler of diffusers."""

    @property
    def config(self) -> Any:
        """What its network was trained with."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
        """Not called."""


class SamplerOptions(MethodOptions, total=False):
    """What a `Sampler` is made with, besides its method and steps."""

    schedule: str | NoiseSchedule | HasConfig | None
    prediction: Prediction | None
    spacing: str | Sequence[float] | None
    t_start: float | None
    t_end: float | None
    clip: Clip
    dtype: torch.dtype
    backend: Literal["cuda", "triton", "cpu", "reference"] | None
    graph: bool | Literal["auto"]
    plan: Plan | None


class PlaceOptions(TypedDict, total=False):
    """Where a run takes place, and what guides it."""

    device: torch.device | str | None
    guidance: float | Sequence[float] | torch.Tensor | Callable[[float], Any] | Guidance | None
    guidance_scale: float | Sequence[float] | torch.Tensor | None


class StartOptions(PlaceOptions, total=False):
    """Where a run starts, and its noise."""

    shape: Sequence[int] | None
    seed: Seeds
    first_sample: int
    noise: Noise | Literal["brownian"] | None
    frames: Frames | None


class BeginOptions(StartOptions, total=False):
    """Of `Sampler.begin`."""

    network_dtype: torch.dtype | None


class InvertOptions(PlaceOptions, total=False):
    """Of a run that draws nothing and starts from a given state."""

    cond: Mapping[str, Any] | None
    uncond: Mapping[str, Any] | None
    classifier_grad: Gradient | None
    classifier_form: Literal["score", "mean", "score_after_clip"] | None
    model_kwargs: Mapping[str, Any] | None
    progress: bool
    callback: Callback | None
    check_finite: bool
    correct_x0: CorrectX0 | None
    correct_xt: CorrectXt | None
    out: torch.Tensor | None
    output_dtype: torch.dtype | Literal["network"] | None


class RunOptions(StartOptions, InvertOptions, total=False):
    """Of one run."""


# What a run returns depends on two arguments: the overloads need one class for each pair of values.


class Plain(RunOptions, total=False):
    return_trajectory: Literal[False]
    return_info: Literal[False]


class WithTrajectory(RunOptions, total=False):
    return_trajectory: Required[Literal[True]]
    return_info: Literal[False]


class WithInfo(RunOptions, total=False):
    return_trajectory: Literal[False]
    return_info: Required[Literal[True]]


class WithBoth(RunOptions, total=False):
    return_trajectory: Required[Literal[True]]
    return_info: Required[Literal[True]]


class InvertPlain(InvertOptions, total=False):
    return_trajectory: Literal[False]


class InvertTrajectory(InvertOptions, total=False):
    return_trajectory: Required[Literal[True]]


class SampleMethod(SamplerOptions, total=False):
    method: MethodName | Method | None
    steps: int | None


class SamplePlain(SampleMethod, Plain, total=False): ...


class SampleTrajectory(SampleMethod, WithTrajectory, total=False): ...


class SampleInfo(SampleMethod, WithInfo, total=False): ...


class SampleBoth(SampleMethod, WithBoth, total=False): ...


SAMPLER_DEFAULTS: dict[str, Any] = {
    "schedule": None,
    "prediction": None,
    "spacing": None,
    "t_start": None,
    "t_end": None,
    "clip": None,
    "dtype": torch.float32,
    "backend": None,
    "graph": "auto",
    "plan": None,
}
_PLACE_DEFAULTS: dict[str, Any] = {"device": None, "guidance": None, "guidance_scale": None}
_START_DEFAULTS: dict[str, Any] = {
    "shape": None,
    "seed": 0,
    "first_sample": 0,
    "noise": None,
    "frames": None,
    **_PLACE_DEFAULTS,
}
BEGIN_DEFAULTS: dict[str, Any] = {**_START_DEFAULTS, "network_dtype": None}
INVERT_DEFAULTS: dict[str, Any] = {
    **_PLACE_DEFAULTS,
    "cond": None,
    "uncond": None,
    "classifier_grad": None,
    "classifier_form": None,
    "model_kwargs": None,
    "progress": False,
    "callback": None,
    "check_finite": False,
    "correct_x0": None,
    "correct_xt": None,
    "out": None,
    "output_dtype": None,
    "return_trajectory": False,
}
RUN_DEFAULTS: dict[str, Any] = {**_START_DEFAULTS, **INVERT_DEFAULTS, "return_info": False}
SAMPLE_DEFAULTS: dict[str, Any] = {"method": None, "steps": None, **SAMPLER_DEFAULTS, **RUN_DEFAULTS}
CHOICE = ("method", "steps")
"""What names the method, in any call that takes its options."""

_PLACES = {
    "Sampler": "an argument of Sampler(...) itself",
    "call": "an argument of the run, sampler(model, {0}=...)",
    "begin": "an argument of Sampler.begin(...)",
}


def filled(call: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the defaults filled in, for the calls that take no options of a method.

    Raises:
        TypeError: an argument that `call` does not take, with the place where it goes or the nearest that it takes.
    """
    whole = {**defaults, **given}
    if len(whole) > len(defaults):
        raise TypeError(_unknown(call, next(name for name in given if name not in defaults), defaults))
    return whole


def parted(
    call: str, method: Method | None, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`given` as arguments, with the defaults filled in, and options of the method and its spacing.

    What is nearest to an option is left to the method, which says what it takes.

    Raises:
        ValueError: a name that belongs to another call or library, or is nearest to an argument.
    """
    options = {k: v for k, v in given.items() if k not in defaults}
    if not options:
        return {**defaults, **given}, options
    own = [*GRID_OPTIONS, *(() if method is None else method.options)]
    if all(name in own for name in options):
        return {**defaults, **{k: v for k, v in given.items() if k in defaults}}, options
    everywhere = {*own, *(name for m in (*METHODS.values(), *GUIDED.values()) for name in m.options)}
    arguments = [*defaults, *CHOICE]
    for name in options:
        if name not in everywhere and (known_elsewhere(name) or nearest(name, [*arguments, *own]) in arguments):
            raise ValueError(_unknown(call, name, arguments))
    return {**defaults, **{k: v for k, v in given.items() if k in defaults}}, options


def shows(defaults: Mapping[str, Any], *more: str) -> Callable[[F], F]:
    """For `help` and notebooks: a signature with the keyword arguments by name; `more` stands for others."""

    def decorate(function: F) -> F:
        kinds = inspect.Parameter
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
        named += [kinds(name, kinds.KEYWORD_ONLY, default=value) for name, value in defaults.items()]
        named += [kinds(name, kinds.VAR_KEYWORD) for name in more]
        function.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return function

    return decorate


def known_elsewhere(name: str) -> bool:
    """Whether another call of this library or another library has an argument of that name."""
    return name in ELSEWHERE or name in CONDITIONING or name in RUN_DEFAULTS or name in SAMPLER_DEFAULTS


def _unknown(call: str, name: str, valid: Iterable[str]) -> str:
    places = {}
    for place, names in (("Sampler", SAMPLER_DEFAULTS), ("call", RUN_DEFAULTS), ("begin", BEGIN_DEFAULTS)):
        places.update({n: _PLACES[place].format(n) for n in names if n not in places})
    places.update(dict.fromkeys(CHOICE, _PLACES["Sampler"]))
    return misplaced(call, name, valid, places)
