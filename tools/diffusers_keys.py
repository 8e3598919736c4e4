"""Every key of every scheduler class of diffusers, theirs against ours: `python tools/diffusers_keys.py [table.json]`.

The classes and their keys are read from the installed diffusers, so that a key which a version has anew is found. Each
class is run with each value of each key below, and with pairs of them, in float64 as by tools/diffusers_parity.py. A
case must be equal to 1e-8, or refused by an error that names a key of it. What differs otherwise must be one of the
faults of theirs in KNOWN; anything else makes the exit status 1. `--pairs N` takes N pairs for each class (default 60).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import logging
import platform
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers_parity as parity
import numpy as np
import torch

STEPS = 10
TOLERANCE = 1e-8
"""Steps of a few ulp, at sigma/alpha up to 2e4 and with the 1e-10 that DDPM adds to a variance of 0."""

VALUES: dict[str, list[Any]] = {
    "num_train_timesteps": [500, 2000],
    "beta_start": [0.0005],
    "beta_end": [0.012],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "warp"],
    "trained_betas": [np.linspace(2e-4, 0.03, 1000).tolist(), [0.1, 0.2]],
    "variance_type": ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"],
    "clip_sample": [True, False],
    "clip_sample_range": [0.5],
    "prediction_type": ["epsilon", "sample", "v_prediction", "flow_prediction", "warp"],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [1.5],
    "timestep_spacing": ["linspace", "leading", "trailing", "warp"],
    "steps_offset": [1],
    "rescale_betas_zero_snr": [True],
    "set_alpha_to_one": [True, False],
    "solver_order": [1, 2, 3, 4],
    "algorithm_type": [
        *("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),
        *("data_prediction", "noise_prediction", "warp"),
    ],
    "solver_type": ["midpoint", "heun", "logrho", "bh1", "bh2", "warp"],
    "lower_order_final": [True, False],
    "euler_at_final": [True],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "use_lu_lambdas": [True],
    "use_flow_sigmas": [True],
    "flow_shift": [3.0],
    "use_dynamic_shifting": [True],
    "time_shift_type": ["linear", "warp"],
    "final_sigmas_type": ["zero", "sigma_min", "warp"],
    "lambda_min_clipped": [-5.1, -3.0],
    "interpolation_type": ["log_linear", "warp"],
    "sigma_min": [0.05],
    "sigma_max": [10.0, 700.0],
    "timestep_type": ["continuous", "warp"],
    "skip_prk_steps": [True],
    "original_inference_steps": [20, 100],
    "timestep_scaling": [5.0],
    "snr_shift_scale": [1.0, 2.0],
    "shift": [3.0],
    "base_shift": [0.3],
    "max_shift": [1.0],
    "base_image_seq_len": [128],
    "max_image_seq_len": [2048],
    "invert_sigmas": [True],
    "shift_terminal": [0.1],
    "stochastic_sampling": [True],
    "scale_factors": [[1.0, 2.0]],
    "upscale_mode": ["nearest"],
    "sigma_data": [1.0, 0.7],
    "sigma_schedule": ["karras", "exponential", "warp"],
    "rho": [5.0],
    "predict_x0": [False],
    "disable_corrector": [[0, 2]],
    "solver_p": [1],
    "predictor_order": [1, 3],
    "corrector_order": [0, 1, 3],
    "tau_func": [None],
    "noise_sampler_seed": [0],
}

Config = dict[str, Any]
KNOWN: list[tuple[str, Callable[[str, Config], bool]]] = [
    (
        "DDIM steps to t - N // steps, which is not the next time of its list",
        lambda name, c: "DDIM" in name and c.get("timestep_spacing") in ("linspace", "trailing"),
    ),
    (
        "CogVideoXDPM does the same",
        lambda name, c: name == "CogVideoXDPMScheduler" and c.get("timestep_spacing") in ("linspace", "trailing"),
    ),
    (
        "DDPM draws noise in its last step where its time is not 0",
        lambda name, c: name == "DDPMScheduler" and c.get("variance_type") in ("fixed_large", "learned_range"),
    ),
    (
        "PNDM combines v of several times, steps to t - N // steps, and cuts the middle of odd steps",
        lambda name, c: (
            name == "PNDMScheduler"
            and (
                c.get("prediction_type") == "v_prediction"
                or c.get("timestep_spacing") in ("linspace", "trailing")
                or c.get("num_train_timesteps") in (500,)
            )
        ),
    ),
    (
        "third order of sde-dpmsolver++ has the sign of a term turned",
        lambda name, c: c.get("algorithm_type") == "sde-dpmsolver++" and c.get("solver_order") == 3,
    ),
]
"""Faults of theirs, as docs/from-diffusers.md explains them: what, and where a difference is that."""
OLD: list[tuple[tuple[int, int], str, Callable[[str, Config], bool]]] = [
    (
        (0, 30),
        "KDPM2Ancestral draws noise in evaluations that do not use it",
        lambda name, c: name == "KDPM2AncestralDiscreteScheduler",
    ),
    (
        (0, 31),
        "DDPM steps to t - N // steps, which is not the next time of its list",
        lambda name, c: name == "DDPMScheduler" and c.get("timestep_spacing") == "linspace",
    ),
    (
        (0, 34),
        "DPMSolverSinglestep reads v of flow matching at levels of the betas",
        lambda name, c: (
            name == "DPMSolverSinglestepScheduler"
            and c.get("prediction_type") == "v_prediction"
            and bool(c.get("use_flow_sigmas"))
        ),
    ),
]
"""Those that a release was the last to have."""


def keys_of(name: str) -> list[str]:
    """The keys of a class's config in the installed version."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return [key for key in parameters if key not in ("self", "kwargs")]


