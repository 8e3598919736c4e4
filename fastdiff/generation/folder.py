"""The folder of a generation: its manifest, the mark of each finished shard, and the check of all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fastdiff.files import write_whole
from fastdiff.generation.formats import FORMATS, Files, whole_npz

FORMAT = "fastdiff-generate-1"
MANIFEST, INDEX, MARKS, LOCK = "manifest.json", "index.json", "shards", ".lock"
_CHUNK = 2**20
_MARK = re.compile(r"(\d{5,})\.json")


class Folder:
    """Where a generation's files lie.

    `manifest.json` says what is generated, and is written first. Each shard ends with `shards/00012.json`, which names
    the manifest's SHA-256 (its first 16 digits), its files and theirs: a shard without it is made again. `index.json`
    joins them once all are there. No file says when or by whom it was made, so that any workers give the same bytes.

    Args:
        path: made by `begin` if it does not exist.
        manifest: what is generated; a folder that holds anything else is refused. Real numbers may differ by 1%.

    Raises:
        ValueError: the folder belongs to another generation.
    """

    def __init__(self, path: str | Path, manifest: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.manifest = {"format": FORMAT, **manifest}
        self.n, self.size, self.key = int(manifest["n"]), int(manifest["shard"]), ""
        if (self.path / MANIFEST).exists():
            self.begin()

    def begin(self) -> None:
        """Make the folder and its manifest, where another process has not. Called when there is a batch to write, so
        that a call that fails with its first one leaves nothing behind."""
        if self.key:
            return
        (self.path / MARKS).mkdir(parents=True, exist_ok=True)
        with self._alone():
            known = self.path / MANIFEST
            if not known.exists():
                write_whole(known, _json(self.manifest))
            found = _read(known)
            names = [*self.manifest, *(name for name in found if name not in self.manifest)]
            wrong = [name for name in names if not _alike(found.get(name), self.manifest.get(name))]
            key = _sha256(known)[:16]
        if wrong:
            told = ", ".join(f"{name}={found.get(name)!r} (now {self.manifest.get(name)!r})" for name in wrong)
            raise ValueError(
                f"{str(self.path)!r} holds another generation: {told}; go on with the same arguments, or give another "
                "folder"
            )
        self.key = key

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Alone among the workers, where the file system can lock, and whether it can: what is shared is then written
        by one of them; else by several, each the same bytes, and whole."""
        with (self.path / LOCK).open("wb") as file:
            locked = False
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                # Released when the process ends, however it ends.
                fcntl.flock(file, fcntl.LOCK_EX)
                locked = True
            yield locked

    @property
    def shards(self) -> int:
        return -(-self.n // self.size)

    def range(self, shard: int) -> range:
        """The numbers of a shard's samples."""
        return range(shard * self.size, min((shard + 1) * self.size, self.n))

    def finished(self) -> set[int]:
        """The shards that are done, by any worker."""
        if not (self.path / MARKS).is_dir():
            return set()
        matches = (_MARK.fullmatch(entry.name) for entry in os.scandir(self.path / MARKS))
        return {int(match[1]) for match in matches if match}

    def save(self, shard: int, files: Files) -> None:
        """Write a shard's files, each whole, and then its mark."""
        self.begin()
        sums, left = {}, dict[Path, list[Path]]()
        for name, content in files:
            (self.path / name).parent.mkdir(exist_ok=True)
            self._write(name, content, left)
            sums[name] = hashlib.sha256(content).hexdigest()
        numbers = self.range(shard)
        mark = {"of": self.key, "first": numbers.start, "stop": numbers.stop, "files": sums}
        self._write(f"{MARKS}/{shard:05d}.json", _json(mark), left)

    def _write(self, name: str, content: bytes, left: dict[Path, list[Path]]) -> None:
        """A file that one worker writes. `left`: of each directory, what killed processes have left there, looked for
        once a shard, since a directory may hold every sample.

        Raises:
            RuntimeError: another process writes it at this moment.
        """
        parent = (self.path / name).parent
        if parent not in left:
            left[parent] = list(parent.glob(".*.partial"))
        _clean(self.path / name, left[parent])
        try:
            write_whole(self.path / name, content)
        except FileNotFoundError:
            raise RuntimeError(
                f"another process writes {str(self.path / name)!r} too: two of them are the same worker; give each its "
                "own number, --worker 0/8, and start one that went on after a stop only once"
            ) from None

    def complete(self) -> bool:
        """Whether every shard is done; the files that join them are then there.

        Raises:
            ValueError: a shard of another generation.
        """
        self.begin()
        if len(self.finished()) < self.shards:
            return False
        with self._alone() as locked:
            if (self.path / INDEX).exists():
                return True
            marks = [_read(self.path / MARKS / f"{k:05d}.json") for k in range(self.shards)]
            for k, mark in enumerate(marks):
                if mark.get("of") != self.key:
                    raise ValueError(
                        f"{self.path / MARKS / f'{k:05d}.json'} is of another generation: delete it, and run again"
                    )
            files = {
                name: total
                for k, mark in enumerate(marks)
                for name, total in _files(self.path / MARKS / f"{k:05d}.json", mark).items()
            }
            whole = FORMATS[self.manifest["samples"]].whole
            if locked:
                left = list(self.path.glob(".*.partial"))
                for name in filter(None, (whole, INDEX, MANIFEST)):
                    _clean(self.path / name, left)
            if whole:
                parts = [self.path / name for name in files]
                write_whole(self.path / whole, functools.partial(whole_npz, parts=parts, n=self.n))
                files[whole] = _sha256(self.path / whole)
            write_whole(self.path / INDEX, _json({"format": FORMAT, "n": self.n, "files": files}))
        return True


class Checked(NamedTuple):
    """What a folder holds.

    Attributes:
        n: samples that should be there.
        found: samples that are there, whole.
        problems: what is missing or damaged, a line each; empty where all is well.
    """

    n: int
    found: int
    problems: Sequence[str]


def verify(path: str | Path) -> Checked:
    """Check every file of a generation's folder against its SHA-256, and that every sample is there once.

    Raises:
        ValueError: the folder is no generation's.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{str(path)!r} has no {MANIFEST}: give the folder that fastdiff.generate wrote")
    manifest = _read(folder / MANIFEST)
    try:
        n, size, kind = int(manifest["n"]), int(manifest["shard"]), FORMATS[manifest["samples"]]
        if n < 1 or size < 1:
            raise ValueError(f"n={n}, shard={size}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged ({error}): expected n, shard and samples") from None
    problems: list[str] = []
    found, marked, key, sums = 0, 0, _sha256(folder / MANIFEST)[:16], dict[str, str]()
    for shard in range(-(-n // size)):
        first, stop = shard * size, min((shard + 1) * size, n)
        mark = folder / MARKS / f"{shard:05d}.json"
        if not mark.is_file():
            problems.append(f"samples {first} to {stop - 1} are missing: run the generation again, it goes on")
            continue
        try:
            told = _read(mark)
            files = _files(mark, told)
        except ValueError as error:
            problems.append(f"samples {first} to {stop - 1}: {error}")
            continue
        marked += 1
        wrong = _wrong(folder, files)
        if told.get("of") != key:
            wrong.append(f"{mark.name} is of another generation")
        if (told.get("first"), told.get("stop")) != (first, stop):
            wrong.append(f"{mark.name} says samples {told.get('first')} to {told.get('stop')}")
        problems += [f"samples {first} to {stop - 1}: {line}; delete {mark} and run again" for line in wrong]
        sums.update(files)
        found += 0 if wrong else stop - first
    if not problems:
        if not (folder / INDEX).is_file():
            problems.append(f"{INDEX} is missing: run the generation again, it goes on")
        else:
            problems += [f"{line}; delete {INDEX} and run again" for line in _unjoined(folder, kind.whole, sums)]
    if marked < -(-n // size):
        # Whose file is whose is not known yet.
        return Checked(n, found, problems)
    # A reader of the folder would take a file too many for a sample.
    places = {(folder / name).parent for name in sums}
    beside = {str(file.relative_to(folder)) for place in places if place.is_dir() for file in place.iterdir()}
    strange = (
        beside - set(sums) - {MANIFEST, INDEX, LOCK, kind.whole, MARKS, *(str(p.relative_to(folder)) for p in places)}
    )
    problems += [f"{name} is no file of this generation" for name in sorted(strange)]
    return Checked(n, found, problems)


def _unjoined(folder: Path, whole: str, sums: Mapping[str, str]) -> list[str]:
    """What is wrong with the files that join all shards."""
    try:
        told = _files(folder / INDEX, _read(folder / INDEX))
    except ValueError:
        return [f"{INDEX} is damaged"]
    wrong = _wrong(folder, {whole: told.get(whole, "")} if whole else {})
    if {name: total for name, total in told.items() if name != whole} != sums:
        wrong.append(f"{INDEX} lists other files than the shards")
    return wrong


def _clean(target: Path, left: Sequence[Path]) -> None:
    """Remove what a killed process left of writing this file. Nobody else writes it: a shard has one worker, and what
    is shared is written alone."""
    for partial in left:
        if partial.name.startswith(f".{target.name[:50]}."):
            partial.unlink(missing_ok=True)


def _alike(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of real numbers, which another device may compute otherwise."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0.01, abs_tol=1e-3) or (one != one and other != other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(value, other[name]) for name, value in one.items())
    return bool(one == other)


def _wrong(folder: Path, files: Mapping[str, str]) -> list[str]:
    return [
        f"{name} is {'missing' if not (folder / name).is_file() else 'damaged'}"
        for name, total in files.items()
        if not (folder / name).is_file() or _sha256(folder / name) != total
    ]


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _files(path: Path, told: Mapping[str, Any]) -> dict[str, str]:
    """The files that a mark or the index lists, all of them below the folder.

    Raises:
        ValueError: anything else.
    """
    files = told.get("files")
    if not isinstance(files, dict) or not files or not all(_below(name, total) for name, total in files.items()):
        raise ValueError(
            f"{path} is damaged: expected files with their SHA-256; delete it and run the generation again"
        )
    return files


def _below(name: str, total: Any) -> bool:
    place = PurePosixPath(name)
    return isinstance(total, str) and not place.is_absolute() and ".." not in place.parts


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run the generation again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object; delete it and run the generation again")
    return value
