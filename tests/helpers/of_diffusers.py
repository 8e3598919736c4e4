"""Schedulers and modules of the installed diffusers, whose versions have different ones: what is missing is skipped."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

FAULTS = {
    "KDPM2AncestralDiscreteScheduler": ((0, 30), "draws noise in evaluations that do not use it"),
    "FlowMatchHeunDiscreteScheduler": ((0, 30), "draws noise in evaluations that do not use it"),
    "DPMSolverSinglestepScheduler": ((0, 30), "fails in set_timesteps"),
}
"""The last release with a fault, and what its class does."""


def release() -> tuple[int, ...]:
    """Major and minor number of the installed diffusers."""
    diffusers = pytest.importorskip("diffusers")
    return tuple(int(part) for part in diffusers.__version__.split(".")[:2])


def named(name: str) -> Any:
    """What diffusers has by this name; the test is skipped where it has none."""
    diffusers = pytest.importorskip("diffusers")
    found = getattr(diffusers, name, None)
    if found is None:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    return found


def scheduler(name: str, **config: Any) -> Any:
    """A scheduler of theirs; the test is skipped where the class does not have such a key."""
    found = named(name)
    last, fault = FAULTS.get(name, ((0, 0), ""))
    if release() <= last:
        pytest.skip(f"{name} of diffusers {'.'.join(map(str, release()))} {fault}")
    lacking = sorted(set(config) - set(inspect.signature(found.__init__).parameters))
    if lacking:
        pytest.skip(f"the installed {name} has no {lacking[0]}")
    if release() == (0, 31) and (config.get("use_exponential_sigmas") or config.get("use_beta_sigmas")):
        pytest.skip(f"{name} of diffusers 0.31 fails where sigma_min is not given")
    return found(**config)
