"""Every Python block of the README and of docs/ runs, with small stand-ins for the reader's own models and data."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.pages import ROOT, blocks

import fastdiff
from fastdiff.solvers import ALIASES, METHODS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a page asks for that a test cannot give: a GPU; a thousand samples at each of a thousand times.
SMALLER = {"graph=True": 'graph="auto"', "samples_per_time=1000": "samples_per_time=2, times=30"}


class Model:
    """Takes any conditioning, and states its shape."""

    sample_shape = (1, 8, 8)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        return 0.5 * torch.tanh(x)


def reader(page: Path) -> dict[str, Any]:
    """The names that a page takes for given."""
    scheduler = SimpleNamespace(
        set_timesteps=lambda steps: None,
        timesteps=torch.arange(950, -1, -50),
        config={"_class_name": "DPMSolverMultistepScheduler"},
    )
    batch = 2 if page.name == "from-diffusers.md" else 4  # of the page's call with guidance
    tokens = torch.ones(batch, 3, 8)
    return {
        "__name__": "docs",
        "torch": torch,
        "fastdiff": fastdiff,
        **dict.fromkeys(("model", "unet", "denoiser", "smaller"), Model()),
        "wide": lambda x, t: torch.cat([0.5 * x, 0.1 * x], 1),
        "scheduler": scheduler,
        "pipe": SimpleNamespace(unet=Model(), scheduler=scheduler),
        "text": tokens,
        "empty": torch.zeros_like(tokens),
        "ugly": -tokens,
        "x_T": torch.zeros(2, 4, 8, 8),
        "image": torch.zeros(2, 4, 8, 8),
        "x0": torch.rand(4, 1, 8, 8),
        "t": torch.tensor([3, 4, 5, 6]),
        "images": torch.rand(4, 1, 8, 8),
        "labels": torch.arange(4),
        "sampler": fastdiff.Sampler("dpm3", 2),
    }


@pytest.fixture
def _own_names() -> Iterator[None]:
    """What a page registers is gone after its test."""
    before = [(table, dict(table)) for table in (METHODS, ALIASES)]
    yield
    for table, kept in before:
        for name in table.keys() - kept.keys():
            del table[name]


@pytest.mark.usefixtures("_own_names")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = reader(page)
    for number, block in enumerate(blocks(page)):
        if "integrations.diffusers" in block and importlib.util.find_spec("diffusers") is None:
            continue
        for text, smaller in SMALLER.items():
            block = block.replace(text, smaller)
        exec(compile(block, f"{page.name}, block {number + 1}", "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|tools|fastdiff|csrc|benchmarks)/[\w/.]+\.\w+)`", text):
        made = path in ("fastdiff/solvers/ab2.py", "benchmarks/results/cuda.json")
        assert made or (ROOT / path).exists(), path
    for path in re.findall(r"`((?:run|bind|ops|plan|solvers|guidance|schedules|fitting)/\w+\.py)`", text):
        assert (ROOT / "fastdiff" / path).exists(), path


def test_the_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in readme, page.name


def test_every_method_is_documented() -> None:
    text = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    headings = re.findall(r"^###? (.*)", text, flags=re.MULTILINE)
    documented = {name.strip() for heading in headings for name in re.split(r"[,—(:]", heading)}
    assert set(fastdiff.methods()) <= documented
