"""Time grids: from a spacing's name, a respacing string or your own times to the public times of a run."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.names import one_of, short, unknown
from fastdiff.schedules import peers
from fastdiff.schedules.base import ROUNDING, Array, NoiseSchedule
from fastdiff.schedules.call import GridCall, ordered
from fastdiff.schedules.continuous import VE
from fastdiff.values import number

SPACINGS: dict[str, str] = {
    "time_uniform": "steps of equal time, to t_min (DPM-Solver)",
    "logsnr": "steps of equal lambda, to t_min (DPM-Solver)",
    "time_quadratic": "steps of equal sqrt(t), to t_min; sqrt((n + 1)/N) on discrete schedules (DPM-Solver)",
    "uniform": "model times c i with c = N // steps, then clean (DDIM); equal steps to clean on continuous schedules",
    "quadratic": "model times c i^2 up to 0.8 N, then clean (DDIM); discrete schedules",
    "leading": "model times c i + steps_offset with c = N // steps, then clean (diffusers); discrete schedules",
    "linspace": "model times from the first to the last inclusive, then clean (diffusers)",
    "trailing": "model times N - 1, N - 1 - N/steps, ..., then clean (diffusers)",
    "lcm": "of the original_steps times N/original_steps*i - 1, every so many from the last, then clean (LCM, TCD)",
    "karras": "steps of equal sigma^(1/rho), then clean (Karras et al. 2022, eq. 5)",
    "exponential": "steps of equal log sigma, then clean (k-diffusion)",
    "ddim_uniform": "model times c i + 1 with c = N // steps, then clean; as uniform on continuous schedules (ComfyUI)",
    "simple": "model times N - 1 - floor(i N/steps), then clean; as uniform on continuous schedules (ComfyUI)",
    "sde_uniform": "as linspace; for VE and EDM as exponential, for VE to the SDE's time 1e-5; then clean (score_sde)",
    **{name: named.doc for name, named in peers.NAMED.items()},
}
ALIASES = {
    "ays": "ays_sd15",
    "align_your_steps_11": "align_your_steps",
    "ddim": "ddim_uniform",
    "turbo": "trailing",
}
"""Names of user interfaces; their lists are those of the network at hand, by default of Stable Diffusion 1.5."""
LABELS = {"Uniform": "normal"}
"""Labels of a menu, letter by letter, which say another thing than the same name here: DDIM's "uniform"."""
AUTOMATIC = "automatic"
"""The grid that the web UI has for a sampler where none is chosen; only a method with its name can say which."""
MAX_STEPS = 100_000
"""A table has one row a step, or several, in memory: no run needs more."""
_OPTIONS: dict[str, tuple[str, ...]] = {
    "karras": ("rho",),
    "leading": ("steps_offset",),
    "lcm": ("original_steps",),
    **{name: tuple(named.options) for name, named in peers.NAMED.items()},
}
GRID_OPTIONS: tuple[str, ...] = (*dict.fromkeys(o for names in _OPTIONS.values() for o in names), "final")
"""Every option of a spacing."""
_FINAL = ("clean", "t_min")
_CURVES = ("time_uniform", "logsnr", "time_quadratic", "karras", "exponential")
_RESPACING = "a respacing string such as 'ddim25' or '10,15,20', or your own times"


