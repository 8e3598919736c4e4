"""`accelerate`: a pipeline of diffusers with our scheduler in the place of its own."""

from __future__ import annotations

from typing import Any

from fastdiff.integrations.diffusers.scheduler import Scheduler
from fastdiff.names import unknown
from fastdiff.schedules.configs import CHOICES, DEFAULTS, OWN_CHOICES, settings

INSIDE = {
    "StableDiffusionLatentUpscalePipeline": "it does the scheduler's arithmetic itself",
    "LEditsPPPipelineStableDiffusion": "it reads the scheduler's tables, and asks for a class of diffusers",
    "LEditsPPPipelineStableDiffusionXL": "it reads the scheduler's tables, and asks for a class of diffusers",
    "StableDiffusionPanorama": "it keeps a copy of the scheduler's state for each view",
    "CycleDiffusion": "it does the scheduler's arithmetic itself",
    "ChronoEdit": "it cuts the scheduler's earlier outputs",
    "Cosmos": "it does the scheduler's preconditioning itself",
    "StableCascade": "its scheduler counts in log-SNR of its own",
}
"""Pipelines that reach into their scheduler, by the beginning of their names."""


def for_network(theirs: Any, chosen: str) -> dict[str, Any]:
    """Keys with which the class `chosen` runs the network of the scheduler `theirs`, where the two name them otherwise.

    Raises:
        ValueError: what the config says of the network, and `chosen` has no key for.
    """
    name, config = settings(theirs)
    has, match = DEFAULTS[chosen], name.startswith("FlowMatch")
    lost = [k for k in ("invert_sigmas", "use_dynamic_shifting", "shift_terminal") if config.get(k) and k not in has]
    if config.get("snr_shift_scale", 1.0) != 1.0 and "snr_shift_scale" not in has:
        lost.append("snr_shift_scale")
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        lost += [] if "timestep_type" in has else ["timestep_type"]
    own = next((begins for begins in ("EDM", "Cosine", "IPNDM") if name.startswith(begins)), None)
    flow = match or bool(config.get("use_flow_sigmas"))
    fits = chosen.startswith("FlowMatch") or "use_flow_sigmas" in has if flow else not chosen.startswith("FlowMatch")
    alien = next((begins for begins in ("EDM", "Cosine", "IPNDM") if chosen.startswith(begins)), None)
    if lost or not fits or own != alien:
        why = f"{lost[0]}={config[lost[0]]!r}" if lost else f"a network of {name}"
        raise ValueError(
            f"method={chosen!r} cannot run the network of this pipeline: it has no key for {why}; keep {name}"
        )
    # An algorithm that the other class does not have is no property of the network.
    valid = OWN_CHOICES.get(chosen, CHOICES)["algorithm_type"] if "algorithm_type" in has else ()
    known = not valid or config.get("algorithm_type", valid[0]) in valid
    given = {} if known else {"algorithm_type": has["algorithm_type"]}
    if not flow:
        return given
    shift = config["shift"] if match else config["flow_shift"]
    if chosen.startswith("FlowMatch"):
        return {"shift": shift}
    kind = "flow_prediction" if match else config["prediction_type"]
    return {**given, "use_flow_sigmas": True, "prediction_type": kind, "flow_shift": shift}


def accelerate(pipe: Any, method: str | None = None, graph: bool | str = "auto", **options: Any) -> Any:
    """Put our scheduler into a pipeline: `accelerate(pipe)`, and then `pipe(...)` as before.

    Args:
        pipe: a pipeline of diffusers with a `scheduler`.
        method: another scheduler class of diffusers for the same network, such as "UniPCMultistepScheduler", or
            "UniPCMultistep". Default: the pipeline's own.
        graph: "auto" or False. The pipeline calls its network itself, so that no graph of the whole run can be made
            here; `fastdiff.sample(pipe.unet, ..., graph="auto")` makes one, and `torch.compile(pipe.unet,
            mode="reduce-overhead")` one of the network.
        **options: keys of the scheduler's config to be changed, and `noise`, as in `Scheduler.from_config`.

    Returns:
        The pipeline, changed: `pipe.scheduler` is ours.

    Raises:
        TypeError: not a pipeline.
        ValueError: a pipeline that reaches into its scheduler, and what `Scheduler.from_config` does not have.
    """
    theirs = getattr(pipe, "scheduler", None)
    if theirs is None:
        raise TypeError(
            f"accelerate takes a pipeline of diffusers, with a scheduler; got {type(pipe).__name__}: for a network "
            "alone call fastdiff.sample(unet, schedule=scheduler, ...)"
        )
    if graph not in ("auto", False):
        raise ValueError(
            f"graph={graph!r}: the pipeline calls its network itself, so that no graph of the run can be made here; "
            "give graph='auto', and torch.compile(pipe.unet, mode='reduce-overhead') for the network"
        )
    name = type(pipe).__name__
    for begins, why in INSIDE.items():
        if name.startswith(begins):
            raise ValueError(f"{name} does not work with another scheduler: {why}; keep its own")
    if method is not None:
        chosen = next((n for n in (method, f"{method}Scheduler") if n in DEFAULTS), None)
        if chosen is None:
            raise ValueError(unknown("scheduler class of diffusers", method, DEFAULTS))
        options = {"replaces": chosen, **for_network(theirs, chosen), **options}
    pipe.scheduler = Scheduler.from_config(theirs, **options)
    return pipe
