"""Writes fastdiff/solvers/method_names.py: the names and options of all methods, for editors and type checkers; and
fastdiff/solvers/index.py: the file of each method, so that only those that are asked for are read.

python tools/method_names.py          # writes the files
python tools/method_names.py --check  # fails where one is not what would be written
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOLVERS = ROOT / "fastdiff" / "solvers"
GRID_TYPES = {"steps_offset": "int", "original_steps": "int", "final": 'Literal["clean", "t_min"]'}
"""Other options of spacings are floats."""


def kind(option: Any) -> list[str]:
    """The types that an option accepts, as source."""
    if option.accepted is not None:
        names = [f'"{c}"' if isinstance(c, str) else "bool" if isinstance(c, bool) else str(c) for c in option.accepted]
        plain = [n for n in dict.fromkeys(names) if n == "bool"]
        literal = [n for n in names if n != "bool"]
        return [*plain, *(literal and [f"Literal[{', '.join(literal)}]"])]
    if type(option).__name__ != "Option":
        return ["Any"]
    return [type(option.default).__name__]


def merged(types: list[str]) -> str:
    """One type for an option that several methods have."""
    if "Any" in types:
        return "Any"
    literals = [t.removeprefix("Literal[").removesuffix("]") for t in types if t.startswith("Literal")]
    plain = [t for t in dict.fromkeys(types) if not t.startswith("Literal")]
    if literals:
        values = dict.fromkeys(v for text in literals for v in text.split(", "))
        plain.append(f"Literal[{', '.join(values)}]")
    return " | ".join(plain)


def found(families: Iterable[str]) -> dict[str, list[Any]]:
    """The methods of each file."""
    return {family: list(importlib.import_module(f"fastdiff.solvers.{family}").METHODS) for family in families}


def index() -> str:
    """index.py.

    Raises:
        ValueError: a name or an alias that two methods have.
    """
    sys.path.insert(0, str(ROOT))
    from fastdiff.solvers.registry import FAMILIES, GUIDED_FAMILIES, key_of

    plain, guided = found(FAMILIES), found(GUIDED_FAMILIES)
    owners: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for method in (m for methods in (*plain.values(), *guided.values()) for m in methods):
        for name in (method.name, *method.aliases):
            if owners.setdefault(key_of(name), method.name) != method.name:
                raise ValueError(f"{name!r} is a name of {method.name!r} and of {owners[key_of(name)]!r}")
        if key_of(method.name) != method.name:
            raise ValueError(f"a method's name is in small letters and underscores: {key_of(method.name)!r}")
        aliases.update({key_of(name): method.name for name in method.aliases})

    def table(name: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
        return [f"{name}: dict[str, str] = {{", *(f'    "{key}": "{value}",' for key, value in pairs), "}"]

    def files(families: dict[str, list[Any]]) -> list[tuple[str, str]]:
        return [(method.name, family) for family, methods in families.items() for method in methods]

    lines = [
        '"""The file of every method, and the method of every alias. Written by tools/method_names.py."""',
        "",
        "from __future__ import annotations",
        "",
        *table("FAMILY_OF", files(plain)),
        *table("GUIDED_FAMILY_OF", files(guided)),
        *table("ALIASES_OF", aliases.items()),
        "",
    ]
    return "\n".join(lines)


def content() -> str:
    """method_names.py."""
    sys.path.insert(0, str(ROOT))
    from fastdiff.solvers.registry import FAMILIES, GRID_OPTIONS, GUIDED_FAMILIES

    every = {m.name: m for methods in found((*FAMILIES, *GUIDED_FAMILIES)).values() for m in methods}

    options: dict[str, list[str]] = {}
    for method in every.values():
        for name, option in method.options.items():
            options.setdefault(name, []).extend(kind(option))
    aliases = sorted(alias for method in every.values() for alias in method.aliases)
    names = list(dict.fromkeys([*every, *aliases]))
    grid = {name: GRID_TYPES.get(name, "float") for name in GRID_OPTIONS}
    fields = {**{name: merged(types) for name, types in sorted(options.items())}, **grid}
    any_used = any(t == "Any" for t in fields.values())
    lines = [
        '"""Names and options of all methods, for editors and type checkers. Written by tools/method_names.py."""',
        "",
        "from __future__ import annotations",
        "",
        f"from typing import {'Any, ' if any_used else ''}Literal",
        "",
        "from typing_extensions import TypedDict",
        "",
        "MethodName = Literal[",
        *(f'    "{name}",' for name in names),
        "]",
        "",
        "",
        "class MethodOptions(TypedDict, total=False):",
        '    """Options of the methods and of the spacings; `fastdiff methods NAME` says what each means."""',
        "",
        *(f"    {name}: {text}" for name, text in fields.items()),
        "",
    ]
    return "\n".join(lines)


FILES = {"index.py": index, "method_names.py": content}


def main() -> int:
    old = [name for name, make in FILES.items() if not (SOLVERS / name).is_file() or _text(name) != make()]
    if "--check" in sys.argv[1:]:
        for name in old:
            print(f"{name} is out of date: python tools/method_names.py", file=sys.stderr)
        return int(bool(old))
    for name in old:
        (SOLVERS / name).write_text(FILES[name](), encoding="utf-8")
    return 0


def _text(name: str) -> str:
    return (SOLVERS / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
