"""PyTorch's modes around a run, runs side by side in one process, and what of a sampler can be sent to another."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import fastdiff

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        torch.nn.init.eye_(self.layer.weight)
        self.eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.layer(x)) + 1e-3 * t.reshape(-1, 1)


@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m_sde", "ode"])
def test_inference_mode_changes_nothing(method: str) -> None:
    steps = {} if method == "ode" else {"steps": 4}
    net, sampler = Net(), fastdiff.Sampler(method, schedule="ddpm", **steps)  # type: ignore[arg-type]
    want = sampler(net, X, seed=3)
    with torch.inference_mode():
        inside = X.clone()
        for x in (X, inside, inside):
            got = sampler(net, x, seed=3)
            # It may be changed in place, and given to autograd, outside.
            assert torch.equal(got, want) and not got.is_inference()
            assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", ["dpm3", "dpmpp2m_sde"])
def test_autocast_is_the_network_s_own(method: str) -> None:
    # The state stays float32; what the network gives is bfloat16, as outside autocast with the casts written out.
    class Cast(torch.nn.Module):
        def __init__(self, net: Net) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x, t)

    net, sampler = Net(), fastdiff.Sampler(method, 4, schedule="ddpm")  # type: ignore[arg-type]
    want = sampler(Cast(net).eval(), X)
    plain = sampler(net, X)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = sampler(net, X)
        assert got.dtype == torch.float32 and torch.equal(got, want)
    assert not torch.equal(want, plain) and torch.equal(sampler(net, X), plain)


def test_requests_of_different_lengths_side_by_side() -> None:
    net = Net()
    samplers = {n: fastdiff.Sampler("dpmpp2m_sde", n, schedule="ddpm") for n in (2, 3, 5)}
    states = {n: s.begin(shape=(2, 4), seed=n) for n, s in samplers.items()}
    order: list[int] = []
    with torch.no_grad():
        while waiting := [n for n, state in states.items() if not state.done]:
            # One call for all of them: a time for each row.
            x = torch.cat([states[n].input for n in waiting])
            t = torch.cat([states[n].time for n in waiting])
            order.append(len(x))
            for n, out in zip(waiting, net(x, t).split(2), strict=True):
                samplers[n].step(states[n], out)
    assert order == [6, 6, 4, 2, 2]
    for n, state in states.items():
        # Rows of a matrix product in a batch of another size: a rounding or two.
        assert torch.allclose(state.x, samplers[n](net, shape=(2, 4), seed=n), rtol=0, atol=1e-5)


def test_a_state_is_refused_clearly_and_the_rest_is_sent() -> None:
    sampler = fastdiff.Sampler("dpm3", 3, schedule="ddpm")
    state = sampler.begin(X)
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"a State is a run under way.*the result, state\.x"):
            send(state)
    for method in ("dpm3", "dpmpp2m", "unipc", "heun", "ddpm"):
        one = fastdiff.Sampler(method, 3, schedule="ddpm")  # type: ignore[arg-type]
        sent = pickle.loads(pickle.dumps(one))
        net = Net()
        assert torch.equal(sent(net, X), one(net, X))
        if not one.plan.stochastic:
            assert torch.equal(sent.invert(net, X), one.invert(net, X))
