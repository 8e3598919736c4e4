"""Names of a package whose modules are read when the names are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, whose other names are those that it has imported.

    Args:
        places: for each name the module that has it; for a module of the package, the package.
    """

    def find(name: str) -> Any:
        """The thing of that name, kept in the package."""
        owner, place = sys.modules[package], places.get(name)
        if place is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=owner)
        found = importlib.import_module(f"{package}.{name}" if place == package else place)
        thing = found if place == package else getattr(found, name)
        setattr(owner, name, thing)
        return thing

    def names() -> list[str]:
        """What `dir` lists."""
        return sorted({*vars(sys.modules[package]), *places})

    return find, names
