"""What is a soft prompt's held-out loss worth? Task scores beside zero-shot, few-shot and full fine-tuning.

    python benchmarks/task_scores.py --data ../shared/data --work DIR [--tasks trec,sst2,e2e] [--full-tasks trec]

The tasks, rows, steps and prompts of `learning.py` at 20 virtual tokens (run it first with the same `--work`, which
holds its prompts; one that is not the prompt that `--learned` tells of is refused): `ptune train` as it comes, and
PEFT's start at its best rate, three seeds each. Beside them the frozen SmolLM2-135M alone, told the job in words, told
it with four examples too, and all of its weights trained on the same rows for as many steps, at the rate of `LADDER`
that is best on rows which are reported nowhere else. SST-2 and TREC are scored by the label that is the likeliest, E2E
by greedy answers to some of the inputs against all of their references, both on rows that no one has trained on.
Losses are over the held-out rows of `learning.py`. Everything measured is kept in `--work`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Trainer

from harness import OK, RESULTS, heading, write
from learning import Lab, Pair, kept_runs, read_tasks
from ptune.answering import Answerer
from ptune.choices import NEW_TOKENS
from ptune.data.collate import PaddingCollator
from ptune.data.template import get_template
from ptune.evaluation.asked_rows import AskedRows, read_asked
from ptune.evaluation.columns import ALONE, PROMPT, Column, item_texts, plain_column
from ptune.evaluation.evaluate_settings import EvaluateSettings
from ptune.evaluation.evaluation_result import score_all
from ptune.evaluation.held_out_loss import held_out_loss
from ptune.evaluation.measured import outcomes
from ptune.evaluation.metrics import METRICS
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.told_in_words import Telling, told_in_words
from ptune.loading.load import load_base, load_model, load_tokenizer
from ptune.methods.apply import apply_method
from ptune.model.wrapper import PTunedModel
from ptune.training.rows import load_rows
from ptune.training.train import training_arguments

LENGTH, SHOTS, ANSWER_BATCH, RESAMPLES = 20, 4, 16, 1000
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
"""Learning rates of full fine-tuning; it begins in the middle, and goes on while the best has an untried neighbour."""
TOLD, SHOWN = "in words", f"in words, {SHOTS} examples"
REFERENCE, OURS, FULL = "PEFT's start, best rate", "ptune", "full fine-tuning"
IN_WORDS = {
    "sst2": "Is this film review positive or negative?",
    "trec": "What is this question about: description, entity, abbreviation, human, location or number?",
    "e2e": "Describe the restaurant in a sentence or two that say all of these facts.",
}
SCORES = {"sst2": ("accuracy", "macro_f1"), "trec": ("accuracy", "macro_f1"), "e2e": ("bleu", "rougeL", "chrf")}
SAME_LOSS = 0.002
"""How far a prompt's loss may be from the one that was noted; padded and packed rows differ by much less."""
Scores = dict[str, dict[str, float]]


