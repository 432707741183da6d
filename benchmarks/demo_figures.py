"""What does `ptune demo` reach, and what does an answer take? The READMEs show the figures and the picture.

    python benchmarks/demo_figures.py [--output FILE] [--picture FILE] [--finished FOLDER]

Runs the demo as it comes. Its own seconds are wall time, so answers are timed once more: in CPU time, on one thread,
the columns in turn batch by batch, so that whatever else runs on the machine falls on all of them alike. The seconds of
the training are those of the demo's run, and want quiet cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from harness import RESULTS, ROOT, heading, write
from ptune.answering import Answerer
from ptune.cli import demo
from ptune.evaluation.asked_rows import read_asked
from ptune.evaluation.bootstrap import Score
from ptune.evaluation.columns import ALONE, PROMPT, WRITTEN, Column, item_texts, plain_column
from ptune.evaluation.evaluate_settings import EvaluateSettings
from ptune.evaluation.evaluation_result import Cost, MetricScores
from ptune.evaluation.measured import outcomes
from ptune.evaluation.metrics import METRICS, Metric, with_keys
from ptune.evaluation.told_in_words import Telling, told_in_words
from ptune.training.output import METRICS as LOG
from ptune.training.progress import read_metrics

COMMAND = ("ptune", "demo", "--overwrite", "--json")
WHAT = "The demo with its default settings; and the CPU time of an answer, on one thread, columns in turn."
JSON = "demo.json"
COLUMNS = (ALONE, WRITTEN, PROMPT)


def run_demo(folder: Path) -> None:
    """Run the demo in a process of its own; what it prints for machines goes beside its prompt."""
    command = [sys.executable, "-m", *COMMAND, "--output", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (folder / JSON).write_text(done.stdout, encoding="utf-8")


def cpu_seconds_an_answer(folder: Path, rows: int) -> dict[str, float]:
    """CPU time of an answer in each column, on one thread, over so many of the held-out messages."""
    torch.set_num_threads(1)
    answerer = Answerer.open(folder)
    model, tokenizer, template = answerer.model.eval(), answerer.tokenizer, answerer.template
    settings = EvaluateSettings(
        data=demo.HELD_OUT, limit=rows, metrics=("json",), written_prompt=demo.WRITTEN_PROMPT, shots_data=demo.TRAIN
    )
    asked = read_asked(settings)
    texts = [item_texts(item, template, tokenizer, None) for item in asked.items]
    telling = Telling.drawn(settings.written_prompt, asked.pool, demo.WRITTEN_SHOTS, settings.seed)
    used = dict.fromkeys(COLUMNS, 0.0)
    with ExitStack() as stack:
        told = told_in_words(answerer, asked.items, telling, plain=texts, new_tokens=demo.MAX_NEW_TOKENS)
        columns: list[Column] = [
            plain_column(ALONE, texts, None, 0),
            stack.enter_context(told)[0],
            plain_column(PROMPT, texts, model.active_prompt, demo.VIRTUAL_TOKENS),
        ]
        batches = zip(*(column.batches(range(len(texts)), settings.batch_size) for column in columns), strict=True)
        for in_turn in batches:
            for column, numbers in zip(columns, in_turn, strict=True):
                began = time.process_time()
                outcomes(model, tokenizer, column, numbers, asked.needs, max_new_tokens=demo.MAX_NEW_TOKENS)
                used[column.name] += time.process_time() - began
    return {name: round(seconds / len(texts), 3) for name, seconds in used.items()}


def draw(folder: Path, evaluation: dict[str, Any], seconds: dict[str, float], picture: Path) -> None:
    """The demo's picture, with the CPU time of an answer."""
    known: dict[str, Metric] = {one.name: one for one in with_keys(list(METRICS), read_asked(_rows()).items)}
    metrics = [
        MetricScores(known[name], {column: Score(**scores[column]) for column in COLUMNS}, {})
        for name, scores in evaluation["metrics"].items()
    ]
    steps = max(record["step"] for record in read_metrics(folder / LOG))
    demo.draw(
        picture,
        folder,
        items=evaluation["items"],
        took=f"{steps:,} steps",
        metrics=metrics,
        costs={column: Cost(evaluation["costs"][column]["prompt_tokens"], seconds[column]) for column in COLUMNS},
    )


def _rows() -> EvaluateSettings:
    return EvaluateSettings(data=demo.HELD_OUT, limit=1, shots=0)


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "demo.json", help="default %(default)s")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/demo.png", help="default %(default)s")
    parser.add_argument("--finished", type=Path, metavar="FOLDER", help=f"of an earlier run; {JSON} in it is its JSON")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        folder = options.finished or Path(place) / "demo"
        if options.finished is None:
            run_demo(folder)
        found = json.loads((folder / JSON).read_text(encoding="utf-8").replace(f"{ROOT}/", ""))
        del found["output"]
        seconds = cpu_seconds_an_answer(folder, found["evaluation"]["items"])
        draw(folder, found["evaluation"], seconds, options.picture)
    whole = {
        **heading(WHAT, " ".join(COMMAND)),
        "cpu_seconds_an_answer": seconds,
        "result": found,
    }
    write(whole, options.output)


if __name__ == "__main__":
    run()
