"""The whole public list: every name has one path to import it by, and is documented."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import pytest
from helpers.pages import ROOT

import fastdiff

PUBLIC = {
    "fastdiff": {
        *(
            "Dynamic",
            "Frames",
            "Info",
            "LogLikelihood",
            "Plan",
            "Rollout",
            "Sampler",
            "Stage",
            "Trajectory",
            "__version__",
            "analytic",
        ),
        *(
            "backends",
            "clear_graphs",
            "fit",
            "generate",
            "guidance",
            "log_likelihood",
            "losses",
            "methods",
            "plan",
            "randn",
            "register",
        ),
        *("sample", "schedules", "tune", "Engine", "Request", "engine"),
    },
    "fastdiff.schedules": {
        *(
            "SCHEDULES",
            "SMLD",
            "VE",
            "Discrete",
            "FlowToData",
            "NoiseSchedule",
            "Point",
            "SubVP",
            "VPLinear",
            "cosine",
            "ddpm",
        ),
        *(
            "discrete",
            "dynamic_shift",
            "edm",
            "flow",
            "flow_to_data",
            "gits_times",
            "preconditioned",
            "resolve",
            "scaled_linear",
            "smld",
            "subvp",
            "ve",
            "vp_cosine",
            "vp_linear",
        ),
    },
    "fastdiff.guidance": {
        *("UNGUIDED", "CFGPlusPlus", "ClassifierFree", "ClassifierGuidance", "ClassifierMean", "ClassifierScore"),
        *("Guidance", "Interval", "Place", "Rescale", "ScoreAfterClip", "choose", "described"),
        *("AdaptiveProjected", "Autoguidance", "Blend", "CFGZeroStar", "Outputs", "PerpNeg"),
    },
    "fastdiff.losses": {
        *(
            "LossSecondMoment",
            "VariationalBound",
            "ddpm_loss",
            "flow_loss",
            "hybrid_loss",
            "q_sample",
            "sde_loss",
            "smld_loss",
        ),
        *("variational_bound", "vlb_loss"),
    },
    "fastdiff.engine": {"Closed", "Preview", "Progress", "QueueFull", "Stats"},
    "fastdiff.analytic": {"Gamma", "estimate_gamma", "optimal_times"},
}
PLOTS = ("image_grid", "trajectory", "convergence")
# What other rooms import from these modules and no user has to know: classes behind the named functions and forms.
INNER = {
    *("SCHEDULES", "SMLD", "VE", "Discrete", "FlowToData", "Point", "SubVP", "VPLinear", "resolve"),
    *("UNGUIDED", "ClassifierGuidance", "choose", "described"),
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in sorted(names)]
DOCUMENTED = "\n".join(
    path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
)


def test_the_lists_are_these() -> None:
    # A name that comes or goes is a decision: it changes this list, the documentation and the changelog.
    for module, names in PUBLIC.items():
        assert set(importlib.import_module(module).__all__) == names, module


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda v: v)
def test_a_name_is_there(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


def test_a_thing_has_one_public_path() -> None:
    paths: dict[int, list[str]] = {}
    for module, name in NAMES:
        thing = getattr(importlib.import_module(module), name)
        paths.setdefault(id(thing), []).append(f"{module}.{name}")
    assert [found for found in paths.values() if len(found) > 1] == []


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, n in NAMES if n not in INNER], ids=lambda v: v)
def test_a_name_is_documented(module: str, name: str) -> None:
    if name == "__version__":
        return
    assert re.search(rf"\b{re.escape(name)}\b", DOCUMENTED), f"{module}.{name} is in no page"


@pytest.mark.parametrize("name", PLOTS)
def test_pictures_are_documented(name: str) -> None:
    from fastdiff import plot

    assert callable(getattr(plot, name)) and f"plot.{name}(" in DOCUMENTED
    own = {
        n for n, thing in vars(plot).items() if callable(thing) and getattr(thing, "__module__", "") == plot.__name__
    }
    assert {n for n in own if not n.startswith("_")} == set(PLOTS)


def test_what_is_public_says_what_it_is() -> None:
    for module, name in NAMES:
        thing = getattr(importlib.import_module(module), name)
        if isinstance(thing, ModuleType) or callable(thing):
            assert thing.__doc__, f"{module}.{name}"
    assert fastdiff.__version__
