"""What a published step leaves outside its clip: where the network's own eps stays beside a clipped x0."""

from __future__ import annotations

from fastdiff.plan import M, Plan
from fastdiff.schedules import NoiseSchedule


def unclipped_parts(plan: Plan) -> tuple[float, ...]:
    """For each stage w, with m = (1 − w)·clip(x0) + w·x0 in the "data" space; 0 where all of m goes through the clip.

    A plan with the option use_clipped_model_output=False keeps the network's eps, as diffusers' DDIM by default and
    Analytic-DPM's program do: of m's coefficient, that of x0 and what eps is written in, alpha_t alone is x0's.
    """
    if plan.options.get("use_clipped_model_output", True):
        return (0.0,) * len(plan.stages)
    last = NoiseSchedule.from_dict(plan.schedule).alpha(plan.times[-1])
    alphas = (*(s.alpha for s in plan.stages[1:]), last)
    return tuple(1.0 - alpha / s.next_u[M] for s, alpha in zip(plan.stages, alphas, strict=True))
