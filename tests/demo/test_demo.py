from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import fastdiff
from fastdiff.demo import WEIGHTS, load_classifier, load_model, pictures, run
from fastdiff.demo.eager import dpm3, logsnr_times
from fastdiff.demo.quality import frechet_distance, measure
from fastdiff.demo.train import noise_prediction
from fastdiff.demo.training import Trainer, interruptible
from fastdiff.demo.unet import UNet


def spd(size: int, seed: int) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((size, size))
    return factor @ factor.T


def test_frechet_distance_of_equal_gaussians_is_zero() -> None:
    mean, covariance = np.arange(8.0), spd(8, 0)
    # Traces of about 64 cancel; each is good to a few roundings, the roots to 1e-8 of the smallest ones at worst.
    assert frechet_distance(mean, covariance, mean, covariance) < 1e-10


def test_frechet_distance_of_diagonal_gaussians() -> None:
    """Commuting covariances: |difference|^2 + sum (sd_a - sd_b)^2."""
    sd_a, sd_b = np.array([1.0, 2.0, 0.0, 0.5]), np.array([3.0, 2.0, 0.25, 0.0])
    mean_a, mean_b = np.array([1.0, -1.0, 0.0, 2.0]), np.array([0.0, -1.0, 2.0, 2.0])
    expected = 5.0 + 4.0 + 0.0 + 0.0625 + 0.25
    assert frechet_distance(mean_a, np.diag(sd_a**2), mean_b, np.diag(sd_b**2)) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_against_scipy_s_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = spd(16, 1), spd(16, 2)
    mean_a, mean_b = np.random.default_rng(3).standard_normal((2, 16))
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b) - 2.0 * np.trace(linalg.sqrtm(a @ b)).real
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected, rel=1e-9)


def test_measure_rejects_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"got images \(4, 1, 8, 8\) and labels \(3,\)"):
        measure(torch.zeros(4, 1, 8, 8), torch.zeros(3, dtype=torch.int64))


def test_shipped_files_are_within_the_limit_and_say_how_they_were_made() -> None:
    files = [WEIGHTS / f"{name}.safetensors" for name in ("unet", "classifier", "real_digits")]
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    with safe_open(files[0], "pt") as file:
        assert {"steps", "seed", "batch", "loss"} <= file.metadata().keys()
    with safe_open(files[1], "pt") as file:
        assert float(file.metadata()["held_out_accuracy"]) >= 0.97


def test_shipped_classifier_knows_held_out_digits_and_the_statistics_are_theirs() -> None:
    pytest.importorskip("sklearn")
    from fastdiff.demo.data import load_digits, split

    images, labels = load_digits()
    training, held_out = split(len(images))
    assert images.shape == (1797, 1, 8, 8) and images.min() == -1.0 and images.max() == 1.0
    assert sorted(torch.cat([training, held_out]).tolist()) == list(range(1797))
    assert measure(images[held_out], labels[held_out]).accuracy >= 0.97
    everything = measure(images, labels)
    # Features in float32 are good to about 1e-6 of values around 1, so the distance, a square, to about 1e-6 in all.
    assert everything.frechet < 1e-5 and everything.accuracy >= 0.98


def test_quality_tells_digits_from_noise_and_right_labels_from_wrong() -> None:
    """Ten eager steps with the shipped weights: the digits asked for, far nearer to real ones than noise is."""
    model = load_model()
    labels = torch.arange(10).repeat_interleave(10)
    noise = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = dpm3(lambda x, t: model(x, t, labels), noise)
    good = measure(samples, labels)
    assert good.accuracy >= 0.95
    assert measure(samples, (labels + 1) % 10).accuracy <= 0.1
    assert measure(noise, labels).frechet > 5.0 * good.frechet


def test_eager_baseline_is_of_third_order() -> None:
    """Data from a Gaussian of sd s: eps = sigma x / v, v = alpha^2 s^2 + sigma^2, and x(t) = x_T sqrt(v(t) / v(T))."""
    s = 0.5
    alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))

    def variance(t: float) -> tuple[float, float]:
        # Between the indices log alpha, not alpha_bar, is linear: the solver's own schedule.
        a = math.exp(np.interp(t, np.arange(1000.0), np.log(alpha_bar)))
        return a * s**2 + 1.0 - a, 1.0 - a

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        v, sigma_squared = variance(t[0].item())
        return x * (math.sqrt(sigma_squared) / v)

    x = torch.ones(1, dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        times = logsnr_times(steps)
        exact = math.sqrt(variance(times[-1])[0] / variance(times[0])[0])
        errors.append(abs(dpm3(model, x, steps).item() - exact))
    assert math.log2(errors[1] / errors[2]) > 2.7 and errors[2] < errors[1] < errors[0]


def test_eager_baseline_and_the_sampler_agree() -> None:
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(3.0 * x) * (t / 1000.0).view(-1, 1).to(x.dtype)

    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for steps in (5, 10):  # below 10 steps the last orders are lowered
        times = fastdiff.plan("dpm3", steps, schedule="ddpm").times
        ours = fastdiff.sample(model, x, method="dpm3", steps=steps, schedule="ddpm", dtype=torch.float64)
        # Both in float64; phi_3 of the baseline loses about two digits for steps of h near 1.
        torch.testing.assert_close(ours, dpm3(model, x, steps, np.array(times)), rtol=1e-11, atol=1e-11)


def test_the_demo_writes_its_pictures_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "QUALITY_PER_CLASS", 10)
    monkeypatch.setattr(run, "REPEATS", 1)
    quality = run.main(tmp_path / "new" / "folder", device="cpu")
    assert quality.count == 100 and quality.accuracy >= 0.95
    for name, width in (("digits.png", 10), ("trajectory.png", 11)):
        with Image.open(tmp_path / "new" / "folder" / name) as picture:
            assert picture.width > width * (56 + pictures.GAP) and picture.height > 10 * (56 + pictures.GAP)
    printed = capsys.readouterr().out
    assert "dpm3, 10 steps, NFE 10: 100 digits on cpu" in printed
    # float32 roundings through ten evaluations of a network whose output changes at most a few times faster than x.
    assert float(printed.split("two results: ")[1].split()[0]) < 1e-3
    assert f"{quality.frechet:.3f}" in printed and "ddpm, 1000 steps" in printed


