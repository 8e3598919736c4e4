"""The map: every scheduler class of diffusers, its grid, and the plan of ours that does its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastdiff.integrations.diffusers import grids, plans
from fastdiff.integrations.diffusers.plans import Build, Named, Options, rowwise
from fastdiff.integrations.diffusers.spacing import Asked, Grid
from fastdiff.plan import IDENTITY, Plan
from fastdiff.solvers.base import ROW

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One scheduler class.

    Attributes:
        grid: its times.
        plan: its steps.
        order: evaluations of a step, as diffusers' `order` has it.
        integer: whether `timesteps` are integers.
        pair: whether `step(return_dict=False)` gives the predicted x0 too.
        clips: the key that has the predicted x0 clipped to clip_sample_range, or "".
        inner: what the network is given within a step, at a time that is the grid's too: the grid's own, or by "clock",
            as at any other time.
        draws_always: whether diffusers draws noise in steps that do not use it too.
        names: fields of what `step` returns.
        prior: standard deviation of the pipeline's first sample, of the largest sigma: "unit", "sigma" (sigma or
            sqrt(sigma² + 1), by the spacing) or "edm".
    """

    grid: Callable[[Config, Asked], Grid]
    plan: Build
    order: int = 1
    integer: bool = False
    pair: bool = False
    clips: str = ""
    prior: str = "unit"
    draws_always: bool = False
    inner: str = "grid"
    names: tuple[str, ...] = ("prev_sample", "pred_original_sample")


def _ddpm(config: Config, asked: Options, grid: Grid) -> dict[str, Any]:
    kinds = {
        "fixed_small": "small",
        "fixed_small_log": "small",
        "fixed_large": "large",
        "learned_range": "learned_range",
    }
    if config["variance_type"] not in kinds:
        raise ValueError(
            f"variance_type={config['variance_type']!r} of DDPMScheduler takes the root of a logarithm or of the "
            f"network's output; expected one of {', '.join(kinds)}"
        )
    return {"variance": kinds[config["variance_type"]]}


def _ddim(config: Config, asked: Options, grid: Grid) -> dict[str, Any]:
    return {"eta": asked.eta or 0.0, "use_clipped_model_output": asked.use_clipped_model_output}


TINY = 2.0**-40


def _ddim_plan(config: Config, grid: Grid, begin: int, asked: Options) -> Plan:
    """A last step of length 0 moves x by what the clip changes, alpha·(clip(x0) - x0), where eps stays the network's.

    m = (1 - w)·clip(x0) + w·x0 with 1 - w = alpha/TINY says so to 1e-12: the plan cannot have a coefficient of 0.
    """
    plan = Named("ddim", _ddim)(config, grid, begin, asked)
    last, clips = plan.stages[-1], config["clip_sample"] or config["thresholding"]
    if last.next_u == IDENTITY and clips and not asked.use_clipped_model_output:
        row = tuple((ROW["x"] + TINY * ROW["m"]).tolist())
        plan = replace(plan, stages=(*plan.stages[:-1], replace(last, next_u=row, next_x=row)))
    return plan


def _unclip(config: Config, asked: Options, grid: Grid) -> dict[str, Any]:
    return {"variance": "small" if config["variance_type"] == "fixed_small_log" else "learned_range"}


