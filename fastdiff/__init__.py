"""fastdiff: diffusion samplers as tables, run by one fused operation.

For example:

    import fastdiff
    x = fastdiff.sample(model, steps=10, method="dpm3")
"""

from __future__ import annotations

import gc

# A collection would look through all objects of torch, again and again: half of the time that this import takes.
_collects = gc.isenabled()
gc.disable()
try:
    from fastdiff import interrupts as interrupts

    # isort: split
    from fastdiff import analytic, engine, guidance, losses, schedules
    from fastdiff._version import __version__
    from fastdiff.api import sample
    from fastdiff.engine import Engine, Request
    from fastdiff.fitting.fit import fit
    from fastdiff.fitting.tune import tune
    from fastdiff.generation import generate
    from fastdiff.integrations import score_sde as score_sde
    from fastdiff.likelihood import LogLikelihood, log_likelihood
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
