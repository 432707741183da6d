"""Does a prompt learn as well behind a bfloat16 model as behind a float32 one?

    python benchmarks/precision.py --data ../shared/data [--seeds 3] [--steps 100]

`ptune train` as it comes on SST-2 and TREC, the frozen model in each precision, the same rows, seeds and steps, and the
loss on the same held-out rows, each prompt behind the model that it was trained with. The greatest distance between
two seeds of one precision stands beside the distance between the precisions' means: `--dtype auto` takes bfloat16 on a
CPU that multiplies it because the second is no greater than the first. Everything measured is kept in `--work`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness import OK, RESULTS, write
from learning import Lab, read_tasks
from ptune.memory.machine import machine, versions

PRECISIONS = ("float32", "bfloat16")


def compared(lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """One task: held-out losses of every seed, and what the precisions and the seeds differ by."""
    losses = {
        dtype: [
            lab.ptune(options.length, seed, options.steps, dtype=dtype)["held_out_loss"]
            for seed in range(options.seeds)
        ]
        for dtype in PRECISIONS
    }
    means = [statistics.fmean(one) for one in losses.values()]
    spreads = {dtype: max(one) - min(one) for dtype, one in losses.items()}
    return {
        "task": lab.name,
        "held_out_loss": losses,
        "spread_of_seeds": spreads,
        "difference_of_means": means[1] - means[0],
        "within_the_spread": abs(means[1] - means[0]) <= max(spreads.values()),
    }


def measure(options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Every task; writes the result file."""
    kept = Path(options.work, "runs.json")
    kept.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    torch.set_num_threads(options.threads)
    tasks = read_tasks(Path(options.data))
    result: dict[str, Any] = {
        "what": (__doc__ or "").partition("\n")[0],
        "command": "python benchmarks/precision.py",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": {
            name: getattr(options, name)
            for name in ("model", "steps", "seeds", "length", "held_out", "tasks", "threads")
        },
        "compared": [compared(Lab(options, name, tasks[name], runs), options) for name in options.tasks.split(",")],
        "runs": runs,
        "status": OK,
    }
    write(result, options.output)
    table = Table("task", *PRECISIONS, "difference of the means", "spread of the seeds")
    for one in result["compared"]:
        losses = [" ".join(f"{loss:.3f}" for loss in each) for each in one["held_out_loss"].values()]
        spread = max(one["spread_of_seeds"].values())
        table.add_row(one["task"], *losses, f"{one['difference_of_means']:+.3f}", f"{spread:.3f}")
    say.print(table)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--data", default="../shared/data", help="folder with sst2, trec and e2e_nlg")
    parser.add_argument("--tasks", default="sst2,trec")
    parser.add_argument("--length", type=int, default=20, help="virtual tokens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=120, help="rows of the held-out loss")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="outputs/precision")
    parser.add_argument("--output", type=Path, default=RESULTS / "precision.json")
    measure(parser.parse_args(), Console())


if __name__ == "__main__":
    main()
