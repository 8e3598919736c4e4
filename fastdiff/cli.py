"""The command `fastdiff`: demo, methods, plan, fit, tune, generate, doctor."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdiff._version import __version__
from fastdiff.command_line import from_text, options_from_text
from fastdiff.fitting.command import add_commands
from fastdiff.generation.command import add_command
from fastdiff.names import PACKAGE
from fastdiff.solvers.base import GOOD_FOR

ENVIRONMENT = {
    "FASTDIFF_SIMD": "instruction set of the cpu back end: portable, avx2 or avx512 (default: the widest that runs)",
    "FASTDIFF_CPU": "at build time: 0, 1 or auto: build the cpu back end",
    "FASTDIFF_CUDA": "at build time: 0, 1 or auto: build the cuda back end",
    "TRITON_INTERPRET": "1: Triton kernels run in its interpreter on CPU tensors (for tests)",
}


MOST_STEPS = 10_000
"""Of a plan that the command line makes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad arguments, 1 for what cannot be done here."""
    try:
        chosen = _parser().parse_args(arguments)
        chosen.run(chosen)
        # Here, and not when the interpreter ends, where an error could only be printed.
        sys.stdout.flush()
    except (ValueError, TypeError, ArithmeticError) as error:
        return _failed(error, 2)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        return _failed(error, 1)
    except (RuntimeError, ImportError, MemoryError) as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    return 0


def _failed(error: BaseException | str, status: int) -> int:
    with contextlib.suppress(OSError):
        print(f"fastdiff: {str(error) or type(error).__name__}{_where(error)}", file=sys.stderr)
    return status


def _where(error: BaseException | str) -> str:
    """The file and line, in the user's own code, where an error arose; nothing for errors of this package's."""
    if isinstance(error, str | MemoryError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    installed = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    theirs = [f for f in frames if not f.filename.startswith((PACKAGE, *installed, "<"))]
    if not theirs or frames[-1].filename.startswith(PACKAGE):
        return ""
    return f" ({type(error).__name__} at {theirs[-1].filename}, line {theirs[-1].lineno})"


def _drop_output() -> None:
    """What still waits to be written would fail again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _steps(text: str) -> int:
    try:
        steps = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r:.40}") from None
    if steps > MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text:.20} steps; expected at most {MOST_STEPS}, since the table is printed")
    return steps


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastdiff", description="Fast sampling of diffusion models.")
    parser.add_argument("--version", action="version", version=f"fastdiff {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="sample handwritten digits with the network that ships with the package")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures (default: demo)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--device", default=None, help="default: cuda where there is one")
    demo.set_defaults(run=_demo)

    methods = commands.add_parser("methods", help="list the methods, or one method's options")
    methods.add_argument("method", nargs="?")
    needs = "; ".join(f"{name}: {what}" for name, what in GOOD_FOR.items())
    methods.add_argument("--for", dest="need", choices=[*GOOD_FOR], help=f"only those good for this. {needs}")
    methods.set_defaults(run=_methods)

    plan = commands.add_parser("plan", help="print, draw or save a method's table")
    plan.add_argument("method", nargs="?", help="default: chosen from schedule and steps, and printed")
    plan.add_argument("--steps", type=_steps, default=None, help="default: what the spacing says, else 10")
    plan.add_argument("--schedule", default="ddpm", help="a schedule's name (default: ddpm)")
    plan.add_argument("--spacing", default=None, help="a time grid's name, or times separated by spaces")
    plan.add_argument("--t-start", type=float, default=None)
    plan.add_argument("--t-end", type=float, default=None)
    plan.add_argument(
        "-o", "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the method"
    )
    plan.add_argument("--json", type=Path, help="save the plan here")
    plan.add_argument("--plot", type=Path, help="draw the plan here")
    plan.set_defaults(run=_plan)

    add_commands(commands)
    add_command(commands)

    doctor = commands.add_parser("doctor", help="versions, back ends and why they run or do not, threads, GPU")
    doctor.set_defaults(run=_doctor)
    return parser


def _width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return max(shutil.get_terminal_size((100, 24)).columns, 40)


