"""The command line: what each command prints and writes, its exit status, bad arguments. `demo` is tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastdiff
from fastdiff.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as leave:  # argparse
        assert isinstance(leave.code, int)
        status = leave.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def test_methods_lists_every_method_with_its_order(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "methods")
    assert status == 0
    first = {tuple(line.split()[:2]) for line in out.splitlines() if line and not line.startswith(" ")}
    assert {(name, str(m["order"])) for name, m in fastdiff.methods().items()} <= first


def test_methods_for_a_need(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name for name, m in fastdiff.methods().items() if "flow" in m["good_for"]}
    assert "(frames=): every method that is not adaptive" in run(capsys, "methods", "--for", "video")[1]
    status, out, _ = run(capsys, "methods", "--for", "flow")
    listed = {line.split()[0] for line in out.splitlines()[1:] if line and not line.startswith((" ", "fastdiff"))}
    assert status == 0 and listed == wanted and {"rk4", "dpmpp2m", "unipc"} <= wanted and "dpm3" not in wanted
    assert "good for: flow matching" in run(capsys, "methods", "midpoint")[1]
    monkeypatch.setattr("fastdiff.solvers.METHODS", {})
    assert run(capsys, "methods", "--for", "video")[1].startswith("no method yet is good for video")


@pytest.mark.parametrize("name", fastdiff.methods())
def test_a_method_shows_its_options_within_the_terminal(capsys: pytest.CaptureFixture[str], name: str) -> None:
    status, out, _ = run(capsys, "methods", name)
    assert status == 0
    listed = {line.split("=")[0].strip() for line in out.splitlines() if line.startswith("  ") and "=" in line}
    assert set(fastdiff.methods()[name]["options"]) <= listed
    assert max(map(len, out.splitlines())) <= 100


def test_a_method_by_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "methods", "UniPCMultistepScheduler") == run(capsys, "methods", "unipc")


def test_plan_prints_the_table_as_it_is_where_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "plan", "ddim", "--steps", "3", "--option", "eta=0.5")
    assert (status, out) == (0, f"{fastdiff.plan('ddim', 3, eta=0.5)}\n")


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_a_wide_plan_is_folded_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = run(capsys, "plan", "unipc", "--steps", "6")
    assert status == 0
    assert max(map(len, out.splitlines())) <= columns
    whole = str(fastdiff.plan("unipc", 6))
    assert max(map(len, whole.splitlines())) > 100
    assert sorted(out.split()) == sorted([*whole.split(), *["next", "u", "next", "x"] * 5])


def test_plan_takes_every_argument(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    status, out, _ = run(
        capsys, "plan", "dpmpp2m", "--steps", "4", "--schedule", "sd", "--spacing", "karras", "--t-start", "900",
        "--t-end", "10", "-o", "rho=5", "-o", "lower_order_final=false", "--json", str(path), "--plot", str(picture),
    )  # fmt: skip
    assert status == 0
    assert f"saved {path}" in out and f"drew {picture}" in out
    want = fastdiff.plan("dpmpp2m", 4, "sd", "karras", 900.0, 10.0, rho=5, lower_order_final=False)
    assert fastdiff.Plan.load(path) == want
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plan_takes_times(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "plan", "ddim", "--spacing", "999 500.5 -1")
    assert (status, out) == (0, f"{fastdiff.plan('ddim', spacing=[999.0, 500.5, -1.0])}\n")


def test_doctor_says_what_runs_and_why_the_rest_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    text = " ".join(out.split())
    assert f"fastdiff {fastdiff.__version__}" in text
    for name, (available, reason) in fastdiff.backends().items():
        assert f"{name} {'yes' if available else 'no'} {' '.join(reason.split())}" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[:2] == (0, f"fastdiff {fastdiff.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: command"),
        (("sample",), "invalid choice: 'sample'"),
        (("plan", "unipk"), "did you mean 'unipc'?"),
        (("plan", "dpm3", "--steps", "many"), "invalid int value: 'many'"),
        (("plan", "dpm3", "--steps", "0"), "steps got 0; expected an integer >= 1"),
        (("plan", "dpm3", "--schedule", "ddpn"), "did you mean 'ddpm'?"),
        (("plan", "dpm3", "--spacing", "karas"), "did you mean 'karras'?"),
        (("plan", "dpm3", "--option", "eta"), "expected NAME=VALUE"),
        (("plan", "dpm3", "--option", "eta=0.5"), "unknown option of method 'dpm3': 'eta'"),
        (("plan", "ddim", "--option", "eta=high"), "eta='high'"),
        (("plan", "ode"), "'ode' is adaptive and has no plan"),
        (
            ("methods", "lms", "--for", "flow"),
            "a method's name, 'lms', and --for flow: fastdiff methods --for flow lists",
        ),
    ],
)
def test_bad_arguments_give_status_2_and_no_output(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err and "Traceback" not in err


def test_a_file_that_cannot_be_written_gives_status_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = run(capsys, "plan", "ddim", "--json", str(tmp_path / "missing" / "plan.json"))
    assert status == 1
    assert "No such file or directory" in err and "Traceback" not in err
