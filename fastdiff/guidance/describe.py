"""A guidance as text that stays the same from run to run."""

from __future__ import annotations

from fastdiff.guidance.base import Guidance


def described(form: Guidance) -> str:
    """Its name and its values; functions by the fact that they are some. "none" without guidance."""
    if type(form) is Guidance:
        return "none"
    fields = {name: "function" if callable(value) else repr(value) for name, value in vars(form).items()}
    return f"{type(form).__name__}({', '.join(f'{name}={value}' for name, value in fields.items())})"
