"""Time grids that other programs name: k-diffusion, ComfyUI, RES4LYF, and the published lists of Align Your Steps.

They give noise levels: sigma/alpha, and for flow matching sigma itself. Where a grid begins and ends with the schedule,
it does so as "karras": at t_start, and at the schedule's `t_floor` with the clean time after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fastdiff.schedules import beta
from fastdiff.schedules.base import Array, NoiseSchedule
from fastdiff.schedules.call import GridCall, ordered
from fastdiff.values import number

AYS: Mapping[str, tuple[float, ...]] = {
    "ays_sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""The 10-step lists of Sabour et al. 2024, arXiv 2404.14507, as the authors publish them beside the paper."""
MENU: Mapping[str, tuple[float, ...]] = {
    "align_your_steps": AYS["ays_sd15"],
    "align_your_steps_sdxl": AYS["ays_sdxl"],
    "align_your_steps_gits": (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029),
    "align_your_steps_gits_sdxl": (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029),
    "align_your_steps_32": (
        *(14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609),
        *(3.13490466, 2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953),
        *(1.314849, 1.16642497, 1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.621739, 0.53065202),
        *(0.4529096, 0.37491455, 0.27461819, 0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015),
    ),
    "align_your_steps_32_sdxl": (
        *(14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457),
        *(2.74396527, 2.29968659, 1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443),
        *(0.80290886, 0.69660121, 0.60436903, 0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517),
        *(0.26518925, 0.22326461, 0.17653877, 0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015),
    ),
}
"""The lists of the web UI's and Forge's menus: all of their levels have noise."""
PUBLISHED = 1e-3
"""Relative rounding of those lists. A first level so little above the schedule's is the schedule's."""


@dataclass(frozen=True)
class Named:
    """A grid: what it is, its options with their defaults, and its times."""

    doc: str
    make: Callable[[GridCall], Array]
    options: Mapping[str, float] = field(default_factory=dict)
    own_start: bool = False
    """Whether it says itself where it begins and ends."""


def times(request: GridCall, started: bool) -> Array:
    """The steps + 1 times; `started`: whether t_start was given."""
    named = NAMED[request.name]
    if named.own_start:
        for name, given in (("t_start", started), ("t_end", request.end is not None)):
            if given:
                raise ValueError(
                    f"spacing {request.spacing!r} has noise levels of its own, which {name} contradicts: leave it out"
                )
    return named.make(request)


def option(request: GridCall, name: str, least: float = 0.0) -> float:
    """An option's value, above `least`."""
    default = NAMED[request.name].options[name]
    value = number(name, request.options.get(name, default), f"{default:g}")
    if not value > least:
        raise ValueError(f"{name} got {value!r}; expected a finite number > {least:g}, such as {name}={default:g}")
    return value


def level(request: GridCall, t: float) -> float:
    """The noise level at a time, finite."""
    schedule = request.schedule
    value = schedule.sigma(t) if schedule.kind == "flow" else math.exp(-schedule.lam(t))
    if math.isinf(value):
        raise ValueError(
            f"spacing {request.spacing!r} needs a finite lambda at both ends; {schedule!r} has lambda = -inf at "
            f"t_start={t!r}: give a smaller t_start, or use spacing 'trailing' or 'time_uniform'"
        )
    return value


def times_at(schedule: NoiseSchedule, levels: Array) -> Array:
    """The times of noise levels; 0 is the clean end."""
    with np.errstate(divide="ignore"):
        logs = np.log(levels)
        if schedule.kind == "flow":
            return schedule.inverse_lambda(np.log1p(-np.minimum(levels, 1.0)) - logs)
    return schedule.inverse_lambda(-logs)


def between(request: GridCall, curve: Callable[[Array], Array]) -> Array:
    """From the start to the last time, by `curve` of equal nodes from 0 to 1, with the clean time after it."""
    end, clean = request.last()
    ordered(request.start, end, request.schedule)
    nodes = np.linspace(0.0, 1.0, request.steps if clean else request.steps + 1)
    made = curve(nodes)
    made[0] = request.start
    if nodes.size > 1:
        made[-1] = end
    return np.append(made, request.schedule.t_clean) if clean else made


def in_levels(request: GridCall, curve: Callable[[Array, float, float], Array]) -> Array:
    """`between` by a curve of levels."""
    end, _ = request.last()
    high, low = level(request, request.start), level(request, end)
    return between(request, lambda nodes: times_at(request.schedule, np.clip(curve(nodes, high, low), low, high)))


