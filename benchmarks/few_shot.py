"""Few-shot SuperGLUE: do virtual tokens around the text do better than as many in front of it?

    python benchmarks/few_shot.py --data ../shared/data/fewglue_32dev [--tasks RTE,WiC] [--seeds 3] [--steps 20]

The split that the P-tuning paper (Liu et al. 2021) and PET (Schick and Schütze 2021) use: 32 rows to train on, and a
random sample of SuperGLUE's own validation rows to report on. Each task has one pattern and a verbalizer; COPA's
answers are its two given continuations. In front, all virtual tokens stand before the pattern; around, as many stand
among its words, which are the same. What is chosen is the answer that the model holds the likeliest, summed over its
tokens, as `accuracy` of `ptune evaluate` has it. Beside both stand the frozen model, which reads the same pattern
without virtual tokens, and the commonest label of the training rows, whatever the question. Both prompts train as
`ptune train` comes. Everything measured is kept in `--work`, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from harness import OK, RESULTS, heading, write
from learning import kept_runs, once
from ptune import TrainRecipe, train
from ptune.answering import Answerer
from ptune.data.example import Example
from ptune.data.template import get_template
from ptune.data.text_ids import ids_of
from ptune.data.tokenize import encode_prompt
from ptune.evaluation.bootstrap import interval, resampled
from ptune.evaluation.items import Item
from ptune.evaluation.label_likelihood import AskedText, LabelSet, label_likelihoods
from ptune.evaluation.metrics import METRICS, Counts
from ptune.evaluation.outcomes import Outcome, chosen_label
from ptune.loading.load import load_model, load_tokenizer
from ptune.model.wrapper import PTunedModel
from ptune.training.train import training_arguments

Row = Mapping[str, Any]
Fields = tuple[str, str]
FRONT, AROUND, ALONE, COMMONEST = "in front", "around", "alone", "commonest label"
COMPARED = ((AROUND, FRONT), *((place, other) for place in (FRONT, AROUND) for other in (ALONE, COMMONEST)))
"""What is subtracted from what."""
SCORES = ("accuracy", "macro_f1")
LONGEST_TEXT = 160
"""Tokens after which a passage or premise is cut."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Task:
    """A pattern, what of a row is put into it, and what may be said behind it.

    Args:
        front: The pattern behind ten virtual tokens.
        around: The same words, and the same number of virtual tokens among them.
        fields: A row's `{instruction}` and `{input}`.
        words: The verbalizer: a word for each label; without it a row's own `choices`.
    """

    front: str
    around: str
    fields: Callable[[Row], Fields]
    words: Mapping[Any, str] | None

    @property
    def classes(self) -> tuple[Any, ...]:
        """The labels, in the order of the answers."""
        return (0, 1) if self.words is None else tuple(self.words)

    def answers(self, row: Row) -> list[str]:
        """What may be said of a row, with the blank before it, which the tokenizer takes into the word."""
        if self.words is None:
            return [f" {_within_a_sentence(row[key])}" for key in ("choice1", "choice2")]
        return [f" {word}" for word in self.words.values()]

    def right(self, row: Row) -> int:
        """The number of the right answer."""
        return self.classes.index(row["label"])


def _within_a_sentence(text: str) -> str:
    """A sentence as the second half of another one."""
    rest = text.strip().removesuffix(".")
    return rest if rest.startswith("I ") else rest[:1].lower() + rest[1:]


def _why_or_what_then(row: Row) -> Fields:
    return row["premise"].strip().removesuffix("."), "because" if row["question"] == "cause" else "so"


PAIR_FRONT = "{prompt:10}{instruction}\nQuestion: Is it true that {input}?\nAnswer:{output}."
PAIR_AROUND = "{prompt:3}{instruction}{prompt:4}\nQuestion: Is it true that {input}?{prompt:3}\nAnswer:{output}."
YES_NO = {True: "yes", False: "no"}
TASKS = {
    "COPA": Task(
        front="{prompt:10}{instruction} {input}{output}.",
        around="{prompt:3}{instruction}{prompt:4} {input}{prompt:3}{output}.",
        fields=_why_or_what_then,
        words=None,
    ),
    "WiC": Task(
        front="{prompt:10}{instruction}\nQuestion: Does {input} mean the same in both?\nAnswer:{output}.",
        around="{prompt:3}{instruction}{prompt:4}\nQuestion: Does {input} mean the same in both?{prompt:3}\n"
        "Answer:{output}.",
        fields=lambda row: (f"{row['sentence1']}\n{row['sentence2']}", f'"{row["word"]}"'),
        words=YES_NO,
    ),
    "CB": Task(
        PAIR_FRONT,
        PAIR_AROUND,
        fields=lambda row: (row["premise"], _within_a_sentence(row["hypothesis"])),
        words={"entailment": "yes", "contradiction": "no", "neutral": "maybe"},
    ),
    "RTE": Task(
        PAIR_FRONT,
        PAIR_AROUND,
        fields=lambda row: (row["premise"], row["hypothesis"].strip().removesuffix(".")),
        words={"entailment": "yes", "not_entailment": "no"},
    ),
    "BoolQ": Task(
        front="{prompt:10}{instruction}\nQuestion: {input}?\nAnswer:{output}.",
        around="{prompt:3}{instruction}{prompt:4}\nQuestion: {input}?{prompt:3}\nAnswer:{output}.",
        fields=lambda row: (row["passage"], row["question"]),
        words=YES_NO,
    ),
}


