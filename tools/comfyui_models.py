"""Records what ComfyUI's own samplers give on its models: tests/peers/comfyui.json.

python tools/comfyui_models.py PATH_TO_COMFYUI

Each sampler of its list runs in float64 on a mixture of Gaussians behind its `model_sampling`: "eps" (x = x0 +
sigma·eps) and "flow" (CONST, shift 3), over a list to 0 and over one that ends above 0, with guidance. Noise is a
function of the two levels that it is asked for, so that the order of the draws does not matter.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "tests" / "peers" / "comfyui.json"
SKIPPED = ("dpm_fast", "dpm_adaptive", "ddim", "uni_pc", "uni_pc_bh2")
"""They take two levels; euler by another name; float32 alone."""


def main() -> int:
    tree = Path(sys.argv[1]).resolve()
    sys.path[:0] = [str(ROOT / "tests"), str(tree)]
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_sampling as kinds
    from comfy.k_diffusion import sampling
    from comfy.samplers import KSampler
    from helpers import comfyui

    class Flow(kinds.ModelSamplingDiscreteFlow, kinds.CONST):
        pass

    class Eps(kinds.ModelSamplingDiscrete, kinds.EPS):
        pass

    made = {"eps": Eps(), "flow": Flow(SimpleNamespace(sampling_settings={"shift": 3.0}))}
    cases = []
    for name in [n for n in KSampler.SAMPLERS if n not in SKIPPED and not n.endswith("_gpu")]:
        function = getattr(sampling, f"sample_{name}")
        more = {"noise_sampler": comfyui.noise} if "noise_sampler" in inspect.signature(function).parameters else {}
        for kind, model_sampling in made.items():
            for ending, sigmas in comfyui.LISTS[kind].items():
                model = comfyui.Model(model_sampling, comfyui.ALPHA[kind])
                x = comfyui.START * float(sigmas[0])
                out = function(model, x, sigmas.clone(), extra_args={"model_options": {}}, disable=True, **more)
                assert bool(torch.isfinite(out).all()), (name, kind, ending)
                cases.append({"sampler": name, "model": kind, "list": ending, "x": out.tolist()})
    shares = {k: {str(s): float(m.percent_to_sigma(s)) for s in comfyui.SHARES} for k, m in made.items()}
    version = (tree / "comfyui_version.py").read_text(encoding="utf-8").split('"')[-2]
    record = {"how": f"tools/comfyui_models.py, ComfyUI {version}", "shares": shares, "cases": cases}
    assert math.isfinite(sum(v for held in shares.values() for v in held.values()))
    TARGET.write_text(json.dumps(record, separators=(",", ":")).replace('{"sampler"', '\n{"sampler"') + "\n")
    print(f"{len(cases)} cases of ComfyUI {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