def polyexponential(request: GridCall) -> Array:
    rho = option(request, "rho")
    return in_levels(request, lambda u, high, low: low * (high / low) ** ((1.0 - u) ** rho))


def kl_optimal(request: GridCall) -> Array:
    return in_levels(request, lambda u, high, low: np.tan(u * math.atan(low) + (1.0 - u) * math.atan(high)))


def normal(request: GridCall) -> Array:
    end, _ = request.last()
    return between(request, lambda u: request.start + u * (end - request.start))


def sgm_uniform(request: GridCall) -> Array:
    end, clean = request.last()
    ordered(request.start, end, request.schedule)
    made = np.linspace(request.start, end, request.steps + 1)
    if clean:
        made[-1] = request.schedule.t_clean
    return made


def beta_times(request: GridCall) -> Array:
    end, clean = request.last()
    schedule, start, steps = request.schedule, request.start, request.steps
    ordered(start, end, schedule)
    shares = beta.quantile(1.0 - np.arange(steps + 1) / steps, option(request, "alpha"), option(request, "beta"))
    made = end + shares * (start - end)
    if schedule.discrete:
        # The median of a symmetric distribution lies halfway between two times: its last bits must not choose.
        made[:steps] = apart(np.rint(np.round(made[:steps], 9)), end if clean else end + 1.0, start, request)
    if clean:
        made[-1] = schedule.t_clean
    return made


def apart(made: Array, low: float, high: float, request: GridCall) -> Array:
    """Decreasing whole times within [low, high]: where several are one, the cleaner ones give way, then the noisier."""
    count = np.arange(made.size)
    if made.size > math.floor(high) - math.ceil(low) + 1:
        raise ValueError(
            f"spacing {request.spacing!r} lists different integer times from {low:g} to {high:g}; got "
            f"steps={request.steps}: use fewer steps, or spacing='time_uniform'"
        )
    made = np.minimum.accumulate(made + count) - count
    least = math.ceil(low) + count[::-1]
    return np.maximum(made, least)


def fractions(request: GridCall, made: Array) -> Array:
    """Levels as shares of the first, from 1 to 0; with t_end, of the way from the first level to that time's."""
    schedule = request.schedule
    high = level(request, request.start)
    clean = request.end is None or request.end == schedule.t_clean
    if clean and request.final == "t_min":
        raise ValueError(f"spacing {request.spacing!r} ends clean, which final='t_min' contradicts: give t_end instead")
    low = 0.0 if clean else level(request, float(request.end or 0.0))
    end = schedule.t_clean if clean else float(request.end or 0.0)
    ordered(request.start, end, schedule)
    times = times_at(schedule, low + made * (high - low))
    times[0], times[-1] = request.start, end
    return times


def linear_quadratic(request: GridCall) -> Array:
    """As Mochi 1's: the first half of the steps goes `threshold_noise` of the way, the rest along a parabola that
    continues it smoothly to the end."""
    steps = request.steps
    threshold = option(request, "threshold_noise")
    linear = steps // 2
    if linear < 1:
        return fractions(request, np.array([1.0, 0.0]))
    if threshold * steps >= linear:
        raise ValueError(
            f"threshold_noise got {threshold!r}; expected less than {linear / steps:g}, the share of steps that it "
            "takes, such as threshold_noise=0.025"
        )
    rest = steps - linear
    slope = threshold / linear
    u = np.arange(steps + 1.0)
    v = np.maximum(u - linear, 0.0)
    bend = (1.0 - threshold - slope * rest) / rest**2
    return fractions(request, 1.0 - (slope * u + bend * v**2))


def bong_tangent(request: GridCall) -> Array:
    """Two arctangents, from 1 to 1/2 and on to 0, with their steepest points at 0.6 of the steps."""
    count = request.steps + 2
    turn = int(count * 0.6)
    slope = 0.2 / (count / 40)

    def part(size: int, pivot: int, top: float, bottom: float) -> Array:
        curve = np.arctan(-slope * (np.arange(size) - pivot))
        if size == 1:
            return np.array([top])
        return bottom + (curve - curve[-1]) / (curve[0] - curve[-1]) * (top - bottom)

    first, second = part(turn, turn, 1.0, 0.5), part(count - turn, 0, 0.5, 0.0)
    made = np.concatenate([first[:-1], second])
    made[0] = 1.0
    return fractions(request, made)