@dataclass(frozen=True)
class Asked:
    """A row as it is asked."""

    instruction: str
    input: str
    answers: list[str]
    right: int

    def example(self) -> dict[str, str]:
        """As `ptune train` reads it."""
        return {"instruction": self.instruction, "input": self.input, "output": self.answers[self.right]}


class Lab:
    """Trains and measures prompts on one task, each run once.

    Args:
        options: The command line.
        name: The task.
        tokenizer: Cuts long texts.
        runs: What was measured so far, by name; kept in `options.work`.
    """

    def __init__(self, options: argparse.Namespace, name: str, tokenizer: Any, runs: dict[str, Any]) -> None:
        self.options, self.name, self.task, self.tokenizer, self.runs = options, name, TASKS[name], tokenizer, runs
        self.folder = Path(options.work) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        source = Path(options.data) / name
        given = read(source / "val.jsonl")
        self.train_rows = [self.asked(row) for row in read(source / "train.jsonl")]
        drawn = random.Random(0).sample(given, min(options.held_out, len(given)))
        self.rows = [self.asked(row) for row in drawn]
        self.train_file = self.folder / "train.json"
        self.train_file.write_text(json.dumps([row.example() for row in self.train_rows]), encoding="utf-8")

    def asked(self, row: Row) -> Asked:
        """A row with its text cut."""
        text, more = self.task.fields(row)
        ids = ids_of([text], self.tokenizer)[0]
        if len(ids) > LONGEST_TEXT:
            text = str(self.tokenizer.decode(ids[:LONGEST_TEXT]))
        return Asked(text, more, self.task.answers(row), self.task.right(row))

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a run gave, now or earlier."""
        return once(Path(self.options.work), self.runs, f"{self.name}/{name}", run)

    def alone(self) -> dict[str, Any]:
        """The frozen model on the pattern without virtual tokens."""

        def run() -> dict[str, Any]:
            model = PTunedModel(load_model(self.options.model)).eval()
            pattern = get_template(self.task.front.replace("{prompt:10}", ""), self.tokenizer)
            return self.chosen(Answerer(model, self.tokenizer, pattern))

        return self.once(f"{ALONE}-rows-{len(self.rows)}", run)

    def prompt(self, place: str, seed: int) -> dict[str, Any]:
        """As `ptune train` comes, with the virtual tokens in one place."""

        def run() -> dict[str, Any]:
            recipe, arguments = self.recipe(place), {"max_steps": self.options.steps, "seed": seed}
            result = train(recipe, {**arguments, "save_strategy": "no"}, Console(quiet=True))
            opened = Answerer(result.model.eval(), result.tokenizer, result.template)
            return {"train_loss": result.train_loss, **self.chosen(opened)}

        return self.once(f"{place}-{self.options.steps}-steps-rows-{len(self.rows)}-seed-{seed}", run)

    def recipe(self, place: str) -> TrainRecipe:
        """As a user would write it."""
        return TrainRecipe(
            model=self.options.model, data=str(self.train_file), output=str(self.folder / place.replace(" ", "-")),
            overwrite=True, template=self.task.front if place == FRONT else self.task.around,
        )  # fmt: skip

    def chosen(self, answerer: Answerer) -> dict[str, Any]:
        """The number of the likeliest answer of each row, a digit a row."""
        template, tokenizer, name = answerer.template, answerer.tokenizer, answerer.model.active_prompt
        texts = [
            AskedText(
                encode_prompt(template.prompt(row.instruction, row.input), tokenizer),
                name,
                LabelSet.of(ids_of(row.answers, tokenizer)),
            )
            for row in self.rows
        ]
        with torch.no_grad():
            found = label_likelihoods(answerer.model, texts)
        outcomes = [Outcome(labels=tuple(one.log_prob for one in likely)) for likely in found]
        numbers = [
            chosen_label(one, row.answers, normalized=False) for one, row in zip(outcomes, self.rows, strict=True)
        ]
        return {"chosen": "".join(map(str, numbers))}

    def counts(self, chosen: str) -> dict[str, Counts]:
        """What `ptune evaluate` counts in choices."""
        classes = [str(number) for number in range(len(self.task.classes))]
        items = [Item((Example(instruction=row.instruction, output=str(row.right)),)) for row in self.rows]
        outcomes = [Outcome(labels=tuple(float(one == said) for one in classes)) for said in chosen]
        return {name: METRICS[name].count(items, outcomes, classes) for name in SCORES}


def read(path: Path) -> list[Row]:
    """Rows of a file with a JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def difference(front: Sequence[Counts], around: Sequence[Counts]) -> dict[str, float]:
    """The score around less that in front, each the mean over the seeds, with the 95% interval over resampled rows."""
    named = {f"{place}{seed}": one for place, part in (("f", front), ("a", around)) for seed, one in enumerate(part)}
    drawn = resampled(named, RESAMPLES, seed=0)
    means = {place: np.mean([drawn[name] for name in drawn if name[0] == place], axis=0) for place in "fa"}
    value = statistics.fmean(one.whole for one in around) - statistics.fmean(one.whole for one in front)
    return interval(value, means["a"] - means["f"]).to_dict()


