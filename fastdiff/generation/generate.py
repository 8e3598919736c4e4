"""`generate`: exactly n samples in files, by one process or many, which go on after any stop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import operator
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map
from tqdm import tqdm

from fastdiff.generation.folder import Folder
from fastdiff.generation.formats import FORMATS, check_images, check_samples, to_images
from fastdiff.generation.workers import Worker, checked, this_worker
from fastdiff.guidance import Guidance
from fastdiff.names import short, unknown
from fastdiff.options import RUN_DEFAULTS
from fastdiff.run.arguments import check_shape
from fastdiff.run.controlled import AdaptiveEngine
from fastdiff.run.network import check_model, placement, sample_shape, stated
from fastdiff.run.planned import PlanEngine
from fastdiff.run.weights import fingerprint
from fastdiff.sampler import Sampler
from fastdiff.values import flag, whole

Condition = Callable[[torch.Tensor], Mapping[str, Any]]

DEFAULT_BATCH = 64
SHARD = 512
"""Samples of a shard, in whole batches: what a kill loses at most."""
OWN = ("x", "noise", "first_sample", "out", "return_trajectory", "return_info", "callback", "correct_xt")
"""Arguments of `sample` that have no meaning for many batches."""
_LOOK = 2.0
"""Seconds between two looks at what the other workers have done."""
_ADDRESS = re.compile(" at 0x[0-9a-f]+")
"""In the text of an object that has none of its own: another in every process."""
_SOME = 64
"""Numbers of a tensor that the manifest names."""


def generate(
    model: Callable[..., Any],
    n: int,
    out: str | Path,
    *,
    batch: int | None = None,
    format: str = "safetensors",
    seed: int = 0,
    cond: Condition | None = None,
    uncond: Condition | None = None,
    model_kwargs: Condition | None = None,
    decode: Callable[[torch.Tensor], Any] | None = None,
    shard: int | None = None,
    worker: tuple[int, int] | None = None,
    progress: bool = True,
    **options: Any,
) -> bool:
    """Samples 0 to n − 1 of a seed, in files below `out`; the same bytes by any number of workers.

    Sample i depends on (seed, i) and on the shape of the network's batch, which is `batch` in every call: the last one
    is filled up with samples that are then dropped. Workers exchange nothing. Worker w of W makes the shards w, w + W,
    w + 2·W, ...; a shard that is there is not made again, so that the same call goes on after any stop, also with
    another number of workers. docs/generation.md has recipes for torchrun, Slurm and Ray.

    Args:
        model: as in `fastdiff.sample`.
        n: number of samples, at least 1.
        out: the folder; made if it does not exist.
        batch: samples of one call of the network; default: the first number of `shape`, else 64.
        format: "safetensors" (the samples in the state's dtype, `samples` in each shard's file), "npz" (all in one
            `samples.npz` with arr_0, uint8 (n, H, W, C), as FID tools read it), "png" (`images/0000000.png`, ...) or
            "webdataset" (a tar archive for each shard).
        seed: of all samples.
        cond, uncond, model_kwargs: as in `fastdiff.sample` (the first two with guidance), but functions: numbers of
            samples, an int64 tensor (batch,) on the CPU, to the conditioning of these samples, a dict of tensors with
            first dimension batch, which are moved to the network's device.
        decode: samples (batch, ...) to what is written; for the formats of images uint8 (batch, H, W, C). Default:
            [-1, 1] to 0 ... 255 for these, and nothing for "safetensors".
        shard: samples of one file, rounded up to whole batches; default: about 512.
        worker: (w, W); default: what torchrun or Slurm says in the environment, else (0, 1).
        progress: show a bar with the time left, of all workers together, in worker 0.
        **options: of `fastdiff.sample`: method, steps, schedule, guidance, shape, ...

    Returns:
        Whether all samples are there now: False where other workers still have some to make.

    Raises:
        ValueError, TypeError: bad arguments, or a folder that holds another generation.
        FloatingPointError: a sample with NaN or Inf; its number is named, and its shard is not written.
    """
    check_model(model)
    n = whole("n", n, 1, 2**31 - 1, "50000")
    seed = whole("seed", seed, -(2**63), 2**64 - 1, "0, since sample i is the i-th of one seed")
    if format not in FORMATS:
        raise ValueError(unknown("format", format, tuple(FORMATS)))
    for name in OWN:
        if name in options:
            raise TypeError(f"generate takes no {name}: it makes every batch itself, from seed and shape")
    conditions = {"cond": cond, "uncond": uncond, "model_kwargs": model_kwargs}
    for name, given in conditions.items():
        if given is not None and not callable(given):
            raise TypeError(
                f"{name}={short(given)}: expected a function of the samples' numbers, such as "
                f"{name}=lambda i: {{'y': i % 10}}"
            )
    if decode is not None and not callable(decode):
        raise TypeError(f"decode={short(decode)}: expected a function of samples (batch, ...)")
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"out={short(out)}: expected a folder, such as 'samples'")
    progress = flag("progress", progress)
    one = this_worker() if worker is None else _worker(worker)
    shape = _shape(model, options.pop("shape", None), batch)
    if "device" not in options and placement(model)[0] is None and torch.cuda.is_available():
        options["device"] = torch.device("cuda", one.local % torch.cuda.device_count())
    run = {name: options.pop(name) for name in [*options] if name in RUN_DEFAULTS}
    if options.get("plan") is None and options.get("schedule") is None:
        options["schedule"] = stated(model, "schedule")
    sampler = Sampler(**options)
    where = run.get("device") or placement(model)[0] or torch.device("cpu")
    size = -(-(SHARD if shard is None else whole("shard", shard, 1, 2**31 - 1, "512")) // shape[0]) * shape[0]
    kind = FORMATS[format]
    folder = Folder(
        out,
        {
            "n": n,
            "batch": shape[0],
            "shard": size,
            "seed": seed,
            "shape": list(shape[1:]),
            "samples": format,
            "decode": _name(decode),
            "sampler": _sampler_name(sampler),
            # Another one rounds otherwise.
            "backend": options.get("backend"),
            "conditions": {
                name: None if given is None else _values(name, given, n, shape[0]) for name, given in conditions.items()
            },
            "run": {name: _name(value, sampler) for name, value in sorted(run.items()) if name != "device"},
            "network": fingerprint(model),
        },
    )

    def made(first: int, stop: int) -> torch.Tensor:
        """Samples first to stop − 1, on the CPU, as they are written."""
        numbers = _numbers(first, n, shape[0])
        known = {name: given for name, given in conditions.items() if given is not None}
        own = {name: _moved(_called(name, given, numbers), where) for name, given in known.items()}
        x: torch.Tensor = sampler(model, **{**run, **own, "shape": shape, "seed": seed, "first_sample": first})
        bad = (~torch.isfinite(x[: stop - first])).flatten(1).any(1)
        if bool(bad.any()):
            raise FloatingPointError(
                f"sample {first + int(bad.nonzero()[0])} has NaN or Inf; check_finite=True names the step"
            )
        if kind.images:
            return check_images(to_images(x) if decode is None else decode(x), shape[0])[: stop - first]
        return check_samples(x if decode is None else decode(x), shape[0])[: stop - first]

    kinds = set[str]()
    with _Progress(folder, one, progress) as bar, _writer() as write:
        for k in range(one.number, folder.shards, one.workers):
            if k in bar.finished:
                continue
            numbers, parts = folder.range(k), []
            for first in range(numbers.start, numbers.stop, shape[0]):
                stop = min(first + shape[0], numbers.stop)
                parts.append(made(first, stop))
                kinds.add(f"{parts[-1].dtype} {tuple(parts[-1].shape[1:])}")
                if len(kinds) > 1:
                    raise ValueError(
                        f"decode made {' and '.join(sorted(kinds))} by samples {first} to {stop - 1}: expected one "
                        "dtype and one shape for all samples"
                    )
                folder.begin()
                bar.add(stop - first)
            write(folder.save, k, kind.files(k, numbers.start, torch.cat(parts), seed))
    return folder.complete()


@contextlib.contextmanager
def _writer() -> Iterator[Callable[..., None]]:
    """Files are encoded and written while the next shard is sampled: one at a time, so that memory holds two."""
    waiting: list[concurrent.futures.Future[None]] = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def write(task: Callable[..., None], *arguments: Any) -> None:
            for earlier in waiting:
                earlier.result()
            waiting[:] = [pool.submit(task, *arguments)]

        yield write
        for last in waiting:
            last.result()


class _Progress:
    """The bar of all workers together, which worker 0 shows: what is done is seen in the folder."""

    def __init__(self, folder: Folder, worker: Worker, show: bool) -> None:
        self.folder, self.worker = folder, worker
        self.finished = folder.finished()
        self.own, self.looked = 0, time.monotonic()
        done = self._others()
        self.bar = tqdm(
            total=folder.n, initial=done, desc="generate", unit="sample", disable=not show or worker.number > 0
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.bar.disable:
            self._look()
        self.bar.close()

    def _look(self) -> None:
        self.looked = time.monotonic()
        self.bar.update(self._others() + self.own - self.bar.n)

    def _others(self) -> int:
        """Samples in finished shards that this run did not make."""
        mine = {k for k in range(self.worker.number, self.folder.shards, self.worker.workers) if k not in self.finished}
        return sum(len(self.folder.range(k)) for k in self.folder.finished() - mine if k < self.folder.shards)

    def add(self, samples: int) -> None:
        """So many more of this worker's own."""
        self.own += samples
        if self.bar.disable:
            return
        if time.monotonic() - self.looked > _LOOK:
            self._look()
        else:
            self.bar.update(samples)


