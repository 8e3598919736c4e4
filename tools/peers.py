"""Runs the samplers and time grids of k-diffusion, ComfyUI and RES4LYF, and records what they give.

    python tools/peers.py --k-diffusion PATH/k-diffusion --comfy PATH/ComfyUI --res4lyf PATH/RES4LYF

writes tests/peers/peers.json, which the tests hold our tables and `sample_*` functions against. These are source trees,
which nothing here installs or copies: their files are loaded as they are, with stand-ins for what samplers do not need.
Everything runs in float64 on the exact model of a Gaussian mixture; draw number d of a run is `draw(d)`.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.analytic import mixture  # noqa: E402

TARGET = ROOT / "tests" / "peers" / "peers.json"
MIXTURE = mixture([0.3, 0.5, 0.2], [[-1.2, 0.4], [0.8, -0.6], [0.3, 1.5]], [0.25, 0.4, 0.3])
Z = np.array([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]])
CHURN = {"s_churn": 20.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
STEPS = 10
SAMPLERS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    *(("lms", {"order": k}, "lms", {"order": k, "final_euler": True}) for k in (1, 2, 3, 4)),
    ("dpm_2", {}, "dpm_2", {}),
    ("dpm_2", CHURN, "dpm_2", CHURN),
    ("euler", CHURN, "edm_euler", CHURN),
    ("heun", CHURN, "heun", CHURN),
    ("heunpp2", {}, "heunpp2", {}),
    *(("ipndm", {"max_order": k}, "ipndm", {"max_order": k, "final_euler": True}) for k in (2, 3, 4)),
    *(("ipndm_v", {"max_order": k}, "ipndm_v", {"order": k, "final_euler": True}) for k in (2, 3, 4)),
    ("deis", {"max_order": 3, "deis_mode": "tab"}, "deis", {"order": 3, "form": "tab"}),
    ("res_multistep", {}, "res_multistep", {}),
    ("gradient_estimation", {}, "gradient_estimation", {}),
    ("gradient_estimation", {"ge_gamma": 1.5}, "gradient_estimation", {"gamma": 1.5}),
]
"""Their name and arguments, ours. Sigmas: Karras's with rho = 7, 0.002 to 80, and 0."""
FAST = (9, 10, 11)
LOW = {"eta": 0.6, "s_noise": 1.01}
FUNCTIONS: list[tuple[str, str, dict[str, Any]]] = [
    *(("k-diffusion", name, given) for name in ("euler", "heun", "dpm_2") for given in ({}, CHURN)),
    *(("k-diffusion", "lms", {"order": k}) for k in (1, 2, 3, 4)),
    *(
        ("k-diffusion", name, given)
        for name in (
            *("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"),
            *("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"),
        )
        for given in ({}, LOW)
    ),
    ("k-diffusion", "dpmpp_sde", {"r": 0.3}),
    ("k-diffusion", "dpmpp_2m_sde", {"solver_type": "heun"}),
    ("k-diffusion", "dpmpp_2m", {}),
    *(("ComfyUI", "heunpp2", given) for given in ({}, CHURN)),
    *(("ComfyUI", "ipndm", {"max_order": k}) for k in (2, 3, 4)),
    *(("ComfyUI", "ipndm_v", {"max_order": k}) for k in (2, 4)),
    *(("ComfyUI", name, {}) for name in ("deis", "ddpm", "lcm", "res_multistep", "er_sde")),
    ("ComfyUI", "gradient_estimation", {"ge_gamma": 1.5}),
    ("ComfyUI", "er_sde", {"max_stage": 2, "s_noise": 0.9}),
    *(("ComfyUI", name, given) for name in ("res_multistep_ancestral", "seeds_2", "seeds_3") for given in ({}, LOW)),
    ("ComfyUI", "seeds_2", {"r": 0.3}),
    *(("ComfyUI", name, {"tau_interval": (5.0, 0.3)}) for name in ("sa_solver", "sa_solver_pece")),
    ("ComfyUI", "sa_solver", {"tau_interval": (5.0, 0.3), "predictor_order": 2, "simple_order_2": True}),
    *(("ComfyUI", name, {}) for name in ("uni_pc", "uni_pc_bh2")),
]
"""Whose function, its name and arguments; `tau_interval` stands for a function of it."""
COUNTS = (2, 5, 10, 20)


def draw(number: int, like: Any) -> Any:
    size = like.numel() if torch.is_tensor(like) else like.size
    values = np.cos(1.0 + number + 3 * np.arange(size)).reshape(tuple(like.shape))
    return torch.from_numpy(values) if torch.is_tensor(like) else values


