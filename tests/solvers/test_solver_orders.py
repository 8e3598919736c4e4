"""Observed orders of convergence, on a mixture whose probability flow ODE is solved to 1e-12."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from helpers.analytic import Array, mixture, mixture_ode
from helpers.methods import TABLES as METHODS
from helpers.run_plan import network, run

from fastdiff.schedules import edm, vp_linear
from fastdiff.solvers import plan

MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
Z = np.array([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]])
# On logSNR steps of VP the start of a multistep method, of lower order, does no harm: at lambda = -5 the model value
# hardly
# changes with lambda. 2 modulo 3: a singlestep plan of order 3 that mixes orders then ends with one of order 2, whose
# local
# error is of order 3; other remainders end with a first-order step.
STEPS = (161, 320, 641)
# Errors here lie above 4e-9; rounding, 1e-16 times the amplification of 150 by 1/alpha and the number of steps, below
# 1e-11.


@functools.cache
def reference(start: tuple[float, float], end: tuple[float, float]) -> Array:
    return mixture_ode(MIXTURE, Z * np.hypot(*start), start, end)


def errors(method: str, steps: tuple[int, ...] = STEPS, **options: object) -> tuple[list[float], int]:
    schedule, found, claimed = vp_linear(), [], 0
    for n in steps:
        p = plan(method, n, schedule, "logsnr", **options)
        first, last = p.stages[0], schedule.at(p.times[-1])
        truth = reference((first.alpha, first.sigma), (last.alpha, last.sigma))
        found.append(
            float(np.abs(run(p, network(MIXTURE, "eps"), Z * np.hypot(first.alpha, first.sigma)) - truth).max())
        )
        claimed = p.order
    return found, claimed


def slope(steps: tuple[int, ...], found: list[float]) -> float:
    return float(-np.polyfit(np.log(steps), np.log(found), 1)[0])


SINGLESTEP = [
    (m, {"fixed": f, "solver_type": s})
    for m in ("dpm2s", "dpm3s", "dpmpp2s", "dpmpp3s")
    for f in (False, True)
    for s in ("taylor", "dpmsolver")
]
MULTISTEP = [(m, {"solver_type": s}) for m in ("dpm2", "dpm3", "dpmpp2m", "dpmpp3m") for s in ("taylor", "dpmsolver")]
UNIPC = [
    ("unipc", {"order": p, "variant": v, "corrector": c, "prediction_type": s, "lower_order_final": False})
    for p in (1, 2, 3)
    for v in ("bh1", "bh2", "vary_coeff")
    for c in (True, False)
    for s in ("data", "noise")
]
ADAMS = [
    *(("lms", {"order": k}) for k in (2, 4)),
    *(("deis", {"order": k, "form": f}) for k, f in ((2, "logrho"), (4, "tab"))),
    ("deis", {}),
    ("res_multistep", {}),
    ("res_multistep", {"order": 3}),
    ("res_2s", {"c2": 0.3}),
    ("res_3s", {"c2": 0.4, "c3": 0.7}),
    ("ipndm", {}),
    ("pndm", {}),
    ("pndm", {"skip_prk_steps": False}),
    ("gradient_estimation", {}),
    ("gradient_estimation", {"gamma": 1.5}),
]
VARIED = [
    *ADAMS,
    ("dpmpp2m_sde", {"eta": 0.0}),
    ("dpmpp2m_sde", {"eta": 0.0, "solver_type": "heun"}),
    *MULTISTEP,
    *SINGLESTEP,
    *UNIPC,
]
# Every other deterministic method, as it is by default: one that is registered enters here.
PLAIN = [(m, {}) for m, entry in METHODS.items() if not entry.stochastic and m not in {name for name, _ in VARIED}]
CASES = [*PLAIN, *VARIED]


@pytest.mark.parametrize(
    ("method", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_observed_order_is_the_claimed_one(method: str, options: dict[str, object]) -> None:
    found, claimed = errors(method, **options)
    order = slope(STEPS, found)
    assert abs(order - claimed) < 0.3, (order, found)
    if claimed == 3 and options.get("order") != 2:
        # Three or better, between the two finest grids; 0.05 for what is left of the next order, 0.1 for deis, whose
        # polynomials are not in the variable of these steps (2.87 and 2.93 between the last three grids).
        assert slope(STEPS[-2:], found[-2:]) > (2.9 if method == "deis" else 2.95), found


@pytest.mark.parametrize("method", ["dpm3", "dpmpp3m"])
def test_the_published_third_order_update_is_of_second_order(method: str) -> None:
    # Its second derivative is half of what the Taylor term needs.
    published, claimed = errors(method, solver_type="dpmsolver")
    ours, better = errors(method, solver_type="taylor")
    assert (claimed, better) == (2, 3)
    assert slope(STEPS, published) < 2.3
    assert slope(STEPS, ours) > 2.95
    assert published[-1] > 20 * ours[-1]


@pytest.mark.parametrize("space", ["data", "noise"])
def test_unipc_with_its_defaults_is_of_third_order_until_the_last_step_dominates(space: str) -> None:
    # lower_order_final makes the last step, at a small sigma, first order: 2 in the limit of many steps.
    steps = (20, 40, 80, 160)
    found, claimed = errors("unipc", steps, prediction_type=space)
    assert claimed == 3
    assert slope(steps, found) > 2.7


@pytest.mark.parametrize(("space", "plain"), [("data", "dpmpp1"), ("noise", "dpm1")])
def test_unipc_of_first_order_with_the_weights_of_eq_11(space: str, plain: str) -> None:
    # Without a difference to weigh, the predictor is DPM-Solver's first order; the published one stops there.
    options = {"order": 1, "variant": "vary_coeff", "prediction_type": space}
    alone = plan("unipc", 6, "vp_linear", "logsnr", corrector=False, **options)
    for one, other in zip(alone.stages, plan(plain, 6, "vp_linear", "logsnr").stages, strict=True):
        assert np.allclose(one.next_u, other.next_u, rtol=1e-13, atol=1e-15)


# A mixture of wide modes, and a start at lambda = -11: the first step, of first order, then errs by less than 1e-11.
WIDE = mixture([0.4, 0.6], [[-0.6, 0.3], [0.5, -0.4]], [0.7, 0.8])
LONG = vp_linear(beta_max=45.0)


@functools.cache
def reference_wide() -> Array:
    start, end = ((p.alpha, p.sigma) for p in (LONG.at(LONG.t_max), LONG.at(0.02)))
    return mixture_ode(WIDE, Z * np.hypot(*start), start, end)


@pytest.mark.parametrize("space", ["data", "noise"])
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary_coeff"])
@pytest.mark.parametrize("order", [4, 5, 6])
def test_high_orders_of_unipc(order: int, variant: str, corrector: bool, space: str) -> None:
    steps, found = (226, 320), []
    options = {"order": order, "variant": variant, "corrector": corrector, "prediction_type": space}
    prediction = "x0" if space == "data" else "eps"
    for n in steps:
        p = plan("unipc", n, LONG, "logsnr", t_end=0.02, lower_order_final=False, **options)
        x = Z * np.hypot(p.stages[0].alpha, p.stages[0].sigma)
        found.append(float(np.abs(run(p, network(WIDE, prediction), x, prediction) - reference_wide()).max()))
    # The corrector adds one. From below the order is reached to 0.2 here; the predictor of order 5 in noise space does
    # better than it must.
    assert p.order == order + corrector
    assert slope(steps, found) > p.order - 0.25, found
    assert 1e-12 < found[-1] < 1e-6


def test_few_steps_lower_the_order_of_the_last() -> None:
    lowered, kept = plan("dpm3", 9), plan("dpm3", 9, lower_order_final=False)
    assert [s.next_u[3:5] == (0.0, 0.0) for s in lowered.stages] == [True, *[False] * 7, True]
    assert [s.next_u[4] != 0 for s in lowered.stages] == [False, False, *[True] * 5, False, False]
    assert [s.next_u[4] != 0 for s in kept.stages] == [False, False, *[True] * 7]
    assert [s.next_u[4] != 0 for s in plan("dpm3", 10).stages] == [False, False, *[True] * 8]


def test_order_does_not_depend_on_the_schedule() -> None:
    # EDM's sigmas with the Karras spacing, to a final sigma above 0.
    found, schedule, steps = [], edm(), (40, 80, 160)
    for n in steps:
        p = plan("heun", n, schedule, "karras", t_end=0.05)
        x = Z * 80.0
        found.append(float(np.abs(run(p, network(MIXTURE, "eps"), x) - reference_edm(0.05)).max()))
    assert abs(slope(steps, found) - 2.0) < 0.3, found


@functools.cache
def reference_edm(sigma: float) -> Array:
    return mixture_ode(MIXTURE, Z * 80.0, (1.0, 80.0), (1.0, sigma))
