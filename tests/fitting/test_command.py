"""`fastdiff fit` and `fastdiff tune`, run as commands."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastdiff
from fastdiff.cli import main

NETWORK = """
from helpers.fitting import SMALL, Torch

def network():
    return Torch(), {**SMALL, "budget": 12}

number = 3

def bare():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fitme.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_fit_writes_a_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "fitme:network", "--steps", "3", "--out", "plan.json", "--seed", "2"]) == 0
    plan = fastdiff.Plan.load(folder / "plan.json")
    assert plan.nfe == 3 and plan.origin["seeds"]["fit"] == 2
    assert "3 evaluations: dpm2" in capsys.readouterr().out


def test_fit_of_several_numbers_of_evaluations_draws_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--trajectories", "16"]
    # The picture is of the fits' own search: no other is made for it.
    monkeypatch.setattr("fastdiff.fitting.tune.tune", lambda *_, **__: pytest.fail("searched twice"))
    assert main(["fit", "fitme:network", "--steps", "2", "3", "--out", "plans", "--plot", "errors.png", *small]) == 0
    assert sorted(p.name for p in (folder / "plans").iterdir()) == ["2.json", "3.json"]
    found = fastdiff.Plan.load(folder / "plans" / "3.json").origin["methods"]
    assert list(found) == ["dpm2"] and found["dpm2"] > 0
    assert (folder / "errors.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("steps", [["3"], ["3", "4"]])
def test_tune_prints_and_draws(folder: Path, steps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # `tune` takes no budget and no validation: such options of the function are fit's alone.
    assert main(["tune", "fitme:network", "--steps", *steps, "--plot", "table.png", "--trajectories", "16"]) == 0
    out = capsys.readouterr().out
    assert "settings of 3 evaluations" in out and (folder / "table.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitme"], "expected MODULE:FUNCTION"),
        (["nosuch:network"], "No module named 'nosuch'"),
        (["fitme:nothing"], "module 'fitme' has no function 'nothing'; expected MODULE:FUNCTION"),
        (["fitme:number"], "module 'fitme' has 'number', but that is no function; expected MODULE:FUNCTION"),
        (
            ["fitme:network", "--steps", "2", "3", "--out", "fitme.py"],
            "'fitme.py' is a file; of several steps expected",
        ),
        (["fitme:bare"], "returned int; expected a model, or"),
        (["fitme:network", "--steps", "2", "3", "--checkpoint", "a.safetensors"], "--checkpoint goes with one number"),
    ],
)
def test_errors(folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--out", "plan", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("import no_such_library\n", 1, "No module named 'no_such_library' (ModuleNotFoundError"),
        ("def network():\n    raise RuntimeError('no weights')\n", 2, "no weights (RuntimeError"),
        ("def network():\n    return lambda x, t: x @ x, {'shape': (2, 3)}\n", 2, "(RuntimeError"),
        ("def network():\n    return (lambda x, t: 3), {'shape': (2, 3)}\n", 0, "the model returned int; expected a"),
    ],
)
def test_an_error_of_the_user_s_own_code_tells_its_line(
    folder: Path, source: str, line: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"broken{abs(hash(source))}"
    path = folder / f"{name}.py"
    path.write_text(source)
    assert main(["fit", f"{name}:network", "--steps", "2", "--trajectories", "4", "--out", "plan.json"]) in (1, 2)
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("fastdiff: ") and message in err
    assert (f" at {path}, line {line})" in err) if line else (" at " not in err)


def test_batch_needs_a_shape(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shapeless.py").write_text("def network():\n    return lambda x, t: x\n")
    assert main(["fit", "shapeless:network", "--out", "plan.json", "--batch", "4"]) == 2
    assert "--batch needs a shape" in capsys.readouterr().err
