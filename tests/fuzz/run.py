"""A long fuzzing run: each target in a process of its own, until its time is over; findings are kept as files.

    python tests/fuzz/run.py --seconds 300 --output benchmarks/results/fuzzing.json

Two engines. `random` needs nothing: it changes inputs that ended in an error of a new kind. `atheris` is guided by the
coverage of ptune's code and needs the package of that name. Both start from the seeds and the corpus, and use the same
mutations. A finding is anything but a `PTuneError`; more than `--longest` seconds of CPU time for one input; or memory
beyond 4 GiB. One input of each kind of finding is written to `--findings`.
"""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
_MEMORY_BYTES = 4 * 2**30
_WRITE_EVERY = 500
_POOL = 4000
_FROM_STARTS = 0.5
"""How often an input is made of a valid one; those of the pool end in errors."""


class TooSlowError(BaseException):
    """One input took too much CPU time. No `Exception`, so that no handler takes it for its own."""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--engine", choices=("random", "atheris"), default="random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=10.0, metavar="SECONDS", help="CPU time for one input")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--grown", type=Path, help="keep the corpus that atheris grows here, and go on from it")
    parser.add_argument("--output", type=Path, help="write the result as JSON; runs of targets in it are added to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--stats", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for folder in ("src", "tests"):
        sys.path.insert(0, str(ROOT / folder))
    if args.worker:
        return work(args)
    from fuzz.targets import TARGETS

    runs = [run_target(name, args) for name in args.targets or TARGETS]
    if args.output is not None:
        write_result(args.output, runs)
    return int(any(run["findings"] for run in runs))


def run_target(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One target in a process of its own; what it counted."""
    with tempfile.TemporaryDirectory() as place:
        stats = Path(place) / "stats.json"
        command = [sys.executable, __file__, "--worker", name, "--stats", str(stats)]
        for flag in ("seconds", "engine", "seed", "longest", "findings", "grown"):
            if getattr(args, flag) is not None:
                command += [f"--{flag}", str(getattr(args, flag))]
        limit = args.seconds * 2 + 300
        done = subprocess.run(command, check=False, timeout=limit, stderr=subprocess.PIPE, text=True, errors="replace")
        run: dict[str, Any] = json.loads(stats.read_text()) if stats.exists() else {"target": name, "findings": {}}
    if done.returncode != 0:
        run["findings"][f"the process ended with {done.returncode}"] = done.stderr[-400:]
    print(
        f"{name}: {run.get('inputs', 0):,} inputs in {run.get('seconds', 0):.0f} s ({args.engine}), "
        f"{run.get('outcomes', {})}, {run.get('distinct_errors', 0)} distinct errors, {len(run['findings'])} findings"
    )
    for what, where in run["findings"].items():
        print(f"  FINDING {what}: {where}")
    return run


def write_result(path: Path, runs: list[dict[str, Any]]) -> None:
    """Add runs to a result file."""
    from ptune.memory.machine import machine, versions

    kept = json.loads(path.read_text()) if path.exists() else {}
    known = kept.get("runs", [])
    runs = [*known, *({**run, "date": dt.date.today().isoformat()} for run in runs)]
    totals = {
        "inputs": sum(run.get("inputs", 0) for run in runs),
        "seconds": round(sum(run.get("seconds", 0) for run in runs)),
    }
    result = {**kept, "machine": machine(), "versions": versions(), "totals": totals, "runs": runs}
    path.write_text(json.dumps(result, indent=2, ensure_ascii=True) + "\n")


class Counter:
    """Runs inputs of one target, and counts."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        from fuzz.targets import TARGETS

        self.name, self.args, self.target = name, args, TARGETS[name]
        shared = Path("/dev/shm")  # memory instead of a disk, where there is one
        self.place = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
        self.folder = self.place / "in"
        self.folder.mkdir()
        (self.place / "secret.txt").write_text("a file that nothing may open")
        self.inputs, self.began = 0, time.monotonic()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.shapes: set[str] = set()
        self.findings: dict[str, str] = {}
        self.slowest = 0.0
        signal.signal(signal.SIGVTALRM, _too_slow)

    def starts(self) -> list[bytes]:
        """Seeds and corpus."""
        kept = sorted((CORPUS / self.name).glob("*")) if (CORPUS / self.name).is_dir() else []
        return [*self.target.seeds().values(), *(path.read_bytes() for path in kept)]

    def run(self, data: bytes) -> bool:
        """One input; whether it ended in an error of a new kind."""
        from fuzz.targets import attempt

        self.inputs += 1
        known = len(self.shapes)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, self.args.longest)
        try:
            outcome, line = attempt(self.target, data, self.folder)
            self.shapes.add(_shape(line))
        except (Exception, TooSlowError) as error:  # noqa: BLE001 (whatever escapes is what is looked for)
            outcome = "finding"
            self.note(error, data)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, time.process_time() - began)
        if self.inputs % _WRITE_EVERY == 0:
            self.write()
        return len(self.shapes) > known

    def note(self, error: BaseException, data: bytes) -> None:
        """Keep one input of each kind of finding."""
        frames = [one for one in traceback.extract_tb(error.__traceback__) if "/ptune/" in one.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        kind = f"{type(error).__name__} at {place}"
        if kind in self.findings:
            return
        self.args.findings.mkdir(parents=True, exist_ok=True)
        path = self.args.findings / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        self.findings[kind] = f"{path.name}: {str(error)[:200]}"
        self.write()

    def write(self) -> None:
        """Bring the counts to disk: an engine may end the process as it likes."""
        counts = {
            "target": self.name,
            "engine": self.args.engine,
            "inputs": self.inputs,
            "seconds": round(time.monotonic() - self.began, 1),
            "outcomes": dict(sorted(self.outcomes.items())),
            "distinct_errors": len(self.shapes),
            "slowest_cpu_seconds": round(self.slowest, 2),
            "findings": self.findings,
        }
        self.args.stats.write_text(json.dumps(counts))


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TooSlowError


def _shape(line: str) -> str:
    """An error's line without what it says of the input."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+|/\S+", "#", line)[:120]


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, resource.RLIM_INFINITY))


def work(args: argparse.Namespace) -> int:
    """One target, in this process."""
    if args.engine == "atheris":
        return work_atheris(args)
    import torch

    torch.set_num_threads(1)
    counter = Counter(args.worker, args)
    starts = counter.starts()
    pool = list(starts)
    for data in starts:
        counter.run(data)
    _limit_memory()
    rng = Random(args.seed)
    while time.monotonic() - counter.began < args.seconds:
        data = rng.choice(starts if rng.random() < _FROM_STARTS else pool)
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = counter.target.mutate(data, rng)
        if counter.run(data) and len(data) < 20_000:
            pool.append(data)
            if len(pool) > _POOL:
                pool.pop(rng.randrange(len(starts), _POOL))
    counter.write()
    shutil.rmtree(counter.place)
    return 0


def work_atheris(args: argparse.Namespace) -> int:
    """One target under atheris."""
    import atheris
    import torch

    torch.set_num_threads(1)
    with atheris.instrument_imports(include=["ptune", "yaml"]):
        counter = Counter(args.worker, args)
    grown = (args.grown or counter.place) / args.worker
    grown.mkdir(parents=True, exist_ok=True)
    for data in counter.starts():
        counter.run(data)
        (grown / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    _limit_memory()

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.2:
            return bytes(atheris.Mutate(data, most))
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = counter.target.mutate(data, rng)
        return data[:most]

    def once(data: bytes) -> None:
        counter.run(data)

    counter.args.findings.mkdir(parents=True, exist_ok=True)
    flags = [f"-max_total_time={int(args.seconds)}", f"-seed={args.seed + 1}", "-max_len=65536", "-rss_limit_mb=0"]
    flags += ["-timeout=120", "-verbosity=0", f"-artifact_prefix={args.findings}/"]
    atheris.Setup([sys.argv[0], *flags, str(grown)], once, custom_mutator=mutate)
    atheris.Fuzz()
    counter.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
