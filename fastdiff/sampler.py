"""`Sampler`: a method bound to prediction and clipping, ready to run on any model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from typing_extensions import Unpack

from fastdiff import guidance, solvers
from fastdiff.bind import Binding
from fastdiff.names import unknown, untraced
from fastdiff.ops import tracing
from fastdiff.options import (
    BEGIN_DEFAULTS,
    INVERT_DEFAULTS,
    RUN_DEFAULTS,
    SAMPLER_DEFAULTS,
    BeginOptions,
    InvertPlain,
    InvertTrajectory,
    Plain,
    SamplerOptions,
    WithBoth,
    WithInfo,
    WithTrajectory,
    filled,
    parted,
    shows,
)
from fastdiff.plan import Plan
from fastdiff.prediction import ALL_PREDICTIONS, along, check_previous, settled
from fastdiff.run.again import Again
from fastdiff.run.arguments import (
    check_callables,
    check_clip,
    check_conditions,
    check_flags,
    check_observed,
    check_out,
    check_output_dtype,
    check_run,
    check_x,
    default_schedule,
    resolve_shape,
    warn_of_training,
)
from fastdiff.run.evaluate import Hooks
from fastdiff.run.fitted import warn_of_other_use
from fastdiff.run.graph import capture_refusal
from fastdiff.run.job import Engine, Job, begin, sampling_mode, warns_of_start
from fastdiff.run.loop import Run, State
from fastdiff.run.network import DTYPES, Network, placement, stated
from fastdiff.run.planned import PlanEngine
from fastdiff.run.recall import Recalls
from fastdiff.run.report import Info, Trajectory
from fastdiff.run.rollout import Rollout, check_rollout, replay, rollout
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.schedules.registry import told
from fastdiff.solvers import Method
from fastdiff.solvers.method_names import MethodName
from fastdiff.values import whole

if TYPE_CHECKING:
    from fastdiff.run.controlled import AdaptiveEngine

Model = Callable[..., Any]


class Sampler:
    """A sampling method, built once and used with any model, from any thread.

    Args:
        method: a name or alias of `fastdiff.methods()`; default: chosen from schedule and steps, as `fastdiff.sample`
            says.
        steps: number of steps, at least 1. Default: what `spacing` says, else 10. Adaptive methods take none.
        plan: a `Plan` of your own, instead of method, steps, schedule, spacing, t_start, t_end and options.
        **options: `schedule`, `prediction`, `spacing`, `t_start`, `t_end`, `clip`, `dtype`, `backend` and `graph`, as
            in `fastdiff.sample`; the method's options (`fastdiff.methods()` lists them), and the spacing's.

    Raises:
        ValueError, TypeError: bad arguments, with what is valid.
        RuntimeError: a named back end that cannot run here, or graph=True where nothing can be captured.
    """

    def __init__(
        self, method: MethodName | Method | None = None, steps: int | None = None, **options: Unpack[SamplerOptions]
    ) -> None:
        if torch.compiler.is_dynamo_compiling():
            raise RuntimeError(
                "a Sampler is made inside a compiled function: make it before, sampler = fastdiff.Sampler(...), or "
                "call fastdiff.sample(model, x, ...) there"
            )
        own = options.get("plan")
        chosen, brought = (None, {}) if own is not None else solvers.chosen(method, {"steps": steps, **options})
        given, more = parted("Sampler", chosen, options, SAMPLER_DEFAULTS)
        if own is not None:
            _check_alone(own, {"method": method, "steps": steps, **given}, more)
        given["spacing"] = brought.pop("spacing", given["spacing"])
        more = {**brought, **more}
        check_run(given["prediction"], given["dtype"], given["backend"], given["graph"])
        given["schedule"], given["prediction"] = told(given["schedule"], given["prediction"])
        self.clip = check_clip(given["clip"], given["dtype"])
        self.prediction: str | None = given["prediction"]
        if own is None:
            self.prediction = solvers.implied(method, given["schedule"], given["prediction"])
        self.dtype: torch.dtype = given["dtype"]
        self.backend: str | None = given["backend"]
        self.graph: bool | str = given["graph"]
        # What the caller named; the one in use is the default where nothing was, and the plan's own where one is given.
        self._said: NoiseSchedule | None = None if given["schedule"] is None else resolve(given["schedule"])
        self.schedule: NoiseSchedule | None = None if own is not None else self._said or resolve("ddpm")
        # Where "flow" leads to, also of a plan that was given.
        self.axis = self.schedule
        if isinstance(own, Plan) and own.schedule:
            self.axis = NoiseSchedule.from_dict(own.schedule)
        if self.prediction is not None:
            self.prediction = along(self.prediction, self.axis)
        self._asked: tuple[Method, dict[str, Any]] | None = None
        self._recalls, self._again = Recalls(), Again()
        self._controlled: AdaptiveEngine | None = None
        if own is not None or (chosen is not None and not chosen.adaptive):
            self.engine: Engine = self._plan_engine(own, chosen, steps, given, more)
        else:
            assert chosen is not None
            self.engine = self._controlled = self._adaptive_engine(chosen, steps, given, more)

    def _plan_engine(
        self, plan: Any, method: Method | None, steps: int | None, given: dict[str, Any], options: dict[str, Any]
    ) -> PlanEngine:
        if self.graph is True:
            why = capture_refusal()
            if why is not None:
                raise RuntimeError(f"graph=True: {why}; use graph='auto' or graph=False")
        if method is None:
            if not isinstance(plan, Plan):
                raise TypeError(
                    f"plan must be a fastdiff.Plan, got {type(plan).__name__}: fastdiff.plan(...) makes one"
                )
            made = plan
        else:
            spacing = given["spacing"]
            named = spacing if spacing is None or isinstance(spacing, str) else solvers.own_times(spacing)
            settled = {k: method.options[k].settled(v) if k in method.options else v for k, v in options.items()}
            asked = {"steps": steps, "schedule": self.schedule, "spacing": named, **settled}
            asked.update(t_start=given["t_start"], t_end=given["t_end"])
            made = _plan(method, asked)
            self._asked = method, asked
        check_previous(self.prediction, made.method)
        return PlanEngine(made, self.dtype)

    def _adaptive_engine(
        self, method: Method, steps: int | None, given: dict[str, Any], options: dict[str, Any]
    ) -> AdaptiveEngine:
        from fastdiff.run.controlled import AdaptiveEngine

        if self.graph is True:
            raise RuntimeError(
                f"graph=True: method {method.name!r} chooses each step from the error of the last, a value that the "
                "host must read, so a run cannot be captured as one graph; use graph='auto' or graph=False (the model "
                "itself may replay a graph of its own)"
            )
        assert self.schedule is not None
        solvers.warn_of_unit_times(self.schedule, given["t_start"], given["t_end"])
        check_previous(self.prediction, method.name)
        place = (self.schedule, given["spacing"], given["t_start"], given["t_end"])
        self._asked = method, options
        return AdaptiveEngine(
            functools.partial(solvers.adaptive, method, steps, *place, **options),
            along(self.prediction, self.axis),
            self.dtype,
        )

    @property
    def _unnamed(self) -> bool:
        """Whether the schedule in use is the default, since the caller named none."""
        return self._said is None and self.schedule is not None

    @property
    def method(self) -> str:
        """The name of the method: the one that was asked for, or chosen where none was; of a plan, the one that made
        it."""
        return self.engine.name

    @property
    def plan(self) -> Plan:
        """The method's table. AttributeError for adaptive methods, which have none."""
        if isinstance(self.engine, PlanEngine):
            return self.engine.plan
        raise AttributeError(
            f"method {self.engine.name!r} is adaptive and has no plan: its steps are chosen while it runs; call the "
            "sampler with return_info=True to see them"
        )

    def __repr__(self) -> str:
        if self._controlled is not None:
            m = self._controlled.method
            own = f"rtol={m.controller.rtol:g}, atol={m.controller.atol:g}, control={m.control!r}"
        else:
            own = f"steps={self.plan.steps}"
        return f"Sampler({self.engine.name!r}, {own}, prediction={self.prediction!r}, dtype={self.dtype})"

    @overload
    def __call__(self, model: Model, x: torch.Tensor | None = None, **options: Unpack[Plain]) -> torch.Tensor: ...

    @overload
    def __call__(
        self, model: Model, x: torch.Tensor | None = None, **options: Unpack[WithTrajectory]
    ) -> tuple[torch.Tensor, Trajectory]: ...

    @overload
    def __call__(
        self, model: Model, x: torch.Tensor | None = None, **options: Unpack[WithInfo]
    ) -> tuple[torch.Tensor, Info]: ...

    @overload
    def __call__(
        self, model: Model, x: torch.Tensor | None = None, **options: Unpack[WithBoth]
    ) -> tuple[torch.Tensor, Trajectory, Info]: ...

    @shows(RUN_DEFAULTS)
    def __call__(self, model: Model, x: torch.Tensor | None = None, **options: Any) -> Any:
        """Sample. `fastdiff.sample` explains the arguments.

        Returns:
            (B, ...) a fresh tensor, or a tuple of it, a `Trajectory` and an `Info`, as asked for.

        Adaptive methods call `callback(step, time, x, x0)` at the start and after every accepted step, and `correct_x0`
        at every evaluation, also of steps that are then rejected; with control="sample" its t is a (B,) float64 tensor,
        a time for each sample, and what it makes of a sample that has arrived is not used.
        """
        # What is recorded knows nothing of earlier calls, and leaves nothing behind for later ones.
        recorded, compiled = tracing(), torch.compiler.is_compiling()
        if not compiled and self._recalls.known and options.get("output_dtype") is None:
            again = self._recalls.replay(model, x, options, self._stated_by(model))
            if again is not None:
                return again
        if not recorded and self._again.known:
            again = self._again.run(model, x, options, self._stated_by(model))
            if again is not None:
                return again
        given = filled("the sampler", options, RUN_DEFAULTS)
        with sampling_mode():
            asked_dtype = given["output_dtype"]
            if asked_dtype is not None:
                asked_dtype = check_output_dtype(asked_dtype, placement(model)[1], self.dtype, given["out"])
            plain = not compiled and self.graph is not False and given["frames"] is None and asked_dtype is None
            job = self._job(model, x, given, self._noting(model, x, options) if plain else None)
            job.again = None if recorded else self._again_noting(model, x, options)
            result, trajectory, info = self.engine.run(job)
            result = result if asked_dtype is None else result.to(asked_dtype)
        asked = (trajectory if given["return_trajectory"] else None, info if given["return_info"] else None)
        more = [extra for extra in asked if extra is not None]
        return (result, *more) if more else result

    def _job(
        self,
        model: Model,
        x: torch.Tensor | None,
        given: dict[str, Any],
        note: Callable[[Any, Run], None] | None = None,
    ) -> Job:
        """One run, from arguments that are checked here; within `sampling_mode`."""
        check_flags(given)
        own = self._known_plan()
        chosen = guidance.choose(given, self.engine.name, own)
        check_conditions(chosen, given["guidance_scale"], given["cond"], given["uncond"])
        chosen.check(own, self.engine.name)
        check_observed(chosen, self.clip, given["correct_x0"])
        check_callables(given["noise"], given["callback"])
        self.engine.check(given, x is not None)
        self._check_stated(model)
        found, network_dtype = placement(model)
        start = begin(
            self.engine,
            x,
            resolve_shape(model, given["shape"], x),
            given,
            self.dtype,
            self.backend,
            found,
            network_dtype,
        )
        check_out(given["out"], start.x)
        learned, two_times = own is not None and own.learned_variance, own is not None and own.two_times
        halves = given["cond"], given["uncond"]
        network = Network(model, len(start.x), given["model_kwargs"], *halves, learned, two_times, chosen)
        hooks = Hooks(
            callback=given["callback"],
            trajectory=[] if given["return_trajectory"] else None,
            finite=given["check_finite"],
            correct_x0=given["correct_x0"],
            correct_xt=given["correct_xt"],
        )
        binding = Binding(
            settled(self.prediction or stated(model, "prediction"), self.axis),
            chosen,
            clip=self.clip is not None,
            corrected=hooks.correct_x0 is not None,
        )
        if isinstance(self.engine, PlanEngine):
            said = stated(model, "schedule") if self._said is None else self._said
            said = None if said is None else resolve(said)
            warn_of_other_use(self.plan, binding.prediction, chosen, said)
        return Job(
            start,
            network,
            network_dtype or self.dtype,
            binding,
            self.clip,
            hooks,
            self.graph,
            given["progress"],
            given["out"],
            given["frames"],
            note,
        )

    def _known_plan(self) -> Plan | None:
        """The plan, of a method that has one, with what it keeps of itself where this is compiled."""
        if not isinstance(self.engine, PlanEngine):
            return None
        if torch.compiler.is_dynamo_compiling():
            self.engine.settle()
        return self.engine.plan

    @shows(RUN_DEFAULTS)
    def rollout(
        self, model: Model, x: torch.Tensor | None = None, reduce: str = "mean", **options: Unpack[Plain]
    ) -> tuple[torch.Tensor, Rollout]:
        """Sample, and keep the states and the log-probability of each transition, for policy gradients
        (docs/reinforcement-learning.md).

        Args:
            model, x, **options: as in `fastdiff.sample`.
            reduce: "mean" of the log-densities of a sample's elements, as Flow-GRPO takes it, or their "sum".

        Returns:
            The sample, and a `Rollout`.

        Raises:
            ValueError: a method whose steps are not one evaluation and one draw each, and what `log_prob` cannot
                replay.
        """
        given = filled("Sampler.rollout", options, RUN_DEFAULTS)
        engine = check_rollout(self.engine, given, reduce)
        if given["output_dtype"] is not None:
            raise ValueError("output_dtype does not go with a rollout, whose states are the sampler's: cast its sample")
        with sampling_mode():
            return rollout(engine, self._job(model, x, given), reduce)

    @shows(RUN_DEFAULTS)
    def log_prob(
        self, model: Model, given: Rollout, steps: int | Sequence[int] | None = None, **options: Unpack[Plain]
    ) -> torch.Tensor:
        """The log-probabilities of a rollout's transitions under another network, with gradients.

        Args:
            model: called as in the rollout, once a step.
            steps: number of the step, or several; default: all of them.
            **options: guidance, conditions and `model_kwargs` as in the rollout.

        Returns:
            (B,) float64 for one step, else (len(steps), B).

        Raises:
            ValueError: a rollout of another number of steps, and steps that it does not have.
        """
        if not isinstance(given, Rollout):
            raise TypeError(
                f"log_prob takes the model and a Rollout, got {type(given).__name__}: "
                "x, rollout = sampler.rollout(model, ...), then sampler.log_prob(model, rollout)"
            )
        arguments = filled("Sampler.log_prob", options, RUN_DEFAULTS)
        engine = check_rollout(self.engine, arguments, given.reduce)
        count = len(given.log_prob)
        if count != engine.plan.steps:
            raise ValueError(f"the rollout has {count} steps, and this Sampler {engine.plan.steps}: give the same one")
        # A tensor or an array without dimensions is one number.
        several = steps is None or (isinstance(steps, Iterable) and getattr(steps, "ndim", 1) > 0)
        asked: Any = range(count) if steps is None else steps if several else [steps]
        chosen = [whole("steps", k, 0, count - 1, "0") for k in asked]
        with sampling_mode():
            job = self._job(model, given.x[0], arguments)
        found = replay(engine, job, given, chosen)
        return found if several else found[0]

    @functools.cached_property
    def inverse(self) -> Sampler:
        """The same method on the same times upwards, from data to noise: the sampler that `invert` runs.

        The data are taken as the state at the lowest time with noise. That is the time at which the grid ends, or the
        schedule's `t_floor` where it ends at sigma = 0: most networks and solvers are not defined there. For adaptive
        methods it is the ODE between the same times.

        Raises:
            ValueError: the method draws noise, or the plan was given as it is; 'dpm_adaptive', which runs from noise to
                data alone.
        """
        made: dict[str, Any] = {
            "prediction": self.prediction,
            "clip": self.clip,
            "dtype": self.dtype,
            "backend": self.backend,
        }
        if self._controlled is not None:
            m = self._controlled.method
            if m.method != "ode":
                raise ValueError(f"method {m.method!r} runs from noise to data alone: invert method='ode'")
            assert self._asked is not None
            options = {k: v for k, v in self._asked[1].items() if k != "denoise_to_zero"}
            return Sampler(self._asked[0], schedule=self.schedule, t_start=m.stop.t, t_end=m.start.t, **made, **options)
        if self.plan.stochastic:
            raise ValueError(
                f"method {self.plan.method!r} with these options draws noise, so that no single x_T leads to a sample: "
                "invert a deterministic one, such as ddim with eta=0"
            )
        if self._asked is None:
            raise ValueError(
                "this Sampler was given its plan ready-made, whose inverse only its maker knows: give it the method "
                "and its options, or run Sampler(plan=fastdiff.plan(..., invert=True)) on the data"
            )
        method, asked = self._asked
        made.update(plan=solvers.plan(method, invert=True, **asked), graph=self.graph)
        return Sampler(**made)

    @untraced
    def _make_inverse(self) -> None:
        _ = self.inverse

    @overload
    def invert(self, model: Model, x: torch.Tensor, **options: Unpack[InvertPlain]) -> torch.Tensor: ...

    @overload
    def invert(
        self, model: Model, x: torch.Tensor, **options: Unpack[InvertTrajectory]
    ) -> tuple[torch.Tensor, Trajectory]: ...

    @shows(INVERT_DEFAULTS)
    def invert(self, model: Model, x: torch.Tensor, **options: Any) -> Any:
        """From data to the noise that leads to them: `sampler(model, sampler.invert(model, x))` is x up to the
        error of the steps. It falls with their number at the method's order (DDIM, Song et al. 2021, arXiv 2010.02502,
        section 4.3).

        Args:
            x: (B, ...) data. See `inverse` for the time at which they are taken to be.
            **options: as in `fastdiff.sample`. Give the same guidance to both runs; strong guidance makes the map
                stiff, and the reconstruction poor.

        Returns:
            (B, ...): x at the time at which the sampler starts; with `return_trajectory`, also a `Trajectory`.

        Raises:
            ValueError, TypeError: as in `fastdiff.sample`, and for methods that draw noise.
        """
        self._check_stated(model)
        if not isinstance(x, torch.Tensor):
            check_x(x)
        self._make_inverse()
        return self.inverse(model, x, **filled("Sampler.invert", options, INVERT_DEFAULTS))

    def _stated_by(self, model: Any) -> tuple[Any, Any]:
        """The model's own prediction and schedule, as far as this sampler was not told them."""
        prediction = stated(model, "prediction") if self.prediction is None else None
        return prediction, stated(model, "schedule") if self._unnamed else None

    def _noting(self, model: Any, x: Any, options: Mapping[str, Any]) -> Callable[[Any, Run], None] | None:
        """What remembers this call once a graph has replayed it; None for calls that are warned of each time."""
        engine = self.engine
        if not isinstance(engine, PlanEngine) or engine.plan.origin or (x is None and warns_of_start(engine.first)):
            return None
        said, std = self._stated_by(model), engine.prior_std
        return lambda entry, r: self._recalls.note(model, x, options, said, entry, r, std)

    def _again_noting(self, model: Any, x: Any, options: Mapping[str, Any]) -> Callable[[State], None] | None:
        """What remembers this call, once it went through in the host's memory; None as `_noting`."""
        engine = self.engine
        if not isinstance(engine, PlanEngine) or engine.plan.origin or (x is None and warns_of_start(engine.first)):
            return None
        return self._again.noting(model, x, options, self._stated_by(model), engine.prior_std)

    def _check_stated(self, model: Any) -> None:
        """Raise where the model states a prediction or a schedule that does not go with this sampler."""
        prediction = stated(model, "prediction")
        if self.prediction is None and prediction is not None:
            if prediction not in ALL_PREDICTIONS:
                raise ValueError(unknown("model.prediction", prediction, ALL_PREDICTIONS))
            check_previous(prediction, self.engine.name)
        warn_of_training(model)
        schedule = stated(model, "schedule")
        if self._unnamed and schedule is None:
            default_schedule(self.prediction or prediction)
        if self._unnamed and schedule is not None and resolve(schedule) != self.schedule:
            raise ValueError(
                f"the model states schedule={resolve(schedule)!r}, and this Sampler was made for the default, 'ddpm': "
                "Sampler(..., schedule=model.schedule)"
            )

    @shows(BEGIN_DEFAULTS)
    def begin(self, x: torch.Tensor | None = None, **options: Unpack[BeginOptions]) -> State:
        """Start a run whose loop is the caller's, who evaluates the network:

            state = sampler.begin(shape=(4, 3, 32, 32), seed=0)
            while not state.done:
                state = sampler.step(state, model(state.input, state.time))
            x = state.x

        Args:
            x: (B, ...) the state at the start; default: drawn from the prior.
            **options: `shape`, `seed`, `first_sample`, `noise`, `frames` and `device`, as in `fastdiff.sample`;
                `guidance`: if given, `state.input` has 2·B rows, and so has the output, the conditional half first
                (with `PerpNeg` and `Autoguidance` B rows, and the output all halves); `network_dtype`: of
                `state.input`, default: the state's.

        Raises:
            ValueError: an adaptive method, whose trial steps may be rejected, and bad arguments.
        """
        given = filled("Sampler.begin", options, BEGIN_DEFAULTS)
        if not isinstance(self.engine, PlanEngine):
            raise ValueError(
                f"method {self.engine.name!r} is adaptive: its loop cannot be the caller's; call the sampler itself"
            )
        own = self._known_plan()
        chosen = guidance.choose({**RUN_DEFAULTS, **given}, self.engine.name, own)
        chosen.check(self.plan, self.engine.name)
        check_observed(chosen, self.clip, None)
        if self._unnamed:
            default_schedule(self.prediction)
        network_dtype = self.dtype if given["network_dtype"] is None else given["network_dtype"]
        if not isinstance(network_dtype, torch.dtype) or network_dtype not in DTYPES:
            raise ValueError(f"network_dtype={network_dtype!r}: expected one of {', '.join(map(str, DTYPES))}")
        with sampling_mode():
            size = resolve_shape(None, given["shape"], x)
            start = begin(self.engine, x, size, given, self.dtype, self.backend, None, network_dtype)
            network = Network(_outside, len(start.x), learned=self.plan.learned_variance, guidance=chosen)
            network.guided = chosen.batched
            binding = Binding(settled(self.prediction, self.axis), chosen, clip=self.clip is not None)
            warn_of_other_use(self.plan, binding.prediction, chosen, self._said)
            job = Job(start, network, network_dtype, binding, self.clip, Hooks(), frames=given["frames"])
            return self.engine.state(job)

    def step(self, state: State, output: torch.Tensor) -> State:
        """Take the network's `output` at `state.input`, and go to the next evaluation. Returns `state`, advanced."""
        if state.done:
            raise ValueError("the run is complete: state.x is the sample; sampler.begin(...) starts another")
        with sampling_mode():
            state.step(output)
        return state


