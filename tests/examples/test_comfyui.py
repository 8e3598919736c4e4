"""The nodes for ComfyUI, loaded as ComfyUI loads them, against a stand-in of its interface (0.27, which ran them)."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import comfyui
from helpers.comfyui import CONST, EPS, Patcher
from helpers.pages import ROOT

import fastdiff
import fastdiff.integrations.k_diffusion as sampling

RECORD = json.loads((ROOT / "tests" / "peers" / "peers.json").read_text(encoding="utf-8"))["grids"]
KINDS = {"eps": EPS, "flow": CONST}
INTERRUPTED = RuntimeError("interrupted")
SAMPLERS = ["euler", "euler_cfg_pp", "heun", "dpm_2", "dpm_fast", "dpm_adaptive", "dpmpp_2m", "dpmpp_2m_sde_gpu"]
SAMPLERS += ["dpmpp_2m_cfg_pp", "ddpm", "sa_solver", "a_sampler_of_next_year", "ddim", "uni_pc", "uni_pc_bh2"]


class Model(Patcher):
    """A MODEL with what it gives to samplers."""

    def __init__(self, kind: str) -> None:
        super().__init__(KINDS[kind]())
        self.kind, self.made = kind, []

    @property
    def calls(self) -> int:
        return sum(made.calls for made in self.made)


class KSAMPLER:
    """comfy.samplers.KSAMPLER: scales the noise, calls the function with names as ComfyUI does, and scales back."""

    def __init__(self, sampler_function: Any, extra_options: Any = None, inpaint_options: Any = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, dict(extra_options or {})
        self.inpaint_options = dict(inpaint_options or {})

    def sample(
        self, model: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, latent: Any, mask: Any, disable: Any
    ) -> Any:
        sampling = model.inner_model.inner_model.model_sampling
        most = bool(
            torch.isclose(sampling.sigmas[-1].to(sigmas), sigmas[0], rtol=1e-5) or sigmas[0] > sampling.sigmas[-1]
        )
        x = sampling.noise_scaling(sigmas[0], noise, latent, most)
        inpainted = Inpainted(model, noise, latent, mask)
        told = None if callback is None else lambda s: callback(s["i"], s["denoised"], s["x"], len(sigmas) - 1)
        out = self.sampler_function(
            inpainted, x, sigmas, extra_args=extra_args, callback=told, disable=disable, **self.extra_options
        )
        return sampling.inverse_noise_scaling(sigmas[-1], out)


class Inpainted:
    """comfy.samplers.KSamplerX0Inpaint: what a mask keeps is put back before and after each evaluation."""

    def __init__(self, model: Any, noise: Any, latent: Any, mask: Any) -> None:
        self.inner_model, self.model = model.inner_model, model
        self.noise, self.latent, self.mask = noise, latent, mask

    def __call__(self, x: Any, sigma: Any, *, denoise_mask: Any, model_options: Any, seed: Any = None) -> Any:
        if self.mask is None:
            return self.model(x, sigma, model_options=model_options)
        place = sigma.reshape(-1, *[1] * (x.ndim - 1))
        kept = self.inner_model.model_sampling.noise_scaling(place, self.noise, self.latent)
        out = self.model(x * self.mask + kept * (1.0 - self.mask), sigma, model_options=model_options)
        return out * self.mask + self.latent * (1.0 - self.mask)


class KSampler:
    SAMPLERS = SAMPLERS
    SCHEDULERS = ["simple", "karras"]  # noqa: RUF012
    DISCARD_PENULTIMATE_SIGMA_SAMPLERS = {"dpm_2", "uni_pc"}  # noqa: RUF012


def calculate_sigmas(model_sampling: Any, scheduler: str, steps: int) -> Any:
    assert scheduler in KSampler.SCHEDULERS
    sigmas = model_sampling.sigmas
    if scheduler == "karras":
        return sampling.get_sigmas_karras(steps, float(sigmas[0]), float(sigmas[-1]))
    return torch.tensor([*(float(sigmas[-(1 + int(i * len(sigmas) / steps))]) for i in range(steps)), 0.0])


def prepare_noise(latent: Any, seed: int, batch_index: Any = None) -> Any:
    return torch.randn(latent.shape, generator=torch.manual_seed(seed))


def fix_empty_latent_channels(model: Any, latent: Any, spacial: Any = None, temporal: Any = None) -> Any:
    return latent if latent.any() else latent[:, :1].expand(-1, 2, *latent.shape[2:]).clone()


def sample_custom(
    model: Model, noise: Any, cfg: float, sampler: KSAMPLER, sigmas: Any, positive: Any, negative: Any, latent: Any,
    noise_mask: Any = None, callback: Any = None, disable_pbar: bool = False, seed: int | None = None,
) -> Any:  # fmt: skip
    if len(sigmas) == 0:
        return latent
    made = comfyui.Model(model.model_sampling, comfyui.ALPHA[model.kind], cfg)
    model.made.append(made)
    extra = {"model_options": {}, "seed": seed, "denoise_mask": noise_mask}
    return sampler.sample(made, sigmas, extra, callback, noise, latent, noise_mask, disable_pbar)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The folder, loaded by its path, with the name that ComfyUI gives it."""
    seen: list[Any] = []
    parts: dict[str, dict[str, Any]] = {
        "samplers": {"KSAMPLER": KSAMPLER, "KSampler": KSampler, "calculate_sigmas": calculate_sigmas},
        "sample": {
            "prepare_noise": prepare_noise,
            "sample_custom": sample_custom,
            "fix_empty_latent_channels": fix_empty_latent_channels,
        },
        "utils": {"PROGRESS_BAR_ENABLED": False},
    }
    comfy = types.ModuleType("comfy")
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    for name, held in parts.items():
        module = types.ModuleType(f"comfy.{name}")
        module.__dict__.update(held)
        setattr(comfy, name, module)
        monkeypatch.setitem(sys.modules, f"comfy.{name}", module)
    preview = types.ModuleType("latent_preview")
    preview.prepare_callback = lambda model, steps: lambda *told: seen.append((steps, *told))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "latent_preview", preview)
    folder = Path(ROOT / "examples" / "comfyui")
    spec = importlib.util.spec_from_file_location("custom_nodes_fastdiff", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_nodes_fastdiff", module)
    spec.loader.exec_module(module)
    module.previews = seen  # type: ignore[attr-defined]
    yield module
    sys.modules.pop("custom_nodes_fastdiff.nodes", None)


def test_every_node_is_one_of_comfyui(nodes: Any) -> None:
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION)) and len(node.RETURN_TYPES) == 1 and node.CATEGORY
        for kind, *more in node.INPUT_TYPES()["required"].values():
            assert isinstance(kind, str | list)
            if isinstance(kind, list):
                assert more[0]["default"] in kind
    made = nodes.NODE_CLASS_MAPPINGS
    assert made["FastdiffSampler"].RETURN_TYPES == ("SAMPLER",) and made["FastdiffSigmas"].RETURN_TYPES == ("SIGMAS",)