def _wrap(line: str, hang: int) -> str:
    """The line over several where it is too wide, the later ones indented by `hang` columns."""
    return "\n".join(
        textwrap.wrap(
            line,
            _width(),
            subsequent_indent=" " * hang,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    )


def _narrow(table: str) -> str:
    """A plan's table: where it is wider than the terminal, with the two formulas below each stage."""
    width = _width()
    head, *lines, foot = table.splitlines()
    if all(len(line) <= width for line in lines):
        return "\n".join([_wrap(head, 2), *lines, _wrap(foot, 1)])
    at = [lines[0].index("next u"), lines[0].index("next x"), None]
    short = [lines[0][: at[0]].rstrip()]
    for line in lines[1:]:
        short.append(line[: at[0]].rstrip())
        for name, begin, end in (("next u", at[0], at[1]), ("next x", at[1], at[2])):
            short.append(_wrap(f"    {name}  {line[begin:end].strip()}", 12))
    return "\n".join([_wrap(head, 2), *short, _wrap(foot, 1)])


def _demo(chosen: argparse.Namespace) -> None:
    from fastdiff.demo.run import main as demo

    demo(chosen.out, seed=chosen.seed, device=chosen.device)


def _methods(chosen: argparse.Namespace) -> None:
    from fastdiff.solvers import GUIDED, METHODS, find

    if chosen.method is not None and chosen.need is not None:
        raise ValueError(
            f"a method's name, {chosen.method!r}, and --for {chosen.need}: fastdiff methods --for {chosen.need} lists, "
            f"fastdiff methods {chosen.method} tells about one"
        )
    if chosen.method is None:
        every = {**METHODS, **GUIDED}
        listed = {name: m for name, m in every.items() if chosen.need is None or chosen.need in m.good_for}
        if not listed:
            print(f"no method yet is good for {GOOD_FOR[chosen.need]}")
            return
        width = max(map(len, listed))
        print(f"{'method':<{width}}  order")
        for m in listed.values():
            print(_wrap(f"{m.name:<{width}}  {m.order:<5}  {m.summary}", width + 9))
        if chosen.need == "video":
            print("\nFrames at times of their own (frames=): every method that is not adaptive.")
        print("\nfastdiff methods NAME shows a method's options, aliases and paper.")
        return
    m = find(chosen.method)
    print(_wrap(f"{m.name}: {m.summary}", len(m.name) + 2))
    steps = "adaptive steps" if m.adaptive else f"spacing {m.spacing!r}"
    print(_wrap(f"order {m.order}, {m.nfe_per_step} evaluation(s) a step, {m.space} space, {steps}", 2))
    print(_wrap(f"paper: {m.paper}", 7))
    if m.aliases:
        print(_wrap(f"aliases: {', '.join(m.aliases)}", 9))
    if m.good_for:
        print(_wrap(f"good for: {'; '.join(GOOD_FOR[need] for need in m.good_for)}", 10))
    for name, option in m.options.items():
        choices = f" ({' | '.join(map(repr, option.accepted))})" if option.accepted else ""
        print(_wrap(f"  {name}={option.default!r}{choices}: {option.doc}", 4))


def _plan(chosen: argparse.Namespace) -> None:
    from fastdiff.solvers import plan

    options = options_from_text(chosen.option)
    spacing: Any = chosen.spacing
    if spacing is not None:
        values = [from_text(word) for word in spacing.split()]
        if len(values) > 1 and all(isinstance(v, int | float) for v in values):
            spacing = values
    made = plan(chosen.method, chosen.steps, chosen.schedule, spacing, chosen.t_start, chosen.t_end, **options)
    print(_narrow(str(made)))
    if chosen.json:
        made.save(chosen.json)
        print(f"saved {chosen.json}")
    if chosen.plot:
        made.plot(chosen.plot)
        print(f"drew {chosen.plot}")


def _doctor(chosen: argparse.Namespace) -> None:
    for line in report().splitlines():
        print(_wrap(line, 4 + len(line) - len(line.lstrip())))


def report() -> str:
    """What `fastdiff doctor` prints: versions, back ends with reasons, SIMD level, threads, GPU, settings."""
    import numpy
    import torch

    from fastdiff.ops import backends, speed

    lines = [
        f"fastdiff {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"torch {torch.__version__}, NumPy {numpy.__version__}, triton {_version('triton')}",
        f"threads: {torch.get_num_threads()} (torch), cores: {os.cpu_count()}",
    ]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            lines.append(f"GPU {i}: {p.name}, {p.total_memory / 2**30:.0f} GiB, compute capability {p.major}.{p.minor}")
    else:
        lines.append("GPU: none that torch can use")
    lines.append("back ends, in the order of preference:")
    lines += [f"  {name:<10} {'yes' if ok else 'no ':<4} {why}" for name, (ok, why) in backends().items()]
    table = speed.known()
    lines.append(f"backend=None takes on a GPU ({table['how']}):")
    chips = {chip: chip for chip in table["chips"]}
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        like = [speed.chip_of(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(count)]
        chips = {f"GPU {i}, taken for {chip}": chip for i, chip in enumerate(like)}
    lines += [f"  {where}: {speed.summary(chip)}" for where, chip in chips.items()]
    lines.append("environment variables:")
    lines += [f"  {name}={os.environ.get(name, '')!r}: {doc}" for name, doc in ENVIRONMENT.items()]
    return "\n".join(lines)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
