"""Does a prompt learn as well behind a bfloat16 model as behind a float32 one?

    python benchmarks/precision.py --data ../shared/data [--seeds 3] [--steps 100]

`ptune train` as it comes on SST-2 and TREC, the frozen model in each precision, the same rows, seeds and steps, and the
loss on the same held-out rows, each prompt behind the model that it was trained with. The greatest distance between
two seeds of one precision stands beside the distance between the precisions' means: `--dtype auto` takes bfloat16 on a
CPU that multiplies it because the second is no greater than the first. Everything measured is kept in `--work`.

And the gradient of the prompt encoder behind small random models of each architecture in bfloat16, against the same
model in float64: ptune's packed and padded rows, and PEFT's, each against its own, mean over several batches. The ratio
of the errors is a geometric mean, with two standard errors either side.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import gpu
from floor import PRECISIONS
from harness import OK, RESULTS, heading, write
from learning import Lab, kept_runs, read_tasks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from architectures import ARCHITECTURES, VOCABULARY

WAYS = {"ptune packed": ("ptune", True), "ptune padded": ("ptune", False), "PEFT": ("PEFT", False)}


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


def gradients(name: str, batches: int) -> dict[str, Any]:
    """One architecture: of each way the relative error of the gradient in bfloat16, mean over batches."""
    errors: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(batches):
        rows = gpu.draw(6, 40, VOCABULARY, seed=seed)
        start = gpu.Contender("ptune", ARCHITECTURES[name](), seed=seed)
        for way, (who, packed) in WAYS.items():
            found = {}
            for dtype in (torch.float64, torch.bfloat16):
                contender = gpu.Contender(who, ARCHITECTURES[name]().to(dtype))
                gpu.same_start(contender, start)
                found[dtype] = gpu.gradient(contender, rows, torch.device("cpu"), packed=packed)[1]
            exact = found[torch.float64]
            errors[way].append(float((found[torch.bfloat16] - exact).norm() / exact.norm()))
    logs = [math.log(ours / theirs) for ours, theirs in zip(errors["ptune packed"], errors["PEFT"], strict=True)]
    middle, reach = statistics.fmean(logs), 2 * statistics.stdev(logs) / len(logs) ** 0.5
    return {
        "model": name,
        "errors": errors,
        "mean": {way: statistics.fmean(each) for way, each in errors.items()},
        "packed_over_peft": [math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)],
    }


def measure(options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Every task; writes the result file."""
    runs = kept_runs(Path(options.work))
    torch.set_num_threads(options.threads)
    tasks = read_tasks(Path(options.data))
    result: dict[str, Any] = {
        **heading((__doc__ or "").partition("\n")[0], "python benchmarks/precision.py"),
        "settings": {
            name: getattr(options, name)
            for name in ("model", "steps", "seeds", "length", "held_out", "tasks", "threads")
        },
        "compared": [compared(Lab(options, name, tasks[name], runs), options) for name in options.tasks.split(",")],
        "gradients": [gradients(name, options.batches) for name in options.architectures.split(",")],
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
    table = Table("gradient in bfloat16", *WAYS, "packed over PEFT")
    for one in result["gradients"]:
        ratio, low, high = one["packed_over_peft"]
        means = [f"{one['mean'][way]:.4f}" for way in WAYS]
        table.add_row(one["model"], *means, f"{ratio:.2f} ({low:.2f} to {high:.2f})")
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
    parser.add_argument("--architectures", default="bloom,gpt2,llama,qwen2,qwen3,mistral,gemma3,gpt_neox,opt")
    parser.add_argument("--batches", type=int, default=32, help="of each architecture's gradient")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="outputs/precision")
    parser.add_argument("--output", type=Path, default=RESULTS / "precision.json")
    measure(parser.parse_args(), Console())


if __name__ == "__main__":
    main()
