"""Plan: validation, JSON, printing, immutability; and what `Recorder.finish` takes out of the history."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers.analytic import mixture
from helpers.methods import TABLES as METHODS
from helpers.run_plan import network, run

from fastdiff.plan import IDENTITY, REGISTERS, Plan, Stage
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.solvers import plan
from fastdiff.solvers.base import ROW, Draw, Recorder


def row(**coefficients: float) -> tuple[float, ...]:
    return tuple(coefficients.get(name, 0.0) for name in REGISTERS)


def stage(**changes: object) -> Stage:
    values = {
        "t": 9.0,
        "model_time": 9.0,
        "alpha": 0.6,
        "sigma": 0.8,
        "next_u": row(x=0.5, m=0.25),
        "t_next": 4.0,
        "keep": True,
    }
    values |= changes
    values.setdefault("next_x", values["next_u"])
    return Stage(**values)  # type: ignore[arg-type]


SECOND = stage(t=4.0, model_time=4.0, t_next=0.0, next_u=row(x=0.5, m=0.25, h1=-0.125), step=1, keep=False)


def make(**changes: object) -> Plan:
    values = {
        "method": "own",
        "space": "noise",
        "order": 2,
        "times": (9.0, 4.0, 0.0),
        "stages": (stage(), SECOND),
    } | changes
    return Plan(**values)  # type: ignore[arg-type]


def test_a_plan_by_hand() -> None:
    p = make()
    assert (p.steps, p.nfe, p.history, p.stochastic, p.draws) == (2, 2, 1, False, 0)
    noisy = make(stages=(stage(next_u=row(x=1.0, zb=0.5), draws=(-1, 3, -1)), SECOND))
    assert (noisy.stochastic, noisy.draws) == (True, 4)


def noisy(**changes: object) -> Stage:
    return stage(**{"next_u": row(x=1.0, za=0.5), "draws": (0, -1, -1), "keep": False, "model_time": 9.0, **changes})


def again(draw: int, span: tuple[float, float]) -> Stage:
    """The second stage of two that draw noise."""
    return noisy(t=4.0, model_time=4.0, t_next=0.0, step=1, draws=(draw, -1, -1), spans=(span, (), ()))


def test_a_plan_knows_whether_its_draws_are_parts_of_a_path() -> None:
    one, two = (9.0, 4.0), (4.0, 0.0)
    assert make().spanned, "there is nothing to draw"
    assert make(stages=(noisy(spans=(one, (), ())), again(1, two))).spanned
    assert make(stages=(noisy(spans=(one, (), ())), again(0, one))).spanned, "the same draw twice"
    without = noisy(t=4.0, model_time=4.0, t_next=0.0, step=1, draws=(1, -1, -1))
    assert not make(stages=(noisy(spans=(one, (), ())), without)).spanned


def test_spans_are_written_and_printed_where_there_are_any() -> None:
    p = make(stages=(noisy(spans=((9.0, 4.0), (), ())), again(0, (9.0, 4.0))))
    assert Plan.from_json(p.to_json()) == p and '"spans"' not in make().to_json()
    lines = str(p).splitlines()
    assert lines[0].endswith("stochastic with spans")
    assert "0.5 za#0 " in lines[2] and "0.5 za#0[9, 4]" in lines[3]
    data = json.loads(p.to_json())
    for bad, kind in ((3, "a list of lists"), ([3, [], []], "a list of numbers"), ([["a"], [], []], "a number")):
        data["stages"][0]["spans"] = bad
        with pytest.raises(ValueError, match=rf"^not a fastdiff plan: stage 0 'spans' must be {kind}"):
            Plan.from_json(json.dumps(data))


INVALID = [
    ({"space": "eps"}, r"space: got 'eps', expected one of noise, data, velocity, score"),
    ({"times": (9.0,)}, r"times: expected at least two, got 1"),
    ({"times": (9.0, float("nan"), 0.0)}, r"times: not finite"),
    ({"times": (9.0, 9.0, 0.0)}, r"times: must be strictly monotone, but times\[0\]=9, times\[1\]=9"),
    ({"times": (9.0, 4.0, 5.0)}, r"strictly monotone, but times\[1\]=4, times\[2\]=5"),
    ({"prior_std": 0.0}, r"prior_std: expected a positive finite number, got 0.0"),
    ({"stages": ()}, r"stages: a plan needs at least one"),
    ({"stages": (stage(next_u=(1.0,)), SECOND)}, r"stage 0: next_u needs 13 coefficients \(x, u, m, h1.*zc\), got 1"),
    (
        {"stages": (stage(next_u=row(x=1.0, m=float("inf"))), SECOND)},
        r"stage 0: next_u has a non-finite coefficient of m",
    ),
    ({"stages": (stage(next_x=row(u=float("nan"))), SECOND)}, r"stage 0: next_x has a non-finite coefficient of u"),
    ({"stages": (stage(keep=False), SECOND)}, r"stage 1: next_u reads h1, but only 0 earlier model values are kept"),
    ({"stages": (stage(next_u=row(x=1.0, h1=1.0)), SECOND)}, r"stage 0: next_u reads h1, but only 0"),
    (
        {"stages": (stage(), dataclasses.replace(SECOND, next_u=row(x=1.0, h2=1.0)))},
        r"stage 1: next_u reads h2, but only 1",
    ),
    (
        {"stages": (stage(evaluate=False, keep=False), SECOND)},
        r"stage 0: next_u reads the model value, but the stage does not evaluate",
    ),
    (
        {"stages": (stage(evaluate=False, next_u=row(second=1.0), keep=False), SECOND)},
        r"stage 0: .*does not evaluate the network",
    ),
    ({"stages": (stage(evaluate=False, next_u=row(x=1.0)), SECOND)}, r"stage 0: keep without a network evaluation"),
    ({"stages": (stage(next_u=row(x=1.0, za=1.0)), SECOND)}, r"stage 0: next_u reads za, which has no draw number"),
    ({"stages": (stage(next_u=row(x=1.0, zc=1.0), draws=(0, 1, -1)), SECOND)}, r"reads zc, which has no draw number"),
    ({"stages": (stage(model_time=float("inf")), SECOND)}, r"stage 0: model_time is not finite: inf"),
    ({"stages": (stage(in_scale=float("nan")), SECOND)}, r"stage 0: in_scale is not finite: nan"),
    (
        {"stages": (stage(alpha=-0.1), SECOND)},
        r"stage 0: alpha=-0.1 and sigma=0.8 must be non-negative and not both zero",
    ),
    ({"stages": (stage(alpha=0.0, sigma=0.0), SECOND)}, r"not both zero"),
    (
        {"stages": (stage(), dataclasses.replace(SECOND, model_time=9.0))},
        r"stage 1: model time 9 already began the step of stage 0",
    ),
    (
        {"stages": (stage(), dataclasses.replace(SECOND, next_x=IDENTITY))},
        r"stage 1: the last stage's next_u must equal its next_x",
    ),
    ({"stages": (stage(t_next=5.0), SECOND)}, r"stage 1: t=4, but stage 0 leads to t_next=5"),
    ({"times": (8.0, 4.0, 0.0)}, r"times: begin at 8, but stage 0 is at t=9"),
    ({"stages": (noisy(spans=((9.0, 4.0),)), SECOND)}, r"stage 0: spans needs \(\) or 3 entries, .*; got \(\(9"),
    (
        {"stages": (noisy(spans=((9.0, 9.0), (), ())), SECOND)},
        r"stage 0: the span of za got \(9.0, 9.0\), expected \(\) or two different finite times \(from, to\)",
    ),
    ({"stages": (noisy(spans=((9.0,), (), ())), SECOND)}, r"stage 0: the span of za got \(9.0,\), expected"),
    (
        {"stages": (noisy(spans=((9.0, 4.0), (9.0, 4.0), ())), SECOND)},
        r"stage 0: the span of zb is \(9.0, 4.0\), but zb has no draw number",
    ),
    (
        {"stages": (noisy(spans=((9.0, 4.0), (), ())), again(0, (4.0, 0.0)))},
        r"stage 1: draw 0 has the span \(4.0, 0.0\), but before it had \(9.0, 4.0\): a draw that is used again",
    ),
    (
        {"stages": (noisy(spans=((9.0, 4.0), (), ())), again(1, (5.0, 0.0)))},
        r"spans: those of draws 1 and 0, \(5.0, 0.0\) and \(9.0, 4.0\), overlap: draws of different numbers are",
    ),
    ({"times": (9.0, 4.0, 1.0)}, r"times: end at 1, but the last stage leads to t_next=0"),
]


@pytest.mark.parametrize(("changes", "message"), INVALID, ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_validation_names_the_place_and_the_reason(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^invalid plan: .*" + message):
        make(**changes)


def test_a_stage_must_fit_the_schedule() -> None:
    good = plan("dpm2", 2)
    for name, value in (("alpha", 0.5), ("sigma", 0.1), ("model_time", 3.0)):
        bad = (dataclasses.replace(good.stages[0], **{name: value}), *good.stages[1:])
        with pytest.raises(ValueError, match=rf"invalid plan: stage 0: {name}=.*, but the schedule has .* at t=999"):
            dataclasses.replace(good, stages=bad)
    outside = (dataclasses.replace(good.stages[0], t=1000.0), *good.stages[1:])
    with pytest.raises(ValueError, match=r"time 1000.0 is outside the range of ddpm"):
        dataclasses.replace(good, stages=outside, times=(1000.0, *good.times[1:]))


def every_plan() -> list[Plan]:
    plans = [plan(name, 4, "vp_linear", "time_uniform") for name in METHODS]
    return [
        *plans,
        plan("ddim", 4, "cosine", eta=0.5),
        plan("heun", 4, "edm", s_churn=3.0),
        plan("unipc", spacing=[900, 500, 20, -1]),
    ]


@pytest.mark.parametrize("p", every_plan(), ids=lambda p: f"{p.method}-{p.schedule['type']}")
def test_json_loses_nothing(p: Plan, tmp_path: Path) -> None:
    again = Plan.from_json(p.to_json())
    assert again == p and hash(again) == hash(p) and again.fingerprint() == p.fingerprint()
    assert again.to_json() == p.to_json() and again.stages == p.stages
    p.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == p
    assert NoiseSchedule.from_dict(again.schedule).to_dict() == NoiseSchedule.from_dict(p.schedule).to_dict()
    assert pickle.loads(pickle.dumps(p)) == p and copy.deepcopy(p) == p


def test_json_is_strict_json() -> None:
    def refuse(name: str) -> float:
        raise AssertionError(name)

    for p in [*every_plan(), plan("heun", 3, "edm"), plan("ddim", 3, resolve("flow"))]:
        json.loads(p.to_json(), parse_constant=refuse)


def test_hash_and_fingerprint_tell_plans_apart() -> None:
    plans = [
        plan("dpm3", 4),
        plan("dpm3", 5),
        plan("dpm3", 4, "cosine"),
        plan("dpm2", 4),
        plan("dpm3", 4, lower_order_final=False),
    ]
    assert len(set(plans)) == len({p.fingerprint() for p in plans}) == len(plans)
    assert plan("dpm3", 4) in set(plans)


BAD_JSON = [
    ("[]", r"not a fastdiff plan: expected a JSON object with the key 'format'"),
    ("{}", r"not a fastdiff plan"),
    ("not json", r"not a fastdiff plan: not JSON"),
    ('{"format": 3}', r"plan format 3 is not supported; this version reads formats 1 and 2"),
    ('{"format": 1}', r"not a fastdiff plan: lacks 'method'"),
]


@pytest.mark.parametrize(("text", "message"), BAD_JSON)
def test_what_is_not_a_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def test_json_with_unknown_or_missing_fields_is_refused() -> None:
    data = json.loads(make().to_json())
    with pytest.raises(ValueError, match=r"unknown field of a plan 'stepz'"):
        Plan.from_json(json.dumps({**data, "stepz": 3}))
    del data["stages"][0]["alpha"]
    with pytest.raises(ValueError, match=r"not a fastdiff plan: stage 0 lacks 'alpha'"):
        Plan.from_json(json.dumps(data))
    data["stages"] = 3
    with pytest.raises(ValueError, match=r"not a fastdiff plan: 'stages' must be a list of objects"):
        Plan.from_json(json.dumps(data))


def test_json_is_validated_like_any_plan() -> None:
    text = make().to_json().replace('"space": "noise"', '"space": "pixels"')
    with pytest.raises(ValueError, match=r"invalid plan: space: got 'pixels'"):
        Plan.from_json(text)


def test_print() -> None:
    lines = str(
        make(stages=(stage(next_x=IDENTITY, next_u=row(x=0.5, m=-0.25, za=2.0), draws=(7, -1, -1)), SECOND))
    ).splitlines()
    assert lines[0] == "own: 2 steps, 2 network evaluations, order 2, noise space, history 1, stochastic"
    assert lines[1].split() == ["stage", "step", "t", "model", "t", "alpha", "sigma", "next", "u", "next", "x"]
    assert lines[2].split() == "0+ 0 9 9 0.6 0.8 0.5 x - 0.25 m + 2 za#7 = x".split()
    assert lines[3].split() == "1 1 4 4 0.6 0.8 0.5 x + 0.25 m - 0.125 h1 = u".split()
    assert lines[4] == "(+: the model value is kept in the history; *: no network evaluation)"
    assert "0*" in str(plan("heun", 3, "edm", s_churn=3.0))


def test_immutable() -> None:
    p = plan("ddim", 3, eta=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.method = "dpm3"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.stages[0].t = 3.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        p.options["eta"] = 1.0  # type: ignore[index]
    with pytest.raises(TypeError):
        p.schedule["log_alphas"][0] = 0.0
    own = {"eta": 0.5, "list": [1, 2]}
    q = make(options=own)
    own["list"].append(3)  # type: ignore[attr-defined]
    assert q.options["list"] == (1, 2)


def test_options_must_be_json_values() -> None:
    with pytest.raises(TypeError, match=r"a plan's options must be JSON values, got object"):
        make(options={"a": object()})
    assert make(options={"a": np.float64(1.5), "b": np.arange(2)}).options == {"a": 1.5, "b": (0, 1)}


@pytest.mark.parametrize("name", METHODS)
def test_finish_only_drops_values_that_nothing_reads(name: str) -> None:
    p = plan(name, 6, "vp_linear", "time_uniform")
    everything = dataclasses.replace(p, stages=tuple(dataclasses.replace(s, keep=s.evaluate) for s in p.stages))
    dist = mixture([0.5, 0.5], [[-1.0], [1.0]], [0.3, 0.4])
    x = np.array([[0.3], [-1.2]])
    if any(s.keep for s in p.stages):
        # A value kept before the first that is read, or between such ones, would shift the history.
        kept = [s.keep for s in p.stages]
        last = max(k for k, v in enumerate(kept) if v)
        reads = [any(s.next_u[3:9]) or any(s.next_x[3:9]) for s in p.stages]
        assert any(reads[last + 1 :]), "the last kept value is read"
    # Of several evaluations in a step, some are never kept.
    if (
        METHODS[name].nfe_per_step == 1 and name not in ("dpm2s", "dpm3s", "dpmpp2s", "dpmpp3s", "pndm")
    ) or name == "pc":
        a, b = (run(q, network(dist, "eps"), x, noise=lambda d, like: np.sin(d + like)) for q in (p, everything))
        assert np.array_equal(a, b)


def test_finish_on_rows_by_hand() -> None:
    rows, at = Recorder(), [resolve("flow").at(t) for t in (0.9, 0.7, 0.5, 0.3, 0.1)]
    forms = [ROW["x"], ROW["x"] + ROW["h1"], ROW["x"] + ROW["h1"], ROW["x"] + ROW["m"]]
    for i, form in enumerate(forms):
        rows.add(at[i], at[i + 1], form, step=i, keep=True)
    assert [s.keep for s in rows.finish()] == [True, True, False, False]


def test_a_stage_may_read_several_draws_and_one_again() -> None:
    rows, at = Recorder(), [resolve("flow").at(t) for t in (0.9, 0.7, 0.5, 0.3)]
    first, second, unused, own = Draw(at[0], at[1]), Draw(at[1], at[2]), Draw(at[0], at[2]), Draw()
    rows.add(at[0], at[1], ROW["x"] + 0.1 * ROW["za"], step=0, noise=(first,))
    rows.add(at[1], at[2], ROW["x"] + 0.1 * ROW["za"] + 0.2 * ROW["zb"], step=0, noise=(first, second, unused))
    rows.add(at[1], at[2], ROW["x"], ROW["x"] + ROW["zc"], step=0, noise=(unused, unused, own))
    rows.add(at[2], at[3], ROW["x"] + ROW["za"], step=1)
    a, b, c, d = rows.finish()
    assert (a.draws, a.spans) == ((0, -1, -1), ((0.9, 0.7), (), ()))
    assert (b.draws, b.spans) == ((0, 1, -1), ((0.9, 0.7), (0.7, 0.5), ()))
    assert (c.draws, c.spans) == ((-1, -1, 2), ())
    assert (d.draws, d.spans) == ((3, -1, -1), ())
    with pytest.raises(ValueError, match=r"stage 4 reads zb, but 1 draws were given: add\(\.\.\., noise=\(Draw"):
        rows.add(at[2], at[3], ROW["x"] + ROW["zb"], step=1, noise=(own,))