def _shape(model: Any, shape: Any, batch: int | None) -> tuple[int, ...]:
    if shape is not None:
        size = check_shape(shape)
        return size if batch is None else (_batch(batch), *size[1:])
    one = sample_shape(model)
    if one is None:
        raise ValueError(
            "cannot tell the shape of a sample: give shape=(batch, C, H, W), or the model an attribute sample_shape = "
            "(C, H, W)"
        )
    return (DEFAULT_BATCH if batch is None else _batch(batch), *one)


def _worker(given: Any) -> Worker:
    try:
        number, count = (operator.index(one) for one in given)
    except (TypeError, ValueError):
        raise TypeError(f"worker={short(given)}: expected (number, count), such as worker=(0, 8)") from None
    return checked(number, count)


def _batch(batch: Any) -> int:
    return whole("batch", batch, 1, 2**31 - 1, "64")


def _numbers(first: int, n: int, batch: int) -> torch.Tensor:
    """Of the samples of a batch: the last one is filled up with the last sample's."""
    return torch.arange(first, first + batch).clamp(max=n - 1)


def _called(name: str, condition: Condition, numbers: torch.Tensor) -> Mapping[str, Any]:
    """The conditions of the samples with these numbers."""
    try:
        given = condition(numbers)
    except Exception as error:
        raise TypeError(
            f"{name} failed [{type(error).__name__}: {short(str(error))}]: it is called with the numbers of a whole "
            f"batch, an int64 tensor ({len(numbers)},), and returns tensors with that first dimension, such as "
            f"{name}=lambda i: {{'y': i % 10}}, or of a function of one number, "
            f"{name}=lambda i: {{'y': torch.tensor([label(int(k)) for k in i])}}"
        ) from error
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} returned {short(given)}: expected a dict of the network's arguments, {{'y': i % 10}}")
    return given