def grid(
    spacing: str | Sequence[float] | NDArray[Any],
    schedule: NoiseSchedule,
    steps: int | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    *,
    final: str | None = None,
    **options: float,
) -> Array:
    """The `steps` + 1 public times of a run: float64, strictly decreasing, the first where it starts.

    `spacing` is a name in `SPACINGS`; a respacing string of guided-diffusion ("ddim25": every N/25-th time; "10,15,20":
    so many from each third); or your own times, when t_start, t_end and final must be left out. With a respacing string
    or times of your own, `steps` may be None.

    `t_start` defaults to `schedule.t_max`. `final="t_min"` ends at `t_end`, by default the schedule's `t_min` (its
    `t_floor`, where `t_min` is clean and the spacing counts in log sigma). `final="clean"` puts `schedule.t_clean`
    after that time, as the last of the `steps` + 1. Default: "t_min" for the time_* spacings and logsnr, and where
    `t_end` is given; else "clean".

    Spacings that list model times ("uniform", "quadratic", "leading", "linspace", "trailing", "lcm", respacing) take
    them from the integers in (t_end, t_start], so partial runs have `steps` evaluations too. One step starts at
    t_start, where the literal rule of some would start at index 0 from pure noise. "quadratic" moves repeated times up
    by one.
    On continuous schedules "uniform" and "trailing" are steps of equal time to the clean end, and "linspace" is equal
    steps from t_start to `t_floor` followed by the clean end.

    Options: `rho` (7) of "karras", `steps_offset` (0) of "leading", `original_steps` (50) of "lcm"; those of the grids
    of other programs are in `fastdiff.schedules.peers`. "karras" and "exponential" count in sigma / alpha, for flow in
    sigma itself, as its pure noise has an infinite ratio.

    Raises ValueError for anything that cannot be met.
    """
    if not isinstance(spacing, str):
        return _own(spacing, schedule, steps, t_start, t_end, final, options)
    spacing = spacing_key(spacing)
    if spacing == AUTOMATIC:
        raise ValueError(
            "spacing='Automatic' is a sampler's own grid in the web UI, which a method says that is named as there: "
            "fastdiff.sample(..., method='DPM++ 2M', spacing='Automatic')"
        )
    counts = None if spacing in SPACINGS else _parse_respacing(spacing)
    name = spacing if counts is None else "respacing"
    for option in options:
        valid = (*_OPTIONS.get(name, ()), "final")
        if option not in valid:
            raise ValueError(unknown(f"option of spacing {spacing!r}:", option, valid))
    if final is not None:
        one_of("final", final, _FINAL)
    if counts is not None:
        steps = sum(counts) if steps is None else steps
        if sum(counts) != _steps(steps):
            raise ValueError(f"spacing {spacing!r} makes {sum(counts)} steps; got steps={steps}: leave steps out")
    count = _steps(steps)
    start = end_time("t_start", t_start, schedule.t_max, schedule)
    end = None if t_end is None else end_time("t_end", t_end, schedule.t_clean, schedule)
    if name == "sde_uniform":
        name = "exponential" if schedule.kind in ("ve", "edm") and not schedule.discrete else "linspace"
        if isinstance(schedule, VE) and end is None and final != "t_min":
            # Song et al. 2021, arXiv 2011.13456, App. C: eps = 1e-5 in sigma_min·(sigma_max/sigma_min)^t.
            end, final = schedule.sigma_min * (schedule.sigma_max / schedule.sigma_min) ** 1e-5, "clean"
    request = GridCall(name, spacing, schedule, count, start, end, final, options)
    if name in peers.NAMED:
        times = peers.times(request, t_start is not None)
    elif name in _CURVES:
        times = _curve(request)
    elif schedule.discrete:
        times = _listed(request, counts)
    else:
        times = _listed_continuous(request)
    return checked(times, schedule, f"spacing {spacing!r} with steps={count}")


def spacing_key(spacing: str) -> str:
    """The name in `SPACINGS` that a menu's name means, as "SGM Uniform" or "KL Optimal"; any other as it is."""
    key = spacing.lower().replace("-", "_").replace(" ", "_")
    key = LABELS.get(spacing) or ALIASES.get(key, key)
    return key if key in SPACINGS or key == AUTOMATIC else spacing


def _steps(steps: object) -> int:
    try:
        if isinstance(steps, (bool, np.bool_)):
            raise TypeError
        count = operator.index(steps)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"steps got {short(steps)}; expected an integer >= 1, such as steps=10") from None
    if count < 1:
        raise ValueError(f"steps got {count}; expected an integer >= 1, such as steps=10")
    if count > MAX_STEPS:
        raise ValueError(f"steps got {short(count)}; expected at most {MAX_STEPS}, such as steps=10")
    return count


def end_time(name: str, value: float | None, default: float, schedule: NoiseSchedule) -> float:
    """An end of a run: a time of the schedule, or the default; ValueError, with its name, for anything else."""
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} got {short(value)}; expected a time of {schedule!r}") from None
    if not schedule.t_clean <= number <= schedule.t_max:
        number = float(schedule.within(number))
        try:
            schedule.check(number)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return number


