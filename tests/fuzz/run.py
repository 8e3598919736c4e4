"""Runs cases in processes of their own, so that a crash and a hang are findings like any other."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import linecache
import os
import queue
import resource
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60.0
"""Seconds of one case."""
MEMORY = 24 * 2**30
"""Bytes of address space of one process."""
PLAIN = (ValueError, TypeError, RuntimeError, FloatingPointError, OSError)


def verdict(seed: int, number: int) -> str | None:
    """What is wrong with one case, or None."""
    from .cases import case

    try:
        chosen = case(seed, number)
    except Exception as error:
        return f"{number}: the case cannot be made: {type(error).__name__}: {error}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = chosen.function(*chosen.args, **chosen.kwargs)
    except BaseException as error:
        if isinstance(error, SystemExit) and chosen.exits:
            return None
        why = obscure(error)
        return None if why is None else f"{number}: {chosen}\n    {why}"
    if chosen.check is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen.check(result)
    except AssertionError as error:
        return f"{number}: {chosen}\n    {error}"
    except Exception as error:
        why = obscure(error)
        return None if why is None else f"{number}: {chosen}\n    in the check: {why}"
    return None


def obscure(error: BaseException) -> str | None:
    """Why an error is none that a user should see: it is of another type, or comes from within."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    at = f"{Path(last.filename).name}:{last.lineno}"
    text = f"{type(error).__name__} at {at}: {str(error)[:200]}"
    if isinstance(error, AssertionError):
        return text
    if not isinstance(error, PLAIN):
        return text
    # Python's own words for a name that a signature lacks are clear, and so are the system's.
    if any(words in str(error) for words in ("allocate memory", "unexpected keyword", "multiple values for")):
        return None
    if isinstance(error, OSError):
        return None
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    ours = f"{os.sep}fastdiff{os.sep}" in last.filename and line.startswith(("raise", "fail("))
    return None if ours else f"{text} (not raised by fastdiff: {line})"


def work(seed: int, first: int, last: int) -> None:
    """Cases `first` to `last` − 1; a line of JSON before and after each."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.fdopen(os.dup(1), "w")
    # What the package prints is not ours.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for number in range(first, last):
        print(json.dumps({"begun": number}), file=out, flush=True)
        found = verdict(seed, number)
        print(json.dumps({"done": number, "found": found}), file=out, flush=True)


def spans(cases: int, first: int) -> Iterator[tuple[int, int]]:
    for begin in range(first, first + cases, 500):
        yield begin, min(begin + 500, first + cases)


class Findings:
    """What all workers found."""

    def __init__(self, seed: int, total: int) -> None:
        self.seed, self.lock, self.found = seed, threading.Lock(), list[str]()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.bar = tqdm(total=total, desc=f"seed {seed}", unit="case", mininterval=1.0)

    def done(self, found: str | None) -> None:
        with self.lock:
            self.bar.update()
            if found is None:
                return
            self.found.append(found)
            kind = found.splitlines()[-1].strip()[:60]
            self.kinds[kind] += 1
            if self.kinds[kind] <= 3:
                self.bar.write(
                    f"{found}\n    again: python -m tests.fuzz --seed {self.seed} --only {found.split(':')[0]}"
                )


def attend(jobs: queue.Queue[tuple[int, int]], findings: Findings) -> None:
    """Hand spans to a process until none is left; start it again after a crash or a hang."""
    while True:
        try:
            first, last = jobs.get_nowait()
        except queue.Empty:
            return
        while first < last:
            first = _one_process(first, last, findings)


def _one_process(first: int, last: int, findings: Findings) -> int:
    """Cases from `first`; the number of the next case that has not been run."""
    call = [sys.executable, "-m", "tests.fuzz", "--seed", str(findings.seed), "--span", str(first), str(last)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    process = subprocess.Popen(
        call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    errors: collections.deque[str] = collections.deque(maxlen=20)
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    begun, started, hung = first, time.monotonic() + LIMIT, threading.Event()

    def watch() -> None:
        while process.poll() is None:
            time.sleep(0.5)
            if time.monotonic() - started > LIMIT:
                hung.set()
                process.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    following = first
    for line in process.stdout:
        message = json.loads(line)
        if "begun" in message:
            begun, started = message["begun"], time.monotonic()
        else:
            following = message["done"] + 1
            findings.done(message["found"])
    status = process.wait()
    if following < last:
        what = f"no end after {LIMIT:.0f} s" if hung.is_set() else f"the process died with status {status}"
        tail = errors[-1].strip()[:200] if errors else ""
        shown = ""
        with contextlib.suppress(Exception):
            from .cases import case

            shown = str(case(findings.seed, begun))
        findings.done(f"{begun}: {shown}\n    {what} {tail}")
        following = begun + 1
    return following


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; 0 if nothing was found, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="run this case here, with its traceback")
    parser.add_argument("--span", type=int, nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.span:
        work(chosen.seed, *chosen.span)
        return 0
    if chosen.only is not None:
        return _only(chosen.seed, chosen.only)
    findings, jobs = Findings(chosen.seed, chosen.cases), queue.Queue[tuple[int, int]]()
    for span in spans(chosen.cases, chosen.first):
        jobs.put(span)
    threads = [threading.Thread(target=attend, args=(jobs, findings)) for _ in range(chosen.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    findings.bar.close()
    for kind, count in findings.kinds.most_common():
        print(f"{count:6d}  {kind}")
    print(f"{len(findings.found)} of {findings.bar.n} cases of seed {chosen.seed} are wrong")
    return int(bool(findings.found) or findings.bar.n < chosen.cases)


def _only(seed: int, number: int) -> int:
    from .cases import case

    chosen = case(seed, number)
    print(chosen)
    found = verdict(seed, number)
    print(found or "right")
    with contextlib.suppress(SystemExit):
        print(chosen.function(*chosen.args, **chosen.kwargs))
    return int(found is not None)
