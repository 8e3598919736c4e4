"""Two processes fit to a part of the trajectories each, and get the plan that one process gets."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from helpers.fitting import SMALL, Torch

import fastdiff
from fastdiff.fitting import loss

# A budget that no rounding can end at another place.
GIVEN: dict[str, Any] = {**SMALL, "budget": 9}


def worker(rank: int, port: int, folder: str) -> None:
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = Torch()
    plan = fastdiff.fit(model, 3, **GIVEN, polish=True, polish_rounds=1, checkpoint=f"{folder}/fit.safetensors")
    plan.save(Path(folder) / f"{rank}.json")
    (Path(folder) / f"{rank}.rows").write_text(str(model.rows))
    own = torch.arange(5.0) if rank else torch.arange(5.0, 9.0)
    (Path(folder) / f"{rank}.errors").write_text(repr(loss.errors(own)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(tmp_path)), nprocs=2)
    first, second = (fastdiff.Plan.load(tmp_path / f"{rank}.json") for rank in (0, 1))
    assert first.stages == second.stages
    alone = Torch()
    whole = fastdiff.fit(alone, 3, **GIVEN, polish=True, polish_rounds=1)
    assert first.times == whole.times
    for a, b in zip(first.stages, whole.stages, strict=True):
        # Sums in another order, and a line search of L-BFGS that magnifies it.
        assert a.next_u == pytest.approx(b.next_u, abs=1e-4)
    assert first.origin["errors"]["after"]["rms"] == pytest.approx(whole.origin["errors"]["after"]["rms"], rel=1e-3)
    # Half of the work each, but for the check of the teacher.
    assert int((tmp_path / "0.rows").read_text()) < 0.75 * alone.rows
    every = loss.errors(torch.arange(9.0))
    assert (tmp_path / "0.errors").read_text() == (tmp_path / "1.errors").read_text() == repr(every)