def checked(times: Array, schedule: NoiseSchedule, what: str) -> Array:
    """The times, which are strictly decreasing times of the schedule, also in float32; or ValueError."""
    schedule.check(times)
    # Two times that are one in float32 are one to a network, and solvers divide by what lies between them.
    near = ROUNDING * np.maximum(np.abs(times[:-1]), np.abs(times[1:]))
    flat = np.flatnonzero(np.diff(times) >= -near)
    if flat.size:
        i = int(flat[0])
        same = times[i] - times[i + 1] >= -near[i]
        exact = "" if times[i] == times[i + 1] else ", within float32's rounding,"
        verb = f"repeat{exact}" if same else "do not decrease at"
        raise ValueError(
            f"{what} {verb} the time {float(times[i + 1])!r} (position {i + 1}); expected strictly decreasing times: "
            "use fewer steps, or a wider range from t_start to t_end"
        )
    return times


def _own(
    spacing: Sequence[float] | NDArray[Any],
    schedule: NoiseSchedule,
    steps: int | None,
    t_start: float | None,
    t_end: float | None,
    final: str | None,
    options: dict[str, float],
) -> Array:
    given = [name for name, value in (("t_start", t_start), ("t_end", t_end), ("final", final)) if value is not None]
    given += options
    if given:
        raise ValueError(f"{given[0]} does not go with times of your own: they state where they start and end")
    try:
        times = schedule.within(np.array(spacing, dtype=np.float64))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"spacing got {spacing!r}; expected a name of {', '.join(SPACINGS)}, {_RESPACING}") from None
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"own times got shape {times.shape}; expected (steps + 1,), at least a start and an end")
    if steps is not None and _steps(steps) != times.size - 1:
        raise ValueError(f"{times.size} own times make {times.size - 1} steps; got steps={steps}: leave steps out")
    if np.all(np.diff(times) > 0.0):
        raise ValueError(
            "own times increase; a run goes from noise to data: give them in decreasing order, times[::-1]"
        )
    _check_axis(times, schedule)
    return checked(times, schedule, "own times")


def _check_axis(times: Array, schedule: NoiseSchedule) -> None:
    """ValueError for own times that are of another axis: sigmas for indices or t in [0, 1], or indices for sigmas.

    Sigmas are told from indices by a time between 0 and 1 after others that are no whole numbers, down to 0 at least,
    all far from the noisy end: a run of this schedule would begin beside the data.
    """
    sigmas = f"[float(schedule.inverse_lambda(-math.log(s))) for s in sigmas if s > 0] + [{schedule.t_clean:g}]"
    if schedule.discrete and schedule.kind != "ve":
        inner = times[(times > 0.0) & (times != np.rint(times))]
        far = times[0] < 0.25 * schedule.t_max
        if schedule.t_max > 100 and far and times[-1] >= 0.0 and inner.size > 1 and inner[-1] < 1.0:
            raise ValueError(
                f"own times from {times[0]:g} to {times[-1]:g} look like sigmas, and those of {schedule!r} are indices "
                f"from 0 to {schedule.t_max:g}: spacing={sigmas}, or spacing='karras'"
            )
    elif not schedule.discrete and times[0] > schedule.t_max * (1.0 + ROUNDING):
        axis = "sigmas" if schedule.kind in ("ve", "edm") else "t"
        other = f"; of sigmas: spacing={sigmas}" if axis == "t" else "; of another range: the schedule's sigma_max"
        raise ValueError(
            f"own times begin at {times[0]:g}, and those of {schedule!r} are {axis} up to {schedule.t_max:g}{other}"
        )


def _curve(request: GridCall) -> Array:
    name, _, schedule, steps, start, given, final, _ = request
    in_sigma = name in ("karras", "exponential")
    in_log = in_sigma or name == "logsnr"
    if in_log and given == schedule.t_clean:
        given, final = None, final or "clean"
    end = given
    if end is None:
        end = schedule.t_floor if in_log else schedule.t_min
    if final is None:
        final = "clean" if in_sigma and given is None else "t_min"
    clean = final == "clean" and end != schedule.t_clean
    ordered(start, end, schedule)
    nodes = np.linspace(0.0, 1.0, steps if clean else steps + 1)
    if name == "time_uniform":
        times = start + nodes * (end - start)
    elif name == "time_quadratic":
        # (n + 1)/N on discrete schedules: 0 is the clean time.
        a, b = math.sqrt(start - schedule.t_clean), math.sqrt(end - schedule.t_clean)
        times = (a + nodes * (b - a)) ** 2 + schedule.t_clean
    else:
        times = _log_curve(request, nodes, end)
    times[0] = start
    if nodes.size > 1:
        times[-1] = end
    return np.append(times, schedule.t_clean) if clean else times


