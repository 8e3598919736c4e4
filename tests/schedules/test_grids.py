"""Time grids against their definitions, worked by hand or written another way; partial runs; errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fastdiff import schedules as S
from fastdiff.schedules import peers
from fastdiff.schedules.grids import SPACINGS, grid

DDPM = S.ddpm()
LISTED_DISCRETE = ("quadratic", "leading", "lcm")
SCHEDULES = {**{n: f() for n, f in S.SCHEDULES.items()}, "flow3": S.flow(3.0), "zero": S.ddpm(zero_terminal_snr=True)}


def defined(name: str, spacing: str) -> bool:
    schedule = SCHEDULES[name]
    if spacing in LISTED_DISCRETE:
        return schedule.discrete
    if not math.isfinite(schedule.lam(schedule.t_max)):
        in_sigma = schedule.kind == "flow" and spacing in ("karras", "exponential")
        return in_sigma or spacing not in ("logsnr", "karras", "exponential")
    return True


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_spacing(name: str, steps: int) -> None:
    schedule = SCHEDULES[name]
    for spacing in SPACINGS:
        if spacing in peers.NAMED:
            # tests/schedules/test_peer_grids.py
            continue
        for final in (None, "clean", "t_min"):
            if not defined(name, spacing):
                with pytest.raises(ValueError, match="needs a"):
                    grid(spacing, schedule, steps, final=final)
                continue
            t = grid(spacing, schedule, steps, final=final)
            assert t.shape == (steps + 1,) and t.dtype == np.float64
            assert np.all(np.diff(t) < 0.0) and t[0] <= schedule.t_max and t[-1] >= schedule.t_clean
            if final == "clean":
                assert t[-1] == schedule.t_clean
            elif final == "t_min":
                assert t[-1] in (schedule.t_min, schedule.t_floor)
            later = ("uniform", "quadratic", "leading", "ddim_uniform", "lcm")
            if spacing not in later or steps == 1 or not schedule.discrete:
                assert t[0] == schedule.t_max


def test_time_uniform_and_quadratic() -> None:
    assert grid("time_uniform", S.vp_linear(), 4, 1.0, 0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], rel=1e-15)
    assert grid("time_quadratic", S.vp_linear(), 2, 0.81, 0.01) == pytest.approx([0.81, 0.25, 0.01], rel=1e-14)
    # Discrete: with (n + 1)/N from 1 to 1/N, equal steps of the root.
    t = grid("time_quadratic", DDPM, 10)
    np.testing.assert_allclose(np.sqrt((t + 1.0) / 1000.0), np.linspace(1.0, math.sqrt(1e-3), 11), rtol=1e-12)
    np.testing.assert_allclose(grid("time_uniform", DDPM, 3), [999.0, 666.0, 333.0, 0.0], rtol=1e-14)


@pytest.mark.parametrize("name", ["ddpm", "vp_linear", "vp_cosine", "subvp", "ve"])
def test_logsnr_is_uniform_in_lambda(name: str) -> None:
    schedule = SCHEDULES[name]
    lam = schedule.lam(grid("logsnr", schedule, 20))
    steps = np.diff(lam)
    assert np.max(np.abs(steps - steps.mean())) < 1e-9
    assert lam[-1] == schedule.lam(schedule.t_min)


def test_ddim_subsequences() -> None:
    assert grid("uniform", DDPM, 4).tolist() == [750.0, 500.0, 250.0, 0.0, -1.0]
    assert grid("uniform", DDPM, 30).tolist() == [float(33 * i) for i in range(29, -1, -1)] + [-1.0]
    assert grid("leading", DDPM, 4, steps_offset=1).tolist() == [751.0, 501.0, 251.0, 1.0, -1.0]
    # c i^2 up to 0.8 N: 800 (i/5)^2.
    assert grid("quadratic", DDPM, 6).tolist() == [800.0, 512.0, 288.0, 128.0, 32.0, 0.0, -1.0]
    # 800 (i/50)^2 = 0.32 i^2 starts 0, 0.32, 1.28, 2.88: the second 0 becomes 1, the 1 becomes 2, and 2 becomes 3.
    assert grid("quadratic", DDPM, 51)[::-1][:6].tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0, 5.0]


def test_diffusers_spacings() -> None:
    assert grid("trailing", DDPM, 4).tolist() == [999.0, 749.0, 499.0, 249.0, -1.0]
    assert grid("trailing", DDPM, 3).tolist() == [999.0, 666.0, 332.0, -1.0]
    assert grid("linspace", DDPM, 4).tolist() == [999.0, 666.0, 333.0, 0.0, -1.0]
    assert grid("linspace", DDPM, 3).tolist() == [999.0, 500.0, 0.0, -1.0]
    assert grid("linspace", DDPM, 1000).tolist() == list(np.arange(999.0, -2.0, -1.0))
    for steps in (7, 30, 137):
        whole = np.round(np.arange(1000, 0, -1000 / steps)) - 1
        assert grid("trailing", DDPM, steps)[:-1].tolist() == whole[:steps].tolist()


def test_continuous_lists() -> None:
    flow = S.flow()
    assert grid("trailing", flow, 4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0] == grid("uniform", flow, 4).tolist()
    np.testing.assert_allclose(grid("linspace", flow, 3), [1.0, 0.5005, 1e-3, 0.0], rtol=1e-14)
    assert grid("linspace", flow, 2, 0.8, 0.4).tolist() == pytest.approx([0.8, 0.6, 0.4], rel=1e-15)


def test_karras() -> None:
    """Karras et al. 2022, eq. 5."""
    n, rho = 18, 7.0
    i = np.arange(n)
    sigma = (80.0 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80.0 ** (1 / rho))) ** rho
    t = grid("karras", S.edm(), n)
    np.testing.assert_allclose(t[:-1], sigma, rtol=1e-12)
    assert t[0] == 80.0 and t[-2] == 0.002 and t[-1] == 0.0
    assert grid("karras", S.edm(), n - 1, final="t_min").tolist() == t[:-1].tolist()
    assert grid("karras", S.edm(), n, t_end=0.0).tolist() == t.tolist()
    np.testing.assert_allclose(grid("karras", S.edm(), 3, 16.0, 1.0, rho=2.0), [16.0, 9.0, 4.0, 1.0], rtol=1e-13)
    # On a discrete schedule, in sigma / alpha.
    ratio = np.exp(-DDPM.lam(grid("karras", DDPM, 11)[:-1]))
    np.testing.assert_allclose(np.diff(ratio ** (1 / rho), 2), 0.0, atol=1e-9)
    # For flow, in sigma, whatever the shift.
    for flow in (S.flow(), S.flow(3.0)):
        sigmas = flow.sigma(grid("karras", flow, 11)[:-1])
        assert sigmas[0] == 1.0
        np.testing.assert_allclose(np.diff(sigmas ** (1 / rho), 2), 0.0, atol=1e-12)


def test_exponential() -> None:
    np.testing.assert_allclose(grid("exponential", S.ve(1e-3, 10.0), 5), [10.0, 1.0, 0.1, 0.01, 1e-3, 0.0], rtol=1e-13)
    ratio = np.log(SCHEDULES["flow"].sigma(grid("exponential", S.flow(), 6, final="t_min")))
    np.testing.assert_allclose(np.diff(ratio, 2), 0.0, atol=1e-12)


def sections(n: int, counts: list[int]) -> list[int]:
    """Rounded multiples of a stride, section by section."""
    out, begin = [], 0
    for k, count in enumerate(counts):
        length = n // len(counts) + (1 if k < n % len(counts) else 0)
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        out += [begin + round(j * stride) for j in range(count)]
        begin += length
    return out


def test_respacing() -> None:
    assert grid("ddim25", DDPM).tolist() == [float(v) for v in range(960, -1, -40)] + [-1.0]
    assert grid("ddim25", DDPM, 25).tolist() == grid("ddim25", DDPM).tolist()
    # 7 of 1000 with the smallest stride that gives 7: 143 (142 gives 8).
    assert grid("ddim7", DDPM).tolist() == [858.0, 715.0, 572.0, 429.0, 286.0, 143.0, 0.0, -1.0]
    for text, counts in (
        ("10,15,20", [10, 15, 20]),
        ("50", [50]),
        ("1,3,1,2", [1, 3, 1, 2]),
        ("334,333,333", [334, 333, 333]),
    ):
        got = grid(text, DDPM)
        assert got[:-1][::-1].astype(int).tolist() == sections(1000, counts) and got[-1] == -1.0
    # guided-diffusion's documented example: of 300 times with 10, 15, 20, the sections are 0-99, 100-199 and 200-299.
    t = grid("10,15,20", S.ddpm(300))[:-1]
    assert [int(np.sum((t >= a) & (t < a + 100))) for a in (0, 100, 200)] == [10, 15, 20]
    # Places exactly halfway (149.5, 49.5, 74.5), as the published program's sum of strides rounds them.
    assert 149.0 in t and 150.0 not in t
    assert 49.0 in grid("27", S.ddpm(100)) and 75.0 in grid("8,25", S.ddpm(100))
    with pytest.raises(ValueError, match="makes 45 steps; got steps=40"):
        grid("10,15,20", DDPM, 40)
    # Strides 3 and 4 give 334 and 250.
    with pytest.raises(ValueError, match="no integer stride takes 300 of 1000"):
        grid("ddim300", DDPM)
    with pytest.raises(ValueError, match="asks for 400 of the 334 times in section 1"):
        grid("400,1,1", DDPM)


def test_own_times() -> None:
    assert grid([900.0, 450, -1], DDPM).tolist() == [900.0, 450.0, -1.0]
    own = np.array([1.0, 0.5, 0.0])
    out = grid(own, S.flow(), 2)
    own[1] = 7.0
    assert out.tolist() == [1.0, 0.5, 0.0]


def test_partial_runs() -> None:
    t = grid("trailing", DDPM, 4, t_start=399)
    assert t.tolist() == [399.0, 299.0, 199.0, 99.0, -1.0]
    assert grid("linspace", DDPM, 3, 600.0, 99.0).tolist() == [600.0, 350.0, 100.0, 99.0]
    assert grid("linspace", DDPM, 3, 601.0, 400.0).tolist() == [601.0, 501.0, 401.0, 400.0]
    assert grid("uniform", DDPM, 2, final="t_min").tolist() == [500.0, 1.0, 0.0]
    lam = DDPM.lam(grid("logsnr", DDPM, 5, 700.0, 30.0))
    assert (lam[0], lam[-1]) == (DDPM.lam(700.0), DDPM.lam(30.0))
    t = grid("karras", S.edm(), 5, t_start=10.0, t_end=0.5, final="clean")
    assert (t[0], t[-2], t[-1]) == (10.0, 0.5, 0.0)
    assert grid("logsnr", S.flow(), 6, t_start=0.99).size == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid("uniform", DDPM, 0), "steps got 0; expected an integer >= 1"),
        (lambda: grid("uniform", DDPM, 2.5), "steps got 2.5"),
        (lambda: grid("uniform", DDPM, True), "steps got True"),
        (lambda: grid("uniform", DDPM), "steps got None"),
        (lambda: grid("karas", DDPM, 5), "unknown spacing 'karas'; did you mean 'karras'.*'ddim25'"),
        (lambda: grid("ddam", DDPM, 5), "unknown spacing 'ddam'"),
        (lambda: grid("10,0", DDPM), "section without steps"),
        (lambda: grid("karras", DDPM, 5, roh=3.0), "unknown option of spacing 'karras': 'roh'; did you mean 'rho'"),
        (lambda: grid("linspace", DDPM, 5, rho=3.0), "'rho'. Valid: final"),
        (lambda: grid("karras", DDPM, 5, rho=-1.0), "rho got -1.0"),
        (lambda: grid("leading", DDPM, 5, steps_offset=0.5), "steps_offset got 0.5"),
        (
            lambda: grid("leading", DDPM, 5, steps_offset=300),
            "steps_offset=300 lists times 300 to 1100; there are 0 to 999",
        ),
        (lambda: grid("linspace", DDPM, 5, final="clear"), "unknown final 'clear'; did you mean 'clean'"),
        (lambda: grid("linspace", DDPM, 1001), "there are 1000, and got steps=1001: use at most 1000"),
        (lambda: grid("quadratic", DDPM, 1000, t_start=998), "use at most 999"),
        (lambda: grid("linspace", DDPM, 5, t_start=10.5), "got t_start=10.5: use t_start=10"),
        (lambda: grid("linspace", DDPM, 5, t_start=1000), "t_start: time 1000.0 is outside the range of ddpm"),
        (lambda: grid("logsnr", DDPM, 5, t_end=-3), "t_end: time -3.0 is outside"),
        (lambda: grid("logsnr", DDPM, 5, 10.0, 20.0), "t_start=10.0 must be above t_end=20.0"),
        (lambda: grid("logsnr", DDPM, 5, "x"), "t_start got 'x'"),
        (lambda: grid("trailing", DDPM, 5, t_end=3.0, final="clean"), "final='clean' contradicts: leave one out"),
        (lambda: grid("logsnr", S.flow(), 5), r"lambda = -inf at t_start=1.0: give a smaller t_start"),
        (lambda: grid("leading", S.ve(), 5), r"needs a discrete schedule, not ve\(.*Valid here: time_uniform"),
        (lambda: grid("ddim25", S.vp_linear()), "needs a discrete schedule"),
        (lambda: grid([3.0, 3.0, 1.0], DDPM), "own times repeat the time 3.0"),
        (lambda: grid([3.0, 1.0, 2.0], DDPM), "own times do not decrease at the time 2.0"),
        (lambda: grid([1.0, 2.0], DDPM), "decreasing order"),
        (lambda: grid([1000.0, 2.0], DDPM), "time 1000.0 is outside"),
        (lambda: grid([5.0, math.nan], DDPM), "time nan is outside"),
        (lambda: grid([5.0], DDPM), r"own times got shape \(1,\)"),
        (lambda: grid([5.0, 1.0], DDPM, 2), "2 own times make 1 steps; got steps=2"),
        (lambda: grid([5.0, 1.0], DDPM, t_end=0.0), "t_end does not go with times of your own"),
        (lambda: grid(None, DDPM, 5), "own times got shape|spacing got None"),
        (lambda: grid("time_uniform", S.vp_linear(), 5, 0.5, np.nextafter(0.5, 0.0)), "repeat the time"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
