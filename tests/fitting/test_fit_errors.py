"""Every error of `fit` and `tune` says what was got and the call that would be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.fitting import SMALL, Torch

import fastdiff
from fastdiff.fitting.picture import against_methods

DDIM = fastdiff.plan("ddim", 4)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"steps": 0}, ValueError, r"steps=0: expected a whole number, at least 1"),
        ({"trajectories": 1}, ValueError, r"trajectories=1: expected a whole number, at least 2"),
        ({"teacher": 3}, ValueError, r"teacher=3: expected a whole number, at least 8"),
        ({"teacher": "rk"}, ValueError, r"teacher='rk': expected a number of steps, a plan, or 'ode'"),
        ({"teacher": fastdiff.plan("ddpm", 20)}, ValueError, r"a plan of 'ddpm' that draws noise"),
        ({"teacher": DDIM}, ValueError, r"teacher runs from 750 to -1, and the fit from 999 to 0"),
        ({"teacher": fastdiff.plan("dpm2", 9, "cosine")}, ValueError, "teacher is a plan of another schedule"),
        ({"teacher": 8, "steps": 8}, ValueError, r"grid has 9 times, too few for 8 evaluations"),
        ({"seed": 0.5}, TypeError, r"seed=0.5: expected an integer"),
        ({"prediction": "epss"}, ValueError, r"unknown prediction 'epss'.*'eps'"),
        ({"methods": ["ode"]}, ValueError, r"method 'ode' is adaptive and has no plan"),
        ({"methods": ["ddpm"]}, ValueError, r"none of ddpm has a deterministic plan of 4 evaluations"),
        ({"loss": "mse"}, ValueError, r"unknown loss 'mse'"),
        ({"loss": lambda x, y: x.sum()}, ValueError, r"loss\(x, target\) returned \(\); expected .* \(48,\)"),
        ({"start": "dpm2"}, TypeError, r"start must be a fastdiff.Plan, got str"),
        ({"start": fastdiff.plan("dpm2", 5)}, ValueError, r"start has 5 evaluations, and steps=4"),
        ({"start": DDIM}, ValueError, r"start runs from 750 to -1"),
        ({"start": fastdiff.plan("ddpm", 4)}, ValueError, r"start is a plan of 'ddpm' that draws noise"),
        ({"start": fastdiff.plan("dpm2", 4, "cosine")}, ValueError, r"start is a plan of another schedule"),
        ({"t_start": 3.0, "t_end": 5.0}, ValueError, r"t_start=3 must be above t_end=5"),
        ({"conditions": lambda i, n: {"y": 1}}, ValueError, r"conditions\(first, count\) gave y; expected a dict"),
        (
            {"conditions": lambda i, n: {}, "model_kwargs": {}},
            ValueError,
            r"conditions and model_kwargs say the same twice",
        ),
        ({"guidance": 2.0}, ValueError, r"needs guidance, cond and uncond together"),
        (
            {"guidance": fastdiff.guidance.CFGPlusPlus(0.6), "cond": {}, "uncond": {}},
            ValueError,
            r"CFG\+\+ needs a method with one evaluation a step",
        ),
        ({"callback": 3}, TypeError, r"callback got int; expected callback\(phase, done, expected, loss\)"),
        ({"methods": "dpm2", "step": 3}, TypeError, r"step"),
        (
            {"polish": True, "classifier_grad": lambda x, t: x},
            ValueError,
            r"polish=True needs second derivatives of the classifier",
        ),
        ({"optimizer": "sgd"}, ValueError, r"unknown optimizer 'sgd'.*lbfgs, adam"),
        ({"polish": True, "clip": "dynamic"}, ValueError, r"polish=True does not go through dynamic thresholding"),
    ],
)
def test_errors(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {**SMALL, "steps": 4, "teacher": 16, "budget": 8, **given}
    steps = arguments.pop("steps")
    with pytest.raises(kind, match=message):
        fastdiff.fit(Torch(), steps, **arguments)


def test_a_model_must_be_callable() -> None:
    with pytest.raises(TypeError, match="model must be callable"):
        fastdiff.fit(3, 4, **SMALL)  # type: ignore[arg-type]


def test_polish_needs_gradients() -> None:
    def cut(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return 0.9 * x / (1 + x.square())

    small = {**SMALL, "shape": (48, 3), "budget": 8}
    with pytest.raises(TypeError, match="does not depend on its input for autograd"):
        fastdiff.fit(cut, 2, **small, polish=True)


def test_a_picture_needs_plans_of_fit(tmp_path) -> None:
    with pytest.raises(ValueError, match="a plan of 'ddim' has no errors in its origin"):
        against_methods([], [DDIM], tmp_path / "a.png")