def _log_curve(request: GridCall, nodes: Array, end: float) -> Array:
    name, schedule, start = request.name, request.schedule, request.start
    flow = schedule.kind == "flow" and name != "logsnr"
    # log of the level: sigma for flow, else sigma / alpha.
    a, b = (math.log(schedule.sigma(t)) if flow else -schedule.lam(t) for t in (start, end))
    if math.isinf(a):
        raise ValueError(
            f"spacing {name!r} needs a finite lambda at both ends; {schedule!r} has lambda = -inf at "
            f"t_start={start!r}: give a smaller t_start, or use spacing 'trailing' or 'time_uniform'"
        )
    if name == "karras":
        rho = number("rho", request.options.get("rho", 7.0), "7")
        if rho <= 0.0:
            raise ValueError(f"rho got {rho!r}; expected a finite number > 0, such as rho=7")
        level = rho * np.log(np.exp(a / rho) + nodes * (np.exp(b / rho) - np.exp(a / rho)))
    else:
        level = a + nodes * (b - a)
    # Both ends are inside the schedule: rounding must not leave it.
    level = np.clip(level, b, a)
    if flow:
        # lambda = log((1 - sigma) / sigma), -inf at sigma = 1.
        with np.errstate(divide="ignore"):
            return schedule.inverse_lambda(np.log(-np.expm1(np.minimum(level, 0.0))) - level)
    return schedule.inverse_lambda(-level)


def _list_end(request: GridCall) -> float:
    """The last time after listed ones; t_end and final must not contradict each other."""
    schedule, end = request.schedule, request.end
    if end is None:
        return schedule.t_floor if request.final == "t_min" else schedule.t_clean
    if request.final == "clean" and end != schedule.t_clean:
        raise ValueError(
            f"spacing {request.spacing!r} ends at t_end={end!r}, which final='clean' contradicts: leave one out"
        )
    return end


def _listed(request: GridCall, counts: list[int] | None) -> Array:
    _, spacing, schedule, steps, start, _, _, _ = request
    end = _list_end(request)
    if start != math.floor(start):
        raise ValueError(
            f"spacing {spacing!r} lists integer times; got t_start={start!r}: use t_start={math.floor(start)}"
        )
    ordered(start, end, schedule)
    if request.name == "lcm":
        return _distilled(request, end)
    first = math.floor(end) + 1
    available = int(start) - first + 1
    if steps > available:
        raise ValueError(
            f"spacing {spacing!r} lists different integer times above t_end={end!r} and up to t_start={start!r}; there "
            f"are {available}, and got steps={steps}: use at most {available}, or spacing='time_uniform'"
        )
    tau = _subsequence(request, counts, available)
    return np.append(first + tau[::-1].astype(np.float64), end)


