"""Which of `cuda` and `triton` backend=None takes: by the table that the package carries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdiff
from benchmarks.gpu_model.shipped import small
from fastdiff import cli, ops
from fastdiff.ops import choice, cpu, cuda, speed, triton
from fastdiff.ops.either import either
from fastdiff.ops.speed import Traits
from fastdiff.plan import ZA

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


PLAIN = Traits(
    path=False, frames=False, squares=False, double=False, given=False, noise=False, learned=False, guided=False,
    history=1, network=F32,
)  # fmt: skip


def made(*rows: tuple[str, dict[str, Any], float, float]) -> dict[str, Any]:
    """A table of two chips; of each stage: its name, what it is unlike PLAIN in, (cuda, triton) on the second chip."""
    plain = {**PLAIN._asdict(), "network": "float32"}
    stages = [
        {"stage": stage, **plain, **unlike, "cuda": [0.9, ours], "triton": [0.9, theirs]}
        for stage, unlike, ours, theirs in rows
    ]
    return {"how": "made up", "chips": ["H100", "A100"], "stages": stages}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In it triton leads on the A100 for stages without noise, for paths, and where it must not be taken."""
    found = made(
        ("plain", {}, 0.80, 0.95),
        ("noisy", {"noise": True}, 0.95, 0.80),
        ("frames", {"noise": True, "frames": True}, 0.95, 0.96),
        ("squares", {"noise": True, "squares": True}, 0.60, 0.95),
        ("path", {"noise": True, "path": True}, 0.09, 0.11),
        ("double", {"double": True}, 0.60, 0.95),
    )
    monkeypatch.setattr(speed, "known", lambda: found)
    speed.led.cache_clear()
    either.cache_clear()
    yield
    speed.led.cache_clear()
    either.cache_clear()


def test_the_faster_for_the_stage_at_hand(table: None) -> None:
    def name(chip: str = "A100", **unlike: Any) -> str:
        return speed.faster(PLAIN._replace(**unlike), chip).name

    assert name() == name(history=3, network=BF16) == "triton"
    assert name("H100") == "cuda"
    assert name(noise=True) == name(noise=True, frames=True) == "cuda"
    assert name(noise=True, path=True) == "triton"
    # Their results differ in the last bits, and may not depend on the batch's size.
    assert name(noise=True, squares=True) == name(double=True, network=torch.float64) == "cuda"
    assert speed.led("A100") == ("plain", "path") and speed.led("H100") == ()


def test_real_stages() -> None:
    """The rows as they are: a clear lead decides, and less than the margin does not."""
    for row in speed.known()["stages"]:
        given = {name: row[name] for name in Traits._fields}
        traits = Traits(**{**given, "network": getattr(torch, row["network"])})
        for at, chip in enumerate(speed.known()["chips"]):
            got = speed.faster(traits, chip)
            if got.why.startswith(row["stage"] + " on"):
                ahead = row["triton"][at] >= speed.MARGIN * row["cuda"][at] and not (row["squares"] or row["double"])
                assert got.name == ("triton" if ahead else "cuda"), (row["stage"], chip)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """An A100 on which both back ends can run."""
    monkeypatch.setattr(choice, "_chip", lambda device: ("NVIDIA A100", (8, 0)))
    for module in (cuda, triton):
        monkeypatch.setattr(module, "available", lambda: (True, ""))
        monkeypatch.setattr(module, "supports", lambda *given: (True, ""))
    return torch.device("cuda", 0)


def test_select(table: None, gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ops.select(None, gpu, F32, F32, BIG)
    assert both is ops.select(None, gpu, F32, BF16, BIG) and both.NAME == "cuda or triton"
    # A small state is bound by launches, which `cuda` makes faster; a float64 one is cuda's; a name is a name.
    assert ops.select(None, gpu, F32, F32, 1000) is ops.select("cuda", gpu, F32, F32, BIG) is cuda
    assert ops.select(None, gpu, torch.float64, F32, BIG) is cuda
    monkeypatch.setattr(choice, "_chip", lambda device: ("NVIDIA H100", (9, 0)))
    assert ops.select(None, gpu, F32, F32, BIG) is cuda
    # The faster one is no use where it cannot run.
    monkeypatch.setattr(choice, "_chip", lambda device: ("NVIDIA A100", (8, 0)))
    monkeypatch.setattr(triton, "available", lambda: (False, "not installed"))
    assert ops.select(None, gpu, F32, F32, BIG) is cuda


def test_every_stage_of_a_run_goes_to_the_faster(
    table: None, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of two kinds of stages, each computed by the `cpu` back end in the place of the two."""
    ran: list[str] = []

    def counted(name: str) -> Any:
        def stage(*given: Any) -> None:
            ran.append(name)
            cpu.stage(*given)

        return stage

    for module in (cuda, triton):
        monkeypatch.setattr(module, "stage", counted(module.NAME))
    for name in ("normal_", "quantile_"):
        monkeypatch.setattr(cuda, name, getattr(cpu, name))
    monkeypatch.setattr(choice, "_order", lambda device: ("cuda",))
    monkeypatch.setattr(choice, "LARGE", 1)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.tanh()

    given = {"shape": (2, 3, 8, 8), "seed": 3, "plan": fastdiff.plan("dpmpp2m_sde", 6, schedule="ddpm")}
    got = fastdiff.sample(model, **given)
    noises = sum(any(c for c in s.next_u[ZA:]) for s in given["plan"].stages)
    assert 0 < noises == ran.count("cuda") and ran.count("triton") == len(ran) - noises > 0
    assert torch.equal(got, fastdiff.sample(model, backend="cpu", **given))


def test_doctor_shows_it() -> None:
    text = cli.report()
    assert "backend=None takes on a GPU (a prediction by a model: no GPU has run these kernels):" in text
    if not torch.cuda.is_available():
        assert all(f"  {chip}: cuda" in text for chip in speed.known()["chips"])
    assert "triton for states of 4194304 elements or more in stages like noise of a Brownian" in speed.summary(
        "RTX 4090"
    )
    assert speed.summary("H200") == "cuda for every stage"
