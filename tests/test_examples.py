"""The scripts of examples/ and the quick-start notebook run, in small sizes, and do what they say."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.pages import ROOT, blocks
from PIL import Image

from fastdiff.demo import load_classifier

EXAMPLES = ROOT / "examples"


def script(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for path in [*EXAMPLES.rglob("*.py"), *EXAMPLES.rglob("*.ipynb")]:
        assert path.stem in tests, path


@pytest.mark.parametrize("name", ["img2img", "inversion", "k_diffusion", "many_samples", "robot_policy"])
def test_help_and_misspelled_arguments(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for argument, code in (("--help", 0), ("--stpes", 2)):
        monkeypatch.setattr("sys.argv", [f"{name}.py", argument])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert ended.value.code == code
    told = capsys.readouterr()
    # The help is what the file says of itself, and nothing ran.
    assert (script(name).__doc__ or "").splitlines()[0] in told.out and not list(tmp_path.iterdir())


def test_robot_policy(capsys: pytest.CaptureFixture[str]) -> None:
    script("robot_policy").main(repeats=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["euler", "10"],
        ["euler", "4"],
        ["dpmpp2m", "10"],
        ["dpmpp2m", "4"],
    ]
    errors = [float(line.split()[-1]) for line in lines]
    # More steps are nearer to many, and the second order is nearer than Euler.
    assert errors[0] < errors[1] and errors[2] < errors[3] and errors[2] < errors[0]


def test_img2img(tmp_path: Path) -> None:
    changed = script("img2img").main(count=20, path=tmp_path / "it.png")
    with Image.open(tmp_path / "it.png") as picture:
        assert picture.width > picture.height
    seen = [load_classifier()(x).argmax(1) for x in changed]
    # Little noise leaves the ones as they are; nearly all of it makes sevens.
    assert (seen[0] == 1).sum() >= 15 and (seen[-1] == 7).sum() >= 15


def test_inversion(tmp_path: Path) -> None:
    error = script("inversion").main(count=4, steps=40, path=tmp_path / "it.png")
    assert error < 0.2 and (tmp_path / "it.png").stat().st_size > 1000


def test_many_samples_by_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, small = script("many_samples"), {"count": 30, "batch": 5, "shard": 10}
    assert many.main(tmp_path / "one", **small)
    # What torchrun tells each process: it makes its own part, and the last one the file of all.
    complete = []
    for rank in ("0", "1"):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        complete.append(many.main(tmp_path / "two", **small))
    one, two = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("one", "two"))
    assert complete == [False, True] and one.shape == (30, 8, 8, 1) and np.array_equal(one, two)


def test_the_quickstart_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), cell["id"], "exec", dont_inherit=True), names)
    assert "dpm3" in capsys.readouterr().out
    assert names["x"].shape == (100, 1, 8, 8)
    # The last cell: what was encoded comes back, up to the error of ten steps.
    assert float((names["back"] - names["state"].x).abs().mean()) < 0.1
    named = load_classifier()(names["x"]).argmax(1) == names["labels"]
    assert named.float().mean() > 0.9


def test_the_first_script_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With nothing of ours around it.
    monkeypatch.chdir(tmp_path)
    script = next(code for code in blocks(ROOT / "README.md") if "class Net" in code)
    exec(compile(script, "README.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 10
    with Image.open(pictures[0]) as picture:
        assert picture.size == (32, 32) and picture.mode == "RGB"
