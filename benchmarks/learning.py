"""Does `ptune train` as it comes learn better than P-tuning with PEFT's start at its best learning rate?

    python benchmarks/learning.py --data ../shared/data [--lengths 10,20] [--seeds 3] [--steps 60]

SST-2, TREC and E2E: the same rows in the same order, the same steps, batch and number of virtual tokens, the frozen
SmolLM2-135M. The reference is an MLP with the start that PEFT gives it (PyTorch's default initialisation, an output
deviation of about 0.1) under Trainer's linear schedule, at the best of `RATES`, chosen for each task and length by the
loss on rows that are reported nowhere else; its gradients are PEFT's (`tests/invariants`). ptune runs as it comes, and
once more in half the steps. Then, on one task, both at rates within a factor of ten either side of ptune's default and
of the reference's best. Everything measured is kept in `--work`, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness import OK, RESULTS, ROOT, heading, write
from plots import plot_robustness
from ptune import TrainRecipe, train
from ptune.data.template import get_template
from ptune.encoders import build_encoder
from ptune.evaluation.held_out_loss import held_out_loss
from ptune.frozen.parts import token_dim
from ptune.loading.load import load_tokenizer
from ptune.prompt.default_rate import default_learning_rate
from ptune.training.batches import choose_collator
from ptune.training.rows import load_rows
from ptune.training.run_model import causal_model
from ptune.training.train import training_arguments
from ptune.training.trainer import PTuneTrainer

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
QUESTION_TYPES = ("description", "entity", "abbreviation", "human", "location", "number")
TRAINERS_OWN = {"adam_beta1": 0.9, "adam_beta2": 0.999}
"""What the reference's optimizer takes in place of ptune's defaults."""
TRAIN_ROWS = 2000
RUNS = "runs.json"
PICTURE = ROOT / "docs" / "images" / "robustness.png"
Pair = tuple[str, str]


def labelled(path: Path, names: Sequence[str]) -> list[Pair]:
    """Rows of a file with a class number, a space and a text in each line."""
    lines = path.read_text(encoding="latin-1").splitlines()
    return [(line[2:].strip(), names[int(line[0])]) for line in lines if line.strip()]


def described(path: Path) -> list[Pair]:
    """Rows of E2E: attributes and a sentence."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["mr"], row["ref"]) for row in csv.DictReader(file)]