def _check_alone(plan: Any, given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """ValueError for what a plan says already, and which would be left out in silence."""
    names = ("method", "steps", "spacing", "t_start", "t_end")
    said = [*(n for n in names if given[n] is not None), *options]
    if said:
        raise ValueError(
            f"plan= is a method with its times and options, and does not go with {', '.join(f'{n}=' for n in said)}: "
            "leave them out, or make the plan with them, fastdiff.plan(...)"
        )
    if given["schedule"] is None or not isinstance(plan, Plan) or not plan.schedule or plan.origin:
        return
    made, asked = NoiseSchedule.from_dict(plan.schedule), resolve(given["schedule"])
    if made != asked:
        raise ValueError(f"plan= was made on {made!r}, and schedule= is {asked!r}: leave schedule out")


def _plan(method: Method, asked: Mapping[str, Any]) -> Plan:
    """The method's plan, kept for the next sampler with the same arguments."""
    if method not in (solvers.METHODS.get(method.name), solvers.GUIDED.get(method.name)):
        return solvers.plan(method, **asked)
    try:
        # With the types: 1 and True are equal, but only one of them may be valid.
        return kept_plan(method.name, tuple((k, type(v), v) for k, v in sorted(asked.items())))
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return solvers.plan(method, **asked)


@functools.lru_cache(maxsize=256)
def kept_plan(method: str, asked: tuple[tuple[str, type, Any], ...]) -> Plan:
    return solvers.plan(method, **{k: v for k, _, v in asked})


def _outside(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("this run's network is called by the owner of the loop")
