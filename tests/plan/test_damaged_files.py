"""Plan files that are damaged: one ValueError with the file and the reason, whatever was changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastdiff
from fastdiff import Plan

STRANGE: list[Any] = [
    None,
    True,
    -1,
    1.5,
    10**400,
    "",
    "x",
    "nan",
    [],
    [[]],
    [None],
    {},
    {"a": 1},
    float("inf"),
    float("nan"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every entry, to a depth of four, with the first two of each list."""
    if len(path) == 4:
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


def loaded(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        Plan.load(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("method", ["dpm3", "analytic_ddpm", "pc", "ddpm"])
def test_whatever_stands_in_the_place_of_an_entry(tmp_path: Path, method: str) -> None:
    text = fastdiff.plan(method, 2, **({"gamma": "upper"} if method == "analytic_ddpm" else {})).to_json()
    assert len(list(places(json.loads(text)))) > 60
    for place in places(json.loads(text)):
        for strange in [*STRANGE, KeyError]:
            data = json.loads(text)
            inner = data
            for key in place[:-1]:
                inner = inner[key]
            if strange is KeyError:
                del inner[place[-1]]
            else:
                inner[place[-1]] = strange
            loaded(tmp_path / "plan.json", json.dumps(data).encode())


def test_bytes_that_are_no_text_and_nests_without_end(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe", b"[" * 100_000, b'{"format": ' * 50_000, b"null", b"3", b'"x"', b"[]", b"{}"):
        (tmp_path / "plan.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"plan\.json: "):
            Plan.load(tmp_path / "plan.json")


def test_every_cut_of_a_plan_is_an_error(tmp_path: Path) -> None:
    whole = fastdiff.plan("dpmpp2m", 2).to_json().encode()
    for length in range(0, len(whole), 61):
        (tmp_path / "plan.json").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"plan\.json: not a fastdiff plan"):
            Plan.load(tmp_path / "plan.json")