def test_training_is_noise_prediction_on_ddpm_s_schedule() -> None:
    """A stand-in network sees x = alpha x0 + sigma eps of DDPM at its integer times, and is told to give eps."""
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    class Zero(torch.nn.Module):
        null_class = 10

        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            seen.append((x, t, y))
            return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(1)
    loss = noise_prediction(Zero(), torch.full((1000, 1, 8, 8), 0.5), torch.arange(1000) % 10, generator)
    x, t, y = seen[0]
    assert torch.equal(t, torch.arange(1000.0))
    product = np.cumprod([1.0 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(1000)])
    column = torch.from_numpy(product).float()[:, None, None, None]
    noise = (x - 0.5 * column.sqrt()) / (1.0 - column).sqrt()
    # x is rounded to about 6e-8 of 0.5, and divided by a sigma of at least 0.01.
    assert loss.item() == pytest.approx(noise.square().mean().item(), abs=1e-5)
    # 64,000 squares of standard normals, of variance 2: a standard error of 0.0056.
    assert loss.item() == pytest.approx(1.0, abs=5 * 0.0056)
    # A tenth of the labels is dropped: 100 of 1,000, with a deviation of 9.5.
    assert abs((y == 10).sum().item() - 100) < 48


def trainer() -> Trainer:
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(40, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(40) % 10
    torch.manual_seed(7)
    return Trainer(UNet(channels=8), images, labels, 6, 3, noise_prediction, batch=16)


def test_interrupted_and_resumed_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    straight = trainer()
    losses = [straight.train_step().item() for _ in range(6)]
    first = trainer()
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "checkpoint.safetensors")
    second = trainer()
    second.load(tmp_path / "checkpoint.safetensors")
    assert [second.train_step().item() for _ in range(3)] == losses[3:]
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[name]), name
        assert torch.equal(straight.average[name], second.average[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_resuming_another_run_is_an_error(tmp_path: Path) -> None:
    first = trainer()
    first.save(tmp_path / "checkpoint.safetensors")
    first.seed = 4
    with pytest.raises(ValueError, match="seed=3, batch=16, label=unet, mixed=False, but this one has steps=6, seed=4"):
        first.load(tmp_path / "checkpoint.safetensors")


def test_ctrl_c_is_a_flag_once_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_missing_weights_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m fastdiff\.demo\.train"):
        load_classifier(tmp_path)


def test_tile_is_upscaled_without_blur() -> None:
    image = np.full((8, 8), -1.0)
    image[2, 5] = 1.0
    pixels = np.array(pictures.tile(image, 6))
    expected = np.full((48, 48, 3), pictures.TILE)
    expected[12:18, 30:36] = pictures.INK
    np.testing.assert_array_equal(pixels, expected)


def test_sheets_hold_every_image_in_its_place() -> None:
    images = np.random.default_rng(0).uniform(-1.5, 1.5, (10, 4, 8, 8))
    for picture in (pictures.digits(images), pictures.trajectory(images, [999, 600, 300, 0], "title")):
        pixels = np.array(picture)
        right, bottom = picture.width - pictures.MARGIN, picture.height - pictures.MARGIN
        for row in range(10):
            for column in range(4):
                x = right - 56 - (3 - column) * (56 + pictures.GAP)
                y = bottom - 56 - (9 - row) * (56 + pictures.GAP)
                np.testing.assert_array_equal(pixels[y : y + 56, x : x + 56], pictures.tile(images[row, column], 7))
        assert (pixels[:, : right - 4 * 56 - 3 * pictures.GAP - 1] != pictures.PAPER).any(), "row labels"


def test_labels_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"got images \(10, 4, 8, 8\), 10 row labels and 3 column labels"):
        pictures.trajectory(np.zeros((10, 4, 8, 8)), [999, 500, 0])


def test_reference_figures_say_how_they_were_made() -> None:
    figures = json.loads((WEIGHTS / "ddpm1000.json").read_text(encoding="utf-8"))
    assert (figures["method"], figures["steps"]) == ("ddpm", 1000)
    assert figures["count"] >= 1000 and "fastdiff.demo.reference" in figures["made_by"]
    assert figures["accuracy"] >= 0.95 and 0.0 < figures["frechet"] < 10.0
