"""Many samples on a Ray cluster: each task of Ray Data is one of fastdiff's workers.

    pip install "ray[data]"
    python examples/generate_with_ray.py /shared/samples

The folder must be one that every machine sees. A task that Ray starts again goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
from typing import Any

import ray
import torch

import fastdiff

WORKERS = 4


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Use your own here: load it inside the task, so that it is not sent through the cluster."""
    return 0.9 * x


def work(row: dict[str, Any]) -> dict[str, Any]:
    """Worker number `row["id"]`. Ray gives it a GPU of its own where `num_gpus=1` asks for one."""
    complete = fastdiff.generate(
        network,
        200,
        row["folder"],
        worker=(row["id"], WORKERS),
        shape=(10, 3, 8, 8),
        shard=10,
        schedule="ddpm",
        format="npz",
        progress=False,
    )
    return {"worker": row["id"], "complete": complete}


def main(folder: str) -> None:
    """Generate into `folder`: one block, and so one task, for each worker."""
    rows = ray.data.from_items([{"id": w, "folder": folder} for w in range(WORKERS)], override_num_blocks=WORKERS)
    done = rows.map(work).take_all()
    print(f"{len(done)} workers; complete: {any(row['complete'] for row in done)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="one that every machine sees")
    main(parser.parse_args().folder)