def test_the_menus_hold_comfyuis_names_first(nodes: Any) -> None:
    inputs = nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"].INPUT_TYPES()["required"]["method"][0]
    here = [name for name in SAMPLERS if name != "a_sampler_of_next_year"]
    assert inputs[: len(here)] == here and len(set(inputs)) == len(inputs) and "unipc" in inputs
    assert not {"analytic_ddpm", "ode", "euler_ancestral_cfg_pp"} & set(inputs)
    grids = nodes.NODE_CLASS_MAPPINGS["FastdiffSigmas"].INPUT_TYPES()["required"]["spacing"][0]
    assert grids[:2] == KSampler.SCHEDULERS and "trailing" in grids
    with pytest.raises(ValueError, match="method got 'a_sampler_of_next_year'; expected one of euler, "):
        nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"]().make("a_sampler_of_next_year")


def test_sigmas(nodes: Any) -> None:
    node, model = nodes.NODE_CLASS_MAPPINGS["FastdiffSigmas"](), Model("eps")
    (made,) = node.make(model, "karras", 20)
    assert torch.equal(made, calculate_sigmas(model.model_sampling, "karras", 20))
    (part,) = node.make(model, "karras", 10, 0.5)
    assert torch.equal(part, made[10:]) and node.make(model, "karras", 10, 0.0)[0].numel() == 0
    case = next(c for c in RECORD if c["spacing"] == "beta57" and len(c["sigmas"]) == 21)
    # float32 levels of the model.
    np.testing.assert_allclose(node.make(model, "beta57", 20)[0].numpy(), case["sigmas"], rtol=3e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0, math.exp(1.15)])
