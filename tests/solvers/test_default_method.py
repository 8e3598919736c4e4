"""What is sampled with where no method is named: by schedule and steps, in every call alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.fitting import Torch

import fastdiff
from fastdiff.cli import main

FLOW, FULL = {"schedule": "flow"}, {"lower_order_final": False}
ZERO_SNR = fastdiff.schedules.discrete(alphas_cumprod=np.linspace(0.999, 0.0, 1000))


@pytest.mark.parametrize(
    ("given", "method", "options"),
    [
        ({"steps": 5}, "dpm2", {}),
        ({"steps": 10}, "dpm2", {}),
        ({}, "dpm2", {}),
        ({"steps": 11}, "dpm3", {}),
        ({"steps": 5, "schedule": "subvp"}, "dpm2", {}),
        ({"spacing": "ddim25"}, "dpm3", {}),
        ({"spacing": [999.0, 500.0, 10.0]}, "dpm2", {}),
        ({"steps": 5, "schedule": "ve"}, "dpm3", {**FULL, "final": "t_min"}),
        ({"steps": 5, "schedule": "edm"}, "dpm3", {**FULL, "final": "t_min"}),
        ({"steps": 5, "schedule": "ve", "t_end": 0.0}, "dpm3", FULL),
        ({"steps": 5, "schedule": "ve", "spacing": "logsnr"}, "dpm3", FULL),
        ({"steps": 5, "schedule": "smld"}, "dpm3", FULL),
        ({"steps": 5, **FLOW}, "dpmpp2m", {}),
        ({"steps": 30, **FLOW}, "dpmpp2m", {}),
        # No noise-prediction method starts where alpha = 0; below it they do.
        ({"steps": 5, "schedule": ZERO_SNR}, "dpmpp2m", {}),
        ({"steps": 5, "schedule": ZERO_SNR, "t_start": 900.0}, "dpm2", {}),
        ({"schedule": ZERO_SNR, "spacing": [999.0, 500.0, 10.0]}, "dpmpp2m", {}),
    ],
)
def test_the_choice(given: dict[str, Any], method: str, options: dict[str, Any]) -> None:
    named = fastdiff.plan(method, **given, **options)
    assert fastdiff.plan(**given) == named
    sampler = fastdiff.Sampler(**given)
    assert sampler.method == method and sampler.plan == named


def test_an_option_goes_before_the_choices() -> None:
    assert fastdiff.plan(steps=5, schedule="ve", final="clean").times[-1] == 0.0
    assert fastdiff.plan(steps=5, lower_order_final=True) == fastdiff.plan("dpm2", 5, lower_order_final=True)
    with pytest.raises(ValueError, match="unknown option of method 'dpm2': 'eta'"):
        fastdiff.plan(steps=5, eta=1.0)


def test_a_named_method_keeps_its_meaning() -> None:
    assert fastdiff.Sampler("dpm3", 5).method == "dpm3"
    assert fastdiff.Sampler("ode").method == "ode"
    ends = fastdiff.plan("dpm3", 5, "ve")
    assert ends.times[-1] == 0.0 and ends.options["lower_order_final"] is True


@pytest.mark.parametrize("schedule", ["ddpm", "subvp", "ve", "edm", "flow"])
def test_sample_takes_it(schedule: str) -> None:
    model = Torch(schedule, "flow" if schedule == "flow" else "eps")
    given = {"shape": (4, 3), "schedule": schedule, "prediction": model.kind, "steps": 6, "dtype": torch.float64}
    found = fastdiff.sample(model, **given)
    assert torch.equal(found, fastdiff.Sampler(**{k: v for k, v in given.items() if k != "shape"})(model, shape=(4, 3)))
    if schedule == "flow":
        return  # whose adaptive solver needs a finite start
    x = fastdiff.randn((4, 3), seed=0, prior=True, dtype=torch.float64) * model.noise.prior_std()
    truth = fastdiff.sample(model, x, method="ode", rtol=1e-6, atol=1e-6, schedule=schedule, dtype=torch.float64)
    # Six steps on a mixture of unit size; the default before, dpm3 of lower order to the end, misses by 0.1 to 0.3.
    assert (found - truth).square().mean().sqrt() < 0.1


def test_the_command_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--steps", "4", "--schedule", "flow"]) == 0
    assert capsys.readouterr().out.startswith("dpmpp2m")
