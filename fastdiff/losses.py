"""Training: the forward process, the losses, and times drawn by their losses."""

from fastdiff.training.forward import q_sample
from fastdiff.training.resampling import LossSecondMoment
from fastdiff.training.simple import ddpm_loss, flow_loss, sde_loss, smld_loss
from fastdiff.training.variational import VariationalBound, hybrid_loss, variational_bound, vlb_loss

__all__ = [
    "LossSecondMoment",
    "VariationalBound",
    "ddpm_loss",
    "flow_loss",
    "hybrid_loss",
    "q_sample",
    "sde_loss",
    "smld_loss",
    "variational_bound",
    "vlb_loss",
]
