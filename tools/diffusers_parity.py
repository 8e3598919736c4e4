"""diffusers' schedulers against ours, option by option, in float64: `python tools/diffusers_parity.py [table.json]`.

Each case runs theirs and `fastdiff.integrations.diffusers.Scheduler` on the network of a Gaussian mixture, from one x_T
and with the same noise, and notes the largest difference relative to the largest value of theirs. Their tables are made
in float64, so that formulas are compared and not roundings. Needs diffusers and scipy.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import math
import platform
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

SHAPE = (2, 3, 4, 4)
START = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(64, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
STEPS = 12


class Wide(types.ModuleType):
    """A module whose float32 is float64."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, float32=module.float64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


def network(x: torch.Tensor, t: Any, kind: str) -> torch.Tensor:
    """What the exact network of two Gaussians in every element, at -1 and 0.5, of deviation 0.2, gives.

    Any time is a level of noise: the scheduler decides what it does with the answer.
    """
    time = torch.as_tensor(t, dtype=torch.float64)
    lam = 4.0 - 8.0 * torch.where(time.abs() > 3, time / 1000.0, (time + 2.0) / 4.0)
    alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
    means = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    variance = (0.2 * alpha) ** 2 + sigma**2
    gap = x.unsqueeze(-1) - alpha * means
    share = torch.softmax(-(gap**2) / (2 * variance), -1)
    eps = (sigma * gap / variance * share).sum(-1)
    x0 = (x - sigma * eps) / alpha
    made = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow_prediction": eps - x0}
    return made[kind]


def wide(stack: ExitStack, name: str) -> None:
    """Have the module of a scheduler class compute in float64, and draw its noise from NOISE."""
    import diffusers

    module = importlib.import_module(getattr(diffusers, name).__module__)
    # CogVideoXDPM draws twice in every step of second order, and uses the second.
    twice = name == "CogVideoXDPMScheduler"
    draws: Iterator[torch.Tensor] = (NOISE[(i + 1) // 2 if twice else i] for i in itertools.count())
    doubled = Wide(torch)
    # FlowMatchEuler's stochastic_sampling up to diffusers 0.36.
    doubled.__dict__["randn_like"] = lambda *_, **__: next(draws)
    for attribute, value in (("torch", doubled), ("np", Wide(np))):
        if hasattr(module, attribute):
            stack.enter_context(mock.patch.object(module, attribute, value))
    if hasattr(module, "randn_tensor"):
        stack.enter_context(mock.patch.object(module, "randn_tensor", lambda *_, **__: next(draws)))
    if hasattr(module, "BrownianTreeNoiseSampler"):
        stack.enter_context(
            mock.patch.object(module, "BrownianTreeNoiseSampler", lambda *_, **__: lambda *_: brownian(name, draws))
        )


def brownian(name: str, draws: Iterator[torch.Tensor]) -> torch.Tensor:
    return torch.zeros(SHAPE) if name == "DPMSolverSDEScheduler" else next(draws)


def run(scheduler: Any, times: dict[str, Any], step: dict[str, Any], begin: int) -> torch.Tensor:
    scheduler.set_timesteps(**times)
    stands_for = getattr(scheduler, "replaces", type(scheduler).__name__)
    usual = "v_prediction" if stands_for == "IPNDMScheduler" else "flow_prediction"
    kind = scheduler.config.get("prediction_type", usual)
    x = START * float(getattr(scheduler, "init_noise_sigma", 1.0))
    if begin:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        noised = scheduler.add_noise if hasattr(scheduler, "add_noise") else None
        at = scheduler.timesteps[begin : begin + 1].repeat(len(START))
        x = noised(0.3 * START, NOISE[-1], at) if noised else scheduler.scale_noise(0.3 * START, at, NOISE[-1])
    old, before = None, None
    listed = [int(t) for t in scheduler.timesteps] if stands_for == "UnCLIPScheduler" else []
    for i, t in enumerate(scheduler.timesteps[begin:]):
        # Its pipelines say where a step leads.
        more = {"prev_timestep": [*listed, None][begin + i + 1]} if listed else {}
        # The network's times are float32, as pipelines have them.
        time = t.float()
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = network(given, time, "epsilon" if kind == "original_sample" else kind)
        if str(scheduler.config.get("variance_type")) == "learned_range":
            out = torch.cat([out, torch.tanh(given)], 1)
        if type(scheduler).__name__ == "CogVideoXDPMScheduler":
            x, old = scheduler.step(out, old, t, before, x, **step, return_dict=False)
        else:
            x = scheduler.step(out, int(t) if listed else t, x, **step, **more, return_dict=False)[0]
        before = t
    return x


def error(
    name: str,
    config: dict[str, Any],
    times: dict[str, Any] | None = None,
    step: dict[str, Any] | None = None,
    begin: int = 0,
) -> float:
    """The largest difference of the results, relative to the largest of theirs; NaN where theirs has one."""
    import diffusers

    from fastdiff.integrations.diffusers import Scheduler

    times = {"num_inference_steps": STEPS} if times is None else times
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        wide(stack, name)
        theirs = getattr(diffusers, name)(**config)
        want = run(theirs, times, step or {}, begin)
        ours = Scheduler.from_config(getattr(diffusers, name)(**config), noise="diffusers")
        # Its two noises of a step are one Brownian path in sigma there, and one of the reverse SDE here: what is equal
        # is all but them.
        draws = iter(NOISE * (name != "DPMSolverSDEScheduler"))
        seeds = importlib.import_module("fastdiff.integrations.diffusers.seeds")
        stack.enter_context(mock.patch.object(seeds, "randn_tensor", lambda *_, **__: next(draws)))
        got = run(ours, times, step or {}, begin)
    if not bool(torch.isfinite(got).all()):
        raise FloatingPointError(f"ours is not finite: {name} {config} {times}")
    return float((got - want).abs().max() / want.abs().max())


Case = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], int]


