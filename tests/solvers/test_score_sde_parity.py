"""Predictor-corrector sampling against numbers of the published code (yang-song/score_sde_pytorch, cb1f359, 2022).

How they were made: `sampling.get_pc_sampler` ran in float64 (torch.set_default_dtype) with its `torch.randn_like`
replaced by `noise` below and its prior by `START`; N = 25, two corrections a step, snr = 0.16; eps = 1e-5 for VESDE and
1e-3 for the others. The network is the exact one of a Gaussian mixture (the score for VE, eps for VP and sub-VP), asked
at the label that `get_score_fn` passes (its integer part for a discrete VP network). The numbers are those of the first
of two samples. `euler_maruyama` with probability_flow and correctors on sub-VP are not here: the published code raises.

The published Euler-Maruyama predictor and annealed Langevin corrector use the continuous formulas for networks trained
at discrete times too; ours are then run on the continuous schedule, with the discrete network's score.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import MIXTURE

import fastdiff
from fastdiff import schedules

N = 25
ELEMENTS = np.arange(6.0)
START = torch.from_numpy(1.5 * np.cos(1.0 + 5.0 * ELEMENTS)).reshape(2, 3)
# The published code's own discrete levels, written again: alphas_cumprod and sigmas at index j.
ALPHAS_CUMPROD = np.cumprod(1.0 - np.linspace(0.1 / N, 20.0 / N, N))
SIGMAS = np.exp(np.linspace(np.log(0.01), np.log(50.0), N))

# SDE, predictor, corrector, probability_flow, denoise, result.
PUBLISHED = [
    (
        "ve",
        "reverse_diffusion",
        "langevin",
        False,
        True,
        (1.8498962903638363, 0.17891001071306695, -0.5240397391404583),
    ),
    (
        "ve",
        "reverse_diffusion",
        "langevin",
        False,
        False,
        (1.8378792714361656, 0.1698796516497377, -0.5121026514966636),
    ),
    ("ve", "reverse_diffusion", "langevin", True, True, (-0.6761833132458268, 0.5036039507427874, 0.11885504946829556)),
    ("ve", "reverse_diffusion", "ald", False, True, (0.7453087339486266, -0.016815809937145224, 0.4820025329321104)),
    ("ve", "reverse_diffusion", "ald", True, True, (0.617119716360892, 0.2022957858338323, 0.3547091044427824)),
    ("ve", "reverse_diffusion", "none", False, True, (0.7933400584669192, 0.0312866545707805, 0.3964648535462321)),
    ("ve", "reverse_diffusion", "none", True, True, (1.3371955474401105, 1.1701550240470586, 0.347067559480041)),
    ("ve", "euler_maruyama", "langevin", False, True, (0.4864738948421508, -0.061299177168582804, 0.8104840869496872)),
    ("ve", "euler_maruyama", "langevin", False, False, (0.47655354523582444, -0.0687539643764656, 0.820338451282519)),
    ("ve", "euler_maruyama", "ald", False, True, (0.6207289418681818, -0.051891449476062834, 0.6573475441766812)),
    ("ve", "euler_maruyama", "none", False, True, (0.6557984802742629, 0.022675209203344537, 0.616729770461084)),
    ("ve", "ancestral", "langevin", False, True, (0.5540094633271077, -0.3543784330166124, 0.7372312352887971)),
    ("ve", "ancestral", "langevin", False, False, (0.5540094633271077, -0.3543784330166124, 0.7372312352887971)),
    ("ve", "ancestral", "ald", False, True, (0.7581806612489634, -0.09055277440822683, 0.45402721700903104)),
    ("ve", "ancestral", "none", False, True, (0.7854699511796724, -0.04635045109558984, 0.3912575048740172)),
    ("ve", "none", "langevin", False, True, (27.412612934651346, 64.31921772149153, 4.523020421218165)),
    ("ve", "none", "ald", False, True, (9.217093544661422, 18.01277387669987, 1.1613597727616392)),
    (
        "smld",
        "reverse_diffusion",
        "langevin",
        False,
        True,
        (1.8504727003065564, 0.1789845182936985, -0.5245659734845827),
    ),
    (
        "smld",
        "reverse_diffusion",
        "langevin",
        False,
        False,
        (1.8384556813788857, 0.16995415923036924, -0.5126288858407879),
    ),
    (
        "smld",
        "reverse_diffusion",
        "langevin",
        True,
        True,
        (-0.6766866688107906, 0.5031731964443535, 0.11923233092448954),
    ),
    ("smld", "reverse_diffusion", "ald", False, True, (0.7452930041734572, -0.016812230693075685, 0.482035638738757)),
    ("smld", "reverse_diffusion", "ald", True, True, (0.6170939638776523, 0.20221761960031615, 0.3547070423938608)),
    ("smld", "reverse_diffusion", "none", False, True, (0.7933294604968568, 0.031296812334627756, 0.39649831898177723)),
    ("smld", "reverse_diffusion", "none", True, True, (1.3370754279527344, 1.169922953604486, 0.34706876313475327)),
    ("smld", "euler_maruyama", "langevin", False, True, (0.4864206280814892, -0.06127654224616668, 0.810539158907018)),
    (
        "smld",
        "euler_maruyama",
        "langevin",
        False,
        False,
        (0.47650027847516285, -0.06873132945404947, 0.8203935232398498),
    ),
    ("smld", "euler_maruyama", "ald", False, True, (0.6206999443615677, -0.051905356873761126, 0.6573833959207156)),
    ("smld", "euler_maruyama", "none", False, True, (0.6557625460003402, 0.022668741258776492, 0.6167757290710836)),
    ("smld", "ancestral", "langevin", False, True, (0.5540019768999649, -0.3543777047050735, 0.737240293953178)),
    ("smld", "ancestral", "langevin", False, False, (0.5540019768999649, -0.3543777047050735, 0.737240293953178)),
    ("smld", "ancestral", "ald", False, True, (0.7581759256080088, -0.09055383324726402, 0.4540510123853317)),
    ("smld", "ancestral", "none", False, True, (0.7854691645988963, -0.046347494254161056, 0.39128209189645485)),
    ("smld", "none", "langevin", False, True, (27.412679311248112, 64.31930712606628, 4.52300766344033)),
    ("smld", "none", "ald", False, True, (9.216626868638613, 18.011759346222583, 1.1613163073401154)),
    ("vp", "reverse_diffusion", "langevin", False, True, (0.6712672328061859, 0.20879280530468916, 0.5355446763520617)),
    ("vp", "reverse_diffusion", "langevin", False, False, (0.5952649318125993, 0.1516797998461589, 0.6110414475189497)),
    ("vp", "reverse_diffusion", "langevin", True, True, (1.3887135398240693, 1.1355273613398285, 0.39103609343225565)),
    ("vp", "reverse_diffusion", "ald", False, True, (0.5619673566827804, 0.3467331898597792, 0.5592766754917423)),
    ("vp", "reverse_diffusion", "ald", True, True, (0.9503475393088321, 0.39463036793018463, 0.4035848414789165)),
    ("vp", "reverse_diffusion", "none", False, True, (0.5652334790406639, 0.36894624921307717, 0.5020345754920363)),
    ("vp", "reverse_diffusion", "none", True, True, (1.7438570470838877, 1.6037003133891359, 0.38499613765178076)),
    ("vp", "euler_maruyama", "langevin", False, True, (0.6728492201309911, 0.18831445683063416, 0.5359885834452113)),
    ("vp", "euler_maruyama", "langevin", False, False, (0.589627568153712, 0.12577636783189017, 0.6186566860331739)),
    ("vp", "euler_maruyama", "ald", False, True, (0.5562511004886934, 0.3433885711425385, 0.5643908543225055)),
    ("vp", "euler_maruyama", "none", False, True, (0.5548519155663839, 0.3643497395183302, 0.5081374881845317)),
    ("vp", "ancestral", "langevin", False, True, (0.689386946631202, 0.1821822608180907, 0.5368921654766622)),
    ("vp", "ancestral", "langevin", False, False, (0.6133846456376153, 0.12506925535956043, 0.6123889366435502)),
    ("vp", "ancestral", "ald", False, True, (0.5713938753365749, 0.3424751556919438, 0.5776994611822066)),
    ("vp", "ancestral", "none", False, True, (0.573553551737286, 0.36467234979625923, 0.5219796083854265)),
    ("vp", "none", "langevin", False, True, (0.48355710586505, 1.2193813297131537, -0.12112699055020446)),
    ("vp", "none", "ald", False, True, (0.3116612777002339, 0.46388199273502123, 0.13886909316020882)),
    ("vpd", "reverse_diffusion", "langevin", False, True, (0.5709097399230044, 0.2786859796653731, 0.5780519828573536)),
    (
        "vpd",
        "reverse_diffusion",
        "langevin",
        False,
        False,
        (0.49490743892941774, 0.22157297420684285, 0.6535487540242416),
    ),
    ("vpd", "reverse_diffusion", "langevin", True, True, (1.417874026847246, 1.4281539355487927, 0.35030202130428245)),
    ("vpd", "reverse_diffusion", "ald", False, True, (0.5416523333115627, 0.3641506458702787, 0.5082757796914936)),
    ("vpd", "reverse_diffusion", "ald", True, True, (0.9151328608155732, 0.5688250932103283, 0.3629204962512668)),
    ("vpd", "reverse_diffusion", "none", False, True, (0.541638319328469, 0.3829937201074539, 0.45160002398803567)),
    ("vpd", "reverse_diffusion", "none", True, True, (1.8178581326985235, 1.9491974050170182, 0.33386231183869175)),
    ("vpd", "euler_maruyama", "langevin", False, True, (0.5946043787770166, 0.19875333362361525, 0.571134023962785)),
    ("vpd", "euler_maruyama", "langevin", False, False, (0.5113827267997373, 0.13621524462487125, 0.6538021265507477)),
    ("vpd", "euler_maruyama", "ald", False, True, (0.5363051090350911, 0.3602422403675389, 0.5138535895079799)),
    ("vpd", "euler_maruyama", "none", False, True, (0.530895915052867, 0.37641761316380146, 0.4591198252566138)),
    ("vpd", "ancestral", "langevin", False, True, (0.6269392257312931, 0.19637896521030113, 0.5584161655684966)),
    ("vpd", "ancestral", "langevin", False, False, (0.5509369247377065, 0.13926595975177086, 0.6339129367353846)),
    ("vpd", "ancestral", "ald", False, True, (0.5527023033331431, 0.360052625254691, 0.5263374886781896)),
    ("vpd", "ancestral", "none", False, True, (0.5501410335251038, 0.3769836140560868, 0.47224597367282756)),
    ("vpd", "none", "langevin", False, True, (0.46905648129478056, 1.3417890708084033, -0.15396382920411728)),
    ("vpd", "none", "ald", False, True, (0.3020611690673181, 0.4943743578649496, 0.12156013116085956)),
    (
        "subvp",
        "reverse_diffusion",
        "none",
        False,
        True,
        (0.9049326845136335, 0.23811218985094765, -0.14957436907466723),
    ),
    (
        "subvp",
        "reverse_diffusion",
        "none",
        False,
        False,
        (0.9036986563479968, 0.23718486190904847, -0.14834854905584405),
    ),
    ("subvp", "reverse_diffusion", "none", True, True, (0.9228791742642647, 0.47845813579490754, 0.3430552397531677)),
    ("subvp", "reverse_diffusion", "none", True, False, (0.9228791742642647, 0.47845813579490754, 0.3430552397531677)),
    ("subvp", "euler_maruyama", "none", False, True, (0.9049326845136337, 0.23811218985094754, -0.14957436907466723)),
    ("subvp", "euler_maruyama", "none", False, False, (0.9036986563479971, 0.23718486190904836, -0.14834854905584405)),
]


def noise(step: int, call: int) -> np.ndarray:
    """The published run's draw number `call` of a step: 0 and 1 for the corrections, 2 for the predictor."""
    return 1.5 * np.sin(1.0 + 7.0 * step + 3.0 * call + 11.0 * ELEMENTS)