def read_tasks(folder: Path) -> dict[str, tuple[list[Pair], list[Pair], list[Pair]]]:
    """Of each task the rows to train on, to choose by, and to report on; E2E's share no input."""
    mood = ("negative", "positive")
    sst2 = [labelled(folder / "sst2" / f"stsa.binary.{part}", mood) for part in ("train", "dev", "test")]
    questions = labelled(folder / "trec" / "TREC.train.all", QUESTION_TYPES)
    random.Random(0).shuffle(questions)
    e2e = described(folder / "e2e_nlg" / "devset.csv")
    inputs = sorted({row for row, _ in e2e})
    chosen_by = set(random.Random(0).sample(inputs, len(inputs) // 5))
    return {
        "sst2": (sst2[0], sst2[1], sst2[2]),
        "trec": (questions[:-900], questions[-900:], labelled(folder / "trec" / "TREC.test.all", QUESTION_TYPES)),
        "e2e": (
            [row for row in e2e if row[0] not in chosen_by],
            [row for row in e2e if row[0] in chosen_by],
            described(folder / "e2e_nlg" / "testset_w_refs.csv"),
        ),
    }


def kept_runs(work: Path) -> dict[str, Any]:
    """What was measured so far, by name; the folder is made."""
    work.mkdir(parents=True, exist_ok=True)
    kept = work / RUNS
    return dict(json.loads(kept.read_text(encoding="utf-8"))) if kept.exists() else {}


def once(work: Path, runs: dict[str, Any], key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a run gave, now or earlier; `runs` and the file in `work` know it from now on."""
    if key not in runs:
        began = time.process_time()
        runs[key] = {**run(), "cpu_seconds": time.process_time() - began}
        (work / RUNS).write_text(json.dumps(runs, indent=1), encoding="utf-8")
    return dict(runs[key])


class Lab:
    """Trains prompts on one task and notes what came out, each run once.

    Args:
        options: The command line.
        name: The task.
        rows: To train on, to choose by, to report on.
        runs: What was measured so far, by name; kept in `options.work`.
    """

    def __init__(
        self, options: argparse.Namespace, name: str, rows: Sequence[list[Pair]], runs: dict[str, Any]
    ) -> None:
        self.options, self.name, self.runs = options, name, runs
        self.folder = Path(options.work) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        counts = (TRAIN_ROWS, options.held_out, options.held_out)
        for part, given, count in zip(("train", "chosen_by", "held_out"), rows, counts, strict=True):
            drawn = random.Random(0).sample(given, min(count, len(given)))
            values = [{"instruction": question, "output": answer} for question, answer in drawn]
            self.file(part).write_text(json.dumps(values), encoding="utf-8")

    def file(self, part: str) -> Path:
        """Where rows lie."""
        return self.folder / f"{part}.json"

    def recipe(self, name: str, length: int, held_out: str = "held_out", **values: Any) -> TrainRecipe:
        """As a user would write it."""
        return TrainRecipe(
            model=self.options.model, data=str(self.file("train")), eval_data=str(self.file(held_out)),
            output=str(self.folder / name), overwrite=True, num_virtual_tokens=length, **values,
        )  # fmt: skip

    def once(self, name: str, run: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """What a run gave, now or earlier."""
        return once(Path(self.options.work), self.runs, f"{self.name}/{name}", lambda: run(name))

    def ptune(
        self, length: int, seed: int, steps: int, rate: float | None = None, *, dtype: str = "float32"
    ) -> dict[str, Any]:
        """As ptune comes, or at another rate, behind the model in one precision."""
        given = {} if rate is None else {"learning_rate": rate}

        def run(name: str) -> dict[str, Any]:
            arguments = {"max_steps": steps, "seed": seed, "eval_strategy": "no", "logging_steps": 1, **given}
            result = train(self.recipe(name, length, dtype=dtype), arguments, Console(quiet=True))
            assert result.before is not None
            assert result.after is not None
            return {
                "learning_rate": rate or default_learning_rate(result.model.base, self.recipe(name, length).encoder),
                "held_out_loss": result.after.loss,
                "model_alone": result.before.loss,
            }

        precision = "" if dtype == "float32" else f"-{dtype}"
        return self.once(f"ptune-n{length}-{steps}-steps-rate-{rate or 'default'}-seed-{seed}{precision}", run)

    def reference(self, length: int, seed: int, rate: float) -> dict[str, Any]:
        """An MLP with PEFT's start under Trainer's linear schedule."""

        def run(name: str) -> dict[str, Any]:
            recipe = self.recipe(name, length, encoder="mlp", dtype="float32")
            steps = self.options.steps
            args = training_arguments(
                recipe,
                {
                    "max_steps": steps,
                    "seed": seed,
                    "learning_rate": rate,
                    **TRAINERS_OWN,
                    "eval_strategy": "no",
                    "save_strategy": "no",
                    "disable_tqdm": True,
                },
            )
            tokenizer = load_tokenizer(recipe.model)
            rows = load_rows(recipe, get_template(recipe.template, tokenizer), tokenizer, args, progress=False)
            model = causal_model(recipe, args, tokenizer)
            torch.manual_seed(seed)
            encoder = model.add_prompt("default", recipe.prompt_config(), tokenizer=tokenizer)
            start = build_encoder("mlp", num_virtual_tokens=length, token_dim=token_dim(model.base))
            encoder.load_state_dict(start.state_dict())
            collate = choose_collator(recipe, args, model, tokenizer, ())
            trainer = PTuneTrainer(model=model, args=args, train_dataset=rows.tokens.dataset, data_collator=collate)
            trainer.train()
            chosen_by = load_rows(
                self.recipe(name, length, "chosen_by"), rows.template, tokenizer, args, progress=False
            )
            model.save_pretrained(self.folder / name)
            return {
                "learning_rate": rate,
                "loss_chosen_by": held_out_loss(model, chosen_by.held_out_tokens.dataset, collate).loss,
                "held_out_loss": held_out_loss(model, rows.held_out_tokens.dataset, collate).loss,
            }

        return self.once(f"reference-n{length}-{self.options.steps}-steps-rate-{rate:g}-seed-{seed}", run)


def compared(lab: Lab, length: int, options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Both sides over the seeds, the reference at its best rate."""
    tried = {f"{rate:g}": lab.reference(length, 0, rate)["loss_chosen_by"] for rate in RATES}
    best = float(min(tried, key=tried.__getitem__))
    runs = {
        "reference": [lab.reference(length, seed, best) for seed in range(options.seeds)],
        "ptune": [lab.ptune(length, seed, options.steps) for seed in range(options.seeds)],
        "ptune_half": [lab.ptune(length, seed, options.steps // 2) for seed in range(options.seeds)],
    }
    losses = {name: [run["held_out_loss"] for run in part] for name, part in runs.items()}
    say.print(f"{lab.name} n={length}: " + ", ".join(f"{name} {statistics.fmean(x):.3f}" for name, x in losses.items()))
    return {
        "task": lab.name,
        "virtual_tokens": length,
        "reference_rates_tried": tried,
        "reference_rate": best,
        "ptune_rate": runs["ptune"][0]["learning_rate"],
        "model_alone": runs["ptune"][0]["model_alone"],
        "held_out_loss": losses,
    }


def robustness(lab: Lab, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out loss at rates within a factor of ten either side, of ptune's default and of the reference's best."""
    default = lab.ptune(length, 0, options.steps)["learning_rate"]
    tried = {rate: lab.reference(length, 0, rate)["loss_chosen_by"] for rate in RATES}
    best = min(tried, key=tried.__getitem__)
    curves = {
        "ptune": [
            (factor, lab.ptune(length, 0, options.steps, None if factor == 1 else float(f"{default * factor:.3g}")))
            for factor in FACTORS
        ],
        "reference": [(factor, lab.reference(length, 0, float(f"{best * factor:.3g}"))) for factor in FACTORS],
    }
    points = {
        name: [
            {"factor": factor, **{key: run[key] for key in ("learning_rate", "held_out_loss")}} for factor, run in part
        ]
        for name, part in curves.items()
    }
    return {"task": lab.name, "virtual_tokens": length, "points": points}


def measure(options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Every task and length, then the rates."""
    runs = kept_runs(Path(options.work))
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        **heading((__doc__ or "").partition("\n")[0], "python benchmarks/learning.py"),
        "settings": {
            name: getattr(options, name)
            for name in ("model", "steps", "seeds", "held_out", "lengths", "tasks", "threads")
        },
        "status": "not finished",
        "compared": [],
    }
    tasks = read_tasks(Path(options.data))
    labs = {name: Lab(options, name, tasks[name], runs) for name in options.tasks.split(",")}
    for length in (int(part) for part in options.lengths.split(",")):
        for lab in labs.values():
            result["compared"].append(compared(lab, length, options, say))
            write({**result, "runs": runs}, options.output)
    if options.robustness in labs:
        result["robustness"] = robustness(labs[options.robustness], int(options.lengths.split(",")[0]), options)
    result |= {"status": OK, "runs": runs}
    write(result, options.output)
    return result


def report(result: dict[str, Any], say: Console) -> None:
    """A table: mean over the seeds, with the least and the greatest."""
    table = Table(
        "task", "n", "model alone", "PEFT's start, best rate", "rate", "ptune", "rate", "ptune, half the steps"
    )
    for one in result["compared"]:
        spread = {
            name: f"{statistics.fmean(x):.3f} ({min(x):.3f} to {max(x):.3f})"
            for name, x in one["held_out_loss"].items()
        }
        table.add_row(
            one["task"], str(one["virtual_tokens"]), f"{one['model_alone']:.3f}", spread["reference"],
            f"{one['reference_rate']:g}", spread["ptune"], f"{one['ptune_rate']:g}", spread["ptune_half"],
        )  # fmt: skip
    say.print(table)


def main() -> None:
    """Measure, write the result, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--data", default="../shared/data", help="folder with sst2, trec and e2e_nlg")
    parser.add_argument("--tasks", default="sst2,trec,e2e")
    parser.add_argument("--lengths", default="20,10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=120, help="rows to choose by, and to report on")
    parser.add_argument("--robustness", default="trec", help="the task of the plot over rates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="outputs/learning")
    parser.add_argument("--output", type=Path, default=RESULTS / "learning.json")
    options = parser.parse_args()
    say = Console()
    result = measure(options, say)
    report(result, say)
    if "robustness" in result:
        say.print(f"drawn: {plot_robustness(result['robustness'], PICTURE)}")


if __name__ == "__main__":
    main()
