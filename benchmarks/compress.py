"""What is a compressed prompt worth beside the whole text in front, at several lengths?

    python benchmarks/compress.py --work DIR [--only job,manual]

Two texts on SmolLM2-135M in float32. `job`: the demo's job in words with four examples, into 16 and 64 virtual tokens,
from the demo's training messages without their tickets; measured on its held-out messages. `manual`: the manual of a
product that does not exist, written for this project, into three lengths, from questions that the model asks itself;
measured on questions with answers that no training saw (`benchmarks/manual`). Each text is studied once, and every
length learns from the same study. What `--work` holds from an earlier run is taken, not made again. Draws
`docs/images/compress.png`. Two hours.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from harness import RESULTS, ROOT, heading, write
from ptune import compress
from ptune.cli.demo import HELD_OUT, MODEL, TRAIN, WRITTEN_PROMPT, WRITTEN_SHOTS
from ptune.compression.compress_report import COMPRESSED, NOTHING, REPORT, TEXT
from ptune.compression.compress_settings import STUDY
from ptune.compression.study_files import ROWS
from ptune.evaluation.picture import save_figure
from ptune.training.progress import read_metrics

WHAT = "What a prompt that a text is compressed into is worth beside the whole text in front, and what it costs."
MANUAL = ROOT / "benchmarks" / "manual"
JOB = (("prefix", 64), ("prefix", 16), ("embedding", 64))
LENGTHS = (64, 256, 1024)
MESSAGES, KEPT_OUT = 384, 10


def job_text() -> str:
    """The demo's job in words with four examples, as the tutorial's template writes them."""
    rows = [json.loads(line) for line in Path(TRAIN).read_text().splitlines()[:WRITTEN_SHOTS]]
    shown = "".join(f"\n\nHuman: {row['instruction']}\n\nAssistant: {row['output']}<|im_end|>" for row in rows)
    return WRITTEN_PROMPT + shown


def messages() -> str:
    """Messages alone, of rows that are shown nowhere."""
    rows = [json.loads(line) for line in Path(TRAIN).read_text().splitlines()][KEPT_OUT:]
    random.Random(0).shuffle(rows)
    return "".join(json.dumps({"instruction": row["instruction"]}) + "\n" for row in rows[:MESSAGES])


def job_runs(work: Path) -> dict[str, dict[str, Any]]:
    """The settings of each run, by name; the first one studies."""
    text, asked = work / "job.txt", work / "messages.jsonl"
    text.write_text(job_text())
    asked.write_text(messages())
    same = {
        "text": str(text), "data": str(asked), "questions": MESSAGES, "template": "tutorial", "answer_tokens": 48,
        "num_train_epochs": 4, "eval_data": HELD_OUT, "report_rows": 90,
    }  # fmt: skip
    return {f"job-{encoder}-{n}": {**same, "encoder": encoder, "num_virtual_tokens": n} for encoder, n in JOB}


def manual_runs(_work: Path) -> dict[str, dict[str, Any]]:
    """The same of the manual."""
    same = {
        "text": str(MANUAL / "manual.md"), "questions": 240, "answer_tokens": 48, "num_train_epochs": 4,
        "eval_data": str(MANUAL / "questions.jsonl"), "report_rows": 96,
    }  # fmt: skip
    return {f"manual-prefix-{n}": {**same, "encoder": "prefix", "num_virtual_tokens": n} for n in LENGTHS}


TEXTS = {"job": job_runs, "manual": manual_runs}


def measured(work: Path, which: str, say: Console) -> list[dict[str, Any]]:
    """Every run of a text."""
    found, study = [], None
    for name, settings in TEXTS[which](work).items():
        folder = work / name
        if not (folder / REPORT).is_file():
            begun = {"overwrite": True} if folder.exists() else {}
            more = {} if study is None else {"study": str(study)}
            compress(
                model=MODEL, dtype="float32", output=str(folder), use_cpu=True, console=say, **settings, **more, **begun
            )
        study = study or folder
        report = json.loads((folder / REPORT).read_text())
        history = [one["eval_loss"] for one in read_metrics(folder / "metrics.jsonl") if "eval_loss" in one]
        found.append(
            {
                "name": name,
                "settings": {key: value for key, value in settings.items() if key not in ("text", "data", "eval_data")},
                "rows": sum(1 for _ in (study / STUDY / ROWS).open()),
                "held_out_divergence_by_epoch": [round(one, 4) for one in history],
                "questions": report["questions"],
                "answer_tokens": report["answer_tokens"],
                "columns": {one["name"]: one for one in report["columns"]},
            }
        )
    return found


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Agreement and divergence over the number of virtual tokens, a line a text and encoder."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["name"].rpartition("-")[0], []).append(run)
    titles = {"job-prefix": "job, prefix", "job-embedding": "job, embedding", "manual-prefix": "manual, prefix"}
    for name, group in groups.items():
        ordered = sorted(group, key=lambda run: run["settings"]["num_virtual_tokens"])
        lengths = [run["settings"]["num_virtual_tokens"] for run in ordered]
        columns = [run["columns"][COMPRESSED] for run in ordered]
        text = ordered[0]["columns"][TEXT]["tokens"]
        label = f"{titles[name]} ({text:,} tokens)"
        lines = left.plot(lengths, [100 * one["token_agreement"] for one in columns], marker="o", label=label)
        right.plot(lengths, [one["divergence"] for one in columns], marker="o", color=lines[0].get_color())
        nothing = ordered[0]["columns"][NOTHING]
        left.axhline(100 * nothing["token_agreement"], color=lines[0].get_color(), lw=0.8, ls=":")
        right.axhline(nothing["divergence"], color=lines[0].get_color(), lw=0.8, ls=":")
    for axes, title in ((left, "same likeliest token, %"), (right, "divergence from the text, nats a token")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("virtual tokens (dotted: nothing in front)")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.legend(fontsize=8)
    save_figure(figure, path)


def main() -> None:
    """Run, write the result and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="job,manual")
    parser.add_argument("--output", type=Path, default=RESULTS / "compress.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    say = Console(stderr=True)
    runs = [run for which in args.only.split(",") for run in measured(args.work, which, say)]
    write(
        {**heading(WHAT, "python benchmarks/compress.py"), "model": MODEL, "dtype": "float32", "runs": runs},
        args.output,
    )
    draw(runs, ROOT / "docs" / "images" / "compress.png")


if __name__ == "__main__":
    main()
