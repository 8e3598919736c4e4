"""The map: every scheduler class of diffusers, its grid, and the plan of ours that does its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastdiff.integrations.diffusers import grids, plans
from fastdiff.integrations.diffusers.plans import Build, Options, named, rowwise
from fastdiff.integrations.diffusers.spacing import Asked, Grid

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
    names: tuple[str, ...] = ("prev_sample", "pred_original_sample")


def _ddpm(config: Config, asked: Options) -> dict[str, Any]:
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


def _ddim(config: Config, asked: Options) -> dict[str, Any]:
    return {"eta": asked.eta or 0.0, "use_clipped_model_output": asked.use_clipped_model_output}


EXPLODING: dict[str, Any] = {"grid": grids.exploding, "pair": True, "prior": "sigma"}
DPM = rowwise(plans.dpm_multistep)

FAMILIES: dict[str, Family] = {
    "DDPMScheduler": Family(grids.discrete_grid, named("ddpm", _ddpm), integer=True, pair=True, clips="clip_sample"),
    "DDIMScheduler": Family(grids.discrete_grid, named("ddim", _ddim), integer=True, pair=True, clips="clip_sample"),
    "DDIMInverseScheduler": Family(grids.ddim_inverse, rowwise(plans.ddim_inverse), integer=True, pair=True),
    "EulerDiscreteScheduler": Family(plan=named("ddim"), **EXPLODING),
    "EulerAncestralDiscreteScheduler": Family(plan=named("ddpm"), **EXPLODING),
    "HeunDiscreteScheduler": Family(plan=named("heun"), order=2, clips="clip_sample", **EXPLODING),
    "DPMSolverMultistepScheduler": Family(grids.multistep, DPM, integer=True),
    "DPMSolverMultistepInverseScheduler": Family(grids.dpm_inverse, DPM, integer=True),
    "DPMSolverSinglestepScheduler": Family(grids.multistep, rowwise(plans.dpm_singlestep), integer=True),
    "UniPCMultistepScheduler": Family(grids.unipc, rowwise(plans.unipc), integer=True),
    "FlowMatchEulerDiscreteScheduler": Family(grids.matching, named("ddim")),
    "FlowMatchLCMScheduler": Family(grids.matching, rowwise(plans.renoised)),
    "EDMEulerScheduler": Family(grids.edm, named("ddim"), pair=True, prior="edm"),
    "EDMDPMSolverMultistepScheduler": Family(grids.edm, DPM, prior="edm"),
}
FAMILIES["DDPMParallelScheduler"] = FAMILIES["DDPMScheduler"]
FAMILIES["DDIMParallelScheduler"] = FAMILIES["DDIMScheduler"]

STOCHASTIC = Family(grids.matching, rowwise(plans.renoised))
"""FlowMatchEuler with stochastic_sampling=True."""

NEAREST = {
    "AmusedScheduler": "",
    "CMStochasticIterativeScheduler": "",
    "CogVideoXDDIMScheduler": "DDIMScheduler with trained_betas",
    "CogVideoXDPMScheduler": "DPMSolverMultistepScheduler with trained_betas",
    "CosineDPMSolverMultistepScheduler": "EDMDPMSolverMultistepScheduler",
    "DDPMWuerstchenScheduler": "",
    "RePaintScheduler": "",
    "SCMScheduler": "",
    "ScoreSdeVeScheduler": "fastdiff.sample(model, method='pc', schedule='ve')",
    "UnCLIPScheduler": "DDPMScheduler",
    "VQDiffusionScheduler": "",
}
"""Classes that are not here, and what is nearest."""


def family(name: str, config: Config) -> Family:
    """The family of a class; ValueError for one that is not here, with the nearest."""
    if name not in FAMILIES:
        near = NEAREST.get(name, "")
        hint = f"; the nearest is {near}" if near else ""
        raise ValueError(f"{name} is not here{hint}: keep diffusers' own. Here are {', '.join(sorted(FAMILIES))}")
    if config.get("stochastic_sampling"):
        return STOCHASTIC
    return FAMILIES[name]
