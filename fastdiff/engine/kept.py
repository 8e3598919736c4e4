"""What was made for earlier requests, for later ones with the same arguments."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

_MOST = 64


class Kept:
    """The least recently used goes first. From any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable | None, make: Callable[[], Any]) -> Any:
        """The value of `key`, made now where there is none; always where the key is None."""
        if key is None:
            return make()
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        made = make()
        with self.lock:
            self.values[key] = made
            while len(self.values) > _MOST:
                self.values.popitem(last=False)
        return made


def same(arguments: Mapping[str, Any]) -> Hashable | None:
    """Equal for equal arguments of the same types: 1 and True are equal, but only one of them may be valid. None where
    one of them cannot be compared."""
    key = tuple((name, type(value), value) for name, value in sorted(arguments.items()))
    try:
        hash(key)
    except TypeError:
        return None
    return key
