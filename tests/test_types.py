"""What a type checker says of calls, and that the names it knows are those of the methods."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A comment is what mypy has to say there: an error code, or the type that is revealed.
CALLS = """
from typing import Any
import torch
import fastdiff
from fastdiff.guidance import CFGPlusPlus, Interval, Rescale

def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x

x = torch.zeros(2, 3)
reveal_type(fastdiff.sample(model, x, steps=10, method="dpm3"))  # Tensor
reveal_type(fastdiff.sample(model, x, return_trajectory=False))  # Tensor
reveal_type(fastdiff.sample(model, x, return_trajectory=True))  # tuple[Tensor, Trajectory]
reveal_type(fastdiff.sample(model, x, method="ode", return_info=True))  # tuple[Tensor, Info]
both = fastdiff.sample(model, x, method="ode", return_info=True, return_trajectory=True)
reveal_type(both)  # tuple[Tensor, Trajectory, Info]
sampler = fastdiff.Sampler("dpmpp2m", 10, spacing="karras", rho=5.0)
reveal_type(sampler(model, x))  # Tensor
reveal_type(sampler(model, x, return_trajectory=True, seed=[1, 2]))  # tuple[Tensor, Trajectory]
reveal_type(sampler.invert(model, x))  # Tensor
reveal_type(sampler.invert(model, x, return_trajectory=True))  # tuple[Tensor, Trajectory]
reveal_type(sampler.begin(x, guidance=2.0).x)  # Tensor
reveal_type(fastdiff.plan("unipc", 6))  # Plan
fastdiff.sample(model, x, guidance=7.5, cond={}, uncond={})
fastdiff.sample(model, x, guidance=lambda t: 1.0 + t, cond={}, uncond={})
fastdiff.sample(model, x, guidance=Interval(2.0, 0.28, 2.9), cond={}, uncond={})
fastdiff.sample(model, x, guidance=Rescale(7.5), cond={}, uncond={})
fastdiff.sample(model, x, guidance=CFGPlusPlus(0.6), cond={}, uncond={})
fastdiff.sample(model, x, method="dpmpp_2m", solver_type="taylor", lower_order_final=False, clip=(-1, 1))
fastdiff.sample(model, x, clip=fastdiff.Dynamic(0.99), schedule=fastdiff.schedules.flow(3.0), prediction="flow")

fastdiff.sample(model, x, stpes=3)  # call-overload
fastdiff.sample(model, x, method="nope")  # call-overload
fastdiff.sample(model, x, prediction="epsilon")  # call-overload
fastdiff.sample(model, x, graph="sometimes")  # call-overload
fastdiff.sample(model, x, backend="tpu")  # call-overload
fastdiff.Sampler("nope")  # arg-type
fastdiff.Sampler("dpm3", stpes=3)  # call-arg
fastdiff.Sampler("dpm3", seed=3)  # call-arg
sampler(model, x, steps=3)  # call-overload
sampler(model, x, return_trajectory=1)  # call-overload
sampler.begin(x, progress=True)  # call-arg
sampler.invert(model, x, seed=3)  # call-overload
"""
# mypy shows a NamedTuple as its fields and its name.
NAMED = re.compile(r"tuple\[(?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*, fallback=(\w+)\]")


@pytest.mark.slow
def test_a_type_checker_sees_wrong_calls_and_precise_results(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    path = tmp_path / "calls.py"
    path.write_text(CALLS, encoding="utf-8")
    call = [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", "--hide-error-context", str(path)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    said: dict[int, str] = {}
    for number, kind, message in re.findall(r"calls\.py:(\d+): (error|note): (.*)", done.stdout):
        revealed = re.search(r'Revealed type is "(.*)"', message)
        code = re.search(r"\[([a-z-]+)\]$", message)
        if revealed:
            said[int(number)] = NAMED.sub(r"\1", re.sub(r"(\w+\.)+(?=\w)", "", revealed[1]))
        elif kind == "error" and code:
            said[int(number)] = code[1]
    expected = {number: line.split("  # ")[1] for number, line in enumerate(CALLS.splitlines(), 1) if "  # " in line}
    assert said == expected, [line for line in done.stdout.splitlines() if ": note: " not in line]


def test_the_names_for_type_checkers_are_those_of_the_methods() -> None:
    spec = importlib.util.spec_from_file_location("method_names_tool", ROOT / "tools" / "method_names.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.content() == (ROOT / "fastdiff" / "solvers" / "method_names.py").read_text(encoding="utf-8")


def test_every_name_and_alias_is_a_type_and_no_other() -> None:
    from typing import get_args

    from fastdiff.solvers import GRID_OPTIONS, GUIDED, METHODS
    from fastdiff.solvers.method_names import MethodName, MethodOptions

    every = (*METHODS.values(), *GUIDED.values())
    names = {name for m in every for name in (m.name, *m.aliases)}
    assert set(get_args(MethodName)) == names
    options = {name for m in every for name in m.options}
    assert set(MethodOptions.__annotations__) == options | set(GRID_OPTIONS)
