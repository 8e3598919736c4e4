"""The commands `fastdiff fit` and `fastdiff tune`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdiff.command_line import EXAMPLE, network
from fastdiff.fitting.options import FIT_DEFAULTS, TUNE_DEFAULTS


def add_commands(commands: Any) -> None:
    """Register both with an argparse subparsers object."""
    fit = commands.add_parser("fit", help="fit plans to a network")
    tune = commands.add_parser("tune", help="score every method, spacing and option on a network")
    for command in (fit, tune):
        command.add_argument("source", metavar="MODULE:FUNCTION", help=EXAMPLE)
        command.add_argument("--steps", type=int, nargs="+", default=[5], help="network evaluations (default: 5)")
        command.add_argument("--batch", type=int, default=None, help="trajectories at once; default: the shape's")
        command.add_argument("--schedule", default=None, help="a schedule's name; default: the network's own")
        command.add_argument("--prediction", default=None, help="what the network gives; default: the network's own")
        command.add_argument("--t-start", type=float, default=None)
        command.add_argument("--t-end", type=float, default=None)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--trajectories", type=int, default=None)
        command.add_argument("--device", default=None)
        command.add_argument("--plot", type=Path, default=None, help="draw errors here")
    fit.add_argument("--out", type=Path, required=True, help="plan.json; of several steps a folder for 3.json, 5.json")
    fit.add_argument("--polish", action="store_true", help="go on with gradients")
    fit.add_argument("--optimizer", choices=["lbfgs", "adam"], default="lbfgs", help="of --polish (default: lbfgs)")
    fit.add_argument("--checkpoint", type=Path, default=None, help="a .safetensors file to go on from")
    fit.set_defaults(run=_fit)
    tune.set_defaults(run=_tune)


def _for_tune(options: dict[str, Any]) -> dict[str, Any]:
    """Without what only `fit` takes."""
    return {name: value for name, value in options.items() if name in TUNE_DEFAULTS or name not in FIT_DEFAULTS}


def _asked(chosen: argparse.Namespace) -> tuple[Callable[..., Any], dict[str, Any]]:
    model, options = network(chosen.source)
    for name in ("schedule", "prediction", "t_start", "t_end", "trajectories", "device"):
        value = getattr(chosen, name)
        if value is not None:
            options[name] = value
    options["seed"] = chosen.seed
    if chosen.batch is not None:
        shape = options.get("shape")
        if shape is None:
            raise ValueError("--batch needs a shape: return (model, {'shape': (1, 3, 32, 32)}) from the function")
        options["shape"] = (chosen.batch, *shape[1:])
    options.setdefault("progress", sys.stderr.isatty())
    return model, options


def _fit(chosen: argparse.Namespace) -> None:
    from fastdiff.fitting.fit import fit
    from fastdiff.fitting.picture import against_methods

    model, options = _asked(chosen)
    several = len(chosen.steps) > 1
    if several and chosen.out.exists() and not chosen.out.is_dir():
        raise ValueError(f"--out {str(chosen.out)!r} is a file; of several steps expected a folder, for 3.json, 5.json")
    if several:
        chosen.out.mkdir(parents=True, exist_ok=True)
    if several and chosen.checkpoint is not None:
        raise ValueError("--checkpoint goes with one number of steps: give --steps 5, or leave it out")
    checkpoint = None if chosen.checkpoint is None else str(chosen.checkpoint)
    plans = []
    for steps in chosen.steps:
        made = fit(model, steps, polish=chosen.polish, optimizer=chosen.optimizer, checkpoint=checkpoint, **options)
        path = chosen.out / f"{steps}.json" if several else chosen.out
        made.save(path)
        plans.append(made)
        before, after = made.origin["errors"]["before"], made.origin["errors"]["after"]
        print(
            f"{steps} evaluations: {made.origin['start']}: median {before['median']:.2g}, RMS {before['rms']:.2g}; "
            f"fitted: median {after['median']:.2g}, RMS {after['rms']:.2g}; saved {path}"
        )
    if chosen.plot:
        against_methods([], plans, chosen.plot)
        print(f"drew {chosen.plot}")


def _tune(chosen: argparse.Namespace) -> None:
    from fastdiff.fitting.picture import against_methods
    from fastdiff.fitting.tune import tune

    model, options = _asked(chosen)
    tables = []
    for steps in chosen.steps:
        tables.append(tune(model, steps, **_for_tune(options)))
        print(tables[-1])
    if chosen.plot and len(tables) == 1:
        tables[0].plot(chosen.plot)
    elif chosen.plot:
        against_methods(tables, [], chosen.plot)
    if chosen.plot:
        print(f"drew {chosen.plot}")
