"""A row that reads what its binding does not give is refused when it is bound, not when a kernel reads address 0."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.bind import Binding, bind
from fastdiff.guidance import Guidance, Place
from fastdiff.plan import H1, SECOND, ZA, M, Plan


def with_second(tmp_path: Path) -> Plan:
    """A saved plan of one's own whose first stage reads the second output."""
    made = fastdiff.plan("ddim", 3)
    row = list(made.stages[0].next_u)
    row[SECOND] = 0.25
    first = dataclasses.replace(made.stages[0], next_u=tuple(row), next_x=tuple(row))
    path = tmp_path / "plan.json"
    dataclasses.replace(made, stages=(first, *made.stages[1:]), schedule={}).save(path)
    return Plan.load(path)


def model(x: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return 0.5 * x


def test_second_without_guidance_is_an_error_that_says_what_gives_it(tmp_path: Path) -> None:
    sampler = fastdiff.Sampler(plan=with_second(tmp_path))
    with pytest.raises(ValueError, match=r"stage 0 of method 'ddim' reads 'second', .*guidance=.*classifier_grad="):
        sampler(model, shape=(2, 5))
    with pytest.raises(ValueError, match="stage 0 of method 'ddim' reads 'second'"):
        sampler.begin(shape=(2, 5))


def test_second_with_guidance_runs(tmp_path: Path) -> None:
    plan, x = with_second(tmp_path), torch.linspace(-1, 1, 10).reshape(2, 5)
    y = {"y": torch.zeros(2)}
    guided = fastdiff.Sampler(plan=plan)(model, x, guidance=1.0, cond=y, uncond=y)
    # The halves are equal, so that `second` is m: the step is another one than without it.
    plain = fastdiff.Sampler("ddim", 3)(model, x)
    assert torch.isfinite(guided).all() and not torch.allclose(guided, plain)
    by_gradient = fastdiff.Sampler(plan=plan)(model, x, classifier_grad=lambda x, t: torch.zeros_like(x))
    torch.testing.assert_close(by_gradient, plain)


@dataclasses.dataclass(frozen=True)
class Greedy(Guidance):
    """A form of a user's that makes rows read one more register."""

    register: int = 0

    def combine(self, at: Place, row: np.ndarray) -> np.ndarray:
        changed = row.copy()
        changed[self.register] += 1.0
        return changed


@pytest.mark.parametrize(
    ("register", "name"), [(H1, "h1"), (H1 + 5, "h6"), (ZA, "za"), (ZA + 2, "zc"), (SECOND, "second")]
)
def test_guidance_that_reads_what_is_not_there_is_an_error(register: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"stage 0 of method 'ddim' reads '{name}'"):
        bind(fastdiff.plan("ddim", 3), Binding(guidance=Greedy(register)))


def test_guidance_that_reads_what_is_there_is_none() -> None:
    table = bind(fastdiff.plan("ddim", 3), Binding(guidance=Greedy(M)))
    assert all(spec.mask >> M & 1 for spec in table.specs[1:])
