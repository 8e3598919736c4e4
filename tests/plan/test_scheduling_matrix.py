"""Scheduling matrices of frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import Frames


@pytest.mark.parametrize("lag", [0, 0.5, 1, 2.5, 4])
def test_the_pyramid_of_diffusion_forcing(lag: float) -> None:
    """Noise level of frame t in row m: N + int(t·uncertainty_scale) − m, from N down to 0 (Chen et al. 2024, code)."""
    n, count = 4, 5
    height = n + int((count - 1) * lag) + 1
    published = np.array([[np.clip(n + int(t * lag) - m, 0, n) for t in range(count)] for m in range(height)])
    got = Frames(2, "pyramid", lag=lag).matrix(1, count, n)
    assert np.array_equal(got[:, 0], n - published)
    assert np.array_equal(Frames(2, n - published).matrix(2, count, n)[:, 1], n - published)


def test_named_orders() -> None:
    full = Frames(2).matrix(1, 3, 2)[:, 0].tolist()
    assert full == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    one_by_one = Frames(2, "autoregressive", block=2).matrix(1, 3, 2)[:, 0].tolist()
    assert one_by_one == [[0, 0, 0], [1, 1, 0], [2, 2, 0], [2, 2, 1], [2, 2, 2]]
    # A lag longer than a block takes leaves no evaluation idle.
    assert Frames(2, "pyramid", lag=9, block=2).matrix(1, 3, 2)[:, 0].tolist() == one_by_one
    known = Frames(2, "pyramid", context=1).matrix(1, 3, 2)[:, 0].tolist()
    assert known == [[2, 0, 0], [2, 1, 0], [2, 2, 1], [2, 2, 2]]


def test_a_mask_for_each_sample() -> None:
    mask = torch.tensor([[True, False, False], [False, True, True]])
    got = Frames(2, "autoregressive", context=mask).matrix(2, 3, 2)
    assert got[:, 0].tolist() == [[2, 0, 0], [2, 1, 0], [2, 2, 0], [2, 2, 1], [2, 2, 2]]
    assert got[:, 1].tolist() == [[0, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    whole = np.stack([got[:, b] for b in (0, 1)], axis=1)
    assert np.array_equal(Frames(2, whole).matrix(2, 3, 2), whole)


MADE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"axis": 0}, ValueError, "frames: axis=0: expected an integer from 1"),
    ({"block": 0}, ValueError, "frames: block=0: expected an integer from 1"),
    ({"lag": -1}, ValueError, "frames: lag=-1: expected at least 0"),
    ({"lag": "2"}, TypeError, "frames: lag='2': expected a number"),
    ({"steps": "pyramids"}, ValueError, "frames: steps='pyramids': expected one of 'full_sequence', 'pyramid'"),
    ({"steps": [[0.0, 1.0]]}, TypeError, "frames: steps is an array of float64 of shape"),
    ({"steps": [[0, 1], [0]]}, TypeError, "expected an array of numbers"),
    ({"steps": [[0, 0], [1, 1]], "context": 1}, ValueError, "frames: context goes with a named order"),
    ({"context": [1.5]}, TypeError, "frames: context=.* expected a number of frames, or a mask of bools"),
    ({"clean_time": float("nan")}, ValueError, "frames: clean_time=nan: expected a finite number"),
]


@pytest.mark.parametrize(("given", "kind", "message"), MADE)
def test_what_is_no_order(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Frames(**{"axis": 2, **given})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"context": 3}, "frames: context=3 of 3 frames leaves nothing to sample"),
    ({"context": [True] * 3}, "marks every frame as clean"),
    ({"context": [True, False]}, r"context is a mask of shape \(2,\); expected \(3,\) or \(2, 3\)"),
    ({"steps": [[0, 0], [1, 1]]}, r"steps has shape \(2, 2\), and x has 2 samples of 3 frames"),
    ({"steps": [[4, 4, 4], [3, 3, 3]]}, r"goes from 3 to 4; expected 0 \(pure noise\) to 2 .*plan.nfe - matrix"),
    ({"steps": [[0, 0, 1], [1, 0, 0]]}, "frame 2 of sample 0 goes back at evaluation 0, from 1 to 0"),
    ({"steps": [[0, 0, 0], [1, 0, 0], [1, 2, 1]]}, "frame 1 of sample 0 advances by more than 1 at evaluation 1"),
    ({"steps": [[0, 0, 0], [1, 0, 0], [1, 0, 0]]}, "no frame advances at evaluation 1"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_does_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frames(axis=2, **given).matrix(2, 3, 2)
