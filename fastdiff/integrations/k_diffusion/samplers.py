"""k-diffusion's and ComfyUI's `sample_*` functions: their names, arguments and defaults over this library's methods."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from fastdiff.integrations.k_diffusion.comfyui import finite_start, is_flow, sampling_of
from fastdiff.integrations.k_diffusion.run import Callback, Extra, Model, run

REQUIRED = ("model", "x", "sigmas")
COMMON: Mapping[str, Any] = {"extra_args": None, "callback": None, "disable": None}
CHURN: Mapping[str, Any] = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
NOISE: Mapping[str, Any] = {"s_noise": 1.0, "noise_sampler": None}
ETA: Mapping[str, Any] = {"eta": 1.0, **NOISE}
TYPES: Mapping[str, Any] = {
    "model": Model,
    "x": torch.Tensor,
    "sigmas": torch.Tensor,
    "extra_args": "Extra | None",
    "callback": "Callback | None",
    "disable": "bool | None",
    "noise_sampler": "NoiseSampler | None",
    "tau_func": "Callable[[float], float] | None",
    "noise_scaler": "str | None",
}


class SampleFunction(Protocol):
    """A sampler of k-diffusion; `inspect.signature` has its own arguments by name."""

    @property
    def __name__(self) -> str:
        """As k-diffusion has it."""

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Extra | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        *args: Any,
        **options: Any,
    ) -> torch.Tensor:
        """(B, ...) of x's dtype."""


ARGUMENTS = """

    Args:
        model: model(x, sigma, **extra_args) gives x0; sigma is (B,) of x's dtype.
        x: (B, ...) the state at sigmas[0].
        sigmas: (steps + 1,), falling; equal neighbours are one level, and the last may lie above 0.
        extra_args: keyword arguments of the model.
        callback: told {{'x', 'i', 'sigma', 'sigma_hat', 'denoised'}} once a step, after its first evaluation. It may
            keep them; to change 'x' in place is an error.
        disable: of the progress bar.
        **options: {options}; as in k-diffusion.

    Returns:
        (B, ...) of x's dtype.

    Raises:
        ValueError, TypeError: bad arguments, with what is valid.
    """

Settle = Callable[[dict[str, Any], torch.Tensor, Any], None]
"""(options, sigmas, the `model_sampling` of ComfyUI's model or None): changes the options."""


def sampler(
    name: str,
    method: str,
    summary: str,
    arguments: Mapping[str, Any],
    *,
    renamed: Mapping[str, str] | None = None,
    fixed: Mapping[str, Any] | None = None,
    unused: Sequence[str] = (),
    settle: Settle | None = None,
    flow: str = "",
    **how: Any,
) -> SampleFunction:
    """One function.

    Args:
        method: of `fastdiff.methods()`, with the options `fixed`.
        arguments: those of the function after the common ones, with their defaults.
        renamed: what the method calls them, where that is another name.
        unused: those that have no effect.
        settle: changes the method's options, given the sigmas.
        flow: what it makes of ComfyUI's models of flow matching, as ComfyUI's own does: "" nothing, since dx/dsigma =
            (x - x0)/sigma there too; "flow": their alpha is 1 - sigma; "finite": also with a first level below 1.
        **how: `churned`, `brownian`, `whole`, `spare` and `early` of `run`.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given = {**dict.fromkeys(REQUIRED, inspect.Parameter.empty), **COMMON, **arguments}
    kinds = {n: TYPES.get(n, type(v)) for n, v in given.items()}
    signature = inspect.Signature(
        [inspect.Parameter(n, kind, default=v, annotation=kinds[n]) for n, v in given.items()],
        return_annotation=torch.Tensor,
    )

    def sample(*args: Any, **named: Any) -> torch.Tensor:
        try:
            bound = signature.bind(*args, **named)
        except TypeError as error:
            raise TypeError(f"sample_{name}: {error}; its arguments are {', '.join(given)}") from None
        bound.apply_defaults()
        values = bound.arguments
        model, x, sigmas = (values.pop(n) for n in REQUIRED)
        common = {n: values.pop(n) for n in COMMON}
        noise = values.pop("noise_sampler", None)
        options = {(renamed or {}).get(n, n): v for n, v in values.items() if n not in unused} | dict(fixed or {})
        sampling = sampling_of(model)
        place: dict[str, Any] = {}
        if flow and is_flow(sampling):
            place["schedule"] = "flow"
            sigmas = finite_start(sigmas, sampling) if flow == "finite" else sigmas
        if settle is not None:
            settle(options, sigmas, sampling)
        scale = getattr(sampling, "noise_scale", 1.0)
        if scale != 1.0 and "noise_sampler" in arguments and "s_noise" in options:
            options["s_noise"] *= scale
        return run(method, model, x, sigmas, options, noise_sampler=noise, **common, **how, **place)

    sample.__name__ = sample.__qualname__ = f"sample_{name}"
    sample.__doc__ = f"{summary}: `fastdiff.plan({method!r}, ...)`." + ARGUMENTS.format(
        options=", ".join(arguments) or "none"
    )
    sample.__signature__ = signature  # type: ignore[attr-defined]
    return sample


def first_of(name: str, default: str) -> Settle:
    """None stands for the method's own."""

    def settle(options: dict[str, Any], sigmas: torch.Tensor, sampling: Any) -> None:
        if options[name] is None:
            options[name] = default
        if not isinstance(options[name], str):
            raise ValueError(
                f"{name} got {type(options[name]).__name__}; a function of one's own has no integrals in closed form: "
                f"expected None or a name, such as {name}={default!r}"
            )

    return settle