def _moved(conditions: Mapping[str, Any], where: Any) -> dict[str, Any]:
    return tree_map(lambda v: v.to(where) if isinstance(v, torch.Tensor) else v, dict(conditions))


def _sampler_name(sampler: Sampler) -> str:
    """What the sampler is, to the last coefficient of its plan, or of its adaptive method."""
    if isinstance(sampler.engine, AdaptiveEngine):
        told = _ADDRESS.sub("", repr(sampler.engine.method))
        content = f"method {hashlib.sha256(told.encode()).hexdigest()[:16]}"
    else:
        content = f"plan {sampler.plan.fingerprint()[:16]}"
    return f"{sampler!r}, clip={sampler.clip!r}, {content}"


def _values(name: str, condition: Condition, n: int, batch: int) -> list[Any]:
    """What tells a function of the samples' numbers from another: what it gives for the first batch and the last."""
    firsts = 0, (n - 1) // batch * batch
    return [_content(_called(name, condition, _numbers(first, n, batch))) for first in firsts]


def _content(value: Any) -> Any:
    """A value of JSON that stands for tensors: whole numbers by their hash, of real ones some."""
    if isinstance(value, Mapping):
        return {str(name): _content(one) for name, one in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_content(one) for one in value]
    if not isinstance(value, torch.Tensor):
        return _name(value)
    flat = value.detach().flatten().cpu()
    if value.is_floating_point():
        some = flat[:: max(1, len(flat) // _SOME)][:_SOME].double()
        return [f"{value.dtype} {tuple(value.shape)}", *(float(f"{number:.4g}") for number in some.tolist())]
    content = flat.contiguous().view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()[:16]}"


def _name(value: Any, sampler: Sampler | None = None) -> Any:
    """What stands for an argument, the same in every process: a function of time by its values in the plan, another one
    by its name, a network by its weights, a form of guidance by its fields."""
    if isinstance(value, (torch.Tensor, Mapping)):
        return _content(value)
    kind = type(value).__qualname__
    if isinstance(value, torch.nn.Module):
        return [kind, fingerprint(value)]
    if isinstance(value, Guidance):
        return {kind: {name: _name(one, sampler) for name, one in sorted(vars(value).items())}}
    if not callable(value):
        return _ADDRESS.sub("", repr(value))
    name = getattr(value, "__qualname__", kind)
    if sampler is not None and isinstance(sampler.engine, PlanEngine):
        with contextlib.suppress(Exception):
            return [name, *(float(f"{float(value(t)):.4g}") for t in sampler.plan.times)]
    return name
