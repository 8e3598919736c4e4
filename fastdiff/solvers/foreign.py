"""Names of user interfaces that say more than a method: a time grid beside it, as "DPM++ 2M Karras", or an option."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from fastdiff.schedules.grids import SPACINGS

OPTIONS: dict[str, dict[str, Any]] = {
    "uni_pc": {"variant": "bh1"},
    "uni_pc_bh2": {"variant": "bh2"},
    "dpmpp_2m_sde_heun": {"solver_type": "heun"},
}
"""Options that a name brings, by its key."""
OTHER = {"dpm2_karras": "dpm_2_karras", "dpm2_a_karras": "dpm_2_ancestral_karras", "ddim_cfgpp": "euler_cfg_pp"}
"""What a menu's name means, where it is not what it says here: its DPM2 is k-diffusion's dpm_2, and not our dpm2."""


_TIMES = dict.fromkeys(("ddim", "ddim_cfgpp", "plms", "pndm", "unipc", "uni_pc"), "ddim_uniform")
_KARRAS = ("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_a", "dpmpp_2s_ancestral", "dpm2", "dpm2_a", "dpm_2", "dpm_2_ancestral")
_EXPONENTIAL = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
_UNIFORM = ("euler", "euler_a", "euler_ancestral", "lms", "heun")
AUTOMATIC: dict[str, str | None] = {
    **_TIMES,
    **dict.fromkeys((*_KARRAS, "restart"), "karras"),
    **dict.fromkeys(_EXPONENTIAL, "exponential"),
    **dict.fromkeys(_UNIFORM, "normal"),
    **dict.fromkeys(("lcm", "dpm_fast", "dpm_adaptive")),
}
"""The grid of the web UI's schedule type "Automatic", by the key of a sampler's name there; None: the method's own."""


def parted(key: str, known: Container[str]) -> tuple[str, dict[str, Any]]:
    """The key of a method, and the options and the spacing that the name brings.

    Args:
        key: as `registry.key_of` writes a name.
        known: keys of methods and aliases.
    """
    key = OTHER.get(key, key)
    brought: dict[str, Any] = {}
    if key not in known:
        # The longest first: "polyexponential" ends with another grid's name.
        for spacing in sorted(SPACINGS, key=len, reverse=True):
            base = key.removesuffix(f"_{spacing}")
            if base != key and base in known:
                key, brought = base, {"spacing": spacing}
                break
    return key, {**brought, **OPTIONS.get(key, {})}