def compared(lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one task."""
    commonest = Counter(row.right for row in lab.train_rows).most_common(1)[0][0]
    counts = {
        COMMONEST: [lab.counts(str(commonest) * len(lab.rows))],
        ALONE: [lab.counts(lab.alone()["chosen"])],
    }
    for place in (FRONT, AROUND):
        counts[place] = [lab.counts(lab.prompt(place, seed)["chosen"]) for seed in range(options.seeds)]
    scores = {who: {name: [one[name].whole for one in part] for name in SCORES} for who, part in counts.items()}
    gaps = {
        f"{better} less {other}": {
            name: difference([one[name] for one in counts[other]], [one[name] for one in counts[better]])
            for name in SCORES
        }
        for better, other in COMPARED
    }
    right = "".join(str(row.right) for row in lab.rows)
    return {"task": lab.name, "rows": len(lab.rows), "right": right, "scores": scores, "differences": gaps}


def measure(options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Every task."""
    runs = kept_runs(Path(options.work))
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model)
    names = options.tasks.split(",")
    labs = [Lab(options, name, tokenizer, runs) for name in names]
    args = training_arguments(labs[0].recipe(FRONT), {})
    result: dict[str, Any] = {
        **heading((__doc__ or "").partition("\n")[0], "python benchmarks/few_shot.py"),
        "settings": {
            **{name: getattr(options, name) for name in ("model", "tasks", "steps", "seeds", "held_out", "threads")},
            "longest_text_tokens": LONGEST_TEXT,
            "batch": args.per_device_train_batch_size,
            "adam_betas": [args.adam_beta1, args.adam_beta2],
            "resamples": RESAMPLES,
        },
        "templates": {name: {FRONT: TASKS[name].front, AROUND: TASKS[name].around} for name in names},
        "status": "not finished",
        "compared": [],
    }
    for lab in labs:
        result["compared"].append(compared(lab, options))
        write({**result, "runs": runs}, options.output)
        say.print(f"{lab.name}: done")
    result |= {"status": OK, "runs": runs}
    write(result, options.output)
    return result


def report(result: dict[str, Any], say: Console) -> None:
    """A table: accuracy and macro F1, mean over the seeds, with the least and the greatest accuracy."""
    table = Table("task", "rows", COMMONEST, "model alone", FRONT, AROUND, "difference of accuracies (95%)")
    for one in result["compared"]:
        cells = []
        for part in one["scores"].values():
            accuracy, f1 = part["accuracy"], part["macro_f1"]
            spread = f" ({min(accuracy):.2f} to {max(accuracy):.2f})" if len(accuracy) > 1 else ""
            cells.append(f"{statistics.fmean(accuracy):.2f}{spread}; {statistics.fmean(f1):.2f}")
        gap = one["differences"][f"{AROUND} less {FRONT}"]["accuracy"]
        shown = f"{gap['value']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f})"
        table.add_row(one["task"], str(one["rows"]), *cells, shown)
    say.print(table)


def main() -> None:
    """Measure, write the result, show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--data", default="../shared/data/fewglue_32dev", help="folder with a folder for each task")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--held-out", type=int, default=80, help="rows to report on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="outputs/few_shot")
    parser.add_argument("--output", type=Path, default=RESULTS / "few_shot.json")
    options = parser.parse_args()
    say = Console()
    report(measure(options, say), say)


if __name__ == "__main__":
    main()
