"""Log-probabilities of transitions: as torch.distributions gives them, in the run and under another network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.ops import Buffers, Coeffs, load
from fastdiff.ops.buffers import CHUNK
from fastdiff.ops.layout import NEXT_U, NONE, WIDTH, StageSpec
from fastdiff.plan import ZA

SHAPE = (3, 2, 9, 11)
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"schedule": "flow", "prediction": "flow"},
    "cps": {"schedule": "flow", "prediction": "flow"},
    "ddpm": {"schedule": "ddpm"},
    "ddim": {"schedule": "ddpm", "eta": 0.5, "clip": (-2.0, 2.0)},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.8, -0.1]))

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        shift = 0.0 if y is None else y.reshape(-1, 1, 1, 1)
        return torch.tanh(self.weight[0] * x + shift) + self.weight[1] * x


def by_hand(plan: fastdiff.Plan, net: Net, x: torch.Tensor, k: int) -> tuple[torch.Tensor, float]:
    """Mean and standard deviation of step k, in float64, from the published form in eps or in the velocity."""
    s, y = plan.stages[k], x.double()
    out = net(x, torch.tensor(s.model_time)).double()
    x0 = y - s.sigma * out if plan.method in ("grpo", "cps") else (y - s.sigma * out) / s.alpha
    x0 = x0.clamp(-2, 2) if plan.method == "ddim" else x0
    eps = (y - s.alpha * x0) / s.sigma
    m = {"data": x0, "noise": eps}[plan.space]
    return s.next_u[0] * y + s.next_u[2] * m, s.next_u[ZA]


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("method", METHODS)
def test_as_torch_distributions(method: str, reduce: str) -> None:
    net, sampler = Net(), fastdiff.Sampler(method, 5, **METHODS[method])
    x, rollout = sampler.rollout(net, shape=SHAPE, seed=4, reduce=reduce)
    assert torch.equal(x, sampler(net, shape=SHAPE, seed=4)) and torch.equal(x, rollout.x[-1])
    replayed = sampler.log_prob(net, rollout)
    assert replayed.requires_grad and rollout.log_prob.shape == (5, 3) and not rollout.log_prob.requires_grad
    for k in range(5):
        mean, std = by_hand(sampler.plan, net, rollout.x[k], k)
        if not std:
            # A step without noise has no density.
            assert not rollout.log_prob[k].any() and not replayed[k].any()
            continue
        log_p = torch.distributions.Normal(mean, std).log_prob(rollout.x[k + 1].double()).flatten(1)
        want = (log_p.mean(1) if reduce == "mean" else log_p.sum(1)).detach()
        torch.testing.assert_close(rollout.log_prob[k], want, rtol=1e-5, atol=0)
        torch.testing.assert_close(replayed[k].detach(), want, rtol=1e-5, atol=0)
    assert torch.equal(sampler.log_prob(net, rollout, 2).detach(), replayed[2].detach())
    assert torch.equal(sampler.log_prob(net, rollout, [3, 1]).detach(), replayed[[3, 1]].detach())


def test_gradients_flow_through_the_network() -> None:
    """d log p/dw of one transition, against the closed form's own gradient."""
    net, sampler = Net(), fastdiff.Sampler("grpo", 4, schedule="flow", prediction="flow")
    _, rollout = sampler.rollout(net, shape=SHAPE, seed=1, reduce="sum")
    with torch.no_grad():
        net.weight += 0.05
    sampler.log_prob(net, rollout, 2).sum().backward()
    assert net.weight.grad is not None
    got = net.weight.grad.clone()
    net.weight.grad = None
    mean, std = by_hand(sampler.plan, net, rollout.x[2], 2)
    torch.distributions.Normal(mean, std).log_prob(rollout.x[3].double()).sum().backward()
    torch.testing.assert_close(got, net.weight.grad, rtol=1e-4, atol=0)
    # The ratio of the network with itself is 1.
    assert not torch.equal(sampler.log_prob(net, rollout, 2).detach(), rollout.log_prob[2])


def test_guidance_is_replayed() -> None:
    net, sampler = Net(), fastdiff.Sampler("cps", 4, schedule="flow", prediction="flow")
    given = {"guidance": 2.5, "cond": {"y": torch.ones(3)}, "uncond": {"y": torch.zeros(3)}}
    _, rollout = sampler.rollout(net, shape=SHAPE, **given)
    replayed = sampler.log_prob(net, rollout, **given)
    torch.testing.assert_close(replayed.detach(), rollout.log_prob, rtol=1e-5, atol=1e-12)
    replayed.sum().backward()
    assert net.weight.grad is not None and bool(net.weight.grad.abs().min() > 0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 127, 128, 129, 1024, 1031, 4000])
