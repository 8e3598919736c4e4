"""The documentation's site: what is in it, and that it builds without a broken link."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers.pages import ROOT

import fastdiff


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_has_its_place() -> None:
    named = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert len(named) == len(set(named)) and set(named) == pages | {"index.md", "reference.md"}


def test_every_public_name_is_in_the_reference() -> None:
    made = re.findall(r"^::: fastdiff\.([\w.]+)$", hooks().reference(), flags=re.MULTILINE)
    assert set(fastdiff.__all__) - {"__version__"} <= set(made)


def test_links_from_the_first_page() -> None:
    site = hooks()
    page = site.first_page()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page):
        assert (ROOT / "docs" / target).exists(), target
    # What lies outside of docs/ has no page to lead to.
    assert "](../" in page and "](../" not in site.on_page_markdown(page)
    assert site.on_page_markdown("[reverse.py](../a/reverse.py), [x](y.md)") == "reverse.py (`a/reverse.py`), [x](y.md)"


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'fastdiff-sampler[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    assert 'id="fastdiff.sample"' in page and "classifier-free guidance uncond" in page
