"""Methods that are the same under other names, closed forms of their weights, and errors of their options."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastdiff import schedules
from fastdiff.plan import Plan
from fastdiff.plan.phi import phi
from fastdiff.solvers import plan
from fastdiff.solvers.adams import EQUAL, adams_bashforth

TIMES = [float(schedules.ddpm().inverse_lambda(v)) for v in np.linspace(-3.0, 2.5, 9)]


def rows(p: Plan) -> np.ndarray:
    return np.array([[*s.next_u, *s.next_x] for s in p.stages])


SAME: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
    (("exp_heun", {}), ("res_2s", {"c2": 1.0})),
    (("res_multistep", {}), ("dpmpp2m", {"solver_type": "taylor", "lower_order_final": False})),
    (("res_multistep", {"order": 3}), ("dpmpp3m", {"lower_order_final": False})),
    (("res_multistep_ancestral", {"eta": 0.0}), ("res_multistep", {})),
    (("deis", {"order": 4, "form": "rhoab"}), ("lms", {})),
    (("deis", {"order": 1}), ("pf_euler", {})),
    (("lms", {"order": 1}), ("pf_euler", {})),
    (("edm_euler", {}), ("pf_euler", {})),
    (("gradient_estimation", {"gamma": 1.0}), ("pf_euler", {})),
    (("gradient_estimation", {"gamma": 1.5}), ("ipndm", {"max_order": 2})),
    (("res_2s", {"c2": 0.5}), ("dpmpp2s", {"solver_type": "taylor", "fixed": True})),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=str)
def test_the_same_rows(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    times = TIMES
    if "fixed" in other[1]:
        # Its own times are those of the evaluations: the steps' ends, and the middles in lambda.
        times = TIMES[::2]
        other = (other[0], {**other[1], "spacing": TIMES})
    a = rows(plan(one[0], **{"spacing": times, **one[1]}))
    b = rows(plan(other[0], **{"spacing": times, **other[1]}))
    assert a.shape == b.shape
    # A few roundings of weights up to 20, the largest sigma/alpha.
    np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-12)


def test_the_midpoint_of_k_diffusion_is_the_singlestep_solver_of_second_order() -> None:
    a = rows(plan("dpm_2", spacing=TIMES[::2]))
    b = rows(plan("dpm2s", spacing=TIMES, fixed=True))
    # It keeps the first value, whose weight in the end is then 0 but for rounding.
    np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_of_equal_steps(order: int) -> None:
    assert adams_bashforth([-0.3 * k for k in range(order)], 0.3) == pytest.approx([0.3 * w for w in EQUAL[order - 1]])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("form", ["tab", "rhoab", "logrho"])
def test_deis_integrates_polynomials_of_its_variable(form: str, degree: int) -> None:
    """A model value that is v^degree adds the integral of v^degree over sigma/alpha, v the variable of the form."""
    schedule = schedules.vp_linear()
    points = [schedule.at(float(schedule.inverse_lambda(v))) for v in (-2.0, -1.2, -0.7, 0.1, 0.6)]
    p = plan("deis", schedule=schedule, spacing=[q.t for q in points], order=4, form=form)

    def variable(lam: np.ndarray) -> np.ndarray:
        return {"tab": schedule.inverse_lambda, "rhoab": lambda v: np.exp(-v), "logrho": np.negative}[form](lam)

    nodes, weights = np.polynomial.legendre.leggauss(80)
    s, t = points[3], points[4]
    lam = s.lam + 0.5 * (t.lam - s.lam) * (1.0 + nodes)
    exact = -0.5 * (t.lam - s.lam) * np.sum(weights * np.exp(-lam) * variable(lam) ** degree)
    values = variable(np.array([q.lam for q in points[3::-1]])) ** degree
    row = p.stages[3].next_u
    assert np.dot([row[2], *row[3:6]], values) / t.alpha == pytest.approx(exact, rel=1e-11)


def test_res_of_three_stages_fulfils_the_order_conditions() -> None:
    """Hochbruck and Ostermann 2005, Table 2: sum b = phi_1, sum b·c = phi_2, sum b·c² = 2·phi_3 (here at h = 0)."""
    schedule = schedules.edm()
    c2, c3 = 0.4, 0.8
    h = 1e-3
    times = [1.0, math.exp(-h)]
    p = plan("res_3s", schedule=schedule, spacing=times, c2=c2, c3=c3)
    b = np.array([p.stages[2].next_u[k] for k in (4, 3, 2)]) / h
    c = np.array([0.0, c2, c3])
    assert b.sum() == pytest.approx(float(phi(1, -h)), rel=1e-12)
    assert b @ c == pytest.approx(float(phi(2, -h)), rel=1e-12)
    # The third holds at h = 0 alone.
    assert b @ c**2 == pytest.approx(1.0 / 3.0, rel=h)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c2": 2.0 / 3.0}, r"c2=0.666667: method 'res_3s' has no solution at c2 = 2/3"),
        ({"c2": 0.5, "c3": 0.5}, r"c2=0.5, c3=0.5: method 'res_3s' has no solution for them"),
        ({"c2": 0.001}, r"c2=0.001: method 'res_3s' accepts \[0.01, 1\]"),
    ],
)
def test_shares_without_a_solution(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan("res_3s", 5, **options)


def test_the_last_step_to_clean() -> None:
    assert np.count_nonzero(plan("lms", 6, "edm", "karras", final_euler=True).stages[-1].next_u[3:9]) == 0
    assert np.count_nonzero(plan("lms", 6, "edm", "karras").stages[-1].next_u[3:9]) == 3
    assert np.count_nonzero(plan("ipndm", 6, "edm", "karras", final_euler=True).stages[-1].next_u[3:9]) == 0
    assert np.count_nonzero(plan("deis", 6, "edm", "karras").stages[-1].next_u[3:9]) == 0


def test_pndm_starts_as_published() -> None:
    prk = plan("pndm", spacing=TIMES, skip_prk_steps=False)
    assert prk.nfe == 12 + len(TIMES) - 1 - 3
    # Each step evaluates at its begin, twice at the middle of its time, and at its end.
    for i in range(3):
        s, t = TIMES[i], TIMES[i + 1]
        assert [stage.t for stage in prk.stages[4 * i : 4 * i + 4]] == [s, 0.5 * (s + t), 0.5 * (s + t), t]
    assert [stage.t for stage in plan("pndm", spacing=TIMES).stages[:3]] == [TIMES[0], TIMES[1], TIMES[1]]
