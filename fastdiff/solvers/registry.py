"""Every solver by name, and `plan`, which builds a table."""

from __future__ import annotations

import copyreg
import dataclasses
import importlib
import math
from collections import ChainMap
from collections.abc import Container, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdiff.names import short, unknown, warn
from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.schedules.grids import AUTOMATIC, GRID_OPTIONS, SPACINGS, end_time, grid, spacing_key
from fastdiff.solvers.base import DrawsNoise, Method, Request
from fastdiff.solvers.foreign import AUTOMATIC as AUTOMATIC_OF
from fastdiff.solvers.foreign import parted
from fastdiff.solvers.index import ALIASES_OF, FAMILY_OF, GUIDED_FAMILY_OF
from fastdiff.values import flag

if TYPE_CHECKING:
    from fastdiff.solvers.embedded import Embedded

FAMILIES = (
    *("ddim", "analytic", "dpm_multistep", "dpm_singlestep", "grpo", "ancestral", "dpm_sde", "seeds", "er_sde"),
    *("sa_solver", "unipc", "heun", "adams", "pndm", "deis", "res", "velocity", "restart", "predictor_corrector"),
    *("distilled", "mean_flow", "ode", "dpm_adaptive"),
)
"""The files of this folder that have methods, in the order in which these are listed."""
GUIDED_FAMILIES = ("cfg_pp",)


class Methods(MutableMapping[str, Method]):
    """Methods by canonical name. The file of a method is read when the method is first asked for; names alone read
    none.

    Args:
        files: the file of each name, as tools/method_names.py writes it.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._made: dict[str, Method | None] = dict.fromkeys(files)
        self._files = files

    def __getitem__(self, name: str) -> Method:
        made = self._made[name]
        if made is not None:
            return made
        for one in importlib.import_module(f"fastdiff.solvers.{self._files[name]}").METHODS:
            # What a caller deleted stays away, and what one put in its place stays.
            if one.name in self._made and self._made[one.name] is None:
                self._made[one.name] = one
        made = self._made[name]
        if made is None:
            raise LookupError(f"{name!r} is not in {self._files[name]}.py: python tools/method_names.py")
        return made

    def __setitem__(self, name: str, method: Method) -> None:
        self._made[name] = method

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


METHODS = Methods(FAMILY_OF)
"""Every method by its canonical name."""
GUIDED = Methods(GUIDED_FAMILY_OF)
"""Those that run with guidance alone: their rows say what becomes of it (`Plan.shifted`)."""
ALIASES: dict[str, str] = dict(ALIASES_OF)
"""Canonical names by alias, as `key_of` writes it."""
DEFAULT_STEPS = 10
FEW_STEPS = 10
"""Up to so many steps second order is the default on VP schedules, above it third (docs/solvers.md has the table)."""


def key_of(name: str) -> str:
    """A name without what other libraries put around it: "sample_" (k-diffusion), "Scheduler", "_gpu" (ComfyUI).

    "DPM++ 2M", as user interfaces show it, is written in letters."""
    key = name.lower().replace("-", "_").replace(" ", "_").replace("++", "pp")
    key = key.removeprefix("sample_").removesuffix("scheduler")
    return key.removesuffix("_gpu").rstrip("_")


ABSENT = {
    "cfgpp_ud10_ab": "euler_cfg_pp, whose step it extrapolates by weights that were tuned on one network",
    "edmdpmsolvermultistep": "dpmpp2m, with schedule='edm', prediction='x0', EDM's preconditioning around the network",
}
"""Samplers of other libraries that are not here, with the nearest that is: k-diffusion's dpm_2 is not our dpm2."""
_KNOWN: Container[str] = ChainMap[str, Any](METHODS, GUIDED, ALIASES, ABSENT)
"""Every key of a method, now and later."""


def register(method: Method) -> Method:
    """Make a method a name like any other: for `sample`, `Sampler`, `plan`, `methods` and the command line.

    For example, in a module of your own:

        fastdiff.register(Method(name="mine", ..., build=build))
        x = fastdiff.sample(model, method="mine")

    Returns:
        The method.

    Raises:
        TypeError: not a `fastdiff.solvers.base.Method`.
        ValueError: a name or an alias that another method has.
    """
    if not isinstance(method, Method):
        raise TypeError(
            f"register takes a fastdiff.solvers.base.Method, got {type(method).__name__}: Method(name=..., build=...)"
        )
    names = [key_of(n) for n in (method.name, *method.aliases)]
    for name in names:
        owner = ALIASES.get(name, name if name in METHODS or name in GUIDED else None)
        if owner is not None:
            raise ValueError(f"the name {name!r} is taken by method {owner!r}: give method {method.name!r} another")
    if names[0] != method.name:
        raise ValueError(
            f"a method's name is in small letters and underscores: expected {names[0]!r}, got {method.name!r}"
        )
    METHODS[method.name] = method
    ALIASES.update(dict.fromkeys(names[1:], method.name))
    return method


