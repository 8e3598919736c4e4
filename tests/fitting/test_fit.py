"""`fit`: what it reaches, that it is honest about it, and that its plans run wherever plans do."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from helpers.fitting import SMALL, Torch
from helpers.models import BACKENDS

import fastdiff
from fastdiff.plan import H1, SECOND, M, X


@pytest.fixture(scope="module")
def plan() -> fastdiff.Plan:
    return fastdiff.fit(Torch(), 4, **SMALL)


def distances(model, plan: fastdiff.Plan, seed: int = 77) -> torch.Tensor:
    """(200,) RMS distances to the adaptive solver on starts that no fit has seen."""
    x = fastdiff.randn((200, 3), seed=seed, prior=True, dtype=torch.float64) * model.noise.prior_std()
    run = {"prediction": model.kind, "dtype": torch.float64}
    truth = fastdiff.sample(model, x, method="ode", rtol=1e-6, atol=1e-6, schedule=model.noise, **run)
    return (fastdiff.sample(model, x, plan=plan, **run) - truth).square().mean(1).sqrt()


def test_half_the_evaluations_do(plan: fastdiff.Plan) -> None:
    # The claim of docs/fitting.md: better than the best setting of a good method at twice the evaluations.
    best = fastdiff.tune(Torch(), 8, **{k: v for k, v in SMALL.items() if k not in ("validation", "budget")})
    assert plan.nfe == 4
    assert distances(Torch(), plan).median() < 0.5 * distances(Torch(), best[0].plan).median()


def test_the_reported_errors_are_those_of_fresh_starts(plan: fastdiff.Plan) -> None:
    after, before = plan.origin["errors"]["after"], plan.origin["errors"]["before"]
    assert after["mean"] < before["mean"]
    # 48 and 200 samples of a skewed distance: their medians differ by about a quarter.
    assert float(distances(Torch(), plan).median()) == pytest.approx(after["median"], rel=0.5)


@pytest.mark.filterwarnings("ignore:the teacher's own error")
def test_stages_read_x_and_the_seven_newest_values() -> None:
    made = fastdiff.fit(Torch(), 9, **{**SMALL, "budget": 20})
    rows = [s.next_u for s in made.stages if s.evaluate]
    assert [sum(v != 0 for v in row[H1:SECOND]) for row in rows] == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    assert all(row[X] and row[M] for row in rows)
    assert made.history == 6 and not made.stages[-1].keep


def test_it_is_deterministic(plan: fastdiff.Plan) -> None:
    assert fastdiff.fit(Torch(), 4, **SMALL) == plan


def test_the_split_into_batches_hardly_matters(plan: fastdiff.Plan) -> None:
    other = fastdiff.fit(Torch(), 4, **{**SMALL, "shape": (24, 3)})
    assert other.times == plan.times
    for a, b in zip(other.stages, plan.stages, strict=True):
        # Sums in another order, times the condition of nearly parallel columns (1e-16 / ridge 1e-9).
        assert a.next_u == pytest.approx(b.next_u, abs=1e-6)


def test_another_seed_gives_another_plan(plan: fastdiff.Plan) -> None:
    assert fastdiff.fit(Torch(), 4, **{**SMALL, "seed": 5}) != plan


def test_it_is_saved_without_loss(plan: fastdiff.Plan, tmp_path) -> None:
    plan.save(tmp_path / "plan.json")
    assert fastdiff.Plan.load(tmp_path / "plan.json") == plan
    assert plan.origin["network"]["name"] == "Torch" and plan.origin["seeds"]["validation"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_back_end_runs_it(plan: fastdiff.Plan, backend: str) -> None:
    x = fastdiff.randn((5, 3), seed=3, prior=True, dtype=torch.float64)
    truth = fastdiff.sample(Torch(), x, plan=plan, dtype=torch.float64, backend="reference")
    found = fastdiff.sample(Torch(), x, plan=plan, dtype=torch.float64, backend=backend)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


def test_a_loop_of_the_callers_gives_the_same(plan: fastdiff.Plan) -> None:
    model, sampler = Torch(), fastdiff.Sampler(plan=plan, dtype=torch.float64)
    x = fastdiff.randn((5, 3), seed=3, prior=True, dtype=torch.float64)
    state = sampler.begin(x)
    while not state.done:
        state = sampler.step(state, model(state.input, state.time))
    assert torch.equal(state.x, sampler(model, x))


def test_a_trajectory_of_it(plan: fastdiff.Plan) -> None:
    x, path = fastdiff.sample(Torch(), shape=(2, 3), plan=plan, dtype=torch.float64, return_trajectory=True)
    assert path.x.shape == (5, 2, 3) and torch.equal(path.x[-1], x)


@pytest.mark.parametrize(
    ("schedule", "prediction", "space"),
    [("vp_linear", "v", "data"), ("flow", "flow", "velocity"), ("edm", "x0", "data"), ("cosine", "eps", "noise")],
)
def test_schedules_and_predictions(schedule: str, prediction: str, space: str) -> None:
    model = Torch(schedule, prediction)
    small = {**SMALL, "methods": ["dpmpp2m", "unipc"], "schedule": schedule, "prediction": prediction}
    made = fastdiff.fit(model, 4, **small)
    assert made.space == space
    errors = made.origin["errors"]
    assert errors["after"]["median"] < 0.5 * errors["before"]["median"]
    if made.schedule["type"] != "Flow":  # whose adaptive solver needs a finite start
        fresh = distances(model, made)
        # Four standard errors of the difference of the two means.
        within = 4 * math.hypot(errors["after"]["spread"], float(fresh.std()) / len(fresh) ** 0.5)
        assert abs(float(fresh.mean()) - errors["after"]["mean"]) < within


def test_guidance_and_conditions() -> None:
    def conditions(first: int, count: int):
        shift = 0.1 * (torch.arange(first, first + count) % 5).double()
        return {"cond": {"shift": shift}, "uncond": {"shift": torch.zeros(count, dtype=torch.float64)}}

    made = fastdiff.fit(Torch(), 4, **SMALL, guidance=2.0, conditions=conditions)
    errors = made.origin["errors"]
    assert made.origin["guidance"] == "ClassifierFree(scale=2.0)"
    assert errors["after"]["median"] < 0.5 * errors["before"]["median"]
    given = conditions(0, 4)
    run = {"shape": (4, 3), "plan": made, "dtype": torch.float64}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdiff.sample(Torch(), **run, guidance=2.0, **given)
    with pytest.warns(UserWarning, match=r"fitted with guidance ClassifierFree\(scale=2.0\), not ClassifierFree"):
        fastdiff.sample(Torch(), **run, guidance=3.0, **given)


def test_other_uses_warn(plan: fastdiff.Plan) -> None:
    run = {"shape": (2, 3), "plan": plan, "dtype": torch.float64}
    with pytest.warns(UserWarning, match="fitted with prediction eps, not v"):
        fastdiff.sample(Torch(), **run, prediction="v")
    with pytest.warns(UserWarning, match="fitted with schedule .*, not"):
        fastdiff.sample(Torch(), **run, schedule="cosine")
    with pytest.warns(UserWarning, match="fitted with prediction eps, not x0"):
        fastdiff.Sampler(plan=plan, prediction="x0").begin(shape=(2, 3))


def test_a_plan_with_an_origin_may_give_the_network_other_times(plan: fastdiff.Plan) -> None:
    stage = dataclasses.replace(plan.stages[-1], model_time=plan.stages[-1].model_time + 3.0)
    stages = (*plan.stages[:-1], stage)
    assert dataclasses.replace(plan, stages=stages).stages[-1].model_time == stage.model_time
    with pytest.raises(ValueError, match="but the schedule has"):
        dataclasses.replace(plan, stages=stages, origin={})


def test_polish_lowers_the_loss_with_gradients(plan: fastdiff.Plan) -> None:
    better = fastdiff.fit(Torch(), 4, **SMALL, polish=True, polish_rounds=2)
    after, plain = better.origin["errors"]["after"], plan.origin["errors"]["after"]
    assert after["mean"] < plain["mean"]
    assert any(s.model_time != better_time(better, s) for s in better.stages if s.evaluate)


def better_time(plan: fastdiff.Plan, stage: fastdiff.Stage) -> float:
    return fastdiff.schedules.NoiseSchedule.from_dict(plan.schedule).model_time(stage.t)


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_polish_goes_through_guidance_clip_and_conversion(prediction: str) -> None:
    model, seen = Torch("vp_linear", prediction), {}
    shift = torch.full((48,), 0.2, dtype=torch.float64)
    small = {**SMALL, "budget": 10, "schedule": "vp_linear", "prediction": prediction, "clip": (-3.0, 3.0)}
    given = {"guidance": 1.5, "cond": {"shift": shift}, "uncond": {"shift": 0 * shift}}

    def watch(phase: str, done: int, expected: int, loss: float | None) -> None:
        seen.setdefault(phase, []).append(loss)

    fastdiff.fit(model, 3, **small, **given, polish=True, polish_rounds=1, callback=watch)
    # The same loop in torch as the search's in the fused operation; then L-BFGS.
    assert seen["polish"][0] == pytest.approx(min(seen["search"]), rel=1e-9)
    assert seen["polish"][-1] < 0.99 * seen["polish"][0]


def test_losses() -> None:
    def own(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (x - target).abs().amax(1)

    made = [fastdiff.fit(Torch(), 3, **{**SMALL, "budget": 30}, loss=loss) for loss in ("norm", "square", own)]
    assert made[0].stages != made[1].stages
    assert made[2].origin["loss"] == "function"


def test_the_cost_is_said_before_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    model, seen = Torch(), []
    made = fastdiff.fit(model, 3, **SMALL, callback=lambda *said: seen.append(said))
    assert made.origin["evaluations"] == model.rows
    assert model.rows <= seen[0][2]
    assert {phase for phase, *_ in seen} == {"teacher", "tune", "search", "validation"}
    assert max(done for _, done, _, _ in seen) <= seen[0][2]


def test_a_given_start_saves_the_tuning() -> None:
    start = fastdiff.plan("dpm2", 3, spacing="time_quadratic")
    made = fastdiff.fit(Torch(), 3, **SMALL, start=start)
    assert made.origin["start"] == "start (dpm2)"
    assert made.origin["errors"]["after"]["mean"] < made.origin["errors"]["before"]["mean"]


def test_teachers(plan: fastdiff.Plan) -> None:
    small = {**SMALL, "budget": 10, "trajectories": 16, "validation": 8, "shape": (16, 3)}
    for teacher in ("ode", fastdiff.plan("dpm3", 40)):
        made = fastdiff.fit(Torch(), 3, **{**small, "teacher": teacher})
        assert made.origin["errors"]["after"]["mean"] < made.origin["errors"]["before"]["mean"]


def test_a_coarse_teacher_is_told() -> None:
    with pytest.warns(UserWarning, match="the teacher's own error"):
        fastdiff.fit(Torch(), 6, **{**SMALL, "teacher": 12})


def test_a_plan_that_is_not_better_than_its_start_is_refused(plan: fastdiff.Plan) -> None:
    # Two trajectories and a start that was fitted to 64: nothing better comes of it.
    with pytest.raises(RuntimeError, match=r"is not better than its start.*trajectories=4"):
        fastdiff.fit(Torch(), 4, **{**SMALL, "trajectories": 2, "start": plan})


def test_offloaded_states_give_the_same(plan: fastdiff.Plan) -> None:
    assert fastdiff.fit(Torch(), 4, **SMALL, offload=True) == plan
