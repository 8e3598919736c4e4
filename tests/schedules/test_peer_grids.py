"""Time grids of other programs: their own numbers (tests/peers/peers.json, made by tools/peers.py), and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta as scipy_beta

from fastdiff import schedules as S
from fastdiff.schedules import NoiseSchedule, beta, peers
from fastdiff.schedules.grids import grid

RECORD = json.loads((Path(__file__).parents[1] / "peers" / "peers.json").read_text(encoding="utf-8"))["grids"]
SD = S.scaled_linear()


def sigmas(times: np.ndarray, schedule: NoiseSchedule) -> np.ndarray:
    level = schedule.sigma(times) if schedule.kind == "flow" else np.exp(-schedule.lam(times))
    return np.where(times == schedule.t_clean, 0.0, level)


@pytest.mark.parametrize("case", RECORD, ids=lambda c: f"{c['spacing']}-{len(c['sigmas']) - 1}")
def test_the_programs_own_sigmas(case: dict[str, Any]) -> None:
    schedule = S.resolve(case["schedule"])
    options = {"rho": 1.5} if case["spacing"] == "polyexponential" else {}
    times = grid(case["spacing"], schedule, len(case["sigmas"]) - 1, **options)
    # float64 through logarithms, and back: relative rounding of a few 1e-15 times |log sigma| < 10. Between two whole
    # times ComfyUI draws log sigma as a straight line, and we log alpha.
    between = case["spacing"] in ("normal", "sgm_uniform")
    np.testing.assert_allclose(sigmas(times, schedule), case["sigmas"], rtol=1e-4 if between else 1e-12, atol=1e-12)
    if between:
        span = 999.0 / (len(times) - (1 if case["spacing"] == "sgm_uniform" else 2))
        np.testing.assert_allclose(times[:-1], 999.0 - span * np.arange(len(times) - 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spacing", peers.NAMED)
@pytest.mark.parametrize("name", ["sd", "vp_linear", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 3, 25])
def test_every_one_is_a_grid(spacing: str, name: str, steps: int) -> None:
    schedule = S.resolve(name)
    levels = {"vp": 152.2, "ays_svd": 700.0, "ays_sd15": 14.6, "ays_sdxl": 14.6}
    levels.update(dict.fromkeys(peers.MENU, 14.6))
    top = schedule.sigma(schedule.t_max) if name == "flow" else math.exp(-schedule.lam(schedule.t_max))
    if levels.get(spacing, 0.0) > top * 1.001:
        with pytest.raises(ValueError, match=r"begins at the noise level .* reaches"):
            grid(spacing, schedule, steps)
        return
    t = grid(spacing, schedule, steps)
    assert t.shape == (steps + 1,) and np.all(np.diff(t) < 0.0) and t[-1] == schedule.t_clean
    if not peers.NAMED[spacing].own_start:
        assert t[0] == schedule.t_max
        part = grid(spacing, schedule, steps, 0.6 * schedule.t_max // 1 or 0.6, 0.1 * schedule.t_max // 1 or 0.1)
        assert part[0] in (0.6, 599.0) and part[-1] in (0.1, 99.0) and np.all(np.diff(part) < 0.0)


def test_align_your_steps() -> None:
    listed = peers.AYS["ays_sd15"]
    found = sigmas(grid("ays_sd15", SD, 10), SD)
    np.testing.assert_allclose(found[1:-1], listed[1:-1], rtol=1e-12)
    assert grid("ays_sd15", SD, 10)[0] == 999.0 and found[-1] == 0.0
    # Twice the steps: every second level is the published one, and each between is their geometric mean.
    twice = sigmas(grid("ays_svd", S.edm(sigma_max=700.0), 20, final="t_min"), S.edm(sigma_max=700.0))
    np.testing.assert_allclose(twice[::2], peers.AYS["ays_svd"], rtol=1e-12)
    np.testing.assert_allclose(twice[1::2] ** 2, twice[:-1:2] * twice[2::2], rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.7), (2.0, 3.0), (30.0, 0.3)])
def test_quantiles_of_beta(a: float, b: float) -> None:
    p = np.concatenate([np.linspace(0.0, 1.0, 101), [1e-6, 1e-3]])
    found = beta.quantile(p, a, b)
    # 1e-13 of the distribution function, divided by its slope, which vanishes at 1 where b > 1.
    np.testing.assert_allclose(found, scipy_beta.ppf(p, a, b), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(beta.cdf(found, a, b), p, atol=1e-13)


def test_as_many_steps_as_there_are_times() -> None:
    t = grid("beta", S.ddpm(20), 20)
    assert t.tolist() == [*range(19, -1, -1), -1]
    with pytest.raises(ValueError, match=r"lists different integer times from 0 to 19; got steps=21: use fewer steps"):
        grid("beta", S.ddpm(20), 21)


ERRORS = [
    (("vp", "vp_linear", 5, 0.5), {}, r"spacing 'vp' has noise levels of its own, which t_start contradicts"),
    (("ays_sd15", "sd", 5, None, 3.0), {}, r"noise levels of its own, which t_end contradicts: leave it out"),
    (("vp", "edm", 5), {}, r"spacing 'vp' begins at the noise level 152.167, and edm.* reaches 80"),
    (("beta", "sd", 5), {"alpha": 0.0}, r"alpha got 0.0; expected a finite number > 0, such as alpha=0.6"),
    (("linear_quadratic", "sd", 10), {"threshold_noise": 0.6}, r"threshold_noise got 0.6; expected less than 0.5"),
    (("linear_quadratic", "sd", 5), {"final": "t_min"}, r"ends clean, which final='t_min' contradicts: give t_end"),
    (("polyexponential", "flow", 5), {"shift": 3.0}, r"unknown option of spacing 'polyexponential': 'shift'"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), ERRORS)
def test_errors(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    spacing, name, *rest = arguments
    with pytest.raises(ValueError, match=message):
        grid(spacing, S.resolve(name), *rest, **options)


def test_pure_noise_has_no_level() -> None:
    zero = S.ddpm(zero_terminal_snr=True)
    with pytest.raises(ValueError, match=r"'kl_optimal' needs a finite lambda at both ends"):
        grid("kl_optimal", zero, 5)
    with pytest.raises(ValueError, match=r"'bong_tangent' needs a finite lambda"):
        grid("bong_tangent", zero, 5)


def test_shifts() -> None:
    assert S.flow(mu=1.15) == S.flow(math.exp(1.15)) and S.flow() == S.flow(1.0)
    # Flux: mu = 0.5 at 256 tokens, 1.15 at 4096.
    assert S.dynamic_shift(256) == pytest.approx(math.exp(0.5), rel=1e-14)
    assert S.dynamic_shift(4096) == pytest.approx(math.exp(1.15), rel=1e-14)
    assert math.log(S.dynamic_shift(1024)) == pytest.approx(0.5 + 0.65 * 768 / 3840, rel=1e-14)
    with pytest.raises(ValueError, match=r"shift=3.0 and mu=1.0 say the same thing twice"):
        S.flow(3.0, mu=1.0)
    with pytest.raises(ValueError, match=r"base_tokens and max_tokens are both 7"):
        S.dynamic_shift(5, base_tokens=7, max_tokens=7)
    with pytest.raises(TypeError, match=r"base_mu=None: expected a number, such as 0\.5"):
        S.dynamic_shift(5, base_mu=None)
    with pytest.raises(ValueError, match=r"tokens got 0"):
        S.dynamic_shift(0)