def ends_with_x0(options: dict[str, Any], sigmas: torch.Tensor, sampling: Any) -> None:
    """ComfyUI's lms ends with the predicted x0; k-diffusion's integrates to 0."""
    if sampling is not None:
        options["final_euler"] = True


TAU_SHARES = (0.2, 0.8)
"""Of the way from noise to data: where ComfyUI's SA-Solver has tau = 1 if nothing is said."""


def tau_interval(options: dict[str, Any], sigmas: torch.Tensor, sampling: Any) -> None:
    """tau of each step from `tau_func`, which is told the level that the step leads to. None: 1 within `TAU_SHARES` for
    models of ComfyUI, which know the levels there, and everywhere for others.

    Raises:
        ValueError: a tau that is not 0 and one other value, the latter in neighbouring steps.
    """
    asked = options.pop("tau_func")
    # As in ComfyUI: the orders fall only towards a clean end.
    options["lower_order_final"] = float(sigmas[-1]) == 0.0
    if asked is None and sampling is not None:
        high, low = (float(sampling.percent_to_sigma(share)) for share in TAU_SHARES)
        asked = lambda sigma: float(low <= float(sigma) <= high)  # noqa: E731
    if asked is None:
        options["tau"] = 1.0
        return
    taus = [float(asked(v)) for v in sigmas[1:]]
    on = [i for i, tau in enumerate(taus) if tau]
    if not on:
        options["tau"] = 0.0
        return
    if len({taus[i] for i in on}) > 1 or on[-1] - on[0] + 1 != len(on):
        raise ValueError(
            f"tau_func gave {taus}; expected one value in neighbouring steps and 0 in the others, such as "
            "tau_func=lambda sigma: 1.0 if 0.3 < sigma < 5 else 0.0"
        )
    options.update(tau=taus[on[0]], tau_high=float(sigmas[on[0]]), tau_low=float(sigmas[on[-1]]))


