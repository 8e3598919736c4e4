"""What `import fastdiff` reads and what comes when it is asked for, in modules: seconds are those of a machine."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import ROOT

import fastdiff
from fastdiff.lazy import lazy
from fastdiff.solvers.index import FAMILY_OF, GUIDED_FAMILY_OF
from fastdiff.solvers.registry import FAMILIES, GUIDED_FAMILIES, Methods

FACES = ("fastdiff", "fastdiff.guidance")
LATER = ("analytic", "engine", "fitting", "generation", "integrations", "inversion", "likelihood", "losses", "plot")
LATER += ("training", "cli", "demo", "run.controlled", "ops.triton", "ops.reference")
LATER += tuple(f"guidance.{form}" for form in ("apg", "autoguidance", "cfg_pp", "cfg_zero", "classifier", "rescale"))
MODULES = 90
"""Fewer than these are read: each costs about half a millisecond, its classes included."""
CODE = """
import importlib, json, sys
import fastdiff
import torch
read = lambda: sorted(name.removeprefix("fastdiff.") for name in sys.modules if name.startswith("fastdiff."))
packages = [importlib.import_module(name) for name in FACES]
told = {p.__name__: sorted(set(p.__dir__()) - set(vars(p))) for p in packages}
first = read()
operations = [hasattr(torch.ops.fastdiff, name) for name in ("stage", "normal_", "quantile_")]
network = lambda x, t: 0.5 * x
fastdiff.sample(network, shape=(1, 4), steps=3)
fastdiff.Sampler("unipc", 3, schedule="scaled_linear", variant="bh2")(network, shape=(1, 4), guidance=None)
second = read()
print(json.dumps([first, second, told, operations]))
"""


@pytest.fixture(scope="module")
def fresh() -> list[Any]:
    """Of a new process: the modules after the import and after two runs, the names that come later, the operations."""
    code = CODE.replace("FACES", repr(FACES))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def later(read: list[str]) -> list[str]:
    return [name for name in read if any(name == one or name.startswith(f"{one}.") for one in LATER)]


def families(read: list[str]) -> set[str]:
    return {name.removeprefix("solvers.") for name in read} & {*FAMILIES, *GUIDED_FAMILIES}


def test_the_import_reads_what_a_run_needs(fresh: list[Any]) -> None:
    read, _, _, operations = fresh
    assert later(read) == []
    # Variances of ddim's steps are part of binding.
    assert families(read) == {"ddim"} and len(read) < MODULES
    assert operations == [True, True, True]


def test_a_run_reads_its_own_method_alone(fresh: list[Any]) -> None:
    _, read, _, _ = fresh
    assert families(read) == {"ddim", "dpm_multistep", "unipc"}
    assert set(later(read)) <= {"ops.reference"}


def checked(package: str) -> dict[str, str]:
    """What type checkers read: the module of each name in the block `if TYPE_CHECKING`."""
    path = Path(str(importlib.import_module(package).__file__))
    blocks = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.If)]
    (block,) = (n for n in blocks if isinstance(n.test, ast.Name) and n.test.id == "TYPE_CHECKING")
    imports = [n for n in block.body if isinstance(n, ast.ImportFrom)]
    return {alias.name: str(n.module) for n in imports for alias in n.names}


@pytest.mark.parametrize("package", FACES)
def test_later_names_are_those_of_type_checkers(package: str, fresh: list[Any]) -> None:
    told, owner = checked(package), importlib.import_module(package)
    assert sorted(told) == fresh[2][package]
    for name, place in told.items():
        one = importlib.import_module(f"{package}.{name}") if place == package else None
        assert getattr(owner, name) is (one or getattr(importlib.import_module(place), name))


@pytest.mark.parametrize("package", FACES)
def test_every_public_name_is_listed_and_starred(package: str) -> None:
    owner, names = importlib.import_module(package), {}
    exec(f"from {package} import *", names)
    assert set(owner.__all__) <= names.keys() and set(owner.__all__) <= set(dir(owner))


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fastdiff' has no attribute 'sampel'") as seen:
        fastdiff.sampel  # type: ignore[attr-defined]  # noqa: B018
    assert seen.value.name == "sampel" and seen.value.obj is fastdiff
    assert not hasattr(fastdiff, "torch")
    find, names = lazy("fastdiff.guidance", {"Rescale": "fastdiff.guidance.rescale"})
    assert find("Rescale") is fastdiff.guidance.Rescale and "Rescale" in names()


def test_classes_that_come_later_are_pickled_by_their_names() -> None:
    for thing in (fastdiff.Engine, fastdiff.LogLikelihood, fastdiff.guidance.Rescale, fastdiff.fit):
        assert pickle.loads(pickle.dumps(thing)) is thing


def test_every_file_of_methods_is_listed() -> None:
    """A file with METHODS that no list has would be found by no name."""
    folder = Path(ROOT / "fastdiff" / "solvers")
    having = {path.stem for path in folder.glob("*.py") if "\nMETHODS = (" in path.read_text(encoding="utf-8")}
    assert having == {*FAMILIES, *GUIDED_FAMILIES}
    assert {*FAMILY_OF.values()} == {*FAMILIES} and {*GUIDED_FAMILY_OF.values()} == {*GUIDED_FAMILIES}


def test_methods_are_read_when_they_are_asked_for() -> None:
    mine = fastdiff.solvers.METHODS["dpm3"]
    table = Methods({"ddim": "ddim", "ddpm": "ddim", "unipc": "unipc"})
    assert list(table) == ["ddim", "ddpm", "unipc"] and len(table) == 3 and "unipc" in table and "heun" not in table
    del table["ddpm"]
    table["unipc"] = mine
    assert table["ddim"].name == "ddim" and "ddpm" not in table and table["unipc"] is mine
    assert table.get("heun") is None and {**table}.keys() == {"ddim", "unipc"}
    with pytest.raises(KeyError, match="heun"):
        table["heun"]
    with pytest.raises(LookupError, match=r"'dpm9' is not in dpm_multistep.py: python tools/method_names.py"):
        Methods({"dpm9": "dpm_multistep"})["dpm9"]