def model(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.from_numpy(MIXTURE.x0(x.numpy(), 1.0, float(sigma[0])))


def loaded(folder: Path, name: str) -> Any:
    """`sampling.py` of a k_diffusion folder, with stand-ins for its other modules."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    utils = types.ModuleType(f"{name}.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    package.utils = sys.modules[f"{name}.utils"] = utils  # type: ignore[attr-defined]
    for stub in ("comfy", "comfy.model_patcher", "comfy.model_sampling", "comfy.utils", "comfy.memory_management"):
        sys.modules[stub] = types.ModuleType(stub)
    sys.modules["comfy.model_sampling"].CONST = type("CONST", (), {})  # type: ignore[attr-defined]
    sys.modules["comfy"].model_sampling = sys.modules["comfy.model_sampling"]  # type: ignore[attr-defined]
    return importlib.import_module(f"{name}.sampling")


def samplers(sampling: Any, original: Any) -> list[dict[str, Any]]:
    sigmas = sampling.get_sigmas_karras(STEPS, 0.002, 80.0)
    found = []
    number = 0

    def numbered(like: torch.Tensor) -> torch.Tensor:
        nonlocal number
        number += 1
        made: torch.Tensor = draw(number - 1, like)
        return made

    torch.randn_like = numbered
    x = torch.from_numpy(80.0 * Z)
    for name, theirs, method, ours in SAMPLERS:
        number = 0
        result = getattr(sampling, f"sample_{name}")(model, x, sigmas, disable=True, **theirs)
        found.append({"peer": name, "method": method, "options": ours, "arguments": theirs, "x": result.tolist()})
    for order in (2, 3, 4):
        result = original.sample_lms(model, x, sigmas, disable=True, order=order)
        found.append({"peer": "lms", "method": "lms", "options": {"order": order}, "x": result.tolist()})
    for count in FAST:
        result = sampling.sample_dpm_fast(model, x, 0.002, 80.0, count, disable=True)
        found.append({"peer": "dpm_fast", "method": "dpm_fast", "options": {}, "steps": count, "x": result.tolist()})
    return found


class Wrapped:
    """The model with what ComfyUI's samplers ask of it."""

    def __init__(self) -> None:
        self.inner_model = self.model_patcher = self.model_sampling = self

    def get_model_object(self, name: str) -> Wrapped:
        """No flow matching."""
        return self

    def noise_scaling(self, sigma: torch.Tensor, noise: torch.Tensor, x: torch.Tensor, *_: Any) -> torch.Tensor:
        """Noise of that level on x."""
        return x + sigma * noise

    __call__ = staticmethod(model)


def given_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a function takes them."""
    made = dict(arguments)
    if "tau_interval" in made:
        high, low = made.pop("tau_interval")
        made["tau_func"] = lambda sigma: 1.0 if low <= float(sigma) <= high else 0.0
    return made


def called(sampling: Any, original: Any, unipc: Any) -> list[dict[str, Any]]:
    """Every `sample_*` function on sigmas to 0, to 0.002 and of one step; ranges for those that take one."""
    whole = sampling.get_sigmas_karras(STEPS, 0.002, 80.0)
    lists = {"to 0": whole, "to 0.002": whole[:-1], "one step": torch.tensor([80.0, 0.0])}
    number = 0

    def numbered(like: torch.Tensor, *_: Any) -> torch.Tensor:
        nonlocal number
        number += 1
        made: torch.Tensor = draw(number - 1, like)
        return made

    torch.randn_like = numbered
    x = torch.from_numpy(80.0 * Z)
    found: list[dict[str, Any]] = []
    for program, name, arguments in FUNCTIONS:
        module = original if program == "k-diffusion" else sampling
        function = {"uni_pc": unipc.sample_unipc, "uni_pc_bh2": unipc.sample_unipc_bh2}.get(name)
        function = function or getattr(module, f"sample_{name}")
        for kind, sigmas in lists.items():
            number, more = 0, given_of(arguments)
            if "noise_sampler" in inspect.signature(function).parameters:
                more["noise_sampler"] = lambda start, end: numbered(x)
            try:
                result = function(Wrapped(), x, sigmas.clone(), {}, disable=True, **more).tolist()
            except Exception as error:
                result = type(error).__name__
            found.append({"program": program, "function": name, "arguments": arguments, "sigmas": kind, "x": result})
    for count in (6, 7, 11):
        result = original.sample_dpm_fast(model, x, 0.002, 80.0, count, disable=True).tolist()
        found.append({"program": "k-diffusion", "function": "dpm_fast", "arguments": {"n": count}, "x": result})
    for order in (2, 3):
        given = {"order": order, "return_info": True}
        result, info = original.sample_dpm_adaptive(model, x, 0.002, 80.0, disable=True, **given)
        found.append(
            {
                "program": "k-diffusion",
                "function": "dpm_adaptive",
                "arguments": given,
                "x": result.tolist(),
                "info": info,
            }
        )
    return found


class ModelSampling:
    """What ComfyUI's grids ask of a model: Stable Diffusion's sigmas, in float64."""

    def __init__(self) -> None:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        kept = np.cumprod(1.0 - betas)
        self.sigmas = torch.from_numpy(np.sqrt((1.0 - kept) / kept))
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return (self.sigmas - sigma).abs().argmin().double()

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        low = int(t)
        high = min(low + 1, 999)
        share = float(t) - low
        return torch.exp((1.0 - share) * self.sigmas[low].log() + share * self.sigmas[high].log())


def functions(text: str, names: tuple[str, ...], space: dict[str, Any]) -> dict[str, Any]:
    """Functions of a file that cannot be imported alone, in float64."""
    for name in names:
        match = re.search(rf"^def {name}\(.*?(?=^\S)", text, re.S | re.M)
        assert match, name
        body = (
            match.group(0).replace("torch.FloatTensor", "torch.DoubleTensor").replace("torch.float)", "torch.double)")
        )
        exec(compile(body, name, "exec"), space)
    return space


def grids(sampling: Any, text: str, tangents: str) -> list[dict[str, Any]]:
    import scipy.stats

    names = ("simple", "ddim", "normal", "beta", "kl_optimal")
    wanted = (*(f"{n}_scheduler" for n in names), "linear_quadratic_schedule")
    space = functions(text, wanted, {"torch": torch, "math": math, "numpy": np, "scipy": scipy})
    bong = functions(
        tangents,
        ("get_bong_tangent_sigmas", "bong_tangent_scheduler"),
        {"torch": torch, "atan": math.atan, "pi": math.pi},
    )["bong_tangent_scheduler"]
    sd = ModelSampling()
    ends = float(sd.sigma_min), float(sd.sigma_max)
    make = {
        "simple": lambda n: space["simple_scheduler"](sd, n),
        "sgm_uniform": lambda n: space["normal_scheduler"](sd, n, sgm=True),
        "ddim_uniform": lambda n: space["ddim_scheduler"](sd, n),
        "beta": lambda n: space["beta_scheduler"](sd, n),
        "beta57": lambda n: space["beta_scheduler"](sd, n, 0.5, 0.7),
        "normal": lambda n: space["normal_scheduler"](sd, n),
        "linear_quadratic": lambda n: space["linear_quadratic_schedule"](sd, n),
        "kl_optimal": lambda n: space["kl_optimal_scheduler"](n, *ends),
        "karras": lambda n: sampling.get_sigmas_karras(n, *ends),
        "exponential": lambda n: sampling.get_sigmas_exponential(n, *ends),
        "polyexponential": lambda n: sampling.get_sigmas_polyexponential(n, *ends, rho=1.5),
    }
    found = [
        {"spacing": name, "schedule": "sd", "sigmas": one(n).tolist()} for name, one in make.items() for n in COUNTS
    ]
    found += [{"spacing": "vp", "schedule": "vp_linear", "sigmas": sampling.get_sigmas_vp(n).tolist()} for n in COUNTS]
    found += [{"spacing": "bong_tangent", "schedule": "flow", "sigmas": bong(None, n).tolist()} for n in COUNTS]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k-diffusion", type=Path, required=True, help="k-diffusion's source tree")
    parser.add_argument("--comfy", type=Path, required=True, help="ComfyUI's source tree")
    parser.add_argument("--res4lyf", type=Path, required=True, help="RES4LYF's source tree")
    chosen = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    sampling = loaded(chosen.comfy / "comfy" / "k_diffusion", "theirs")
    original = loaded(chosen.k_diffusion / "k_diffusion", "original")
    text = (chosen.comfy / "comfy" / "samplers.py").read_text(encoding="utf-8")
    tangents = (chosen.res4lyf / "sigmas.py").read_text(encoding="utf-8") + "\nend = 0\n"
    unipc = importlib.util.spec_from_file_location("unipc", chosen.comfy / "comfy" / "extra_samplers" / "uni_pc.py")
    assert unipc is not None and unipc.loader is not None
    predictor = importlib.util.module_from_spec(unipc)
    unipc.loader.exec_module(predictor)
    record = {
        "samplers": samplers(sampling, original),
        "functions": called(sampling, original, predictor),
        "grids": grids(sampling, text, tangents),
    }
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
