"""`fastdiff.integrations.diffusers.Scheduler` against diffusers' schedulers in float64, and without their faults."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from helpers import of_diffusers  # noqa: E402

from fastdiff.integrations.diffusers import Scheduler, accelerate  # noqa: E402
from fastdiff.schedules.configs import DEFAULTS, LATER  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TOOL = Path(__file__).resolve().parents[2] / "tools" / "diffusers_parity.py"
X = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("diffusers_parity", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
WAN = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
MATCH, SDE = "FlowMatchEulerDiscreteScheduler", "DPMSolverSDEScheduler"
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


def net(x: torch.Tensor, t: Any) -> torch.Tensor:
    return torch.tanh(x) * (0.5 + torch.as_tensor(t, dtype=x.dtype) / 1000)


def next_of(scheduler: Any, i: int) -> dict[str, Any]:
    """What pipelines with UnCLIP's scheduler say besides."""
    times = scheduler.timesteps.tolist()
    return {"prev_timestep": [*times, None][i + 1]} if scheduler.replaces == "UnCLIPScheduler" else {}


def run(scheduler: Any, n: int | None = 6, x: torch.Tensor = X, generator: Any = None, **times: Any) -> torch.Tensor:
    scheduler.set_timesteps(n, **times)
    x = x * float(scheduler.init_noise_sigma)
    for i, t in enumerate(scheduler.timesteps):
        out = net(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, generator=generator, return_dict=False, **next_of(scheduler, i))[0]
    return x


def ours(name: str, **config: Any) -> Any:
    return Scheduler.from_config({**config, "_class_name": name})


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


# Configs.


def test_a_config_of_an_older_version_has_the_defaults_of_what_it_lacks() -> None:
    new = ("use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "flow_shift", "use_dynamic_shifting")
    config = dict(diffusers.DPMSolverMultistepScheduler(solver_order=3).config)
    old = {k: v for k, v in config.items() if k not in (*new, "time_shift_type", "rescale_betas_zero_snr")}
    s = Scheduler.from_config({**old, "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.30.0"})
    assert torch.equal(run(s), run(ours("DPMSolverMultistepScheduler", solver_order=3)))


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("UniPCMultistepScheduler", ["sigma_min", "sigma_max", "shift_terminal"]),
        ("FlowMatchEulerDiscreteScheduler", ["stochastic_sampling", "time_shift_type", "use_karras_sigmas"]),
        ("EDMEulerScheduler", ["final_sigmas_type"]),
        ("EulerDiscreteScheduler", ["use_beta_sigmas", "use_exponential_sigmas"]),
    ],
)
def test_a_config_of_an_older_version_that_does_not_say_its_class(name: str, later: list[str]) -> None:
    config = {k: v for k, v in DEFAULTS[name].items() if k not in later}
    assert Scheduler.from_config(config).replaces == name
    del config["num_train_timesteps"]
    with pytest.raises(ValueError, match="keys are those of none"):
        Scheduler.from_config(config)


def test_the_keys_of_every_class_are_those_of_the_installed_version() -> None:
    for name, defaults in DEFAULTS.items():
        theirs = getattr(diffusers, name, None)
        if theirs is not None:
            found = inspect.signature(theirs.__init__).parameters
            keys = {k: p.default for k, p in found.items() if k not in ("self", "kwargs")}
            assert set(keys) <= set(defaults) and set(defaults) - set(keys) <= LATER, name
            changed = {k: v for k, v in keys.items() if v != defaults[k] and (v or defaults[k])}
            assert not changed, (name, changed)


def test_a_config_without_a_class_is_known_by_its_keys_or_refused() -> None:
    assert Scheduler.from_config(diffusers.UniPCMultistepScheduler().config).replaces == "UniPCMultistepScheduler"
    with pytest.raises(ValueError, match="LCMScheduler or TCDScheduler: give the scheduler itself"):
        Scheduler.from_config(diffusers.LCMScheduler().config)
    with pytest.raises(ValueError, match="unknown scheduler class of diffusers 'NopeScheduler'"):
        Scheduler.from_config({"_class_name": "NopeScheduler"})
    with pytest.raises(TypeError, match="expected a scheduler of diffusers or its config"):
        Scheduler.from_config(3)
    with pytest.raises(TypeError, match="from_pretrained"):
        Scheduler.from_config("folder")


