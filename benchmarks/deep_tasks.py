"""Do keys and values of every layer (P-tuning v2) learn better than vectors before the text, each at its best rate?

    python benchmarks/deep_tasks.py --data ../shared/data [--tasks sst2,e2e] [--seeds 3] [--steps 60]

The tasks, rows, steps and batches of `learning.py`, 20 virtual tokens: `prefix` and `embedding` as `ptune train` comes
but for the rate, which is the best of `FACTORS` times a middle one, chosen for each task and encoder on the first seed
by the loss on rows that are reported nowhere else. Everything measured is kept in `--work`, so that an interrupted run
goes on. The result is the part `tasks` of `results/deep_prompts.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness import OK, RESULTS, heading, write
from learning import FACTORS, Lab, kept_runs, read_tasks
from ptune import TrainRecipe, train
from ptune.evaluation.held_out_loss import held_out_loss
from ptune.loading.load import load_model
from ptune.prompt.default_rate import default_learning_rate
from ptune.training.batches import choose_collator
from ptune.training.rows import load_rows
from ptune.training.train import training_arguments

LENGTH = 20
MIDDLE: dict[str, float | None] = {"embedding": None, "prefix": 0.06}
"""The rate in the middle of those that are tried; None is the default for model and encoder."""


class DeepLab(Lab):
    """Trains a prompt of either kind on one task, at one rate."""

    def prompt(self, encoder: str, seed: int, rate: float) -> dict[str, Any]:
        """Its losses on the rows to choose by and on those to report on."""

        def run(name: str) -> dict[str, Any]:
            settings: dict[str, Any] = {"encoder": encoder, "dtype": "float32"}
            made = self.recipe(name, LENGTH, **settings)
            recipe = TrainRecipe(**{**vars(made), "eval_data": None})  # measured below, on two sets of rows
            given = {"max_steps": self.options.steps, "seed": seed, "learning_rate": rate, "eval_strategy": "no"}
            result = train(recipe, {**given, "logging_steps": 1}, Console(quiet=True))
            losses = {}
            for part, key in (("chosen_by", "loss_chosen_by"), ("held_out", "held_out_loss")):
                its = self.recipe(name, LENGTH, part, **settings)
                args = training_arguments(its, given)
                rows = load_rows(its, result.template, result.tokenizer, args, progress=False)
                assert rows.held_out_tokens is not None
                collate = choose_collator(its, args, result.model, result.tokenizer, ())
                losses[key] = held_out_loss(result.model, rows.held_out_tokens.dataset, collate).loss
            parameters = result.model.get_nb_trainable_parameters()[0]
            return {"learning_rate": rate, "trainable_parameters": parameters, **losses}

        return self.once(f"{encoder}-n{LENGTH}-{self.options.steps}-steps-rate-{rate:g}-seed-{seed}", run)


def compared(lab: DeepLab, middle: dict[str, float], say: Console) -> dict[str, Any]:
    """One task: every rate on the first seed, the best of them on the others."""
    found: dict[str, Any] = {"task": lab.name, "virtual_tokens": LENGTH}
    for encoder in MIDDLE:
        rates = [float(f"{middle[encoder] * factor:.3g}") for factor in FACTORS]
        tried = {f"{rate:g}": lab.prompt(encoder, 0, rate) for rate in rates}
        best = min(tried.values(), key=lambda run: run["loss_chosen_by"])["learning_rate"]
        runs = [lab.prompt(encoder, seed, best) for seed in range(lab.options.seeds)]
        found[encoder] = {
            "trainable_parameters": runs[0]["trainable_parameters"],
            "rates_tried": {
                rate: {key: run[key] for key in ("loss_chosen_by", "held_out_loss")} for rate, run in tried.items()
            },
            "best_rate": best,
            "held_out_loss": [run["held_out_loss"] for run in runs],
        }
        say.print(f"{lab.name} {encoder}: rate {best:g}, {found[encoder]['held_out_loss']}")
    return found


def measure(options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Every task; the part of the result file."""
    runs = kept_runs(Path(options.work))
    torch.set_num_threads(options.threads)
    base = load_model(options.model, dtype="float32", device="cpu")
    middle = {encoder: rate or default_learning_rate(base, encoder) for encoder, rate in MIDDLE.items()}
    tasks = read_tasks(Path(options.data))
    part: dict[str, Any] = {
        **heading((__doc__ or "").partition("\n")[0], f"python benchmarks/deep_tasks.py --tasks {options.tasks}"),
        "settings": {name: getattr(options, name) for name in ("model", "steps", "seeds", "held_out", "threads")},
        "status": "not finished",
        "compared": [],
    }
    for name in options.tasks.split(","):
        part["compared"].append(compared(DeepLab(options, name, tasks[name], runs), middle, say))
    return {**part, "status": OK, "runs": runs}


def report(part: dict[str, Any], say: Console) -> None:
    """A table: mean over the seeds, with the least and the greatest."""
    table = Table("task", "encoder", "parameters", "best rate", "held-out loss")
    for one in part["compared"]:
        for encoder in MIDDLE:
            its = one[encoder]
            losses = its["held_out_loss"]
            table.add_row(
                one["task"], encoder, f"{its['trainable_parameters']:,}", f"{its['best_rate']:g}",
                f"{statistics.fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})",
            )  # fmt: skip
    say.print(table)


def main() -> None:
    """Measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--data", default="../shared/data", help="folder with sst2, trec and e2e_nlg")
    parser.add_argument("--tasks", default="sst2,e2e")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=120, help="rows to choose by, and to report on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="outputs/deep_tasks")
    parser.add_argument("--output", type=Path, default=RESULTS / "deep_prompts.json")
    options = parser.parse_args()
    say = Console()
    part = measure(options, say)
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    write({**kept, "tasks": part}, options.output)
    report(part, say)


if __name__ == "__main__":
    main()
