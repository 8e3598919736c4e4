"""`fastdiff.integrations.diffusers.Scheduler` against diffusers' schedulers in float64, and without their faults."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from helpers import of_diffusers  # noqa: E402
from helpers.scheduling import MATCH, WAN, X, net, ours, run  # noqa: E402

from fastdiff.integrations.diffusers import Scheduler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TOOL = Path(__file__).resolve().parents[2] / "tools" / "diffusers_parity.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("diffusers_parity", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
SDE = "DPMSolverSDEScheduler"
TEN = {"num_inference_steps": 10}
# One of each rule; the tool has 480.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 1.5}, {}),
    ("DDIMScheduler", {}, {"step": {"eta": 0.5}}),
    # A last step of length 0 that clips, on times that end at 0.
    ("DDIMScheduler", {"set_alpha_to_one": False}, {"times": TEN}),
    (
        "DDIMScheduler",
        {"set_alpha_to_one": False},
        {"times": TEN, "step": {"eta": 0.5, "use_clipped_model_output": True}},
    ),
    ("UnCLIPScheduler", {"prediction_type": "sample", "clip_sample_range": 0.5}, {"times": TEN}),
    ("UnCLIPScheduler", {"variance_type": "learned_range"}, {}),
    # The last entry, 2^-24, lies below those before it.
    ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "use_exponential_sigmas": True}, {}),
    ("DDPMScheduler", {"variance_type": "learned_range"}, {}),
    ("DDIMInverseScheduler", {"clip_sample": False, "set_alpha_to_one": False}, {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, {}),
    (
        "EulerDiscreteScheduler",
        {"prediction_type": "v_prediction", "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0}
        | {"use_karras_sigmas": True},
        {},
    ),
    ("EulerAncestralDiscreteScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {}),
    ("HeunDiscreteScheduler", {"clip_sample": True}, {"begin": 4}),
    (
        "DPMSolverMultistepScheduler",
        {"solver_order": 3, "timestep_spacing": "leading", "steps_offset": 1},
        {"begin": 5},
    ),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "solver_type": "heun", **SIGMA_MIN}, {}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True, **SIGMA_MIN}, {}),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}, {}),
    ("DPMSolverMultistepInverseScheduler", {"solver_order": 2}, {}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}, {"begin": 4}),
    ("UniPCMultistepScheduler", {"disable_corrector": [0, 3], "use_exponential_sigmas": True}, {}),
    ("UniPCMultistepScheduler", {**WAN, "flow_shift": 3.0, "shift_terminal": 0.1, "solver_order": 3}, {}),
    (MATCH, {"invert_sigmas": True}, {}),
    (MATCH, {"stochastic_sampling": True}, {}),
    (
        MATCH,
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.1},
        {"times": {"sigmas": [1.0, 0.7, 0.4, 0.1], "mu": 0.7}},
    ),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, {}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, {}),
    ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}, {"begin": 4}),
    ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    ("DPMSolverSDEScheduler", {"use_exponential_sigmas": True}, {}),
    ("PNDMScheduler", {"skip_prk_steps": True}, {"times": {"num_inference_steps": 10}}),
    ("PNDMScheduler", {"skip_prk_steps": False}, {"times": {"num_inference_steps": 10}}),
    ("DEISMultistepScheduler", {"solver_order": 3}, {}),
    ("SASolverScheduler", {"predictor_order": 3, "algorithm_type": "noise_prediction"}, {}),
    # Grids that end with a step of length 0: the last step is corrected there, and the orders fall one step earlier.
    ("SASolverScheduler", {"use_beta_sigmas": True, "predictor_order": 3, "corrector_order": 4}, {}),
    ("DEISMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, {}),
    ("IPNDMScheduler", {}, {}),
    ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"times": TEN}),
    ("CogVideoXDPMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"times": TEN}),
    ("CosineDPMSolverMultistepScheduler", {"sigma_data": 0.7}, {}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {}),
    ("LCMScheduler", {}, {"times": {"num_inference_steps": 4}}),
    ("TCDScheduler", {}, {"times": {"num_inference_steps": 4}, "step": {"eta": 0.5}}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
]


@pytest.mark.parametrize(("name", "config", "more"), [c for c in CASES if c[0] in Scheduler._compatibles])
def test_as_theirs_in_float64(tool: ModuleType, name: str, config: dict[str, Any], more: dict[str, Any]) -> None:
    of_diffusers.scheduler(name, **config)
    # A dozen steps of a few ulp, amplified by sigma_max = 157 where x/alpha is the sample.
    assert tool.error(name, config, **more) < 1e-11


# Faults that diffusers has.


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["bh1", "bh2"])
@pytest.mark.parametrize("lower", [True, False])
def test_unipc_is_finite_to_sigma_0(order: int, solver: str, lower: bool) -> None:
    s = ours("UniPCMultistepScheduler", solver_order=order, solver_type=solver, lower_order_final=lower)
    for n in (1, 2, 6):
        assert bool(torch.isfinite(run(s, n)).all())


def test_ddim_goes_to_the_time_that_it_evaluates_next() -> None:
    s = ours("DDIMScheduler", timestep_spacing="linspace", clip_sample=False)
    got = run(s, 7)
    a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    times = np.linspace(0, 999, 7).round()[::-1].astype(int).tolist()
    assert s.timesteps.tolist() == times
    x = X
    for t, following in zip(times, [*times[1:], None], strict=True):
        eps, b = net(x, t), a[following] if following is not None else torch.tensor(1.0)
        x0 = (x - (1 - a[t]).sqrt() * eps) / a[t].sqrt()
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps
    torch.testing.assert_close(got, x, rtol=0, atol=1e-11 * float(x.abs().max()))


@pytest.mark.parametrize("name", [n for n in Scheduler._compatibles if "Inverse" not in n and n != "IPNDMScheduler"])
def test_one_step_is_finite(name: str) -> None:
    s = ours(name)
    assert bool(torch.isfinite(run(s, 1)).all()) and len(s.timesteps) == 1


def test_one_step_of_length_0_changes_nothing() -> None:
    s = ours("DDIMScheduler", set_alpha_to_one=False, clip_sample=False)
    assert torch.equal(run(s, 1), X)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_equal_sigmas_are_a_step_that_changes_nothing(at: int) -> None:
    sigmas = [0.9, 0.6, 0.3, 0.1]
    twice = [*sigmas[: at + 1], *sigmas[at:]]
    torch.testing.assert_close(run(ours(MATCH), None, sigmas=twice), run(ours(MATCH), None, sigmas=sigmas))
    # UniPC evaluates the corrected state the second time, and divided differences have no second value there.
    high = run(ours("UniPCMultistepScheduler", **WAN, solver_order=3), None, sigmas=twice)
    assert bool(torch.isfinite(high).all())


def test_equal_sigmas_within_a_step_are_refused() -> None:
    s = ours("HeunDiscreteScheduler")
    with pytest.raises(ValueError, match="several evaluations a step"):
        s.set_timesteps(timesteps=[900.0, 500.0, 500.0, 100.0])


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_noise_of_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = run(ours(name), generator=generators(5, 6))
    alone = run(ours(name), x=X[1:], generator=generators(6))
    assert torch.equal(together[1:], alone)
    assert not torch.equal(together, run(ours(name), generator=generators(5, 7)))


def test_one_seed_makes_one_run_and_the_next_run_other_noise() -> None:
    s = ours("DDPMScheduler")
    g = torch.Generator().manual_seed(1)
    first, second = run(s, generator=g), run(s, generator=g)
    assert torch.equal(first, run(s, generator=g.manual_seed(1))) and not torch.equal(first, second)
    torch.manual_seed(4)
    free = run(s)
    torch.manual_seed(4)
    assert torch.equal(free, run(s))


def test_one_scheduler_in_eight_threads() -> None:
    s = ours("UniPCMultistepScheduler")
    lengths = [4 + i % 7 for i in range(64)]
    alone = {n: run(ours("UniPCMultistepScheduler"), n) for n in set(lengths)}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: run(s, n), lengths))
    assert all(torch.equal(r, alone[n]) for r, n in zip(results, lengths, strict=True))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("UniPCMultistepScheduler", {"thresholding": True, "sample_max_value": 2.0}),
        (MATCH, {}),
    ],
)
def test_step_reads_no_value_of_a_tensor(name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    s = ours(name, **config)
    s.set_timesteps(5)
    s.set_begin_index(0)
    x, times = X, list(s.timesteps)
    outs = [torch.tanh(X + i) for i in range(len(times))]

    def waits(*_: Any, **__: Any) -> Any:
        raise AssertionError("step waits for the device")

    for attribute in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, attribute, waits)
    for out, t in zip(outs, times, strict=True):
        x = s.step(out, t, s.scale_model_input(x, t)).prev_sample
    monkeypatch.undo()
    assert s.step_index is None and bool(torch.isfinite(x).all())


# The interface.


def test_a_run_begins_where_it_is_told_or_where_its_time_is() -> None:
    s = ours("DPMSolverMultistepScheduler")
    s.set_timesteps(8)
    t, results = s.timesteps[3], []
    for how in ("index", "part", "value", "number"):
        s.set_timesteps(8)
        if how == "index":
            s.set_begin_index(3)
            assert s.begin_index == 3
        given = {"part": s.timesteps[3], "value": t.clone(), "number": int(t)}.get(how, t)
        results.append(s.step(net(X, t), given, X, return_dict=False)[0])
        assert s.step_index == 4
    assert all(torch.equal(results[0], r) for r in results)
    with pytest.raises(ValueError, match="is none of"):
        s.index_for_timestep(3)


def test_a_loop_that_goes_elsewhere_begins_a_run_there() -> None:
    s = ours("DPMSolverMultistepScheduler")
    s.set_timesteps(6)
    first = s.step(net(X, 1), s.timesteps[0], X).prev_sample
    s.step(net(X, 1), s.timesteps[1], first)
    # Back to the first time, and no second-order step from what came before.
    assert torch.equal(s.step(net(X, 1), s.timesteps[0], X).prev_sample, first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_samples_keep_a_float32_state(dtype: torch.dtype) -> None:
    s = ours("DDIMScheduler", clip_sample=False)
    n, want = 50, None
    for narrow in (False, True):
        s.set_timesteps(n)
        x = X.to(torch.float32)
        x = x.to(dtype) if narrow else x.to(dtype).float()
        for t in s.timesteps:
            # The network's answer does not depend on the rounding of its input.
            out = torch.tanh(X.float() + float(t) / 1000).to(dtype)
            x = s.step(out, t, x, return_dict=False)[0]
        want = x if want is None else want
    assert x.dtype == dtype
    torch.testing.assert_close(x, want.to(dtype), rtol=0, atol=0)


def test_a_sample_that_was_changed_is_taken_as_it_is() -> None:
    s = ours("DDIMScheduler", clip_sample=False)
    s.set_timesteps(4)
    x = s.step(
        torch.zeros(2, 3, dtype=torch.bfloat16), s.timesteps[0], torch.ones(2, 3, dtype=torch.bfloat16)
    ).prev_sample
    x.mul_(0)
    assert not s.step(torch.zeros_like(x), s.timesteps[1], x).prev_sample.any()


def test_outputs() -> None:
    s = ours("DDIMScheduler", clip_sample_range=0.5)
    theirs = diffusers.DDIMScheduler(clip_sample_range=0.5)
    made = []
    for one in (s, theirs):
        one.set_timesteps(5)
        made.append(one.step(net(X, 500), one.timesteps[0], X))
    assert made[0].prev_sample.shape == X.shape and len(made[0]) == 2
    torch.testing.assert_close(made[0].pred_original_sample, made[1].pred_original_sample, rtol=1e-5, atol=1e-5)
    assert made[0]["prev_sample"] is made[0][0] is made[0].to_tuple()[0]
    assert made[0].keys() == ("prev_sample", "pred_original_sample")
    prev, x0 = s.step(net(X, 500), s.timesteps[1], X, return_dict=False)
    assert prev.shape == x0.shape
    assert len(ours("UniPCMultistepScheduler").step.__doc__) > 0


def test_x0_is_refused_once_its_inputs_have_changed() -> None:
    s = ours("DDIMScheduler")
    s.set_timesteps(5)
    x = X.clone()
    made = s.step(net(X, 500), s.timesteps[0], x)
    x.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        _ = made.pred_original_sample


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", MATCH])
def test_noise_for_a_start_is_theirs(name: str) -> None:
    theirs, mine = of_diffusers.scheduler(name), ours(name)
    noise, results = torch.randn_like(X), []
    for s in (theirs, mine):
        s.set_timesteps(8)
        at = s.timesteps[torch.tensor([2, 5])]
        results.append(s.scale_noise(X, at, noise) if name == MATCH else s.add_noise(X, noise, at))
    torch.testing.assert_close(results[1], results[0], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_noise_for_a_start_is_added_to_data_of_its_own_size(name: str) -> None:
    s = ours(name, sigma_data=0.5)
    s.set_timesteps(8)
    noise = torch.randn_like(X)
    got = s.add_noise(X, noise, s.timesteps[5:6].repeat(2))
    sigma = float(s.sigmas[5])
    torch.testing.assert_close(got, X + sigma * noise, rtol=1e-6, atol=1e-6)


def test_training_tables_can_be_read() -> None:
    for name in ("DDIMScheduler", "UnCLIPScheduler", "DPMSolverMultistepScheduler"):
        theirs, mine = of_diffusers.scheduler(name), ours(name)
        for table in ("betas", "alphas", "alphas_cumprod"):
            want = getattr(theirs, table)
            assert getattr(mine, table).dtype == want.dtype == torch.float32
            # A float32 product of 1000.
            torch.testing.assert_close(getattr(mine, table), want, rtol=1e-4, atol=1e-6)
    assert not hasattr(ours(MATCH), "alphas_cumprod") and not hasattr(ours("DDIMScheduler"), "warp")


def test_velocity_is_theirs() -> None:
    noise, at = torch.randn_like(X), torch.tensor([3, 700])
    want = diffusers.DDPMScheduler().get_velocity(X, noise, at)
    torch.testing.assert_close(ours("DDPMScheduler").get_velocity(X, noise, at), want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(Scheduler._compatibles))
def test_times_of_every_class_are_theirs(name: str) -> None:
    # Times within a step come from a level: their float32 table is 8e-5 off in log sigma, of 8 over 1000 times.
    atol = 1e-4 if name not in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", SDE) else 1e-2
    config = {"clip_sample": False} if "Inverse" in name and "DDIM" in name else {}
    if name == "PNDMScheduler":
        # Its Runge-Kutta start fails with less than four steps.
        config = {"skip_prk_steps": True}
    theirs, mine = of_diffusers.scheduler(name, **config), ours(name, **config)
    # With one step Cosine's exponential grid is sigma_min alone, IPNDM's result is 0, and the others fail.
    fails = ("CosineDPMSolverMultistepScheduler", "IPNDMScheduler", "UnCLIPScheduler", "DPMSolverSinglestepScheduler")
    for n in (3, 10, 37) if name in fails else (1, 3, 10, 37):
        theirs.set_timesteps(n)
        mine.set_timesteps(n)
        want = theirs.timesteps
        if name != "DPMSolverMultistepInverseScheduler" or n > 1:
            assert mine.timesteps.dtype == (torch.float32 if want.dtype.is_floating_point else want.dtype), name
            torch.testing.assert_close(mine.timesteps.double(), want.double(), rtol=1e-6, atol=atol, msg=name)
        assert mine.num_inference_steps == n and mine.order == getattr(theirs, "order", 1)
        # Their table is a float32 product of betas: 8e-5 at time 0, where all of it is rounding.
        if hasattr(theirs, "init_noise_sigma"):
            assert math.isclose(float(theirs.init_noise_sigma), mine.init_noise_sigma, rel_tol=1e-3), name


def test_copies_and_pickles_have_no_runs() -> None:
    s = ours("UniPCMultistepScheduler")
    want = run(s)
    for again in (copy.deepcopy(s), pickle.loads(pickle.dumps(s))):
        assert again.num_inference_steps is None and torch.equal(run(again), want)
