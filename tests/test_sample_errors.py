"""Bad input: each error says what was got, what was expected, and what would be right; nothing falls back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import wavy

import fastdiff
from fastdiff import ops
from fastdiff.run import arguments

X = torch.linspace(-2, 2, 24).reshape(2, 3, 4)
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
CALLS: list[int] = []


def untouched(x, t):
    """No work may begin before the arguments are checked."""
    CALLS.append(1)
    return x


ARGUMENTS = [
    ({"steps": 0}, ValueError, "steps.*0.*at least 1|steps.*>= 1"),
    ({"steps": -3}, ValueError, "steps"),
    ({"steps": 2.5}, (TypeError, ValueError), "steps.*2.5"),
    ({"steps": "10"}, (TypeError, ValueError), "steps"),
    ({"method": "dpm33"}, ValueError, "dpm33.*dpm3"),
    ({"method": 3}, TypeError, "method must be a name such as 'dpm3', got int"),
    ({"method": "dpm3", "eta": 0.5}, ValueError, "option of method 'dpm3'.*eta.*solver_type"),
    ({"method": "ddim", "etta": 0.5}, ValueError, "etta.*eta"),
    ({"method": "ddim", "eta": 2.0}, ValueError, r"eta=2.0: method 'ddim' accepts \[0, 1\]"),
    ({"method": "ddim", "eta": "all"}, TypeError, "eta='all'.*expects a number"),
    ({"method": "dpm3", "solver_type": "taylr"}, ValueError, "taylr.*taylor"),
    ({"method": "dpm3", "lower_order_final": 1}, TypeError, "lower_order_final=1.*True or False"),
    ({"spacing": "logsnrr"}, ValueError, "logsnrr.*logsnr"),
    ({"schedule": "dppm"}, ValueError, "dppm.*ddpm"),
    ({"schedule": 3}, ValueError, "schedule got int; expected a name such as .ddpm."),
    ({"schedule": ""}, ValueError, "schedule"),
    ({"prediction": "epsilon"}, ValueError, "epsilon.*eps"),
    ({"prediction": "noise"}, ValueError, "noise.*eps, x0, v, score, flow|noise.*eps"),
    ({"dtype": torch.float16}, ValueError, "float16: the state is torch.float32 or torch.float64.*network is fine"),
    ({"dtype": torch.bfloat16}, ValueError, "bfloat16: the state is"),
    ({"dtype": "float32"}, (TypeError, ValueError), "float32"),
    ({"backend": "cudaa"}, ValueError, "cudaa.*cuda"),
    ({"graph": "yes"}, ValueError, "graph='yes': expected 'auto', True or False"),
    ({"graph": 1}, ValueError, "graph=1: expected 'auto', True or False"),
    ({"graph": None}, ValueError, "graph=None: expected"),
    ({"spacing": [900.0, 900.0, 0.0]}, ValueError, "strictly"),
    ({"spacing": [900.0, 300.0, 400.0]}, ValueError, "strictly"),
    ({"spacing": [900.0]}, ValueError, "at least"),
    ({"spacing": []}, ValueError, "at least"),
    ({"spacing": [[900.0, 0.0]]}, ValueError, "in one dimension"),
    ({"spacing": ["a", "b"]}, ValueError, "expected a name of"),
    ({"spacing": [1500.0, 0.0]}, ValueError, "1500.0 is outside the range"),
    ({"spacing": [900.0, float("nan")]}, ValueError, "nan"),
    ({"spacing": [900.0, 500.0, 0.0], "steps": 3}, ValueError, "steps"),
    ({"t_start": 1200.0}, ValueError, "1200.0 is outside"),
    ({"t_end": -20.0}, ValueError, "-20.0 is outside"),
    ({"t_start": 100.0, "t_end": 500.0}, ValueError, "t_start|t_end"),
    ({"x": X.int()}, TypeError, r"dtype torch.int32; expected floating point: pass x.float\(\)"),
    ({"x": X.bool()}, TypeError, "dtype torch.bool; expected floating"),
    ({"x": torch.complex(X, X)}, TypeError, "dtype torch.complex64; expected floating"),
    ({"x": X.numpy()}, TypeError, r"x must be a torch.Tensor of shape .*, got ndarray: pass torch.from_numpy\(x\)$"),
    ({"x": (2, 3, 4)}, TypeError, "got tuple: to draw the start give shape="),
    ({"x": [1.0, 2.0]}, TypeError, "got list"),
    ({"x": torch.tensor(1.0)}, ValueError, r"shape \(\); expected \(B, ...\)"),
    ({"x": torch.empty(0, 3)}, ValueError, r"shape \(0, 3\); expected \(B, ...\) with at least one"),
    ({"x": torch.full((2, 3), float("nan"))}, ValueError, "x has NaN or Inf; expected finite"),
    ({"x": torch.full((2, 3), float("inf"))}, ValueError, "x has NaN or Inf"),
    (
        {"x": X.clone().requires_grad_()},
        ValueError,
        r"requires grad, but sampling runs without gradients: pass x.detach\(\)",
    ),
    ({"x": X, "shape": 3}, TypeError, r"shape=3: expected \(B, ...\), such as shape="),
    (
        {"x": X, "shape": (2, 3)},
        ValueError,
        r"shape=\(2, 3\) does not go with x of shape \(2, 3, 4\): give one of them",
    ),
    (
        {"x": None},
        ValueError,
        r"cannot tell the shape of a sample: pass x=..., or shape=\(B, ...\), or .*sample_shape = \(C, H, W\)",
    ),
    ({"x": None, "shape": (2, 0)}, ValueError, r"shape=\(2, 0\): expected .* such as shape=\(16, 3, 32, 32\)"),
    ({"x": None, "shape": ()}, ValueError, r"shape=\(\): expected"),
    ({"x": None, "shape": "large"}, TypeError, "shape='large': expected"),
    ({"seed": [1, 2, 3]}, ValueError, "got 3 seeds for a batch of 2"),
    ({"seed": []}, ValueError, "got 0 seeds for a batch of 2"),
    ({"seed": 0.5}, TypeError, "seed=0.5: expected an integer"),
    ({"seed": None}, TypeError, "seed=None: expected an integer"),
    ({"seed": "0"}, TypeError, "seed='0': expected an integer"),
    ({"seed": 2**64}, TypeError, "expected an integer from"),
    ({"first_sample": -1}, ValueError, "first_sample=-1: expected an integer from 0"),
    ({"first_sample": 1.0}, ValueError, "first_sample=1.0"),
    (
        {"noise": lambda draw, like: like[:1], "x": None, "shape": (2, 3)},
        ValueError,
        r"noise\(-1, like\) returned \(1, 3\); expected",
    ),
    (
        {"noise": lambda draw, like: None, "x": None, "shape": (2, 3)},
        ValueError,
        r"noise\(-1, like\) returned NoneType",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "words"), ARGUMENTS)
def test_arguments(arguments, error, words) -> None:
    CALLS.clear()
    with pytest.raises(error, match=words):
        fastdiff.sample(untouched, **{"x": X, **arguments})
    assert not CALLS


def test_begin_takes_no_model() -> None:
    sampler, net = fastdiff.Sampler("ddim", 2), torch.nn.Linear(4, 4)
    with pytest.raises(
        TypeError, match=r"got Linear; a model goes first, sampler\(model, x\), and begin\(x\) takes none"
    ):
        sampler.begin(net, shape=(2, 3, 4))
    with pytest.raises(TypeError, match="got Linear; a model goes first"):
        sampler(untouched, net)


def test_the_noise_of_a_step_is_checked_too() -> None:
    for noise, got in ((lambda draw, like: like[:1], r"\(1, 3, 4\)"), (lambda draw, like: 0.0, "float")):
        with pytest.raises(
            ValueError, match=rf"noise\(draw, like\) returned .*{got}.*; expected a tensor of shape \(2, 3, 4\)"
        ):
            fastdiff.sample(wavy, X, method="ddpm", noise=noise)


@pytest.mark.parametrize("name", ops.BACKENDS)
def test_a_named_back_end_never_falls_back(name, monkeypatch) -> None:
    """Where it can run it does; where it cannot, the error carries its own reason, and nothing has run."""
    module = ops.load(name)
    ok, why = module.available()
    if ok:
        ok, why = module.supports(torch.device("cpu"), torch.float32, torch.float32)
    CALLS.clear()
    if ok:
        used = []
        stage = module.stage
        monkeypatch.setattr(module, "stage", lambda *a: used.append(1) or stage(*a))
        fastdiff.sample(wavy, X, backend=name)
        assert used
    else:
        with pytest.raises(
            RuntimeError, match=f"backend '{name}' cannot run here: .*backend=None.*fastdiff doctor"
        ) as caught:
            fastdiff.sample(untouched, X, backend=name)
        assert why in str(caught.value) and not CALLS


def test_a_back_end_whose_module_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(ops.load("cpu"), "available", lambda: (False, "the extension is not built"))
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot run here: the extension is not built"):
        fastdiff.sample(untouched, X, backend="cpu")
    monkeypatch.setattr("fastdiff.ops.choice._WARNED", set())
    with pytest.warns(UserWarning, match=r"no compiled back end runs on cpu here.*\(cpu: the extension is not built\)"):
        assert torch.isfinite(fastdiff.sample(wavy, X)).all()
    # Once is enough.
    assert torch.isfinite(fastdiff.sample(wavy, X)).all()


@NO_CUDA
def test_without_a_gpu() -> None:
    CALLS.clear()
    with pytest.raises(RuntimeError, match=r"graph=True: it needs a CUDA device.*use graph='auto' or graph=False"):
        fastdiff.sample(untouched, X, graph=True)
    with pytest.raises(RuntimeError, match=r"device='cuda': torch sees no CUDA device here"):
        fastdiff.sample(untouched, X, device="cuda")
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run here"):
        fastdiff.sample(untouched, X, backend="cuda")
    assert not CALLS
    for graph in ("auto", False):
        assert torch.isfinite(fastdiff.sample(wavy, X, graph=graph)).all()


@pytest.mark.parametrize("name", ["mps", "xpu", "hpu", "vulkan"])
def test_a_device_that_torch_cannot_use_is_named(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError):
        words = rf"device='{name}': torch makes no tensors there .*; use device='cpu', or leave it out"
        with pytest.raises(RuntimeError, match=words):
            fastdiff.sample(lambda x, t: x, shape=(2, 3), steps=1, schedule="ddpm", device=name)
        with pytest.raises(RuntimeError, match=words):
            fastdiff.randn((2, 3), seed=0, device=name)
    else:
        assert fastdiff.sample(lambda x, t: x, shape=(2, 3), steps=1, schedule="ddpm", device=name).device.type == name


@pytest.mark.parametrize("kind", ["mps", "xpu", "cuda"])
def test_a_device_without_a_number_is_the_model_s(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on "mps" say that they are on "mps:0": the two were taken for different ones."""
    monkeypatch.setattr(arguments, "_check_there", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    numbered = torch.device(kind, 0)
    assert arguments.resolve_device(kind, None, numbered) == numbered
    with pytest.raises(ValueError, match=f"the model is on {kind}:0, and sampling would run on {kind}:1: move one"):
        arguments.resolve_device(f"{kind}:1", None, numbered)


def test_model_and_start_on_different_devices() -> None:
    class Model(torch.nn.Module):
        device = torch.device("meta")

        def forward(self, x, t):
            return untouched(x, t)

    CALLS.clear()
    with pytest.raises(ValueError, match=r"the model is on meta, and sampling would run on cpu: move one"):
        fastdiff.sample(Model(), X)
    assert not CALLS


def test_predictions_that_divide_by_zero_are_refused() -> None:
    """Zero terminal SNR: alpha = 0 at the start, where eps says nothing of x0."""
    schedule = fastdiff.schedules.flow()
    with pytest.raises(
        ValueError, match=r"prediction='eps' cannot be used where alpha=0.*must predict 'v', 'x0' or 'flow'"
    ):
        fastdiff.sample(untouched, X, method="ddim", schedule=schedule, prediction="eps")
    with pytest.raises(ValueError, match=r"cannot start at t=1, where alpha = 0"):
        fastdiff.sample(untouched, X, method="dpm3", schedule=schedule, prediction="v")
    got = fastdiff.sample(wavy, X, method="ddim", schedule=schedule, prediction="flow")
    assert torch.isfinite(got).all()


def test_cached_plans_are_checked_as_new_ones() -> None:
    """1 equals True and 1.0, but only one of them is a valid value, whatever was asked before."""
    fastdiff.sample(wavy, X, steps=2, lower_order_final=True)
    with pytest.raises(TypeError, match=r"lower_order_final=1: .*True or False"):
        fastdiff.sample(wavy, X, steps=2, lower_order_final=1)
    with pytest.raises((TypeError, ValueError), match=r"steps"):
        fastdiff.sample(wavy, X, steps=2.0)


def test_sampler_refuses_what_is_not_a_plan() -> None:
    with pytest.raises(TypeError, match=r"plan must be a fastdiff.Plan, got str: fastdiff.plan\(...\) makes one"):
        fastdiff.Sampler(plan="dpm3")


def test_numbers_of_numpy_are_taken() -> None:
    a = fastdiff.sample(
        wavy, X, steps=np.int64(4), seed=np.int32(3), first_sample=np.int64(1), t_start=np.float64(900.0), method="ddpm"
    )
    b = fastdiff.sample(wavy, X, steps=4, seed=3, first_sample=1, t_start=900.0, method="ddpm")
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"method": "ddim"}, "method="),
        ({"steps": 7, "t_start": 500}, "steps=, t_start="),
        ({"spacing": "karras", "rho": 5.0}, "spacing=, rho="),
        ({"eta": 1.0}, "eta="),
        ({"final": "clean"}, "final="),
        ({"bogus": 1}, "bogus="),
    ],
)
def test_a_plan_leaves_nothing_else_to_say(given, named: str) -> None:
    """They were left out in silence."""
    plan = fastdiff.plan("dpmpp2m", 3, schedule="ddpm")
    for call in (lambda: fastdiff.Sampler(plan=plan, **given), lambda: fastdiff.sample(wavy, X, plan=plan, **given)):
        with pytest.raises(
            ValueError, match=f"plan= is a method with its .* does not go with {named}: leave them out, or"
        ):
            call()


