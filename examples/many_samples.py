"""50,000 samples by any number of processes, for a Frechet distance.

    python examples/many_samples.py samples                                     # one process
    torchrun --nproc-per-node=8 examples/many_samples.py samples                # one for each GPU
    torchrun --nproc-per-node=8 examples/many_samples.py samples                # killed? the same call goes on

No process waits for another, and the files do not depend on how many there are: sample i is a function of seed and i.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.demo import load_model


def labels(first: torch.Tensor) -> dict[str, Any]:
    """The model's arguments for samples `first`, (B,): as many of each class."""
    return {"y": first % 10}


def main(folder: str | Path, count: int = 50_000, batch: int = 500, shard: int = 2_000) -> bool:
    """Write this process's part of `count` samples; returns whether all parts are there."""
    # Your network: load it on the GPU of this process, torch.device("cuda", int(os.environ["LOCAL_RANK"])).
    model = load_model()
    return fastdiff.generate(
        model,
        count,
        folder,
        shape=(batch, 1, 8, 8),
        shard=shard,
        seed=0,
        format="npz",
        method="dpm3",
        steps=10,
        schedule="ddpm",
        model_kwargs=labels,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", "--count", type=int, default=50_000, help="how many samples (default: 50000)")
    given = parser.parse_args()
    main(given.folder, given.count)
