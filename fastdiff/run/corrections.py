"""The user's own corrections of the predicted x0 and of x_t: host code between the network's calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from fastdiff.ops import returned
from fastdiff.plan import Plan

CorrectX0 = Callable[[torch.Tensor, Any], torch.Tensor]
CorrectXt = Callable[[torch.Tensor, float, int], torch.Tensor]


def check_calls(correct_x0: Any, correct_xt: Any) -> None:
    """Raise TypeError for a correction that cannot be called: before the run, not in its middle."""
    # A compiler knows no signature of a function that is made within what it compiles.
    if (correct_x0 is None and correct_xt is None) or torch.compiler.is_dynamo_compiling():
        return
    for name, value, arguments in (
        ("correct_x0", correct_x0, ("x0", "t")),
        ("correct_xt", correct_xt, ("x", "t", "step")),
    ):
        if value is None:
            continue
        listed = ", ".join(arguments)
        if not callable(value):
            raise TypeError(f"{name} must be callable as {name}({listed}), got {type(value).__name__}")
        try:
            signature = inspect.signature(value.forward if isinstance(value, torch.nn.Module) else value)
        except (TypeError, ValueError):
            # Built-in functions need not have one.
            continue
        try:
            signature.bind(*arguments)
        except TypeError:
            fits = [n for n in range(len(arguments)) if _accepts(signature, arguments[:n])]
            inner = ", ".join(arguments[: fits[-1]]) if fits else f"{listed}, ..."
            raise TypeError(
                f"{name} is called as {name}({listed}), and the function given takes {signature}: wrap it, "
                f"{name}=lambda {listed}: f({inner})"
            ) from None


def _accepts(signature: inspect.Signature, arguments: tuple[str, ...]) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def check_corrections(plan: Plan, correct_x0: Any, correct_xt: Any) -> None:
    """Raise TypeError for what cannot be called as it will be, ValueError for a plan that has no single x_t to
    correct."""
    check_calls(correct_x0, correct_xt)
    if correct_xt is None:
        return
    for s, following in zip(plan.stages, (*plan.stages[1:], None), strict=True):
        if (following is None or following.step != s.step) and s.next_u != s.next_x:
            unipc = "give split=True (its corrector in a stage of its own), or corrector=False"
            raise ValueError(
                f"correct_xt does not go with this plan of method {plan.method!r}, which still corrects x_t itself "
                "after the next evaluation: "
                + (unipc if plan.method == "unipc" else "take a method without a corrector, such as dpmpp2m")
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
    return returned(name, value).detach().to(like.dtype).contiguous()
