"""Is a reloaded checkpoint the prompt that was measured, and does a resumed run go on where it stopped?

    python benchmarks/best_checkpoint.py [--rounds 1]

Each contender trains one prompt through `transformers.Trainer` (`ptune-plain`, `peft`) or `PTuneTrainer` (`ptune`),
measures held-out rows every other step and keeps checkpoints. Reported, in nats per answer token:

- `best_recorded` and `best_reloaded`: the lowest held-out loss of the run, and what the trainer measures when
  `load_best_model_at_end` has brought that checkpoint back;
- `end_alone` and `end_resumed`: the held-out loss after the last step of the run, and of a new model that began at the
  checkpoint in its middle (`resume_from_checkpoint`) and was trained for the rest of the steps.

PEFT keeps the virtual tokens that the prompt encoder gave, and nothing of the encoder itself, and puts them into the
encoder's table when it loads them.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import contenders
import workload
from harness import Answer, Benchmark, Case, Settings, command_line, main
from ptune import PackingCollator, PTuneTrainer

HELD_OUT_ROWS = 16
STEPS, MEASURED_EVERY = 12, 2
CONTENDERS = ("peft", "ptune-plain", "ptune")


def work(contender: str, settings: Settings) -> Answer:
    """Train with checkpoints, bring the best one back, and go on from the one in the middle."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    loaded = workload.load(settings)
    held_out = loaded.rows.select(range(HELD_OUT_ROWS))
    rows = loaded.rows.select(range(HELD_OUT_ROWS, len(loaded.rows)))

    def trainer(folder: str, *, best: bool) -> Trainer:
        model, _ = contenders.prompted("peft" if contender == "peft" else "ptune-packed", loaded, settings)
        collate: Any = PackingCollator()
        if contender == "peft":
            collate = DataCollatorForSeq2Seq(tokenizer=loaded.tokenizer, padding=True)
        kind = PTuneTrainer if contender == "ptune" else Trainer
        return kind(
            model=model,
            args=_arguments(folder, settings, best=best),
            train_dataset=rows,
            eval_dataset=held_out,
            data_collator=collate,
        )

    with tempfile.TemporaryDirectory() as folder:
        transformers.set_seed(settings["seed"])
        first = trainer(folder, best=True)
        first.train()
        measured = [entry["eval_loss"] for entry in first.state.log_history if "eval_loss" in entry]
        reloaded = _measure(first)
        middle = str(Path(folder) / f"checkpoint-{STEPS // 2}")
        transformers.set_seed(settings["seed"])
        again = trainer(folder + "/again", best=False)
        again.train(resume_from_checkpoint=middle)
        return {
            "best_recorded": min(measured),
            "best_reloaded": reloaded,
            "end_alone": measured[-1],
            "end_resumed": _measure(again),
            "measured": measured,
            "best_step": first.state.best_global_step,
        }


def _measure(trainer: Trainer) -> float:
    found: dict[str, float] = trainer.evaluate()
    return found["eval_loss"]


def _arguments(folder: str, settings: Settings, *, best: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=settings["batch"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=MEASURED_EVERY,
        save_steps=MEASURED_EVERY,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=settings["device"] == "cpu",
        seed=settings["seed"],
    )


BENCHMARK = Benchmark(
    name="best_checkpoint",
    what="Held-out loss of the best checkpoint as it was recorded and as it is after load_best_model_at_end, and at "
    "the end of a run that was resumed in its middle, beside the run left alone.",
    script=Path(__file__),
    work=work,
    metrics=("best_recorded", "best_reloaded", "end_alone", "end_resumed"),
    references=(),
)


def cases(options: argparse.Namespace) -> list[Case]:
    """Both encoders that PEFT has."""
    settings = {**workload.common_settings(options), "n": 10, "rows": options.rows + HELD_OUT_ROWS}
    return [
        Case(label=f"{kind} n=10", settings={**settings, "encoder": kind, "learning_rate": rate}, contenders=CONTENDERS)
        for kind, rate in (("mlp", 3e-3), ("lstm", 3e-3))
    ]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=1)
    workload.add_flags(parser, rows=96)
    main(BENCHMARK, parser, cases, argv)


if __name__ == "__main__":
    run()
