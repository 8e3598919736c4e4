"""Analytic-DPM: the optimal variance of a step, estimated from data, and the times that go with it."""

from fastdiff.analytic.gamma import estimate_gamma
from fastdiff.analytic.times import optimal_times
from fastdiff.solvers.gamma import Gamma

__all__ = ["Gamma", "estimate_gamma", "optimal_times"]