class Scored(Lab):
    """A task's contenders, each measured once.

    Args:
        options: The command line.
        name: The task.
        rows: To train on, to choose by, to report on.
        runs: What was measured so far, by name.
    """

    def __init__(
        self, options: argparse.Namespace, name: str, rows: Sequence[list[Pair]], runs: dict[str, Any]
    ) -> None:
        super().__init__(options, name, rows, runs)
        given, drawing = rows[2], random.Random(0)
        if name == "e2e":
            inputs = sorted({question for question, _ in given})
            chosen = set(drawing.sample(inputs, min(options.scored_inputs, len(inputs))))
            drawn = [row for row in given if row[0] in chosen]
        else:
            drawn = drawing.sample(given, min(options.scored, len(given)))
        values = [{"instruction": question, "output": answer} for question, answer in drawn]
        self.file("scored").write_text(json.dumps(values), encoding="utf-8")
        self.template = self.recipe("", LENGTH).template

    def asked(self, shots: int = 0) -> AskedRows:
        """What is scored, and the examples that may be shown."""
        told = {"shots": shots, "shots_data": str(self.file("train"))} if shots else {"shots": 0}
        return read_asked(EvaluateSettings(data=str(self.file("scored")), metrics=SCORES[self.name], **told))

    def scores(self, answerer: Answerer, who: str) -> Scores:
        """Scores as `ptune evaluate` has them, of one column; it would ask all of its columns each time."""
        shots = SHOTS if who == SHOWN else 0
        rows, model = self.asked(shots), answerer.model
        texts = [item_texts(item, answerer.template, answerer.tokenizer, None) for item in rows.items]
        expected = max(one.longest_answer for one in texts)
        new_tokens = min(NEW_TOKENS, expected + expected // 4 + 1)
        if who not in (TOLD, SHOWN):
            column = plain_column(who, texts, model.active_prompt if who == PROMPT else None, 0)
            return _scores(answerer, rows, column, new_tokens)
        telling = Telling.drawn(IN_WORDS[self.name], rows.pool, shots, seed=0)
        wanted = new_tokens if rows.needs.answers else 0
        with told_in_words(answerer, rows.items, telling, plain=texts, new_tokens=wanted) as (column, said):
            assert said.shots == shots
            return _scores(answerer, rows, column, new_tokens)

    def loss(self, model: PTunedModel, part: str, *, with_prompt: bool) -> float:
        """Mean loss over the held-out rows of `learning.py`, or over those to choose by."""
        tokenizer = load_tokenizer(self.options.model)
        recipe = self.recipe("", LENGTH, part)
        rows = load_rows(
            recipe, get_template(self.template, tokenizer), tokenizer, training_arguments(recipe, {}), progress=False
        )
        collate = PaddingCollator(pad_token_id=int(tokenizer.pad_token_id or 0))
        return held_out_loss(model, rows.held_out_tokens.dataset, collate, with_prompt=with_prompt).loss

    def frozen(self, who: str) -> dict[str, Any]:
        """The frozen model, alone or told in words."""

        def run(_name: str) -> dict[str, Any]:
            tokenizer = load_tokenizer(self.options.model)
            model = PTunedModel(load_model(self.options.model, dtype="float32")).eval()
            return {"scores": self.scores(Answerer(model, tokenizer, get_template(self.template, tokenizer)), who)}

        return self.once(f"scores-{who}", run)

    def prompt(self, name: str, noted_loss: float) -> dict[str, Any]:
        """A prompt that `learning.py` trained.

        Raises:
            RuntimeError: Its loss is not the one that was noted.
        """

        def run(_name: str) -> dict[str, Any]:
            answerer = Answerer.open(self.folder / name, dtype="float32", template=self.template)
            loss = self.loss(answerer.model, "held_out", with_prompt=True)
            if abs(loss - noted_loss) > SAME_LOSS:
                raise RuntimeError(f"{self.name}/{name}: a held-out loss of {loss}, where {noted_loss} was noted")
            return {"held_out_loss": loss, "scores": self.scores(answerer, PROMPT)}

        return self.once(f"scores-{name}", run)

    def full(self, rate: float, seed: int) -> dict[str, Any]:
        """All weights trained, by Trainer as its users write it; Adam as it comes there."""

        def run(name: str) -> dict[str, Any]:
            recipe = self.recipe(name, LENGTH, dtype="float32")
            given = {"max_steps": self.options.steps, "seed": seed, "learning_rate": rate, "adam_beta1": 0.9}
            more = {"adam_beta2": 0.999, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
            args = training_arguments(recipe, {**given, **more})
            tokenizer = load_tokenizer(recipe.model)
            template = get_template(self.template, tokenizer)
            rows = load_rows(recipe, template, tokenizer, args, progress=False)
            base = load_base(recipe, args.device, tokenizer)
            collate = PaddingCollator(pad_token_id=int(tokenizer.pad_token_id or 0))
            model = apply_method("full", base)
            Trainer(model=model, args=args, train_dataset=rows.tokens.dataset, data_collator=collate).train()
            bare = PTunedModel(base).eval()
            return {
                "learning_rate": rate,
                "loss_chosen_by": self.loss(bare, "chosen_by", with_prompt=False),
                "held_out_loss": self.loss(bare, "held_out", with_prompt=False),
                "scores": self.scores(Answerer(bare, tokenizer, template), ALONE),
            }

        return self.once(f"full-{self.options.steps}-steps-rate-{rate:g}-seed-{seed}", run)

    def best_full(self) -> tuple[float, dict[str, float]]:
        """The best learning rate of full fine-tuning, and the losses that say so."""
        if self.options.full_rates:
            rates = [float(one) for one in self.options.full_rates.split(",")]
            given = {f"{rate:g}": self.full(rate, 0)["loss_chosen_by"] for rate in rates}
            return float(min(given, key=given.__getitem__)), given
        at, tried = len(LADDER) // 2, {}
        while True:
            for near in range(max(at - 1, 0), min(at + 2, len(LADDER))):
                if near not in tried:
                    tried[near] = self.full(LADDER[near], 0)["loss_chosen_by"]
            best = min(tried, key=tried.__getitem__)
            if best == at:
                return LADDER[best], {f"{LADDER[near]:g}": tried[near] for near in sorted(tried)}
            at = best


def _scores(answerer: Answerer, rows: AskedRows, column: Column, new_tokens: int) -> Scores:
    """Each score of a column, with its 95% interval over the rows."""
    found: dict[int, Outcome] = {}
    for numbers in column.batches(range(len(rows.items)), ANSWER_BATCH):
        asked = outcomes(
            answerer.model, answerer.tokenizer, column, numbers, rows.needs, max_new_tokens=new_tokens
        )  # fmt: skip
        found |= dict(zip(numbers, asked, strict=True))
    each = {column.name: [found[number] for number in range(len(rows.items))]}
    metrics = [METRICS[name] for name in rows.metrics]
    scored = score_all(metrics, rows.items, each, rows.labels, times=RESAMPLES, seed=0)
    return {one.metric.name: one.scores[column.name].to_dict() for one in scored}


def contenders(lab: Scored, learned: dict[str, Any]) -> dict[str, Any]:
    """One task: each contender's scores and losses, of every seed."""
    steps, seeds, rate = lab.options.steps, range(lab.options.seeds), learned["reference_rate"]
    names = {
        REFERENCE: [f"reference-n{LENGTH}-{steps}-steps-rate-{rate:g}-seed-{seed}" for seed in seeds],
        OURS: [f"ptune-n{LENGTH}-{steps}-steps-rate-default-seed-{seed}" for seed in seeds],
    }
    noted = {REFERENCE: learned["held_out_loss"]["reference"], OURS: learned["held_out_loss"]["ptune"]}
    each = {who: [lab.frozen(who)] for who in (ALONE, TOLD, SHOWN)}
    each[ALONE][0]["held_out_loss"] = learned["model_alone"]
    for who, folders in names.items():
        each[who] = [lab.prompt(name, loss) for name, loss in zip(folders, noted[who], strict=False)]
    rows = lab.asked()
    return {
        "task": lab.name,
        "virtual_tokens": LENGTH,
        "items": len(rows.items),
        "references": sum(len(item.rows) for item in rows.items),
        "in_words": IN_WORDS[lab.name],
        "contenders": each,
    }


def with_full(task: dict[str, Any], lab: Scored) -> None:
    """Add full fine-tuning to what `contenders` found."""
    best, tried = lab.best_full()
    task |= {"full_rates_tried": tried, "full_rate": best}
    task["contenders"][FULL] = [lab.full(best, seed) for seed in range(lab.options.full_seeds)]


def measure(options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Every task."""
    runs = kept_runs(Path(options.work))
    torch.set_num_threads(options.threads)
    compared = json.loads(options.learned.read_text(encoding="utf-8"))["compared"]
    learned = {one["task"]: one for one in compared if one["virtual_tokens"] == LENGTH}
    tasks = read_tasks(Path(options.data))
    told = (
        "model",
        "tasks",
        "full_tasks",
        "full_rates",
        "steps",
        "seeds",
        "full_seeds",
        "held_out",
        "scored",
        "scored_inputs",
    )
    result: dict[str, Any] = {
        **heading((__doc__ or "").partition("\n")[0], "python benchmarks/task_scores.py"),
        "settings": {name: getattr(options, name) for name in (*told, "threads")}
        | {"shots": SHOTS, "resamples": RESAMPLES},
        "status": "not finished",
        "tasks": [],
    }
    labs = [Scored(options, name, tasks[name], runs) for name in options.tasks.split(",")]
    for lab in labs:
        result["tasks"].append(contenders(lab, learned[lab.name]))
        write(result, options.output)
        say.print(f"{lab.name}: done")
    for task, lab in zip(result["tasks"], labs, strict=True):  # last: it takes longest
        if lab.name in options.full_tasks.split(","):
            with_full(task, lab)
            write(result, options.output)
            say.print(f"{lab.name}: full fine-tuning done")
    # The other rates of full fine-tuning are in here too.
    result |= {"status": OK, "runs": {name: one for name, one in runs.items() if "scores" in one}}
    write(result, options.output)
    return result


def report(result: dict[str, Any], say: Console) -> None:
    """A table: the mean over the seeds, with the least and the greatest."""
    table = Table("task", "contender", "held-out loss", "scores")
    for task in result["tasks"]:
        for who, runs in task["contenders"].items():
            losses = [one["held_out_loss"] for one in runs if "held_out_loss" in one]
            cells = []
            for name in runs[0]["scores"]:
                values = [one["scores"][name]["value"] for one in runs]
                cells.append(f"{name} {statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            table.add_row(task["task"], who, f"{statistics.fmean(losses):.3f}" if losses else "", ", ".join(cells))
    say.print(table)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--data", default="../shared/data", help="folder with sst2, trec and e2e_nlg")
    parser.add_argument("--work", default="outputs/learning", help="of learning.py, with its prompts")
    parser.add_argument("--tasks", default="trec,sst2,e2e")
    parser.add_argument("--full-tasks", default="trec,sst2,e2e", help="where full fine-tuning takes part")
    parser.add_argument("--full-rates", default="", help="these alone, 3e-5,1e-4, in place of a walk on the ladder")
    parser.add_argument("--seeds", type=int, default=3, help="of the prompts")
    parser.add_argument("--full-seeds", type=int, default=3, help="of full fine-tuning at its best rate")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=120, help="as learning.py had it")
    parser.add_argument("--scored", type=int, default=500, help="rows of SST-2 and TREC to score")
    parser.add_argument("--scored-inputs", type=int, default=100, help="inputs of E2E to answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--learned", type=Path, default=RESULTS / "learning.json")
    parser.add_argument("--output", type=Path, default=RESULTS / "task_scores.json")
    options = parser.parse_args()
    say = Console()
    report(measure(options, say), say)


if __name__ == "__main__":
    main()
