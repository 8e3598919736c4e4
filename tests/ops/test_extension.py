"""The compiled modules are of this package's sources."""

from __future__ import annotations

import hashlib
import re
import sys
import types
from pathlib import Path

import pytest

from fastdiff.ops import extension
from fastdiff.ops.layout import INTERFACE

CSRC = Path(__file__).resolve().parents[2] / "csrc"
WHAT = "fastdiff_pretend"
SAID = {1: "038afbc4167e7156"}
"""Of each number, what Python and the modules say to each other then: a hash of the declarations."""


def declarations() -> str:
    """Of the headers that Python's arguments go through, without comments and white space."""
    text = "".join((CSRC / name).read_text(encoding="utf-8") for name in ("stage.h", "bindings.h", "walk.h"))
    return hashlib.sha256(re.sub(r"//[^\n]*|\s", "", text).encode()).hexdigest()[:16]


@pytest.mark.skipif(not CSRC.exists(), reason="no sources here")
def test_the_number_goes_with_the_sources() -> None:
    said = declarations()
    assert SAID.get(INTERFACE) == said, (
        f"the headers changed: where modules built before would be wrong with this package, raise INTERFACE in "
        f"csrc/bindings.h and fastdiff/ops/layout.py; then write {said!r} at its number in SAID"
    )
    assert f"INTERFACE = {INTERFACE};" in (CSRC / "bindings.h").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [INTERFACE, INTERFACE - 1, None])
def test_a_module_of_other_sources_is_refused(number: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(f"fastdiff.{WHAT}")
    if number is not None:
        module.INTERFACE = number  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if number == INTERFACE:
        assert extension.extension(WHAT) is module
        return
    with pytest.raises(
        ImportError, match=r"was built from other sources than this package's: python setup.py build_ext"
    ):
        extension.extension(WHAT)