def test_keys_of_other_classes_are_ignored_and_unknown_ones_refused() -> None:
    config = dict(diffusers.EulerDiscreteScheduler().config)
    named = {**config, "_class_name": "EulerDiscreteScheduler", "skip_prk_steps": True, "clip_sample": False}
    assert Scheduler.from_config(named).config.skip_prk_steps
    with pytest.raises(ValueError, match="config key 'warp' = 2"):
        Scheduler.from_config({**named, "warp": 2})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type='fixed_large_log'"),
    ("DDPMScheduler", {"variance_type": "learned"}, "variance_type='learned'"),
    ("DDIMScheduler", {"beta_schedule": "warp"}, "unknown beta_schedule 'warp'"),
    ("DDIMScheduler", {"prediction_type": "warp"}, "unknown prediction_type 'warp'"),
    ("DDIMScheduler", {"timestep_spacing": "warp"}, "unknown timestep_spacing 'warp'"),
    ("DDIMInverseScheduler", {"clip_sample": True}, "clip_sample=True"),
    ("DDIMInverseScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}, "timestep_spacing='linspace'"),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas=True and"),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order=4"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "warp"}, "unknown algorithm_type 'warp'"),
    ("DPMSolverMultistepScheduler", {"solver_type": "warp"}, "unknown solver_type 'warp'"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "use_karras_sigmas": True}, "use_flow_sigmas=True"),
    ("DPMSolverMultistepInverseScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas=True of"),
    ("DPMSolverSinglestepScheduler", {"solver_order": 4}, "solver_order=4"),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type='sde-dpmsolver'"),
    ("UniPCMultistepScheduler", {"solver_order": 9}, "solver_order=9"),
    ("UniPCMultistepScheduler", {"solver_type": "warp"}, "unknown solver_type 'warp'"),
    ("UniPCMultistepScheduler", {"solver_p": 1}, "solver_p"),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "use_beta_sigmas": True}, "use_flow_sigmas=True"),
    (MATCH, {"use_dynamic_shifting": True, "time_shift_type": "warp"}, "unknown time_shift_type 'warp'"),
    ("EDMEulerScheduler", {"sigma_schedule": "warp"}, "unknown sigma_schedule 'warp'"),
    ("FlowMatchLCMScheduler", {"scale_factors": [2.0]}, "scale_factors"),
    ("IPNDMScheduler", {"trained_betas": [0.9, 0.5, 0.1]}, "trained_betas of IPNDMScheduler are the levels"),
    ("CosineDPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order=3 of Cosine"),
    ("DEISMultistepScheduler", {"solver_order": 4}, "solver_order=4 of DEIS"),
    (
        "DPMSolverMultistepInverseScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        "algorithm_type='sde-dpmsolver\\+\\+'",
    ),
    (
        "DDIMInverseScheduler",
        {"clip_sample": False, "prediction_type": "sample"},
        "prediction_type='sample' of DDIMInv",
    ),
    ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "flow_prediction' without use_flow_sigmas"),
    ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "trained_betas has 2 entries, and num_train_timesteps=1000"),
    ("FlowMatchLCMScheduler", {"invert_sigmas": True}, "invert_sigmas=True of FlowMatchLCMScheduler with noise"),
    (MATCH, {"invert_sigmas": True, "stochastic_sampling": True}, "invert_sigmas=True of FlowMatchEuler"),
    ("UnCLIPScheduler", {"variance_type": "fixed_large"}, "unknown variance_type 'fixed_large'"),
    ("SASolverScheduler", {"algorithm_type": "dpmsolver"}, "unknown algorithm_type 'dpmsolver'"),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "warp"}, "unknown final_sigmas_type 'warp'"),
    ("EDMDPMSolverMultistepScheduler", {"thresholding": True}, "thresholding=True"),
]


