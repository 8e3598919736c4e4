"""CFG++, manifold-constrained guidance: Chung et al. 2024, arXiv 2406.08070."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastdiff.guidance.base import Guidance, Number, Place, Scale, one_evaluation_a_step, scale_at, settled_scale
from fastdiff.plan import SECOND, M, Plan, U, X
from fastdiff.prediction import SPACES, conversion, target


@dataclass(frozen=True)
class CFGPlusPlus(Guidance):
    """x0 from the guided output, the noise that is put back from the unconditional one (Algorithm 2).

    For methods with one evaluation a step and no history, in any of their forms: the row of such a step says how much
    of x0 and how much of eps the next state is made of. And for the methods that are CFG++ themselves, such as
    "dpmpp_2m_cfg_pp", for which a number is enough: guidance=0.6.

    Args:
        scale: from 0 to 1: uncond + scale·(cond − uncond); 0.6 does about what 7.5 does in plain guidance. Or a
            function of the schedule's time.

    Raises:
        ValueError: a scale that is not finite; a method with history, learned variances or Langevin steps.
    """

    scale: Scale

    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", settled_scale("guidance scale of CFG++", self.scale))

    def check(self, plan: Plan | None, name: str) -> None:
        one_evaluation_a_step(
            plan, "CFG++", "a method that is written for it, such as 'dpmpp_2m_cfg_pp', or plain guidance, guidance=7.5"
        )
        if plan is not None and (plan.learned_variance or any(s.langevin_norm for s in plan.stages)):
            raise ValueError(
                f"CFG++ goes neither with learned variances nor with Langevin steps, which method {plan.method!r} has "
                "here: use plain guidance, guidance=7.5"
            )

    def weights(self, at: Place) -> tuple[Number, Number] | None:
        s = scale_at(self.scale, at.stage.t)
        return s, 1.0 - s

    def combine(self, at: Place, row: np.ndarray) -> np.ndarray:
        s = at.stage
        # The state is of_x0·x0 + of_eps·eps, with x = alpha·x0 + sigma·eps and m = p·x0 + q·eps.
        p, q = target(SPACES[at.space], s.alpha, s.sigma)
        of_x0, of_eps = row[X] * s.alpha + row[M] * p, row[X] * s.sigma + row[M] * q
        x0_of_x, x0_of_m = conversion(SPACES[at.space], "data", s.alpha, s.sigma)
        eps_of_x, eps_of_second = conversion(at.prediction, "noise", s.alpha, s.sigma)
        changed = row.copy()
        changed[X] = of_x0 * x0_of_x + of_eps * eps_of_x
        changed[M] = of_x0 * x0_of_m
        changed[SECOND] = of_eps * eps_of_second
        return changed


@dataclass(frozen=True)
class ShiftedCFGPlusPlus(CFGPlusPlus):
    """The form of the methods that are CFG++: their rows are written for m = the unconditional value, and `second` in
    them is the guided x0 minus the unconditional one (`Plan.shifted`)."""

    reverses: ClassVar[bool] = True

    def check(self, plan: Plan | None, name: str) -> None:
        """Their rows are made for it."""

    def weights(self, at: Place) -> None:
        return None

    def observed(self, at: Place) -> tuple[Number, Number]:
        s = self._scale(at)
        return 1.0 - s, s

    def combine(self, at: Place, row: np.ndarray) -> np.ndarray:
        s, shift = at.stage, row[SECOND] * self._scale(at)
        x0_of_u, x0_of_second = conversion(at.prediction, "data", s.alpha, s.sigma)
        x0_of_u_and_m, x0_of_m = conversion(SPACES[at.space], "data", s.alpha, s.sigma)
        changed = row.copy()
        changed[SECOND] = shift * x0_of_second
        changed[U] += shift * (x0_of_u - x0_of_u_and_m)
        changed[M] -= shift * x0_of_m
        return changed

    def _scale(self, at: Place) -> float:
        scale = scale_at(self.scale, at.stage.t)
        if isinstance(scale, np.ndarray):
            raise ValueError(
                f"a method that is CFG++ takes one scale for all samples, got {len(scale)}: use method='ddim', "
                "guidance=CFGPlusPlus([...])"
            )
        return scale
