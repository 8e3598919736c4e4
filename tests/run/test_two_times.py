"""Flow maps: plans whose network is given the time of the step's end too."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import BACKENDS

import fastdiff
from fastdiff.plan import Plan

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
TWO = {"method": "mean_flow", "two_times": True, "schedule": "flow", "prediction": "flow", "dtype": torch.float64}
STD = 0.5


def average(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """The average velocity of N(0.7, STD²) from t to s, in closed form: x keeps its place in units of the marginal."""
    assert t.shape == s.shape == (len(x),)
    column = (-1,) + (1,) * (x.ndim - 1)
    t, s = t.to(x.dtype).reshape(column), s.to(x.dtype).reshape(column)
    width = [torch.sqrt(((1 - v) * STD) ** 2 + v**2) for v in (t, s)]
    end = 0.7 * (1 - s) + (x - 0.7 * (1 - t)) * width[1] / width[0]
    return (end - x) / (s - t)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_perfect_flow_map_is_exact_at_any_number_of_steps(steps: int, backend: str) -> None:
    x = fastdiff.sample(average, X, steps=steps, backend=backend, **TWO)
    # The network is given its times in float32.
    torch.testing.assert_close(x, 0.7 + STD * X, rtol=1e-6, atol=1e-6)


def test_the_network_is_given_both_ends_of_each_step() -> None:
    seen: list[tuple[float, float]] = []

    def model(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        seen.append((float(t[0]), float(s[0])))
        return x

    schedule = fastdiff.schedules.flow(3.0, time_scale=1000)
    fastdiff.sample(model, X, **{**TWO, "schedule": schedule}, spacing=[1.0, 0.5, 0.2, 0.0])
    sigma = [1000.0 * schedule.sigma(t) for t in (1.0, 0.5, 0.2, 0.0)]
    assert np.allclose(seen, list(pairwise(sigma)), rtol=1e-6)


def test_guidance_gives_both_halves_their_times() -> None:
    def model(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert t.shape == s.shape == (8,)
        return average(x, t, s) + y

    cond, uncond = torch.full((4, 3), 0.2, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    got = fastdiff.sample(model, X, steps=4, guidance=3.0, cond={"y": cond}, uncond={"y": uncond}, **TWO)
    want = fastdiff.sample(lambda x, t, s: average(x, t, s) + 3.0 * 0.2, X, steps=4, **TWO)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_loop_of_the_callers_own_is_given_both() -> None:
    sampler = fastdiff.Sampler("mean_flow", 3, two_times=True, schedule="flow", prediction="flow", dtype=torch.float64)
    state = sampler.begin(X)
    while not state.done:
        assert state.time.shape == (2, 4)
        state = sampler.step(state, average(state.input, *state.time))
    torch.testing.assert_close(state.x, fastdiff.sample(average, X, steps=3, **TWO), rtol=0, atol=0)


def test_a_network_of_one_time_is_eulers_method() -> None:
    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (1 + t.to(x.dtype).reshape(-1, 1))

    common = {"schedule": "flow", "prediction": "flow", "steps": 6, "spacing": "uniform", "dtype": torch.float64}
    got = fastdiff.sample(velocity, X, method="mean_flow", **common)
    torch.testing.assert_close(got, fastdiff.sample(velocity, X, method="euler", **common), rtol=1e-12, atol=1e-12)
    assert not fastdiff.plan("mean_flow", 3, "flow").two_times


def test_plan_files_keep_both_times() -> None:
    p = fastdiff.plan("mean_flow", 3, "flow", two_times=True)
    assert p.two_times and Plan.from_json(p.to_json()) == p
    assert "model_time_to" not in fastdiff.plan("ddim", 3).to_json()
    data = json.loads(p.to_json())
    del data["stages"][1]["model_time_to"]
    with pytest.raises(ValueError, match=r"some evaluations have a model_time_to and some have none"):
        Plan.from_json(json.dumps(data))
    data["stages"][1]["model_time_to"] = "soon"
    with pytest.raises(ValueError, match=r"stage 1 'model_time_to' must be a number, got 'soon'"):
        Plan.from_json(json.dumps(data))


class Transformer(torch.nn.Module):
    """Takes its time by name."""

    def forward(self, hidden_states: torch.Tensor, text: object = None, timestep: object = None) -> SimpleNamespace:
        return SimpleNamespace(sample=hidden_states)


def test_a_network_that_takes_its_time_by_name_is_asked_for_a_wrapper() -> None:
    with pytest.raises(
        TypeError, match=r"Transformer takes its time as timestep=.*lambda x, t, s, \*\*kw: .*two_times=False"
    ):
        fastdiff.sample(Transformer(), X.float(), **{**TWO, "dtype": torch.float32})


def test_a_classifier_is_given_the_time_of_x() -> None:
    seen: list[torch.Tensor] = []

    def grad(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.clone())
        return torch.zeros_like(x)

    fastdiff.sample(average, X, steps=2, classifier_grad=grad, t_start=0.9, **TWO)
    assert [tuple(t.shape) for t in seen] == [(4,), (4,)] and float(seen[0][0]) == pytest.approx(0.9)


def test_a_network_of_one_time_is_refused() -> None:
    with pytest.raises(TypeError, match=r"two_times=True calls the network as model\(x, t, s\)"):
        fastdiff.sample(
            lambda x, t: x,
            shape=(1, 3),
            method="mean_flow",
            schedule="flow",
            prediction="flow",
            two_times=True,
            steps=2,
        )
