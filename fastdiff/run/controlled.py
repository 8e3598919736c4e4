"""The engine of adaptive methods, which choose their steps while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastdiff.ops import Coeffs, symbolic
from fastdiff.prediction import check_previous
from fastdiff.run.adaptive import Driver
from fastdiff.run.arguments import is_path, need_values
from fastdiff.run.corrections import check_calls
from fastdiff.run.job import Job
from fastdiff.run.report import Info, Trajectory, progress_bar
from fastdiff.schedules import Point
from fastdiff.solvers.embedded import Embedded


class AdaptiveEngine:
    """An adaptive method.

    Args:
        make: the method bound to its times, from what the network predicts.
        prediction: what it predicts as far as is known before a run.
        dtype: of the state.

    Raises:
        ValueError: tolerances that the state's dtype cannot show.
    """

    def __init__(self, make: Callable[[str], Embedded], prediction: str, dtype: torch.dtype) -> None:
        self.make = make
        self.method = make(prediction)
        self.name = self.method.method
        rtol, atol = self.method.controller.rtol, self.method.controller.atol
        # One rounding of a state of order 1: below it a step's error is noise, and steps shrink without end.
        if dtype == torch.float32 and rtol + atol < 2.0**-23:
            raise ValueError(
                f"rtol={rtol:g}, atol={atol:g} are below what a state in float32 can show, 1.2e-07 together: give "
                "dtype=torch.float64 (and a network in float64), or larger ones"
            )

    @property
    def first(self) -> Point:
        return self.method.start

    @property
    def prior_std(self) -> float:
        return self.method.prior_std

    def check(self, arguments: Mapping[str, Any], has_x: bool) -> None:
        name, form = self.name, arguments["classifier_form"]
        if arguments["frames"] is not None:
            raise ValueError(
                f"frames needs a method with a plan: method {name!r} chooses its steps while it runs, for whole samples"
            )
        check_calls(arguments["correct_x0"], arguments["correct_xt"])
        if is_path(arguments["noise"]):
            raise ValueError(
                f"noise='brownian' does not go with method {name!r}: it solves an ODE and draws nothing; use a method "
                "that draws noise, such as dpmpp2m_sde, or leave noise out"
            )
        if form is not None and form != "score":
            raise ValueError(
                f"classifier_form={form!r}: method {name!r} is an ODE, and takes classifier_grad in the form 'score' "
                "alone"
            )
        if arguments["correct_xt"] is not None:
            raise ValueError(
                f"correct_xt does not go with adaptive methods: the next step of method {name!r} and its error start "
                "from values of the state before the correction, and the times at which it were called would depend on "
                "the tolerances; use correct_x0=..., or a method with a plan"
            )
        observed = arguments["callback"] is not None or arguments["return_trajectory"]
        if observed and self.method.control == "sample":
            raise ValueError(
                "callback and return_trajectory report the steps of the batch, and with control='sample' each sample "
                "has its own: use control='batch', or return_info=True for the times"
            )
        if not has_x and not self.method.forward:
            raise ValueError(
                f"from t_start={self.method.start.t:g} to t_end={self.method.stop.t:g} method {name!r} runs from data "
                "to noise: pass x, the data"
            )

    def run(self, job: Job) -> tuple[torch.Tensor, Trajectory | None, Info | None]:
        binding, hooks, start = job.binding, job.hooks, job.start
        need_values(start.x.device, f"the adaptive method {self.name!r}")
        if symbolic(start.x):
            raise RuntimeError(
                f"method {self.name!r} is adaptive: its steps depend on values, which are not known while a graph is "
                "recorded (FakeTensor, torch.export, torch.compile, torch.jit.trace); use a method with a plan, such as"
                " 'heun', or record the network alone"
            )
        check_previous(binding.prediction, self.name)
        # A corrected x0 stands in for the output. The run cannot pass sigma = 0, where x0 says nothing about the
        # noise.
        method = self.make("x0" if binding.corrected else binding.prediction)
        coeffs = Coeffs(start.x, start.x, start.seeds, start.index)
        # The driver itself checks whether the input is its state, which the halves of guidance never are.
        direct = job.network_dtype == start.x.dtype and not job.network.guided
        driver = Driver(method, job.evaluator(coeffs, direct), job.network_dtype, coeffs, start.x)
        with progress_bar(hooks, self.name, 100, "%") if job.progress else contextlib.nullcontext():
            result = driver.run()
        driver.evaluator.complete()
        result = result if job.out is None else job.out.copy_(result)
        trajectory = None
        if hooks.trajectory is not None:
            at, states, predicted = zip(*hooks.trajectory, strict=True)
            times = torch.tensor([*at, driver.lanes[0].times[-1]], dtype=torch.float64, device=start.x.device)
            trajectory = Trajectory(times, torch.stack([*states, result]), torch.stack(predicted))
        return result, trajectory, driver.info()
