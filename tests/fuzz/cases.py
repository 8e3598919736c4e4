"""The calls. Each maker returns a call and what must hold of its result, from random numbers alone."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastdiff
from fastdiff import analytic, cli, guidance, losses, schedules
from fastdiff.options import BEGIN_DEFAULTS, INVERT_DEFAULTS, SAMPLE_DEFAULTS
from fastdiff.plan import Plan
from fastdiff.schedules import resolve
from fastdiff.schedules.grids import grid
from fastdiff.solvers import METHODS, Method
from fastdiff.solvers.base import Option

from . import oracles
from .values import ADAPTIVE, FIXED, SCHEDULES, SHAPES, SPACINGS, doubled, hostile, net, odd_model, option, state


class Case(NamedTuple):
    """A call, and what must hold of its result.

    Attributes:
        function, args, kwargs: what is called, as the report prints it.
        check: called with the result; raises AssertionError.
        exits: whether SystemExit is an answer.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    check: Callable[[Any], None] | None = None
    exits: bool = False

    def __str__(self) -> str:
        shown = [_text(a) for a in self.args] + [f"{k}={_text(v)}" for k, v in self.kwargs.items()]
        name = getattr(self.function, "__qualname__", repr(self.function))
        return f"{name}({', '.join(shown)})"


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)} {value.dtype}"
    text = getattr(value, "__name__", None) if callable(value) else None
    return text or repr(value)[:120].encode("ascii", "backslashreplace").decode()


