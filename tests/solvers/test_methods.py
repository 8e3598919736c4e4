"""Methods by name, their claims and options, and the errors of `plan`."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.methods import TABLES as METHODS

from fastdiff import schedules
from fastdiff.plan import Plan
from fastdiff.schedules.grids import SPACINGS
from fastdiff.solvers import ALIASES, find, methods, plan
from fastdiff.solvers.base import GOOD_FOR

NAMES = {
    *("ddpm", "ddim", "dpm1", "dpm2", "dpm3", "dpm2s", "dpm3s", "dpmpp1", "dpmpp2m", "dpmpp3m", "dpmpp2s", "dpmpp3s"),
    *("unipc", "heun", "dpmpp2m_sde"),
}
HISTORY = {
    **dict.fromkeys(("ddpm", "ddim", "pf_euler", "analytic_ddpm", "analytic_ddim", "dpm1", "dpmpp1", "pc"), 0),
    **dict.fromkeys(("dpm2", "dpmpp2m", "heun", "dpm2s", "dpmpp2s", "dpmpp2m_sde"), 1),
    **dict.fromkeys(("dpm3", "dpmpp3m", "dpm3s", "dpmpp3s"), 2),
    "unipc": 3,
    **dict.fromkeys(("edm_euler", "dpm_2", "midpoint"), 0),
    **dict.fromkeys(("gradient_estimation", "res_multistep", "res_2s", "exp_heun", "velocity_heun"), 1),
    **dict.fromkeys(("heunpp2", "deis", "res_3s"), 2),
    **dict.fromkeys(("lms", "ipndm", "pndm", "rk4"), 3),
}
# Evaluations beyond nfe_per_step·steps: pndm's Heun start takes one more, one restart has three of Heun's steps. In a
# last step to sigma = 0 there is nothing to evaluate: but for these methods it has one evaluation.
EXTRA = {"pndm": 1, "heunpp2": -3, "restart": 6}
SAVED_AT_CLEAN = {"pc": 0, "midpoint": 0, "rk4": 1, "heunpp2": 0}


def evaluations(name: str, steps: int, clean: bool) -> int:
    """How many a plan has: a step to a clean end is of first order, where the method is not a chain of corrections."""
    each = METHODS[name].nfe_per_step
    if name == "sa_solver_pece":
        return 2 * steps - 1
    saved = SAVED_AT_CLEAN.get(name, each - 1) if clean else 0
    return each * steps + EXTRA.get(name, 0) - saved


def test_every_promised_method_is_there() -> None:
    assert set(METHODS) >= NAMES
    assert {m.name for m in METHODS.values()} == set(METHODS)


def test_aliases_are_unique_and_lead_to_methods() -> None:
    listed = [alias for m in METHODS.values() for alias in m.aliases]
    assert len(set(listed)) == len(listed) and not set(listed) & set(METHODS)
    for alias, name in ALIASES.items():
        assert find(alias).name == find(alias.upper().replace("_", "-")).name == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [("dpm++2m", "dpmpp2m"), ("dpmpp_2m_sde", "dpmpp2m_sde"), ("uni_pc", "unipc"), ("DPM3", "dpm3")],
)
def test_names_of_other_libraries(alias: str, name: str) -> None:
    assert find(alias).name == name


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'dmp3'; did you mean 'dpm3.?'\? Valid: .*dpm3, "):
        find("dmp3")
    with pytest.raises(
        TypeError, match=r"method must be a name such as 'dpm3', got int; fastdiff.methods\(\) lists them"
    ):
        plan(3)  # type: ignore[arg-type]


def test_methods_describes_each() -> None:
    for name, entry in methods().items():
        assert set(entry) == {
            "summary",
            "order",
            "nfe_per_step",
            "stochastic",
            "adaptive",
            "guided",
            "spacing",
            "options",
            "aliases",
            "good_for",
            "paper",
        }
        assert set(entry["good_for"]) <= set(GOOD_FOR)
        assert entry["spacing"] in ({""} if entry["adaptive"] else SPACINGS)
        assert "arXiv" in entry["paper"] and entry["summary"][0].isupper()
        for option in entry["options"].values():
            assert set(option) == {"default", "choices", "doc"} and option["doc"]
            assert option["choices"] is None or option["default"] in option["choices"]
        assert find(name).order in (1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", METHODS)
def test_claims_hold_for_the_default_plan(name: str) -> None:
    method = METHODS[name]
    p = plan(name, 12, "vp_linear")
    assert isinstance(p, Plan) and p.method == name and p.space == method.space
    # The published singlestep and multistep forms are the defaults where they keep the order.
    assert p.order == method.order and p.stochastic == method.stochastic
    assert p.nfe == evaluations(name, 12, p.stages[-1].t_next == 0.0)
    assert dict(p.options).keys() == method.options.keys()
    assert name not in HISTORY or p.history == HISTORY[name]


@pytest.mark.parametrize("name", METHODS)
def test_an_option_of_another_method_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown option of method '{name}': 'bananas'. Valid: ") as error:
        plan(name, 5, bananas=3)
    for option in METHODS[name].options:
        assert option in str(error.value)


def test_near_option_names() -> None:
    with pytest.raises(ValueError, match=r"unknown option of method 'ddim': 'etta'; did you mean 'eta'\?"):
        plan("ddim", 5, etta=0.5)
    with pytest.raises(ValueError, match=r"unknown option of method 'dpm3': 'eta'"):
        plan("dpm3", 5, eta=0.5)


BAD_OPTIONS = [
    ("ddim", {"eta": 1.5}, ValueError, r"eta=1.5: method 'ddim' accepts \[0, 1\] \(method='ddim', eta=0.0\)"),
    ("ddim", {"eta": -0.1}, ValueError, r"accepts \[0, 1\]"),
    ("ddim", {"eta": "1"}, TypeError, r"eta='1': method 'ddim' expects a number"),
    ("ddim", {"eta": True}, TypeError, r"eta=True: method 'ddim' expects a number"),
    ("ddim", {"eta": None}, TypeError, r"expects a number"),
    ("ddim", {"eta": float("nan")}, ValueError, r"expects a finite number"),
    ("heun", {"s_churn": -1.0}, ValueError, r"accepts \[0, inf\]"),
    ("heun", {"s_churn": float("inf")}, ValueError, r"expects a finite number"),
    ("heun", {"s_tmax": float("nan")}, ValueError, r"expects a finite number"),
    ("dpmpp2m_sde", {"eta": -1.0}, ValueError, r"accepts \[0, inf\]"),
    (
        "dpm3",
        {"solver_type": "tailor"},
        ValueError,
        r"unknown solver_type of method 'dpm3': 'tailor'; did you mean 'taylor'\?",
    ),
    ("dpm3", {"denoise_to_zero": 1}, TypeError, r"denoise_to_zero=1: method 'dpm3' expects True or False"),
    ("unipc", {"order": 7}, ValueError, r"order=7: method 'unipc' accepts 1, 2, 3, 4, 5, 6"),
    ("unipc", {"order": 2.0}, ValueError, r"order=2.0: method 'unipc' accepts 1, 2, 3"),
    ("unipc", {"order": True}, ValueError, r"order=True: method 'unipc' accepts 1, 2, 3"),
    ("unipc", {"order": "2"}, ValueError, r"unknown order of method 'unipc': '2'"),
    ("unipc", {"variant": "bh3"}, ValueError, r"unknown variant of method 'unipc': 'bh3'; did you mean 'bh"),
    ("unipc", {"variant": ["bh1"]}, ValueError, r"variant=\['bh1'\]: method 'unipc' accepts 'bh1', 'bh2'"),
    ("ddpm", {"variance": "medium"}, ValueError, r"unknown variance of method 'ddpm': 'medium'. Valid: small, large"),
]


@pytest.mark.parametrize(("method", "options", "kind", "message"), BAD_OPTIONS)
def test_bad_option_values(method: str, options: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        plan(method, 5, **options)


def test_numpy_values_are_options_too() -> None:
    assert plan("unipc", 5, order=np.int64(2)) == plan("unipc", 5, order=2)
    assert plan("ddim", 5, eta=np.float64(0.5)) == plan("ddim", 5, eta=0.5)
    assert plan("dpm3", 5, denoise_to_zero=np.bool_(True)) == plan("dpm3", 5, denoise_to_zero=True)
    assert plan("ddim", 5, eta=1) == plan("ddim", 5, eta=1.0)
    assert plan("heun", 5, "edm", s_tmax=float("inf")) == plan("heun", 5, "edm")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [0, -3, 2.5, "10", True])
def test_bad_steps(method: str, steps: object) -> None:
    with pytest.raises(ValueError, match=r"steps got .*; expected an integer >= 1, such as steps=10"):
        plan(method, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_bad_times(method: str) -> None:
    cases = [
        ({"spacing": [900.0, 500.0, 0.0], "steps": 5}, r"3 own times make 2 steps; got steps=5"),
        ({"spacing": [900.0, 900.0, 0.0]}, r"own times repeat the time 900.0"),
        ({"spacing": [0.0, 500.0, 900.0]}, r"own times increase"),
        ({"spacing": [1200.0, 500.0, 0.0]}, r"time 1200.0 is outside the range of ddpm"),
        ({"spacing": [900.0]}, r"expected \(steps \+ 1,\)"),
        ({"spacing": [[900.0, 500.0], [300.0, 0.0]]}, r"in one dimension"),
        ({"spacing": object()}, r"expected a name of .*respacing string.*in one dimension"),
        ({"spacing": [900.0, 500.0], "t_start": 800.0}, r"t_start does not go with times of your own"),
        ({"spacing": "karas"}, r"unknown spacing 'karas'; did you mean 'karras'\?"),
        ({"spacing": "time_uniform", "t_start": 2000.0}, r"t_start: time 2000.0 is outside"),
        ({"spacing": "time_uniform", "t_start": 100.0, "t_end": 200.0}, r"t_start=100.0 must be above t_end=200.0"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            plan(method, **arguments)  # type: ignore[arg-type]


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'; did you mean 'cosine'\?"):
        plan("dpm3", 5, "cosin")


@pytest.mark.parametrize("method", METHODS)
def test_steps_follow_from_times_and_respacing(method: str) -> None:
    assert plan(method, spacing=[900, 700, 500, 300, 100]).nfe == evaluations(method, 4, False)
    assert plan(method, spacing="ddim25").nfe == evaluations(method, 25, True)
    assert plan(method).nfe == plan(method, 10).nfe


@pytest.mark.parametrize("method", METHODS)
def test_partial_runs(method: str) -> None:
    p = plan(method, 6, "vp_linear", "time_uniform", t_start=0.6, t_end=0.05)
    assert (p.times[0], p.times[-1]) == (0.6, 0.05) and p.stages[0].t == 0.6
    assert plan(method, 6, schedules.ve(), "time_uniform", t_start=10.0).prior_std == 10.0


def test_a_start_without_noise_is_refused() -> None:
    for method in ("ddpm", "ddim", "dpmpp2m", "dpm3", "heun", "unipc", "dpmpp2m_sde", "dpmpp3s"):
        with pytest.raises(ValueError, match=r"t_start"):
            plan(method, 2, "vp_linear", "time_uniform", t_start=0.0)


def test_spacing_options_reach_the_grid() -> None:
    assert plan("heun", 5, "edm", rho=3.0).times != plan("heun", 5, "edm").times
    assert plan("ddim", 5, steps_offset=1).times[0] == plan("ddim", 5).times[0] + 1
    assert plan("dpm3", 5, "ddpm", "karras", final="t_min").times[-1] == 0.0
