from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import fastdiff
from fastdiff.demo import load_classifier, load_model
from fastdiff.demo.data import load_digits, split
from fastdiff.demo.noisy_classifier import WEIGHTS, NoisyClassifier, classifier_grad, load_noisy_classifier
from fastdiff.demo.train_classifier import accuracies, cross_entropy, main
from fastdiff.demo.training import Trainer


def test_gradient_of_a_linear_classifier() -> None:
    """For logits W x: the gradient of log softmax is W_y − sum_k p_k W_k, times the scale."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    x = torch.randn(7, 3, 4, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    p = torch.softmax(x.flatten(1) @ w.T, dim=1)
    expected = 2.5 * (w[y] - p @ w).reshape(x.shape)
    with torch.no_grad():
        got = classifier_grad(lambda x, t: x.flatten(1) @ w.T, y, 2.5)(x, torch.zeros(7))
    # Sums of 12 terms of size 1: some ten roundings of 1e-16.
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-14)
    assert not got.requires_grad and not x.requires_grad


def test_gradient_of_the_shipped_classifier_follows_differences() -> None:
    """log p(y | x + h d) − log p(y | x − h d) over 2h, in float64, for a random direction d."""
    classifier = load_noisy_classifier().double()
    generator = torch.Generator().manual_seed(1)
    x, d = torch.randn(2, 3, 1, 8, 8, generator=generator, dtype=torch.float64)
    t, y, h = torch.tensor([5.0, 150.0, 400.0]), torch.tensor([3, 8, 1]), 1e-5
    slope = (classifier_grad(classifier, y)(x, t) * d).flatten(1).sum(1)

    def log_p(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(classifier(x, t), dim=1).gather(1, y[:, None])[:, 0]

    # The third derivative along d, of norm 8, is below 1e4 times h²/6; roundings are below 1e-14/h.
    torch.testing.assert_close(slope, (log_p(x + h * d) - log_p(x - h * d)) / (2 * h), rtol=1e-6, atol=1e-6)


def test_gradient_is_switched_on_inside_inference_mode_and_for_x_alone() -> None:
    classifier = NoisyClassifier(channels=8)
    with torch.inference_mode():
        x = torch.ones(2, 1, 8, 8)
        out = classifier_grad(classifier, torch.tensor([1, 2]))(x, torch.tensor([3.0, 4.0]))
    assert out.abs().max() > 0 and all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize(
    ("y", "scale", "error", "message"),
    [
        (torch.tensor(3), 1.0, TypeError, "expected one integer label a sample"),
        (torch.tensor([1.0]), 1.0, TypeError, "dtype torch.float32"),
        (torch.tensor([1]), math.nan, ValueError, "scale=nan"),
    ],
)
def test_bad_labels_and_scales(y: torch.Tensor, scale: float, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        classifier_grad(NoisyClassifier(channels=8), y, scale)


def test_labels_that_do_not_fit_the_samples() -> None:
    grad = classifier_grad(NoisyClassifier(channels=8), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="got 2 samples and 3 labels"):
        grad(torch.zeros(2, 1, 8, 8), torch.zeros(2))


def test_shipped_weights_are_small_and_know_the_held_out_digits() -> None:
    assert WEIGHTS.stat().st_size <= 1_000_000
    with safe_open(WEIGHTS, "pt") as file:
        meta = file.metadata()
    assert meta["mixed"] == "True"
    images, labels = load_digits()
    _, held_out = split(len(images))
    found = accuracies(load_noisy_classifier(), images[held_out], labels[held_out], repeats=2)
    # The stored figures come from 10 draws of the noise for each of 359 digits; these are two others, with a deviation
    # of at most sqrt(p(1 − p)/718).
    for time, value in found.items():
        stored = float(meta[f"accuracy_{time}"])
        assert value == pytest.approx(stored, abs=5 * math.sqrt(stored * (1 - stored) / 718) + 1e-3)
    assert found[0] > 0.98 and found[200] > 0.85


def test_missing_weights_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m fastdiff\.demo\.train_classifier"):
        load_noisy_classifier(tmp_path / "none.safetensors")


@pytest.mark.slow
def test_guidance_turns_unconditional_samples_into_the_labels_asked_for() -> None:
    """The network gets no label; a classifier of clean digits finds chance without guidance, the labels with it."""
    model, judge, guide = load_model(), load_classifier(), load_noisy_classifier()
    y = torch.arange(10).repeat_interleave(10)
    found = {}
    for scale in (0.0, 3.0):
        images = fastdiff.sample(
            model,
            shape=(100, 1, 8, 8),
            method="ddim",
            steps=25,
            t_end=8.0,
            seed=4,
            classifier_grad=classifier_grad(guide, y, scale) if scale else None,
        )
        with torch.no_grad():
            found[scale] = (judge(images.clamp(-1, 1)).argmax(1) == y).double().mean().item()
    # 100 samples, each right with probability 0.1 unguided: a deviation of 0.03.
    assert found[0.0] < 0.1 + 5 * 0.03
    assert found[3.0] > 0.8


@pytest.mark.parametrize("mixed", [False, True])
def test_interrupted_and_resumed_training_ends_in_the_same_weights(mixed: bool, tmp_path: Path) -> None:
    def trainer() -> Trainer:
        torch.manual_seed(7)
        images = torch.rand(40, 1, 8, 8) * 2 - 1
        model = NoisyClassifier(channels=8, dropout=0.5)
        return Trainer(model, images, torch.arange(40) % 10, 4, 3, cross_entropy, batch=16, mixed=mixed)

    straight, first, second = trainer(), trainer(), trainer()
    for _ in range(4):
        straight.train_step()
    for _ in range(2):
        first.train_step()
    first.save(tmp_path / "checkpoint.safetensors")
    second.load(tmp_path / "checkpoint.safetensors")
    for _ in range(2):
        second.train_step()
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(parameter, second.model.get_parameter(name)), name
        assert parameter.dtype == torch.float32


def test_mixed_precision_computes_in_bfloat16() -> None:
    seen: list[torch.dtype] = []

    class Watch(NoisyClassifier):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            out = super().forward(x, t)
            seen.append(out.dtype)
            return out

    for mixed in (True, False):
        images = torch.zeros(8, 1, 8, 8)
        trainer = Trainer(Watch(channels=8), images, torch.arange(8), 2, 0, cross_entropy, batch=4, mixed=mixed)
        assert trainer.train_step().dtype == torch.float32
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.slow
def test_command_trains_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--steps", "2", "--device", "cpu"]) == 0
    assert "accuracy on held-out digits" in capsys.readouterr().out
    assert load_noisy_classifier(tmp_path / "noisy_classifier.safetensors").training is False
    with pytest.raises(ValueError, match="holds a run with steps=2"):
        main(["--out", str(tmp_path), "--steps", "3", "--device", "cpu", "--resume"])