def test_a_plan_on_its_own_schedule() -> None:
    plan = fastdiff.plan("dpmpp2m", 3, schedule="ddpm")
    want = fastdiff.sample(wavy, X, plan=plan)
    assert torch.equal(fastdiff.sample(wavy, X, plan=plan, schedule="ddpm"), want)
    with pytest.raises(ValueError, match=r"plan= was made on ddpm\(.*, and schedule= is flow\(.*: leave schedule out"):
        fastdiff.sample(wavy, X, plan=plan, schedule="flow", prediction="v")


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastdiff.sample(wavy, X, schedule="flow", steps=3),
        lambda: fastdiff.sample(wavy, X, schedule="flow", steps=3, t_start=0.5),
        lambda: fastdiff.sample(wavy, X, schedule="flow", method="ode", t_start=0.5),
        lambda: fastdiff.sample(wavy, X, plan=fastdiff.plan("dpmpp2m", 3, schedule="flow", t_start=0.5)),
        lambda: fastdiff.Sampler("dpmpp2m", 3, schedule="flow").invert(wavy, X),
        lambda: fastdiff.Sampler("dpmpp2m", 3, schedule="flow", t_start=0.5).begin(X),
        lambda: fastdiff.log_likelihood(wavy, X, schedule="flow"),
    ],
)
def test_on_flow_someone_says_what_the_network_gives(call) -> None:
    """A run that begins below the last time, or goes upwards, took a velocity for eps in silence."""
    with pytest.raises(
        ValueError, match=r"the schedule is flow\(shift=1.0\), and neither .* prediction='flow' is the vel"
    ):
        call()
