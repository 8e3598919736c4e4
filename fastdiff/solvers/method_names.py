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
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "res_multistep_ancestral",
    "dpmpp1_sde",
    "dpmpp2m_sde",
    "dpmpp3m_sde",
    "dpm1_sde",
    "dpm2_sde",
    "dpm3_sde",
    "seeds_2",
    "seeds_3",
    "exp_heun_2_x0_sde",
    "dpm2s_sde",
    "dpm3s_sde",
    "dpmpp_sde",
    "er_sde",
    "sa_solver",
    "sa_solver_pece",
    "unipc",
    "heun",
    "edm_euler",
    "dpm_2",
    "heunpp2",
    "lms",
    "ipndm",
    "gradient_estimation",
    "pndm",
    "deis",
    "res_multistep",
    "res_2s",
    "res_3s",
    "exp_heun",
    "velocity_heun",
    "midpoint",
    "rk4",
    "restart",
    "pc",
    "lcm",
    "consistency",
    "tcd",
    "mean_flow",
    "ode",
    "dpm_adaptive",
    "euler_cfg_pp",
    "euler_ancestral_cfg_pp",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2s_ancestral_cfg_pp",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation_cfg_pp",
    "ancestral",
    "anyflow",
    "cm",
    "cmstochasticiterative",
    "consistency_models",
    "ddimparallel",
    "ddpmparallel",
    "deismultistep",
    "dmd",
    "dopri5",
    "dpm++1",
    "dpm++1_sde",
    "dpm++2m",
    "dpm++2m_sde",
    "dpm++2s",
    "dpm++2s_sde",
    "dpm++3m",
    "dpm++3m_sde",
    "dpm++3s",
    "dpm++3s_sde",
    "dpm++_2s_a",
    "dpm++_sde",
    "dpm2_a",
    "dpm2_ancestral",
    "dpm2m",
    "dpm2m_sde",
    "dpm3m",
    "dpm3m_sde",
    "dpm_fast",
    "dpm_solver++",
    "dpm_solver_1",
    "dpm_solver_2",
    "dpm_solver_2s",
    "dpm_solver_3",
    "dpm_solver_3s",
    "dpm_solver_adaptive",
    "dpmpp2s_ancestral",
    "dpmpp2s_sde",
    "dpmpp3s_sde",
    "dpmpp_1_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_2s",
    "dpmpp_2s_ancestral_rf",
    "dpmpp_2s_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_3s_sde",
    "dpmsolver",
    "dpmsolver++",
    "dpmsolver1",
    "dpmsolver2",
    "dpmsolver2s",
    "dpmsolver3",
    "dpmsolver3s",
    "dpmsolvermultistep",
    "dpmsolversde",
    "dpmsolversinglestep",
    "edm_heun",
    "edmeuler",
    "er_sde_solver",
    "euler",
    "euler_a",
    "euler_churn",
    "eulerancestraldiscrete",
    "eulerdiscrete",
    "exp_heun_2_x0",
    "exp_heun_x0_sde",
    "flow_cps",
    "flow_grpo",
    "flow_heun",
    "flow_map",
    "flow_midpoint",
    "flow_rk4",
    "flow_sde",
    "flowmapeulerdiscrete",
    "flowmatcheulerdiscrete",
    "flowmatchheundiscrete",
    "flowmatchlcm",
    "gradientestimation",
    "heun++",
    "heun++2",
    "heundiscrete",
    "ipndm_v",
    "kdpm2",
    "kdpm2ancestraldiscrete",
    "kdpm2discrete",
    "latent_consistency",
    "lmsdiscrete",
    "ltxeulerancestralrf",
    "meanflow",
    "ping_pong",
    "pingpong",
    "plms",
    "predictor_corrector",
    "probability_flow_ode",
    "res_2m",
    "restart_sampler",
    "rk45",
    "sasolver",
    "sde_dpmsolver",
    "sde_dpmsolver++",
    "seeds_2_noise",
    "seeds_3_noise",
    "self_forcing",
    "uni_pc",
    "uni_pc_bh2",
    "unipc_bh2",
    "unipcmultistep",
]


class MethodOptions(TypedDict, total=False):
    """Options of the methods and of the spacings; `fastdiff methods NAME` says what each means."""

    algorithm_type: Literal["dpmsolver", "dpmsolver++"]
    atol: float
    c2: float
    c3: float
    clip_pixels: float
    clip_steps: Any
    control: Literal["batch", "sample"]
    correct_end: bool
    corrector: bool | Literal["langevin", "ald", "none"]
    corrector_order: Literal[0, 1, 2, 3, 4]
    data_range: Any
    denoise: bool
    denoise_to_zero: bool | Literal["score_sde"]
    discretization: Literal["exact", "score_sde"]
    down: Literal["auto", "variance", "flow"]
    epsilon: float
    eta: float
    final_euler: bool
    fixed: bool
    form: Literal["tab", "rhoab", "logrho", "velocity", "noise"]
    gamma: Any
    h_init: float
    h_max: float
    integral: Literal["exact", "published"]
    lower_order_final: bool
    max_nfe: int
    max_order: Literal[1, 2, 3, 4]
    n_corrector: int
    noise_scaler: Literal["er_sde", "power"]
    norm: Literal["batch", "sample"]
    order: Literal[1, 2, 3, 4, 5, 6]
    prediction_type: Literal["data", "noise"]
    predictor: Literal["reverse_diffusion", "euler_maruyama", "ancestral", "none"]
    predictor_order: Literal[1, 2, 3, 4]
    probability_flow: bool
    r: float
    r_1: float
    r_2: float
    restarts: Any
    rtol: float
    s_churn: float
    s_noise: float
    s_tmax: float
    s_tmin: float
    sde_steps: int
    simple_order_2: bool
    skip_prk_steps: bool
    snr: float
    solver_type: Literal["taylor", "dpmsolver", "dpmsolver_taylor", "midpoint", "heun", "phi_1", "phi_2"]
    split: bool
    t_err: float
    tau: float
    tau_high: float
    tau_low: float
    theta: float
    timestep_scaling: float
    two_times: bool
    use_clipped_model_output: bool
    use_pece: bool
    variance: Literal["small", "large", "learned_range", "learned"]
    variant: Literal["bh1", "bh2", "vary_coeff"]
    rho: float
    steps_offset: int
    original_steps: int
    beta_d: float
    beta_min: float
    eps_s: float
    alpha: float
    beta: float
    threshold_noise: float
    final: Literal["clean", "t_min"]
