"""A thousand random calls: none crashes, hangs, changes its arguments, gives NaN, or fails with an obscure error."""

from __future__ import annotations

import sys

import pytest

from . import run


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are those of POSIX")
def test_random_calls(capsys: pytest.CaptureFixture[str]) -> None:
    status = run.main(["--cases", "1000", "--seed", "2"])
    assert status == 0, capsys.readouterr().out


def test_an_error_from_within_is_seen() -> None:
    try:
        int("x" * 3)
    except ValueError as error:
        assert "not raised by fastdiff" in (run.obscure(error) or "")
    try:
        {}["a"]
    except KeyError as error:
        assert "KeyError" in (run.obscure(error) or "")


def test_cases_are_functions_of_their_numbers() -> None:
    from .cases import case

    assert [str(case(5, n)) for n in range(50)] == [str(case(5, n)) for n in range(50)]
    assert len({str(case(5, n)) for n in range(50)}) > 40
