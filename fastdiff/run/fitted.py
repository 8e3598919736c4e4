"""Fitted plans run as they were fitted, or with a warning."""

from __future__ import annotations

from fastdiff.guidance import Guidance, described
from fastdiff.names import warn
from fastdiff.plan import Plan
from fastdiff.schedules import NoiseSchedule


def warn_of_other_use(plan: Plan, prediction: str, form: Guidance, schedule: NoiseSchedule | None) -> None:
    """A UserWarning where a plan that `fastdiff.fit` made is run with another schedule, prediction or guidance than it
    was fitted with: its numbers are right for those alone. `schedule`: what the caller or the model says, or None."""
    origin = plan.origin
    if origin.get("kind") != "fit" or "network" not in origin:
        return
    found = {"prediction": prediction, "guidance": described(form)}
    fitted = {"prediction": origin["network"]["prediction"], "guidance": origin["guidance"]}
    if schedule is not None:
        found["schedule"], fitted["schedule"] = schedule.fingerprint()[:12], origin["schedule"][:12]
    other = [f"{name} {fitted[name]}, not {found[name]}" for name in found if found[name] != fitted[name]]
    if other:
        warn(
            f"this plan was fitted with {'; '.join(other)}: its error may be large; fit one for this use, "
            "fastdiff.fit(model, ...)"
        )
