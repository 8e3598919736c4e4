"""fastdiff: diffusion samplers as tables, run by one fused operation.

For example:

    import fastdiff
    x = fastdiff.sample(model, steps=10, method="dpm3")
"""

from __future__ import annotations

from fastdiff import analytic, losses, schedules
from fastdiff._version import __version__
from fastdiff.adaptive_report import Info
from fastdiff.api import randn, sample
from fastdiff.graph import clear_graphs
from fastdiff.likelihood import LogLikelihood, log_likelihood
from fastdiff.ops import backends
from fastdiff.plan import Plan, Stage
from fastdiff.report import Trajectory
from fastdiff.sampler import Sampler
from fastdiff.solvers import methods, plan
from fastdiff.threshold import Dynamic

__all__ = [
    "Dynamic",
    "Info",
    "LogLikelihood",
    "Plan",
    "Sampler",
    "Stage",
    "Trajectory",
    "__version__",
    "analytic",
    "backends",
    "clear_graphs",
    "log_likelihood",
    "losses",
    "methods",
    "plan",
    "randn",
    "sample",
    "schedules",
]
