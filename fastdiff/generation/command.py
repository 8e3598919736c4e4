"""The command `fastdiff generate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastdiff.command_line import EXAMPLE, from_text, network, options_from_text


def add_command(commands: Any) -> None:
    """Register it with an argparse subparsers object."""
    command = commands.add_parser("generate", help="write many samples to files, by one process or many")
    command.add_argument("source", metavar="MODULE:FUNCTION", nargs="?", help=EXAMPLE)
    command.add_argument("-n", type=int, default=None, help="number of samples")
    command.add_argument("--out", type=Path, required=True, help="the folder")
    command.add_argument("--verify", action="store_true", help="check the folder, and do nothing else")
    command.add_argument("--format", default=None, help="safetensors (default), npz, png or webdataset")
    command.add_argument("--batch", type=int, default=None, help="samples of one call; default: the shape's, else 64")
    command.add_argument("--shard", type=int, default=None, help="samples of one file; default: about 512")
    command.add_argument("--seed", type=int, default=None)
    command.add_argument("--worker", default=None, metavar="W/COUNT", help="default: what torchrun or Slurm says")
    command.add_argument("--method", default=None)
    command.add_argument("--steps", type=int, default=None)
    command.add_argument("--plan", type=Path, default=None, help="a plan's JSON file, instead of method and steps")
    command.add_argument("--guidance", type=float, default=None)
    command.add_argument("--device", default=None)
    command.add_argument("-o", "--option", action="append", default=[], metavar="NAME=VALUE", help="of fastdiff.sample")
    command.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> None:
    if chosen.verify:
        _verify(chosen.out)
        return
    from fastdiff.generation.generate import generate
    from fastdiff.plan import Plan

    if chosen.source is None or chosen.n is None:
        raise ValueError(
            f"generate needs MODULE:FUNCTION and -n, such as: fastdiff generate {EXAMPLE.split(',')[0]} -n 50000"
        )
    model, options = network(chosen.source, "fastdiff.generate")
    for name in ("format", "batch", "shard", "seed", "method", "steps", "guidance", "device"):
        value = getattr(chosen, name)
        if value is not None:
            options[name] = value
    if chosen.worker is not None:
        options["worker"] = _worker(chosen.worker)
    if chosen.plan is not None:
        if chosen.method is not None or chosen.steps is not None:
            raise ValueError("--plan stands instead of --method and --steps: give one or the other")
        options = {name: value for name, value in options.items() if name not in ("method", "steps")}
        options["plan"] = Plan.load(chosen.plan)
    options.update(options_from_text(chosen.option))
    complete = generate(model, chosen.n, chosen.out, **options)
    left = "" if complete else "; other workers have samples left to make"
    print(f"{'all ' + str(chosen.n) if complete else 'own'} samples are in {chosen.out}{left}")


def _worker(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    one, all_ = from_text(number), from_text(count)
    if not slash or type(one) is not int or type(all_) is not int:
        raise ValueError(f"--worker {text!r}: expected W/COUNT, such as --worker 0/8")
    return one, all_


def _verify(folder: Path) -> None:
    from fastdiff.generation.folder import verify

    found = verify(folder)
    for problem in found.problems:
        print(problem)
    if found.problems:
        raise RuntimeError(f"{found.found} of {found.n} samples in {folder} are whole")
    print(f"all {found.n} samples in {folder} are whole")
