"""The processes of a run under torchrun: each has a part of the trajectories, and sums go over all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def part(count: int) -> tuple[int, int]:
    """(first, end) of this process's part of `count` rows: contiguous, and nearly equal between processes."""
    rank, size = world()
    return count * rank // size, count * (rank + 1) // size


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum over the processes; the same bits on each."""
    if world()[1] > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def from_first(value: bytes) -> bytes:
    """Rank 0's bytes, on every process."""
    rank, size = world()
    if size == 1:
        return value
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    length = torch.tensor([len(value)], device=device)
    dist.broadcast(length, 0)
    data = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if rank == 0:
        data.copy_(torch.frombuffer(bytearray(value), dtype=torch.uint8))
    dist.broadcast(data, 0)
    return bytes(data.cpu().tolist())
