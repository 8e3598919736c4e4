"""Kill a generation's workers again and again, and compare what they leave with one that nobody disturbed.

    python tools/kill_generation.py            # 5,000 digits, 3 workers, 20 kills (SIGKILL)

Prints one line; ends with 1 where a byte differs, a sample is missing or there twice.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NETWORK = """
from fastdiff.demo import load_model

def digits():
    labels = lambda i: {"y": i % 10}
    return load_model(), {"shape": (50, 1, 8, 8), "schedule": "ddpm", "model_kwargs": labels}
"""


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, by its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def numbers(folder: Path) -> list[int]:
    """The numbers of the samples in a folder of WebDataset archives, as often as they are there."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            found += [int(Path(name).stem) for name in archive.getnames() if name.endswith(".png")]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shard", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "killednetwork.py").write_text(NETWORK, encoding="utf-8")
        # One thread each: the sums of a network, and so its bytes, may depend on how many there are.
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join((str(ROOT), str(home)))}
        base = [sys.executable, "-m", "fastdiff", "generate", "killednetwork:digits", "-n", str(args.n)]
        base += ["--method", "dpm3", "--steps", "4", "--format", "webdataset", "--shard", str(args.shard)]

        def start(folder: str, worker: int, workers: int) -> subprocess.Popen[bytes]:
            command = [*base, "--out", str(home / folder), "--worker", f"{worker}/{workers}"]
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

        def ended(process: subprocess.Popen[bytes]) -> None:
            errors = process.communicate()[1]
            if process.returncode:
                raise RuntimeError(f"a worker failed: {errors.decode()}")

        began = time.monotonic()
        ended(start("whole", 0, 1))
        whole = time.monotonic() - began
        marks, shards = home / "killed" / "shards", -(-args.n // args.shard)
        running = [start("killed", w, args.workers) for w in range(args.workers)]
        # The shards that are there when a kill comes, spread over the run, and a random moment of the next one.
        kills = 0
        for due in sorted(rng.randrange(shards) for _ in range(args.kills)):
            while not marks.is_dir() or len(list(marks.glob("*.json"))) < due:
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, whole / shards))
            living = [w for w in range(args.workers) if running[w].poll() is None]
            if not living:
                break
            w = rng.choice(living)
            running[w].kill()
            kills += running[w].wait() < 0
            running[w].communicate()
            running[w] = start("killed", w, args.workers)
        for process in running:
            ended(process)
        ended(subprocess.Popen([*base[:4], "--verify", "--out", str(home / "killed")], env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))  # fmt: skip
        equal = contents(home / "whole") == contents(home / "killed")
        once = numbers(home / "killed") == list(range(args.n))
    print(
        f"{args.n} samples, {args.workers} workers, {kills} kills: bytes {'equal' if equal else 'DIFFER'}, "
        f"every sample {'once' if once else 'NOT once'}"
    )
    return 0 if equal and once else 1


if __name__ == "__main__":
    raise SystemExit(main())