def test_the_sums_of_squares(n: int, dtype: torch.dtype, backend: str) -> None:
    """Of chunks of 128 elements, in every size; they do not depend on the batch."""
    if not load(backend).available()[0]:
        pytest.skip("not built")
    batch, chunks = 3, -(-n // CHUNK)
    table = torch.zeros(1, WIDTH, dtype=dtype)
    table[0, NEXT_U + ZA] = 0.5
    spec = StageSpec(NONE, False, False, 1 << ZA, 0, 0)

    def run(samples: slice) -> tuple[torch.Tensor, torch.Tensor]:
        seeds, index = torch.tensor([5, -3, 8])[samples], torch.tensor([0, 9, 2], dtype=torch.int32)[samples]
        draws = torch.tensor([[4, -1, -1]], dtype=torch.int32)
        out, sums = (torch.full((len(seeds), size), math.nan, dtype=dtype) for size in (n, chunks))
        load(backend).stage(spec, 0, Coeffs(table, draws, seeds, index), Buffers(u_out=out, squares=sums))
        return out, sums

    out, sums = run(slice(None))
    z = torch.zeros(batch, chunks * CHUNK, dtype=torch.float64)
    z[:, :n] = 2 * out.double()
    # 128 squares, each rounded, and 127 sums at most.
    torch.testing.assert_close(
        sums.double(), z.square().reshape(batch, chunks, CHUNK).sum(2), rtol=128 * 2.0**-24, atol=0
    )
    assert torch.equal(torch.cat([run(slice(b, b + 1))[1] for b in range(batch)]), sums)


WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("dpmpp2m_sde", {}, {}, "method 'dpmpp2m_sde' with these options has no density of its transitions"),
    ("ddim", {}, {}, "method 'ddim' with these options has no density"),
    ("ode", {}, {}, "method 'ode' with these options has no density"),
    ("ddpm", {}, {"reduce": "max"}, "reduce='max': expected 'mean' .* or 'sum'"),
    (
        "ddpm",
        {},
        {"correct_x0": lambda x0, t: x0},
        "correct_x0 changes transitions in a way that log_prob cannot replay",
    ),
    ("ddpm", {}, {"return_trajectory": True}, "a rollout holds the states itself"),
    ("ddpm", {}, {"noise": "brownian"}, "noise='brownian' has no transitions of its own"),
    ("ddpm", {"clip": "dynamic"}, {}, "clip='dynamic' takes values of the whole sample"),
]


@pytest.mark.parametrize(("method", "own", "options", "message"), WRONG)
def test_what_has_no_density(method: str, own: dict[str, Any], options: dict[str, Any], message: str) -> None:
    steps = None if method == "ode" else 4
    with pytest.raises(ValueError, match=message):
        fastdiff.Sampler(method, steps, schedule="ddpm", **own).rollout(Net(), shape=SHAPE, **options)


def test_a_rollout_of_another_sampler() -> None:
    net, sampler = Net(), fastdiff.Sampler("ddpm", 4, schedule="ddpm")
    _, rollout = sampler.rollout(net, shape=SHAPE)
    assert repr(rollout) == "Rollout(4 steps, x (5, 3, 2, 9, 11), reduce='mean')"
    with pytest.raises(ValueError, match="the rollout has 4 steps, and this Sampler 5"):
        fastdiff.Sampler("ddpm", 5, schedule="ddpm").log_prob(net, rollout)
    with pytest.raises(ValueError, match="steps=4: expected an integer from 0 to 3"):
        sampler.log_prob(net, rollout, 4)
    for one in (np.int64(2), torch.tensor(2), np.array(2)):
        assert torch.equal(sampler.log_prob(net, rollout, one), sampler.log_prob(net, rollout, 2))
    for several in ([2, 0], (2, 0), torch.tensor([2, 0]), np.array([2, 0])):
        assert torch.equal(sampler.log_prob(net, rollout, several), sampler.log_prob(net, rollout)[[2, 0]])
    for wrong in (1.5, "a", [1.0], lambda: 0):
        with pytest.raises(TypeError, match=r"steps=.*: expected an integer, such as 0"):
            sampler.log_prob(net, rollout, wrong)
    for other in (None, rollout.x, (rollout,)):
        with pytest.raises(
            TypeError, match=r"log_prob takes the model and a Rollout, got .*: x, rollout = sampler.roll"
        ):
            sampler.log_prob(net, other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reduce=array.*: expected 'mean'"):
        sampler.rollout(net, shape=SHAPE, reduce=np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"return_trajectory=array.*: expected True or False"):
        sampler.rollout(net, shape=SHAPE, return_trajectory=np.ones(2))  # type: ignore[arg-type]