def _reduced(method: Method) -> Any:
    """Registered methods by their names: what builds a plan may be a function inside of another."""
    if METHODS.get(method.name) is method:
        return find, (method.name,)
    return object.__reduce_ex__(method, 2)


copyreg.pickle(Method, _reduced)


def find(name: str | Method) -> Method:
    """The method with that name or alias, or the method itself: as diffusers ("DPMSolverMultistepScheduler",
    "DPMSolverMultistep"), k-diffusion ("sample_dpmpp_2m") and ComfyUI ("dpmpp_2m") write it, in any case. `chosen` has
    what a name such as "DPM++ 2M Karras" says besides.

    Raises:
        ValueError: an unknown name, with the nearest method.
        TypeError: not a string.
    """
    if isinstance(name, Method):
        return name
    if not isinstance(name, str):
        raise TypeError(
            f"method must be a name such as 'dpm3', got {type(name).__name__}; fastdiff.methods() lists them"
        )
    key = parted(key_of(name), _KNOWN)[0]
    key = ALIASES.get(key, key)
    if key in ABSENT:
        raise ValueError(
            f"method {name!r} is a sampler of another library that fastdiff does not have; the nearest here: "
            f"{ABSENT[key]}. Valid: {', '.join(METHODS)}"
        )
    if key in GUIDED:
        return GUIDED[key]
    if key not in METHODS:
        raise ValueError(unknown("method", name, [*METHODS, *GUIDED], also=ALIASES))
    return METHODS[key]


def default(
    steps: int | None,
    schedule: NoiseSchedule,
    spacing: str | Sequence[float] | None,
    t_start: float | None,
    t_end: float | None,
) -> tuple[Method, dict[str, Any]]:
    """The method of a call that names none, and options of it; docs/solvers.md has the errors that it was chosen by.

    - Where alpha is 0 at the start, as in flow matching, "dpmpp2m": a noise-prediction method cannot start there.
    - On VE and EDM schedules "dpm3" of full order, whose last time is `t_floor`: a step to sigma = 0 is of first order.
    - Else "dpm2" up to `FEW_STEPS` steps, and "dpm3" above.
    """
    first, count = t_start, steps
    spacing = spacing_key(spacing) if isinstance(spacing, str) else spacing
    if spacing is not None and not (isinstance(spacing, str) and spacing in SPACINGS):
        named = spacing if isinstance(spacing, str) else own_times(spacing)
        times = grid(named, schedule, steps, t_start, t_end)
        first, count = float(times[0]), len(times) - 1
    first = end_time("t_start", first, schedule.t_max, schedule)
    if schedule.kind == "flow" or schedule.lam(first) == -math.inf:
        return METHODS["dpmpp2m"], {}
    if schedule.kind in ("ve", "edm"):
        options: dict[str, Any] = {"lower_order_final": False}
        if spacing is None and t_end is None and not schedule.discrete:
            options["final"] = "t_min"
        return METHODS["dpm3"], options
    many = isinstance(count, int | np.integer) and count > FEW_STEPS
    return METHODS["dpm3" if many else "dpm2"], {}


