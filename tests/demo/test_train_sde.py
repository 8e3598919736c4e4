from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.demo import train_sde
from fastdiff.demo.data import load_digits
from fastdiff.demo.train_sde import SDES, SDENetwork, load, main, objective


@pytest.mark.parametrize("sde", SDES)
def test_untrained_network_is_finite_over_the_whole_schedule(sde: str) -> None:
    network = SDENetwork(sde, channels=8).eval()
    schedule = SDES[sde]
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * schedule.prior_std()
    times = torch.tensor([schedule.model_time(t) for t in (schedule.t_min, 0.3, schedule.t_max)], dtype=torch.float32)
    with torch.no_grad():
        out = network(x, times, torch.tensor([0, 5, 10]))
    assert out.shape == x.shape and out.isfinite().all()


def test_ve_network_starts_from_the_best_linear_guess() -> None:
    """The U-Net's last layer starts at 0: what is left is E[eps | x] for data N(0, s²), sigma x / (s² + sigma²)."""
    network = SDENetwork("ve", channels=8).eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.01, 0.5, 2.0, 10.0])
    column = sigma[:, None, None, None]
    with torch.no_grad():
        # A handful of float32 roundings, 6e-8 each.
        torch.testing.assert_close(network(x, sigma), column * x / (0.85**2 + column**2), rtol=1e-6, atol=0.0)


def test_data_deviation_is_that_of_the_digits() -> None:
    images, _ = load_digits()
    assert images.square().mean().sqrt().item() == pytest.approx(train_sde.DATA_STD, abs=5e-3)


@pytest.mark.parametrize("sde", SDES)
def test_training_times_cover_the_schedule(sde: str) -> None:
    """One time in each of B equal slices of the SDE's own time, the labels of a tenth dropped."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Zero(torch.nn.Module):
        null_class = 10

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            seen.append((t, y))
            return torch.zeros_like(x)

    schedule, count = SDES[sde], 2000
    images, labels = torch.zeros(count, 1, 8, 8), torch.zeros(count, dtype=torch.int64)
    loss = objective(schedule)(Zero(), images, labels, torch.Generator().manual_seed(0))
    t, y = seen[0]
    own = torch.log(t.double() / 0.01) / torch.log(torch.tensor(1000.0).double()) if sde == "ve" else t.double() / 999
    # float32 times, and slices that begin at 1e-5: the slices of neighbours overlap by 1e-5 at most.
    middle = (torch.arange(count) + 0.5) / count
    assert (own - middle).abs().max() <= 0.5 / count + 1.1e-5
    # 128,000 squares of standard normals: a mean of 1 with a deviation of sqrt(2/128,000) = 0.004.
    assert loss.item() == pytest.approx(1.0, abs=5 * 0.004)
    # A tenth of 2,000, with a deviation of 13.4.
    assert abs((y == 10).sum().item() - 200) < 67


def test_command_trains_samples_and_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_sde, "QUALITY_PER_CLASS", 2)
    monkeypatch.setattr(train_sde, "PER_CLASS", 2)
    monkeypatch.setattr(train_sde, "BATCH", 8)
    assert main(["--sde", "subvp", "--out", str(tmp_path), "--steps", "2"]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["sde"] == "subvp" and figures["count"] == 20
    with Image.open(tmp_path / "train_subvp.png") as picture:
        assert picture.width > 100
    network = load(tmp_path / "subvp.safetensors", "subvp")
    assert fastdiff.sample(network, steps=2, method="ddim").shape == (1, 1, 8, 8)
    # Another loss is another run.
    with pytest.raises(ValueError, match=r"label=subvp, .*label=subvp-likelihood"):
        main(["--sde", "subvp", "--out", str(tmp_path), "--steps", "2", "--likelihood-weighting", "--resume"])
    with pytest.raises(FileNotFoundError, match=r"train_sde --sde ve"):
        load(tmp_path / "ve.safetensors", "ve")
    with pytest.raises(SystemExit):
        main(["--sde", "vp", "--steps", "0"])
