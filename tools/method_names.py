"""Writes fastdiff/solvers/method_names.py: the names and options of all methods, for editors and type checkers.

python tools/method_names.py          # writes the file
python tools/method_names.py --check  # fails where it is not what would be written
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "fastdiff" / "solvers" / "method_names.py"
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


def content() -> str:
    """The file."""
    sys.path.insert(0, str(ROOT))
    from fastdiff.solvers import GRID_OPTIONS, GUIDED, METHODS

    every = {**METHODS, **GUIDED}

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


def main() -> int:
    text = content()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET.name} is out of date: python tools/method_names.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
