"""Classes of texts behind a prompt: `ptune train --task classify` as it comes beside PEFT at its best learning rate.

    python benchmarks/classify.py --data ../shared/data [--tasks sst2,trec] [--seeds 3] [--steps 60]

A classification head on the frozen model, 20 virtual tokens, the same rows in the same order, steps and batches. The
reference is PEFT's P-tuning (`PromptEncoderConfig`, `SEQ_CLS`) under Trainer's linear schedule at the best of `RATES`,
chosen for each task by the accuracy on rows that are reported nowhere else, rows padded on the left: padded on the
right, PEFT's classifier of a decoder reads a padding token. ptune runs as it comes. `--model` may name an encoder.
Every run is kept in `--work`, so that an interrupted measurement goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from rich.table import Table
from transformers import Trainer, TrainingArguments

from harness import OK, RESULTS, heading, write
from learning import Pair, kept_runs, once, read_tasks
from ptune import TrainRecipe, train
from ptune.config import TaskType
from ptune.data.tasks import CLASSIFY, TaskCollator, TaskExample, encode_task
from ptune.loading.load import load_model, load_tokenizer

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LENGTH, BATCH, TRAIN_ROWS = 20, 8, 2000


def drawn(rows: list[Pair], count: int) -> list[Pair]:
    """So many of the rows, the same always."""
    return random.Random(1).sample(rows, min(count, len(rows)))


class Bench:
    """One task: its rows, its labels, and both contenders.

    Args:
        options: The command line.
        name: The task.
        rows: To train on, to choose by, to report on.
        runs: What was measured so far.
    """

    def __init__(self, options: argparse.Namespace, name: str, rows: Any, runs: dict[str, Any]) -> None:
        self.options, self.name, self.runs = options, name, runs
        counts = (TRAIN_ROWS, options.chosen_by, options.held_out)
        self.parts = dict(zip(("train", "chosen_by", "held_out"), map(drawn, rows, counts), strict=True))
        self.labels = sorted({label for part in self.parts.values() for _, label in part})
        self.work = Path(options.work)
        self.tokenizer = load_tokenizer(options.model)
        for part, its in self.parts.items():
            lines = [json.dumps({"text": text, "label": label}) for text, label in its]
            (self.work / f"{name}_{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def encoded(self, part: str) -> Any:
        """The token ids and labels of rows."""
        rows = [TaskExample(text=text, label=label) for text, label in self.parts[part]]
        return encode_task(rows, self.tokenizer, CLASSIFY, labels=self.labels, max_length=128).dataset

    def arguments(self, name: str, **values: Any) -> TrainingArguments:
        """What both contenders' runs have in common."""
        return TrainingArguments(
            output_dir=str(self.work / name), max_steps=self.options.steps, per_device_train_batch_size=BATCH,
            lr_scheduler_type="linear", report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
            logging_steps=1000, **values,
        )  # fmt: skip

    @torch.no_grad()
    def scores(self, model: Any, side: str) -> dict[str, float]:
        """Accuracy and loss on the rows to choose by and those to report on."""
        collate = TaskCollator(int(self.tokenizer.pad_token_id), CLASSIFY, padding_side=side)
        found: dict[str, float] = {}
        model.eval()
        for part in ("chosen_by", "held_out"):
            data = self.encoded(part)
            right, loss = 0, 0.0
            for start in range(0, len(data), 20):
                batch = collate([data[row] for row in range(start, min(start + 20, len(data)))])
                output = model(**batch)
                right += int((output.logits.argmax(dim=-1) == batch["labels"]).sum())
                loss += float(output.loss) * len(batch["labels"])
            found |= {f"{part}_accuracy": right / len(data), f"{part}_loss": loss / len(data)}
        return found

    def ptune(self, seed: int) -> dict[str, Any]:
        """`ptune train` as it comes."""

        def run() -> dict[str, Any]:
            name = f"ptune-{seed}"
            recipe = TrainRecipe(
                model=self.options.model, data=str(self.work / f"{self.name}_train.jsonl"), task=CLASSIFY,
                output=str(self.work / self.name / name), dtype="float32", num_virtual_tokens=LENGTH, max_length=128,
                overwrite=True,
            )  # fmt: skip
            given = {"max_steps": self.options.steps, "seed": seed, "save_strategy": "no", "logging_steps": 20}
            return self.scores(train(recipe, given, Console(quiet=True)).model, "right")

        return once(self.work, self.runs, f"{self.name}/ptune-seed-{seed}", run)

    def peft(self, seed: int, rate: float) -> dict[str, Any]:
        """PEFT's P-tuning."""

        def run() -> dict[str, Any]:
            torch.manual_seed(seed)
            base = load_model(
                self.options.model, dtype="float32", device="cpu", task=TaskType.SEQ_CLS, labels=self.labels
            )
            base.config.pad_token_id = self.tokenizer.pad_token_id
            config = peft.PromptEncoderConfig(
                task_type="SEQ_CLS", num_virtual_tokens=LENGTH, encoder_hidden_size=base.config.hidden_size
            )
            model = peft.get_peft_model(base, config)
            Trainer(
                model=model,
                args=self.arguments(
                    "peft", learning_rate=rate, seed=seed, warmup_steps=0.05, remove_unused_columns=False
                ),
                train_dataset=self.encoded("train"),
                data_collator=TaskCollator(int(self.tokenizer.pad_token_id), CLASSIFY, padding_side="left"),
            ).train()
            return self.scores(model, "left")

        return once(self.work, self.runs, f"{self.name}/peft-rate-{rate:g}-seed-{seed}", run)

    def compared(self, say: Console) -> dict[str, Any]:
        """Both contenders, three seeds each."""
        tried = {f"{rate:g}": self.peft(0, rate) for rate in RATES}
        best = max(RATES, key=lambda rate: tried[f"{rate:g}"]["chosen_by_accuracy"])
        runs = {
            "ptune": [self.ptune(seed) for seed in range(self.options.seeds)],
            "peft": [self.peft(seed, best) for seed in range(self.options.seeds)],
        }
        found: dict[str, Any] = {"task": self.name, "labels": len(self.labels), "peft_best_rate": best}
        found["peft_rates_tried"] = {rate: run["chosen_by_accuracy"] for rate, run in tried.items()}
        for who, its in runs.items():
            found[who] = {
                name: [run[name] for run in its] for name in ("held_out_accuracy", "held_out_loss", "cpu_seconds")
            }
        say.print(self.name, found)
        return found


