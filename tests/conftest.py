"""What every test shares: one thread for each worker, a fixed seed, and a reason where a GPU is missing."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import pytest

# Two workers with a pool of threads each would fight over the cores. Set before anything loads OpenMP.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _no_gpu() -> str | None:
    """Why tests that need a GPU cannot run, or None."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _no_gpu() if marked else None
    for item in marked:
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Draws that are not fastdiff's own repeat too. torch is seeded only where a test's module has loaded it."""
    random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
    names = sys.modules.get("fastdiff.names")
    if names is not None:
        names.ANNOUNCED = Everything()
    yield


class Everything(set[object]):
    """What is announced once in a process was announced: of a default schedule, of a network in training mode."""

    def __contains__(self, key: object) -> bool:
        return True
