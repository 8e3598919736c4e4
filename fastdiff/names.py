"""Messages for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, got: object, valid: Iterable[str]) -> str:
    """The message of an error about a name: what was got, the nearest valid name, and all valid names.

    >>> unknown("spacing", "karas", ["karras", "logsnr"])
    "unknown spacing 'karas'; did you mean 'karras'? Valid: karras, logsnr"
    """
    names = list(valid)
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(got.lower(), folded, n=1) if isinstance(got, str) else []
    hint = f"; did you mean '{folded[near[0]]}'?" if near else "."
    listed = ", ".join(names) if names else "none"
    return f"unknown {kind} {got!r}{hint} Valid: {listed}"