def spoil(r: random.Random, kwargs: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """One or two arguments with values that are most likely wrong; now and then a name that no call has."""
    made = dict(kwargs)
    for _ in range(r.choice([1, 1, 2])):
        name = r.choice(names) if r.random() < 0.95 else r.choice(["nope", "num_inference_steps", "progess", "y"])
        made[name] = hostile(r)
    # A bar on the terminal is no result.
    if "progress" in made and made["progress"] is True:
        made["progress"] = False
    return made


def sampling(r: random.Random, adaptive: float = 0.1) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A model and the arguments of `sample` that are right, or nearly."""
    name = r.choice(ADAPTIVE) if r.random() < adaptive else r.choice(FIXED)
    method, schedule = METHODS[name], r.choice(SCHEDULES)
    made: dict[str, Any] = {"method": name, "schedule": schedule, "shape": r.choice(SHAPES), "seed": r.randrange(2**40)}
    if name not in ADAPTIVE:
        made["steps"] = r.randint(1, 7)
        if r.random() < 0.4:
            made["spacing"] = r.choice(SPACINGS)
    kind = resolve(schedule).kind
    made["prediction"] = "flow" if kind == "flow" else r.choice(["eps", "x0", "v", "score"])
    if r.random() < 0.3:
        made["dtype"] = torch.float64
    if r.random() < 0.2:
        made["clip"] = r.choice([(-1.0, 1.0), "dynamic", fastdiff.Dynamic(0.9, 1.0)])
    for key, o in method.options.items():
        if r.random() < 0.2:
            made[key] = option(r, o)
    model: Callable[..., Any] = doubled if str(made.get("variance", "")).startswith("learned") else net
    if r.random() < 0.25:
        y = torch.zeros(made["shape"][0])
        scale: Any = r.choice([0.0, 1.0, 3.0, guidance.Rescale(2.0, 0.5), guidance.Interval(2.0, 0.1, 3.0)])
        made.update(cond={"y": y}, uncond={"y": y}, guidance=scale)
    elif r.random() < 0.15:
        made["classifier_grad"] = lambda x, t: -0.1 * x
    return model, made


def valid_sample(r: random.Random) -> Case:
    model, made = sampling(r)
    return Case(fastdiff.sample, (model,), made, oracles.of_sample(model, made))


def hostile_sample(r: random.Random) -> Case:
    model, made = sampling(r)
    names = [*SAMPLE_DEFAULTS, *METHODS[made["method"]].options, "rho", "steps_offset", "final"]
    made = spoil(r, made, names)
    return Case(fastdiff.sample, (model if r.random() < 0.95 else hostile(r),), made)


def odd_network(r: random.Random) -> Case:
    _, made = sampling(r)
    if r.random() < 0.3:
        made["check_finite"] = True
    return Case(fastdiff.sample, (odd_model(r),), made)


def own_start(r: random.Random) -> Case:
    """x of any kind, and times of one's own."""
    model, made = sampling(r)
    shape = made.pop("shape")
    x = state(r, shape) if r.random() < 0.5 else hostile(r)
    if r.random() < 0.6 and "steps" in made:
        schedule = resolve(made["schedule"])
        times = sorted((r.uniform(schedule.t_clean, schedule.t_max) for _ in range(r.randint(2, 6))), reverse=True)
        if r.random() < 0.3:
            times.insert(1, math.nextafter(times[0], 0.0))
        made["spacing"] = times
        del made["steps"]
    check = oracles.unchanged(x, made.get("clip")) if isinstance(x, torch.Tensor) else None
    return Case(fastdiff.sample, (model, x), made, check)


def own_loop(r: random.Random) -> Case:
    model, made = sampling(r, adaptive=0.03)
    run = {k: made.pop(k) for k in ("shape", "seed") if k in made}
    for name in ("cond", "uncond", "classifier_grad"):
        made.pop(name, None)
    scale = made.pop("guidance", None)
    if scale is not None:
        run["guidance"] = scale
    begun = spoil(r, run, list(BEGIN_DEFAULTS)) if r.random() < 0.4 else run

    def loop(**given: Any) -> torch.Tensor:
        sampler = fastdiff.Sampler(**made)
        current = sampler.begin(**given)
        while not current.done:
            out = hostile_output if hostile_output is not None else model(current.input, current.time)
            current = sampler.step(current, out)
        return current.x

    hostile_output = hostile(r) if r.random() < 0.1 else None
    loop.__qualname__ = f"loop of Sampler({', '.join(f'{k}={_text(v)}' for k, v in made.items())})"
    check = oracles.as_one_call(model, made, run) if begun is run and hostile_output is None else None
    return Case(loop, (), begun, check)


def inverted(r: random.Random) -> Case:
    model, made = sampling(r)
    shape = made.pop("shape")
    made.pop("seed")
    run = {k: made.pop(k) for k in ("cond", "uncond", "classifier_grad", "guidance") if k in made}
    if r.random() < 0.3:
        run = spoil(r, run, list(INVERT_DEFAULTS))
    x = state(r, shape) if r.random() < 0.9 else hostile(r)

    def invert(model: Any, x: Any, **given: Any) -> torch.Tensor:
        return fastdiff.Sampler(**made).invert(model, x, **given)

    invert.__qualname__ = f"Sampler({', '.join(f'{k}={_text(v)}' for k, v in made.items())}).invert"
    return Case(invert, (model, x), run, oracles.deterministic_inverse(made))


def planned(r: random.Random) -> Case:
    _, made = sampling(r, adaptive=0.02)
    kept = {k: v for k, v in made.items() if k in ("method", "steps", "schedule", "spacing")}
    kept.update({k: v for k, v in made.items() if k in METHODS[made["method"]].options})
    if r.random() < 0.5:
        kept = spoil(r, kept, [*kept, "t_start", "t_end", "invert", "rho", "final", "steps_offset", "prediction"])
    return Case(fastdiff.plan, (), kept, oracles.round_trip)


def damaged_plan(r: random.Random) -> Case:
    """A plan's JSON with a value, a name or a character changed."""
    data = json.loads(fastdiff.plan(r.choice(FIXED), r.randint(1, 3), "ddpm").to_json())
    text = json.dumps(_damaged(r, data))
    if r.random() < 0.2:
        at = r.randrange(len(text))
        text = text[:at] + r.choice(["", "}", "\x00", "9", '"']) + text[at + r.randint(0, 2) :]

    def loaded(text: str) -> Any:
        plan = Plan.from_json(text)
        return fastdiff.Sampler(plan=plan)(net, torch.zeros(2, 3))

    loaded.__qualname__ = f"run of the plan {data.get('method')!r}, damaged,"
    return Case(loaded, (text,), {})


def _damaged(r: random.Random, data: Any) -> Any:
    node, parents = data, []
    while isinstance(node, dict | list) and node and (not parents or r.random() < 0.8):
        key = r.choice(list(node)) if isinstance(node, dict) else r.randrange(len(node))
        parents.append((node, key))
        node = node[key]
    if not parents:
        return data
    parent, key = parents[-1]
    what = r.random()
    if what < 0.2:
        del parent[key]
    elif what < 0.3 and isinstance(parent, dict):
        parent["nope"] = parent.pop(key)
    else:
        parent[key] = r.choice([None, True, -1, 0, 1, 2**70, 1e308, 0.5, "x", "", [], {}, [1], {"a": 1}])
    return data


def damaged_file(r: random.Random) -> Case:
    """A file of bytes where a plan or a Gamma is expected."""
    content = r.choice(
        [b"", b"\xff\xfe", b"[" * 10000, b"{}", b"null", b'{"format": 2}', b"\x08" + b"\0" * 7 + b"{}" * 9]
    )
    loader = r.choice([Plan.load, analytic.Gamma.load])
    ending = r.choice([".json", ".safetensors", ".txt", ""])

    def load(content: bytes, ending: str) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"file{ending}"
            path.write_bytes(content)
            return loader(path if r.random() < 0.9 else path.with_name("none.json"))

    load.__qualname__ = f"{loader.__qualname__} of a file"
    return Case(load, (content, ending), {})


def normals(r: random.Random) -> Case:
    shape, seed = r.choice(SHAPES), r.choice([0, -1, 2**64 - 1, r.randrange(2**60)])
    made = {"shape": shape, "seed": seed, "draw": r.randrange(2**32), "prior": r.random() < 0.5}
    if r.random() < 0.6:
        return Case(fastdiff.randn, (), spoil(r, made, [*made, "first_sample", "dtype", "device", "backend"]))
    return Case(fastdiff.randn, (), made, oracles.of_randn(made))


def schedule_made(r: random.Random) -> Case:
    names = (
        "ddpm",
        "scaled_linear",
        "cosine",
        "vp_linear",
        "vp_cosine",
        "subvp",
        "ve",
        "smld",
        "edm",
        "flow",
        "discrete",
    )
    factory = getattr(schedules, r.choice(names))
    parameters = list(inspect.signature(factory).parameters)
    made = {p: hostile(r) for p in r.sample(parameters, min(len(parameters), r.choice([0, 1, 1, 2])))}
    return Case(factory, (), made, oracles.of_schedule)


def schedule_asked(r: random.Random) -> Case:
    schedule = resolve(r.choice(SCHEDULES))
    names = ("alpha", "sigma", "lam", "model_time", "at", "inverse_lambda", "prior_std", "drift", "diffusion", "check")
    return Case(getattr(schedule, r.choice(names)), (hostile(r),), {})


def gridded(r: random.Random) -> Case:
    made: dict[str, Any] = {
        "spacing": r.choice(SPACINGS),
        "schedule": resolve(r.choice(SCHEDULES)),
        "steps": r.randint(1, 9),
    }
    names = ["spacing", "steps", "t_start", "t_end", "final", "rho", "steps_offset"]
    return Case(grid, (), spoil(r, made, names) if r.random() < 0.8 else made)


def lossy(r: random.Random) -> Case:
    function = r.choice([losses.ddpm_loss, losses.smld_loss, losses.sde_loss, losses.vlb_loss, losses.hybrid_loss])
    by_name = {"smld_loss": "smld", "sde_loss": r.choice(["vp_linear", "subvp", "ve"])}
    made: dict[str, Any] = {"x0": state(r, r.choice(SHAPES)).clamp(-1, 1), "seed": r.randrange(2**40)}
    made["sigmas" if function is losses.smld_loss else "schedule"] = by_name.get(function.__name__, "ddpm")
    model = doubled if function is losses.hybrid_loss else net
    if r.random() < 0.6:
        names = [n for n in inspect.signature(function).parameters if n != "model"]
        return Case(function, (model,), spoil(r, made, names))
    return Case(function, (model,), made, oracles.repeatable(function, model, made))


def noised(r: random.Random) -> Case:
    made = {"x0": state(r, r.choice(SHAPES)), "t": 0.5, "schedule": r.choice(SCHEDULES), "seed": 1}
    return Case(losses.q_sample, (), spoil(r, made, [*made, "noise", "generator", "first_sample"]))


def likelihood(r: random.Random) -> Case:
    made: dict[str, Any] = {
        "x": state(r, r.choice(SHAPES)),
        "schedule": r.choice(["vp_linear", "ddpm", "edm"]),
        "rtol": 1e-2,
        "atol": 1e-2,
        "max_nfe": 60,
    }
    names = [n for n in inspect.signature(fastdiff.log_likelihood).parameters if n not in ("model", "progress")]
    return Case(fastdiff.log_likelihood, (net,), spoil(r, made, names) if r.random() < 0.8 else made)


def gamma_estimated(r: random.Random) -> Case:
    made: dict[str, Any] = {
        "data": state(r, (5, 3)),
        "schedule": "ddpm",
        "times": 3,
        "samples_per_time": 4,
        "batch_size": 3,
        "progress": False,
    }
    names = [n for n in inspect.signature(analytic.estimate_gamma).parameters if n not in ("model", "progress", "path")]
    made = spoil(r, made, names)
    # A minute of right work is no fault.
    if isinstance(made.get("samples_per_time"), int) and made["samples_per_time"] > 100:
        made["samples_per_time"] = 4
    return Case(analytic.estimate_gamma, (net,), made)


def times_chosen(r: random.Random) -> Case:
    count = r.randint(2, 30)
    values = tuple(r.uniform(0.0, 1.2) for _ in range(count))
    made: dict[str, Any] = {
        "gamma": analytic.Gamma(tuple(range(count)), values),
        "steps": r.randint(1, count),
        "schedule": "ddpm",
    }
    return Case(analytic.optimal_times, (), spoil(r, made, list(made)) if r.random() < 0.6 else made)


def gamma_made(r: random.Random) -> Case:
    return Case(analytic.Gamma, (hostile(r), hostile(r)), {})


def bounded(r: random.Random) -> Case:
    made: dict[str, Any] = {"x0": state(r, (2, 3)).clamp(-1, 1), "schedule": "ddpm", "steps": 3, "spacing": "linspace"}
    names = [n for n in inspect.signature(losses.variational_bound).parameters if n not in ("model", "progress")]
    return Case(losses.variational_bound, (net,), spoil(r, made, names))


def is_form(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, guidance.Guidance)


def guided(r: random.Random) -> Case:
    kind = getattr(guidance, r.choice([n for n in guidance.__all__ if is_form(getattr(guidance, n))]))
    parameters = list(inspect.signature(kind).parameters)
    made = {p: hostile(r) if r.random() < 0.5 else 1.5 for p in parameters}

    def run(**given: Any) -> torch.Tensor:
        y = {"y": torch.zeros(2)}
        form = kind(**given)
        halves = {"cond": y, "uncond": y} if form.batched else {}
        return fastdiff.sample(net, torch.zeros(2, 3), method="ddim", steps=3, schedule="ddpm", guidance=form, **halves)

    run.__qualname__ = f"sample with guidance.{kind.__name__}"
    return Case(run, (), made)


def registered(r: random.Random) -> Case:
    if r.random() < 0.5:
        return Case(fastdiff.register, (hostile(r),), {})
    method = METHODS[r.choice(FIXED)]
    return Case(fastdiff.register, (method,), {})


def option_checked(r: random.Random) -> Case:
    method: Method = METHODS[r.choice(list(METHODS))]
    if not method.options:
        return registered(r)
    name = r.choice(list(method.options))
    o: Option = method.options[name]
    return Case(o.check, (method.name, name, hostile(r)), {})


def pictured(r: random.Random) -> Case:
    path = hostile(r)
    if not isinstance(path, str | bytes) and r.random() < 0.3:
        path = "no/such/folder/a.png"
    return (
        Case(fastdiff.plan("dpm2", 2, "ddpm").save, (path,), {})
        if not isinstance(path, str | bytes | int)
        else normals(r)
    )


def dynamic(r: random.Random) -> Case:
    return Case(fastdiff.Dynamic, (hostile(r), hostile(r)), {})


def second_moment(r: random.Random) -> Case:
    def use(count: Any, history: Any, batch: Any, t: Any, seen: Any) -> Any:
        sampler = losses.LossSecondMoment(count, history)
        sampler.sample(batch)
        sampler.update(t, seen)
        sampler.load_state_dict(seen if isinstance(seen, dict) else sampler.state_dict())
        return sampler.probabilities()

    values = [10, 2, 4, torch.arange(4), torch.ones(4)]
    values[r.randrange(5)] = hostile(r)
    if (isinstance(values[0], int) and values[0] > 10**5) or (isinstance(values[1], int) and values[1] > 10**5):
        values[:2] = [10, 2]
    return Case(use, tuple(values), {})


def commanded(r: random.Random) -> Case:
    words = [
        "plan",
        "methods",
        "doctor",
        "dpm3",
        "--steps",
        "3",
        "0",
        "-1",
        "1e9",
        "--schedule",
        "vp",
        "nope",
        "--spacing",
    ]
    words += [
        "karras",
        "9 5 1",
        "-o",
        "eta=1",
        "eta",
        "--t-start",
        "nan",
        "0.5",
        "--json",
        "/nonexistent/a.json",
        "--help",
    ]
    line = [r.choice(["plan", "methods", "plan"]), *(r.choice(words) for _ in range(r.randint(0, 4)))]

    def main(line: list[str]) -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = cli.main(line)
        assert status in (0, 1, 2), status
        return status

    main.__qualname__ = "cli.main"
    return Case(main, (line,), {}, exits=True)


MAKERS: tuple[tuple[Callable[[random.Random], Case], int], ...] = (
    (valid_sample, 16),
    (hostile_sample, 24),
    (odd_network, 6),
    (own_start, 10),
    (own_loop, 6),
    (inverted, 6),
    (planned, 8),
    (damaged_plan, 6),
    (damaged_file, 2),
    (normals, 4),
    (schedule_made, 5),
    (schedule_asked, 4),
    (gridded, 4),
    (lossy, 6),
    (noised, 3),
    (likelihood, 3),
    (gamma_estimated, 3),
    (times_chosen, 2),
    (gamma_made, 2),
    (bounded, 3),
    (guided, 3),
    (registered, 1),
    (option_checked, 3),
    (pictured, 1),
    (dynamic, 1),
    (second_moment, 2),
    (commanded, 2),
)


def case(seed: int, number: int) -> Case:
    r = random.Random(f"{seed}/{number}")
    makers, weights = zip(*MAKERS, strict=True)
    return r.choices(makers, weights)[0](r)