def test_sigmas_of_a_flow_model(nodes: Any, shift: float) -> None:
    """By the level in the middle: ModelSamplingFlux has the logarithm of its shift under that name."""
    model, t = Model("flow"), np.linspace(1.0, 0.0, 5)
    model.model_sampling.shift = shift
    (made,) = nodes.NODE_CLASS_MAPPINGS["FastdiffSigmas"]().make(model, "trailing", 4)
    np.testing.assert_allclose(made.numpy(), shift * t / (1.0 + (shift - 1.0) * t), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "method", ["dpmpp_2m", "dpmpp_2m_sde_gpu", "euler_cfg_pp", "dpm_fast", "dpm_adaptive", "dpm3", "unipc"]
)
def test_the_ksampler(nodes: Any, kind: str, method: str) -> None:
    model, latent = Model(kind), {"samples": torch.ones(3, 2, 1, 1), "batch_index": None}
    made = nodes.NODE_CLASS_MAPPINGS
    (out,) = made["FastdiffKSampler"]().sample(model, 7, 8, 2.0, method, "simple", [], [], latent)
    assert out.keys() == latent.keys() and out["samples"].shape == (3, 2, 1, 1)
    assert bool((out["samples"].abs() < 5).all()) and model.calls >= 8
    steps = [told[1] for told in nodes.previews]
    assert steps == list(range(len(steps))) and steps and nodes.previews[0][0] == nodes.previews[0][4] == 8
    # The two nodes with ComfyUI's own custom sampler give the same.
    (sampler,), (sigmas,) = made["FastdiffSampler"]().make(method), made["FastdiffSigmas"]().make(model, "simple", 8)
    args = (model, prepare_noise(latent["samples"], 7), 2.0, sampler, sigmas, [], [], latent["samples"])
    assert torch.equal(sample_custom(*args, disable_pbar=True, seed=7), out["samples"])


