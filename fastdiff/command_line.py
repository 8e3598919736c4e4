"""Words of a command line: values, options, and the user's own network."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

EXAMPLE = "mynetworks:digits, where mynetworks.py has def digits(): return model, {'shape': (64, 3, 32, 32)}"


def from_text(text: str) -> Any:
    """A truth value, a number, several of them such as (-1, 1) or 4,3,32,32, or the text itself."""
    named = {"true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    if "," in text:
        inner = text.strip()
        several = inner[1:-1] if inner[0] + inner[-1] in ("()", "[]") else inner
        found = tuple(from_text(one.strip()) for one in several.split(",") if one.strip())
        return text if any(isinstance(one, str) for one in found) else found
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def options_from_text(pairs: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE pairs of --option; ValueError for one without "="."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--option {pair!r}: expected NAME=VALUE, such as --option eta=0.5")
        found[name] = from_text(text)
    return found


def network(source: str, call: str = "fastdiff.fit") -> tuple[Callable[..., Any], dict[str, Any]]:
    """The model, and options of `call`, that MODULE:FUNCTION returns.

    Raises:
        ValueError: another form, no such module or function, or what it returns is no model.
    """
    module, colon, name = source.partition(":")
    if not colon or not module or not name.isidentifier():
        raise ValueError(f"{source!r}: expected MODULE:FUNCTION, such as {EXAMPLE}")
    # As python -m does: a module beside the user, who names it.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that the user's own imports is another matter.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{source!r}: {error}; expected MODULE:FUNCTION, such as {EXAMPLE}") from None
    found = getattr(loaded, name, None)
    if not callable(found):
        what = f"no function {name!r}" if found is None else f"{name!r}, but that is no function"
        raise ValueError(f"{source!r}: module {module!r} has {what}; expected MODULE:FUNCTION, such as {EXAMPLE}")
    _check_call(source, found)
    made = found()
    model, options = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not callable(model) or not isinstance(options, dict):
        raise ValueError(
            f"{source} returned {type(made).__name__}; expected a model, or (model, dict of options of {call})"
        )
    return model, options


def _check_call(source: str, found: Any) -> None:
    """ValueError for a function that needs arguments, such as the model itself."""
    instance = not isinstance(found, type) and hasattr(found, "forward")
    try:
        inspect.signature(found.forward if instance else found).bind()
    except TypeError as error:
        raise ValueError(
            f"{source!r}: {error}; expected a function without arguments that returns the model, such as {EXAMPLE}"
        ) from None
    except ValueError:
        # Written in C, without a signature.
        return
