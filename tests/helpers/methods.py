"""Every registered method, for the generic tests: one that is registered enters them."""

from __future__ import annotations

from fastdiff.solvers import METHODS

TABLES = {name: m for name, m in METHODS.items() if not m.adaptive}
ADAPTIVE = {name: m for name, m in METHODS.items() if m.adaptive}

ALIKE = (
    *("dpm_2_ancestral", "dpmpp_2s_ancestral", "res_multistep_ancestral", "dpmpp1_sde", "dpmpp3m_sde", "dpm1_sde"),
    *("dpm2_sde", "dpm3_sde", "seeds_2", "exp_heun_2_x0_sde", "dpm2s_sde", "dpm3s_sde", "dpmpp_sde", "er_sde", "tcd"),
    "consistency",
)
"""Methods whose stages are built like those of others: the tests of tables run them, those of the loop need not."""
LOOPED = [name for name in TABLES if name not in ALIKE]