def test_the_ksampler_as_comfyuis(nodes: Any) -> None:
    """Channels of an empty latent, a step more for some samplers, nothing to do, and keys that end here."""
    node, model = nodes.NODE_CLASS_MAPPINGS["FastdiffKSampler"](), Model("eps")
    empty = {"samples": torch.zeros(1, 4, 1, 1), "downscale_ratio_spacial": 8}
    (out,) = node.sample(model, 1, 4, 1.0, "euler", "karras", [], [], empty)
    assert out.keys() == {"samples"} and out["samples"].shape == (1, 2, 1, 1) and "downscale_ratio_spacial" in empty
    given = {"samples": torch.ones(1, 2, 1, 1)}
    (same,) = node.sample(model, 1, 4, 1.0, "euler", "karras", [], [], given, 0.0)
    assert torch.equal(same["samples"], given["samples"])
    nodes.previews.clear()
    node.sample(model, 1, 4, 1.0, "dpm_2", "karras", [], [], given)
    assert len(nodes.previews) == 4
    listed = sys.modules["custom_nodes_fastdiff.nodes"].listed
    whole = calculate_sigmas(model.model_sampling, "karras", 5)
    assert torch.equal(listed(model, "karras", 4, 1.0, True), whole[[0, 1, 2, 3, 5]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["dpm_fast", "dpm_adaptive", "uni_pc", "dpmpp_2m_sde_gpu", "dpm3"])
def test_one_step_is_the_predicted_x0(nodes: Any, kind: str, method: str) -> None:
    model, made = Model(kind), nodes.NODE_CLASS_MAPPINGS
    (sampler,), (sigmas,) = made["FastdiffSampler"]().make(method), made["FastdiffSigmas"]().make(model, "karras", 1)
    latent = torch.zeros(1, 2, 1, 1)
    args = (model, prepare_noise(latent, 1), 2.0)
    got, want = (
        sample_custom(*args, s, sigmas, [], [], latent, disable_pbar=True)
        for s in (sampler, made["FastdiffSampler"]().make("euler")[0])
    )
    # A flow's first level may be moved a little, by 2e-5.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3 if kind == "flow" else 1e-5)


def test_a_mask_keeps_the_latent(nodes: Any) -> None:
    mask = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    latent = {"samples": torch.full((2, 2, 1, 1), 0.7), "noise_mask": mask}
    for kind in KINDS:
        (out,) = nodes.NODE_CLASS_MAPPINGS["FastdiffKSampler"]().sample(
            Model(kind), 3, 6, 1.5, "dpmpp_2m", "simple", [], [], latent
        )
        torch.testing.assert_close(out["samples"][:, 1:], latent["samples"][:, 1:], rtol=0, atol=1e-6)
        assert not torch.allclose(out["samples"][:, :1], latent["samples"][:, :1], atol=1e-2)
    (sampler,) = nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"]().make("ddim")
    assert sampler.inpaint_options == {"random": True}


@pytest.mark.parametrize("method", ["euler", "dpmpp_2m_cfg_pp", "unipc"])
def test_an_interrupt_ends_the_run_and_the_next_one_runs(nodes: Any, method: str) -> None:
    model, made = Model("eps"), nodes.NODE_CLASS_MAPPINGS
    (sampler,), (sigmas,) = made["FastdiffSampler"]().make(method), made["FastdiffSigmas"]().make(model, "karras", 6)
    latent = torch.zeros(1, 2, 1, 1)
    args = (model, prepare_noise(latent, 1), 2.0, sampler, sigmas, [], [], latent)

    def stop(step: int, *_: Any) -> None:
        if step == 2:
            raise INTERRUPTED

    whole = sample_custom(*args, disable_pbar=True)
    with pytest.raises(RuntimeError, match=r"^interrupted$"):
        sample_custom(*args, callback=stop, disable_pbar=True)
    assert torch.equal(sample_custom(*args, disable_pbar=True), whole)


def test_options_and_noise(nodes: Any) -> None:
    model, make = Model("eps"), nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"]().make
    sigmas = sampling.get_sigmas_karras(8, 0.03, 14.6)
    noise = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(1))

    def sampled(*given: str) -> Any:
        return sample_custom(model, noise, 1.0, make(*given)[0], sigmas, [], [], torch.zeros_like(noise), seed=3)

    quiet = sampled("dpmpp2m_sde", "brownian", '{"eta": 0.0}')
    torch.testing.assert_close(quiet, sampled("dpmpp_2m"))
    assert not torch.equal(sampled("dpmpp2m_sde", "brownian"), sampled("dpmpp2m_sde", "independent"))
    churned = sampled("heun", "independent", '{"s_churn": 4.0}')
    assert not torch.equal(churned, sampled("heun"))
    assert not torch.equal(sampled("edm_euler", "independent", '{"s_churn": 4.0}'), sampled("edm_euler"))
    with pytest.raises(ValueError, match=r"options got '\[1\]'; expected a JSON object"):
        make("dpmpp2m", "brownian", "[1]")
    with pytest.raises(ValueError, match="eta"):
        sampled("dpmpp2m", "brownian", '{"eta": 1.0}')
    with pytest.raises(TypeError, match="eta"):
        sampled("dpmpp_2m", "brownian", '{"eta": 1.0}')


def test_the_example_of_k_diffusion(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "k_diffusion.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and all(float(line.split()[-1]) < 0.05 for line in lines[8:])
    assert fastdiff.__file__