sample_euler = sampler("euler", "edm_euler", "Euler's method, with churn", CHURN, churned=True)
sample_heun = sampler("heun", "heun", "Heun's method, with churn", CHURN, churned=True)
sample_dpm_2 = sampler("dpm_2", "dpm_2", "The midpoint method in log sigma, with churn", CHURN, churned=True)
sample_heunpp2 = sampler("heunpp2", "heunpp2", "Heun's method with slopes of the next two levels", CHURN, churned=True)
sample_lms = sampler(
    "lms", "lms", "Adams-Bashforth with the weights of the steps", {"order": 4}, settle=ends_with_x0, early=True
)
sample_ipndm = sampler(
    "ipndm",
    "ipndm",
    "Adams-Bashforth with the weights of equal steps",
    {"max_order": 4},
    fixed={"final_euler": True},
)
sample_ipndm_v = sampler(
    "ipndm_v",
    "lms",
    "Adams-Bashforth with the weights of the steps",
    {"max_order": 4},
    renamed={"max_order": "order"},
    fixed={"final_euler": True},
)
sample_deis = sampler(
    "deis",
    "deis",
    "DEIS",
    {"max_order": 3, "deis_mode": "tab"},
    renamed={"max_order": "order", "deis_mode": "form"},
)
sample_gradient_estimation = sampler(
    "gradient_estimation",
    "gradient_estimation",
    "Gradient estimation",
    {"ge_gamma": 2.0},
    renamed={"ge_gamma": "gamma"},
    early=True,
)
sample_dpmpp_2m = sampler(
    "dpmpp_2m",
    "dpmpp2m",
    "DPM-Solver++(2M)",
    {},
    fixed={"solver_type": "dpmsolver", "lower_order_final": False},
)
sample_res_multistep = sampler("res_multistep", "res_multistep", "RES, multistep", NOISE, unused=("s_noise",))
sample_exp_heun_2_x0 = sampler(
    "exp_heun_2_x0",
    "exp_heun_2_x0_sde",
    "Exponential Heun",
    {"solver_type": "phi_2"},
    fixed={"eta": 0.0},
    flow="finite",
)
sample_uni_pc = sampler("uni_pc", "unipc", "UniPC of third order", {"variant": "bh1"})
sample_uni_pc_bh2 = sampler("uni_pc_bh2", "unipc", "UniPC of third order", {}, fixed={"variant": "bh2"})
sample_euler_ancestral = sampler("euler_ancestral", "euler_ancestral", "Euler's method, ancestral", ETA, flow="flow")
sample_dpm_2_ancestral = sampler(
    "dpm_2_ancestral", "dpm_2_ancestral", "The midpoint method, ancestral", ETA, flow="flow"
)
sample_dpmpp_2s_ancestral = sampler(
    "dpmpp_2s_ancestral", "dpmpp_2s_ancestral", "DPM-Solver++(2S), ancestral", ETA, flow="flow"
)
sample_res_multistep_ancestral = sampler(
    "res_multistep_ancestral", "res_multistep_ancestral", "RES, multistep, ancestral", ETA
)
sample_ddpm = sampler("ddpm", "ddpm", "DDPM", {"noise_sampler": None})
sample_lcm = sampler("lcm", "lcm", "The sampler of latent consistency models", {"noise_sampler": None}, flow="flow")
sample_dpmpp_sde = sampler(
    "dpmpp_sde",
    "dpmpp_sde",
    "DPM-Solver++ for the SDE, singlestep",
    {**ETA, "r": 0.5},
    brownian=True,
    whole=True,
    flow="finite",
)
sample_dpmpp_2m_sde = sampler(
    "dpmpp_2m_sde",
    "dpmpp2m_sde",
    "DPM-Solver++(2M) for the SDE",
    {**ETA, "solver_type": "midpoint"},
    brownian=True,
    flow="finite",
)
sample_dpmpp_3m_sde = sampler(
    "dpmpp_3m_sde",
    "dpmpp3m_sde",
    "DPM-Solver++(3M) for the SDE",
    ETA,
    fixed={"solver_type": "dpmsolver"},
    brownian=True,
    flow="finite",
)
sample_dpmpp_sde_gpu = sample_dpmpp_sde
sample_dpmpp_2m_sde_gpu = sample_dpmpp_2m_sde
sample_dpmpp_3m_sde_gpu = sample_dpmpp_3m_sde
sample_dpmpp_2m_sde_heun = sampler(
    "dpmpp_2m_sde_heun",
    "dpmpp2m_sde",
    "DPM-Solver++(2M) for the SDE",
    {**ETA, "solver_type": "heun"},
    brownian=True,
    flow="finite",
)
sample_dpmpp_2m_sde_heun_gpu = sample_dpmpp_2m_sde_heun
sample_er_sde = sampler(
    "er_sde",
    "er_sde",
    "ER-SDE",
    {**NOISE, "noise_scaler": None, "max_stage": 3},
    renamed={"max_stage": "order"},
    settle=first_of("noise_scaler", "er_sde"),
    flow="finite",
)
sample_seeds_2 = sampler("seeds_2", "seeds_2", "SEEDS-2", {**ETA, "r": 0.5, "solver_type": "phi_1"}, flow="finite")
sample_seeds_3 = sampler("seeds_3", "seeds_3", "SEEDS-3", {**ETA, "r_1": 1.0 / 3.0, "r_2": 2.0 / 3.0}, flow="finite")
sample_exp_heun_2_x0_sde = sampler(
    "exp_heun_2_x0_sde",
    "exp_heun_2_x0_sde",
    "Exponential Heun for the SDE",
    {**ETA, "solver_type": "phi_2"},
    spare=True,
    flow="finite",
)
_SA: Mapping[str, Any] = {"tau_func": None, **NOISE, "predictor_order": 3, "corrector_order": 4}
sample_sa_solver = sampler(
    "sa_solver",
    "sa_solver",
    "SA-Solver",
    {**_SA, "use_pece": False, "simple_order_2": False},
    settle=tau_interval,
    flow="finite",
)
sample_sa_solver_pece = sampler(
    "sa_solver_pece",
    "sa_solver_pece",
    "SA-Solver, PECE",
    {**_SA, "simple_order_2": False},
    settle=tau_interval,
    flow="finite",
)
sample_euler_cfg_pp = sampler("euler_cfg_pp", "euler_cfg_pp", "CFG++ with Euler's method", {}, flow="flow")
sample_euler_ancestral_cfg_pp = sampler(
    "euler_ancestral_cfg_pp",
    "euler_ancestral_cfg_pp",
    "CFG++ with Euler's method, ancestral",
    ETA,
    fixed={"down": "variance"},
    flow="flow",
)
sample_dpmpp_2s_ancestral_cfg_pp = sampler(
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "CFG++ with DPM-Solver++(2S), ancestral", ETA
)
sample_dpmpp_2m_cfg_pp = sampler("dpmpp_2m_cfg_pp", "dpmpp_2m_cfg_pp", "CFG++ with DPM-Solver++(2M)", {})
sample_res_multistep_cfg_pp = sampler(
    "res_multistep_cfg_pp", "res_multistep_cfg_pp", "CFG++ with RES, multistep", NOISE, unused=("s_noise",)
)
sample_res_multistep_ancestral_cfg_pp = sampler(
    "res_multistep_ancestral_cfg_pp", "res_multistep_ancestral_cfg_pp", "CFG++ with RES, multistep, ancestral", ETA
)
sample_gradient_estimation_cfg_pp = sampler(
    "gradient_estimation_cfg_pp",
    "gradient_estimation_cfg_pp",
    "CFG++ with gradient estimation",
    {"ge_gamma": 2.0},
    renamed={"ge_gamma": "gamma"},
)
