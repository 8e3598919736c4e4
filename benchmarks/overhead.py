"""What the loop itself costs: microseconds a step beyond the network's own call, where nothing else counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastdiff
from benchmarks import timing

SHAPE = (1, 1, 8, 8)
SMALL = (1, 16, 7)
FEW, MANY = 10, 50


def network(x: Tensor, t: Tensor) -> Tensor:
    """One operation."""
    return x * 0.5


def bare(steps: int, x: Tensor) -> Callable[[], None]:
    """The network's own calls and no loop."""
    t = torch.zeros(len(x), device=x.device)

    def run() -> None:
        with torch.no_grad():
            for _ in range(steps):
                network(x, t)

    return run


def sampler(method: str, steps: int, x: Tensor) -> Callable[[], None]:
    s = fastdiff.Sampler(method, steps, schedule="ddpm", graph=False)
    return lambda: s(network, x)


def diffusers_loop(steps: int, x: Tensor) -> Callable[[], None] | None:
    """diffusers' DPM-Solver++ of third order, or None where diffusers is not installed."""
    try:
        from diffusers import DPMSolverMultistepScheduler  # type: ignore[import-not-found]
    except ImportError:
        return None
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, solver_order=3, algorithm_type="dpmsolver++"
    )

    def run() -> None:
        with torch.no_grad():
            scheduler.set_timesteps(steps, device=x.device)
            state = x
            for t in scheduler.timesteps:
                state = scheduler.step(network(state, t), t, state).prev_sample

    return run


def euler_by_hand(x: Tensor, clocks: bool) -> Callable[[], None]:
    """Ten Euler steps of a flow, as one writes them oneself; `clocks`: a tensor of times is made at every step."""
    ready = torch.linspace(1.0, 0.1, FEW).unsqueeze(1).expand(FEW, len(x)).contiguous().unbind(0)
    step = 1.0 / FEW

    def run() -> None:
        with torch.no_grad():
            state = x
            for k in range(FEW):
                t = torch.full((len(x),), 1.0 - k * step) if clocks else ready[k]
                state = state - step * network(state, t)

    return run


def by_hand(rounds: int) -> dict[str, Any]:
    """Microseconds of ten Euler steps of a small policy's size: ours, and loops written by hand."""
    x = torch.randn(SMALL, generator=torch.Generator().manual_seed(0))
    own = fastdiff.Sampler("euler", FEW, schedule="flow", prediction="flow", graph=False)
    works: dict[str, Callable[[], Any]] = {
        "fastdiff": lambda: own(network, x),
        "by hand, making its times": euler_by_hand(x, True),
        "by hand, its times ready": euler_by_hand(x, False),
        "network alone": bare(FEW, x),
    }
    found = timing.interleaved(works, rounds, short=5e-3).median
    return {"shape": list(SMALL), "steps": FEW, "microseconds": {name: 1e6 * value for name, value in found.items()}}


def measure(
    rounds: int, methods: tuple[str, ...] = ("dpm3", "dpmpp3m", "dpmpp2m_sde", "unipc")
) -> list[dict[str, Any]]:
    """For each loop: microseconds a step (from the difference of a long and a short run) and of the call's set-up."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    makers: dict[str, Callable[[int], Callable[[], None] | None]] = {
        f"fastdiff {name}": lambda n, name=name: sampler(name, n, x)  # type: ignore[misc]
        for name in methods
    }
    makers["diffusers DPM++ 3M"] = lambda n: diffusers_loop(n, x)
    makers["network alone"] = lambda n: bare(n, x)
    works = {(name, n): make(n) for name, make in makers.items() for n in (FEW, MANY)}
    present = {f"{name}|{n}": work for (name, n), work in works.items() if work is not None}
    found = timing.interleaved(present, rounds, short=5e-3).median
    alone = (found[f"network alone|{MANY}"] - found[f"network alone|{FEW}"]) / (MANY - FEW)
    rows = []
    for name in makers:
        if name == "network alone" or f"{name}|{FEW}" not in found:
            continue
        few, many = found[f"{name}|{FEW}"], found[f"{name}|{MANY}"]
        step = (many - few) / (MANY - FEW)
        rows.append(
            {
                "name": name,
                "shape": list(SHAPE),
                "step_us": 1e6 * (step - alone),
                "setup_us": 1e6 * (few - FEW * step),
                f"per_step_of_{FEW}_with_setup_us": 1e6 * (few / FEW - alone),
                "network_us": 1e6 * alone,
            }
        )
    return rows
