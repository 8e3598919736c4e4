"""Flow matching whose time is 1 at the data: against loops written by hand and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdiff
from fastdiff import losses, schedules
from fastdiff.inversion import reconstruct

STD = 0.6
DOUBLE: dict[str, Any] = {"schedule": "flow_to_data", "dtype": torch.float64}
X = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def wavy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Any field: depends on x and on the time."""
    return torch.sin(2 * x) + t.reshape(-1, 1, 1) * x


def policy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x0 − eps | x_t] for x0 ~ N(0, STD²) and x_t = t·x0 + (1 − t)·eps."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2) * x


def mirrored(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """The same network in the other convention: noise at 1, velocity eps − x0."""
    return -policy(x, 1 - s)


def by_hand(model: Any, x: torch.Tensor, steps: int) -> torch.Tensor:
    """Euler's method from the noise at t = 0 to the data at t = 1."""
    for k in range(steps):
        x = x + model(x, torch.full((len(x),), k / steps, dtype=x.dtype)) / steps
    return x


@pytest.mark.parametrize("method", ["euler", "flowmatcheulerdiscrete"])
@pytest.mark.parametrize("prediction", ["flow", "flow_to_data"])
def test_euler_written_by_hand(method: str, prediction: str) -> None:
    got = fastdiff.sample(wavy, X, method=method, steps=7, prediction=prediction, **DOUBLE)  # type: ignore[call-overload]
    # A few roundings a step, of numbers below 4.
    assert torch.allclose(got, by_hand(wavy, X, 7), rtol=0, atol=1e-14)


def test_the_network_is_given_the_time_of_the_data() -> None:
    given: list[float] = []
    scaled = schedules.flow_to_data(time_scale=1000)
    fastdiff.sample(
        lambda x, t: given.append(float(t[0])) or x, X, method="euler", steps=4, prediction="flow", schedule=scaled
    )
    assert given == [0.0, 250.0, 500.0, 750.0]
    shifted = schedules.flow_to_data(3.0)
    t = torch.linspace(0, 1, 9, dtype=torch.float64).numpy()
    assert abs(shifted.model_time(t) + schedules.flow(3.0).model_time(t) - 1).max() < 1e-15
    assert repr(shifted) == "flow_to_data(shift=3.0)" and shifted != schedules.flow(3.0)
    assert schedules.NoiseSchedule.from_dict(shifted.to_dict()) == shifted


def test_every_way_to_run_it_is_the_same() -> None:
    class Stated(torch.nn.Module):
        schedule, prediction = "flow_to_data", "flow"

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return wavy(x, t)

    want = by_hand(wavy, X, 5)
    plan = fastdiff.plan("euler", 5, schedule="flow_to_data")
    sampler = fastdiff.Sampler("euler", 5, prediction="flow", **DOUBLE)
    state = sampler.begin(X)
    while not state.done:
        state = sampler.step(state, wavy(state.input, state.time))
    ways = (
        fastdiff.sample(Stated().eval(), X, method="euler", steps=5, dtype=torch.float64),
        fastdiff.sample(wavy, X, method="euler", steps=5, **DOUBLE),
        fastdiff.sample(wavy, X, plan=plan, prediction="flow", dtype=torch.float64),
        fastdiff.sample(wavy, X, plan=plan, dtype=torch.float64),
        fastdiff.sample(
            wavy, X, plan=fastdiff.Plan.from_json(plan.to_json()), prediction="flow", dtype=torch.float64
        ),
        state.x,
        # The velocity of the other sign, said outright, needs no schedule of that direction.
        fastdiff.sample(
            lambda x, s: wavy(x, 1 - s), X, method="euler", steps=5, schedule="flow", prediction="flow_to_data",
            dtype=torch.float64,
        ),
    )  # fmt: skip
    for got in ways:
        assert torch.allclose(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["dpmpp2m", "unipc", "dpmpp3m", "ode", "ddpm"])
def test_the_other_convention_gives_the_same_sample(method: str) -> None:
    more: dict[str, Any] = {"method": method, "prediction": "flow", "dtype": torch.float64, "seed": 3}
    if method != "ode":
        more["steps"] = 6
    got = fastdiff.sample(policy, shape=(4, 5), schedule="flow_to_data", **more)
    want = fastdiff.sample(mirrored, shape=(4, 5), schedule="flow", **more)
    assert torch.allclose(got, want, rtol=0, atol=1e-12)


def test_inversion_and_likelihood() -> None:
    x = STD * X
    sampler = fastdiff.Sampler("ode", prediction="flow", rtol=1e-9, atol=1e-9, **DOUBLE)
    noise = sampler.invert(policy, x)
    # The map of the ODE from N(0, STD²) to N(0, 1), at a tolerance of 1e-9 a step.
    assert torch.allclose(noise, x / STD, rtol=0, atol=1e-6)
    assert float(reconstruct(sampler, policy, x).max_error.max()) < 1e-5
    exact = fastdiff.log_likelihood(
        policy, x, prediction="flow", trace="exact", rtol=1e-8, atol=1e-8, t_start=0.0, **DOUBLE
    )
    want = torch.distributions.Normal(0.0, STD).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(exact.log_prob, want, rtol=0, atol=1e-5)


def test_a_fit_is_that_of_the_other_convention() -> None:
    def data(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Two points, at −1 and 1, blurred: E[x0 − eps | x_t] with x0 = tanh(4·x)."""
        t = t.reshape(-1, 1).clamp(max=0.99)
        return (torch.tanh(4 * x) - x) / (1 - t)

    about: dict[str, Any] = {"prediction": "flow", "dtype": torch.float64}
    nets = (data, "flow_to_data"), (lambda x, s: -data(x, 1 - s), "flow")
    plans = [
        fastdiff.fit(net, steps=3, shape=(8, 2), schedule=name, trajectories=32, progress=False, **about)
        for net, name in nets
    ]
    starts = torch.randn(16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got, want = (fastdiff.sample(net, starts, plan=plan, **about) for (net, _), plan in zip(nets, plans, strict=True))
    assert plans[0].origin["network"]["prediction"] == "flow_to_data"
    assert torch.allclose(got, want, rtol=0, atol=1e-6)


def test_a_loss_has_the_same_target() -> None:
    x0 = X.clamp(-1, 1)
    given: dict[str, Any] = {"spacing": [0.75, 0.5, 0.25, 0.0], "t": torch.full((3,), 0.5), "noise": X.flip(0)}
    got = losses.vlb_loss(policy, x0, schedule="flow_to_data", prediction="flow", **given)
    want = losses.vlb_loss(mirrored, x0, schedule="flow", prediction="flow", **given)
    assert torch.allclose(got, want, rtol=1e-12)


def test_refusals_name_both_directions() -> None:
    for wrong in ({"prediction": "flow_to_data"}, {"method": "flowmatcheulerdiscrete"}):
        with pytest.raises(ValueError, match=r"no schedule was named: .*'flow_to_data' where t = 1 is data"):
            fastdiff.Sampler(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no schedule was named: .*'flow_to_data' where t = 1 is data"):
        fastdiff.log_likelihood(policy, X, prediction="flow_to_data")
    with pytest.raises(ValueError, match="own times increase"):
        fastdiff.Sampler("euler", prediction="flow", spacing=[0.0, 0.5, 1.0], schedule="flow_to_data")
