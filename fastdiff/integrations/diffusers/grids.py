"""The times of each scheduler class: sigmas and the network's times as diffusers' `set_timesteps` lists them, float64.

The rules are those of its documentation and of what its classes give; comments say where a rule is a quirk.
"""

from __future__ import annotations

import math

import numpy as np

from fastdiff.integrations.diffusers.spacing import (
    Array,
    Asked,
    Config,
    Grid,
    clipped,
    curved,
    cut,
    exponential,
    in_flow,
    karras,
    shifted,
    sigma_clock,
    spaced,
    stretched,
    table,
    variance_preserving,
)
from fastdiff.schedules import discrete
from fastdiff.schedules.diffusers import training


def only(asked: Asked, *allowed: str) -> None:
    """ValueError for an argument of `set_timesteps` that this class does not have, or for none that says how many."""
    given = {"timesteps": asked.timesteps, "sigmas": asked.sigmas, "mu": asked.mu}
    for name, value in given.items():
        if value is not None and name not in allowed:
            raise ValueError(
                f"set_timesteps({name}=...) is not an argument of this scheduler class: expected "
                f"{', '.join(('num_inference_steps', *allowed))}"
            )
    if asked.steps is not None and asked.timesteps is not None and len(asked.timesteps) != asked.steps:
        raise ValueError(
            f"set_timesteps got {len(asked.timesteps)} timesteps and num_inference_steps={asked.steps}: give one of "
            "them"
        )
    if asked.steps is None and asked.timesteps is None and asked.sigmas is None:
        raise ValueError("set_timesteps needs num_inference_steps, timesteps or sigmas")


def _exclusive(config: Config, asked: Asked) -> None:
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        if asked.timesteps is not None and config.get(key):
            raise ValueError(f"set_timesteps(timesteps=...) with {key}=True: both say the times; leave one out")
    given = [k for k in ("steps", "timesteps", "sigmas") if getattr(asked, k) is not None]
    if len(given) > 1:
        raise ValueError(f"set_timesteps got both {given[0]} and {given[1]}: give one of them")


def discrete_grid(config: Config, asked: Asked) -> Grid:
    """DDIM, DDPM and their kin: training times as they are listed, each step leading to the next of them.

    diffusers' DDIM goes to t - N // steps instead, which with "linspace" is not the time that it evaluates next.
    """
    only(asked, "timesteps")
    count = int(config["num_train_timesteps"])
    if asked.timesteps is not None:
        times = np.asarray(asked.timesteps, dtype=np.float64)
    else:
        assert asked.steps is not None
        if asked.steps > count:
            raise ValueError(f"num_inference_steps={asked.steps}: this scheduler has num_train_timesteps={count}")
        times = spaced(config, asked.steps, inner=False).round()
    if times[0] > count - 1 or np.any(np.diff(times) >= 0) or times[-1] < 0:
        raise ValueError(
            f"timesteps {times[:3].tolist()} ... must descend and lie between 0 and {count - 1}; with steps_offset use "
            "fewer steps"
        )
    return indexed(config, times, -1.0 if config.get("set_alpha_to_one", True) else 0.0)


def unclip(config: Config, asked: Asked) -> Grid:
    """UnCLIP: equal steps from the noisiest training time to 0, both listed."""
    only(asked)
    assert asked.steps is not None
    last = int(config["num_train_timesteps"]) - 1
    # With one step theirs divides by 0.
    width = last / (asked.steps - 1) if asked.steps > 1 else 0.0
    times = (np.arange(asked.steps)[::-1] * width).round() if asked.steps > 1 else np.array([float(last)])
    return indexed(config, times, -1.0)


def indexed(config: Config, times: Array, end: float) -> Grid:
    """The grid of training times, with the time at which the last step ends."""
    schedule = training(config)
    whole = (*times.tolist(), min(end, float(times[-1])))
    with np.errstate(divide="ignore"):
        sigmas = schedule.sigma(np.array(whole)) / schedule.alpha(np.array(whole))
    return Grid(schedule, whole, tuple(times.tolist()), tuple(sigmas.tolist()), lambda t: t)