def cases() -> list[Case]:
    """(class, config, arguments of set_timesteps, arguments of step, begin index)."""
    made: list[Case] = []

    def add(
        name: str, config: dict[str, Any] | None = None, times: Any = None, step: Any = None, begin: int = 0
    ) -> None:
        made.append((name, config or {}, times or {"num_inference_steps": STEPS}, step or {}, begin))

    spacings = ("leading", "trailing", "linspace")
    betas = ("linear", "scaled_linear", "squaredcos_cap_v2")
    curves = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    plain = {"clip_sample": False}
    for name in ("DDIMScheduler", "DDPMScheduler"):
        add(name)
        for beta, kind in itertools.product(betas, ("epsilon", "sample", "v_prediction")):
            add(name, {"beta_schedule": beta, "prediction_type": kind, **plain})
        add(name, {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9})
        add(name, {"clip_sample_range": 0.5})
        add(
            name,
            {
                "rescale_betas_zero_snr": True,
                "prediction_type": "v_prediction",
                "timestep_spacing": "trailing",
                **plain,
            },
            {"num_inference_steps": 10},
        )
        add(name, {"trained_betas": np.linspace(1e-4, 0.03, 1000).tolist(), **plain})
        for n in (1, 2, 10):
            add(name, {"timestep_spacing": "trailing", **plain}, {"num_inference_steps": n})
            add(name, {"steps_offset": 1, **plain}, {"num_inference_steps": n})
        add(name, plain, begin=4)
    add("DDIMScheduler", {"timestep_spacing": "linspace", **plain})
    add("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1, **plain})
    add("DDIMScheduler", {"set_alpha_to_one": False, **plain})
    for eta, clipped in itertools.product((0.5, 1.0), (False, True)):
        add("DDIMScheduler", {}, step={"eta": eta, "use_clipped_model_output": clipped})
    for kind in ("fixed_large", "fixed_small_log", "learned_range"):
        add("DDPMScheduler", {"variance_type": kind})
    add("DDPMScheduler", plain, {"timesteps": [900, 700, 400, 100, 0]})
    for spacing in ("leading", "trailing"):
        add("DDIMInverseScheduler", {"timestep_spacing": spacing, **plain})
        add(
            "DDIMInverseScheduler",
            {"timestep_spacing": spacing, "set_alpha_to_one": False, "prediction_type": "v_prediction", **plain},
        )
    exploding = (
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
    )
    for name in exploding:
        for spacing, kind in itertools.product(spacings, ("epsilon", "v_prediction")):
            add(name, {"timestep_spacing": spacing, "prediction_type": kind, "beta_schedule": "scaled_linear"})
        if name != "EulerAncestralDiscreteScheduler":
            for curve in curves:
                add(name, {curve: True})
        for n in (1, 2, 3):
            add(name, {}, {"num_inference_steps": n})
        add(name, {"steps_offset": 1, "timestep_spacing": "leading"}, begin=4)
    add("HeunDiscreteScheduler", {"clip_sample": True})
    add("HeunDiscreteScheduler", {"beta_schedule": "exp"})
    add("HeunDiscreteScheduler", {}, {"timesteps": [900.0, 700.0, 400.0, 100.0]})
    add("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"})
    add(
        "EulerDiscreteScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    )
    add(
        "EulerDiscreteScheduler",
        {
            "prediction_type": "v_prediction",
            "timestep_type": "continuous",
            "use_karras_sigmas": True,
            "sigma_min": 0.002,
            "sigma_max": 700.0,
        },
    )
    add("EulerDiscreteScheduler", {}, {"sigmas": [14.0, 7.0, 3.0, 1.0, 0.3, 0.0]})
    add("EulerDiscreteScheduler", {}, {"timesteps": [900.0, 500.0, 20.0]})
    add(
        "EulerAncestralDiscreteScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    )
    dpm = "DPMSolverMultistepScheduler"
    low = {"final_sigmas_type": "sigma_min"}
    for n, order, kind, form in itertools.product(
        (1, 2, 12, 16), (1, 2, 3), ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"), ("midpoint", "heun")
    ):
        add(
            dpm, {"solver_order": order, "algorithm_type": kind, "solver_type": form, **low}, {"num_inference_steps": n}
        )
    for form in ("midpoint", "heun"):
        add(dpm, {"algorithm_type": "sde-dpmsolver", "solver_type": form, **low})
    for order, spacing in itertools.product((2, 3), spacings):
        add(dpm, {"solver_order": order, "timestep_spacing": spacing})
        add(
            dpm,
            {
                "solver_order": order,
                "timestep_spacing": spacing,
                "lower_order_final": False,
                "euler_at_final": True,
                **low,
            },
        )
    for kind in ("epsilon", "sample", "v_prediction"):
        add(dpm, {"prediction_type": kind})
        add(dpm, {"prediction_type": kind, "algorithm_type": "dpmsolver", **low})
    for curve in (*curves, "use_lu_lambdas"):
        add(dpm, {curve: True})
        add(dpm, {curve: True, "beta_schedule": "squaredcos_cap_v2", **low})
    for shift in (1.0, 3.0):
        add(dpm, {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"})
    add(
        dpm,
        {"use_flow_sigmas": True, "use_dynamic_shifting": True, "prediction_type": "flow_prediction"},
        {"num_inference_steps": STEPS, "mu": 0.8},
    )
    add(dpm, {"thresholding": True, "sample_max_value": 1.5})
    add(dpm, {"thresholding": True, "algorithm_type": "dpmsolver", **low})
    add(dpm, {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"})
    add(dpm, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"})
    add(dpm, {"variance_type": "learned_range"})
    add(dpm, {}, {"timesteps": [900, 600, 300, 50]})
    add(dpm, {"solver_order": 3, "steps_offset": 1, "timestep_spacing": "leading"}, begin=5)
    for order, kind, form in itertools.product((1, 2, 3), ("dpmsolver++", "dpmsolver"), ("midpoint", "heun")):
        for n in (1, 2, 6, 7, 8):
            if n >= order:
                add(
                    "DPMSolverSinglestepScheduler",
                    {
                        "solver_order": order,
                        "algorithm_type": kind,
                        "solver_type": form,
                        "lower_order_final": True,
                        **low,
                    },
                    {"num_inference_steps": n},
                )
    add("DPMSolverSinglestepScheduler", {}, {"num_inference_steps": 8})
    add("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {"num_inference_steps": 8})
    add(
        "DPMSolverSinglestepScheduler",
        {"solver_order": 3, "lower_order_final": True},
        {"num_inference_steps": 9},
        begin=4,
    )
    for curve in (*curves, "use_flow_sigmas"):
        more = {"prediction_type": "flow_prediction"} if curve == "use_flow_sigmas" else {}
        add("DPMSolverSinglestepScheduler", {curve: True, **more})
        for p, c in ((1, 1), (2, 2), (3, 4)):
            add("SASolverScheduler", {curve: True, "predictor_order": p, "corrector_order": c, **more})
        for order, n in itertools.product((2, 3), (12, 16)):
            add("DEISMultistepScheduler", {curve: True, "solver_order": order, **more}, {"num_inference_steps": n})
    inverse = "DPMSolverMultistepInverseScheduler"
    for order, spacing in itertools.product((1, 2, 3), spacings):
        add(inverse, {"solver_order": order, "timestep_spacing": spacing})
    add(inverse, {"algorithm_type": "dpmsolver"})
    for order, form, space, n in itertools.product((1, 2, 3), ("bh1", "bh2"), (True, False), (1, 2, 5, 12)):
        add(
            "UniPCMultistepScheduler",
            {"solver_order": order, "solver_type": form, "predict_x0": space, **low},
            {"num_inference_steps": n},
        )
    for spacing in spacings:
        add("UniPCMultistepScheduler", {"timestep_spacing": spacing})
    for curve in curves:
        add("UniPCMultistepScheduler", {curve: True})
        add("UniPCMultistepScheduler", {curve: True, "lower_order_final": False, **low})
    add("UniPCMultistepScheduler", {"lower_order_final": False, "solver_order": 3})
    add("UniPCMultistepScheduler", {"disable_corrector": [0, 1, 5]})
    add("UniPCMultistepScheduler", {"thresholding": True, "sample_max_value": 1.5})
    wan = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for more in (
        {"flow_shift": 5.0},
        {"use_karras_sigmas": True},
        {"flow_shift": 3.0, "shift_terminal": 0.1},
        {"solver_order": 3},
    ):
        add("UniPCMultistepScheduler", {**wan, **more})
    add("UniPCMultistepScheduler", {**wan, "use_dynamic_shifting": True}, {"num_inference_steps": STEPS, "mu": 0.9})
    add("UniPCMultistepScheduler", {**wan}, {"sigmas": np.linspace(1, 0.1, 7)})
    add("UniPCMultistepScheduler", {"solver_order": 3, "steps_offset": 1, "timestep_spacing": "leading"}, begin=5)
    match = "FlowMatchEulerDiscreteScheduler"
    for config in (
        {},
        {"shift": 3.0},
        {"shift": 3.0, "shift_terminal": 0.1},
        {"invert_sigmas": True},
        {"stochastic_sampling": True},
        *({c: True} for c in curves),
    ):
        add(match, config)
    for kind in ("exponential", "linear"):
        add(
            match,
            {"use_dynamic_shifting": True, "time_shift_type": kind, "shift_terminal": 0.1},
            {"sigmas": np.linspace(1, 0.1, 9).tolist(), "mu": 0.7},
        )
    add(match, {"shift": 3.0}, {"num_inference_steps": 1})
    add(match, {"shift": 3.0}, begin=3)
    add("FlowMatchLCMScheduler", {"shift": 3.0})
    for n, shift in ((1, 1.0), (12, 1.0), (12, 3.0)):
        add("FlowMatchHeunDiscreteScheduler", {"shift": shift}, {"num_inference_steps": n})
    for kind, curve in itertools.product(("epsilon", "v_prediction"), ("karras", "exponential")):
        add("EDMEulerScheduler", {"prediction_type": kind, "sigma_schedule": curve})
        for order in (1, 2, 3):
            add(
                "EDMDPMSolverMultistepScheduler",
                {"prediction_type": kind, "sigma_schedule": curve, "solver_order": order},
            )
    add("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "sigma_data": 1.0})
    add("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"})
    for order, spacing in itertools.product((1, 2, 3), spacings):
        add("DEISMultistepScheduler", {"solver_order": order, "timestep_spacing": spacing})
    add("DEISMultistepScheduler", {"thresholding": True})
    for p, c, kind in itertools.product((1, 2, 3), (1, 2, 4), ("data_prediction", "noise_prediction")):
        add("SASolverScheduler", {"predictor_order": p, "corrector_order": c, "algorithm_type": kind})
    for spacing, skip in itertools.product(("leading", "trailing"), (True, False)):
        add("PNDMScheduler", {"timestep_spacing": spacing, "skip_prk_steps": skip}, {"num_inference_steps": 10})
    add("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "prediction_type": "v_prediction"})
    for n in (2, 12):
        add("IPNDMScheduler", {}, {"num_inference_steps": n})
    for name, n, zero in itertools.product(
        ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"), (1, 2, 10), (False, True)
    ):
        video = {"rescale_betas_zero_snr": zero, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
        add(name, {**video, "snr_shift_scale": 1.0 if n == 2 else 3.0}, {"num_inference_steps": n})
    for order, kind, form in itertools.product((1, 2), ("epsilon", "v_prediction"), ("midpoint", "heun")):
        add(
            "CosineDPMSolverMultistepScheduler",
            {"solver_order": order, "prediction_type": kind, "solver_type": form, "sigma_data": 0.7},
        )
    add("CosineDPMSolverMultistepScheduler", {"sigma_schedule": "karras", **low})
    for name in ("LCMScheduler", "TCDScheduler"):
        for n, kind in itertools.product((1, 2, 4), ("epsilon", "v_prediction")):
            add(name, {"prediction_type": kind}, {"num_inference_steps": n})
    add("TCDScheduler", {}, {"num_inference_steps": 4}, {"eta": 0.0})
    return made


def main() -> None:
    import diffusers

    only = [a for a in sys.argv[1:] if a.endswith("Scheduler")]

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for name, config, times, step, begin in cases():
        if only and name not in only:
            continue
        try:
            found: Any = error(name, config, times, step, begin)
            found = "theirs is NaN" if math.isnan(found) else found
        except Exception as failure:
            found = f"{type(failure).__name__}: {failure}"[:300]
        short = {k: (v if len(str(v)) < 80 else "...") for k, v in config.items()}
        rows.append(
            {
                "class": name,
                "config": short,
                "times": {k: np.asarray(v).tolist() for k, v in times.items()},
                "step": step,
                "begin": begin,
                "error": found,
            }
        )
        good = isinstance(found, float) and found < 1e-9
        if not good or "-v" in sys.argv:
            print(name, short, times, step, begin, "->", found)
    good = [r for r in rows if isinstance(r["error"], float) and r["error"] < 1e-9]
    print(f"{len(good)} of {len(rows)} cases agree to 1e-9; the largest of these {max(r['error'] for r in good):.1e}")
    if len(sys.argv) > 1 and sys.argv[1].endswith(".json"):
        how = {"diffusers": diffusers.__version__, "torch": torch.__version__, "machine": platform.machine()}
        table = {"how": "python tools/diffusers_parity.py", **how, "rows": rows}
        Path(sys.argv[1]).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
