"""The fitted plans that ship with the digits network."""

from __future__ import annotations

import json

import pytest
import torch

import fastdiff
from fastdiff.demo import fewer, fit, load_model
from fastdiff.demo.fewer import best_setting
from fastdiff.demo.quality import measure
from fastdiff.demo.run import generate
from fastdiff.run.weights import fingerprint


@pytest.mark.parametrize("steps", fit.STEPS)
def test_a_plan_belongs_to_the_shipped_network(steps: int) -> None:
    plan = fit.load_plan(steps)
    model = load_model()
    assert plan.nfe == steps and plan.times[-1] == fit.T_END
    assert plan.origin["network"]["weights"] == fingerprint(model)
    assert plan.origin["network"]["shape"] == model.sample_shape
    errors = plan.origin["errors"]
    assert errors["after"]["median"] < 0.4 * errors["before"]["median"]


def test_three_fitted_evaluations_beat_five_of_the_best_setting() -> None:
    model, labels = load_model(), torch.arange(10).repeat_interleave(50)
    fitted = measure(generate(model, labels, 1, plan=fit.load_plan(3)), labels)
    best = measure(generate(model, labels, 1, plan=best_setting(5)), labels)
    # Both have the bias of 500 digits; with 2,000 the distances are 0.36 and 0.51.
    assert fitted.frechet < best.frechet
    assert fitted.accuracy > 0.98


def test_the_demo_s_figures_are_those_of_its_plans(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(fewer.FILE.read_text(encoding="utf-8"))
    rows = {(row["name"], row["steps"]): row for row in found["rows"]}
    assert found["seeds"] == [1, 2, 3] and [(name, steps) for name, steps, _ in fewer.plans()] == list(rows)
    assert all(len(row["frechet"]) == len(row["accuracy"]) == 3 for row in rows.values())
    # Three fitted evaluations are better than five of any setting, and five as ten, seed by seed.
    best = {steps: row["frechet"] for (name, steps), row in rows.items() if name != "fitted"}
    assert all(a < b for a, b in zip(rows["fitted", 3]["frechet"], best[5], strict=True))
    assert all(a < 1.05 * b for a, b in zip(rows["fitted", 5]["frechet"], best[10], strict=True))
    assert fewer.main(["--per-class", "2", "--seeds", "4", "--out", str(tmp_path / "fewer.json")]) == 0
    assert len(fewer.lines(tmp_path / "fewer.json")) == 1 + len(rows)


@pytest.mark.slow
def test_the_script_writes_a_plan(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    # The same call with a small fit: what takes a minute is its size.
    own = fastdiff.fit

    def small(model, steps, **given):
        few = {"trajectories": 16, "validation": 16, "teacher": 24, "budget": 6, "methods": ["dpm2"]}
        return own(model, steps, **{**given, **few, "progress": False})

    monkeypatch.setattr(fastdiff, "fit", small)
    assert fit.main(["--out", str(tmp_path), "--steps", "2"]) == 0
    assert json.loads((tmp_path / "digits-2.json").read_text())["origin"]["seeds"]["trajectories"] == 16
    assert fit.load_plan(2, tmp_path).nfe == 2
