"""fastdiff: diffusion samplers as tables, run by one fused operation.

For example:

    import fastdiff
    x = fastdiff.sample(model, steps=10, method="dpm3")
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

# A collection would look through all objects of torch, again and again: half of the time that this import takes.
_collects = gc.isenabled()
gc.disable()
try:
    from fastdiff import interrupts as interrupts

    # isort: split
    from fastdiff import guidance, schedules
    from fastdiff._version import __version__
    from fastdiff.api import sample
    from fastdiff.lazy import lazy
    from fastdiff.ops import backends
    from fastdiff.plan import Frames, Plan, Stage
    from fastdiff.run.graph import clear_graphs
    from fastdiff.run.noise import randn
    from fastdiff.run.report import Info, Trajectory
    from fastdiff.run.rollout import Rollout
    from fastdiff.run.threshold import Dynamic
    from fastdiff.sampler import Sampler
    from fastdiff.solvers import methods, plan, register
finally:
    if _collects:
        gc.enable()

if TYPE_CHECKING:
    from fastdiff import analytic, engine, losses
    from fastdiff import fitting as fitting
    from fastdiff import generation as generation
    from fastdiff import integrations as integrations
    from fastdiff import inversion as inversion
    from fastdiff import likelihood as likelihood
    from fastdiff import plot as plot
    from fastdiff import training as training
    from fastdiff.engine import Engine, Request
    from fastdiff.fitting.fit import fit
    from fastdiff.fitting.tune import tune
    from fastdiff.generation.generate import generate
    from fastdiff.likelihood import LogLikelihood, log_likelihood
else:
    # What sampling does not need is read when it is asked for. The same names as above, which type checkers read.
    __getattr__, __dir__ = lazy(
        "fastdiff",
        {
            **dict.fromkeys(("analytic", "engine", "losses", "fitting", "generation", "integrations"), "fastdiff"),
            **dict.fromkeys(("inversion", "likelihood", "plot", "training"), "fastdiff"),
            **dict.fromkeys(("Engine", "Request"), "fastdiff.engine"),
            "fit": "fastdiff.fitting.fit",
            "tune": "fastdiff.fitting.tune",
            "generate": "fastdiff.generation.generate",
            **dict.fromkeys(("LogLikelihood", "log_likelihood"), "fastdiff.likelihood"),
        },
    )

__all__ = [
    "Dynamic",
    "Engine",
    "Frames",
    "Info",
    "LogLikelihood",
    "Plan",
    "Request",
    "Rollout",
    "Sampler",
    "Stage",
    "Trajectory",
    "__version__",
    "analytic",
    "backends",
    "clear_graphs",
    "engine",
    "fit",
    "generate",
    "guidance",
    "log_likelihood",
    "losses",
    "methods",
    "plan",
    "randn",
    "register",
    "sample",
    "schedules",
    "tune",
]
