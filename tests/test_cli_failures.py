"""The command line where things go wrong: one line and an exit status, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fastdiff
from fastdiff.cli import MOST_STEPS, main

CALL = [sys.executable, "-c", "import sys; from fastdiff.cli import main; sys.exit(main())"]
unix = pytest.mark.skipif(sys.platform == "win32", reason="signals and devices of Unix")


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CALL, *arguments], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps", "xpu", "nonsense", "meta"])
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    # A name that no device has is a bad argument.
    status = 2 if device == "nonsense" else 1
    assert main(["demo", "--device", device, "--out", str(tmp_path / "out")]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fastdiff: ") and device.split(":")[0] in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", "1" + "0" * 30),
        ("--steps", "9" * 5000),
        ("--steps", str(MOST_STEPS + 1)),
        ("--steps", "-1"),
        ("--t-start", "nan"),
        ("--t-start", "1e999"),
        ("--t-end", "-1e999"),
        ("--spacing", "999 nan -1"),
        ("--spacing", "1e400 3 -1"),
        ("-o", "eta=1e999"),
        ("-o", "eta=" + "9" * 400),
        ("-o", "eta=nan"),
    ],
    ids=lambda a: "-".join(a)[:24],
)
def test_absurd_numbers(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    try:
        status = main(["plan", "ddim", *arguments])
    except SystemExit as leave:  # argparse
        status = leave.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and "fastdiff" in err and len(err) < 2000


@unix
def test_a_full_disk(tmp_path: Path) -> None:
    for arguments in (("methods",), ("plan", "ddim"), ("doctor",)):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*CALL, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    done = run("plan", "ddim", "--json", "/dev/full")
    assert done.returncode == 1 and "No space left on device: '/dev/full'" in done.stderr
    assert "Traceback" not in done.stderr and Path("/dev/full").is_char_device()


@unix
def test_a_reader_that_has_seen_enough() -> None:
    done = subprocess.run(
        f"{sys.executable} -c 'from fastdiff.cli import main; raise SystemExit(main([\"methods\"]))' | true; "
        "echo ${PIPESTATUS[0]}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == "" and done.stdout.strip() in ("0", "1")


def test_a_folder_in_the_place_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for option in ("--json", "--plot"):
        assert main(["plan", "ddim", option, str(tmp_path)]) == 1
        assert str(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").write_text("")
    assert main(["demo", "--device", "cpu", "--out", str(tmp_path / "taken")]) == 1
    assert "taken" in capsys.readouterr().err


def test_a_plot_lies_where_it_is_said_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a"
    assert main(["plan", "ddim", "--plot", str(path)]) == 0
    assert f"drew {path}" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_bytes().startswith(b"\x89PNG")
    assert main(["plan", "ddim", "--plot", str(tmp_path / "a.xyz")]) == 2
    assert "xyz" in capsys.readouterr().err and not (tmp_path / "a.xyz").exists()


@unix
@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.3, 1.0, 2.0])
def test_an_interrupt(tmp_path: Path, after: float) -> None:
    """At moments of the demo, counted from when the command has begun."""
    code = "import sys; from fastdiff.cli import main; print('begun', flush=True); sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "demo", "--out", str(tmp_path), "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (130, 0) and "Traceback" not in err, err
    # Pictures are whole or not there.
    for path in tmp_path.iterdir():
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path


def test_an_interrupt_while_the_arguments_are_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdiff.cli._parser", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "fastdiff: interrupted\n"


def test_no_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fastdiff.solvers.plan", exhausted)
    assert main(["plan", "ddim"]) == 1
    assert capsys.readouterr().err == "fastdiff: MemoryError\n"
    assert fastdiff.__version__


@unix
@pytest.mark.parametrize("after", [1.0, 1.5, 2.5])
def test_an_interrupt_while_the_package_is_loaded(after: float) -> None:
    """Also before the command line can catch it; a second in, Python itself has started on a busy machine too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastdiff", "demo", "--out", os.devnull + "/no"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "Traceback" not in err and err.startswith("fastdiff: ")


def test_only_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from fastdiff.interrupts import is_command, one_line

    one_line(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "fastdiff: interrupted\n"
    one_line(ValueError, ValueError("x"), None)
    assert "ValueError: x" in capsys.readouterr().err
    assert is_command("-m") and is_command("/somewhere/fastdiff") and not is_command("script.py")
