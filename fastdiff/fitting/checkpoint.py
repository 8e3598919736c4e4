"""An unfinished fit as a safetensors file, from which the same call goes on to the same result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastdiff.files import write_whole
from fastdiff.fitting.ranks import from_first, world

FORMAT = "fastdiff-fit-1"
SAVE_EVERY = 20.0
"""Seconds between saves."""
STATES = "states."
"""Before the number of a batch: the teacher's states."""
POLISHED = "polished."


class Checkpoint:
    """What a fit knows so far, and its file: one for each process.

    Args:
        path: ending in .safetensors, or None: nothing is kept.
        settings: what a file must agree with, so that it belongs to this fit.

    Attributes:
        tensors: by name: the teacher's states of finished batches, the parameters of a polish.
        losses: by the part of the search, then by the tried places joined with commas.
        facts: other values of JSON.

    Raises:
        ValueError: another ending, no folder, a file that is none of ours or of other arguments.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.settings = {name: str(value) for name, value in settings.items()}
        self.tensors: dict[str, torch.Tensor] = {}
        self.losses: dict[str, dict[str, float]] = {}
        self.facts: dict[str, Any] = {}
        self.path: Path | None = None
        self.saved = time.monotonic()
        if path is None:
            return
        rank, size = world()
        own = Path(path)
        if own.suffix != ".safetensors":
            raise ValueError(f"checkpoint={str(path)!r}: expected a file ending in .safetensors")
        if not own.absolute().parent.is_dir():
            raise ValueError(f"checkpoint={str(path)!r}: there is no folder {str(own.parent)!r}; make it first")
        self.path = own if size == 1 else own.with_name(f"{own.stem}.{rank}of{size}.safetensors")
        if self.path.exists():
            self._load()
        # What one process knows and another does not would part their ways.
        shared = json.loads(from_first(json.dumps([self.losses, self.facts]).encode()))
        self.losses, self.facts = shared

    def _load(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load

        assert self.path is not None
        content = self.path.read_bytes()
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            meta = header["__metadata__"]
            if meta["format"] != FORMAT:
                raise ValueError(meta["format"])
            found = json.loads(meta["settings"])
            losses, facts = json.loads(meta["losses"]), json.loads(meta["facts"])
            tensors = load(content)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{self.path} is not a fit's checkpoint ({error}): give another path") from None
        wrong = [f"{k}={found.get(k)} (now {v})" for k, v in self.settings.items() if found.get(k) != v]
        if wrong:
            raise ValueError(
                f"{self.path} holds a fit with other arguments: {', '.join(wrong)}; call with those, give another "
                "path, or delete the file"
            )
        self.tensors, self.losses, self.facts = tensors, losses, facts

    def save(self, now: bool = False) -> None:
        """Write the file, whole or not at all: where the last save is long ago, or `now`."""
        if self.path is None or not (now or time.monotonic() - self.saved > SAVE_EVERY):
            return
        from safetensors.torch import save

        meta = {
            "format": FORMAT,
            "settings": json.dumps(self.settings),
            "losses": json.dumps(self.losses),
            "facts": json.dumps(self.facts),
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        write_whole(self.path, save(tensors, meta))
        self.saved = time.monotonic()

    def remove(self) -> None:
        """The fit is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
