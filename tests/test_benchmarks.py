"""The benchmarks measure what they say: results, bytes counted by hand, tables of known figures. No times here."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdiff
from benchmarks import eager, fused, gpu, gpu_loops, networks, report, timing
from fastdiff import ops
from fastdiff.ops import reference

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import gpu as make_gpu  # noqa: E402
import readme_table  # noqa: E402

SHAPE = (2, 3, 8, 8)


def backends() -> list[Any]:
    found = [reference]
    if ops.load("cpu").available()[0]:
        found.append(ops.load("cpu"))
    return found


@pytest.mark.parametrize("backend", backends(), ids=lambda b: b.NAME)
@pytest.mark.parametrize("method", eager.METHODS)
def test_formulas_equal_the_fused_stage(method: str, backend: Any) -> None:
    case = fused.make_case(method, SHAPE, torch.float64, state=torch.float64)
    assert fused.agreement(case, backend) < 1e-10


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", eager.METHODS)
def test_formulas_equal_the_fused_stage_with_casts(method: str, network: torch.dtype) -> None:
    # At most 9 terms, each of float32's unit roundoff, and coefficients up to about 10 times the result's.
    case = fused.make_case(method, SHAPE, network)
    assert fused.agreement(case, reference) < 100 * 2.0**-24


def test_agreement_sees_a_wrong_stage() -> None:
    case = fused.make_case("dpm3", SHAPE, torch.float64, state=torch.float64)
    case.coeffs.table[case.k + 1] *= 1.001
    assert fused.agreement(case, reference) > 1e-5


def test_methods_cover_every_solver_but_the_first_order_of_plus() -> None:
    # dpmpp1 is ddim; methods added later are measured once their formulas stand in benchmarks/eager.py.
    assert set(eager.METHODS) <= set(fastdiff.methods())


@pytest.mark.parametrize(
    ("method", "network", "bytes_an_element"),
    [
        ("dpm3", torch.float32, 5 * 4),  # reads x, out, h1, h2; writes u'
        ("dpm3", torch.bfloat16, 4 + 3 * 2 + 4 + 2),  # x; out, h1, h2; u'; the network's input
        ("ddim", torch.float32, 3 * 4),  # x, out; u'
        ("ddpm", torch.float32, 3 * 4),  # the noise moves nothing
        ("dpmpp2m", torch.float32, 5 * 4),  # x, out, h1; u', m
        ("dpmpp2m", torch.bfloat16, 4 + 2 + 4 + 4 + 4 + 2),  # x, out, h1; u', m; the network's input
        ("heun", torch.float32, 4 * 4),  # x, out, h1; u'
        ("unipc", torch.float32, 9 * 4),  # x, u, out, h1, h2, h3 (one more history value than u'); u', x', m
    ],
)
def test_bytes_counted_by_hand(method: str, network: torch.dtype, bytes_an_element: int) -> None:
    case = fused.make_case(method, SHAPE, network)
    assert case.bytes == bytes_an_element * 2 * 3 * 8 * 8


def test_noiseless_structure_reads_no_noise() -> None:
    case = fused.make_case("ddpm", SHAPE, torch.float32)
    assert case.spec.noises == 1
    assert case.noiseless().noises == 0
    assert case.noiseless().u_mask == case.spec.u_mask & 0x3FF


def test_interleaved_takes_turns_and_resets() -> None:
    log: list[str] = []
    works: dict[str, timing.Work] = {"a": lambda: log.append("a"), "b": lambda: log.append("b")}
    clock = iter(range(10**6))

    def measure(work: timing.Work, calls: int) -> float:
        work()
        return float(next(clock))

    found = timing.interleaved(works, 3, lambda: log.append("|"), measure)
    assert "".join(log) == "|aa|bb" + "|a|b" * 3
    # The clock ticks 0, 1 for the warm-ups, then 2 … 7 in turns.
    assert found.median == {"a": 4.0, "b": 5.0}
    assert found.least == {"a": 2.0, "b": 3.0}


def test_restore_undoes_updates_in_place() -> None:
    case = fused.make_case("dpm3", SHAPE, torch.float32)
    x = case.sets[0].x
    assert x is not None
    kept, reset = x.clone(), fused.restore(case)
    fused.ours(case, reference)()
    assert not torch.equal(x, kept)
    reset()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("nbytes", [1 << 10, (32 << 20) + 192])
def test_copies_copy_everything(nbytes: int) -> None:
    works = fused.copies(nbytes)
    assert set(works) == ({"copy_"} if nbytes < 8 << 20 else {"copy_", "memcpy"})
    for work in works.values():
        source, target = work.buffers  # type: ignore[attr-defined]
        target.zero_()
        work()
        assert len(source) == nbytes // 2
        assert torch.equal(source, target)


@pytest.mark.parametrize(
    "model",
    [
        networks.DiT(8, 4, 2, 32, 2, 2),
        networks.ActionTransformer(5, 4, 32, 2, 4),
        networks.awake(networks.UNet(8, 1, 32, (1,), 1, ())),
    ],
)
def test_networks_and_loops_of_the_gpu_part_on_tiny_sizes(model: torch.nn.Module) -> None:
    model.eval().requires_grad_(False).double()
    x = torch.randn(2, *model.sample_shape, dtype=torch.float64)  # type: ignore[misc]
    method, schedule, prediction = gpu_loops.settings(model)
    got = fastdiff.Sampler(
        method, gpu_loops.STEPS, schedule=schedule, prediction=prediction, dtype=torch.float64, backend="reference"
    )(model, x)
    want = gpu_loops.written_out(model, x, torch.float64)()
    assert isinstance(want, torch.Tensor)
    assert model(x, torch.full((2,), 0.5, dtype=x.dtype)).abs().max() > 1e-3
    # The written-out loops make the times in float32: 6e-8 relative of the time, seen by the network's sinusoids.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3 * want.abs().max().item())


def test_sizes_of_the_networks() -> None:
    with torch.device("meta"):
        assert 125e6 < networks.parameters(networks.DiT()) < 135e6
        assert 36e6 < networks.parameters(networks.cifar_unet()) < 39e6


CANNED: dict[str, Any] = {
    "format": 1,
    "device": "cpu",
    "quick": False,
    "machine": {
        "cpu": "Example", "threads": 2, "simd": "SIMD avx2", "torch": "2.9", "fastdiff": "0.1", "date": "2026-01-02",
    },
    "stages": [
        {
            "method": method, "size": "16x3x256x256", "network": "float32", "state": "float32", "bytes": 60_000_000,
            "seconds": {"eager": 0.06, "compile": 0.006, "fastdiff": own, "copy": 0.0036, **extra},
        }
        for method, own, extra in (("dpm3", 0.004, {}), ("ddpm", 0.0075, {"fastdiff without noise": 0.003}))
    ],
    "noise": [
        {"size": "16x3x256x256", "ratio": 2.5, "normals_per_second": {"torch": 1e8, "fastdiff": 2.5e8}, "seconds": {}}
    ],
    "loops": [
        {"network": "digits", "batch": 4, "method": "dpm3", "steps": 10, "seconds": {"fastdiff": 0.02, "eager": 0.03}}
    ],
    "overhead": [
        {"name": "fastdiff dpm3", "step_us": 8.0, "setup_us": 50.0, "per_step_of_10_with_setup_us": 13.0}
    ],
    "by_hand": {"microseconds": {"fastdiff": 150.0, "by hand, making its times": 120.0, "network alone": 60.0}},
}  # fmt: skip


def test_targets_judge_both_ways() -> None:
    found = {t["name"]: (round(t["value"], 3), t["ok"]) for t in report.targets(CANNED, fused.HEADLINE)}
    assert found == {
        "dpm3's step against eager": (15.0, True),
        "dpm3's step against torch.compile": (1.5, True),
        "dpm3's step, share of the copy's bandwidth": (90.0, True),
        "ddpm's step with noise against eager": (8.0, False),
        "ddpm's step against the same without noise": (2.5, False),
        "normals against torch.randn": (2.5, False),
        "a step of dpm3 beyond the network, set-up included": (13.0, True),
        "10 Euler steps at (1, 16, 7) against a loop by hand": (1.25, False),
    }


def test_report_prints_the_figures(tmp_path: Path) -> None:
    data = copy.deepcopy(CANNED)
    data["targets"] = report.targets(data, fused.HEADLINE)
    data["machine"]["load"] = float("nan")
    report.save(data, tmp_path / "deeper" / "cpu.json")
    again = report.load(tmp_path / "deeper" / "cpu.json")
    assert again["machine"]["load"] is None
    text = report.text(again)
    line = next(line for line in text.splitlines() if line.startswith("dpm3  "))
    assert line.split() == "dpm3 16x3x256x256 float32 60 ms 6 ms 4 ms 15.00x 1.50x 15.0 90%".split()
    assert "FAIL" in text and "pass" in text


def test_report_refuses_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99, expected 1"):
        report.load(tmp_path / "a.json")


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import pictures

    pictures.stages(CANNED, fused.HEADLINE, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_readme_table(tmp_path: Path) -> None:
    readme, data = tmp_path / "README.md", tmp_path / "cpu.json"
    data.write_text(json.dumps(CANNED))
    readme.write_text(f"before\n{readme_table.START}\nold\n{readme_table.END}\nafter\n")
    arguments = [str(data), "--readme", str(readme)]
    assert readme_table.main([*arguments, "--check"]) == 1
    assert readme_table.main(arguments) == 0
    assert readme_table.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| `dpm3` | 60 ms | 6 ms | 4 ms | 15.0× | 1.5× | 15.0 GB/s | 90% |" in text
    assert readme_table.NO_GPU in text
    readme.write_text("no markers")
    assert readme_table.main(arguments) == 2


def test_gpu_parts_go_on_after_a_failure_and_stop_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    parts = gpu.Parts(100.0)
    assert parts.run("good", lambda: 3) == 3
    assert parts.run("bad", lambda: 1 / 0) is None
    assert parts.failed == ["bad: ZeroDivisionError: division by zero"]
    assert parts.time_for("short", 50.0) and not parts.time_for("long", 200.0)
    parts.end = 0.0
    assert parts.run("late", lambda: 4) is None
    assert parts.left_out == ["long", "late"]


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(data: dict[str, Any], parts: gpu.Parts, backends: list[str], quick: bool) -> None:
        data["noise"].append({"size": "a"})
        parts.after()
        parts.left_out.append("late")
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "_measure", measured)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(ops.load("triton"), "available", lambda: (False, "not here"))
    monkeypatch.setattr(ops.load("cuda"), "available", lambda: (False, "not here"))
    saved: list[dict[str, Any]] = []
    data = gpu.measure(True, 7.0, lambda data: saved.append(copy.deepcopy(data)))
    assert [d["noise"] for d in saved] == [[{"size": "a"}]] * 2 and saved[-1] == data
    assert data["failed"] == ["interrupted: what follows was not measured"]
    assert data["notes"][0] == "cuda did not run: not here" and data["notes"][-1] == "left out after 7 s: late"
    assert "left out after 7 s: late" in report.text({**data, "noise": [], "device": "cpu"})


@pytest.mark.parametrize(("build", "tests"), [(0, 0), (0, 3), (2, 0)])
def test_make_gpu_runs_the_benchmarks_whatever_the_rest_gave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: int, tests: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def python(code: str, *arguments: str) -> list[str]:
        return [sys.executable, "-c", code, *arguments]

    bench = make_gpu.bench_command
    monkeypatch.setattr(make_gpu, "check", lambda: None)
    monkeypatch.setattr(
        make_gpu, "build_command", lambda: python(f"import os; exit({build} if 'FASTDIFF_CUDA' in os.environ else 0)")
    )
    monkeypatch.setattr(make_gpu, "test_command", lambda cores: python(f"raise SystemExit({tests})"))
    shown = "import sys; print('measured', *sys.argv[1:])"
    monkeypatch.setattr(make_gpu, "bench_command", lambda out, seconds: python(shown, *bench(out, seconds)[3:]))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    monkeypatch.delenv("FASTDIFF_CUDA", raising=False)
    assert make_gpu.main() == (1 if build or tests else 0)
    out = capfd.readouterr().out
    assert f"measured --gpu --out {tmp_path} --seconds 240\n" in out
    assert ("build of what can be built: passed" in out) == bool(build)


def test_the_parts_of_make_gpu_fit_in_their_time() -> None:
    both = make_gpu.TEST_SECONDS + make_gpu.WRITING + make_gpu.BENCH_SECONDS
    assert both <= 8 * 60 and both + 60 <= make_gpu.SECONDS < 600


def test_make_gpu_stops_what_takes_too_long(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Asked first, so that it can write what it has; then made to."""
    monkeypatch.setattr(make_gpu, "WRITING", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    assert not make_gpu.call("tests", [sys.executable, "-c", deaf], 1.0)
    assert "tests: FAILED" in capfd.readouterr().out
    polite = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('written', flush=True)"
    assert not make_gpu.call("tests", [sys.executable, "-c", polite], 1.0)
    assert "written" in capfd.readouterr().out


def test_make_gpu_leaves_nothing_running_after_ctrl_c(tmp_path: Path) -> None:
    """What it runs is in a session of its own, which Ctrl-C does not reach."""
    begun, alive = tmp_path / "begun", tmp_path / "alive"
    touch = "pathlib.Path({!r}).touch()"
    child = "\n".join(["import pathlib, time", touch.format(str(begun)), "time.sleep(2)", touch.format(str(alive))])
    command = [sys.executable, "-c", child]
    code = f"import sys; sys.path.insert(0, 'tools'); import gpu; gpu.call('tests', {command!r}, 60.0)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) != 0 and begun.exists()
    time.sleep(2.5)
    assert not alive.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_benchmarks_say_that_there_is_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--gpu"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr and "Traceback" not in done.stderr