def singles(name: str) -> Iterator[Config]:
    for key in keys_of(name):
        for value in VALUES[key]:
            yield {key: value}


def configs(name: str, pairs: int) -> Iterator[Config]:
    base: Config = {"clip_sample": False} if name == "DDIMInverseScheduler" else {}
    one = list(singles(name))
    two = [{**a, **b} for a, b in itertools.combinations(one, 2) if set(a) != set(b)]
    chosen = random.Random(0).sample(two, min(pairs, len(two)))
    return ({**base, **c} for c in ({}, *one, *chosen))


def both(name: str, config: Config) -> tuple[Any, Any]:
    """The results of theirs and of ours, or what they raised."""
    import diffusers

    from fastdiff.integrations.diffusers import Scheduler

    times: dict[str, Any] = {"num_inference_steps": STEPS}
    if config.get("use_dynamic_shifting"):
        times["mu"] = 0.7
    found: list[Any] = []
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        parity.wide(stack, name)
        draws = iter(parity.NOISE * (name != "DPMSolverSDEScheduler"))
        seeds = importlib.import_module("fastdiff.integrations.diffusers.seeds")
        for ours in (False, True):
            try:
                if ours:
                    made = Scheduler.from_config({**config, "_class_name": name}, noise="diffusers")
                    stack.enter_context(mock.patch.object(seeds, "randn_tensor", lambda *_, **__: next(draws)))
                else:
                    made = getattr(diffusers, name)(**config)
                found.append(parity.run(made, times, {}, 0))
            except Exception as failure:
                found.append(failure)
    return found[0], found[1]


def verdict(name: str, config: Config) -> tuple[str, str]:
    """What became of one config: a word, and the error or the reason."""
    want, got = both(name, config)
    if isinstance(got, Exception):
        text = f"{type(got).__name__}: {got}"
        named = isinstance(got, (ValueError, ImportError)) and any(key in text for key in config)
        return ("refused" if named else "FAULT"), text[:200]
    if not bool(torch.isfinite(got).all()):
        return "FAULT", "ours is not finite"
    if isinstance(want, Exception):
        return "theirs raises", f"{type(want).__name__}: {want}"[:200]
    if not bool(torch.isfinite(want).all()):
        return "theirs is not finite", ""
    error = float((got - want).abs().max() / want.abs().max())
    if error < TOLERANCE:
        return "equal", f"{error:.1e}"
    import diffusers

    release = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    faults = [*KNOWN, *((text, fits) for last, text, fits in OLD if release <= last)]
    reason = next((text for text, fits in faults if fits(name, config)), None)
    return ("FAULT" if reason is None else "differs"), f"{error:.1e}" + (f": {reason}" if reason else "")


def main() -> int:
    import diffusers

    from fastdiff.integrations.diffusers import Scheduler

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", nargs="?", help="a JSON file, to which this version's counts are added")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=())
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    names = [n for n in Scheduler._compatibles if hasattr(diffusers, n) and "Parallel" not in n]
    counts: dict[str, dict[str, int]] = {}
    total: Counter[str] = Counter()
    differs: dict[str, int] = {}
    for name in names:
        if args.only and name not in args.only:
            continue
        made: Counter[str] = Counter()
        # KDPM2's constructors take a second.
        for config in configs(name, args.pairs // 4 if name.startswith("KDPM2") else args.pairs):
            word, text = verdict(name, config)
            made[word] += 1
            if word == "differs":
                reason = text.split(": ", 1)[1]
                differs[reason] = differs.get(reason, 0) + 1
            if word == "FAULT":
                print(name, {k: v if len(str(v)) < 60 else "..." for k, v in config.items()}, text)
        counts[name], total = dict(made), total + made
    print(f"diffusers {diffusers.__version__}: {dict(total)}")
    if args.table:
        path = Path(args.table)
        known = json.loads(path.read_text()) if path.exists() else {"how": "python tools/diffusers_keys.py", "rows": {}}
        how = {"torch": torch.__version__, "machine": platform.machine(), "steps": STEPS, "tolerance": TOLERANCE}
        row = {**how, "total": dict(total), "differs": differs, "classes": counts}
        known["rows"][diffusers.__version__] = row
        known["rows"] = dict(sorted(known["rows"].items(), key=lambda r: [int(n) for n in r[0].split(".")]))
        path.write_text(json.dumps(known, indent=1) + "\n")
    return int(total["FAULT"] > 0)


if __name__ == "__main__":
    sys.exit(main())
