"""What an install says of the compiled modules: no compiler, one that fails, a moved clone, a bad setting."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "MANIFEST.in", "csrc")


def clone(into: Path) -> Path:
    """The files that a build reads."""
    into.mkdir()
    for name in SOURCES:
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, into / name)
    (into / "fastdiff").mkdir()
    for name in ("__init__.py", "_version.py"):
        shutil.copy(ROOT / "fastdiff" / name, into / "fastdiff" / name)
    return into


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC", "CUDACXX", "CUDA_HOME")}
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=tree, env={**env, "FASTDIFF_CUDA": "0", **environment}, capture_output=True, text=True,
    )  # fmt: skip


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "broken-cxx"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


needs_build = pytest.mark.skipif(
    sys.platform == "win32" or not (shutil.which("cmake") and shutil.which("ninja") and shutil.which("c++")),
    reason="needs cmake, ninja and a C++ compiler",
)


def test_without_a_compiler_the_module_is_left_out_with_the_reason(tmp_path: Path) -> None:
    done = build(clone(tmp_path / "tree"), PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "fastdiff._cpu is left out: no C++ compiler was found in CXX or PATH" in done.stderr


def test_a_module_insisted_on_without_a_compiler_fails_the_install(tmp_path: Path) -> None:
    done = build(clone(tmp_path / "tree"), PATH=str(tmp_path), FASTDIFF_CPU="1")
    assert done.returncode != 0
    assert "fastdiff._cpu could not be built (FASTDIFF_CPU=0 leaves it out)" in done.stderr


@needs_build
def test_a_compiler_that_fails_fails_the_install(tmp_path: Path) -> None:
    done = build(clone(tmp_path / "tree"), CXX=fake_compiler(tmp_path, "echo no space left >&2; exit 1"))
    assert done.returncode != 0
    assert "fastdiff._cpu could not be built (FASTDIFF_CPU=0 leaves it out)" in done.stderr


@needs_build
@pytest.mark.slow
def test_the_cache_of_a_moved_clone_does_not_decide(tmp_path: Path) -> None:
    first = clone(tmp_path / "first")
    assert build(first).returncode == 0
    second = tmp_path / "second"
    first.rename(second)
    for module in (second / "fastdiff").glob("_cpu*"):
        module.unlink()
    done = build(second)
    assert done.returncode == 0, done.stderr
    assert list((second / "fastdiff").glob("_cpu*"))


MISSING = "import sys; sys.modules['fastdiff._cpu'] = None; import fastdiff; "


def test_without_the_module_the_first_use_warns_once() -> None:
    quiet = run(MISSING)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    done = run(
        MISSING
        + "[fastdiff.randn((2, 3)) for _ in range(3)]; fastdiff.sample(lambda x, t: x, shape=(1, 2), schedule='ddpm')"
    )
    assert done.returncode == 0
    assert done.stderr.count("UserWarning") == 1
    for words in ("no compiled back end runs on cpu here", "several times slower", "FASTDIFF_CPU=1 pip install"):
        assert words in done.stderr
    asked = run(MISSING + "fastdiff.randn((2, 3), backend='reference')")
    assert (asked.returncode, asked.stderr) == (0, "")


def test_an_instruction_set_that_cannot_run_is_an_error() -> None:
    pytest.importorskip("fastdiff._cpu")
    for use in ("fastdiff.randn((2, 3))", "fastdiff.randn((2, 3), backend='cpu')"):
        done = run(f"import fastdiff; {use}", FASTDIFF_SIMD="nope")
        assert done.returncode != 0
        assert "RuntimeError: " in done.stderr and "SIMD level 'nope' cannot run here" in done.stderr
    # The doctor tells it, and the reference needs no instruction set.
    done = run("from fastdiff.cli import main; main(['doctor'])", FASTDIFF_SIMD="nope")
    assert done.returncode == 0 and "SIMD level 'nope' cannot run here" in " ".join(done.stdout.split())
    assert run("import fastdiff; fastdiff.randn((2, 3), backend='reference')", FASTDIFF_SIMD="nope").returncode == 0
