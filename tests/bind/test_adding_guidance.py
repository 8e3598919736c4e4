"""docs/adding-guidance.md, executed exactly as it stands, in a process of its own: its form gives its formula."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers.pages import ROOT, blocks, told

PAGE = ROOT / "docs" / "adding-guidance.md"
BEFORE = """
import torch
def model(x, t, y):
    return torch.tanh(x) * (0.1 * y.reshape(-1, 1, 1, 1) - 0.3)
"""
# EDM: alpha = 1 and sigma is the time, so that DDIM's step is x + (sigma' - sigma)·eps.
AFTER = """
import json
from fastdiff.schedules import edm
sigmas = [10.0, 6.0, 3.0, 1.0, 0.2]
start = torch.linspace(-3.0, 3.0, 24, dtype=torch.float64).reshape(2, 1, 3, 4)
how = dict(schedule=edm(0.2, 10.0), spacing=sigmas, dtype=torch.float64, guidance=Growing(7.5, last=10.0))
how |= dict(cond={"y": torch.tensor([1.0, 2.0]).double()}, uncond={"y": torch.tensor([5.0, 5.0]).double()})
runs = {b: fastdiff.sample(model, start, method="ddim", backend=b, **how) for b in ("reference", None)}
methods = ("dpm3", "unipc", "heun", "dpmpp2m_sde")
alone = {name: value for name, value in how.items() if name != "spacing"}
adaptive = fastdiff.sample(model, start, method="ode", t_end=0.2, **alone)
shapes = {m: list(fastdiff.sample(model, start, method=m, **how).shape) for m in methods}
print(json.dumps({
    "page": list(x.shape), "finite": bool(torch.isfinite(x).all()), "sigmas": sigmas, "start": start.tolist(),
    "runs": [run.tolist() for run in runs.values()], "shapes": [*shapes.values(), list(adaptive.shape)],
}))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return told("\n".join([BEFORE, *blocks(PAGE), AFTER]), tmp_path_factory.mktemp("own"))


def test_the_page_runs(page: dict[str, Any]) -> None:
    assert page["page"] == [4, 1, 8, 8] and page["finite"]
    assert page["shapes"] == [[2, 1, 3, 4]] * 5


def test_its_form_is_its_formula(page: dict[str, Any]) -> None:
    x = np.array(page["start"])
    labels = np.array([1.0, 2.0]).reshape(-1, 1, 1, 1)
    for sigma, following in pairwise(page["sigmas"]):
        scale = 1 + 2 * (1 - sigma / 10.0) * (7.5 - 1)
        cond, uncond = (np.tanh(x) * (0.1 * y - 0.3) for y in (labels, 5.0))
        x = x + (following - sigma) * (uncond + scale * (cond - uncond))
    for run in page["runs"]:
        # Four steps, each a sum of terms of up to 15·|x|, in float64.
        assert np.abs(np.array(run) - x).max() < 4 * 8 * 15 * 2.0**-53 * np.abs(x).max()
