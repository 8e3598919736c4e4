"""Which of `cuda` and `triton` backend=None takes: by the table that the package carries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastdiff
from benchmarks.gpu_model.shipped import small
from fastdiff import cli, ops
from fastdiff.ops import Traits, choice, cuda, speed, triton

ROOT = Path(__file__).resolve().parents[2]
BF16, F32 = torch.bfloat16, torch.float32
BIG = 1 << 24


def test_the_table_is_the_model_s() -> None:
    assert speed.known() == small(json.loads((ROOT / "benchmarks/results/model.json").read_text()))


@pytest.mark.parametrize(
    ("name", "capability", "chip"),
    [
        ("NVIDIA H200", (9, 0), "H200"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "H100"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), "A100"),
        ("NVIDIA GeForce RTX 4090", (8, 9), "RTX 4090"),
        ("NVIDIA L40S", (8, 9), "RTX 4090"),
        ("NVIDIA GH200", (9, 0), "H200"),
        ("NVIDIA B200", (10, 0), "H200"),
    ],
)
def test_the_chip_that_a_device_is_like(name: str, capability: tuple[int, int], chip: str) -> None:
    assert speed.chip_of(name, capability) == chip


def made(**changes: tuple[float, float]) -> dict:
    """A table of two chips with noise and without, the second chip's fractions as given: (cuda, triton)."""
    rows = []
    for stage, noise in (("plain", False), ("noisy", True)):
        ours, theirs = changes[stage]
        row = {"stage": stage, "noise": noise, "guided": False, "learned": False, "history": 1, "network": "float32"}
        rows.append({**row, "cuda": [0.9, ours], "triton": [0.9, theirs]})
    return {"how": "made up", "chips": ["H100", "A100"], "stages": rows}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "known", lambda: made(plain=(0.80, 0.95), noisy=(0.95, 0.80)))


def test_the_faster_for_the_stage_at_hand(table) -> None:
    traits = Traits(False, False, False, 2, F32, BIG)
    assert speed.faster(traits, "A100").name == "triton"
    assert speed.faster(traits._replace(noise=True), "A100").name == "cuda"
    assert speed.faster(traits, "H100").name == "cuda"
    # A small state waits for launches, which `cuda` makes faster.
    found = speed.faster(traits._replace(elements=1000), "A100")
    assert found.name == "cuda" and "bound by launches" in found.why


def test_real_stages() -> None:
    """The rows as they are: a clear lead decides, and less than the margin does not."""
    for row in speed.known()["stages"]:
        traits = Traits(
            row["noise"], row["guided"], row["learned"], row["history"], getattr(torch, row["network"]), BIG
        )
        for at, chip in enumerate(speed.known()["chips"]):
            got = speed.faster(traits, chip)
            if got.why.startswith(row["stage"] + " on"):
                ahead = round(row["triton"][at] - row["cuda"][at], 4)
                assert got.name == ("triton" if ahead >= speed.MARGIN else "cuda"), (row["stage"], chip)


def test_select_takes_it(table, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(choice, "_chip", lambda device: ("NVIDIA A100", (8, 0)))
    for module in (cuda, triton):
        monkeypatch.setattr(module, "available", lambda: (True, ""))
        monkeypatch.setattr(module, "supports", lambda *given: (True, ""))
    plain, noisy = fastdiff.Sampler("dpmpp2m", 5), fastdiff.Sampler("dpmpp2m_sde", 5)

    def taken(sampler: fastdiff.Sampler, size: tuple[int, ...] = (64, 4, 256, 256)) -> str:
        return ops.select(None, device, F32, F32, lambda: sampler.engine.traits(False, F32, size)).NAME

    assert (taken(plain), taken(noisy), taken(plain, (1, 4, 64, 64))) == ("triton", "cuda", "cuda")
    # The faster one is no use where it cannot run; a name is a name.
    monkeypatch.setattr(triton, "available", lambda: (False, "not installed"))
    assert taken(plain) == "cuda"
    assert ops.select("cuda", device, F32, F32, lambda: pytest.fail("a named back end asks nothing")).NAME == "cuda"


def test_doctor_shows_it() -> None:
    text = cli.report()
    assert "backend=None takes on a GPU (a prediction by a model: no GPU has run these kernels):" in text
    if not torch.cuda.is_available():
        assert all(f"  {chip}: cuda" in text for chip in speed.known()["chips"])
    assert "in stages like dpm3, bfloat16" in speed.summary("H100")
    assert speed.summary("H200") == "cuda for every stage"
