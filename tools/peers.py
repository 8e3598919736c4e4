"""Runs the samplers and time grids of k-diffusion, ComfyUI and RES4LYF, and records what they give.

    python tools/peers.py --k-diffusion PATH/k-diffusion --comfy PATH/ComfyUI --res4lyf PATH/RES4LYF

writes tests/peers/peers.json, which the tests hold our tables against. These are source trees, which nothing here
installs or copies: their files are loaded as they are, with stand-ins for what samplers do not need. Everything runs in
float64 on the exact model of a Gaussian mixture; draw number d of a run is `draw(d)`.
"""

from __future__ import annotations

import argparse
import importlib
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
    record = {"samplers": samplers(sampling, original), "grids": grids(sampling, text, tangents)}
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
