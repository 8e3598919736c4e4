"""`fastdiff generate`, run as a command, and the recipe for Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import ROOT

from fastdiff.cli import main
from fastdiff.generation import verify

NETWORK = """
def network():
    return lambda x, t: 0.5 * x, {"shape": (4, 3, 6, 6), "schedule": "ddpm", "method": "ddim", "steps": 2}

def bare():
    return 3

def function(): return lambda x, t: 0.5 * x

def labelled(y):
    return bare

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "generateme.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("RANK", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_two_workers_and_a_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "generateme:network", "-n", "10", "--out", "samples", "--format", "png", "--shard", "4"]
    words += ["--steps", "3", "-o", "eta=0.5"]
    assert main([*words, "--worker", "1/2"]) == 0
    assert "own samples are in samples; other workers have samples left" in capsys.readouterr().out
    assert main(["generate", "--verify", "--out", "samples"]) == 1
    told = capsys.readouterr()
    assert "samples 0 to 3 are missing" in told.out and "4 of 10 samples in samples are whole" in told.err
    assert main([*words, "--worker", "0/2"]) == 0
    assert "all 10 samples are in samples" in capsys.readouterr().out
    assert main(["generate", "--verify", "--out", "samples"]) == 0
    assert "all 10 samples in samples are whole" in capsys.readouterr().out
    assert len(list((folder / "samples" / "images").iterdir())) == 10


def test_options_of_several_numbers(folder: Path) -> None:
    words = ["generate", "generateme:function", "-n", "3", "--out", "made", "--steps", "2", "-o", "schedule=ddpm"]
    assert main([*words, "-o", "shape=(2, 3, 4, 4)", "-o", "clip=-1,1"]) == 0
    assert main([*words, "-o", "shape=2,3,4,4", "-o", "clip=[-1, 1]"]) == 0
    assert not verify(folder / "made").problems


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "generate needs MODULE:FUNCTION and -n"),
        (["generateme:network"], "generate needs MODULE:FUNCTION and -n"),
        (["generateme:bare", "-n", "4"], "expected a model, or (model, dict of options of fastdiff.generate)"),
        (["generateme:labelled", "-n", "4"], "missing a required argument: 'y'; expected a function without arguments"),
        (["generateme:number", "-n", "4"], "has 'number', but that is no function; expected MODULE:FUNCTION"),
        (["generateme:function", "-n", "4", "-o", "shape=4,a"], "shape='4,a': expected (B, ...)"),
        (["generateme:network", "-n", "4", "--worker", "2"], "--worker '2': expected W/COUNT, such as --worker 0/8"),
        (["generateme:network", "-n", "4", "--worker", "4/4"], "worker 4 of 4"),
        (["generateme:network", "-n", "4", "-o", "eta"], "--option 'eta': expected NAME=VALUE"),
        (["generateme:network", "-n", "4", "--plan", "nowhere.json"], "nowhere.json"),
        (["generateme:network", "-n", "4", "--plan", "p.json", "--steps", "4"], "--plan stands instead of --method"),
        (["--verify"], "has no manifest.json"),
    ],
)
def test_bad_arguments(folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--out", "samples", *words]) in (1, 2)
    assert message in capsys.readouterr().err


def test_the_recipe_for_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    script = ROOT / "examples" / "generate_with_ray.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "samples")], cwd=ROOT, check=True, timeout=300)
    assert not verify(tmp_path / "samples").problems