@pytest.mark.parametrize(("name", "config", "match"), REFUSED)
def test_what_is_not_here_is_refused_by_its_key(name: str, config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Scheduler.from_config({"_class_name": name, **config})


def test_arguments_that_do_not_fit() -> None:
    s = ours("DDIMScheduler")
    with pytest.raises(ValueError, match="no times are set"):
        s.step(X, 1, X)
    for call, match in (
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 1001}, "num_train_timesteps=1000"),
        ({"num_inference_steps": 5, "mu": 1.0}, "mu=...\\) is not an argument"),
        ({}, "needs num_inference_steps"),
        ({"timesteps": [1, 2, 3]}, "must descend"),
        ({"timesteps": "abc"}, "expected a list of finite numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            s.set_timesteps(**call)
    karras = ours("HeunDiscreteScheduler", use_karras_sigmas=True)
    with pytest.raises(ValueError, match="use_karras_sigmas=True: both say"):
        karras.set_timesteps(timesteps=[900.0, 1.0])
    with pytest.raises(ValueError, match="got both steps and timesteps"):
        ours("HeunDiscreteScheduler").set_timesteps(2, timesteps=[900.0, 1.0])
    with pytest.raises(ValueError, match="needs use_flow_sigmas=True"):
        ours("UniPCMultistepScheduler").set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="needs mu"):
        ours(MATCH, use_dynamic_shifting=True).set_timesteps(4)
    with pytest.raises(ValueError, match="got 2 sigmas and num_inference_steps=4"):
        ours(MATCH).set_timesteps(4, sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="places between sigma_max and sigma_min"):
        ours("EDMEulerScheduler").set_timesteps(sigmas=[0.0, 1.0])
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    with pytest.raises(ValueError, match="timestep_type='continuous'"):
        ours("EulerDiscreteScheduler", **continuous).set_timesteps(timesteps=[900.0])
    s.set_timesteps(4)
    t = s.timesteps[0]
    with pytest.raises(TypeError, match="model_output must be a floating-point tensor"):
        s.step(3, t, X)
    with pytest.raises(ValueError, match="model_output has shape"):
        s.step(X[:1], t, X)
    with pytest.raises(ValueError, match="timestep is empty"):
        s.step(X, torch.empty(0), X)
    with pytest.raises(ValueError, match="s_churn"):
        s.step(X, t, X, s_churn=1.0)
    with pytest.raises(ValueError, match="got 3 generators for a batch of 2"):
        s.step(X, t, X, eta=1.0, generator=[torch.Generator()] * 3)
    with pytest.raises(TypeError, match="got int: torch"):
        s.step(X, t, X, eta=1.0, generator=3)
    heun = ours("HeunDiscreteScheduler")
    heun.set_timesteps(4)
    heun.set_begin_index(1)
    with pytest.raises(ValueError, match="in the midst of a step"):
        heun.step(X, heun.timesteps[1], X)
    learned = ours("DDPMScheduler", variance_type="learned_range")
    learned.set_timesteps(4)
    with pytest.raises(ValueError, match="twice the channels of sample"):
        learned.step(X, learned.timesteps[0], X)
    with pytest.raises(ValueError, match="no training table"):
        ours(MATCH).get_velocity(X, X, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="noise='warp'"):
        Scheduler.from_config(diffusers.DDIMScheduler(), noise="warp")
    dpm = ours("DPMSolverSinglestepScheduler", **WAN)
    for name in ("RePaintScheduler", "SCMScheduler", "VQDiffusionScheduler"):
        with pytest.raises(ValueError, match=f"{name} of diffusers is not here: it"):
            Scheduler.from_config({"_class_name": name})
    unclip = ours("UnCLIPScheduler")
    unclip.set_timesteps(4)
    with pytest.raises(ValueError, match="prev_timestep=5: the step at timesteps\\[0\\] leads to 666"):
        unclip.step(X, unclip.timesteps[0], X, prev_timestep=5)
    with pytest.raises(ValueError, match="prev_timestep=None: the step at timesteps\\[1\\] leads to 333"):
        unclip.step(X, unclip.timesteps[1], X)
    zero = ours("LCMScheduler", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr=True and a time at which alpha = 0"):
        zero.set_timesteps(4)
    with pytest.raises(ValueError, match="num_inference_steps=1 of IPNDMScheduler returns zeros"):
        ours("IPNDMScheduler").set_timesteps(1)
    assert dpm.order == 1


def test_accelerate_says_what_it_cannot_do() -> None:
    class Pipe:
        scheduler = diffusers.DDIMScheduler()

    class StableDiffusionLatentUpscalePipeline(Pipe): ...

    class CogVideoXPipeline(Pipe): ...

    assert type(accelerate(CogVideoXPipeline()).scheduler) is Scheduler
    pipe = accelerate(Pipe(), "UniPCMultistep", solver_order=3)
    assert pipe.scheduler.replaces == "UniPCMultistepScheduler" and pipe.scheduler.config.solver_order == 3
    with pytest.raises(TypeError, match="a pipeline of diffusers, with a scheduler; got int"):
        accelerate(3)
    with pytest.raises(ValueError, match="graph=True: the pipeline calls its network itself"):
        accelerate(Pipe(), graph=True)
    with pytest.raises(ValueError, match="unknown scheduler class of diffusers 'nope'"):
        accelerate(Pipe(), "nope")
    with pytest.raises(ValueError, match="does not work with another scheduler"):
        accelerate(StableDiffusionLatentUpscalePipeline())


def test_beta_sigmas_without_scipy_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        ours("EulerDiscreteScheduler", use_beta_sigmas=True)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("fastdiff.integrations.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="pip install diffusers"):
        importlib.import_module("fastdiff.integrations.diffusers")
