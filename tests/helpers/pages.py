"""Code blocks of the documentation, and fresh processes that run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: Path) -> list[str]:
    """The Python blocks, exactly as they stand."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def fresh(arguments: list[str], folder: Path, also: Path) -> str:
    """What a new Python process prints, which finds modules in the checkout and in `also`, and works in `folder`."""
    # What the tests around it were told must not reach a run of its own.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": os.pathsep.join([str(also), str(ROOT)]), "COLUMNS": "120"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def told(code: str, folder: Path) -> dict[str, Any]:
    """The JSON object in the last line that a script prints in a new process."""
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    result: dict[str, Any] = json.loads(fresh([str(script)], folder, folder).splitlines()[-1])
    return result