def main() -> None:
    """Measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--name", default="", help="what the model is called in the result")
    parser.add_argument("--data", default="../shared/data", help="folder with sst2 and trec")
    parser.add_argument("--tasks", default="sst2,trec")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--chosen-by", type=int, default=200, help="rows to choose the rate by")
    parser.add_argument("--held-out", type=int, default=400, help="rows to report on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="outputs/classify")
    parser.add_argument("--output", type=Path, default=RESULTS / "classify.json")
    options, say = parser.parse_args(), Console()
    torch.set_num_threads(options.threads)
    runs, tasks = kept_runs(Path(options.work)), read_tasks(Path(options.data))
    settings = {name: getattr(options, name) for name in ("steps", "seeds", "chosen_by", "held_out", "threads")}
    compared = [Bench(options, name, tasks[name], runs).compared(say) for name in options.tasks.split(",")]
    part = {
        **heading((__doc__ or "").partition("\n")[0], f"python benchmarks/classify.py --tasks {options.tasks}"),
        "settings": {**settings, "model": options.name or options.model, "virtual_tokens": LENGTH, "batch": BATCH},
        "status": OK,
        "compared": compared,
        "runs": runs,
    }
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    write({**kept, options.name or options.model: part}, options.output)
    table = Table("task", "", "accuracy on held-out rows", "loss", "CPU seconds")
    for one in compared:
        for who in ("ptune", "peft"):
            its = one[who]
            each = ", ".join(f"{accuracy:.1%}" for accuracy in its["held_out_accuracy"])
            table.add_row(
                one["task"], who, f"{statistics.fmean(its['held_out_accuracy']):.1%} ({each})",
                f"{statistics.fmean(its['held_out_loss']):.3f}", f"{statistics.fmean(its['cpu_seconds']):.0f}",
            )  # fmt: skip
    say.print(table)


if __name__ == "__main__":
    main()