def distilled(config: Config, asked: Asked) -> Grid:
    """LCM and TCD: some of the times that the network was distilled at."""
    only(asked, "timesteps")
    count = int(config["num_train_timesteps"])
    original = asked.original_steps or int(config["original_inference_steps"])
    origin = np.arange(1, int(original * asked.strength) + 1) * (count // original) - 1
    if asked.timesteps is not None:
        times = np.asarray(asked.timesteps, dtype=np.float64)
    else:
        assert asked.steps is not None
        if asked.steps > len(origin):
            raise ValueError(
                f"num_inference_steps={asked.steps}: the network was distilled at original_inference_steps={original} "
                f"times, of which strength={asked.strength:g} leaves {len(origin)}"
            )
        at = np.floor(np.linspace(0, len(origin), asked.steps, endpoint=False)).astype(np.int64)
        times = origin[::-1][at].astype(np.float64)
    # LCM ends with its x0, TCD at index 0.
    return indexed(config, times, 0.0 if config["_class"].startswith("TCD") else -1.0)


def pndm(config: Config, asked: Asked) -> Grid:
    """PNDM: training times; the second is listed twice, since the first step is corrected there."""
    only(asked)
    assert asked.steps is not None
    times = spaced(config, asked.steps, inner=False).round()
    return indexed(config, times, -1.0 if config["set_alpha_to_one"] else 0.0)


def ipndm(config: Config, asked: Asked) -> Grid:
    """IPNDM: sigma = sin²(pi/2·s) at equal steps of s from 1 to 0, so that the run begins at alpha = 0."""
    only(asked)
    assert asked.steps is not None
    if config["trained_betas"] is not None:
        raise ValueError(
            "trained_betas of IPNDMScheduler are the levels sigma of one run: fastdiff.sample(method='ipndm', "
            "prediction='v', schedule=fastdiff.schedules.discrete(alphas_cumprod=...)) with 1 - sigma², ascending times"
        )
    if asked.steps < 2:
        raise ValueError("num_inference_steps=1 of IPNDMScheduler returns zeros, whatever the network gives: give 2")
    sigma = np.sin(np.linspace(0.0, 1.0, asked.steps + 1) * math.pi / 2) ** 2
    alpha = np.sqrt(1.0 - sigma**2)
    schedule = discrete(alphas_cumprod=1.0 - sigma[1:] ** 2)
    network = np.arctan2(sigma, alpha)[:0:-1] / math.pi * 2
    times = tuple(float(k) for k in range(asked.steps - 1, -2, -1))
    with np.errstate(divide="ignore"):
        return Grid(schedule, times, tuple(network.tolist()), tuple((sigma / alpha)[::-1].tolist()), lambda t: t)


def exploding(config: Config, asked: Asked) -> Grid:
    """Euler, Heun, LMS, KDPM2 and DPMSolverSDE: the sample is x/alpha, and sigma is linear between training times."""
    only(asked, "timesteps", *(("sigmas",) if "interpolation_type" in config else ()))
    _exclusive(config, asked)
    all_sigmas = table(config)
    clock = sigma_clock(all_sigmas)
    if asked.sigmas is not None:
        sigmas = np.asarray(asked.sigmas, dtype=np.float64)
        times = np.array([clock(s) for s in sigmas[:-1]])
    else:
        times = spaced(config, asked.count, inner=False) if asked.timesteps is None else np.asarray(asked.timesteps)
        if config.get("interpolation_type", "linear") == "linear":
            sigmas = np.interp(times, np.arange(len(all_sigmas)), all_sigmas)
        else:
            raise ValueError(
                "interpolation_type='log_linear' has one sigma more than times, and its run ends beside them: use "
                "use_exponential_sigmas=True"
            )
        curve = curved(config, sigmas, asked.count)
        if curve is not None:
            sigmas, times = curve, np.array([clock(s) for s in curve])
            if config.get("use_karras_sigmas") and config["_class"].startswith("KDPM2"):
                times = times.round()
        sigmas = np.append(sigmas, all_sigmas[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0)
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        if asked.timesteps is not None:
            raise ValueError("set_timesteps(timesteps=...) with timestep_type='continuous': give sigmas")
        return variance_preserving(sigmas, 0.25 * np.log(sigmas[:-1]), lambda s: 0.25 * math.log(s), exploding=True)
    return variance_preserving(sigmas, times, clock, exploding=True)


def multistep(config: Config, asked: Asked) -> Grid:
    """DPMSolverMultistep and -Singlestep, DEIS, SASolver: integer times, of flow or of betas."""
    names = ("timesteps",) if config["_class"].startswith("DPMSolver") else ()
    only(asked, *names, *(("mu",) if "use_dynamic_shifting" in config else ()))
    _exclusive(config, asked)
    steps, scale = asked.count, float(config["num_train_timesteps"])
    all_sigmas = table(config)
    # These two have no final_sigmas_type: a grid of their own ends with a step of length 0.
    repeats = "final_sigmas_type" not in config
    zero = config.get("final_sigmas_type") == "zero"
    curve = curved(config, all_sigmas[::-1], steps)
    if curve is None and config.get("use_flow_sigmas"):
        sigmas = shifted(_shift(config, asked), (1.0 - np.linspace(1, 1 / scale, steps + 1))[::-1][:-1])
        end = 0.0 if zero else sigmas[-1] if repeats else all_sigmas[0]
        whole = np.append(sigmas, end)
        return in_flow(whole, np.trunc(sigmas * scale), scale, whole)
    clock = sigma_clock(all_sigmas)
    if curve is not None:
        if config.get("use_flow_sigmas"):
            raise ValueError("use_flow_sigmas=True goes with no other form of grid: leave one of the two out")
        cosine = config["_class"].startswith("DPMSolverMultistep") and config["beta_schedule"] == "squaredcos_cap_v2"
        rounds = (config.get("use_karras_sigmas") or config.get("use_lu_lambdas")) and not cosine
        times = np.array([clock(s) for s in curve])
        times = times.round() if rounds else cut(times)
        end = 0.0 if zero else curve[-1] if repeats else all_sigmas[0]
        return variance_preserving(np.append(curve, end), times, clock)
    times = spaced(config, steps, inner=True) if asked.timesteps is None else np.asarray(asked.timesteps).astype(float)
    sigmas = np.interp(times, np.arange(len(all_sigmas)), all_sigmas)
    return variance_preserving(np.append(sigmas, 0.0 if zero else all_sigmas[0]), times, clock)


def unipc(config: Config, asked: Asked) -> Grid:
    """UniPC: as `multistep`, with flow sigmas that begin at 1 - 1e-6 and may be given."""
    only(asked, "sigmas", "mu")
    steps, scale = asked.count, float(config["num_train_timesteps"])
    matching, zero = bool(config["use_flow_sigmas"]), config["final_sigmas_type"] == "zero"
    if asked.sigmas is not None and not matching:
        raise ValueError("set_timesteps(sigmas=...) needs use_flow_sigmas=True here")
    all_sigmas = table(config)
    clock = sigma_clock(all_sigmas)
    curve = curved(config, all_sigmas[::-1], steps)
    if curve is not None:
        if matching and not config["use_karras_sigmas"]:
            raise ValueError("use_flow_sigmas=True goes with use_karras_sigmas alone: leave one of the two out")
        sigmas = curve / (curve + 1.0) if matching else curve
        whole = np.append(sigmas, 0.0 if zero else sigmas[-1])
        if matching:
            return in_flow(whole, np.trunc(sigmas * scale), scale, whole)
        times = np.array([clock(s) for s in curve])
        times = times.round() if config["use_karras_sigmas"] else cut(times)
        return variance_preserving(whole, times, clock)
    if matching:
        levels = np.linspace(1, 1 / scale, steps + 1)
        # Up to diffusers 0.36 the levels were counted from the clean end: all of them 1/N lower.
        sigmas = levels[:-1] if config["_release"] >= (0, 37) else (1.0 - levels)[:0:-1]
        sigmas = sigmas if asked.sigmas is None else np.asarray(asked.sigmas, dtype=np.float64)
        sigmas = stretched(config, moved(config, asked, sigmas, float(config["flow_shift"])))
        if abs(sigmas[0] - 1.0) < 1e-6:
            sigmas[0] -= 1e-6
        whole = np.append(sigmas, 0.0 if zero else sigmas[-1])
        return in_flow(whole, np.trunc(sigmas * scale), scale, whole)
    times = spaced(config, steps, inner=True)
    sigmas = np.interp(times, np.arange(len(all_sigmas)), all_sigmas)
    return variance_preserving(np.append(sigmas, 0.0 if zero else all_sigmas[0]), times, clock)


def _shift(config: Config, asked: Asked) -> float:
    return float(config["flow_shift"]) if asked.mu is None else math.exp(asked.mu)


def moved(config: Config, asked: Asked, s: Array, shift: float) -> Array:
    """Levels after the static shift, or the dynamic one of `mu`."""
    if not config.get("use_dynamic_shifting"):
        return shifted(shift, s)
    if asked.mu is None:
        raise ValueError(
            "use_dynamic_shifting=True: set_timesteps needs mu=..., which the pipeline makes from the size"
        )
    shift = asked.mu if config.get("time_shift_type") == "linear" else math.exp(asked.mu)
    return shift / (shift + (1.0 / s - 1.0))


def matching(config: Config, asked: Asked) -> Grid:
    """FlowMatchEuler and FlowMatchLCM: levels from 1 to 1/N, shifted, or those that the pipeline gives."""
    only(asked, "timesteps", "sigmas", "mu")
    count, shift = float(config["num_train_timesteps"]), float(config["shift"])
    static = 1.0 if config["use_dynamic_shifting"] else shift
    for name, value in (("timesteps", asked.timesteps), ("sigmas", asked.sigmas)):
        if value is not None and asked.steps not in (None, len(value)):
            raise ValueError(f"set_timesteps got {len(value)} {name} and num_inference_steps={asked.steps}")
    if asked.sigmas is not None:
        s = np.asarray(asked.sigmas, dtype=np.float64)
    elif asked.timesteps is not None:
        s = np.asarray(asked.timesteps, dtype=np.float64) / count
    else:
        # The least level has the shift already, and gets it once more, as the class has it.
        s = np.linspace(1.0, float(shifted(static, np.array(1.0 / count))), asked.count)
    s = stretched(config, moved(config, asked, s, shift))
    curve = curved(config, s, len(s))
    s = s if curve is None else curve
    shown = 1.0 - s if config["invert_sigmas"] else s
    given = asked.timesteps is not None and not config["invert_sigmas"]
    network = np.asarray(asked.timesteps) if given else shown * count
    end = 1.0 if config["invert_sigmas"] else 0.0
    return in_flow(np.append(s, 0.0), network, count, np.append(shown, end))


def matching_heun(config: Config, asked: Asked) -> Grid:
    """FlowMatchHeun: as `matching` without its options."""
    only(asked)
    count, shift = float(config["num_train_timesteps"]), float(config["shift"])
    s = shifted(shift, np.linspace(1.0, float(shifted(shift, np.array(1.0 / count))), asked.count))
    whole = np.append(s, 0.0)
    return in_flow(whole, s * count, count, whole)


def edm(config: Config, asked: Asked) -> Grid:
    """EDMEuler and EDMDPMSolverMultistep: the sample is EDM's, and the network is given log(sigma)/4; Cosine:
    2/pi·atan(sigma)."""
    only(asked, *(("sigmas",) if config["_class"] == "EDMEulerScheduler" else ()))
    low, high, kind = float(config["sigma_min"]), float(config["sigma_max"]), config["sigma_schedule"]
    if asked.sigmas is not None:
        raise ValueError(
            "set_timesteps(sigmas=...) of EDMEulerScheduler are places between sigma_max and sigma_min, from 0 to 1, "
            "and not sigmas: give num_inference_steps, and sigma_schedule and rho in the config"
        )
    steps = asked.count
    s = karras(high, low, steps, float(config["rho"])) if kind == "karras" else exponential(high, low, steps)
    whole = np.append(s, low if config["final_sigmas_type"] == "sigma_min" else 0.0)
    cosine = config["_class"].startswith("Cosine")

    def clock(sigma: float) -> float:
        return math.atan(sigma) * 2.0 / math.pi if cosine else 0.25 * math.log(sigma)

    network = [clock(v) for v in s]
    return variance_preserving(whole, network, clock, data_std=float(config["sigma_data"]), exploding=True)


def ddim_inverse(config: Config, asked: Asked) -> Grid:
    """DDIMInverse: from data to noise; the network is given the time that a step leads to."""
    only(asked)
    assert asked.steps is not None
    if config["timestep_spacing"] not in ("leading", "trailing"):
        raise ValueError(f"timestep_spacing={config['timestep_spacing']!r}: expected 'leading' or 'trailing'")
    times = spaced(config, asked.steps, inner=False).round()[::-1]
    first = float(times[0]) - int(config["num_train_timesteps"]) // asked.steps
    if first < 0:
        first = -1.0 if config["set_alpha_to_one"] else 0.0
    made = indexed(config, times, float(times[-1]))
    whole = (min(first, float(times[0])), *times.tolist())
    return Grid(made.schedule, whole, made.network, made.sigmas, made.clock)


def dpm_inverse(config: Config, asked: Asked) -> Grid:
    """DPMSolverMultistepInverse: the same from data to noise, at training times."""
    only(asked)
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas"):
        if config.get(key):
            raise ValueError(
                f"{key}=True of DPMSolverMultistepInverseScheduler ends with a step of length 0: leave it out"
            )
    assert asked.steps is not None
    steps, count, offset = asked.steps, int(config["num_train_timesteps"]), int(config["steps_offset"])
    noisiest = count - 1 - clipped(config)
    spacing = config["timestep_spacing"]
    if spacing == "linspace":
        times = np.linspace(0, noisiest, steps + 1).round()[:-1]
    elif spacing == "leading":
        times = np.arange(steps) * float((noisiest + 1) // (steps + 1)) + offset
    else:
        times = np.arange(noisiest + 1, 0, -count / steps).round()[::-1] - 1.0
    all_sigmas = table(config)
    sigmas = np.append(np.interp(times, np.arange(count), all_sigmas), all_sigmas[noisiest])
    return variance_preserving(sigmas, times, sigma_clock(all_sigmas))
