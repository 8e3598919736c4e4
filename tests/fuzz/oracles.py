"""What must hold of results, whatever the call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import fastdiff
from fastdiff.options import RUN_DEFAULTS
from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule
from fastdiff.solvers import METHODS

Check = Callable[[Any], None]


def result_of(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def of_sample(model: Any, made: dict[str, Any]) -> Check:
    """Finite, the same again, the same in parts, and in float64 the same by the reference."""
    before = {k: v.clone() for k, v in (made.get("cond") or {}).items()}

    def check(got: Any) -> None:
        x = result_of(got)
        assert bool(torch.isfinite(x).all()), "the result has NaN or Inf"
        again = result_of(fastdiff.sample(model, **made))
        assert torch.equal(x, again), "two equal calls differ"
        for key, value in before.items():
            assert torch.equal(made["cond"][key], value), "an argument was changed"
        batch = made["shape"][0]
        adaptive = METHODS[made["method"]].adaptive
        joined = made["method"] == "pc" and made.get("norm", "batch") == "batch"
        if batch > 1 and not joined and not (adaptive and made.get("control", "batch") == "batch"):
            one = dict(made, shape=(1, *made["shape"][1:]), first_sample=batch - 1)
            for name in ("cond", "uncond"):
                if made.get(name) is not None:
                    one[name] = {k: v[-1:] for k, v in made[name].items()}
            close(result_of(fastdiff.sample(model, **one)), x[-1:], 1e-4, "the last sample alone differs")
        if not adaptive:
            wide = dict(made, dtype=torch.float64)
            shape, noisy = wide.pop("shape"), fastdiff.Sampler(**_sampler(wide)).plan.stochastic
            start = fastdiff.randn(shape, seed=1, dtype=torch.float64)
            fast, slow = (result_of(fastdiff.sample(model, start, **wide, backend=b)) for b in ("cpu", "reference"))
            # The order of float64 sums; normals agree to 1e-6, which a step may enlarge.
            close(fast, slow, 1e-4 if noisy else 1e-9, "the fast back end and the reference differ")

    return check


def _sampler(made: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `sample` that are the sampler's."""
    return {k: v for k, v in made.items() if k not in RUN_DEFAULTS}


def close(a: torch.Tensor, b: torch.Tensor, rtol: float, what: str) -> None:
    """To `rtol` of the largest value."""
    size = max(float(b.abs().max()), 1.0)
    error = float((a.double() - b.double()).abs().max())
    assert error <= rtol * size, f"{what} by {error / size:.2g} of the largest value"


def unchanged(x: torch.Tensor, clip: Any) -> Check:
    before = x.clone()

    def check(got: Any) -> None:
        assert torch.equal(x.isnan(), before.isnan()) and torch.equal(x.nan_to_num(), before.nan_to_num()), (
            "x was changed"
        )
        assert bool(torch.isfinite(result_of(got)).all()), "the result has NaN or Inf"

    return check


def as_one_call(model: Any, made: dict[str, Any], run: dict[str, Any]) -> Check:
    """A loop of the caller's own gives what the sampler gives."""

    def check(got: Any) -> None:
        given = dict(run)
        if "guidance" in given:
            y = torch.zeros(given["shape"][0])
            given.update(cond={"y": y}, uncond={"y": y})
        assert torch.equal(got, fastdiff.Sampler(**made)(model, **given)), "the loop and the call differ"

    return check


def deterministic_inverse(made: dict[str, Any]) -> Check:
    def check(got: Any) -> None:
        x = result_of(got)
        assert x.ndim and not bool(torch.isinf(x).any()) and not bool(torch.isnan(x).any()), "the noise is not finite"
        sampler = fastdiff.Sampler(**made)
        if not METHODS[made["method"]].adaptive:
            assert not sampler.inverse.plan.stochastic, "an inverse that draws noise"

    return check


def round_trip(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan and again.to_json() == plan.to_json(), "a plan changes when it is saved"
    assert str(plan)


def of_randn(made: dict[str, Any]) -> Check:
    def check(got: torch.Tensor) -> None:
        assert bool(torch.isfinite(got).all()) and float(got.abs().max()) < 7.0, "no standard normals"
        slow = fastdiff.randn(**made, backend="reference")
        close(got, slow, 2e-6, "the fast back end and the reference differ")

    return check


def of_schedule(schedule: NoiseSchedule) -> None:
    """Within float64, the ends are what they say, and a schedule survives its dictionary."""
    assert NoiseSchedule.from_dict(schedule.to_dict()) == schedule, "a schedule changes when it is saved"
    low, high = schedule.at(schedule.t_clean), schedule.at(schedule.t_max)
    assert low.sigma == 0 or math.isinf(low.lam) or low.lam > high.lam, "the noise does not grow"
    assert repr(schedule)


def repeatable(function: Callable[..., Any], model: Any, made: dict[str, Any]) -> Check:
    def check(got: torch.Tensor) -> None:
        assert bool(torch.isfinite(got).all()), "the loss is not finite"
        assert torch.equal(got, function(model, **made)), "two equal calls differ"

    return check
