"""Times of DPM-Solver's scale, from 0 to 1, on discrete schedules, whose times are indices: a warning, once."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import schedules

UNIT_TIMES = [
    ({"t_start": 1.0, "t_end": 0.001}, r"t_start=1.0, t_end=0.001: .* from 0 to 999.* - 1: t_start=999, t_end=0 \("),
    ({"t_start": np.float32(0.5)}, r"t_start=0.5: times of .* t\*1000 - 1: t_start=499 \("),
    ({"t_start": 0.25, "schedule": schedules.ddpm(200)}, r"from 0 to 199.* t\*200 - 1: t_start=49 \("),
    ({"t_start": 0.001, "t_end": 1.0, "method": "ode"}, "t_start=0.001, t_end=1.0: .*: t_start=0, t_end=999 "),
]


def still(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.1 * x


@pytest.mark.parametrize(("arguments", "message"), UNIT_TIMES)
def test_times_of_another_scale_give_one_warning(arguments: dict[str, object], message: str) -> None:
    arguments = {"method": "dpm2", **arguments}
    with pytest.warns(UserWarning, match=message) as found:
        fastdiff.sample(still, torch.ones(1, 2), **arguments)
    assert len(found) == 1 and found[0].filename == __file__
    with pytest.warns(UserWarning, match=message) as found:
        sampler = fastdiff.Sampler(**arguments, dtype=torch.float64)  # type: ignore[arg-type]
        sampler(still, torch.ones(1, 2))
        if arguments["method"] == "dpm2":
            fastdiff.plan(**arguments)  # type: ignore[arg-type]
    # `Sampler` keeps the plan that `sample` made.
    assert {w.filename for w in found} == {__file__} and len(found) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"t_start": 1},
        {"t_start": np.int64(1)},
        {"t_start": 1.5},
        {"t_start": 1.0, "schedule": "vp_linear"},
        {"t_start": 1.0, "schedule": schedules.ddpm(10), "spacing": "time_uniform"},
        {"t_start": 1.0, "t_end": 500.0, "method": "ode"},
    ],
    ids=str,
)
def test_times_that_are_indices_give_none(arguments: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdiff.sample(still, torch.ones(1, 2), **{"method": "dpm2", **arguments})


def test_the_inverse_of_a_run_to_an_index_below_one_gives_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdiff.Sampler("ode", t_end=0.5).invert(still, torch.ones(1, 2))
        fastdiff.Sampler("dpm2", 5, t_end=0.5).invert(still, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spacing": [14.0, 7.0, 2.0, 1.0, 0.0]}, r"at t=14, where alpha=0.99\d, sigma=0.0\d+: a network expects"),
        ({"t_start": 100.0, "method": "ddim"}, "drawn at t=90, where alpha="),
        ({"t_start": 100.0, "method": "ode"}, "at t=100, where alpha="),
        ({"t_start": 0.3, "schedule": "flow", "prediction": "flow", "method": "ddim"}, "at t=0.3, where alpha=0.7"),
    ],
)
def test_pure_noise_where_little_is_expected(arguments: dict[str, object], words: str) -> None:
    arguments = {"method": "dpm2", **arguments}
    with pytest.warns(UserWarning, match=words) as found:
        fastdiff.sample(still, shape=(1, 2), **arguments)
    assert [w.filename for w in found] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The state at that time, from the caller; and a start in the noise.
        fastdiff.sample(still, torch.ones(1, 2), **arguments)
        fastdiff.sample(still, shape=(1, 2), method="dpm2", t_start=900.0)
