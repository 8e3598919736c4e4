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
OTHER = {"dpm2_karras": "dpm_2", "dpm2_a_karras": "dpm_2_ancestral"}
"""What a name of a menu means where its beginning is another method's name here: its DPM2 is k-diffusion's dpm_2."""


def parted(key: str, known: Container[str]) -> tuple[str, dict[str, Any]]:
    """The key of a method, and the options and the spacing that the name brings.

    Args:
        key: as `registry.key_of` writes a name.
        known: keys of methods and aliases.
    """
    brought: dict[str, Any] = {}
    for spacing in sorted(SPACINGS, key=len, reverse=True):
        base = key.removesuffix(f"_{spacing}")
        if key not in known and base != key and (base in known or key in OTHER):
            # The longest: "polyexponential" ends with another grid's name.
            key, brought = OTHER.get(key, base), {"spacing": spacing}
            break
    return key, {**brought, **OPTIONS.get(key, {})}
