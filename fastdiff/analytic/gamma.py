"""Gamma of a network by Monte Carlo over data, for Analytic-DPM (Bao et al. 2022, arXiv 2201.06503).

gamma = fastdiff.analytic.estimate_gamma(model, data, path="gamma.json")
x = fastdiff.sample(model, method="analytic_ddpm", gamma=gamma)
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate
from tqdm import tqdm

from fastdiff.bind import in_range
from fastdiff.names import one_of
from fastdiff.ops.philox import integers
from fastdiff.prediction import PREDICTIONS, along, conversion
from fastdiff.run.arguments import default_schedule, need_values, resolve_device, warn_of_training
from fastdiff.run.network import Network, check_kwargs, placement, stated
from fastdiff.run.noise import randn
from fastdiff.schedules import NoiseSchedule, resolve
from fastdiff.schedules.grids import MAX_STEPS
from fastdiff.solvers.gamma import FORMAT, PARTS, Arrays, Gamma, ending, read, whole_number, write
from fastdiff.values import flag, floats, whole

SAVE_EVERY = 10.0
"""Seconds between saves of an unfinished estimate."""
CONTINUOUS_TIMES = 100
NOISIEST = -6.0
"""Lambda at which the grid of a continuous schedule starts, where the schedule itself starts noisier."""
ORDER = 2
"""Philox stream of the order in which a tensor or data set is gone through."""

Batch = tuple[torch.Tensor, dict[str, Any]]


def estimate_gamma(
    model: Callable[..., Any],
    data: Any,
    schedule: str | NoiseSchedule | None = None,
    *,
    prediction: str | None = None,
    times: int | Sequence[float] | None = None,
    samples_per_time: int = 1000,
    batch_size: int = 128,
    seed: int = 0,
    control_variate: bool = True,
    path: str | Path | None = None,
    progress: bool = True,
    model_kwargs: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Gamma:
    """Gamma(t) = E |eps(x_t, t)|² / d, by Monte Carlo (section 3.1 of the paper, with eps instead of the score).

    Every sample of the data is used at every time, in one pass: `samples_per_time · len(times)` evaluations. Noise is
    `fastdiff.randn(seed=seed, draw=<position of the time>, first_sample=<position of the sample>)`, so the estimate
    does not depend on where it was interrupted.

    Args:
        model: as in `fastdiff.sample`.
        data: x0, floating point: a tensor (M, ...); a pair (tensor, kwargs) with kwargs a dict of tensors (M, ...) that
            the network is given beside x; a map-style data set of x0 or (x0, kwargs); or a loader or list of batches of
            either (a list of tensors (B, ...) is always one of batches). Tensors and data sets are gone through in an
            order drawn from `seed`, batches in their own and from the beginning again where they end. To resume, a
            loader must give the same order again (no shuffling).
        schedule: a `NoiseSchedule` or its name; default: `model.schedule`, else "ddpm".
        prediction: what the network gives; default: `model.prediction`, else "eps".
        times: schedule times, or how many. Default: all N of a discrete schedule, 100 of a continuous one. A number
            gives times even in the index (discrete) or in lambda. Times with alpha = 0 are left out.
        samples_per_time: how many (x0, noise) at each time. The standard error of the plain mean is about
            Gamma·sqrt(2/(d·samples_per_time)).
        batch_size: rows of one evaluation, for tensors and data sets.
        seed: of the noise and of the order.
        control_variate: take away c·(|noise|²/d − 1), which has mean 0, with c = Gamma²: the same expectation, up to a
            bias of 4/(d·samples_per_time), and much less variance where eps is nearly the noise, at high noise, where
            1 − Gamma is small. False: the paper's plain mean.
        path: a file ending in .json or .safetensors. An unfinished estimate is saved there every 10 seconds and when it
            is interrupted, and continued by the same call; a finished one is loaded. The network and the data are not
            in the file: after a change of either, delete it.
        progress: show a bar.
        model_kwargs: given with every call, the same for all samples.
        device: where to run; default: the model's.

    Raises:
        ValueError: bad arguments; data of other shapes; a file at `path` from other arguments; a non-finite output.
        TypeError: values of the wrong type.
    """
    work = _Work(
        model,
        data,
        schedule,
        prediction,
        times,
        samples_per_time,
        batch_size,
        seed,
        control_variate,
        model_kwargs,
        device,
    )
    if path is not None and Path(path).exists():
        done = work.load(path)
        if done is not None:
            return done
    elif path is not None:
        ending(path)
        if not Path(path).absolute().parent.is_dir():
            raise ValueError(f"path={str(path)!r}: there is no folder {str(Path(path).parent)!r}; make it first")
    with torch.no_grad():
        return work.run(path, progress)


@dataclass(frozen=True)
class _State:
    """How far an estimate has come. Replaced as a whole or appended to: consistent whenever an interruption comes.

    Attributes:
        first: number of samples that are done at every time.
        output, noise: (n,) sums over them of |eps|²/d and |noise|²/d.
        pairs: the same two of the batch in progress, for the times that are done.
    """

    first: int
    output: np.ndarray
    noise: np.ndarray
    pairs: list[tuple[float, float]] = field(default_factory=list)


class _Work:
    """An estimate under way."""

    def __init__(
        self,
        model: Callable[..., Any],
        data: Any,
        schedule: str | NoiseSchedule | None,
        prediction: str | None,
        times: int | Sequence[float] | None,
        samples: int,
        batch_size: int,
        seed: int,
        control_variate: bool,
        model_kwargs: Mapping[str, Any] | None,
        device: torch.device | str | None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable as model(x, t, **kwargs), got {type(model).__name__}")
        for name, value in (("samples_per_time", samples), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number, at least 1, such as {name}=100")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(f"seed={seed!r}: expected an integer")
        check_kwargs(model_kwargs)
        self.model, self.data, self.kwargs = model, data, dict(model_kwargs or {})
        said = prediction if prediction is not None else stated(model, "prediction")
        if said is not None:
            one_of("prediction", said, PREDICTIONS)
        named = schedule if schedule is not None else stated(model, "schedule")
        self.schedule = resolve(default_schedule(said) if named is None else named)
        self.prediction = along(said, self.schedule)
        warn_of_training(model)
        self.times = _times(self.schedule, times)
        self.samples, self.batch_size, self.seed = int(samples), int(batch_size), int(seed)
        self.control_variate = flag("control_variate", control_variate)
        found, self.dtype = placement(model)
        self.device = resolve_device(device, None, found)
        need_values(self.device, "estimate_gamma")
        self.state = _State(0, np.zeros(len(self.times)), np.zeros(len(self.times)))

    def settings(self) -> dict[str, str]:
        """What a file must agree with, so that it belongs to this estimate."""
        return {
            "schedule": self.schedule.fingerprint(),
            "prediction": self.prediction,
            "samples_per_time": str(self.samples),
            "batch_size": str(self.batch_size),
            "seed": str(self.seed),
            "control_variate": str(self.control_variate),
            "times": hashlib.sha256(json.dumps(self.times).encode()).hexdigest(),
        }

    def save(self, path: str | Path) -> None:
        """The state, for `load`."""
        state, pairs = self.state, np.array(self.state.pairs, dtype=np.float64).reshape(-1, 2)
        arrays = {
            "times": np.array(self.times),
            "output": state.output,
            "noise": state.noise,
            "part_output": pairs[:, 0],
            "part_noise": pairs[:, 1],
        }
        meta = {"first": str(state.first), "samples": str(self.samples), "settings": json.dumps(self.settings())}
        write(path, arrays, {"format": FORMAT, **meta})

    def load(self, path: str | Path) -> Gamma | None:
        """The finished estimate, or None with the state of an unfinished one taken over."""
        arrays, meta = read(path)
        expected = self.settings()
        try:
            found = json.loads(meta.get("settings", "{}"))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"{path} is damaged: its settings are {meta['settings']!r:.60}; delete the file")
        wrong = [f"{k}={found.get(k)!s:.60} (now {v})" for k, v in expected.items() if found.get(k) != v]
        if wrong:
            raise ValueError(
                f"{path} holds an estimate with other arguments: {', '.join(wrong)}; call with those, give another "
                "path, or delete the file"
            )
        if tuple(arrays["times"].tolist()) != self.times:
            raise ValueError(f"{path} is damaged: its times are not those of its settings; delete the file")
        if "values" in arrays:
            done = Gamma.load(path)
            if done.schedule != self.schedule.fingerprint() or done.count != self.samples:
                raise ValueError(f"{path} is damaged: its schedule and count are not those of its settings; delete it")
            return done
        self.state = self._unfinished(path, arrays, meta)
        return None

    def _unfinished(self, path: str | Path, arrays: Arrays, meta: Mapping[str, str]) -> _State:
        """The state in a file, whose every number must be one that a state can have."""
        count, first = len(self.times), whole_number(path, meta, "first")
        sums = [arrays[name] for name in PARTS]
        output, noise, part, part_noise = (len(values) for values in sums)
        why = ""
        if output != count or noise != count:
            why = f"it has {output} and {noise} sums for {count} times"
        elif part > count or part != part_noise:
            why = f"of a batch it has {part} and {part_noise} sums, for at most {count} times"
        elif first >= self.samples:
            why = f"{first} of {self.samples} samples are done, and there is no result"
        elif any((values < 0).any() for values in sums) or (not first and any(values.any() for values in sums[:2])):
            why = "its sums of squares are not those of so many samples"
        if why:
            raise ValueError(f"{path} is damaged: {why}; delete the file to begin again")
        pairs = list(zip(arrays["part_output"].tolist(), arrays["part_noise"].tolist(), strict=True))
        return _State(first, arrays["output"], arrays["noise"], pairs)

    def run(self, path: str | Path | None, progress: bool) -> Gamma:
        saved = time.monotonic()
        count = len(self.times)
        initial = self.state.first * count
        with tqdm(total=self.samples * count, initial=initial, desc="Gamma", unit="eval", disable=not progress) as bar:
            try:
                for x0, kwargs, first in self.remaining():
                    network = Network(self.model, len(x0), {**self.kwargs, **kwargs})
                    bar.update(len(x0) * len(self.state.pairs))
                    for k in range(len(self.state.pairs), count):
                        self.state.pairs.append(self.evaluate(network, x0, first, k))
                        bar.update(len(x0))
                        if path is not None and time.monotonic() - saved > SAVE_EVERY:
                            self.save(path)
                            saved = time.monotonic()
                    pairs = np.array(self.state.pairs)
                    self.state = _State(
                        first + len(x0), self.state.output + pairs[:, 0], self.state.noise + pairs[:, 1]
                    )
            except BaseException:
                if path is not None:
                    self.save(path)
                raise
        plain, noise = self.state.output / self.samples, self.state.noise / self.samples
        values = plain
        if self.control_variate:
            values = np.maximum(plain - np.minimum(plain, 1.0) ** 2 * (noise - 1.0), 0.0)
        gamma = Gamma(self.times, tuple(values.tolist()), self.schedule.fingerprint(), self.samples)
        if path is not None:
            gamma.save(path, {"settings": json.dumps(self.settings())})
        return gamma

    def remaining(self) -> Iterator[tuple[torch.Tensor, dict[str, Any], int]]:
        """The batches that are not done, with the position of their first sample."""
        position, shape = 0, None
        for item in _stream(self.data, self.batch_size, self.samples, self.seed):
            x0, kwargs = _batch(item)
            shape = tuple(x0.shape[1:]) if shape is None else shape
            if tuple(x0.shape[1:]) != shape:
                raise ValueError(
                    f"the data has samples of shape {shape} and of {tuple(x0.shape[1:])}; expected one shape"
                )
            rows = min(len(x0), self.samples - position)
            if position >= self.state.first:

                def put(leaf: Any, rows: int = rows) -> Any:
                    return leaf[:rows].to(self.device) if isinstance(leaf, torch.Tensor) else leaf

                if not bool(torch.isfinite(x0).all()):
                    raise ValueError(f"the data has NaN or Inf in samples {position} to {position + len(x0) - 1}")
                yield put(x0), tree_map(put, kwargs), position
            position += rows
            if position == self.samples:
                return

    def evaluate(self, network: Network, x0: torch.Tensor, first: int, k: int) -> tuple[float, float]:
        """Sums over the batch of |eps|²/d and |noise|²/d at the k-th time."""
        state = torch.float64 if (self.dtype or x0.dtype) == torch.float64 else torch.float32
        point = self.schedule.at(self.times[k])
        noise = randn(tuple(x0.shape), seed=self.seed, draw=k, first_sample=first, dtype=state, device=self.device)
        x = point.alpha * x0.to(state) + point.sigma * noise
        clock = float(in_range(np.array(point.model_time), state, "the network's time"))
        t = torch.full((len(x),), clock, dtype=state, device=self.device)
        out = network(x.to(self.dtype or state), t)
        cu, cg = conversion(self.prediction, "noise", point.alpha, point.sigma)
        eps = cu * x.double() + cg * out.double()
        size = x[0].numel()
        output, squared = (float(v.square().sum()) / size for v in (eps, noise.double()))
        if not math.isfinite(output):
            raise ValueError(f"the model gave NaN or Inf at t={point.t:g} for samples {first} to {first + len(x) - 1}")
        return output, squared


def _times(schedule: NoiseSchedule, times: int | Sequence[float] | None) -> tuple[float, ...]:
    """Strictly increasing times with signal and with noise."""
    if times is None:
        times = schedule.num_train if schedule.num_train is not None else CONTINUOUS_TIMES
    if isinstance(times, bool) or (isinstance(times, int | np.integer) and times < 1):
        raise ValueError(f"times={times!r}: expected a number of times, at least 1, or the schedule times themselves")
    if isinstance(times, int | np.integer):
        whole("times", times, 1, MAX_STEPS, "times=100")
        if schedule.num_train is not None:
            chosen = np.unique(np.round(np.linspace(0.0, schedule.num_train - 1.0, int(times))))
        else:
            low, high = schedule.lam(schedule.t_max), schedule.lam(schedule.t_floor)
            chosen = np.asarray(schedule.inverse_lambda(np.linspace(high, max(low, NOISIEST), int(times))))
            chosen[0] = schedule.t_floor
            if low >= NOISIEST:
                chosen[-1] = schedule.t_max if times > 1 else chosen[-1]
    else:
        chosen = np.unique(floats("times", times, "a number of times, or the schedule times themselves"))
        if chosen.ndim != 1 or not chosen.size:
            raise ValueError(f"times={times!r}: expected at least one schedule time")
        schedule.check(chosen)
        if np.any(schedule.sigma(chosen) == 0.0):
            raise ValueError(f"times has {chosen[0]:g}, where sigma = 0 and there is no noise to predict: leave it out")
    chosen = chosen[np.asarray(schedule.alpha(chosen)) > 0.0]
    if not chosen.size:
        raise ValueError(f"times={times!r}: alpha = 0 at all of them; expected times with signal")
    return tuple(chosen.tolist())


def _order(count: int, seed: int) -> np.ndarray:
    """A permutation of 0 .. count − 1 that depends on the seed alone."""
    return np.argsort(integers(count, seed, 0, 0, ORDER), kind="stable")


def _stream(data: Any, batch_size: int, samples: int, seed: int) -> Iterator[Any]:
    """Batches without end, or at least `samples` rows."""
    pair = isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping)
    if isinstance(data, torch.Tensor) or pair:
        x0, kwargs = _batch(data)
        order = _order(len(x0), seed)
        for first in range(0, samples, batch_size):
            rows = torch.from_numpy(order[np.arange(first, min(first + batch_size, samples)) % len(order)]).to(
                x0.device
            )
            yield x0[rows], {k: v[rows] for k, v in kwargs.items()}
    elif isinstance(data, list | tuple) and data and _is_batch(data[0]):
        yield from _again(data, samples)
    elif hasattr(data, "__getitem__") and _sized(data) and not isinstance(data, str | Mapping):
        if not len(data):
            raise ValueError("the data set is empty; expected at least one sample")
        order = _order(len(data), seed)
        for first in range(0, samples, batch_size):
            chosen = order[np.arange(first, min(first + batch_size, samples)) % len(order)]
            try:
                batch = default_collate([data[int(i)] for i in chosen])
            except (TypeError, RuntimeError) as error:
                raise TypeError(f"the data set's samples cannot be put in one batch: {error}") from None
            yield batch
    elif isinstance(data, Iterable) and not isinstance(data, str | Mapping | np.ndarray):
        yield from _again(data, samples)
    else:
        raise TypeError(
            f"data got {type(data).__name__}; expected a tensor (M, ...), a pair (tensor, {{'y': labels}}), "
            "a data set or a loader"
        )


def _is_batch(item: Any) -> bool:
    """Whether an entry of a list is a batch. Samples of one dimension, and labels of none, can only be samples."""
    try:
        _batch(item)
    except (TypeError, ValueError):
        return False
    return True


def _again(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """The batches, from the beginning again where they end before there are `samples`."""
    given = 0
    while given < samples:
        before = given
        for item in batches:
            given += len(_batch(item)[0])
            yield item
        if given == before:
            raise ValueError(
                f"the data ended after {given} of samples_per_time={samples} and cannot be gone through again: "
                f"give a loader or a tensor instead of an iterator, or samples_per_time={max(given, 1)}"
            )


def _sized(data: Any) -> bool:
    try:
        return len(data) >= 0
    except TypeError:
        # An array without a dimension has the method and no length.
        return False


def _batch(item: Any) -> Batch:
    """(x0, kwargs) of what the data gave."""
    kwargs: dict[str, Any] = {}
    if isinstance(item, torch.Tensor):
        x0 = item
    elif isinstance(item, tuple | list) and len(item) == 1 and isinstance(item[0], torch.Tensor):
        x0 = item[0]
    elif (
        isinstance(item, tuple | list)
        and len(item) == 2
        and isinstance(item[0], torch.Tensor)
        and isinstance(item[1], Mapping)
    ):
        x0, kwargs = item[0], dict(item[1])
    else:
        got = ", ".join(type(v).__name__ for v in item) if isinstance(item, tuple | list) else type(item).__name__
        raise TypeError(
            f"the data gave ({got}); expected x0, or (x0, kwargs) with a dict of what the network is given beside x, "
            "such as (images, {'y': labels})"
        )
    if not x0.dtype.is_floating_point:
        raise TypeError(
            f"the data has dtype {x0.dtype}; expected floating point, scaled as the network was trained: [-1, 1]"
        )
    if x0.ndim < 2 or not x0.numel():
        raise ValueError(
            f"the data has shape {tuple(x0.shape)}; expected (batch, ...) with at least one sample and one element"
        )
    for key, value in kwargs.items():
        if not isinstance(value, torch.Tensor) or value.ndim < 1 or len(value) != len(x0):
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"the data's {key!r} is {shape}; expected a tensor with one entry for each of the {len(x0)} samples; "
                "what is the same for all goes into model_kwargs"
            )
    return x0, kwargs
