"""Numbers of the published implementations on one fixed problem.

Made with LuChengTHU/dpm-solver (dpm_solver_pytorch.py), wl-zhao/UniPC (uni_pc.py) and crowsonkb/k-diffusion
(sampling.py), all
in float64, on MIXTURE's exact model: the first row of the result from x_T = Z (times 80 for EDM's sigmas). Schedule
"ddpm" is
`linspace(1e-4, 0.02, 1000)`; k-diffusion's sigmas are Karras's with rho = 7, 0.002 to 80, and 0. Draw d is `draw(d)`
below.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.analytic import Array, mixture
from helpers.run_plan import network, run

from fastdiff.solvers import plan

MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
Z = np.array([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]])

DPM_SOLVER = [
    ("dpm2", 10, "time_uniform", {}, (0.8719667119494189, -0.9688659882348515)),
    ("dpm3", 8, "logsnr", {"solver_type": "dpmsolver"}, (0.8653238372652226, -0.8988099876438185)),
    ("dpm3", 8, "logsnr", {"solver_type": "dpmsolver_taylor"}, (0.8645966416820566, -0.89626833367805)),
    ("dpmpp2m", 7, "time_quadratic", {}, (0.8909520968100576, -0.9254615695760453)),
    ("dpmpp3m", 15, "time_uniform", {"solver_type": "dpmsolver"}, (0.7472075475072206, -0.8948491726623005)),
    ("dpmpp3m", 15, "time_uniform", {"solver_type": "dpmsolver_taylor"}, (0.7472103301131651, -0.8948521250584054)),
    ("dpm2s", 7, "time_uniform", {}, (0.9470430444566377, -0.9128525791138951)),
    ("dpm3s", 12, "logsnr", {}, (0.9020254252292474, -0.9733456980765248)),
    ("dpmpp3s", 12, "time_quadratic", {"fixed": True}, (0.8754164978110637, -0.9355623469444313)),
    ("dpmpp2s", 9, "logsnr", {}, (0.8243122174689181, -0.8334577311762834)),
]
UNIPC = [
    (10, {"order": 3, "variant": "bh2"}, (0.8762075612055277, -0.8607915856874403)),
    (7, {"order": 2, "variant": "bh1"}, (0.8826379060684137, -0.8391020778856658)),
    (8, {"order": 3, "variant": "bh2", "prediction_type": "noise"}, (0.8313881065185222, -0.8143568317223613)),
    (10, {"order": 4, "variant": "bh2"}, (0.8763238103557784, -0.8609172928121005)),
    (12, {"order": 5, "variant": "bh1"}, (0.872549607803826, -0.8756197672602622)),
    (10, {"order": 4, "variant": "bh1", "prediction_type": "noise"}, (0.8512981925268526, -0.8481256112257846)),
    (9, {"order": 5, "variant": "bh2", "prediction_type": "noise"}, (0.8380201197928683, -0.8263324775400012)),
    # Of "vary_coeff" the predictor, and the corrector of order 1: that of higher orders is wrong (docs/parity.md).
    (10, {"order": 1, "variant": "vary_coeff"}, (0.8431211367730937, -0.8206463337048485)),
    (10, {"order": 2, "variant": "vary_coeff", "corrector": False}, (0.8776932688754085, -0.8623157557977932)),
    (10, {"order": 3, "variant": "vary_coeff", "corrector": False}, (0.8869837508244752, -0.8718216275550625)),
    (12, {"order": 4, "variant": "vary_coeff", "corrector": False}, (0.8773027973716987, -0.8766101530052486)),
    (
        10,
        {"order": 2, "variant": "vary_coeff", "corrector": False, "prediction_type": "noise"},
        (0.8555564450501962, -0.8365227797970718),
    ),
    (
        9,
        {"order": 5, "variant": "vary_coeff", "corrector": False, "prediction_type": "noise"},
        (0.8632378612826355, -0.8364912781772682),
    ),
]
CHURN = {"s_churn": 20.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
SDE = "dpmpp2m_sde"
K_DIFFUSION = [
    ("heun", {}, (0.9649323300694399, -1.0653310918797825)),
    ("heun", CHURN, (-1.1100500225773198, 0.3196937345937681)),
    ("dpmpp2m", {"lower_order_final": False}, (1.0144123328756864, -1.0955201389254556)),
    (SDE, {"eta": 1.0, "s_noise": 1.01}, (1.4386730068324605, -1.2068414620436756)),
    (SDE, {"eta": 0.5, "s_noise": 1.01}, (0.8663768975295919, -0.727549802146962)),
    (SDE, {"eta": 1.0, "s_noise": 1.01, "solver_type": "heun"}, (2.2255602926703766, -1.9721924126038957)),
    (SDE, {"eta": 0.0, "s_noise": 1.01, "solver_type": "heun"}, (1.1252608708981726, -1.252254398460205)),
]
# Rounding: 1e-16 times 1/alpha_T = 160 and the steps; the published code and ours agree to 5e-14.
TOLERANCE = 1e-11


def draw(number: int, like: Array) -> Array:
    return np.cos(1.0 + number + 3 * np.arange(like.size)).reshape(like.shape)


@pytest.mark.parametrize(("method", "steps", "spacing", "options", "expected"), DPM_SOLVER)
def test_dpm_solver(
    method: str, steps: int, spacing: str, options: dict[str, object], expected: tuple[float, float]
) -> None:
    p = plan(method, steps, "ddpm", spacing, **options)
    assert np.abs(run(p, network(MIXTURE, "eps"), Z)[0] - expected).max() < TOLERANCE


@pytest.mark.parametrize(
    ("steps", "options", "expected"),
    # Without its corrector a step has nothing to split.
    [*UNIPC, *((n, {**given, "split": True}, want) for n, given, want in UNIPC if given.get("corrector", True))],
)
def test_unipc(steps: int, options: dict[str, object], expected: tuple[float, float]) -> None:
    p = plan("unipc", steps, "ddpm", **options)
    assert np.abs(run(p, network(MIXTURE, "eps"), Z)[0] - expected).max() < TOLERANCE


@pytest.mark.parametrize(("method", "options", "expected"), K_DIFFUSION)
def test_k_diffusion(method: str, options: dict[str, object], expected: tuple[float, float]) -> None:
    p = plan(method, 10, "edm", "karras", **options)
    result = run(p, network(MIXTURE, "x0"), 80.0 * Z, "x0", noise=draw)
    assert np.abs(result[0] - expected).max() < TOLERANCE