def chosen(name: str | Method | None, asked: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method of that name, or the default for `asked`; and the options that the default or the name brings, with
    the spacing of a name such as "DPM++ 2M Karras".

    Args:
        asked: "steps", "schedule", "spacing", "t_start" and "t_end" of a call, where they are given.

    Raises:
        ValueError, TypeError: as `find`, `resolve` and `grid`.
    """
    if name is not None:
        method = find(name)
        brought = {} if isinstance(name, Method) else parted(key_of(name), _KNOWN)[1]
        grid_of, given = brought.get("spacing"), asked.get("spacing")
        if grid_of is not None and given is not None:
            if not isinstance(given, str) or spacing_key(given) not in (grid_of, AUTOMATIC):
                raise ValueError(
                    f"method {name!r} names the spacing {grid_of!r}, and spacing={short(given)} another: "
                    f"method={method.name!r}, spacing={short(given)}"
                )
        elif isinstance(given, str) and spacing_key(given) == AUTOMATIC:
            brought["spacing"] = automatic(name)
            # The web UI's, which is not our multistep dpm2.
            method = METHODS["dpm_2"] if method.name == "dpm2" else method
        return method, brought
    schedule = resolve("ddpm" if asked.get("schedule") is None else asked["schedule"])
    return default(asked.get("steps"), schedule, asked.get("spacing"), asked.get("t_start"), asked.get("t_end"))


def automatic(name: str | Method) -> str | None:
    """The grid of the web UI's schedule type "Automatic" for the sampler of that name, None for the method's own.

    Raises:
        ValueError: a name that its menu does not have.
    """
    key = name.name if isinstance(name, Method) else key_of(name)
    if key not in AUTOMATIC_OF:
        raise ValueError(
            f"spacing='Automatic' is the web UI's own grid for each sampler of its menu, and method {key!r} is none of "
            f"these names: {', '.join(AUTOMATIC_OF)}; leave spacing out for the method's own"
        )
    return AUTOMATIC_OF[key]


def implied(name: Any, schedule: Any, prediction: str | None) -> str | None:
    """The prediction, or the one that the method's name says; ValueError where the schedule says otherwise.

    How a flow network is given its time only its user knows, so that no schedule is chosen for it.
    """
    flow = isinstance(name, str) and key_of(name).startswith("flow")
    if flow and prediction is None:
        prediction = "flow"
    known = prediction in ("flow", "flow_to_data")
    if not known and not flow:
        return prediction
    what = f"method {name!r} says that the network is one of flow matching" if flow else f"prediction={prediction!r}"
    call = (
        "schedule='flow', or fastdiff.schedules.flow(shift, time_scale=1000) for a network that is given 0 to 1000, or "
        "'flow_to_data' where t = 1 is data"
    )
    if schedule is None:
        raise ValueError(f"{what}, and no schedule was named: {call}")
    if flow and (not known or resolve(schedule).kind != "flow"):
        raise ValueError(
            f"{what}; got schedule={resolve(schedule)!r}, prediction={prediction!r}: {call}, with "
            "prediction='flow'; for other networks the same steps are method='ddim'"
        )
    return prediction


def settled(name: str, value: Any) -> Any:
    """An option's value with files read, so that it may be kept: whatever a file holds later, the value stays."""
    for method in (*METHODS.values(), *GUIDED.values()):
        if name in method.options:
            return method.options[name].settled(value)
    return value


def methods() -> dict[str, dict[str, Any]]:
    """Every method: summary, order, NFE per step, whether stochastic, whether adaptive (no plan, no `steps`), whether
    it runs with guidance alone, default
    spacing ("" for adaptive methods), options, aliases, what it is good for (`GOOD_FOR`), paper."""
    return {
        m.name: {
            "summary": m.summary,
            "order": m.order,
            "nfe_per_step": m.nfe_per_step,
            "stochastic": m.stochastic,
            "adaptive": m.adaptive,
            "guided": m.name in GUIDED,
            "spacing": m.spacing,
            "options": {k: {"default": o.default, "choices": o.accepted, "doc": o.doc} for k, o in m.options.items()},
            "aliases": tuple(m.aliases),
            "good_for": tuple(m.good_for),
            "paper": m.paper,
        }
        for m in (*METHODS.values(), *GUIDED.values())
    }


def warn_of_unit_times(schedule: NoiseSchedule, t_start: Any, t_end: Any) -> None:
    """A UserWarning where times of DPM-Solver's scale, from 0 to 1, seem to be given to a discrete schedule of more
    than 10 times: for a float 0 < t_start <= 1, unless t_end lies above 1. The integer 1 is the index."""
    count = schedule.num_train
    if count is None or count <= 10 or not isinstance(t_start, float | np.floating) or not 0 < t_start <= 1:
        return
    given, call = f"t_start={float(t_start)}", f"t_start={max(t_start * count - 1, 0):g}"
    if t_end is not None:
        if not isinstance(t_end, int | float | np.number) or t_end > 1:
            return
        given, call = f"{given}, t_end={t_end}", f"{call}, t_end={max(t_end * count - 1, 0):g}"
    warn(
        f"{given}: times of {schedule!r} are indices from 0 to {count - 1}, and this run starts beside the data; the "
        f"index of DPM-Solver's time t from 0 to 1 is t*{count} - 1: {call} (the integer t_start=1 is the index 1, "
        "without this warning)"
    )


def adaptive(
    method: Method,
    steps: Any,
    schedule: NoiseSchedule,
    spacing: Any,
    t_start: float | None,
    t_end: float | None,
    prediction: str,
    **options: Any,
) -> Embedded:
    """An adaptive method, bound to its schedule and times.

    Raises:
        ValueError: `steps` or `spacing` given, times outside the schedule, unknown options, no tolerance above 0.
    """
    call = f"method={method.name!r}, rtol={method.options['rtol'].default:g}, atol={method.options['atol'].default:g}"
    for name, value in (("steps", steps), ("spacing", spacing)):
        if value is not None:
            raise ValueError(
                f"{name}={value!r} does not apply to method {method.name!r}, which chooses its steps from the error: "
                f"give tolerances instead ({call})"
            )
    filled = method.check_options(options, METHODS.values())
    rtol, atol = filled["rtol"], filled["atol"]
    if not (rtol > 0 or atol > 0):
        raise ValueError(f"rtol={rtol:g} and atol={atol:g}: method {method.name!r} needs one of them above 0 ({call})")
    made: Embedded = method.build(Request(schedule, t_start=t_start, t_end=t_end, prediction=prediction), **filled)
    return made


def own_times(spacing: Sequence[float]) -> tuple[float, ...]:
    try:
        times = np.asarray(spacing, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        times = np.empty(())
    if times.ndim != 1:
        raise ValueError(
            f"spacing got {spacing!r}; expected a name of {', '.join(SPACINGS)}, a respacing string such as 'ddim25', "
            "or steps + 1 schedule times in one dimension"
        )
    return tuple(times.tolist())


def default_spacing(own: str, schedule: NoiseSchedule, t_start: float | None) -> str:
    """A method's own spacing, or another one on a schedule where it has no meaning.

    DDIM-type subsequences need a discrete schedule; equal steps of time are poor where time is sigma; and equal steps
    of lambda need a finite one at the start.
    """
    if own == "sde_uniform":
        return own
    if schedule.kind in ("ve", "edm"):
        return "linspace" if schedule.discrete else "karras"
    if own in ("leading", "lcm"):
        return own if schedule.discrete else "uniform"
    if own in ("logsnr", "karras"):
        start = end_time("t_start", t_start, schedule.t_max, schedule)
        if (schedule.lam_min if t_start is None else schedule.lam(start)) == -math.inf:
            return "time_uniform"
    return own


def plan(
    method: str | Method | None = None,
    steps: int | None = None,
    schedule: str | NoiseSchedule = "ddpm",
    spacing: str | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    *,
    invert: bool = False,
    **options: Any,
) -> Plan:
    """The table of a solver.

    Args:
        method: a name or alias of `methods()`; default: chosen from schedule and steps, as `fastdiff.sample` says.
        steps: number of steps, at least 1 (singlestep methods: of network evaluations). Default: what own times or a
            respacing string say, else 10.
        schedule: a `NoiseSchedule` or a name, such as "ddpm".
        spacing: a spacing's name, respacing such as "ddim25", or the `steps + 1` schedule times themselves; default:
            the method's own.
        t_start, t_end: schedule times; default: the schedule's range for this spacing. Of discrete schedules these are
            indices 0 … N − 1: DPM-Solver's t in (0, 1] is t·N − 1 (a float t_start up to 1 there warns).
        invert: the same times upwards, from data to noise (DDIM, Song et al. 2021, arXiv 2010.02502, section 4.3), for
            a deterministic method; without `denoise_to_zero`, and from the lowest time with noise (`Request.points`).
        **options: the method's options, and the spacing's (`rho`, `steps_offset`, `original_steps`, `final`).

    Raises:
        ValueError: unknown names, steps < 1, times outside the schedule or not strictly monotone, unknown options.
        TypeError: values of the wrong type.
    """
    own, brought = chosen(
        method, {"steps": steps, "schedule": schedule, "spacing": spacing, "t_start": t_start, "t_end": t_end}
    )
    spacing = brought.pop("spacing", spacing)
    options = {**brought, **options}
    flag("invert", invert)
    if own.adaptive:
        raise ValueError(
            f"method {own.name!r} is adaptive and has no plan: its steps are chosen while it runs; "
            f"fastdiff.sample(model, method={own.name!r}, return_info=True) tells them"
        )
    resolved = resolve(schedule)
    warn_of_unit_times(resolved, t_start, t_end)
    if spacing is None:
        spacing = default_spacing(own.spacing, resolved, t_start)
    named = spacing_key(spacing) if isinstance(spacing, str) else own_times(spacing)
    if steps is None and named in SPACINGS:
        steps = DEFAULT_STEPS
    grid_options = {k: options.pop(k) for k in GRID_OPTIONS if k in options and k not in own.options}
    filled = own.check_options(options, METHODS.values())
    request = Request(resolved, steps, named, t_start, t_end, grid_options)
    made = own.build(request, **filled)
    if not invert:
        return made
    if "denoise_to_zero" in filled:
        filled["denoise_to_zero"] = False
    # Both: a last step to sigma = 0 draws nothing downwards, whatever the options, and is a noisy one upwards.
    up = made if made.stochastic else own.build(dataclasses.replace(request, upward=True), **filled)
    if up.stochastic:
        raise DrawsNoise(own.name)
    return up
