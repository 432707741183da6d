"""How long does it take to evaluate a prompt on a thousand rows, against PEFT?

    python benchmarks/evaluation_speed.py [--rounds 1] [--rows 1000] [--answered-rows 200]

`loss` is the mean loss over the answer tokens of all rows, as `ptune evaluate` takes it, and as one takes it with PEFT:
padded batches through the model, in the order of the data (`peft`) or sorted by length (`peft-sorted`). `answers` is a
greedy answer to some of the questions, in batches of 16 sorted by length, with no end token, so that all are of one
length. The prompts are equal, and so must the losses be.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq

import workload
from contenders import prompted
from harness import Answer, Benchmark, Case, Settings, command_line, main, measuring
from ptune.data.labels import IGNORE_INDEX
from ptune.evaluation.answers import generate_answers
from ptune.evaluation.row_losses import LearnedRow, row_losses

CONTENDERS = ("peft", "peft-sorted", "ptune")
ANSWERS = {"answer_batch": 16, "new_tokens": 16}
PARTS = ("loss", "answers")


def evaluate(contender: str, settings: Settings) -> Answer:
    """Load, evaluate some rows to warm up, and measure both parts."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    loaded = workload.load(settings)
    model: Any = prompted(contender, loaded, settings)[0].eval()
    loss_of(contender, model, loaded.warm_up, loaded, settings)
    with measuring(settings["device"]) as losses:
        loss, tokens = loss_of(contender, model, loaded.rows, loaded, settings)
    questions = [asked(row) for row in loaded.rows.select(range(settings["answered_rows"]))]
    answer(contender, model, questions[: settings["answer_batch"]], loaded, settings)
    with measuring(settings["device"]) as answers:
        answered = answer(contender, model, questions, loaded, settings)
    measured = {"loss": losses, "answers": answers}
    return {
        **{f"{part}_{name}": measured[part][name] for part in PARTS for name in ("cpu_seconds", "wall_seconds")},
        "loss_peak_gib": losses["peak_gib"],
        "loss": loss,
        "answer_tokens": tokens,
        "answers": answered,
        "rows": len(loaded.rows),
        "tokens": sum(map(len, loaded.rows["input_ids"])),
        "gpu": torch.cuda.get_device_name() if settings["device"] == "cuda" else None,
    }


@torch.no_grad()
def loss_of(
    contender: str, model: Any, rows: Dataset, loaded: workload.Workload, settings: Settings
) -> tuple[float, int]:
    """The mean over the answer tokens of all rows, and how many they are."""
    order = list(range(len(rows)))
    if contender != "peft":
        order.sort(key=[len(ids) for ids in rows["input_ids"]].__getitem__)
    if contender == "ptune":
        batch = [LearnedRow(rows[at]["input_ids"], rows[at]["labels"], model.active_prompt) for at in order]
        found = row_losses(model, batch)
        tokens = sum(one.tokens for one in found)
        return sum(one.total for one in found) / tokens, tokens
    collate = DataCollatorForSeq2Seq(tokenizer=loaded.tokenizer, padding=True)
    total, tokens = 0.0, 0
    for numbers in batches(order, settings["batch"]):
        inputs = collate([rows[at] for at in numbers]).to(settings["device"])
        count = int((inputs["labels"] != IGNORE_INDEX).sum())
        total, tokens = total + float(model(**inputs).loss) * count, tokens + count
    return total / tokens, tokens


@torch.no_grad()
def answer(
    contender: str, model: Any, questions: Sequence[list[int]], loaded: workload.Workload, settings: Settings
) -> int:
    """Answer questions; gives the new tokens."""
    count, size = settings["new_tokens"], settings["answer_batch"]
    if contender == "ptune":
        names, options = [model.active_prompt] * len(questions), {"eos_token_id": None}
        generate_answers(
            model, loaded.tokenizer, questions, prompt_names=names, batch_size=size, max_new_tokens=count, **options
        )
        return len(questions) * count
    new = 0
    for part in batches(sorted(questions, key=len), size):
        width = max(map(len, part))
        ids = torch.full((len(part), width), int(loaded.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        for row, one in enumerate(part):
            ids[row, width - len(one) :], mask[row, width - len(one) :] = torch.tensor(one), 1
        options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        device = settings["device"]
        made = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), **options)
        new += (made.shape[1] - width) * len(part)
    return new


def asked(row: dict[str, Any]) -> list[int]:
    """The question of a row."""
    return row["input_ids"][: sum(label == IGNORE_INDEX for label in row["labels"])]


def batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """So many values at a time."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


BENCHMARK = Benchmark(
    name="evaluation_speed",
    what="CPU time and wall time of an evaluation: the loss of a thousand rows, and greedy answers to some of their "
    "questions, in ptune and with PEFT.",
    script=Path(__file__),
    work=evaluate,
    metrics=tuple(f"{part}_{name}" for part in PARTS for name in ("cpu_seconds", "wall_seconds")),
    references=("peft", "peft-sorted"),
)


def evaluation_cases(options: argparse.Namespace) -> list[Case]:
    """One prompt, of the default length."""
    shared = {**workload.common_settings(options), **ANSWERS, "encoder": "mlp"}
    shared["answered_rows"] = min(options.answered_rows, shared["rows"])
    return [Case(label="mlp n=10", settings={**shared, "n": 10}, contenders=CONTENDERS)]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=1)
    workload.add_flags(parser, rows=1000)
    parser.add_argument(
        "--answered-rows", type=int, default=200, help="rows whose questions are answered (default 200)"
    )
    main(BENCHMARK, parser, evaluation_cases, argv)


if __name__ == "__main__":
    run()
