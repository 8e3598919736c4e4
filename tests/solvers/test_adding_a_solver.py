"""docs/adding-a-solver.md, executed exactly as it stands, in processes of their own: its method is like any other."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pages import ROOT, blocks, fresh, told

PAGE = ROOT / "docs" / "adding-a-solver.md"
MODEL = """
import torch
def model(x, t):
    return 0.5 * torch.tanh(x)
"""
ASKED = """
import contextlib, io, json
from fastdiff.cli import main
from helpers.methods import TABLES
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    main(["methods"])
    main(["plan", "ab2", "--steps", "3"])
start = torch.linspace(-2.0, 2.0, 24, dtype=torch.float64).reshape(2, 1, 3, 4)
def eps(x, t):
    return x * torch.exp(-t / 500.0).reshape(-1, 1, 1, 1)
how = dict(schedule="vp_linear", spacing="time_uniform", t_end=0.1, dtype=torch.float64)
own = fastdiff.plan("ab2", 6, "vp_linear", "time_uniform", t_end=0.1)
runs = {
    "sample": fastdiff.sample(eps, start, method="ab2", steps=6, **how),
    "method": fastdiff.sample(eps, start, method=AB2, steps=6, **how),
    "Sampler": fastdiff.Sampler("ab2", 6, **how)(eps, start),
    "plan": fastdiff.Sampler(plan=own, dtype=torch.float64)(eps, start),
    "reference": fastdiff.sample(eps, start, method="ab2", steps=6, backend="reference", **how),
}
print()
print(json.dumps({
    "printed": printed.getvalue(), "listed": "ab2" in fastdiff.methods(), "generic": "ab2" in TABLES,
    "order": fastdiff.methods()["ab2"]["order"], "page": list(x.shape), "finite": bool(torch.isfinite(x).all()),
    "files": [str(p) for p in __import__("pathlib").Path(".").glob("ab2.json")],
    "start": start.tolist(), "runs": {name: value.tolist() for name, value in runs.items()},
    "points": [[s.t, s.alpha, s.sigma] for s in own.stages], "end": own.times[-1],
}))
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's first block as the module that the page names."""
    folder = tmp_path_factory.mktemp("own")
    assert "`ab2.py`:" in PAGE.read_text(encoding="utf-8")
    (folder / "ab2.py").write_text(blocks(PAGE)[0], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page(module: Path) -> dict[str, Any]:
    """What a process says that imports the module and runs the page's other blocks."""
    tests = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})"
    return told("\n".join([tests, MODEL, "import fastdiff", "from ab2 import AB2", *blocks(PAGE)[1:], ASKED]), module)


def test_the_name_is_known_everywhere(page: dict[str, Any]) -> None:
    assert page["listed"] and page["generic"] and page["order"] == 2
    lines = page["printed"].splitlines()
    assert any(re.match(r"ab2 +2 +Adams-Bashforth", line) for line in lines)
    assert any(line.startswith("ab2") and "steps" in line for line in lines), lines
    assert page["page"] == [1, 3, 32, 32] and page["finite"] and page["files"] == ["ab2.json"]


def test_every_way_to_it_gives_the_formula_s_numbers(page: dict[str, Any]) -> None:
    from fastdiff.schedules import vp_linear

    last = vp_linear().at(page["end"])
    points = [*page["points"], [last.t, last.alpha, last.sigma]]
    x, before = np.array(page["start"]), None
    for i, ((t, a, s), (_, a_to, s_to)) in enumerate(pairwise(points)):
        m, width = x * np.exp(-t / 500.0), s_to / a_to - s / a
        slope = m
        if before is not None:
            _, a_old, s_old = points[i - 1]
            slope = m + 0.5 * width / (s / a - s_old / a_old) * (m - before)
        x, before = a_to * (x / a + width * slope), m
    for name, found in page["runs"].items():
        # Six steps of sums of four terms in float64; x/alpha is up to 150 times x at the start.
        assert np.abs(np.array(found) - x).max() < 6 * 4 * 150 * 2.0**-53 * np.abs(x).max(), name


@pytest.mark.slow
def test_the_generic_tests_take_it_up(module: Path) -> None:
    files = [f"tests/solvers/test_{name}.py" for name in ("methods", "solver_orders", "solver_exactness")]
    files += ["tests/run/test_loop.py", "tests/test_sample.py"]
    printed = fresh(["-m", "pytest", "-p", "ab2", "-k", "ab2", "-v", "-p", "no:cacheprovider", *files], ROOT, module)
    for test in (
        "test_solver_orders.py::test_observed_order_is_the_claimed_one[ab2-]",
        "test_solver_exactness.py::test_exact_on_a_point_mass[ab2-flow]",
        "test_methods.py::test_claims_hold_for_the_default_plan[ab2]",
    ):
        assert re.search(re.escape(test) + " PASSED", printed), printed
    passed = int(re.findall(r"(\d+) passed", printed)[-1])
    assert passed >= 20 and "failed" not in printed
