"""The nodes for ComfyUI, loaded as ComfyUI loads them, against a stand-in of its interface."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.analytic import mixture
from helpers.pages import ROOT

import fastdiff
import fastdiff.integrations.k_diffusion as sampling

MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
RECORD = json.loads((ROOT / "tests" / "peers" / "peers.json").read_text(encoding="utf-8"))["grids"]


class CONST:
    """Flow matching, x = (1 − sigma)·x0 + sigma·eps."""

    shift = 3.0

    def noise_scaling(self, sigma: Any, noise: Any, latent: Any) -> Any:
        return sigma * noise + (1.0 - sigma) * latent

    def alpha(self, sigma: float) -> float:
        return 1.0 - sigma


class EPS:
    """Stable Diffusion's sigmas."""

    def __init__(self) -> None:
        kept = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        self.sigmas = torch.from_numpy(np.sqrt((1.0 - kept) / kept)).float()

    def noise_scaling(self, sigma: Any, noise: Any, latent: Any) -> Any:
        return sigma * noise + latent

    def alpha(self, sigma: float) -> float:
        return 1.0


class Model:
    """A MODEL, and what samplers are given in its place: the same object at every depth of wrapping."""

    def __init__(self, model_sampling: Any) -> None:
        self.model_sampling, self.inner_model, self.calls = model_sampling, self, 0

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return self.model_sampling

    def __call__(self, x: Any, sigma: Any, *, model_options: Any, seed: int, denoise_mask: Any) -> Any:
        self.calls += 1
        level = float(sigma[0])
        made = MIXTURE.x0(x.double().flatten(1).numpy(), self.model_sampling.alpha(level), level)
        return torch.from_numpy(made).to(x.dtype).reshape(x.shape)


class KSAMPLER:
    """comfy.samplers.KSAMPLER: calls the function with positional and named arguments as ComfyUI does."""

    def __init__(self, sampler_function: Callable[..., Any]) -> None:
        self.sampler_function = sampler_function

    def sample(self, model: Model, sigmas: Any, extra_args: Any, callback: Any, noise: Any, latent: Any) -> Any:
        x = model.model_sampling.noise_scaling(sigmas[0], noise, latent)
        told = None if callback is None else lambda s: callback(s["i"], s["denoised"], s["x"], len(sigmas) - 1)
        return self.sampler_function(model, x, sigmas, extra_args=extra_args, callback=told, disable=True)


def prepare_noise(latent: Any, seed: int, batch_index: Any = None) -> Any:
    return torch.randn(latent.shape, generator=torch.manual_seed(seed))