def discrete_level(sde: str, step: int) -> tuple[float, float]:
    j = N - 1 - step
    return (1.0, SIGMAS[j]) if sde == "smld" else (np.sqrt(ALPHAS_CUMPROD[j]), np.sqrt(1.0 - ALPHAS_CUMPROD[j]))


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda c: "-".join(map(str, c[:5])))
def test_equals_the_published_numbers(case: tuple) -> None:
    sde, predictor, corrector, flow, denoise, want = case
    continuous_formulas = sde in ("smld", "vpd") and (predictor == "euler_maruyama" or corrector == "ald")
    schedule = {
        "ve": lambda: schedules.ve(0.01, 50.0),
        "smld": lambda: schedules.ve(0.01, 50.0) if continuous_formulas else schedules.smld(0.01, 50.0, N),
        "vp": lambda: schedules.vp_linear(time_scale=999.0),
        "vpd": lambda: (
            schedules.vp_linear() if continuous_formulas else schedules.discrete(np.linspace(0.1 / N, 20.0 / N, N))
        ),
        "subvp": lambda: schedules.subvp(time_scale=999.0),
    }[sde]()
    prediction = "score" if schedule.kind == "ve" or continuous_formulas else "eps"
    sampler = fastdiff.Sampler(
        "pc",
        N,
        schedule=schedule,
        prediction=prediction,
        dtype=torch.float64,
        backend="reference",
        predictor=predictor,
        corrector=corrector,
        n_corrector=2,
        snr=0.16,
        probability_flow=flow,
        denoise=denoise,
        discretization="exact" if schedule.discrete else "score_sde",
    )
    stages, calls = sampler.plan.stages, {}
    for k, s in enumerate(stages):
        first = next(i for i, other in enumerate(stages) if other.step == s.step)
        calls[s.draws[0]] = (s.step, k - first if corrector != "none" else 2)
    steps = {s.model_time: s.step for s in stages}

    def model(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        step = steps[min(steps, key=lambda m: abs(m - float(t[0])))]
        here = next(s for s in stages if s.step == step)
        level = discrete_level(sde, step) if continuous_formulas else (here.alpha, here.sigma)
        return torch.from_numpy(MIXTURE.predict(prediction, u.numpy(), *level))

    def own(draw: int, like: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(noise(*calls[draw])).reshape(like.shape)

    result = sampler(model, START * sampler.plan.prior_std, noise=own)
    # Rounding alone: 1e-16 over some hundred operations, where the last score is divided by sigma = 0.01.
    np.testing.assert_allclose(result[0].numpy(), want, rtol=1e-9, atol=1e-11)


def test_every_sde_and_option_is_compared() -> None:
    seen = {case[:3] for case in PUBLISHED}
    for sde in ("ve", "smld", "vp", "vpd"):
        for predictor in ("reverse_diffusion", "euler_maruyama", "ancestral", "none"):
            for corrector in ("langevin", "ald", "none"):
                assert ((sde, predictor, corrector) in seen) == (predictor != "none" or corrector != "none")
    assert {c[:2] for c in PUBLISHED if c[0] == "subvp"} == {
        ("subvp", "reverse_diffusion"),
        ("subvp", "euler_maruyama"),
    }
