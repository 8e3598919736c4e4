"""Hooks of mkdocs.yml: the first page, which is the README, the API reference, and links to files beside docs/."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("schedules", "guidance", "losses", "analytic")
"""Of the public names, those that are modules."""
OUTSIDE = re.compile(r"\[([^\]]*)\]\((\.\./)([^)#]+)(#[^)]*)?\)")
MORE = ("fastdiff.run.loop.State", "fastdiff.engine.Engine", "fastdiff.inversion.reconstruct")
"""What the reference has beside the package's own names."""


def first_page() -> str:
    """The README with links as they are from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda m: f"]({_from_docs(m[1])})", text)


def _from_docs(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def reference() -> str:
    """Every public name of the package, in the order of `__all__`; their text is in the docstrings."""
    tree = ast.parse((ROOT / "fastdiff" / "__init__.py").read_text(encoding="utf-8"))
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    names = [name for name in ast.literal_eval(lists[0]) if not name.startswith("_")]
    told = [f"fastdiff.{name}" for name in names if name not in MODULES]
    parts = ["# Reference", *(f"::: {name}" for name in (*told, *MORE, *(f"fastdiff.{name}" for name in MODULES)))]
    return "\n\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the two pages that are made."""
    from mkdocs.structure.files import File

    for path, text in (("index.md", first_page()), ("reference.md", reference())):
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Files of the repository that are not part of the site are named by their paths."""
    return OUTSIDE.sub(lambda m: f"{m[1]} (`{m[3]}`)" if m[1].strip("`") != m[3] else f"`{m[3]}`", markdown)
