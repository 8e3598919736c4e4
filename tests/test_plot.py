"""Pictures: the pixels of grids and trajectories, what a plan's and a convergence plot shows, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.plan import REGISTERS, picture

plot = pytest.importorskip("fastdiff.plot")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def test_a_grid_has_every_image_in_its_place(tmp_path: Path) -> None:
    values = torch.tensor([-1.0, 0.0, 1.0])
    plot.image_grid(values.reshape(3, 1, 1, 1).expand(3, 1, 2, 4).bfloat16(), tmp_path / "g.png", columns=2, scale=3)
    pixels = np.asarray(Image.open(tmp_path / "g.png"))
    # Two by two images of 2x4 with lines of one pixel between and around, each pixel 3x3.
    assert pixels.shape == ((2 * 3 + 1) * 3, (2 * 5 + 1) * 3, 3)
    small = pixels[1::3, 1::3, 0]
    assert (small[1:3, 1:5] == 0).all() and (small[1:3, 6:10] == 128).all() and (small[4:6, 1:5] == 255).all()
    assert (small[0] == 255).all() and (small[:, 5] == 255).all()


def test_a_trajectory_is_x_above_the_predicted_x0(tmp_path: Path) -> None:
    x, run = fastdiff.sample(lambda x, t: 0.3 * x, shape=(3, 1, 2, 2), steps=4, method="dpm3", return_trajectory=True)
    plot.trajectory(run.x, tmp_path / "t.png", predicted=run.x0, sample=2)
    pixels = np.asarray(Image.open(tmp_path / "t.png"))
    assert pixels.shape == (2 * 3 + 1, 5 * 3 + 1, 3)
    expected = np.clip(np.rint((x[2, 0].double().numpy() + 1.0) * 127.5), 0, 255)
    assert (pixels[1:3, 13:15, 0] == expected).all() and (pixels[4:6, 13:15, 0] == expected).all()


def test_a_trajectory_is_taken_as_it_comes(tmp_path: Path) -> None:
    _, run = fastdiff.sample(lambda x, t: 0.3 * x, shape=(2, 3, 2, 2), steps=3, return_trajectory=True)

    def drawn(*args: Any, **kwargs: Any) -> np.ndarray:
        plot.trajectory(args[0], tmp_path / "t.png", sample=1, **kwargs)
        return np.asarray(Image.open(tmp_path / "t.png"))

    whole, alone = drawn(run.x, predicted=run.x0), drawn(run.x)
    assert np.array_equal(drawn(run), whole) and len(whole) == 2 * 3 + 1 and len(alone) == 3 + 1
    assert np.array_equal(drawn(run, predicted=-run.x0), drawn(run.x, predicted=-run.x0))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    from matplotlib.figure import Figure

    made: list[Any] = []

    def keep(**options: object) -> Figure:
        made.append(Figure(**options))
        return made[-1]

    monkeypatch.setattr(picture, "new_figure", keep)
    return made


@pytest.mark.parametrize("method", ["pc", "ddpm", "unipc", "heun"])
@pytest.mark.parametrize("steps", [1, 6])
def test_registers_of_a_plan_have_their_own_colours(
    method: str, steps: int, tmp_path: Path, figures: list[Any]
) -> None:
    plan = fastdiff.plan(method, steps)
    picture.draw(plan, tmp_path / "p.png")
    lines = [line for line in figures[0].axes[1].get_lines() if line.get_label().startswith("u': ")]
    assert len({line.get_color() for line in lines}) == len(lines)
    assert [line.get_label()[4:] for line in lines] == [
        name for j, name in enumerate(REGISTERS) if any(stage.next_u[j] for stage in plan.stages)
    ]


@pytest.mark.parametrize(("schedule", "steps"), [("ve", 20), ("ddpm", 1), ("ddpm", 2), ("ddpm", 5)])
def test_a_plans_legends_cover_no_curve_and_its_stages_are_whole(
    schedule: str, steps: int, tmp_path: Path, figures: list[Any]
) -> None:
    plan = fastdiff.plan("pc" if schedule == "ve" else "ddim", steps, schedule)
    picture.draw(plan, tmp_path / "p.png")
    top, bottom, _ = figures[0].axes
    for axes in (top, bottom):
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())
    (title,) = top.findobj(lambda o: hasattr(o, "get_text") and o.get_text().startswith(plan.method))
    assert not top.get_legend().get_window_extent().overlaps(title.get_window_extent())
    low, high = bottom.get_xlim()
    ticks = [t for t in bottom.get_xticks() if low <= t <= high]
    assert ticks and all(t == round(t) for t in ticks) and low < 0 and high > len(plan.stages) - 1


IMAGES = torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda p: plot.image_grid(IMAGES[0], p), ValueError, r"shape \(1, 4, 4\).*C = 1 or 3"),
        (lambda p: plot.image_grid(IMAGES.to(torch.uint8), p), TypeError, "uint8.*127.5"),
        (lambda p: plot.image_grid(IMAGES / 0.0, p), ValueError, "NaN.*check_finite"),
        (lambda p: plot.image_grid(IMAGES, p, scale=0), ValueError, "scale got 0"),
        (lambda p: plot.image_grid(IMAGES, p, columns=0), ValueError, "columns got 0"),
        (lambda p: plot.trajectory(IMAGES[None], p, sample=2), ValueError, "sample=2"),
        (lambda p: plot.convergence({}, p), ValueError, "errors is empty"),
        (lambda p: plot.convergence({"a": ([5, 10], [0.1])}, p), ValueError, "'a' has 2 evaluations"),
        (lambda p: plot.convergence({"a": ([5], [0.0])}, p), ValueError, "above 0"),
    ],
)
def test_errors(call, kind: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message):
        call(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
