"""Conditions that are no tensors: of the same type and equal, or refused, and never the end of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdiff

SHAPE = (1, 4, 4)


class Incomparable:
    """As arrays and data frames: no truth value."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment]


def model(x: torch.Tensor, t: torch.Tensor, flag: Any) -> torch.Tensor:
    return x * (0.1 if flag is True else 0.2)


def engine() -> fastdiff.Engine:
    return fastdiff.Engine(model, slots=4, shape=SHAPE, schedule="ddpm")


def test_equal_values_of_other_types_are_not_taken_for_each_other() -> None:
    e = engine()
    first, second = e.submit("ddim", 3, cond={"flag": True}), e.submit("ddim", 3, cond={"flag": 1})
    e.run()
    kwargs = {"shape": (1, *SHAPE), "schedule": "ddpm", "model_kwargs": {"flag": True}}
    assert torch.equal(first.result(), fastdiff.sample(model, method="ddim", steps=3, **kwargs)[0])
    assert "flag: 1, and the conditions of this engine have flag: True" in str(second.exception())


def test_values_that_cannot_be_compared_end_their_own_request_alone() -> None:
    e = engine()
    good = [e.submit("ddim", 4, seed=seed, cond={"flag": True}) for seed in range(2)]
    e.step()
    bad = e.submit("ddim", 4, cond={"flag": Incomparable()})
    e.run()
    assert [r.status for r in good] == ["done", "done"] and isinstance(bad.exception(), ValueError)


def test_the_same_object_goes_with_itself() -> None:
    e, flag = engine(), Incomparable()
    both = [e.submit("ddim", 4, seed=seed, cond={"flag": flag}) for seed in range(2)]
    e.run()
    assert [r.status for r in both] == ["done", "done"]


@pytest.mark.parametrize("given", ["cond", "uncond"])
def test_a_name_that_every_call_is_given_is_no_condition(given: str) -> None:
    e = fastdiff.Engine(model, slots=2, shape=SHAPE, schedule="ddpm", model_kwargs={"flag": True})
    with pytest.raises(
        ValueError, match=rf"\['flag'\] given both in the engine's model_kwargs and in {given}: give it once"
    ):
        e.submit("ddim", 2, **{given: {"flag": 2}})
    assert e.submit("ddim", 2).result() is not None