def own_levels(request: GridCall, levels: Array) -> Array:
    """The times of a grid's own levels, with the clean time after them, or in place of the last."""
    schedule = request.schedule
    top = schedule.sigma(schedule.t_max) if schedule.kind == "flow" else math.exp(-schedule.lam(schedule.t_max))
    if top < levels[0] <= top * (1.0 + PUBLISHED):
        levels = np.concatenate([[top], levels[1:]])
    if levels[0] > top:
        raise ValueError(
            f"spacing {request.spacing!r} begins at the noise level {levels[0]:g}, and {schedule!r} reaches {top:g}: "
            "use another schedule or spacing"
        )
    return times_at(schedule, levels)


def vp(request: GridCall) -> Array:
    clean = request.final != "t_min"
    u = np.linspace(1.0, option(request, "eps_s"), request.steps if clean else request.steps + 1)
    growth = 0.5 * option(request, "beta_d") * u**2 + option(request, "beta_min") * u
    levels = np.sqrt(np.expm1(growth))
    return own_levels(request, np.append(levels, 0.0) if clean else levels)


def ays(request: GridCall) -> Array:
    """The published levels, and between them by straight lines in log sigma, as published for other numbers of
    steps."""
    listed = np.log(AYS[request.name])
    at = np.linspace(0.0, listed.size - 1.0, request.steps + 1)
    levels = np.exp(np.interp(at, np.arange(listed.size), listed))
    if request.final != "t_min":
        levels[-1] = 0.0
    return own_levels(request, levels)


def menu(request: GridCall) -> Array:
    """`steps` levels along a list, by straight lines in log sigma from its first to its last, then clean."""
    listed = np.log(MENU[request.name])
    clean = request.final != "t_min"
    at = np.linspace(0.0, listed.size - 1.0, request.steps if clean else request.steps + 1)
    levels = np.exp(np.interp(at, np.arange(listed.size), listed))
    return own_levels(request, np.append(levels, 0.0) if clean else levels)


_AYS = partial(Named, make=ays, own_start=True)
_MENU = partial(Named, make=menu, own_start=True)

NAMED: dict[str, Named] = {
    "polyexponential": Named(
        "log sigma along a power `rho` of equal steps, then clean (k-diffusion)", polyexponential, {"rho": 1.0}
    ),
    "vp": Named(
        "sigma of the VP SDE at equal times from 1 to `eps_s`, then clean (k-diffusion)",
        vp,
        {"beta_d": 19.9, "beta_min": 0.1, "eps_s": 1e-3},
        own_start=True,
    ),
    "kl_optimal": Named("steps of equal atan(sigma), then clean (Sabour et al. 2024, section 3.1)", kl_optimal),
    "beta": Named(
        "quantiles of the beta distribution over the times, then clean (Lee et al. 2024)",
        beta_times,
        {"alpha": 0.6, "beta": 0.6},
    ),
    "beta57": Named("as beta, with 0.5 and 0.7 (RES4LYF)", beta_times, {"alpha": 0.5, "beta": 0.7}),
    "normal": Named("equal steps of time to the last time with noise, then clean (ComfyUI)", normal),
    "sgm_uniform": Named("equal steps of time, the last of them to clean (ComfyUI)", sgm_uniform),
    "linear_quadratic": Named(
        "sigma falls by `threshold_noise` in half of the steps, then along a parabola to clean (Mochi 1)",
        linear_quadratic,
        {"threshold_noise": 0.025},
    ),
    "bong_tangent": Named("sigma along two arctangents to clean (RES4LYF)", bong_tangent),
    "ays_sd15": _AYS("Align Your Steps' list for Stable Diffusion 1.5 (Sabour et al. 2024)"),
    "ays_sdxl": _AYS("Align Your Steps' list for SDXL (Sabour et al. 2024)"),
    "ays_svd": _AYS("Align Your Steps' list for Stable Video Diffusion (Sabour et al. 2024)"),
    "align_your_steps": _MENU("the list of ays_sd15, all of it with noise, then clean (the web UI)"),
    "align_your_steps_sdxl": _MENU("the list of ays_sdxl, all of it with noise, then clean (the web UI)"),
    "align_your_steps_gits": _MENU("a list by GITS for Stable Diffusion 1.5, then clean (Forge)"),
    "align_your_steps_gits_sdxl": _MENU("a list by GITS for SDXL, then clean (Forge)"),
    "align_your_steps_32": _MENU("32 levels for Stable Diffusion 1.5, then clean (Forge)"),
    "align_your_steps_32_sdxl": _MENU("32 levels for SDXL, then clean (Forge)"),
}
"""Every grid of this file by name. beta: arXiv 2407.12173; kl_optimal and ays: arXiv 2404.14507."""
