"""Names and options of all methods, for editors and type checkers. Written by tools/method_names.py."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

MethodName = Literal[
    "ddpm",
    "ddim",
    "pf_euler",
    "analytic_ddpm",
    "analytic_ddim",
    "dpm1",
    "dpm2",
    "dpm3",
    "dpmpp1",
    "dpmpp2m",
    "dpmpp3m",
    "dpm2s",
    "dpm3s",
    "dpmpp2s",
    "dpmpp3s",
    "grpo",
    "cps",
    "dpmpp2m_sde",
    "unipc",
    "heun",
    "pc",
    "ode",
    "dpm_adaptive",
    "ancestral",
    "ddimparallel",
    "ddpmparallel",
    "dopri5",
    "dpm++1",
    "dpm++2m",
    "dpm++2m_sde",
    "dpm++2s",
    "dpm++3m",
    "dpm++3s",
    "dpm2m",
    "dpm3m",
    "dpm_fast",
    "dpm_solver++",
    "dpm_solver_1",
    "dpm_solver_2",
    "dpm_solver_2s",
    "dpm_solver_3",
    "dpm_solver_3s",
    "dpm_solver_adaptive",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3s",
    "dpmsolver",
    "dpmsolver++",
    "dpmsolver1",
    "dpmsolver2",
    "dpmsolver2s",
    "dpmsolver3",
    "dpmsolver3s",
    "dpmsolvermultistep",
    "dpmsolversinglestep",
    "edm_heun",
    "euler",
    "euler_a",
    "euler_ancestral",
    "eulerancestraldiscrete",
    "eulerdiscrete",
    "flow_cps",
    "flow_grpo",
    "flow_sde",
    "flowmatcheulerdiscrete",
    "heundiscrete",
    "predictor_corrector",
    "probability_flow_ode",
    "rk45",
    "sde_dpmsolver++",
    "uni_pc",
    "uni_pc_bh2",
    "unipc_bh2",
    "unipcmultistep",
]


class MethodOptions(TypedDict, total=False):
    """Options of the methods and of the spacings; `fastdiff methods NAME` says what each means."""

    algorithm_type: Literal["dpmsolver", "dpmsolver++"]
    atol: float
    clip_pixels: float
    clip_steps: Any
    control: Literal["batch", "sample"]
    corrector: bool | Literal["langevin", "ald", "none"]
    data_range: Any
    denoise: bool
    denoise_to_zero: bool | Literal["score_sde"]
    discretization: Literal["exact", "score_sde"]
    eta: float
    fixed: bool
    form: Literal["velocity", "noise"]
    gamma: Any
    h_init: float
    lower_order_final: bool
    max_nfe: int
    n_corrector: int
    norm: Literal["batch", "sample"]
    order: Literal[1, 2, 3, 4, 5, 6]
    prediction_type: Literal["data", "noise"]
    predictor: Literal["reverse_diffusion", "euler_maruyama", "ancestral", "none"]
    probability_flow: bool
    rtol: float
    s_churn: float
    s_noise: float
    s_tmax: float
    s_tmin: float
    sde_steps: int
    snr: float
    solver_type: Literal["taylor", "dpmsolver", "dpmsolver_taylor", "midpoint", "heun"]
    split: bool
    t_err: float
    theta: float
    use_clipped_model_output: bool
    variance: Literal["small", "large", "learned_range", "learned"]
    variant: Literal["bh1", "bh2", "vary_coeff"]
    rho: float
    steps_offset: int
    final: Literal["clean", "t_min"]