def sample_custom(
    model: Model, noise: Any, cfg: float, sampler: KSAMPLER, sigmas: Any, positive: Any, negative: Any, latent: Any,
    noise_mask: Any = None, callback: Any = None, disable_pbar: bool = False, seed: int | None = None,
) -> Any:  # fmt: skip
    extra = {"model_options": {}, "seed": seed, "denoise_mask": noise_mask}
    return sampler.sample(model, sigmas, extra, callback, noise, latent)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The folder, loaded by its path, with the name that ComfyUI gives it."""
    parts = {"model_sampling": {"CONST": CONST}, "samplers": {"KSAMPLER": KSAMPLER}}
    parts["sample"] = {"prepare_noise": prepare_noise, "sample_custom": sample_custom}
    comfy = types.ModuleType("comfy")
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    for name, held in parts.items():
        module = types.ModuleType(f"comfy.{name}")
        module.__dict__.update(held)
        setattr(comfy, name, module)
        monkeypatch.setitem(sys.modules, f"comfy.{name}", module)
    folder = Path(ROOT / "examples" / "comfyui")
    spec = importlib.util.spec_from_file_location("custom_nodes_fastdiff", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_nodes_fastdiff", module)
    spec.loader.exec_module(module)
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


@pytest.mark.parametrize("spacing", ["karras", "simple", "sgm_uniform", "normal", "beta", "kl_optimal"])
def test_sigmas_are_those_of_comfyui(nodes: Any, spacing: str) -> None:
    node, model = nodes.NODE_CLASS_MAPPINGS["FastdiffSigmas"](), Model(EPS())
    case = next(c for c in RECORD if c["spacing"] == spacing and len(c["sigmas"]) == 21)
    (made,) = node.make(model, spacing, 20)
    # float32 levels of the model; between two whole times ComfyUI draws log sigma as a straight line, and we log alpha.
    between = spacing in ("sgm_uniform", "normal")
    np.testing.assert_allclose(made.numpy(), case["sigmas"], rtol=1e-4 if between else 3e-6)
    (part,) = node.make(model, spacing, 10, 0.5)
    assert torch.equal(part, made[10:]) and node.make(model, spacing, 10, 0.0)[0].numel() == 0


def test_sigmas_of_a_flow_model(nodes: Any) -> None:
    (made,) = nodes.NODE_CLASS_MAPPINGS["FastdiffSigmas"]().make(Model(CONST()), "trailing", 4)
    t = np.linspace(1.0, 0.0, 5)
    np.testing.assert_allclose(made.numpy(), 3.0 * t / (1.0 + 2.0 * t), rtol=1e-6)


@pytest.mark.parametrize("kind", [EPS, CONST])
@pytest.mark.parametrize("method", ["dpmpp2m", "dpmpp2m_sde", "euler_ancestral", "velocity_heun"])
def test_the_ksampler(nodes: Any, kind: Any, method: str) -> None:
    model, seen = Model(kind()), []
    latent = {"samples": torch.zeros(3, 2, 1, 1), "batch_index": None}
    made = nodes.NODE_CLASS_MAPPINGS
    (out,) = made["FastdiffKSampler"]().sample(model, 7, 8, 1.0, method, "simple", [], [], latent)
    assert out.keys() == latent.keys() and out["samples"].shape == (3, 2, 1, 1)
    assert bool((out["samples"].abs() < 4).all()) and model.calls >= 8
    # The two nodes with ComfyUI's own custom sampler give the same.
    (sampler,) = made["FastdiffSampler"]().make(method)
    (sigmas,) = made["FastdiffSigmas"]().make(model, "simple", 8)
    noise = prepare_noise(latent["samples"], 7)
    args = (model, noise, 1.0, sampler, sigmas, [], [], latent["samples"])
    again = sample_custom(*args, callback=lambda *s: seen.append(s), seed=7)
    assert torch.equal(again, out["samples"]) and [s[0] for s in seen] == list(range(8)) and seen[0][3] == 8


def test_options_and_noise(nodes: Any) -> None:
    model, make = Model(EPS()), nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"]().make
    sigmas = sampling.get_sigmas_karras(8, 0.03, 14.6)
    noise = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(1))

    def sampled(*given: str) -> Any:
        return sample_custom(model, noise, 1.0, make(*given)[0], sigmas, [], [], torch.zeros_like(noise), seed=3)

    quiet = sampled("dpmpp2m_sde", "brownian", '{"eta": 0.0}')
    torch.testing.assert_close(quiet, sampled("dpmpp2m", "brownian", '{"lower_order_final": false}'))
    assert not torch.equal(sampled("dpmpp2m_sde", "brownian"), sampled("dpmpp2m_sde", "independent"))
    churned = sampled("heun", "independent", '{"s_churn": 4.0}')
    assert not torch.equal(churned, sampled("heun"))
    with pytest.raises(ValueError, match=r"options got '\[1\]'; expected a JSON object"):
        make("dpmpp2m", "brownian", "[1]")
    with pytest.raises(ValueError, match="eta"):
        sampled("dpmpp2m", "brownian", '{"eta": 1.0}')


def test_the_example_of_k_diffusion(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "k_diffusion.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and all(float(line.split()[-1]) < 0.05 for line in lines[8:])
    assert fastdiff.__file__