def _subsequence(request: GridCall, counts: list[int] | None, n: int) -> NDArray[np.int64]:
    """`steps` strictly increasing integers of 0 .. n - 1."""
    name, spacing, steps = request.name, request.spacing, request.steps
    offset = request.options.get("steps_offset", 0)
    if isinstance(offset, bool) or not isinstance(offset, (int, np.integer)):
        raise ValueError(f"steps_offset got {offset!r}; expected an integer, such as steps_offset=1")
    index = np.arange(steps)
    if counts is not None:
        tau = _ddim_stride(spacing, n, steps) if spacing.startswith("ddim") else _sections(spacing, n, counts)
    elif name in ("uniform", "leading", "ddim_uniform"):
        tau = index * (n // steps) + (1 if name == "ddim_uniform" else offset)
    elif name == "quadratic":
        tau = np.floor(np.linspace(0.0, math.sqrt(0.8 * n), steps) ** 2).astype(np.int64)
        # Several of the first squares fall on one integer: move the later ones up.
        tau = np.maximum.accumulate(tau - index) + index
    elif name == "linspace":
        tau = np.round(np.linspace(0.0, n - 1.0, steps)).astype(np.int64)
    elif name == "simple":
        tau = n - 1 - np.floor(index * (n / steps)).astype(np.int64)[::-1]
    else:
        tau = np.round(n - index * (n / steps)).astype(np.int64)[::-1] - 1
    if steps == 1:
        return np.array([n - 1])
    if tau[0] < 0 or tau[-1] > n - 1:
        extra = f" and steps_offset={offset}" if offset else ""
        raise ValueError(
            f"spacing {spacing!r} with steps={steps}{extra} lists times {int(tau[0])} to {int(tau[-1])}; there are "
            f"0 to {n - 1} in this range: use fewer steps or another spacing, such as 'linspace'"
        )
    return tau


def _distilled(request: GridCall, end: float) -> Array:
    """Of the times on which the network was distilled, every so many from the last (Luo et al. 2023, arXiv 2310.04378,
    as its program has it)."""
    n, steps = int(request.schedule.t_max) + 1, request.steps
    original = request.options.get("original_steps", 50)
    if isinstance(original, bool) or not isinstance(original, (int, np.integer)) or not 1 <= original <= n:
        raise ValueError(
            f"original_steps got {original!r}; expected the number of times on which the network was distilled, 1 to "
            f"{n}, such as original_steps=50"
        )
    trained = np.arange(1, original + 1) * (n // original) - 1
    trained = trained[(trained > end) & (trained <= request.start)][::-1]
    if steps > trained.size:
        raise ValueError(
            f"spacing 'lcm' takes {steps} of the {trained.size} times between t_start={request.start!r} and "
            f"t_end={end!r} on which the network was distilled: use fewer steps, or original_steps above {original}"
        )
    taken = trained[np.floor(np.linspace(0, trained.size, steps, endpoint=False)).astype(np.int64)]
    return np.append(taken.astype(np.float64), end)


def _parse_respacing(spacing: str) -> list[int]:
    """The number of steps in each section; one section for "ddimN"."""
    text = spacing.removeprefix("ddim")
    parts = [text] if text != spacing else spacing.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"{unknown('spacing', spacing, SPACINGS)}; or {_RESPACING}")
    counts = [int(part) for part in parts]
    if min(counts) < 1:
        raise ValueError(f"respacing {spacing!r} has a section without steps; expected counts >= 1, as in '10,15,20'")
    return counts


def _ddim_stride(spacing: str, n: int, steps: int) -> NDArray[np.int64]:
    """The smallest integer stride that gives exactly `steps` of 0 .. n - 1."""
    # The number of times with a stride is ceil(n / stride).
    stride = -(-n // steps)
    if -(-n // stride) != steps:
        raise ValueError(f"respacing {spacing!r}: no integer stride takes {steps} of {n} times; use spacing='linspace'")
    return np.arange(0, n, stride)


def _sections(spacing: str, n: int, counts: list[int]) -> NDArray[np.int64]:
    """From each of len(counts) nearly equal sections, its count of times, with both ends of the section.

    The strides are added up one by one: where the exact place is halfway between two times, the published choice
    depends on the rounding of that sum.
    """
    size, longer = divmod(n, len(counts))
    begin, tau = 0, []
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if count > length:
            raise ValueError(f"respacing {spacing!r} asks for {count} of the {length} times in section {i + 1}")
        stride = (length - 1) / max(count - 1, 1)
        tau.append(begin + np.round(np.cumsum([0.0] + [stride] * (count - 1))).astype(np.int64))
        begin += length
    return np.concatenate(tau)


def _listed_continuous(request: GridCall) -> Array:
    name, spacing, schedule, steps, start, end, final, _ = request
    if name not in ("uniform", "linspace", "trailing", "simple", "ddim_uniform"):
        valid = ", ".join(s for s in SPACINGS if s not in ("quadratic", "leading", "lcm"))
        raise ValueError(f"spacing {spacing!r} needs a discrete schedule, not {schedule!r}. Valid here: {valid}")
    if name != "linspace":
        end = _list_end(request)
        ordered(start, end, schedule)
        return np.linspace(start, end, steps + 1)
    if end == schedule.t_clean:
        end, final = None, final or "clean"
    low = schedule.t_floor if end is None else end
    ordered(start, low, schedule)
    if (final or ("clean" if end is None else "t_min")) == "clean":
        return np.append(np.linspace(start, low, steps), schedule.t_clean)
    return np.linspace(start, low, steps + 1)
