"""What the project is checked and built with: pins, workflows, the Makefile, pytest's markers."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pins() -> dict[str, set[str]]:
    """The pinned versions of each project in constraints.txt; more than one where they depend on Python's version."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r'([a-z0-9-]+)==([\w.]+)(; python_version (<|>=) "3\.11")?', line)
            assert match is not None, line
            assert match[2] not in found.setdefault(match[1], set()), line
            found[match[1]].add(match[2])
    return found


def test_every_requirement_is_pinned_for_ci() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = text[: text.index("[project.scripts]")]
    listed = re.findall(r'^\s*"([A-Za-z][\w-]*)(?:[<>=].*)?",?$', text, flags=re.MULTILINE)
    build = re.search(r"^requires = (\[.*\])$", text, flags=re.MULTILINE)
    assert build is not None
    listed += [re.split(r"[<>=]", item)[0] for item in ast.literal_eval(build[1])]
    assert {"torch", "numpy", "pytest", "ruff", "pybind11"} <= set(listed)
    assert {name.lower() for name in listed} - set(pins()) == set()


@pytest.mark.parametrize(
    "path", ["Makefile", "pyproject.toml", ".pre-commit-config.yaml", ".github/workflows/ci.yml"], ids=lambda path: path
)
def test_pins_agree(path: str) -> None:
    # The job with the oldest releases is the one place that pins others.
    text = re.sub(r"\n  oldest:.*?(?=\n  [a-z-]+:\n)", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\b([a-z][a-z-]+)==([\d.]+\d)", text)
    assert found
    for name, version in found:
        assert version in pins()[name], f"{path} pins {name}=={version}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_fits_the_schema(path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


RIGHTS = {"publish": {"id-token": "write"}, "release": {"contents": "write"}}
"""Of jobs, beyond reading the repository: one each."""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_is_bounded_and_has_few_rights(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 180, name
        assert set(job.get("needs", [])) <= set(workflow["jobs"]), name
        assert job.get("permissions") == RIGHTS.get(name), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            if name in RIGHTS:
                # A job with a right runs none of the project's code.
                assert not step.get("uses", "").startswith("actions/checkout") and "python" not in str(step), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_checkouts_keep_no_credentials(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"^ +- uses: (.*)$", text, flags=re.MULTILINE)
    assert len(used) == text.count("uses:") > 0
    for line in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for job in yaml.safe_load(text)["jobs"].values():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_one_version_of_each_action() -> None:
    found: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for name, version in re.findall(r"uses: ([\w/-]+)@(.*)", path.read_text(encoding="utf-8")):
            found.setdefault(name, set()).add(version)
    assert found and all(len(versions) == 1 for versions in found.values()), found


def test_the_sanitizers_run_every_night() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text(encoding="utf-8"))
    assert workflow[True]["schedule"]
    assert [step["run"] for step in workflow["jobs"]["sanitize"]["steps"] if "run" in step] == ["make sanitize"]
    assert "-fsanitize=address,undefined" in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def test_ci_covers_the_systems_and_versions() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert [step["run"] for step in jobs["checks"]["steps"] if "run" in step] == [".ci/run"]


def test_wheels_are_published_on_a_tag_alone() -> None:
    # YAML 1.1 reads the key `on` as True.
    workflow = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text(encoding="utf-8"))
    assert workflow[True]["push"] == {"tags": ["v*"]}
    jobs = workflow["jobs"]
    for name in ("sort", "publish", "release"):
        assert "refs/tags/v" in jobs[name]["if"] and "'push'" in jobs[name]["if"]
    assert set(jobs["sort"]["needs"]) == {"sdist", "cpu", "cuda"}
    assert (jobs["publish"]["needs"], jobs["release"]["needs"]) == (["sort"], ["publish"])
    text = str(jobs["publish"])
    assert "password" not in text and "secrets." not in text
    uploaded = [
        entry["artifact"] for job in ("cpu", "cuda") for entry in workflow["jobs"][job]["strategy"]["matrix"]["include"]
    ]
    assert len(set(uploaded)) == len(uploaded) == 6
    sort = next(step["run"] for step in jobs["sort"]["steps"] if step.get("name") == "Sort")
    for artifact in uploaded:
        system = artifact.rpartition("-")[0]
        assert f"artifacts/{system}-*/*" in sort


@pytest.mark.parametrize(
    ("platform", "expected"), [("linux", "manylinux"), ("macos", "macosx_arm64"), ("windows", "win_amd64")]
)
def test_cibuildwheel_accepts_its_configuration(platform: str, expected: str) -> None:
    pytest.importorskip("cibuildwheel")
    # Asked outside its containers, cibuildwheel takes its settings from the environment too.
    env = {name: value for name, value in os.environ.items() if not name.startswith("CIBW_")}
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    identifiers = done.stdout.split()
    assert [name.split("-")[0] for name in identifiers] == ["cp310", "cp311", "cp312", "cp313", "cp314"]
    assert all(expected in name for name in identifiers)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_knows_its_targets() -> None:
    targets = ["demo", "test", "sanitize", "bench", "docs", "wheel", "lint", "gpu", "clean"]
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make (\w+) ", listed, flags=re.MULTILINE) == targets


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_gpu_says_that_there_is_none() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(["make", "gpu", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no GPU" in done.stderr


def test_markers_are_declared_and_unknown_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.gpus\ndef test() -> None: ...\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "'gpus' not found in `markers`" in done.stdout
