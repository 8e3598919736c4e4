"""`Scheduler`: a scheduler with diffusers' interface whose steps are plans of ours."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import __version__ as DIFFUSERS
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from fastdiff.integrations.diffusers.families import MAP, family
from fastdiff.integrations.diffusers.inputs import Times, check_tensors, listed, place
from fastdiff.integrations.diffusers.noising import TABLES, of_run, of_training, table
from fastdiff.integrations.diffusers.plans import Options
from fastdiff.integrations.diffusers.seeds import drawn, keys
from fastdiff.integrations.diffusers.spacing import Asked, Grid
from fastdiff.integrations.diffusers.walk import Bound, Limits, Stepped, Walk, bound
from fastdiff.names import short
from fastdiff.plan import Plan
from fastdiff.run.arguments import resolve_seeds
from fastdiff.run.job import sampling_mode
from fastdiff.schedules.configs import PREDICTIONS, settings
from fastdiff.schedules.diffusers import alphas_cumprod
from fastdiff.values import number, whole

_KEPT = 32
NOISES = ("fastdiff", "diffusers")
RELEASE = tuple(int(part) for part in DIFFUSERS.split(".")[:2])
"""The installed diffusers, whose times are ours."""


class _Local(threading.local):
    """What belongs to the run of one thread."""

    times: Times | None = None
    walk: Walk | None = None
    begin: int | None = None
    index: int | None = None


class Scheduler(SchedulerMixin, ConfigMixin):
    """A scheduler of diffusers' interface: `Scheduler.from_config(pipe.scheduler.config)`, for unmodified pipelines.

    The config says the class that it stands for and all of its options; the steps are plans of fastdiff, one fused
    stage a step, which never waits for the device. A run belongs to its thread: one scheduler serves any number of
    threads, each of which calls `set_timesteps` for its own runs. The state is float32 (float64 for float64 samples)
    from step to step, whatever the dtype of the samples.

    Noise, where a method draws it, is a function of seed, sample and step (`fastdiff.randn`). The seed is drawn from
    `generator`, one for each sample from a list of them, or from torch's default generator. `noise="diffusers"` draws
    tensors from the generator instead, as diffusers does, for the same numbers.
    """

    config_name: Any = "scheduler_config.json"
    _compatibles = list(MAP)  # noqa: RUF012 - declared so by the class above

    def __init__(self, **config: Any) -> None:
        options = dict(config.pop("fastdiff", None) or {})
        options.update({k: config.pop(k) for k in ("noise", "replaces") if k in config})
        noise = options.get("noise", "fastdiff")
        if noise not in NOISES:
            raise ValueError(f"noise={noise!r}: expected 'fastdiff' or 'diffusers'")
        self.replaces, self._settings = settings(config, options.get("replaces"))
        self._settings.update(_class=self.replaces, _release=RELEASE)
        self.noise = noise
        self._set_up()
        self.order = self._family.order
        self._prediction = self._predicted()
        kept = {k: v for k, v in self._settings.items() if not k.startswith("_")}
        hidden = {k: v for k, v in config.items() if k not in kept and not k.startswith("_")}
        # Classes of diffusers read this config too, and warn of keys that they do not know.
        own = {} if noise == NOISES[0] else {"fastdiff": {"noise": noise}}
        self.register_to_config(**hidden, **kept, **own, _class_name=self.replaces)
        # What cannot be done is said now, and not in the middle of a pipeline.
        steps = max(4, 2 * int(self._settings.get("solver_order", 1)))
        mu = 1.0 if self._settings.get("use_dynamic_shifting") else None
        self._plan(self._grid(Asked(steps, mu=mu)), 0, Options())
        self._limits()

    def _set_up(self) -> None:
        self._family = family(self.replaces, self._settings)
        self._local = _Local()
        self._shared: Times | None = None
        self._bound: OrderedDict[Any, Bound] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Runs belong to threads, which a copy has none of.
        left = ("_family", "_local", "_shared", "_bound", "_lock")
        return {k: v for k, v in self.__dict__.items() if k not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up()

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | Any = None, return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """The scheduler that stands for another: `Scheduler.from_config(pipe.scheduler.config)`.

        Args:
            config: the config of one of diffusers' schedulers, or the scheduler itself. A config says its class where
                the pipeline was loaded; of schedulers made by hand, whose configs do not, give the scheduler.
            **options: keys of the config to be changed, and `noise`: "fastdiff" or "diffusers".

        Raises:
            ValueError: a class, a key or a value that is not here, by its name.
            TypeError: not a config.
        """
        if isinstance(config, str):
            raise TypeError(f"from_config takes a config, got {config!r}: Scheduler.from_pretrained({config!r})")
        name, _ = settings(config)
        mapping = config if isinstance(config, Mapping) else config.config
        given = {k: v for k, v in mapping.items() if not k.startswith("_")}
        noted = dict(given.pop("fastdiff", None) or {})
        made = cls(**{**given, "replaces": name, **noted, **options})
        return (made, {}) if return_unused_kwargs else made

    def to_json_string(self) -> str:
        """The config as JSON, under the name of the class that it stands for, which can read it too."""
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        config = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in config.items() if v != -math.inf}
        config.update(_class_name=self.replaces, _diffusers_version=DIFFUSERS)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def __len__(self) -> int:
        return int(self._settings.get("num_train_timesteps", 1000))

    # Times.

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[float] | torch.Tensor | None = None,
        sigmas: Sequence[float] | torch.Tensor | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """The times of this thread's next run.

        Args:
            num_inference_steps: at least 1, or one of the two lists.
            device: of `timesteps`.
            timesteps, sigmas: lists of the class's own kind, where it takes them.
            mu: of dynamic shifting, which the pipeline makes from the image's size.
            original_inference_steps, strength: of LCM and TCD.

        Raises:
            ValueError: what this class does not take, and lists that do not descend.
        """
        asked = Asked(
            None
            if num_inference_steps is None
            else whole("num_inference_steps", num_inference_steps, 1, 2**31 - 1, "20"),
            listed("timesteps", timesteps),
            listed("sigmas", sigmas),
            None if mu is None else number("mu", mu, "1.15"),
            original_inference_steps,
            number("strength", strength, "1.0"),
        )
        grid = self._grid(asked)
        plan = self._plan(grid, 0, Options())
        if self._prediction == "eps" and any(stage.evaluate and stage.alpha == 0 for stage in plan.stages):
            raise ValueError(
                "prediction_type='epsilon' with rescale_betas_zero_snr=True and a time at which alpha = 0: the noise "
                "that a network says there is x itself, and says nothing of x0; use 'v_prediction' or 'sample', as "
                "the network was trained, or timestep_spacing='leading'"
            )
        local = self._local
        local.times = self._shared = Times(grid, plan, self._family, device)
        local.walk = local.begin = local.index = None

    def _grid(self, asked: Asked) -> Grid:
        return self._family.grid(self._settings, asked)

    def _plan(self, grid: Grid, begin: int, options: Options) -> Plan:
        return self._family.plan(self._settings, grid, begin, options)

    @property
    def _times(self) -> Times:
        times = self._local.times or self._shared
        if times is None:
            raise ValueError("no times are set: scheduler.set_timesteps(num_inference_steps, device=...) comes first")
        return times

    @property
    def timesteps(self) -> torch.Tensor:
        """(evaluations,) what the network is given, int64 or float32; before `set_timesteps`, all training times."""
        times = self._local.times or self._shared
        if times is None:
            return torch.arange(len(self) - 1, -1, -1)
        return times.timesteps

    @property
    def sigmas(self) -> torch.Tensor:
        """(steps + 1,) float32, in the host's memory: sigma/alpha, or the level of flow matching, of every step."""
        return self._times.sigmas

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps, or None before `set_timesteps`."""
        times = self._local.times or self._shared
        return None if times is None else len(times.grid.network)

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies its first noise by."""
        kind = self._family.prior
        if kind == "unit":
            return 1.0
        if kind == "edm":
            return math.hypot(float(self._settings["sigma_max"]), 1.0)
        times = self._local.times or self._shared
        if times is None:
            a = alphas_cumprod(self._settings, floor=True)[-1]
            largest = math.sqrt((1.0 - a) / a)
        else:
            largest = max(times.grid.sigmas)
        return largest if self._settings["timestep_spacing"] in ("linspace", "trailing") else math.hypot(largest, 1.0)

    # Where a run is.

    @property
    def begin_index(self) -> int | None:
        """What `set_begin_index` said, or None."""
        return self._local.begin

    @property
    def step_index(self) -> int | None:
        """The number of the next evaluation of this thread's run; None before its first step and after its last."""
        return self._local.index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The run begins at `timesteps[begin_index]`."""
        self._local.begin = int(begin_index)
        self._local.walk = self._local.index = None

    def index_for_timestep(self, timestep: Any, schedule_timesteps: torch.Tensor | None = None) -> int:
        """Where a time is in `timesteps`; of two equal ones the second, where a run in the midst begins.

        Waits for the device only for a time in its memory that is not a part of `timesteps`.
        """
        times = self._times
        found = place(timestep, times)
        if found is not None:
            return found
        value = float(timestep.reshape(-1)[0]) if isinstance(timestep, torch.Tensor) else float(timestep)
        fits = [i for i, t in enumerate(times.host) if t == value or abs(t - value) <= 1e-6 * abs(t)]
        if not fits:
            raise ValueError(
                f"timestep {value:g} is none of scheduler.timesteps, {short(times.host)}: pass one of them, or list "
                "yours with set_timesteps(timesteps=...)"
            )
        return fits[1] if len(fits) > 1 and self.order == 1 else fits[0]

    # Steps.

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The network's input: `sample` itself, or sample/sqrt(sigma² + 1) for the classes whose sample is x/alpha."""
        if not self._times.grid.exploding:
            return sample
        return sample * self._times.levels[self._here(timestep)][2]

    def _here(self, timestep: Any) -> int:
        """The evaluation that is due, by the counter, and by the given time where the host knows it."""
        local = self._local
        due = local.index if local.index is not None else local.begin
        if due is None:
            return self.index_for_timestep(timestep)
        return due

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        prev_timestep: Any = None,
    ) -> Any:
        """One evaluation of the network taken in: the sample at the next time.

        Args:
            model_output: (B, ...) what the network gave, or (B, 2·C, ...) with a learned variance.
            timestep: one of `timesteps`.
            sample: (B, ...) the current sample, of any floating dtype, which the result has too.
            eta: of DDIM and TCD; other classes ignore it, as diffusers' pipelines give it to all.
            generator: or one for each sample; see the class.
            variance_noise: (B, ...) the noise itself.
            prev_timestep: of UnCLIP: the next of `timesteps`, where the step leads.
            return_dict: False: a tuple, of the predicted x0 too for the classes that give it.

        Returns:
            An object with `prev_sample` and `pred_original_sample`, or a tuple of them. The second is made when it is
            asked for.

        Raises:
            ValueError, TypeError: arguments that do not fit.
        """
        if s_churn:
            raise ValueError(
                "s_churn: diffusers adds its noise after the network's call, which is then told another level than its "
                "input has; fastdiff.sample(pipe.unet, schedule=pipe.scheduler, "
                f"method={'heun' if self.order == 2 else 'edm_euler'!r}, s_churn=...) adds it before"
            )
        check_tensors(model_output, sample)
        local, times = self._local, self._times
        given = place(timestep, times)
        walk = local.walk
        at = self._here(timestep)
        if local.index is not None and given is not None and given != at and times.host[given] != times.host[at]:
            # The caller went somewhere else: a run of its own begins there.
            walk, at = None, given
        if self.replaces == "UnCLIPScheduler" or prev_timestep is not None:
            self._check_next(prev_timestep, at)
        if walk is None or walk.finished:
            options = Options(eta, bool(use_clipped_model_output), float(s_noise))
            walk = self._begin(at, options, sample, generator)
        walk.source = None
        if walk.table.plan.stochastic:
            if variance_noise is not None:
                walk.source = lambda draw, like: variance_noise.to(like)
            elif self.noise == "diffusers":
                walk.source = drawn(generator, sample if self._family.draws_always else None)
        with sampling_mode():
            following, predicted = walk.step(self._mean(model_output, sample, walk), sample)
        local.walk, local.index = (None, None) if walk.finished else (walk, walk.first + walk.done)
        if not return_dict and not self._family.pair:
            return (following,)
        return Stepped(following, predicted, self._family.names)

    def _check_next(self, prev_timestep: Any, at: int) -> None:
        """ValueError for a step that is asked to lead elsewhere than to the next time of the list."""
        host = self._times.host
        following = host[at + 1] if at + 1 < len(host) else None
        if prev_timestep is None:
            # The time before, as diffusers has it; after the last there is none.
            found = None if following is None else host[at] - 1
        else:
            known = place(prev_timestep, self._times)
            found = float(prev_timestep) if known is None else host[known]
        if found != following:
            raise ValueError(
                f"prev_timestep={short(prev_timestep)}: the step at timesteps[{at}] leads to {following}, the next of "
                "timesteps (None after the last); give that one"
            )

    def _begin(self, at: int, options: Options, sample: torch.Tensor, generator: Any) -> Walk:
        outer, inner = divmod(at, self.order)
        if inner:
            raise ValueError(
                f"a run cannot begin at timesteps[{at}], in the midst of a step of {self.order} evaluations: begin at "
                f"a multiple of {self.order}"
            )
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        table = self._table(self._times.grid, outer, options, dtype, sample.device)
        own = table.plan.stochastic and self.noise == "fastdiff"
        seeds, index = resolve_seeds(keys(generator, len(sample)) if own else 0, 0, len(sample), sample.device)
        return Walk(table, at, sample, seeds, index, self._limits())

    def _table(self, grid: Grid, begin: int, options: Options, dtype: torch.dtype, device: torch.device) -> Bound:
        """The bound plan of a run, kept for the next that is alike."""
        key = (grid.times, grid.exploding, grid.data_std, grid.schedule, begin, options, dtype, device)
        with self._lock:
            found = self._bound.get(key)
            if found is None:
                plan, clip = self._plan(grid, begin, options), self._limits() is not None
                sign = -1.0 if self._settings.get("invert_sigmas") else 1.0
                found = self._bound[key] = bound(plan, grid, self._prediction, sign, clip, dtype, device)
                while len(self._bound) > _KEPT:
                    self._bound.popitem(last=False)
            else:
                self._bound.move_to_end(key)
            return found

    def _predicted(self) -> str:
        if self.replaces.startswith("FlowMatch"):
            return "flow"
        if self.replaces == "IPNDMScheduler":
            return "v"
        kind = self._settings.get("prediction_type", "epsilon")
        return "edm" if self._family.prior == "edm" and kind == "epsilon" else PREDICTIONS[kind]

    def _limits(self) -> Limits | None:
        s = self._settings
        if self.replaces == "TCDScheduler":
            # Its step reads neither thresholding nor clip_sample.
            return None
        # UniPC bounds x0 where it works with x0 alone.
        if s.get("thresholding") and s.get("predict_x0", True):
            if self.replaces.startswith("EDM"):
                raise ValueError("thresholding=True of EDM's schedulers is not here: latents have no bounds to keep")
            highest = float(s["sample_max_value"])
            return Limits() if highest <= 1 else Limits(1.0, float(s["dynamic_thresholding_ratio"]), highest)
        if self._family.clips and s[self._family.clips]:
            return Limits(float(s["clip_sample_range"]))
        return None

    def _mean(self, out: torch.Tensor, sample: torch.Tensor, walk: Walk) -> torch.Tensor:
        """The network's output, without the half that is its variance where no stage reads it."""
        channels = sample.shape[1] if sample.ndim > 1 else 0
        twice = out.ndim == sample.ndim and out.shape[1:2] == (2 * channels,)
        if walk.table.plan.learned_variance:
            if not twice:
                raise ValueError(
                    f"model_output has shape {tuple(out.shape)}, and variance_type={self._settings['variance_type']!r} "
                    f"reads twice the channels of sample, {tuple(sample.shape)}: the prediction and then its variance"
                )
            return out
        learned = str(self._settings.get("variance_type")).startswith("learned")
        out = out[:, :channels] if twice and learned else out
        if out.shape != sample.shape:
            raise ValueError(f"model_output has shape {tuple(out.shape)}, and sample {tuple(sample.shape)}")
        return out

    # Noise for the start of a run.

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """alpha·x0 + sigma·noise, or x0 + sigma·noise for the classes whose sample is x/alpha, at each sample's time.

        Times on a device are not read: there the run's counter says where it is, as in diffusers' pipelines, or the
        training table is looked up on the device.
        """
        for name, given in (("original_samples", original_samples), ("noise", noise)):
            if not isinstance(given, torch.Tensor):
                raise TypeError(f"{name} got {type(given).__name__}; expected a torch.Tensor of the samples' shape")
        alpha, sigma = self._levels(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
        """The same under flow matching's name: (1 - sigma)·sample + sigma·noise."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """alpha·noise - sigma·sample, the target of v prediction, at each sample's time."""
        alpha, sigma = of_training(self.replaces, self._settings, timesteps, sample)
        return alpha * noise - sigma * sample

    def _levels(self, timesteps: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        times, local = self._local.times or self._shared, self._local
        if times is None or times.grid.schedule.discrete:
            return of_training(self.replaces, self._settings, timesteps, like)
        if local.begin is not None:
            at = [local.index if local.index is not None else local.begin]
        else:
            each = timesteps.reshape(-1) if isinstance(timesteps, torch.Tensor) else torch.as_tensor([timesteps])
            at = [self.index_for_timestep(t) for t in each]
        return of_run(times.levels, at, like)

    def __getattr__(self, name: str) -> Any:
        # Tables that training scripts and a few pipelines read.
        found = table(self.__dict__["_settings"], name) if name in TABLES and "_settings" in self.__dict__ else None
        return super().__getattr__(name) if found is None else found
