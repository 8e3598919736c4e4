"""The user's own corrections of the predicted x0 and of x_t: host code between the network's calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastdiff.plan import Plan

CorrectX0 = Callable[[torch.Tensor, float], torch.Tensor]
CorrectXt = Callable[[torch.Tensor, float, int], torch.Tensor]


def check_corrections(plan: Plan, correct_x0: Any, correct_xt: Any) -> None:
    """Raise TypeError for what cannot be called, ValueError for a plan that has no single x_t to correct."""
    for name, arguments, value in (("correct_x0", "x0, t", correct_x0), ("correct_xt", "x, t, step", correct_xt)):
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be callable as {name}({arguments}), got {type(value).__name__}")
    if correct_xt is None:
        return
    for s, following in zip(plan.stages, (*plan.stages[1:], None), strict=True):
        if (following is None or following.step != s.step) and s.next_u != s.next_x:
            raise ValueError(
                f"correct_xt does not go with method {plan.method!r}, which still corrects x_t itself when the next "
                "evaluation is done: take a method without a corrector, such as dpmpp2m, or corrector=False"
            )


def corrected(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    """What a correction returned, as a contiguous tensor of the state's dtype; ValueError for another shape or
    device."""
    if not isinstance(value, torch.Tensor) or value.shape != like.shape or value.device != like.device:
        is_tensor = isinstance(value, torch.Tensor)
        got = (tuple(value.shape), str(value.device)) if is_tensor else type(value).__name__
        raise ValueError(
            f"{name} returned {got}; expected a tensor of shape {tuple(like.shape)} on {like.device}: return its first "
            "argument where there is nothing to correct"
        )
    return value.detach().to(like.dtype).contiguous()