def _repeats(config: Config) -> bool:
    """Whether the grid ends with a step of length 0, so that the one before keeps its order."""
    own = ("use_flow_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    return any(config[key] for key in own)


def _deis(config: Config, grid: Grid, begin: int, asked: Options) -> Plan:
    order, repeats = int(config["solver_order"]), _repeats(config)
    if order not in (1, 2, 3):
        raise ValueError(f"solver_order={order} of DEISMultistepScheduler: expected 1, 2 or 3")

    def made(order: int, lower: bool) -> Plan:
        given = {"form": "logrho", "order": order, "lower_order_final": lower}
        return Named("deis", lambda *_: given)(config, grid, begin, asked)

    # The class counts all steps of the run, also one of length 0 at its end, where its last order falls to 1.
    lower = bool(config["lower_order_final"]) and len(grid.network) < 15
    plan = made(order, lower and not repeats)
    if lower and repeats and order > 2 and len(plan.stages) > 2:
        stages = list(plan.stages)
        stages[-2] = made(2, False).stages[-2]
        plan = replace(plan, stages=tuple(stages))
    return plan


def _sa_solver(config: Config, asked: Options, grid: Grid) -> dict[str, Any]:
    if config["tau_func"] is not None:
        raise ValueError(
            "tau_func: a function is no value of a config; give method='sa_solver' of fastdiff.sample its tau"
        )
    # diffusers' tau is 1 from time 200 to 800, whatever their levels are.
    noisy = [t for t, time in zip(grid.times, grid.network, strict=False) if 200 <= time <= 800]
    return {
        "tau": 1.0 if noisy else 0.0,
        "tau_low": min(noisy, default=0.0),
        "tau_high": max(noisy, default=0.0),
        "simple_order_2": True,
        "predictor_order": int(config["predictor_order"]),
        "corrector_order": int(config["corrector_order"]),
        "prediction_type": "data" if config["algorithm_type"] == "data_prediction" else "noise",
        "lower_order_final": bool(config["lower_order_final"]),
    }


def _sa_plan(config: Config, grid: Grid, begin: int, asked: Options) -> Plan:
    """A grid that ends with a step of length 0 has its last step corrected there."""
    times = grid.times[begin:]
    repeats = len(times) > 2 and times[-1] == times[-2] and int(config["corrector_order"]) > 0
    if not repeats:
        return Named("sa_solver", _sa_solver)(config, grid, begin, asked)

    def options(config: Config, asked: Options, grid: Grid) -> dict[str, Any]:
        return {**_sa_solver(config, asked, grid), "correct_end": True}

    return Named("sa_solver", options)(config, replace(grid, times=grid.times[:-1]), begin, asked)


def _lcm(config: Config, asked: Options, grid: Grid) -> dict[str, Any]:
    return {"timestep_scaling": float(config["timestep_scaling"])}


def _tcd(config: Config, asked: Options, grid: Grid) -> dict[str, Any]:
    return {"gamma": 0.3 if asked.eta is None else asked.eta}


EXPLODING: dict[str, Any] = {"grid": grids.exploding, "pair": True, "prior": "sigma"}
DPM = rowwise(plans.dpm_multistep)

MAP: dict[str, Family] = {
    "DDPMScheduler": Family(grids.discrete_grid, Named("ddpm", _ddpm), integer=True, pair=True, clips="clip_sample"),
    "UnCLIPScheduler": Family(grids.unclip, Named("ddpm", _unclip), integer=True, pair=True, clips="clip_sample"),
    "DDIMScheduler": Family(grids.discrete_grid, _ddim_plan, integer=True, pair=True, clips="clip_sample"),
    "DDIMInverseScheduler": Family(grids.ddim_inverse, rowwise(plans.ddim_inverse), integer=True, pair=True),
    "EulerDiscreteScheduler": Family(plan=Named("ddim"), **EXPLODING),
    "EulerAncestralDiscreteScheduler": Family(plan=Named("ddpm"), **EXPLODING),
    "HeunDiscreteScheduler": Family(plan=Named("heun"), order=2, clips="clip_sample", **EXPLODING),
    "LMSDiscreteScheduler": Family(plan=Named("lms"), **EXPLODING),
    "KDPM2DiscreteScheduler": Family(plan=Named("dpm_2"), order=2, **EXPLODING),
    "KDPM2AncestralDiscreteScheduler": Family(plan=Named("dpm_2_ancestral"), order=2, inner="clock", **EXPLODING),
    "DPMSolverSDEScheduler": Family(plan=Named("dpmpp_sde"), order=2, **EXPLODING),
    "DEISMultistepScheduler": Family(grids.multistep, _deis, integer=True),
    "SASolverScheduler": Family(grids.multistep, _sa_plan, integer=True, draws_always=True),
    "LCMScheduler": Family(grids.distilled, Named("lcm", _lcm), integer=True, pair=True, clips="clip_sample"),
    "TCDScheduler": Family(grids.distilled, Named("tcd", _tcd), integer=True),
    "DPMSolverMultistepScheduler": Family(grids.multistep, DPM, integer=True),
    "DPMSolverMultistepInverseScheduler": Family(grids.dpm_inverse, DPM, integer=True),
    "DPMSolverSinglestepScheduler": Family(grids.multistep, rowwise(plans.dpm_singlestep), integer=True),
    "UniPCMultistepScheduler": Family(grids.unipc, rowwise(plans.unipc), integer=True),
    "FlowMatchEulerDiscreteScheduler": Family(grids.matching, Named("ddim")),
    "FlowMatchHeunDiscreteScheduler": Family(grids.matching_heun, Named("velocity_heun"), order=2),
    "FlowMatchLCMScheduler": Family(grids.matching, rowwise(plans.renoised)),
    "CogVideoXDDIMScheduler": Family(grids.discrete_grid, Named("ddim"), integer=True, pair=True),
    "CogVideoXDPMScheduler": Family(grids.discrete_grid, rowwise(plans.video), integer=True, pair=True),
    "CosineDPMSolverMultistepScheduler": Family(grids.edm, rowwise(plans.cosine), prior="edm"),
    "IPNDMScheduler": Family(grids.ipndm, rowwise(plans.ipndm)),
    "EDMEulerScheduler": Family(grids.edm, Named("ddim"), pair=True, prior="edm"),
    "EDMDPMSolverMultistepScheduler": Family(grids.edm, DPM, prior="edm"),
}
MAP["PNDMScheduler"] = Family(grids.pndm, plans.pndm, integer=True)
MAP["DDPMParallelScheduler"] = MAP["DDPMScheduler"]
MAP["DDIMParallelScheduler"] = MAP["DDIMScheduler"]


STOCHASTIC = Family(grids.matching, rowwise(plans.renoised))
"""FlowMatchEuler with stochastic_sampling=True."""


def family(name: str, config: Config) -> Family:
    """The family of a class.

    Raises:
        ValueError: keys that contradict each other, or that are not here, by their names.
    """
    found = STOCHASTIC if config.get("stochastic_sampling") else MAP[name]
    if config.get("scale_factors"):
        raise ValueError("scale_factors: a run whose size grows is not here; leave it None")
    if config.get("invert_sigmas") and found.plan is not MAP["FlowMatchEulerDiscreteScheduler"].plan:
        raise ValueError(
            f"invert_sigmas=True of {name} with noise in each step: diffusers takes x0 at the level 1 - sigma of "
            "another x; leave one of the two out"
        )
    if config.get("prediction_type") == "flow_prediction" and not config.get("use_flow_sigmas", True):
        raise ValueError(
            "prediction_type='flow_prediction' without use_flow_sigmas=True: a velocity of flow matching has no "
            "meaning on the levels of beta_schedule; set use_flow_sigmas=True"
        )
    trained, count = config.get("trained_betas"), config.get("num_train_timesteps")
    if trained is not None and len(trained) != count and name != "IPNDMScheduler":
        raise ValueError(f"trained_betas has {len(trained)} entries, and num_train_timesteps={count}: make them equal")
    return found
